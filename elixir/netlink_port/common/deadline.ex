defmodule NetlinkPort.Deadline do
  @moduledoc false
  # Deadlines in ms of monotonic time: those within a process, and the time at which the caller of a server gives up,
  # which is sent along for the server to know. Monotonic time means nothing on another node.

  @type t :: :infinity | {node(), integer()}

  # How much longer than the given timeout a caller waits for the server, in ms.
  @grace 5_000

  @doc "The monotonic time in `timeout` ms, or now if that is negative."
  @spec at(timeout() | integer()) :: integer() | :infinity
  def at(:infinity), do: :infinity
  def at(timeout), do: System.monotonic_time(:millisecond) + max(timeout, 0)

  @doc "How many ms are left until a time of `at/1`; 0 after it."
  @spec left(integer() | :infinity) :: timeout()
  def left(:infinity), do: :infinity
  def left(at), do: max(at - System.monotonic_time(:millisecond), 0)

  @doc "The deadline of a call that begins now and may take `timeout` ms."
  @spec new(timeout()) :: t()
  def new(:infinity), do: :infinity
  def new(timeout), do: {node(), System.monotonic_time(:millisecond) + timeout}

  @doc "How many ms are left; negative after the deadline. `otherwise` for a deadline of another node."
  @spec time_left(t(), timeout()) :: timeout()
  def time_left({node, at}, _otherwise) when node == node() do
    at - System.monotonic_time(:millisecond)
  end

  def time_left(_deadline, otherwise), do: otherwise

  @doc "Whether a caller with so much time left may have stopped waiting for the server."
  @spec gave_up?(timeout()) :: boolean()
  def gave_up?(left), do: left != :infinity and left < -div(@grace, 2)

  @doc "How many ms a caller waits for a server that was given `timeout` ms."
  @spec patience(timeout()) :: timeout()
  def patience(:infinity), do: :infinity
  def patience(timeout), do: timeout + @grace
end
