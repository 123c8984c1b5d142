defmodule NetlinkPort.Server do
  @moduledoc false
  # Owns the port. It starts the helper, and hands on each message to the part of the server that handles it: Calls for
  # clients, Frames for the helper, Liveness for timers, Sockets for owners. It ends when the helper ends, and its
  # supervisor starts the next.
  #
  # The server never waits for the port. It matches answers to callers by reference, on a board that the callers
  # share. It does not notify owners of its own end: the notifier does, however the server ends.

  use GenServer

  alias NetlinkPort.{Arguments, Capture, FileName, Helper, ProcessLimit, Redaction, Spin}
  alias NetlinkPort.Helper.{OsProcess, Privileges, Protocol, Reference, Restarts}
  alias NetlinkPort.Nodes.Relay

  alias NetlinkPort.Server.{
    Calls,
    Commands,
    Frames,
    Liveness,
    Ownership,
    OwnerNotifier,
    Pins,
    Recv,
    Shutdown,
    Sockets,
    State,
    Status,
    WriteQueue
  }

  # How long to wait before a notifier is started again at the VM's limit of processes, in ms.
  @renewal 100
  @timeouts [call_timeout: 15_000, hello_timeout: 5_000, ping_interval: 30_000]
  @defaults @timeouts ++ [keep: [], spin: 100, user_namespaces: false]

  @doc "See `NetlinkPort.start_link/1`. With `log: :none` the server logs nothing: its caller reports the failure."
  @spec start_link(keyword(), Restarts.log()) :: GenServer.on_start()
  def start_link(opts, log \\ :more) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:name, :executable | Keyword.keys(@defaults)])
    {name, opts} = Keyword.pop!(opts, :name)
    name = Arguments.name!(name)
    opts = Keyword.merge(@defaults, opts)
    timeouts = for {key, _default} <- @timeouts, do: {key, Arguments.time!(key, opts[key])}
    opts = Keyword.merge(opts, timeouts)
    executable = Arguments.executable!(opts[:executable] || Helper.Executable.path())
    opts = Keyword.put(opts, :executable, executable)
    _capabilities = Arguments.keep!(opts[:keep])
    _microseconds = Arguments.spin!(opts[:spin])
    _whether = Arguments.boolean!(:user_namespaces, opts[:user_namespaces])

    Restarts.start(name, fn start ->
      start = if log == :none, do: %{start | log: :none}, else: start
      opts = [status: Status.new(name, start)] ++ opts
      names = if(name == nil, do: [], else: [name: name])
      ProcessLimit.start(nil, fn -> GenServer.start_link(__MODULE__, opts, names) end)
    end)
  end

  ## Start and end

  @impl true
  def init(opts) do
    Process.flag(:trap_exit, true)
    # Creates the atoms that a frame may hold, for decoding with `:safe`.
    _atoms = Protocol.atoms()
    executable = opts[:executable] && FileName.expand(opts[:executable])

    case OwnerNotifier.start() do
      {:ok, notifier} -> start_helper(executable, notifier, opts)
      :system_limit -> stop_at_start(opts, ProcessLimit.error(:thread))
    end
  end

  defp start_helper(executable, notifier, opts) do
    arguments = Helper.arguments(opts)

    case Helper.start(executable, arguments) do
      {:ok, port, process} ->
        OwnerNotifier.helper(notifier, process)

        case Helper.await_hello(port, opts[:hello_timeout]) do
          {:ok, hello} ->
            {:ok, ready(port, process, hello, notifier, executable, opts)}

          {:error, reason} ->
            ended =
              with {:helper_exit, _status} <- reason,
                   do: :gone,
                   else: (_ -> OsProcess.kill(process, port))

            if ended == :gone, do: OwnerNotifier.helper(notifier, nil)
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

  defp ready(port, process, hello, notifier, executable, opts) do
    # A helper that has said hello is ours, so its executable may be run with `--kill`.
    process = process && %{process | executable: executable}
    OwnerNotifier.helper(notifier, process)

    board = Reference.board(notifier, opts[:spin])
    helper = Reference.new(port, board, opts[:call_timeout], hello)

    state = %State{
      helper: helper,
      process: process,
      hello: hello,
      notifier: notifier,
      notifier_monitor: Process.monitor(notifier),
      ping_interval: opts[:ping_interval],
      executable: executable,
      sockets: Sockets.new(helper),
      pins: Pins.new(helper),
      outgoing: WriteQueue.new(port),
      status: Status.started(opts[:status], hello, executable),
      spin: Spin.new(opts[:spin])
    }

    privileges = Privileges.new(hello, opts, executable)
    Reference.put_privileges(helper, privileges)
    state |> Liveness.schedule_ping() |> State.grant_all()
  end

  @impl true
  def terminate(reason, state) do
    ended = Shutdown.stop(reason, state)
    # Danger: the process id may soon be another process's, so the notifier must not kill it.
    if ended == :gone, do: OwnerNotifier.helper(state.notifier, nil)
    :ok = Status.ended(state, reason, ended)
    Redaction.forget_mailbox()
  end

  # What crash reports and :sys.get_status/1 show. A callback of GenServer since Elixir 1.17.
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(status), do: Status.format(status)

  ## From clients

  @impl true
  def handle_call(request, from, state), do: Calls.handle(request, from, state)

  @impl true
  def handle_cast(_unknown, state), do: {:noreply, state}

  ## From the helper

  @impl true
  def handle_info({port, {:data, frame}}, %{helper: %{port: port}} = state) do
    Frames.handle(frame, state)
  end

  # The mailbox is empty.
  def handle_info(:timeout, state) do
    Spin.turn()
    State.spin(state)
  end

  def handle_info(:retry, state), do: {:noreply, State.retry(state)}

  ## The end of the helper

  def handle_info({port, {:exit_status, status}}, %{helper: %{port: port}} = state) do
    {:stop, {:helper_exit, status}, state}
  end

  # A command that raced with the helper's end shows as :epipe, without an exit status.
  def handle_info({:EXIT, port, reason}, %{helper: %{port: port}} = state) do
    {:stop, {:helper_exit, reason}, state}
  end

  def handle_info(:ping, state), do: {:noreply, Liveness.ping(state)}

  def handle_info({:overdue, reference}, state) do
    {:noreply, Liveness.overdue(state, reference)}
  end

  def handle_info({:overdue_after_mailbox, reference}, state) do
    {:noreply, Liveness.overdue_after_mailbox(state, reference)}
  end

  # A caller that commanded the port itself got no answer for `call_timeout`.
  def handle_info(:overdue, state), do: {:noreply, Liveness.suspect(state)}

  def handle_info({:last_ping, frames}, state) do
    {:noreply, Liveness.last_ping(state, frames)}
  end

  def handle_info({:last_ping_after_mailbox, frames}, state) do
    Liveness.last_ping_after_mailbox(state, frames)
  end

  ## The end of other processes

  # The VM stops, and no supervisor has stopped this server. So its notifier does.
  def handle_info({:EXIT, notifier, reason}, %{notifier: notifier} = state) do
    {:stop, reason, state}
  end

  # A relay that was killed loses the messages that it held, so the server ends.
  def handle_info({:EXIT, pid, reason}, state) do
    if Relay.mine?(pid), do: {:stop, reason, state}, else: {:noreply, state}
  end

  def handle_info({:DOWN, _, :process, pid, _}, %{sockets: %{tap: {pid, _counters}}} = state) do
    {:noreply, %{state | sockets: Sockets.tap(state.sockets, nil)}}
  end

  def handle_info(
        {:DOWN, monitor, :process, _pid, _reason},
        %{notifier_monitor: monitor} = state
      ),
      do: {:noreply, renew_notifier(state)}

  def handle_info(:renew_notifier, state), do: {:noreply, renew_notifier(state)}

  def handle_info({:DOWN, monitor, :process, _pid, _reason}, state) do
    case Sockets.watched(state.sockets, monitor) do
      {:owner, handle} ->
        {:noreply, Commands.close(state, handle, :ping, :owner_down)}

      {:waiter, handle} ->
        {:noreply, State.update(state, Recv.withdraw(state.sockets, handle, monitor))}

      nil ->
        pin = Pins.watched(state.pins, monitor)
        state = if pin, do: Commands.unpin(state, pin, :ping, :owner_down), else: state
        {:noreply, state}
    end
  end

  ## For the sockets

  def handle_info({:let_go, handle, caller}, state) do
    {:noreply, State.update(state, Ownership.let_go(state.sockets, handle, caller))}
  end

  def handle_info({:drop_answers, handle, late}, state) do
    {:noreply, State.update(state, Sockets.drop_answers(state.sockets, handle, late))}
  end

  def handle_info({:recv_timeout, handle, monitor}, state) do
    {:noreply, State.update(state, Recv.withdraw(state.sockets, handle, monitor))}
  end

  def handle_info({:gauge, handle, report}, state) do
    {:noreply, State.update(state, Sockets.gauged(state.sockets, handle, report))}
  end

  def handle_info({:relayed, handle, cost}, state) do
    {:noreply, State.update(state, Sockets.relayed(state.sockets, handle, cost))}
  end

  def handle_info({:relay_idle, node, relay, handled}, state) do
    Relay.idle(node, relay, handled)
    {:noreply, state}
  end

  def handle_info({:untap, pid}, %{sockets: %{tap: {pid, _counters}}} = state) do
    sockets = Sockets.tap(state.sockets, nil)
    Capture.untapped(pid)
    {:noreply, %{state | sockets: sockets}}
  end

  def handle_info(_message, state), do: {:noreply, state}

  # At the VM's limit of processes it is tried again.
  defp renew_notifier(state) do
    case OwnerNotifier.start() do
      {:ok, notifier} ->
        OwnerNotifier.helper(notifier, state.process)
        :ets.setopts(state.helper.board, {:heir, notifier, :board})
        %{state | notifier: notifier, notifier_monitor: Process.monitor(notifier)}

      :system_limit ->
        _timer = Process.send_after(self(), :renew_notifier, @renewal)
        state
    end
  end
end
