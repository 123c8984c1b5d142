defmodule NetlinkPort.Look do
  @moduledoc false
  # Whether the server looks for more before it sleeps: after an answer its reader asks again, and a
  # scheduler that went to sleep meanwhile takes tens of microseconds to wake.
  #
  # Only right after an answer, and only while it pays; the helper does the same (src/spin.rs). Pure.

  # An answer is soon up to this many times the limit after the one before.
  @soon 4
  # So many more answers that came late than soon turn it off.
  @patience 4

  @type t :: %__MODULE__{limit: integer(), last: integer() | nil, misses: non_neg_integer()}

  @enforce_keys [:limit]
  defstruct [:limit, last: nil, misses: @patience]

  @doc "Looks for up to `limit` us after each answer; never for 0, nor with a single scheduler."
  @spec new(non_neg_integer()) :: t()
  def new(limit) do
    # With one processor it would keep away who brings what it looks for.
    limit = if :erlang.system_info(:schedulers_online) > 1, do: limit, else: 0
    %__MODULE__{limit: System.convert_time_unit(limit, :microsecond, :native)}
  end

  @doc "An answer has come; times are of `System.monotonic_time/0`."
  @spec answered(t(), integer()) :: t()
  def answered(%{limit: 0} = look, _now), do: look
  def answered(%{last: nil} = look, now), do: %{look | last: now}

  def answered(%{limit: limit, misses: misses} = look, now) do
    case now - look.last do
      gap when gap <= limit -> %{look | last: now, misses: 0}
      gap when gap <= limit * @soon -> %{look | last: now, misses: max(misses - 1, 0)}
      _late -> %{look | last: now, misses: min(misses + 1, @patience)}
    end
  end

  @doc "Whether to look on."
  @spec on?(t(), integer()) :: boolean()
  def on?(%{misses: @patience}, _now), do: false
  def on?(look, now), do: now < look.last + look.limit
end
