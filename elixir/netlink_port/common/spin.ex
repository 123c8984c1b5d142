defmodule NetlinkPort.Spin do
  @moduledoc false
  # Spinning (busy-waiting) instead of sleeping. A scheduler without work is asleep within a microsecond, and a
  # wake-up takes tens of microseconds, longer than the kernel takes for most requests.
  #
  # The helper spins by the same rules (src/spin.rs). The server spins while it waits for the answer to a command, and
  # after an answer for the next one, as long as that pays. An answer that comes while the server spins is a hit, and
  # one that comes later is a miss. Misses in a row turn spinning off: answers are slow, or the helper shares the
  # processor on which the server spins, and every spin delays it. Then the server tries a spin again after a number of
  # answers, which doubles with each miss. Events alone never make it spin.
  #
  # A caller whose request the server does not know of spins for its answer by the same rules, and then the server does
  # not.
  #
  # With a single scheduler nothing spins: it would take the processor from the helper.

  # The reductions after which the VM preempts a process (CONTEXT_REDS of erts). A scheduler polls for input after two
  # of these.
  @context_reductions 4_000
  # While spinning is off, an answer is soon if it comes within this many times the limit after the one before. Others
  # are not worth a try.
  @soon 4
  # This many misses in a row turn spinning off.
  @patience 4
  # After how many soon answers a spin is tried again: at first, and at most.
  @shortest 16
  @longest 256

  @type t :: %__MODULE__{
          limit: non_neg_integer(),
          last: integer() | nil,
          misses: non_neg_integer(),
          skip: non_neg_integer(),
          pause: pos_integer(),
          until: integer() | nil
        }

  # Times are in native units of `System.monotonic_time/0`.
  @enforce_keys [:limit]
  defstruct [:limit, last: nil, misses: @patience, skip: 0, pause: @shortest, until: nil]

  @doc """
  The state of a process that spins for up to `limit` microseconds at a time, in a VM with so many schedulers. 0 turns
  spinning off.
  """
  @spec new(non_neg_integer(), pos_integer()) :: t()
  def new(limit, schedulers \\ :erlang.system_info(:schedulers_online))
  def new(_limit, 1), do: %__MODULE__{limit: 0}
  def new(limit, _several), do: %__MODULE__{limit: native(limit)}

  @doc "A command was written at the time `now`."
  @spec asked(t(), integer()) :: t()
  def asked(%{limit: 0} = spin, _now), do: spin
  def asked(%{misses: @patience} = spin, now), do: spin |> try_again() |> begin(now)
  def asked(spin, now), do: begin(spin, now)

  @doc "An answer has arrived at the time `now`."
  @spec answered(t(), integer()) :: t()
  def answered(%{limit: 0} = spin, _now), do: spin
  def answered(%{last: nil} = spin, now), do: %{spin | last: now}

  def answered(%{limit: limit, last: last} = spin, now) do
    gap = now - last

    cond do
      spin.until == nil and gap > @soon * limit -> spin
      spin.until == nil -> try_again(spin)
      gap <= limit -> %{spin | misses: 0, pause: @shortest}
      true -> missed(spin)
    end
    |> begin(now)
  end

  defp begin(%{misses: @patience} = spin, now), do: %{spin | last: now, until: nil}
  defp begin(spin, now), do: %{spin | last: now, until: now + spin.limit}

  defp missed(%{misses: misses} = spin) when misses + 1 < @patience,
    do: %{spin | misses: misses + 1}

  defp missed(%{pause: pause} = spin),
    do: %{spin | misses: @patience, skip: pause, pause: min(2 * pause, @longest)}

  # A try, which one miss ends.
  defp try_again(%{skip: 0} = spin), do: %{spin | misses: @patience - 1}
  defp try_again(%{skip: skip} = spin), do: %{spin | skip: skip - 1}

  @doc """
  One turn of a spin, when there is no message: keeps the scheduler awake, has it poll for input, and lets other
  processes run.
  """
  @spec turn() :: true
  def turn do
    :erlang.bump_reductions(@context_reductions)
    :erlang.yield()
  end

  @doc "Whether to spin at the time `now`."
  @spec on?(t(), integer()) :: boolean()
  def on?(%{until: nil}, _now), do: false
  def on?(%{until: until}, now), do: now < until

  defp native(microseconds), do: System.convert_time_unit(microseconds, :microsecond, :native)
end
