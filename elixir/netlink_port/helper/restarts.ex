defmodule NetlinkPort.Helper.Restarts do
  @moduledoc false
  # How often a supervisor has started a server again, and how much of that is worth a line in the log.
  #
  # start_link/1 runs in the supervisor: so this is kept in that process's dictionary, needs no process
  # of its own, and goes with it. A start that finds one under its name that has ended takes its
  # place; of those without a name, any that has ended. An ended one that nobody succeeds may be started
  # again at any time, or never: so many of them are kept and no more.

  @kept 32
  # So many starts within a period may say in the log how they end.
  @lines 5
  @period 60_000

  @typedoc "Whether the end of a server may be logged: yes, for the last time for a while, no."
  @type log :: :more | :last | :none
  @type start :: %{restarts: non_neg_integer(), log: log()}

  @doc "Starts a server by `fun`, which is told how often that was done before."
  @spec start(GenServer.name() | nil, (start() -> GenServer.on_start())) :: GenServer.on_start()
  def start(name, fun) do
    slots = Process.get(__MODULE__, [])
    now = System.monotonic_time(:millisecond)
    slot = Enum.find(slots, new(name), &(&1.name == name and not alive?(&1)))
    recent = Enum.filter([now | slot.recent], &(now - &1 < @period))
    tried = %{slot | recent: Enum.take(recent, @lines + 1)}

    case fun.(%{restarts: slot.starts, log: log(length(recent))}) do
      {:ok, pid} = started ->
        keep([%{tried | pid: pid, starts: slot.starts + 1} | List.delete(slots, slot)])
        started

      {:error, {:already_started, _pid}} = refused ->
        refused

      failed ->
        keep([tried | List.delete(slots, slot)])
        failed
    end
  end

  defp new(name), do: %{name: name, pid: nil, starts: 0, recent: []}

  defp log(starts) when starts < @lines, do: :more
  defp log(@lines), do: :last
  defp log(_more), do: :none

  defp keep(slots) do
    {alive, ended} = Enum.split_with(slots, &alive?/1)
    Process.put(__MODULE__, alive ++ Enum.take(ended, @kept))
  end

  defp alive?(%{pid: pid}), do: pid != nil and Process.alive?(pid)
end
