defmodule NetlinkPort.Relay do
  @moduledoc false
  # Sends to other nodes in the place of a process that must not be suspended: of a server, a monitor, a
  # connection, its principal. Whoever sends to a node that takes nothing is suspended when a megabyte
  # waits for it, whoever monitors or demonitors there, too; and whoever sends to one that is gone connects
  # to it first. So there is one relay for each node, which is suspended instead, and which the principal
  # reaches by functions that leave everything on its own node as it is.
  #
  # Invariants:
  #
  #   * What goes to one node leaves in the order the principal gave it, replies among it.
  #   * A datagram is reported to the principal when it has left: until then it counts as not taken, so
  #     that what waits here is bounded by the windows of the sockets.
  #   * What was meant for a connection does not pass on the next one: all goes by way of a process on
  #     the other node (NetlinkPort.RemoteWitness), which ends with the connection.
  #   * However the principal ends, what it gave before comes before the word of its end.
  #
  # The two are linked: a principal whose relay is killed ends, rather than leave out what that held.

  alias NetlinkPort.{Gauge, RemoteWitness, Socket}

  @enforce_keys [:principal, :node]
  defstruct @enforce_keys ++ [:witness, :monitor, handled: 0, watches: %{}, monitors: %{}]

  ## For the principal

  @doc "As `GenServer.reply/2`."
  @spec reply(GenServer.from(), term()) :: :ok
  def reply({pid, _tag} = from, answer) when node(pid) == node(),
    do: GenServer.reply(from, answer)

  def reply({pid, _tag} = from, answer), do: post(node(pid), {:reply, from, answer})

  @doc """
  As `Process.monitor/1`. The owner of a socket is told `:netlink_closed` if the principal ends or
  the connection is lost before `demonitor/2`.
  """
  @spec monitor(pid(), Socket.t() | nil) :: reference()
  def monitor(pid, socket \\ nil)
  def monitor(pid, _socket) when node(pid) == node(), do: Process.monitor(pid)

  def monitor(pid, socket) do
    reference = make_ref()
    post(node(pid), {:watch, reference, pid, socket})
    reference
  end

  @doc "As `Process.demonitor/2` with `:flush`."
  @spec demonitor(reference(), pid()) :: :ok
  def demonitor(reference, pid) do
    # Flushes what a relay has sent in the place of a monitor, too.
    Process.demonitor(reference, [:flush])
    if node(pid) == node(), do: :ok, else: post(node(pid), {:forget, reference})
  end

  @doc """
  As `send/2`, to a process that is monitored by `reference`. When a message of a `{handle, cost}` has
  left, the principal gets `{:relayed, handle, cost}`.
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

  @doc "Sends a report to a gauge of the principal's, when all that was sent before has left."
  @spec measure(Gauge.key(), pid()) :: :ok
  def measure(key, pid), do: post(node(pid), {:measure, key, pid})

  @doc "Answers `{:relay_idle, node, relay, handled}`: a relay goes when its node has gone."
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

  # In the dictionary of the process, since every reply would have to carry it otherwise. It is counted
  # what was given to a relay, so that none ends that has something left to do.
  defp post(node, item) do
    {relay, sent} = Process.get({__MODULE__, node}) || {start(node), 0}
    Process.put({__MODULE__, node}, {relay, sent + 1})
    send(relay, {__MODULE__, item})
    :ok
  end

  ## The process

  defp start(node) do
    state = %__MODULE__{principal: self(), node: node}
    :proc_lib.spawn_opt(fn -> init(state) end, [:link, message_queue_data: :off_heap])
  end

  defp init(state) do
    Process.flag(:trap_exit, true)
    loop(attend(state))
  end

  # Of a node that is not there it is told at once.
  defp attend(%{node: node} = state) do
    true = :erlang.monitor_node(node, true)
    state
  end

  defp loop(%{principal: principal, node: node} = state) do
    receive do
      {__MODULE__, item} -> loop(handle(%{state | handled: state.handled + 1}, item))
      {:DOWN, monitor, :process, _pid, reason} -> loop(down(state, monitor, reason))
      {:EXIT, ^principal, reason} -> finish(state, reason)
      {:nodedown, ^node} -> loop(ask_to_go(state))
      :stay -> loop(attend(state))
      :stop -> lose(state, Map.keys(state.watches), :noconnection)
      _stray -> loop(state)
    end
  end

  defp ask_to_go(state) do
    send(state.principal, {:relay_idle, state.node, self(), state.handled})
    # The next node of this name may know the library.
    if state.witness == :none, do: %{state | witness: nil}, else: state
  end

  defp handle(state, {:watch, reference, pid, socket}) do
    # First of all: whatever is lost from here on is noticed.
    monitor = Process.monitor(pid)
    watches = Map.put(state.watches, reference, {pid, monitor, socket})
    state = %{state | watches: watches, monitors: Map.put(state.monitors, monitor, reference)}
    if socket, do: state |> witness() |> tell({:watch, reference, pid, socket}), else: state
  end

  defp handle(state, {:forget, reference}),
    do: state |> forget(reference) |> tell({:forget, reference})

  defp handle(state, {:deliver, reference, pid, message, charge}) do
    if is_map_key(state.watches, reference) do
      pass(state, pid, message)
      with {handle, cost} <- charge, do: send(state.principal, {:relayed, handle, cost})
    end

    state
  end

  defp handle(%{witness: witness} = state, {:reply, from, answer}) do
    cond do
      is_pid(witness) -> tell(state, {:reply, from, answer})
      state.node in Node.list(:connected) -> GenServer.reply(from, answer)
      true -> :ok
    end

    state
  end

  defp handle(%{principal: principal} = state, {:measure, key, pid}) do
    _measurer = spawn(fn -> Gauge.report(principal, key, pid) end)
    state
  end

  defp pass(%{witness: witness}, pid, message) when is_pid(witness) do
    :erlang.send(witness, {:deliver, pid, message}, [:noconnect])
  end

  defp pass(_state, pid, message), do: :erlang.send(pid, message, [:noconnect])

  ## The witness

  # It waits as long as the other node does, with all that goes there, and with nothing else.
  defp witness(%{witness: nil} = state) do
    witness = :erpc.call(state.node, RemoteWitness, :start, [self()], :infinity)
    %{state | witness: witness, monitor: Process.monitor(witness)}
  catch
    # The monitors of the owners tell of it.
    :error, {:erpc, :noconnection} -> state
    # A node without the library, or with another version of it, is none that could be told.
    _kind, _reason -> %{state | witness: :none}
  end

  defp witness(state), do: state

  defp tell(%{witness: witness} = state, message) do
    if is_pid(witness), do: :erlang.send(witness, message, [:noconnect])
    state
  end

  ## Ends

  # The witness has told its owners, if the connection is lost; else it was killed, and they hear it here.
  defp down(%{monitor: monitor} = state, monitor, reason) do
    guarded = for {reference, {_pid, _monitor, %Socket{}}} <- state.watches, do: reference
    state = %{state | witness: nil, monitor: nil}
    if reason != :noconnection, do: Enum.each(guarded, &close(state, &1, reason))
    lose(state, guarded, reason)
  end

  defp down(state, monitor, reason) do
    case state.monitors do
      %{^monitor => reference} ->
        # Where the witness is of a later connection than the owner was.
        lost? = reason == :noconnection
        tell(state, if(lost?, do: {:closed, reference, reason}, else: {:forget, reference}))
        lose(state, [reference], reason)

      _other ->
        state
    end
  end

  defp lose(state, references, reason) do
    Enum.reduce(references, state, fn reference, state ->
      {pid, _monitor, _socket} = state.watches[reference]
      send(state.principal, {:DOWN, reference, :process, pid, reason})
      forget(state, reference)
    end)
  end

  defp forget(state, reference) do
    case Map.pop(state.watches, reference) do
      {{_pid, monitor, _socket}, watches} ->
        Process.demonitor(monitor, [:flush])
        %{state | watches: watches, monitors: Map.delete(state.monitors, monitor)}

      {nil, _watches} ->
        state
    end
  end

  defp finish(%{witness: witness} = state, reason) do
    if is_pid(witness) do
      tell(state, {:closed, plain(reason)})
    else
      for {reference, _watch} <- state.watches, do: close(state, reference, plain(reason))
    end
  end

  defp close(state, reference, reason) do
    with {pid, _monitor, %Socket{} = socket} <- state.watches[reference] do
      :erlang.send(pid, {:netlink_closed, socket, reason}, [:noconnect])
    end
  end

  defp plain({:shutdown, reason}), do: reason
  defp plain(reason), do: reason
end
