defmodule NetlinkPort.Helper.Restarts do
  @moduledoc false
  # Counts how often a supervisor has restarted a server, and decides which ends are logged.
  #
  # start_link/1 runs in the supervisor, so the counts are in that process's dictionary: they need no process and go
  # with the supervisor. A start takes over the count of an ended server of the same name. A server without a name
  # takes over the count of any ended server without a name. An ended server may be started again at any time or
  # never, so only the last few are remembered.

  @kept 32
  # The ends of at most this many starts within a period (in ms) are logged.
  @lines 5
  @period 60_000

  @typedoc "Whether the end of a server is logged: `:more` yes, `:last` yes but then not for a while, `:none` no."
  @type log :: :more | :last | :none
  @type start :: %{restarts: non_neg_integer(), log: log()}

  @doc "Starts a server by `fun`, which is given the number of starts before this one, and whether to log its end."
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
