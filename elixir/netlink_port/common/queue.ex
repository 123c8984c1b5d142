defmodule NetlinkPort.Queue do
  @moduledoc false
  # A queue, first in, first out, of values with keys, from which any key can be removed. There may be thousands of values,
  # so only `values/1` goes through all of them. Pure.
  #
  # Invariant: each value has a number. The lowest is `first`, if there is any.

  @type key :: term()
  @type value :: term()
  @type t :: %__MODULE__{
          first: non_neg_integer(),
          next: non_neg_integer(),
          items: %{non_neg_integer() => {key(), value()}},
          numbers: %{key() => non_neg_integer()}
        }

  defstruct first: 0, next: 0, items: %{}, numbers: %{}

  @doc """
  Returns an empty queue.

      iex> queue = NetlinkPort.Queue.new() |> NetlinkPort.Queue.add(:a, 1) |> NetlinkPort.Queue.add(:b, 2)
      iex> {:ok, 1, queue} = NetlinkPort.Queue.remove(queue, :a)
      iex> NetlinkPort.Queue.first(queue)
      {:ok, :b, 2}
  """
  @spec new() :: t()
  def new, do: %__MODULE__{}

  @doc "Whether nothing is in the queue."
  @spec empty?(t()) :: boolean()
  def empty?(%{items: items}), do: items == %{}

  @doc "Adds a value at the end. Its key is not in the queue."
  @spec add(t(), key(), value()) :: t()
  def add(%{next: next, items: items, numbers: numbers} = queue, key, value) do
    items = Map.put(items, next, {key, value})
    %{queue | next: next + 1, items: items, numbers: Map.put(numbers, key, next)}
  end

  @doc "Returns the first value with its key."
  @spec first(t()) :: {:ok, key(), value()} | :empty
  def first(%{first: first, items: items}) do
    case items do
      %{^first => {key, value}} -> {:ok, key, value}
      _empty -> :empty
    end
  end

  @doc "Removes a key, and returns its value."
  @spec remove(t(), key()) :: {:ok, value(), t()} | :none
  def remove(%{first: first, next: next} = queue, key) do
    case Map.pop(queue.numbers, key) do
      {nil, _numbers} ->
        :none

      {number, numbers} ->
        {{_key, value}, items} = Map.pop!(queue.items, number)
        first = step(first, next, items)
        {:ok, value, %{queue | first: first, items: items, numbers: numbers}}
    end
  end

  # Steps over each number once.
  defp step(first, next, items) when first == next or is_map_key(items, first), do: first
  defp step(first, next, items), do: step(first + 1, next, items)

  @doc "Removes a key, if it is in the queue."
  @spec delete(t(), key()) :: t()
  def delete(queue, key) do
    with {:ok, _value, queue} <- remove(queue, key), do: queue, else: (:none -> queue)
  end

  @doc "Returns all values, in their order."
  @spec values(t()) :: [value()]
  def values(%{items: items}),
    do: for({_number, {_key, value}} <- Enum.sort(items), do: value)
end
