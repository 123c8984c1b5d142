defmodule NetlinkPort.Server do
  @moduledoc false
  # Owns the port. It starts the helper, and routes the helper's frames to sockets and to waiting callers. It kills a
  # helper that is stuck. It ends when the helper ends, and its supervisor starts the next.
  #
  # The server never waits for the port. It matches answers to callers by reference, on a board that the callers
  # share. It does not notify owners of its own end: the witness does, however the server ends.

  use GenServer

  alias NetlinkPort.{
    Capture,
    Deadline,
    Errno,
    Error,
    FileName,
    Helper,
    Options,
    Redaction,
    Socket
  }

  alias NetlinkPort.Spin
  alias NetlinkPort.Helper.{Handle, OsProcess, Privileges, Protocol, Reference, Restarts}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.{Opening, Pins, Refusal, Sockets, Status, Witness, WriteQueue}

  # How many bytes the helper may send ahead of the server, over all sockets.
  @window 8_388_608
  # How long a helper that seems stuck has to answer one last ping, in ms.
  @last_chance 1_000
  # How long the helper has for its last acknowledgement when the server is stopped, in ms. Shorter than a child's
  # default shutdown of 5 s.
  @stop_timeout 2_000
  # The reductions after which the VM preempts a process (CONTEXT_REDS of erts). A scheduler polls for input after two
  # of these.
  @turn 4_000
  @timeouts [call_timeout: 15_000, hello_timeout: 5_000, ping_interval: 30_000]
  @defaults @timeouts ++ [keep: [], spin: 50, user_namespaces: false]

  @enforce_keys [
    :link,
    :process,
    :hello,
    :witness,
    :witness_monitor,
    :ping_interval,
    :executable,
    :sockets,
    :pins,
    :outgoing,
    :status
  ]
  defstruct @enforce_keys ++
              [
                frames: 0,
                frames_at_ping: 0,
                suspect?: false,
                taken: 0,
                granted: @window,
                spin: nil
              ]

  @doc "See `NetlinkPort.start_link/1`. With `log: :none` the server logs nothing: its caller reports the failure."
  @spec start_link(keyword(), Restarts.log()) :: GenServer.on_start()
  def start_link(opts, log \\ :more) do
    Options.keyword!(opts)
    Options.known!(opts, [:name, :executable | Keyword.keys(@defaults)])
    {name, opts} = Keyword.pop!(opts, :name)
    opts = Keyword.merge(@defaults, opts)
    timeouts = for {key, _default} <- @timeouts, do: {key, Options.timeout!(opts[key])}
    opts = Keyword.merge(opts, timeouts)
    opts = Keyword.put(opts, :executable, opts[:executable] || Helper.Executable.path())
    _path = Options.executable!(opts[:executable])
    _capabilities = Options.keep!(opts[:keep])
    _microseconds = Options.spin!(opts[:spin])
    _whether = Options.boolean!(:user_namespaces, opts[:user_namespaces])

    Restarts.start(name, fn start ->
      start = if log == :none, do: %{start | log: :none}, else: start
      opts = [status: Status.new(name, start)] ++ opts
      GenServer.start_link(__MODULE__, opts, if(name == nil, do: [], else: [name: name]))
    end)
  end

  ## Start and end

  @impl true
  def init(opts) do
    Process.flag(:trap_exit, true)
    # Creates the atoms that a frame may hold, for decoding with `:safe`.
    _atoms = Protocol.atoms()
    executable = opts[:executable] && FileName.expand(opts[:executable])
    arguments = Helper.arguments(opts)
    witness = Witness.start()

    case Helper.start(executable, arguments) do
      {:ok, port, process} ->
        Witness.helper(witness, process)

        case Helper.await_hello(port, opts[:hello_timeout]) do
          {:ok, hello} ->
            {:ok, ready(port, process, hello, witness, executable, opts)}

          {:error, reason} ->
            ended =
              with {:helper_exit, _status} <- reason,
                   do: :gone,
                   else: (_ -> OsProcess.kill(process, port))

            if ended == :gone, do: Witness.helper(witness, nil)
            stop_at_start(opts, Helper.unusable(executable, arguments, reason))
        end

      {:error, error} ->
        stop_at_start(opts, error)
    end
  end

  defp stop_at_start(opts, error) do
    :ok = Status.failed(opts[:status], error)
    {:stop, error}
  end

  defp ready(port, process, hello, witness, executable, opts) do
    # A helper that has said hello is ours, so its executable may be run with `--kill`.
    process = process && %{process | executable: executable}
    Witness.helper(witness, process)

    link = %Reference{
      server: self(),
      port: port,
      board: Reference.board(witness),
      max_frame: hello.max_frame,
      call_timeout: opts[:call_timeout],
      capabilities: hello.capabilities
    }

    state = %__MODULE__{
      link: link,
      process: process,
      hello: hello,
      witness: witness,
      witness_monitor: Process.monitor(witness),
      ping_interval: opts[:ping_interval],
      executable: executable,
      sockets: Sockets.new(link),
      pins: Pins.new(link),
      outgoing: WriteQueue.new(port),
      status: Status.started(opts[:status], hello, executable),
      spin: Spin.new(opts[:spin])
    }

    privileges = Privileges.new(hello, opts, executable)
    Reference.put_privileges(link, privileges)
    :ok = schedule_ping(state)
    write(state, Protocol.grant_all(@window))
  end

  # An orderly stop loses no command: by the time the helper acknowledges `stop`, it has carried out all commands
  # before it. A helper that does not acknowledge is killed. Otherwise its port could not be drained, would outlive
  # the server, and would keep the VM from stopping.
  @impl true
  def terminate(reason, state) do
    ended = stop(reason, state)
    # Danger: the process id may soon be another process's, so the witness must not kill it.
    if ended == :gone, do: Witness.helper(state.witness, nil)
    :ok = Status.ended(state, reason, ended)
    Redaction.forget_mailbox()
  end

  # Returns `:gone` if the helper was seen to end. Otherwise the witness goes on watching the helper.
  defp stop(:stuck, state), do: kill(state)
  defp stop({:helper_exit, status}, _state) when is_integer(status), do: :gone
  defp stop({:helper_exit, _reason}, state), do: kill(state)

  defp stop(_reason, state) do
    reference = Reference.expect(state.link, {nil, :ping})
    state = write(state, Protocol.command(reference, {:stop}))
    deadline = System.monotonic_time(:millisecond) + @stop_timeout
    if await_stop(state, reference, deadline) == :overdue, do: kill(state), else: :ending
  end

  defp kill(state), do: OsProcess.kill(state.process, state.link.port)

  defp await_stop(state, reference, deadline) do
    %{link: %{port: port}} = state
    patience = max(deadline - System.monotonic_time(:millisecond), 0)

    receive do
      {^port, {:data, frame}} ->
        case Protocol.decode(frame) do
          {:reply, ^reference, _answer} ->
            :ok

          {:reply, other, answer} ->
            state |> reply(other, answer) |> await_stop(reference, deadline)

          _event ->
            await_stop(state, reference, deadline)
        end

      {^port, {:exit_status, _status}} ->
        :ok

      {:EXIT, ^port, _reason} ->
        :ok

      :retry ->
        await_stop(retry(state), reference, deadline)
    after
      patience -> :overdue
    end
  end

  # What crash reports and :sys.get_status/1 show. A callback of GenServer since Elixir 1.17.
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(status), do: Status.format(status)

  ## Calls

  @impl true
  def handle_call({:open, options, deadline}, from, state) do
    case Handle.new() do
      {:ok, handle} ->
        options = Map.put(options, :deadline, deadline)
        frame = &Protocol.command(&1, opening(options, handle))
        timeout = min(options.timeout, state.link.call_timeout)
        answer_soon(ask_with(state, frame, {:open, from, handle, options}, timeout))

      :exhausted ->
        answer(from, {:error, {:socket, Errno.number(:eoverflow), ""}}, state)
    end
  end

  def handle_call({:close, handle}, from, state) do
    if Sockets.known?(state.sockets, handle) do
      answer_soon(close(state, handle, {:server, from}, :closed))
    else
      answer(from, {:ok, nil}, state)
    end
  end

  def handle_call({:unpin, handle}, from, state) do
    if Pins.known?(state.pins, handle) do
      answer_soon(unpin(state, handle, {:server, from}, :unpinned))
    else
      answer(from, {:ok, nil}, state)
    end
  end

  def handle_call({:pin_info, handle}, from, state) do
    told = Pins.info(state.pins, handle)
    answer(from, if(told, do: {:ok, told}, else: Pins.ended()), state)
  end

  def handle_call({:request, command}, from, state) do
    with {:send_to, handle, _, _, datagram} <- command, do: sent(state, handle, datagram)
    answer_soon(ask(state, command, {:server, from}))
  end

  def handle_call({:send, handle, datagram, true}, from, state) do
    sent(state, handle, datagram)
    frame = &Protocol.send(&1, handle, datagram, byte_size(datagram))
    answer_soon(ask_with(state, frame, {:server, from}))
  end

  def handle_call({:send, handle, datagram, false}, from, state) do
    if Sockets.open?(state.sockets, handle) do
      sent(state, handle, datagram)
      frame = Protocol.send(0, handle, datagram, byte_size(datagram))
      answer(from, {:ok, nil}, write(state, frame))
    else
      answer(from, Sockets.closed(), state)
    end
  end

  def handle_call(:info, from, state) do
    answer_soon(ask(state, {:info}, {:helper_info, from}))
  end

  def handle_call(:stats, from, state) do
    answer_soon(ask(state, {:info}, {:helper_stats, from}))
  end

  def handle_call({:vm_info, handle}, from, state) do
    answer(from, Sockets.info(state.sockets, handle), state)
  end

  def handle_call({way, handle, timeout, deadline}, from, state) when way in [:recv, :hold] do
    left = Deadline.time_left(deadline, timeout)

    if Deadline.gave_up?(left) do
      {:noreply, state}
    else
      case Sockets.recv(state.sockets, handle, from, left, way == :hold) do
        {:wait, sockets} -> spin(update(state, sockets))
        {answer, sockets} -> answer(from, answer, update(state, sockets))
      end
    end
  end

  def handle_call({:set_active, handle, mode}, {caller, _tag} = from, state) do
    {answer, sockets} = Sockets.set_active(state.sockets, handle, mode, caller)
    answer(from, answer, update(state, sockets))
  end

  def handle_call({:pause, handle}, {caller, _tag} = from, state) do
    {answer, sockets} = Sockets.pause(state.sockets, handle, caller)
    answer(from, answer, update(state, sockets))
  end

  def handle_call({:give, handle, owner, late}, from, state) do
    {answer, sockets} = Sockets.give(state.sockets, handle, owner, late)
    answer(from, answer, update(state, sockets))
  end

  def handle_call({:capture, options}, from, %{sockets: %{tap: nil}} = state) do
    {:noreply, %{state | sockets: Sockets.tap(state.sockets, Capture.start(from, options))}}
  end

  def handle_call({:capture, _options}, from, state) do
    answer(from, {:error, Error.new(:capture, :ebusy)}, state)
  end

  def handle_call(_unknown, from, state) do
    answer(from, {:error, {:protocol, Errno.number(:einval), ""}}, state)
  end

  @impl true
  def handle_cast(_unknown, state), do: {:noreply, state}

  defp opening(%{kind: :pin, target: target}, handle), do: {:pin, handle, target}

  defp opening(%{kind: :socket, number: number} = options, handle) do
    %{bind: bind, user_peers: peers, window: window, options: settings} = options
    {:open, handle, Opening.target(options), number, bind, peers, window, settings}
  end

  # GenServer's own reply, by the return value, would suspend the server while a caller's node is suspended.
  defp answer(from, answer, state) do
    Relay.reply(from, answer)
    {:noreply, state}
  end

  # After each change of the sockets the helper is sent the grants that are due.
  defp update(state, sockets), do: write_grants(%{state | sockets: sockets})

  defp write_grants(%{sockets: %{grants: []}} = state), do: state

  defp write_grants(state) do
    {grants, sockets} = Sockets.take_grants(state.sockets)
    Enum.reduce(grants, %{state | sockets: sockets}, &write(&2, &1))
  end

  ## Frames from the helper

  @impl true
  def handle_info({port, {:data, frame}}, %{link: %{port: port}} = state) do
    frames = state.frames + 1

    case Protocol.decode(frame) do
      {:data, handle, datagram, metadata} ->
        {:noreply, arrive(%{state | frames: frames}, handle, datagram, metadata)}

      {:answer, handle, datagram} ->
        state = answered(%{state | frames: frames})
        spin(arrive(state, handle, datagram, nil))

      event ->
        frame(event, %{state | frames: frames})
    end
  end

  # The mailbox is empty. Spinning keeps the scheduler awake and has it poll for input, and yields to other processes.
  def handle_info(:timeout, state) do
    :erlang.bump_reductions(@turn)
    :erlang.yield()
    spin(state)
  end

  def handle_info({port, {:exit_status, status}}, %{link: %{port: port}} = state) do
    {:stop, {:helper_exit, status}, state}
  end

  # A command that raced with the helper's end shows as :epipe, without an exit status.
  def handle_info({:EXIT, port, reason}, %{link: %{port: port}} = state) do
    {:stop, {:helper_exit, reason}, state}
  end

  # The VM stops, and no supervisor has stopped this server. So its witness does.
  def handle_info({:EXIT, witness, reason}, %{witness: witness} = state) do
    {:stop, reason, state}
  end

  # A relay that was killed loses the messages that it held, so the server ends.
  def handle_info({:EXIT, pid, reason}, state) do
    if Relay.mine?(pid), do: {:stop, reason, state}, else: {:noreply, state}
  end

  def handle_info({:relay_idle, node, relay, handled}, state) do
    Relay.idle(node, relay, handled)
    {:noreply, state}
  end

  def handle_info({:relayed, handle, cost}, state) do
    {:noreply, update(state, Sockets.relayed(state.sockets, handle, cost))}
  end

  ## Time

  def handle_info({:let_go, handle, caller}, state) do
    {:noreply, update(state, Sockets.let_go(state.sockets, handle, caller))}
  end

  def handle_info({:recv_timeout, handle, id}, state) do
    {:noreply, update(state, Sockets.withdraw(state.sockets, handle, id))}
  end

  def handle_info({:gauge, handle, report}, state) do
    {:noreply, update(state, Sockets.gauged(state.sockets, handle, report))}
  end

  def handle_info(:ping, state) do
    :ok = schedule_ping(state)
    quiet? = state.frames == state.frames_at_ping
    state = if quiet?, do: ask(state, {:ping}, :ping), else: state
    {:noreply, %{state | frames_at_ping: state.frames}}
  end

  # An answer that has arrived by now is in the mailbox before the second message. So only that one judges.
  def handle_info({:overdue, reference}, state) do
    send(self(), {:truly_overdue, reference})
    {:noreply, state}
  end

  def handle_info({:truly_overdue, reference}, state) do
    case Reference.settle(state.link, reference) do
      {:ok, {_timer, purpose}} ->
        give_up(state, reference, purpose)
        {:noreply, if(impatient?(purpose, state), do: state, else: suspect(state))}

      :error ->
        {:noreply, state}
    end
  end

  # A caller that commanded the port itself got no answer for `call_timeout`.
  def handle_info(:overdue, state), do: {:noreply, suspect(state)}

  def handle_info({:judge, frames}, state) do
    send(self(), {:truly_judge, frames})
    {:noreply, state}
  end

  def handle_info({:truly_judge, frames}, %{frames: frames} = state), do: {:stop, :stuck, state}
  def handle_info({:truly_judge, _frames}, state), do: {:noreply, %{state | suspect?: false}}

  def handle_info(:retry, state), do: {:noreply, retry(state)}

  ## Captures

  def handle_info({:untap, pid}, %{sockets: %{tap: {pid, _counters}}} = state) do
    sockets = Sockets.tap(state.sockets, nil)
    Capture.untapped(pid)
    {:noreply, %{state | sockets: sockets}}
  end

  def handle_info({:DOWN, _, :process, pid, _}, %{sockets: %{tap: {pid, _counters}}} = state) do
    {:noreply, %{state | sockets: Sockets.tap(state.sockets, nil)}}
  end

  ## Other processes

  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{witness_monitor: monitor} = state) do
    witness = Witness.start()
    Witness.helper(witness, state.process)
    :ets.setopts(state.link.board, {:heir, witness, :board})
    {:noreply, %{state | witness: witness, witness_monitor: Process.monitor(witness)}}
  end

  def handle_info({:DOWN, monitor, :process, _pid, _reason}, state) do
    case Sockets.watched(state.sockets, monitor) do
      {:owner, handle} ->
        {:noreply, close(state, handle, :ping, :owner_down)}

      {:waiter, handle} ->
        {:noreply, update(state, Sockets.withdraw(state.sockets, handle, monitor))}

      nil ->
        pin = Pins.watched(state.pins, monitor)
        {:noreply, if(pin, do: unpin(state, pin, :ping, :owner_down), else: state)}
    end
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp answered(state), do: %{state | spin: Spin.answered(state.spin, System.monotonic_time())}

  defp answer_soon(state) do
    spin(%{state | spin: Spin.asked(state.spin, System.monotonic_time())})
  end

  # With timeout 0 `handle_info(:timeout, …)` follows as soon as the mailbox is empty.
  defp spin(%{spin: %{until: nil}} = state), do: {:noreply, state}

  defp spin(state) do
    {:noreply, state, if(Spin.on?(state.spin, System.monotonic_time()), do: 0, else: :infinity)}
  end

  defp frame({:reply, reference, answer}, state) do
    state |> reply(reference, answer) |> answered() |> spin()
  end

  defp frame({:overrun, handle, dropped}, state) do
    {:noreply, arrive(state, handle, {:overrun, dropped})}
  end

  defp frame({:failed, handle, stage, errno, length}, state) do
    {:noreply, arrive(state, handle, {:error, failure(state, stage, errno, length)})}
  end

  defp frame({:gone, handle}, state) do
    {:noreply, update(state, Sockets.gone(state.sockets, handle))}
  end

  defp frame({:malformed, reason}, state) do
    {:noreply, Status.malformed(state, reason)}
  end

  defp frame(other, state), do: {:stop, {:protocol_error, Redaction.brief(other)}, state}

  ## Asking the helper

  defp ask(state, command, purpose) do
    ask_with(state, &Protocol.command(&1, command), purpose)
  end

  defp ask_with(state, frame, purpose),
    do: ask_with(state, frame, purpose, state.link.call_timeout)

  defp ask_with(%{link: link} = state, frame, purpose, timeout) do
    reference = Reference.expect(link, {nil, purpose})

    if timeout != :infinity do
      timer = Process.send_after(self(), {:overdue, reference}, timeout)
      :ets.insert(link.board, {reference, {timer, purpose}})
    end

    write(state, frame.(reference))
  end

  defp reply(state, reference, answer) do
    case Reference.settle(state.link, reference) do
      {:ok, {:caller, monitor}} ->
        send(monitor, {monitor, answer})
        state

      {:ok, {timer, purpose}} ->
        cancel(timer)
        answered(state, purpose, answer)

      # Its caller has given up.
      :error ->
        state
    end
  end

  defp cancel(nil), do: :ok

  defp cancel(timer) do
    _ignored = Process.cancel_timer(timer, async: true, info: false)
    :ok
  end

  defp answered(state, {:server, from}, answer) do
    Relay.reply(from, answer)
    state
  end

  defp answered(state, {:open, from, handle, options}, {:ok, place}) do
    # A caller that has given up or died would never learn of its socket or pin, so this closes it.
    if Deadline.time_left(options.deadline, :infinity) < 0 or dead?(from) do
      Relay.reply(from, {:error, Error.new(:thread, :etimedout)})
      ask(state, {:close, handle}, :ping)
    else
      opened(state, from, handle, options, place)
    end
  end

  defp answered(state, {:open, from, _handle, options}, {:error, failure}) do
    place = {Map.get(options, :protocol), options.netns}
    Relay.reply(from, {:error, Refusal.error(failure, place, Reference.privileges(state.link))})
    state
  end

  # The caller was sent ETIMEDOUT, so the socket must not stay open.
  defp answered(state, {:given_up, handle}, {:ok, _place}),
    do: ask(state, {:close, handle}, :ping)

  defp answered(state, {:given_up, _handle}, _failed), do: state

  defp answered(state, {:helper_info, from}, {:ok, told}) do
    Relay.reply(from, {:ok, Status.info(state, told)})
    state
  end

  defp answered(state, {:helper_stats, from}, {:ok, told}) do
    :ok = Status.stats(state, told, from)
    state
  end

  defp answered(state, {_helper, from}, failed) do
    Relay.reply(from, failed)
    state
  end

  defp answered(state, :ping, _answer), do: state

  defp dead?({pid, _tag}), do: node(pid) == node() and not Process.alive?(pid)

  # A timeout shorter than `call_timeout` does not prove that the helper is stuck.
  defp impatient?({:open, _from, _handle, options}, state) do
    options.timeout < state.link.call_timeout
  end

  defp impatient?(_purpose, _state), do: false

  defp give_up(_state, _reference, :ping), do: :ok
  defp give_up(_state, _reference, {:given_up, _handle}), do: :ok

  defp give_up(state, reference, {:open, from, handle, _options}) do
    :ets.insert(state.link.board, {reference, {nil, {:given_up, handle}}})
    Relay.reply(from, {:error, Error.new(:thread, :etimedout)})
  end

  defp give_up(_state, _reference, purpose) do
    from = elem(purpose, 1)
    Relay.reply(from, {:error, {:thread, Errno.number(:etimedout), ""}})
  end

  # One last ping, since the VM itself may have been stopped, and have read nothing from the helper meanwhile.
  defp suspect(%{suspect?: true} = state), do: state

  defp suspect(state) do
    chance = min(state.link.call_timeout, @last_chance)
    Process.send_after(self(), {:judge, state.frames}, chance)
    ask(%{state | suspect?: true}, {:ping}, :ping)
  end

  defp schedule_ping(%{ping_interval: :infinity}), do: :ok

  defp schedule_ping(%{ping_interval: interval}) do
    _timer = Process.send_after(self(), :ping, interval)
    :ok
  end

  defp write(state, frame), do: %{state | outgoing: WriteQueue.write(state.outgoing, frame)}
  defp retry(state), do: %{state | outgoing: WriteQueue.retry(state.outgoing)}

  ## Sockets

  defp opened(state, from, handle, %{kind: :pin, netns: netns, owner: owner}, place) do
    pin = Pins.pin(handle, netns, place, state.link)
    pins = Pins.add(state.pins, pin, owner)
    Relay.reply(from, {:ok, pin})
    %{state | pins: pins}
  end

  defp opened(state, from, handle, options, place) do
    %{protocol: protocol, netns: netns} = options
    socket = %Socket{handle: handle, protocol: protocol, netns: netns, link: state.link}
    sockets = Sockets.add(state.sockets, socket, options)
    Relay.reply(from, {:ok, Opening.opened(socket, options, place)})
    update(state, sockets)
  end

  defp sent(state, handle, datagram), do: Sockets.sent(state.sockets, handle, datagram)

  defp close(state, handle, purpose, reason) do
    state = update(state, Sockets.remove(state.sockets, handle, reason))
    ask(state, {:close, handle}, purpose)
  end

  defp unpin(state, handle, purpose, reason) do
    ask(%{state | pins: Pins.remove(state.pins, handle, reason)}, {:close, handle}, purpose)
  end

  defp arrive(state, handle, item), do: update(state, Sockets.arrive(state.sockets, handle, item))

  defp arrive(state, handle, datagram, metadata) do
    sockets = Sockets.arrive(state.sockets, handle, {:data, datagram, metadata})
    taken = state.taken + Protocol.charge(byte_size(datagram))
    %{state | sockets: sockets, taken: taken} |> write_grants() |> grant_all()
  end

  defp failure(state, stage, errno, 0) do
    Refusal.error({stage, errno, ""}, {nil, :host}, Reference.privileges(state.link))
  end

  defp failure(_state, stage, errno, length), do: Error.new(stage, errno, length: length)

  defp grant_all(%{taken: taken, granted: granted} = state)
       when 2 * (taken + @window - granted) >= @window do
    write(%{state | granted: taken + @window}, Protocol.grant_all(taken + @window))
  end

  defp grant_all(state), do: state
end
