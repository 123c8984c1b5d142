defmodule NetlinkPort.Look do
  @moduledoc false
  # Whether the server looks for more before it sleeps: a scheduler that has nothing to run is asleep
  # within a microsecond, and takes tens to wake, more than most answers take to come.
  #
  # It looks for the answer to a command, and after an answer for the next, as long as that pays: who has
  # got one asks again. Events alone never make it look; the helper does the same (src/spin.rs). Pure.

  # An answer is soon up to this many times the limit after the one before.
  @soon 4
  # So many more answers that came late than soon turn it off.
  @patience 4

  @type t :: %__MODULE__{
          limit: non_neg_integer(),
          last: integer() | nil,
          misses: non_neg_integer(),
          until: integer() | nil
        }

  @enforce_keys [:limit]
  defstruct [:limit, last: nil, misses: @patience, until: nil]

  @doc "Looks for up to `limit` us after each answer; never for 0, nor with a single scheduler."
  @spec new(non_neg_integer()) :: t()
  def new(limit) do
    # With one processor it would keep away who brings what it looks for.
    limit = if :erlang.system_info(:schedulers_online) > 1, do: limit, else: 0
    %__MODULE__{limit: System.convert_time_unit(limit, :microsecond, :native)}
  end

  @doc "A command is on its way; times are of `System.monotonic_time/0`."
  @spec asked(t(), integer()) :: t()
  def asked(%{limit: 0} = look, _now), do: look
  def asked(look, now), do: %{look | until: now + look.limit}

  @doc "An answer has come."
  @spec answered(t(), integer()) :: t()
  def answered(%{limit: 0} = look, _now), do: look
  def answered(%{last: nil} = look, now), do: %{look | last: now, until: nil}

  def answered(%{limit: limit, misses: misses} = look, now) do
    misses =
      case now - look.last do
        gap when gap <= limit -> 0
        gap when gap <= limit * @soon -> max(misses - 1, 0)
        _late -> min(misses + 1, @patience)
      end

    until = if misses < @patience, do: now + limit
    %{look | last: now, misses: misses, until: until}
  end

  @doc "Whether to look on, and what is left of it."
  @spec on?(t(), integer()) :: boolean()
  def on?(%{until: nil}, _now), do: false
  def on?(%{until: until}, now), do: now < until
end
