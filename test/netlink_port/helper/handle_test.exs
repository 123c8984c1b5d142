defmodule NetlinkPort.HandleTest do
  # No handle is used twice, whatever process takes it.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Helper.Handle

  test "8 processes that take 10,000 handles each get no duplicates, and rising numbers" do
    tasks =
      for _ <- 1..8 do
        Task.async(fn ->
          receive do: (:go -> :ok)
          for _ <- 1..10_000, do: draw()
        end)
      end

    # All processes at once, so that they compete.
    Enum.each(tasks, &send(&1.pid, :go))
    drawn = Task.await_many(tasks, within(30_000))
    all = Enum.concat(drawn)
    assert length(all) == 80_000
    assert all |> Enum.uniq() |> length() == 80_000
    for handles <- drawn, do: assert(handles == Enum.sort(handles))
    assert Enum.all?(all, &(&1 in 0..0x7FFFFFFF))
  end

  test "a handle is not used again when its process ends" do
    handle = Task.await(Task.async(&draw/0), within(5_000))
    assert draw() > handle
  end

  defp draw do
    {:ok, handle} = Handle.new()
    handle
  end
end
