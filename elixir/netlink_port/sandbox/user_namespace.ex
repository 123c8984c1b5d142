defmodule NetlinkPort.Sandbox.UserNamespace do
  @moduledoc false
  # Sandboxes of a VM that live at the same time share a user namespace: the two ends of a veth can only be
  # put into namespaces of which one process rules both (`netlink_ns_capable` of the kernel). The first
  # sandbox makes it, the others enter it by the process that holds any of them, and it ends with the last.
  #
  # There is no anchor process: nothing is left when no sandbox is. So the process that was named by
  # `join/1` may have ended before it could be entered; the caller then joins again, and says which.

  use GenServer

  # Of each sandbox its monitor and the process id of its holder, once it has one. `maker` is the sandbox
  # that makes the namespace, and `waiting` are those that will enter it.
  defstruct sandboxes: %{}, maker: nil, waiting: []

  @doc "What the calling sandbox is to do; `gone` is a holder that was named before and has ended."
  @spec join(pos_integer() | nil) :: :make | {:enter, pos_integer()}
  def join(gone \\ nil), do: call({:join, gone})

  @doc "The calling sandbox has a holder."
  @spec joined(pos_integer()) :: :ok
  def joined(os_pid), do: call({:joined, os_pid})

  @doc "The calling sandbox has no holder any more, or could not start it."
  @spec leave() :: :ok
  def leave, do: call(:leave)

  # It is started by the first sandbox, and stays: an idle process.
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

  def handle_call({:joined, os_pid}, {pid, _tag}, state) do
    {monitor, nil} = Map.fetch!(state.sandboxes, pid)
    maker = if state.maker == pid, do: nil, else: state.maker
    sandboxes = Map.put(state.sandboxes, pid, {monitor, os_pid})
    {:reply, :ok, next(%{state | sandboxes: sandboxes, maker: maker})}
  end

  def handle_call(:leave, {pid, _tag}, state), do: {:reply, :ok, next(forget(state, pid))}

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
