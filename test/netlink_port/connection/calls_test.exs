defmodule NetlinkPort.Connection.CallsTest do
  # What a connection does for one of thousands of calls that wait costs the same however many there are.
  use ExUnit.Case, async: true

  import NetlinkPort.Cost

  alias NetlinkPort.Connection.Calls
  alias NetlinkPort.Request.Exchange

  # RTM_GETLINK of the loopback
  @getlink 18
  @link <<0::32, 1::32-native, 0::64>>
  @request {:request, @getlink, @link, %{flags: 0, ack: true}}
  @dump {:dump, @getlink, <<0::128>>, %{flags: 0, max_bytes: :infinity}}

  defp waiting(question, ids) do
    {:ok, exchange} = Exchange.new(:route, question)
    from = {self(), :tag}
    add = fn id, calls -> Calls.add(calls, id, exchange, from, {5_000, 60_000}, 5_000) end
    Enum.reduce(ids, Calls.new(), add)
  end

  # Takes all that may be sent.
  defp sent(calls) do
    case Calls.next(calls) do
      {_id, _datagrams, calls} -> sent(calls)
      nil -> calls
    end
  end

  test "the end of calls that wait costs in proportion to their number" do
    for {question, sent} <- [{@request, 16}, {@dump, 1}] do
      assert_in_proportion(fn count ->
        ids = Enum.to_list(1..count)
        calls = sent(waiting(question, ids))

        reductions(fn ->
          # The last comes first, and each second one is the end of its caller, the other its deadline.
          left =
            for id <- Enum.reverse(ids), reduce: calls do
              calls when rem(id, 2) == 0 -> Calls.give_up(calls, id)
              calls -> calls |> Calls.expire(id) |> elem(1)
            end

          # Those that were sent still wait for the answer of the kernel.
          assert Calls.count(left) == sent
          refute Calls.under_way?(left)
        end)
      end)
    end
  end

  test "whether a caller waits for an answer costs the same however many calls wait" do
    assert_in_proportion(fn count ->
      calls = sent(waiting(@request, Enum.to_list(1..count)))
      calls = Enum.reduce(1..16, calls, &Calls.give_up(&2, &1))
      reductions(fn -> for _ <- 1..count, do: refute(Calls.under_way?(calls)) end)
    end)
  end

  test "with thousands of calls, the looks for those that are due are as many ms apart" do
    due = fn count, left ->
      {:ok, exchange} = Exchange.new(:route, @request)
      add = &Calls.add(&2, &1, exchange, {self(), :tag}, {left, 60_000}, left)
      Enum.reduce(1..count, Calls.new(), add)
    end

    for {count, pause} <- [{1, 0}, {999, 0}, {1_000, 1}, {4_000, 4}] do
      calls = due.(count, 0)
      before = System.monotonic_time(:millisecond)
      look = Calls.next_look(calls)
      assert look >= before + pause
      assert look <= System.monotonic_time(:millisecond) + pause
      later = due.(count, 60_000)
      assert Calls.next_look(later) == Calls.next_due(later)
    end

    assert Calls.next_look(Calls.new()) == :infinity
  end

  test "each loss costs the same however many calls wait" do
    error = NetlinkPort.Error.new(:recv, :enobufs)

    assert_in_proportion(fn count ->
      calls = sent(waiting(@request, Enum.to_list(1..count)))

      reductions(fn ->
        for _ <- 1..count, reduce: calls do
          calls ->
            {unsure, calls} = Calls.lose(calls, error, [])
            assert Enum.sort(unsure) == Enum.to_list(1..16)
            calls
        end
      end)
    end)
  end

  test "calls are sent in their order, without those that have ended meanwhile" do
    calls = waiting(@request, Enum.to_list(1..20))
    calls = Enum.reduce([1, 3, 20], calls, &Calls.give_up(&2, &1))
    assert {2, _datagrams, calls} = Calls.next(calls)
    assert {4, _datagrams, calls} = Calls.next(calls)
    assert Calls.under_way?(calls)
    assert Calls.more?(calls)
    calls = sent(Calls.unsent(sent(calls)))
    assert Calls.count(calls) == 1
    refute Calls.more?(calls)
  end
end
