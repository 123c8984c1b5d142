defmodule NetlinkPort.QueueTest do
  use ExUnit.Case, async: true

  import NetlinkPort.Cost

  alias NetlinkPort.Queue

  doctest Queue

  defp queue(keys), do: Enum.reduce(keys, Queue.new(), &Queue.add(&2, &1, {:value, &1}))

  # All values, first to last.
  defp drain(queue) do
    case Queue.first(queue) do
      {:ok, key, value} -> [value | drain(Queue.delete(queue, key))]
      :empty -> []
    end
  end

  test "values leave in the order in which they came, without those that were removed" do
    queue = queue(1..9)

    for gone <- [
          [],
          [1],
          [9],
          [5],
          [1, 2, 3],
          [8, 9],
          [9, 1, 5],
          [4, 3, 2, 1],
          Enum.to_list(1..9)
        ] do
      left = for key <- Enum.to_list(1..9) -- gone, do: {:value, key}
      queue = Enum.reduce(gone, queue, &Queue.delete(&2, &1))
      assert Queue.values(queue) == left
      assert drain(queue) == left
      assert Queue.empty?(queue) == (left == [])
      for key <- gone, do: assert(Queue.remove(queue, key) == :none)
      for key <- gone, do: assert(Queue.delete(queue, key) == queue)
      assert queue |> Queue.add(10, {:value, 10}) |> drain() == left ++ [{:value, 10}]
    end
  end

  test "values that are added and removed cost in proportion to their number, in any order" do
    for order <- [&Enum.to_list/1, &Enum.reverse/1, &Enum.shuffle/1] do
      assert_in_proportion(fn count ->
        keys = order.(1..count)

        reductions(fn ->
          queue = Enum.reduce(keys, queue(1..count), &Queue.delete(&2, &1))
          assert Queue.empty?(queue)
        end)
      end)
    end
  end
end
