defmodule NetlinkPort.Server.Waiters do
  @moduledoc false
  # The callers that wait for an item of one socket, first come first served. There may be thousands, and any of them may
  # end at any time. So each has a number, and only `to_list/1` goes through all of them. Pure.
  #
  # Invariant: the lowest number is `first`, if any caller waits.

  @typedoc "Tells the waiters of one socket apart, such as the reference that monitors the caller."
  @type key :: term()
  @type waiter :: term()
  @type t :: %__MODULE__{
          first: non_neg_integer(),
          next: non_neg_integer(),
          line: %{non_neg_integer() => {key(), pid(), waiter()}},
          numbers: %{key() => non_neg_integer()},
          keys: %{pid() => [key()]}
        }

  defstruct first: 0, next: 0, line: %{}, numbers: %{}, keys: %{}

  @spec new() :: t()
  def new, do: %__MODULE__{}

  @doc "Whether no caller waits."
  @spec empty?(t()) :: boolean()
  def empty?(%{line: line}), do: line == %{}

  @doc "Whether a process waits."
  @spec waits?(t(), pid()) :: boolean()
  def waits?(%{keys: keys}, pid), do: is_map_key(keys, pid)

  @doc "Adds a waiter of `pid` at the end. No other waiter has its key."
  @spec add(t(), key(), pid(), waiter()) :: t()
  def add(%{next: next} = waiters, key, pid, waiter) do
    %{
      waiters
      | next: next + 1,
        line: Map.put(waiters.line, next, {key, pid, waiter}),
        numbers: Map.put(waiters.numbers, key, next),
        keys: Map.update(waiters.keys, pid, [key], &[key | &1])
    }
  end

  @doc "Returns the first waiter."
  @spec first(t()) :: {:ok, key(), waiter()} | :empty
  def first(%{first: first, line: line}) do
    case line do
      %{^first => {key, _pid, waiter}} -> {:ok, key, waiter}
      _empty -> :empty
    end
  end

  @doc "Removes the waiter with a key, and returns it."
  @spec remove(t(), key()) :: {:ok, waiter(), t()} | :none
  def remove(%{numbers: numbers} = waiters, key) do
    case Map.pop(numbers, key) do
      {nil, _numbers} ->
        :none

      {number, numbers} ->
        {{_key, pid, waiter}, line} = Map.pop!(waiters.line, number)
        waiters = %{waiters | line: line, numbers: numbers, keys: without(waiters.keys, pid, key)}
        {:ok, waiter, %{waiters | first: from(waiters.first, waiters.next, line)}}
    end
  end

  # A process that waits in a call has one waiter.
  defp without(keys, pid, key) do
    case List.delete(Map.fetch!(keys, pid), key) do
      [] -> Map.delete(keys, pid)
      others -> %{keys | pid => others}
    end
  end

  # Each number is stepped over once.
  defp from(first, next, line) when first == next or is_map_key(line, first), do: first
  defp from(first, next, line), do: from(first + 1, next, line)

  @doc "Removes the waiters of a process, and returns them in their order."
  @spec remove_of(t(), pid()) :: {[waiter()], t()}
  def remove_of(%{keys: keys} = waiters, pid) do
    keys
    |> Map.get(pid, [])
    |> Enum.reduce({[], waiters}, fn key, {removed, waiters} ->
      {:ok, waiter, waiters} = remove(waiters, key)
      {[waiter | removed], waiters}
    end)
  end

  @doc "Returns all waiters, in their order."
  @spec to_list(t()) :: [waiter()]
  def to_list(%{line: line}),
    do: for({_number, {_key, _pid, waiter}} <- Enum.sort(line), do: waiter)
end
