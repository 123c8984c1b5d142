defmodule NetlinkPort.Server.Client do
  @moduledoc false
  # Runs in the calling process: it commands the port directly, waits for the answer with a deadline, and asks the
  # server for what only the server knows.
  #
  # Whatever happens to the server and the helper, no function here crashes the caller, or suspends it for ever.

  alias NetlinkPort.{Arguments, Deadline, Errno, Error, Payload, Pin, ProcessLimit, Socket}
  alias NetlinkPort.Capture.Tap
  alias NetlinkPort.Helper.{Protocol, Reference}
  alias NetlinkPort.Server.{LateAnswers, PinNumbers, Refusal}

  @type raw :: {:ok, term()} | {:error, {Error.stage(), integer(), binary()}}

  @doc "Has the helper carry out a command on a socket and waits for its answer."
  @spec request(Socket.t(), Protocol.command(), timeout() | nil) ::
          {:ok, term()} | {:error, Error.t()}
  def request(%Socket{helper: helper} = socket, command, timeout \\ nil) do
    timeout = timeout || helper.call_timeout

    answer =
      if Reference.local?(helper) do
        pass(socket, command)
        direct(helper, &Protocol.command(&1, command), timeout)
      else
        ask(helper, {:request, command}, timeout)
      end

    explain(answer, socket)
  end

  @doc "Sends a datagram to the kernel. With `wait?`, returns when the helper has called sendmsg(2)."
  @spec send(Socket.t(), Pin.payload(), boolean(), timeout()) :: :ok | {:error, Error.t()}
  def send(socket, payload, wait?, timeout) do
    case Payload.iodata_size(payload) do
      nil ->
        with {:ok, datagram} <- PinNumbers.resolve(payload, socket),
             do: send(socket, datagram, IO.iodata_length(datagram), wait?, timeout)

      size ->
        send(socket, payload, size, wait?, timeout)
    end
  end

  defp send(%Socket{helper: helper, handle: handle} = socket, datagram, size, wait?, timeout) do
    cond do
      not fits?(helper, size) ->
        {:error, Error.new(:send, :emsgsize)}

      not Reference.local?(helper) ->
        helper
        |> ask({:send, handle, IO.iodata_to_binary(datagram), wait?}, timeout)
        |> done(socket)

      wait? ->
        pass(socket, datagram)
        helper |> direct(&Protocol.send(&1, handle, datagram, size), timeout) |> done(socket)

      true ->
        post(socket, datagram, Protocol.send(0, handle, datagram, size), timeout)
    end
  end

  @typedoc """
  A datagram under way: the reference of its command, and what the message of a failure begins with. For a passive socket
  `hold/3` returns the failure instead.
  """
  @type under_way :: {pos_integer(), reference()}

  @doc """
  Sends a datagram to the kernel without waiting for the helper. If sendmsg(2) fails, the recipient of an active socket
  is sent a message, `{alias, answer}`, that `failure/2` reads. For a passive socket `hold/3` returns the failure.
  `settle/3` ends that.
  """
  @spec begin(Socket.t(), iodata(), :active | :passive, timeout()) ::
          {:ok, under_way()} | {:error, Error.t()}
  def begin(%Socket{helper: helper, handle: handle} = socket, datagram, mode, timeout) do
    size = IO.iodata_length(datagram)

    cond do
      not fits?(helper, size) ->
        {:error, Error.new(:send, :emsgsize)}

      helper.server == self() ->
        explain(deadlock(), socket)

      true ->
        pass(socket, datagram)

        case mode do
          :active ->
            # The failure comes to an alias. The end of the server comes by `:netlink_closed`.
            alias = :erlang.alias([:reply])
            frame = &Protocol.ask(&1, handle, datagram, size)
            waiter = &Reference.expect_failure(&1, handle, {:failure, alias})
            write_expected(socket, waiter, alias, frame, timeout)

          :passive ->
            frame = &Protocol.send(&1, handle, datagram, size)
            waiter = &Reference.expect(&1, {:asker, self(), handle})
            write_expected(socket, waiter, make_ref(), frame, timeout)
        end
    end
  end

  defp write_expected(%{helper: helper} = socket, waiter, alias, frame, timeout) do
    reference = waiter.(helper)

    with {:error, reason} <- write(helper, frame.(reference), timeout) do
      :ok = settle(socket, {reference, alias}, :given_up)
      {:error, Error.new(stage(reason), reason)}
    else
      :ok -> {:ok, {reference, alias}}
    end
  rescue
    # The board went with its server.
    ArgumentError ->
      _whether = :erlang.unalias(alias)
      {:error, Error.new(:thread, :epipe)}
  end

  @doc "The error of a failure that has come for a datagram of `begin/4`."
  @spec failure(Socket.t(), raw()) :: Error.t()
  def failure(socket, failed) do
    {:error, error} = explain(failed, socket)
    error
  end

  @doc """
  Ends `begin/4`. `:answered` means that the kernel has answered the datagram. Otherwise no message of it stays in the
  mailbox, and after a long `{:overdue, waited}`, in ms, the server suspects its helper, as in `send/4`.
  """
  @spec settle(Socket.t(), under_way(), :answered | :given_up | {:overdue, non_neg_integer()}) ::
          :ok
  def settle(%Socket{helper: helper, handle: handle}, {reference, alias}, outcome) do
    _whether = :erlang.unalias(alias)
    with {:overdue, waited} <- outcome, do: report_overdue(helper, waited)

    if outcome == :answered do
      true = Reference.forget(helper, reference)
      :ok
    else
      true = Reference.forget_request(helper, handle, reference)
      drop(alias)
    end
  end

  defp drop(alias) do
    receive do
      {^alias, _answer} -> :ok
    after
      0 -> :ok
    end
  end

  defp fits?(helper, size) do
    # max_frame bounds the whole frame: the datagram and its prefix.
    size + 64 <= helper.max_frame
  end

  defp done(answer, socket) do
    with {:ok, _value} <- explain(answer, socket), do: :ok
  end

  # The datagram goes to the capture before the port, so that the kernel's answer is never captured first.
  defp post(%{helper: helper, handle: handle} = socket, datagram, frame, timeout) do
    with tap when tap != :closed <- Reference.tap(helper, handle),
         :ok <- Tap.pass(tap, :out, socket, datagram),
         :ok <- write(helper, frame, timeout) do
      :ok
    else
      :closed -> {:error, Error.new(:send, :ebadf)}
      {:error, reason} -> {:error, Error.new(stage(reason), reason)}
    end
  rescue
    # The board went with its server.
    ArgumentError -> {:error, Error.new(:thread, :epipe)}
  end

  # A datagram on a socket that turns out to be closed is not captured.
  defp pass(socket, {:send_to, _handle, _port_id, _groups, datagram}), do: pass(socket, datagram)
  defp pass(_socket, command) when is_tuple(command), do: :ok

  defp pass(%{helper: helper, handle: handle} = socket, datagram) do
    case Reference.tap(helper, handle) do
      :closed -> :ok
      tap -> Tap.pass(tap, :out, socket, datagram)
    end
  rescue
    # The board went with its server.
    ArgumentError -> :ok
  end

  defp stage(:eagain), do: :send
  defp stage(:epipe), do: :thread

  @doc "Has the server close a socket. The result is `:ok`, also if the server or the helper has ended."
  @spec close(Socket.t()) :: :ok
  def close(%Socket{handle: handle, helper: helper}) do
    _answer = ask(helper, {:close, handle}, helper.call_timeout)
    :ok
  end

  @doc "Receives one datagram of a passive socket, or the error that arrived in its place."
  @spec recv(Socket.t(), timeout()) ::
          {:ok, binary()} | {:ok, binary(), NetlinkPort.metadata()} | {:error, Error.t()}
  def recv(socket, timeout) do
    with {:unsent, error} <- recv(socket, timeout, :recv, nil), do: {:error, error}
  end

  @doc """
  Like `recv/2`, for a request of the owner. Until the owner receives the next datagram, or calls `let_go/1`, the server
  sends it no message of this socket. So the owner can hand the datagram on, in its place among those messages.

  `reference` is that of the request which the datagram is to answer (`begin/4`). If it was not sent, the result is
  `:unsent`.
  """
  @spec hold(Socket.t(), timeout(), pos_integer() | nil) ::
          {:ok, binary()}
          | {:ok, binary(), NetlinkPort.metadata()}
          | {:unsent, Error.t()}
          | {:error, Error.t()}
  def hold(socket, timeout, reference \\ nil), do: recv(socket, timeout, :hold, reference)

  @doc "Ends what `hold/3` began."
  @spec let_go(Socket.t()) :: :ok
  def let_go(%Socket{handle: handle, helper: helper}) do
    Kernel.send(helper.server, {:let_go, handle, self()})
    :ok
  end

  @doc """
  From now on the server drops the answers to exchanges with these numbers, and those that it keeps. With `wait?`,
  returns when it does: what it has sent the owner before is in the mailbox.
  """
  @spec drop_answers(Socket.t(), LateAnswers.classes(), wait? :: boolean()) :: :ok
  def drop_answers(%Socket{handle: handle, helper: helper}, classes, wait?) do
    Kernel.send(helper.server, {:drop_answers, handle, classes})
    _known = if wait?, do: ask(helper, {:vm_info, handle}, 0)
    :ok
  end

  defp recv(%Socket{handle: handle, helper: helper} = socket, timeout, way, reference) do
    case ask(helper, {way, handle, timeout, Deadline.new(timeout), reference}, timeout) do
      {:ok, {datagram, nil}} -> {:ok, datagram}
      {:ok, {datagram, metadata}} -> {:ok, datagram, metadata}
      {:error, %Error{} = error} -> {:error, error}
      {:error, {:unsent, failure}} -> {:unsent, failure(socket, {:error, failure})}
      {:error, _raw} = failed -> explain(failed, socket)
    end
  end

  @doc """
  Calls the server of a socket or a pin. A server that is not there has ended, and with it the socket or pin: the
  error is EPIPE. `call/3` says ESRCH, since there the name may never have had a server.
  """
  @spec ask(Reference.t(), term(), timeout()) :: term()
  def ask(%{server: server}, message, timeout) do
    if self?(server), do: deadlock(), else: called(server, message, timeout, :epipe)
  end

  @doc "Calls the server. Returns an error however the call fails; it never exits."
  @spec call(GenServer.server(), term(), timeout()) :: term()
  def call(server, message, timeout) do
    server = Arguments.server!(server)

    if self?(server), do: deadlock(), else: called(server, message, timeout, :esrch)
  end

  defp deadlock, do: {:error, {:thread, Errno.number(:edeadlk), ""}}

  # A telemetry handler runs in the server, and may call a function of this library. `gen_server:call/3` finds out the
  # same of the other forms of names.
  defp self?(name) when is_atom(name), do: name != nil and Process.whereis(name) == self()
  defp self?(server), do: server == self()

  # gen_server:call/3 skips messages that were in the mailbox before: the VM marks the place when the reference is
  # made and received in one function. A late reply goes to an alias that has ended, and the VM drops it.
  defp called({:via, registry, name}, message, timeout, noproc) do
    case whereis(registry, name) do
      :undefined -> failed_call(:noproc, noproc)
      pid -> called(pid, message, timeout, noproc)
    end
  end

  defp called(server, message, timeout, noproc) do
    :gen_server.call(server, message, Deadline.patience(timeout))
  catch
    :exit, {reason, {:gen_server, :call, _arguments}} -> failed_call(reason, noproc)
  end

  # Registry raises while it is not running, as between its end and its restart. PartitionSupervisor exits.
  defp whereis(registry, name) do
    registry.whereis_name(name)
  rescue
    _not_running in ArgumentError -> :undefined
  catch
    :exit, _noproc -> :undefined
  end

  defp failed_call(:calling_self, _noproc), do: deadlock()
  defp failed_call(:timeout, _noproc), do: {:error, {:thread, Errno.number(:etimedout), ""}}
  defp failed_call(:noproc, noproc), do: {:error, {:thread, Errno.number(noproc), ""}}
  defp failed_call(reason, _noproc), do: {:error, {:thread, Errno.number(gone(reason)), ""}}

  # Turns the exit reason of the server into the errno that the caller gets.
  defp gone(:noconnection), do: :esrch
  # This VM is not a distributed node.
  defp gone({:nodedown, _node}), do: :esrch
  defp gone(:stuck), do: :etimedout
  defp gone(_reason), do: :epipe

  @typedoc "What was called, and by which name or pid."
  @type callee :: {:server | :connection | :monitor | :capture, GenServer.server()}

  @typedoc "An open that the helper could not carry out. The caller makes the sentence: the server must not wait for a file."
  @type refused :: {:refused, Refusal.failure(), Refusal.place(), Reference.t()}

  @doc "The error of a call that failed, which belongs to no socket. `%Error{}`, the callee's own answer, passes."
  @spec failed({Error.stage(), integer(), binary()} | refused() | Error.t(), callee()) ::
          {:error, Error.t()}
  # Without a subject, which the helper's own errors of this stage have.
  def failed(%Error{stage: :protocol, subject: nil, errno: errno}, callee),
    do: failed({:protocol, errno, ""}, callee)

  def failed(%Error{} = error, _callee), do: {:error, error}

  def failed({:refused, failure, place, helper}, _server),
    do: {:error, Refusal.in_caller(helper, &Refusal.of_open(failure, place, &1))}

  def failed({stage, errno, _detail}, {kind, process}) do
    subject = if stage == :thread and kind != :server, do: Atom.to_string(kind)
    hint = hint({stage, Errno.atom(errno)}, kind, process)
    {:error, Error.new(stage, errno, subject: subject, hint: hint)}
  end

  defp hint({:thread, :esrch}, kind, pid) when is_pid(pid),
    do: "the #{kind} #{inspect(pid)} has ended, or its node cannot be reached"

  defp hint({:thread, :esrch}, kind, name) do
    "no such #{kind} is running, #{inspect(name)}, or its node cannot be reached; start it under a supervisor: " <>
      child(kind, name)
  end

  defp hint({:thread, :epipe}, kind, _process) when kind != :server,
    do: "it has ended; call again when its supervisor has started it again"

  # The processes of this library answer so to calls that they do not know.
  defp hint({:protocol, :einval}, kind, process) do
    "#{inspect(process)} is no #{kind} of this library, but another process of it, or one of another version"
  end

  defp hint(_failure, _kind, _process), do: nil

  defp child(:server, {:via, PartitionSupervisor, {name, _key}}),
    do: "{PartitionSupervisor, child_spec: {NetlinkPort, name: nil}, name: #{inspect(name)}}"

  defp child(:server, name), do: "{NetlinkPort, name: #{inspect(local(name))}}"
  defp child(:connection, name), do: "{NetlinkPort.Connection, name: #{inspect(local(name))}, …}"
  defp child(:monitor, name), do: "{NetlinkPort.Monitor, name: #{inspect(local(name))}, …}"

  defp local({name, _node}) when name not in [:global, :via], do: name
  defp local(name), do: name

  @doc "Turns a raw failure into an error with the socket's protocol and namespace in its sentence."
  @spec explain(raw() | {:error, Error.t()}, Socket.t()) :: {:ok, term()} | {:error, Error.t()}
  def explain({:ok, value}, _socket), do: {:ok, value}
  def explain({:error, %Error{} = error}, _socket), do: {:error, error}

  def explain({:error, failure}, %Socket{} = socket) do
    place = {socket.protocol, socket.netns}
    {:error, Refusal.in_caller(socket.helper, &Refusal.error(failure, place, &1))}
  end

  # The server sends the answer to an alias that ends with the deadline, so the VM drops a late answer. The alias
  # comes with a monitor, which reports the end of the server.
  defp direct(%{server: server}, _frame, _timeout) when server == self() do
    {:error, {:thread, Errno.number(:edeadlk), ""}}
  end

  defp direct(helper, frame, timeout) do
    monitor = :erlang.monitor(:process, helper.server, alias: :reply_demonitor)

    try do
      reference = Reference.expect(helper, {:caller, monitor})

      case write(helper, frame.(reference), timeout) do
        :ok -> await(helper, reference, monitor, timeout)
        # Not raw: an EAGAIN of the helper is that of sendmsg(2), which Refusal explains.
        {:error, reason} -> forget(helper, reference, monitor, Error.new(stage(reason), reason))
      end
    rescue
      ArgumentError ->
        Process.demonitor(monitor, [:flush])
        {:error, {:thread, Errno.number(:epipe), ""}}
    end
  end

  defp await(helper, reference, monitor, timeout) do
    with :timeout <- answer(monitor, timeout) do
      report_overdue(helper, timeout)
      forget(helper, reference, monitor, {:thread, Errno.number(:etimedout), ""})
    end
  end

  defp answer(monitor, timeout) do
    receive do
      {^monitor, answer} ->
        answer

      # The VM sends the request to monitor lazily, perhaps behind the command that has ended helper and server. So
      # `:noproc` means here that the server has ended meanwhile.
      {:DOWN, ^monitor, :process, _server, :noproc} ->
        {:error, {:thread, Errno.number(:epipe), ""}}

      {:DOWN, ^monitor, :process, _server, reason} ->
        {:error, {:thread, Errno.number(gone(reason)), ""}}
    after
      timeout -> :timeout
    end
  end

  defp forget(helper, reference, monitor, failure) do
    Process.demonitor(monitor, [:flush])
    _settled = Reference.settle(helper, reference)

    receive do
      {^monitor, answer} -> answer
    after
      0 -> {:error, failure}
    end
  end

  # A busy port suspends every process that commands it until the helper reads. So another process writes in the
  # caller's place, and is killed at the deadline. It has then written the whole frame or none of it.
  defp write(helper, frame, timeout) do
    if Port.command(helper.port, frame, [:nosuspend]) do
      :ok
    else
      write_later(helper, frame, timeout)
    end
  rescue
    ArgumentError -> {:error, :epipe}
  end

  defp write_later(%{port: port} = helper, frame, timeout) do
    case ProcessLimit.spawn_monitor(fn -> suspended_command(port, frame) end) do
      {:ok, {writer, monitor}} -> await_writer(helper, writer, monitor, timeout)
      # As if the time was up at once.
      :system_limit -> {:error, :eagain}
    end
  end

  defp await_writer(helper, writer, monitor, timeout) do
    receive do
      {:DOWN, ^monitor, :process, ^writer, reason} -> written(reason)
    after
      timeout ->
        report_overdue(helper, timeout)
        Process.exit(writer, :kill)

        receive do
          {:DOWN, ^monitor, :process, ^writer, reason} -> written(reason)
        end
    end
  end

  # A caller with a timeout shorter than `call_timeout` does not prove that the helper is stuck.
  defp report_overdue(%{call_timeout: call_timeout} = helper, timeout) do
    if timeout >= call_timeout, do: Kernel.send(helper.server, :overdue)
    :ok
  end

  defp suspended_command(port, frame) do
    Port.command(port, frame)
  rescue
    ArgumentError -> exit(:epipe)
  end

  defp written(:normal), do: :ok
  defp written(:killed), do: {:error, :eagain}
  defp written(_reason), do: {:error, :epipe}
end
