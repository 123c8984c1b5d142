defmodule NetlinkPort.Spin do
  @moduledoc false
  # Spinning (busy-waiting) instead of sleeping. A scheduler without work is asleep within a microsecond, and a
  # wake-up takes tens of microseconds, longer than the kernel takes for most requests.
  #
  # The helper spins by the same rules (src/spin.rs). The server spins while it waits for the answer to a command, and
  # after an answer for the next one, as long as that pays. Four late answers in a row turn spinning off; soon answers
  # turn it on again. Events alone never make it spin. A caller that waits for its own answer spins once, in
  # `await/1`.
  #
  # With a single scheduler nothing spins: it would take the processor from the helper.

  # An answer is soon if it comes within this many times the limit after the answer before.
  @soon 4
  # With this many more late answers than soon ones, spinning is off.
  @patience 4
  # How long a caller spins for its own answer, in microseconds: about as long as a request takes.
  @caller 50

  @type t :: %__MODULE__{
          limit: non_neg_integer(),
          last: integer() | nil,
          misses: non_neg_integer(),
          until: integer() | nil
        }

  # Times are in native units of `System.monotonic_time/0`.
  @enforce_keys [:limit]
  defstruct [:limit, last: nil, misses: @patience, until: nil]

  ## In the server

  @doc "The state of a server that spins for up to `limit` microseconds after each answer. 0 turns spinning off."
  @spec new(non_neg_integer()) :: t()
  def new(limit), do: %__MODULE__{limit: if(alone?(), do: 0, else: native(limit))}

  @doc "A command was written to the helper at the time `now`."
  @spec asked(t(), integer()) :: t()
  def asked(%{limit: 0} = spin, _now), do: spin
  def asked(spin, now), do: %{spin | until: now + spin.limit}

  @doc "An answer has arrived at the time `now`."
  @spec answered(t(), integer()) :: t()
  def answered(%{limit: 0} = spin, _now), do: spin
  def answered(%{last: nil} = spin, now), do: %{spin | last: now, until: nil}

  def answered(%{limit: limit, misses: misses} = spin, now) do
    misses =
      case now - spin.last do
        gap when gap <= limit -> 0
        gap when gap <= limit * @soon -> max(misses - 1, 0)
        _late -> min(misses + 1, @patience)
      end

    until = if misses < @patience, do: now + limit
    %{spin | last: now, misses: misses, until: until}
  end

  @doc "Whether to spin at the time `now`."
  @spec on?(t(), integer()) :: boolean()
  def on?(%{until: nil}, _now), do: false
  def on?(%{until: until}, now), do: now < until

  ## In a caller

  @doc """
  Calls `receive_now` until it returns something other than `:timeout`, or until the time that a caller spins is over.
  Yields to other processes in between.
  """
  @spec await((() -> :timeout | answer)) :: :timeout | answer when answer: term()
  def await(receive_now) do
    with :timeout <- receive_now.() do
      if alone?(), do: :timeout, else: await(receive_now, now() + native(@caller))
    end
  end

  defp await(receive_now, until) do
    :erlang.yield()

    with :timeout <- receive_now.() do
      if now() < until, do: await(receive_now, until), else: :timeout
    end
  end

  defp alone?, do: :erlang.system_info(:schedulers_online) == 1
  defp now, do: System.monotonic_time()
  defp native(microseconds), do: System.convert_time_unit(microseconds, :microsecond, :native)
end
