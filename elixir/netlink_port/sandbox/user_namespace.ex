defmodule NetlinkPort.Sandbox.UserNamespace do
  @moduledoc false
  # All sandboxes of a VM share one user namespace: the kernel puts the ends of a veth only into namespaces over which
  # one process has CAP_NET_ADMIN (`netlink_ns_capable`). The first sandbox makes the user namespace. The others enter
  # it by the holder of any of them. It ends with the last sandbox.
  #
  # No process anchors the user namespace, so nothing is left when the last sandbox has ended. Hence the holder that
  # `join/1` named may have ended before it can be entered. The caller then calls `join/1` again with that holder.

  use GenServer

  # `sandboxes` holds the monitor of each sandbox, and the process id of its holder once it has one. `maker` is the
  # sandbox that makes the user namespace, and `waiting` are those that wait to enter it.
  defstruct sandboxes: %{}, maker: nil, waiting: []

  @doc "Whether the calling sandbox makes the user namespace or enters it. `gone` is a named holder that has ended."
  @spec join(pos_integer() | nil) :: :make | {:enter, pos_integer()}
  def join(gone \\ nil), do: call({:join, gone})

  @doc "The holder of the calling sandbox has started."
  @spec joined(pos_integer()) :: :ok
  def joined(os_pid), do: GenServer.cast(__MODULE__, {:joined, self(), os_pid})

  @doc "The holder of the calling sandbox has ended, or could not be started."
  @spec leave() :: :ok
  def leave, do: call(:leave)

  # The first sandbox starts this process. It stays, idle.
  defp call(message),
    do: GenServer.call(Process.whereis(__MODULE__) || started(), message, :infinity)

  defp started do
    case GenServer.start(__MODULE__, nil, name: __MODULE__) do
      {:ok, pid} -> pid
      {:error, {:already_started, pid}} -> pid
    end
  end

  @impl true
  def init(nil), do: {:ok, %__MODULE__{}}

  @impl true
  def handle_call({:join, gone}, {pid, _tag} = from, state) do
    state = forget(state, pid)

    known =
      for {pid, {monitor, os_pid}} <- state.sandboxes,
          into: %{},
          do: {pid, {monitor, if(os_pid != gone, do: os_pid)}}

    sandboxes = Map.put(known, pid, {Process.monitor(pid), nil})
    {:noreply, next(%{state | sandboxes: sandboxes, waiting: state.waiting ++ [from]})}
  end

  def handle_call(:leave, {pid, _tag}, state), do: {:reply, :ok, next(forget(state, pid))}

  @impl true
  def handle_cast({:joined, pid, os_pid}, state) do
    {monitor, nil} = Map.fetch!(state.sandboxes, pid)
    maker = if state.maker == pid, do: nil, else: state.maker
    sandboxes = Map.put(state.sandboxes, pid, {monitor, os_pid})
    {:noreply, next(%{state | sandboxes: sandboxes, maker: maker})}
  end

  @impl true
  def handle_info({:DOWN, _monitor, :process, pid, _reason}, state) do
    {:noreply, next(forget(state, pid))}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp forget(state, pid) do
    {known, sandboxes} = Map.pop(state.sandboxes, pid)
    with {monitor, _os_pid} <- known, do: Process.demonitor(monitor, [:flush])
    maker = if state.maker == pid, do: nil, else: state.maker
    waiting = Enum.reject(state.waiting, fn {waiter, _tag} -> waiter == pid end)
    %{state | sandboxes: sandboxes, maker: maker, waiting: waiting}
  end

  defp next(%{waiting: []} = state), do: state

  defp next(%{waiting: [{pid, _tag} = from | rest]} = state) do
    case Enum.find_value(state.sandboxes, fn {_pid, {_monitor, os_pid}} -> os_pid end) do
      nil when state.maker == nil ->
        GenServer.reply(from, :make)
        %{state | maker: pid, waiting: rest}

      nil ->
        state

      os_pid ->
        GenServer.reply(from, {:enter, os_pid})
        next(%{state | waiting: rest})
    end
  end
end
