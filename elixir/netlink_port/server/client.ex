defmodule NetlinkPort.Server.Client do
  @moduledoc false
  # What runs in the calling process: commanding the port directly, waiting for the answer with a
  # deadline, and asking the server for what only it knows.
  #
  # Nothing here crashes the caller or suspends it for good, whatever becomes of server and helper.

  alias NetlinkPort.{Deadline, Errno, Error, Options, Payload, Pin, Socket, Spin}
  alias NetlinkPort.Capture.Tap
  alias NetlinkPort.Helper.{Protocol, Reference}
  alias NetlinkPort.Server.{PinNumbers, Refusal}

  @type raw :: {:ok, term()} | {:error, {Error.stage(), integer(), binary()}}

  @doc "Has the helper carry out a command on a socket and waits for its answer."
  @spec request(Socket.t(), Protocol.command(), timeout() | nil) ::
          {:ok, term()} | {:error, Error.t()}
  def request(%Socket{link: link} = socket, command, timeout \\ nil) do
    timeout = timeout || link.call_timeout

    answer =
      if Reference.local?(link) do
        pass(socket, command)
        direct(link, &Protocol.command(&1, command), timeout)
      else
        ask(link, {:request, command}, timeout)
      end

    explain(answer, socket)
  end

  @doc "Sends a datagram to the kernel: at once, or waiting for sendmsg(2) to be done."
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

  defp send(%Socket{link: link, handle: handle} = socket, datagram, size, wait?, timeout) do
    # The prefix counts, too.
    fits? = size + 64 <= link.max_frame

    cond do
      not fits? ->
        {:error, Error.new(:send, :emsgsize)}

      not Reference.local?(link) ->
        link
        |> ask({:send, handle, IO.iodata_to_binary(datagram), wait?}, timeout)
        |> done(socket)

      wait? ->
        pass(socket, datagram)
        link |> direct(&Protocol.send(&1, handle, datagram, size), timeout) |> done(socket)

      true ->
        post(socket, datagram, Protocol.send(0, handle, datagram, size), timeout)
    end
  end

  defp done(answer, socket) do
    with {:ok, _value} <- explain(answer, socket), do: :ok
  end

  # It passes before it is written, so that its answer never passes first.
  defp post(%{link: link, handle: handle} = socket, datagram, frame, timeout) do
    with tap when tap != :closed <- Reference.tap(link, handle),
         :ok <- Tap.pass(tap, :out, socket, datagram),
         :ok <- write(link, frame, timeout) do
      :ok
    else
      :closed -> {:error, Error.new(:send, :ebadf)}
      {:error, reason} -> {:error, Error.new(stage(reason), reason)}
    end
  rescue
    # The board went with its server.
    ArgumentError -> {:error, Error.new(:thread, :epipe)}
  end

  # What is then found to be closed does not pass.
  defp pass(socket, {:send_to, _handle, _port_id, _groups, datagram}), do: pass(socket, datagram)
  defp pass(_socket, command) when is_tuple(command), do: :ok

  defp pass(%{link: link, handle: handle} = socket, datagram) do
    case Reference.tap(link, handle) do
      :closed -> :ok
      tap -> Tap.pass(tap, :out, socket, datagram)
    end
  rescue
    # The board went with its server.
    ArgumentError -> :ok
  end

  defp stage(:eagain), do: :send
  defp stage(:epipe), do: :thread

  @doc "Has the server close a socket. How it ends does not matter."
  @spec close(Socket.t()) :: :ok
  def close(%Socket{handle: handle, link: link}) do
    _answer = ask(link, {:close, handle}, link.call_timeout)
    :ok
  end

  @doc "One datagram of a passive socket, or what came in its place."
  @spec recv(Socket.t(), timeout()) ::
          {:ok, binary()} | {:ok, binary(), NetlinkPort.metadata()} | {:error, Error.t()}
  def recv(%Socket{handle: handle, link: link} = socket, timeout) do
    case ask(link, {:recv, handle, timeout, Deadline.new(timeout)}, timeout) do
      {:ok, {datagram, nil}} -> {:ok, datagram}
      {:ok, {datagram, metadata}} -> {:ok, datagram, metadata}
      {:error, %Error{} = error} -> {:error, error}
      {:error, _raw} = failed -> explain(failed, socket)
    end
  end

  @doc """
  Calls the server of a socket or a pin. That this server is not there is the end of what it held, and not that
  there is none of its name.
  """
  @spec ask(Reference.t(), term(), timeout()) :: term()
  def ask(%{server: server}, message, timeout) do
    if self?(server), do: deadlock(), else: called(server, message, timeout, :epipe)
  end

  @doc "Calls the server. Every way it can end becomes a value."
  @spec call(GenServer.server(), term(), timeout()) :: term()
  def call(server, message, timeout) do
    server = Options.server!(server)

    if self?(server), do: deadlock(), else: called(server, message, timeout, :esrch)
  end

  defp deadlock, do: {:error, {:thread, Errno.number(:edeadlk), ""}}

  # A handler of telemetry may run in the server.
  defp self?(name) when is_atom(name), do: name != nil and Process.whereis(name) == self()
  defp self?(server), do: server == self()

  # By gen_server:call/3, whose wait looks at nothing that was in the mailbox before: the VM marks the place where
  # request and receive are in one function. A late reply goes to an alias that is no more.
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

  # A registry that is not there raises, but for a PartitionSupervisor.
  defp whereis(registry, name) do
    registry.whereis_name(name)
  catch
    :exit, _noproc -> :undefined
  end

  defp failed_call(:timeout, _noproc), do: {:error, {:thread, Errno.number(:etimedout), ""}}
  defp failed_call(:noproc, noproc), do: {:error, {:thread, Errno.number(noproc), ""}}
  defp failed_call(reason, _noproc), do: {:error, {:thread, Errno.number(gone(reason)), ""}}

  # What the end of the server means to a caller.
  defp gone(:noconnection), do: :esrch
  # This VM is no node.
  defp gone({:nodedown, _node}), do: :esrch
  defp gone(:stuck), do: :etimedout
  defp gone(_reason), do: :epipe

  @doc "The error of a failure that is of no socket. One that is none of ours can have answered."
  @spec failed({Error.stage(), integer(), binary()} | Error.t()) :: {:error, Error.t()}
  def failed({stage, errno, _detail}), do: {:error, Error.new(stage, errno)}
  def failed(%Error{} = error), do: {:error, error}

  @doc "Turns a raw failure into an error that knows its socket, for a person to read."
  @spec explain(raw(), Socket.t()) :: {:ok, term()} | {:error, Error.t()}
  def explain({:ok, value}, _socket), do: {:ok, value}

  def explain({:error, failure}, %Socket{} = socket) do
    place = {socket.protocol, socket.netns}
    {:error, Refusal.error(failure, place, Reference.privileges(socket.link))}
  end

  # The answer comes from the server, to an alias that ends with the deadline: a late one is dropped
  # by the VM. The monitor that comes with the alias tells of the server's end.
  defp direct(%{server: server}, _frame, _timeout) when server == self() do
    {:error, {:thread, Errno.number(:edeadlk), ""}}
  end

  defp direct(link, frame, timeout) do
    monitor = :erlang.monitor(:process, link.server, alias: :reply_demonitor)

    try do
      reference = Reference.expect(link, {:caller, monitor})

      case write(link, frame.(reference), timeout) do
        :ok -> await(link, reference, monitor, timeout)
        {:error, reason} -> forget(link, reference, monitor, stage(reason), reason)
      end
    rescue
      ArgumentError ->
        Process.demonitor(monitor, [:flush])
        {:error, {:thread, Errno.number(:epipe), ""}}
    end
  end

  defp await(link, reference, monitor, timeout) do
    with :timeout <- Spin.await(fn -> answer(monitor, 0) end),
         :timeout <- answer(monitor, timeout) do
      report_overdue(link, timeout)
      forget(link, reference, monitor, :thread, :etimedout)
    end
  end

  defp answer(monitor, timeout) do
    receive do
      {^monitor, answer} ->
        answer

      # The VM sends the request to monitor when it comes to it, which may be behind the command that has
      # ended helper and server: there was one, whatever that says.
      {:DOWN, ^monitor, :process, _server, :noproc} ->
        {:error, {:thread, Errno.number(:epipe), ""}}

      {:DOWN, ^monitor, :process, _server, reason} ->
        {:error, {:thread, Errno.number(gone(reason)), ""}}
    after
      timeout -> :timeout
    end
  end

  defp forget(link, reference, monitor, stage, reason) do
    Process.demonitor(monitor, [:flush])
    _settled = Reference.settle(link, reference)

    receive do
      {^monitor, answer} -> answer
    after
      0 -> {:error, {stage, Errno.number(reason), ""}}
    end
  end

  # A port that is busy suspends whoever commands it, for as long as the helper does not read. So
  # another process is suspended in the caller's place, and is given up at the deadline: it has
  # either written the whole frame or none of it.
  defp write(link, frame, timeout) do
    if Port.command(link.port, frame, [:nosuspend]) do
      :ok
    else
      write_later(link, frame, timeout)
    end
  rescue
    ArgumentError -> {:error, :epipe}
  end

  defp write_later(%{port: port} = link, frame, timeout) do
    {writer, monitor} = spawn_monitor(fn -> suspended_command(port, frame) end)

    receive do
      {:DOWN, ^monitor, :process, ^writer, reason} -> written(reason)
    after
      timeout ->
        report_overdue(link, timeout)
        Process.exit(writer, :kill)

        receive do
          {:DOWN, ^monitor, :process, ^writer, reason} -> written(reason)
        end
    end
  end

  # An impatient caller says nothing of the helper.
  defp report_overdue(%{call_timeout: call_timeout} = link, timeout) do
    if timeout >= call_timeout, do: Kernel.send(link.server, :overdue)
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
