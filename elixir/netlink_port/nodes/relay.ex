defmodule NetlinkPort.Nodes.Relay do
  @moduledoc false
  # Sends to one other node on behalf of a process that must not be suspended, its principal: a server, a monitor or a
  # connection.
  #
  # The VM suspends a process that sends to a node, or monitors or demonitors there, while 1 MB or more waits for that
  # node. If the node is gone the VM first tries to connect to it. So a principal has one relay for each node, and the
  # relay is suspended in its place. For processes on the principal's own node the functions below need no relay.
  #
  # Invariants:
  #
  #   * Everything for one node leaves in the order in which the principal gave it, replies included.
  #   * The relay reports a datagram to the principal when it has left. Until then the datagram counts as not
  #     taken, so the windows of the sockets bound what waits in a relay.
  #   * Messages for one connection never arrive over the next: all go through a process on the other node
  #     (NetlinkPort.Nodes.RemoteOwnerNotifier), which ends with the connection.
  #   * However the principal ends, everything that it gave before arrives before the news of its end.
  #
  # Relay and principal are linked. A principal whose relay is killed ends too, since the messages that the relay
  # held are lost.
  #
  # It waits in the code of gen_server. Waiting in its own, it would be killed when that code is loaded twice.

  use GenServer

  alias NetlinkPort.{Pin, ProcessLimit, Redaction, Socket}
  alias NetlinkPort.Nodes.RemoteOwnerNotifier

  # How long to wait before a process is started again at the VM's limit, in ms.
  @run_again 100

  @enforce_keys [:principal, :node]
  # `notifier` is the remote notifier of the present connection, `:none` if the other node cannot run one. Each watch
  # holds the notifier of its own connection.
  defstruct @enforce_keys ++ [:notifier, handled: 0, watches: %{}, monitors: %{}]

  ## For the principal

  @doc "As `GenServer.reply/2`."
  @spec reply(GenServer.from(), term()) :: :ok
  def reply({pid, _tag} = from, answer) when node(pid) == node(),
    do: GenServer.reply(from, answer)

  def reply({pid, _tag} = from, answer), do: post(node(pid), {:reply, from, answer})

  @doc """
  As `Process.monitor/1`. If `socket` is given, its owner `pid` is sent `:netlink_closed` if the principal ends or the
  connection is lost before `demonitor/2`.
  """
  @spec monitor(pid(), Socket.t() | Pin.t() | nil) :: reference()
  def monitor(pid, socket \\ nil)
  def monitor(pid, _socket) when node(pid) == node(), do: Process.monitor(pid)

  def monitor(pid, socket) do
    reference = make_ref()
    post(node(pid), {:watch, reference, pid, socket})
    reference
  end

  @doc """
  As `Process.demonitor/1`: a `:DOWN` message may still come, and the principal ignores it. To flush the message would
  cost a search of the principal's mailbox, for each of thousands of processes that may end at once.
  """
  @spec demonitor(reference(), pid()) :: :ok
  def demonitor(reference, pid) when node(pid) == node() do
    Process.demonitor(reference)
    :ok
  end

  def demonitor(reference, pid), do: post(node(pid), {:forget, reference})

  @doc """
  As `send/2`, to a process that is monitored by `reference`. If `charge` is `{handle, cost}`, the principal is sent
  `{:relayed, handle, cost}` when the message has left.
  """
  @spec deliver(pid(), reference(), term(), {Socket.handle(), pos_integer()} | nil) :: :ok
  def deliver(pid, reference, message, charge \\ nil)

  def deliver(pid, _reference, message, _charge) when node(pid) == node() do
    send(pid, message)
    :ok
  end

  def deliver(pid, reference, message, charge) do
    post(node(pid), {:deliver, reference, pid, message, charge})
  end

  @doc "Runs `fun` in a process of its own, after everything that was given for `node` before has left."
  @spec run(node(), (() -> term())) :: :ok
  def run(node, fun), do: post(node, {:run, fun})

  @doc "Answers `{:relay_idle, node, relay, handled}`. The node is gone: its relay ends, unless it has new items."
  @spec idle(node(), pid(), non_neg_integer()) :: :ok
  def idle(node, relay, handled) do
    if Process.get({__MODULE__, node}) == {relay, handled} do
      _relay = Process.delete({__MODULE__, node})
      send(relay, :stop)
    else
      send(relay, :stay)
    end

    :ok
  end

  @doc "Whether a process is a relay of the calling process."
  @spec mine?(pid()) :: boolean()
  def mine?(pid) do
    Enum.any?(Process.get(), &match?({{__MODULE__, _node}, {^pid, _sent}}, &1))
  end

  # The relays are in the process dictionary, since otherwise every reply would have to return the principal's state.
  # The number of items given to a relay keeps the relay from ending while items are on their way to it.
  defp post(node, item) do
    case Process.get({__MODULE__, node}) || start(node) do
      {relay, sent} ->
        Process.put({__MODULE__, node}, {relay, sent + 1})
        send(relay, {__MODULE__, item})
        :ok

      :system_limit ->
        unwatched(item)
    end
  end

  # Without a relay a process on that node counts as lost, as with its node. Its calls run into their deadlines.
  defp unwatched({:watch, reference, pid, _socket}) do
    send(self(), {:DOWN, reference, :process, pid, :system_limit})
    :ok
  end

  defp unwatched(_item), do: :ok

  ## The process

  # Not GenServer.start_link/3: the end of a parent would be logged as a crash of the relay.
  defp start(node) do
    opts = [spawn_opt: [message_queue_data: :off_heap]]
    principal = self()
    start = fn -> GenServer.start(__MODULE__, {principal, node}, opts) end
    with {:ok, relay} <- ProcessLimit.start(start), do: {relay, 0}
  end

  @impl true
  def init({principal, node}) do
    Process.flag(:trap_exit, true)
    Process.link(principal)
    # The principal waits until init/1 returns, and attend/1 can block.
    {:ok, %__MODULE__{principal: principal, node: node}, {:continue, :attend}}
  end

  @impl true
  def handle_continue(:attend, state), do: {:noreply, attend(state)}

  # The VM reports at once that a node is not there. A VM that is not distributed raises, so this reports it.
  defp attend(%{node: node} = state) do
    true = :erlang.monitor_node(node, true)
    state
  catch
    :error, :notalive ->
      send(self(), {:nodedown, node})
      state
  end

  @impl true
  def handle_info({__MODULE__, item}, state),
    do: {:noreply, handle(%{state | handled: state.handled + 1}, item)}

  def handle_info({:DOWN, monitor, :process, _pid, reason}, state),
    do: {:noreply, down(state, monitor, reason)}

  def handle_info({:EXIT, principal, reason}, %{principal: principal} = state),
    do: {:stop, :normal, finish(state, reason)}

  def handle_info({:nodedown, node}, %{node: node} = state), do: {:noreply, ask_to_go(state)}
  def handle_info(:stay, state), do: {:noreply, attend(state)}

  def handle_info(:stop, state),
    do: {:stop, :normal, lose(state, Map.keys(state.watches), :noconnection)}

  def handle_info({:run, fun}, state), do: {:noreply, start_apart(state, fun)}
  def handle_info(_stray, state), do: {:noreply, state}

  @impl true
  def handle_call(_stray, _from, state), do: {:noreply, state}

  @impl true
  def handle_cast(_stray, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, _state), do: Redaction.forget_mailbox()

  # For crash reports and :sys.get_status/1. A callback of GenServer since Elixir 1.17.
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %__MODULE__{} = state} = status),
    do: Redaction.status(status, node: state.node, watches: map_size(state.watches))

  def format_status(status), do: Redaction.status(status)

  defp ask_to_go(state) do
    send(state.principal, {:relay_idle, state.node, self(), state.handled})
    # The next node of this name may have the library.
    if state.notifier == :none, do: %{state | notifier: nil}, else: state
  end

  defp handle(state, {:watch, reference, pid, socket}) do
    # The monitor comes first, so that every later loss is noticed.
    {monitor, state} = monitored(state, pid, reference)
    {notifier, state} = if socket, do: enrol(state, {reference, pid, socket}), else: {nil, state}
    put_in(state.watches[reference], {pid, monitor, socket, notifier})
  end

  defp handle(state, {:forget, reference}) do
    tell(state, reference, {:forget, reference})
    forget(state, reference)
  end

  defp handle(state, {:deliver, reference, pid, message, charge}) do
    case state.watches do
      %{^reference => {_pid, _monitor, _socket, notifier}} when is_pid(notifier) ->
        :erlang.send(notifier, {:deliver, pid, message}, [:noconnect])
        left(state, charge)

      %{^reference => _watch} ->
        :erlang.send(pid, message, [:noconnect])
        left(state, charge)

      _lost ->
        state
    end
  end

  defp handle(%{notifier: notifier} = state, {:reply, _from, _answer} = reply)
       when is_pid(notifier) do
    :erlang.send(notifier, reply, [:noconnect])
    state
  end

  # A send to a node that is gone would connect to it again.
  defp handle(%{node: node} = state, {:reply, from, answer}) do
    if node in Node.list(:connected), do: GenServer.reply(from, answer)
    state
  end

  defp handle(state, {:run, fun}), do: start_apart(state, fun)

  # At the VM's limit of processes it is tried again.
  defp start_apart(state, fun) do
    with :system_limit <- ProcessLimit.spawn(fun),
         do: Process.send_after(self(), {:run, fun}, @run_again)

    state
  end

  defp left(state, nil), do: state

  defp left(state, {handle, cost}) do
    send(state.principal, {:relayed, handle, cost})
    state
  end

  defp monitored(state, pid, purpose) do
    monitor = Process.monitor(pid)
    {monitor, put_in(state.monitors[monitor], purpose)}
  end

  ## The notifier

  # A watch holds only after the remote notifier has confirmed it: the known notifier may belong to a connection that is
  # lost already, which the VM has not reported yet. While the relay waits, only messages to that node are delayed.
  #
  # Danger: a notifier whose connection is lost before its confirmation arrives may have the watch, or not. If it has,
  # it tells the owner. So the next notifier asks it, `before`.
  defp enrol(state, {reference, pid, socket} = watch, before \\ nil) do
    case found(state, before) do
      %{notifier: notifier} = state when is_pid(notifier) ->
        monitor = :erlang.monitor(:process, notifier, alias: :reply_demonitor)
        :erlang.send(notifier, {:watch, monitor, reference, pid, socket}, [:noconnect])

        receive do
          {^monitor, :watching} ->
            {notifier, state}

          {:DOWN, ^monitor, :process, _notifier, _reason} ->
            enrol(%{state | notifier: nil}, watch, notifier)
        end

      %{notifier: notifier} = state ->
        {notifier, state}
    end
  end

  defp found(%{notifier: nil} = state, before) do
    arguments = if before, do: [self(), before], else: [self()]
    notifier = :erpc.call(state.node, RemoteOwnerNotifier, :start, arguments, :infinity)
    {_monitor, state} = monitored(state, notifier, {:notifier, notifier})
    %{state | notifier: notifier}
  catch
    # The monitors of the owners report the loss.
    :error, {:erpc, :noconnection} -> state
    # The node does not have the library, or has another version.
    _kind, _reason -> %{state | notifier: :none}
  end

  defp found(state, _before), do: state

  defp tell(state, reference, message) do
    with {_pid, _monitor, _socket, notifier} when is_pid(notifier) <- state.watches[reference] do
      :erlang.send(notifier, message, [:noconnect])
    end
  end

  ## Ends

  defp down(state, monitor, reason) do
    case Map.pop(state.monitors, monitor) do
      {{:notifier, notifier}, monitors} ->
        state = %{state | monitors: monitors}

        # After a lost connection the remote notifier has notified its owners. If it was killed, the relay does.
        its = for {reference, {_, _, _, ^notifier}} <- state.watches, do: reference
        if reason != :noconnection, do: Enum.each(its, &close(state, &1, reason))
        state = if state.notifier == notifier, do: %{state | notifier: nil}, else: state
        lose(state, its, reason)

      {nil, _monitors} ->
        state

      {reference, _monitors} ->
        # The notifier may belong to a later connection than the owner did.
        lost? = reason == :noconnection
        word = if lost?, do: {:closed, reference, reason}, else: {:forget, reference}
        tell(state, reference, word)
        lose(state, [reference], reason)
    end
  end

  defp lose(state, references, reason) do
    Enum.reduce(references, state, fn reference, state ->
      {pid, _monitor, _socket, _notifier} = state.watches[reference]
      send(state.principal, {:DOWN, reference, :process, pid, reason})
      forget(state, reference)
    end)
  end

  defp forget(state, reference) do
    case Map.pop(state.watches, reference) do
      {{_pid, monitor, _socket, _notifier}, watches} ->
        # Without `:flush`: `down/3` ignores a monitor that is not known.
        Process.demonitor(monitor)
        %{state | watches: watches, monitors: Map.delete(state.monitors, monitor)}

      {nil, _watches} ->
        state
    end
  end

  defp finish(%{notifier: notifier} = state, reason) do
    if is_pid(notifier), do: :erlang.send(notifier, {:closed, plain(reason)}, [:noconnect])

    for {reference, {_pid, _monitor, _socket, :none}} <- state.watches do
      close(state, reference, plain(reason))
    end

    state
  end

  defp close(state, reference, reason) do
    {pid, _monitor, socket, _notifier} = state.watches[reference]
    :erlang.send(pid, {:netlink_closed, socket, reason}, [:noconnect])
  end

  defp plain({:shutdown, reason}), do: reason
  defp plain(reason), do: reason
end
