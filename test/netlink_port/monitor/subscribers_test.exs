defmodule NetlinkPort.Monitor.SubscribersTest do
  # What a monitor of thousands of subscribers does for one of them costs the same however many there are.
  use ExUnit.Case, async: true

  import NetlinkPort.Cost

  alias NetlinkPort.Error
  alias NetlinkPort.Monitor.Subscribers

  @joined {{:joined, :socket}, true}
  @pieces [{:netlink_snapshot, :begin}, {:netlink_snapshot, :end}]

  # Processes that take no message until they are killed.
  defp processes!(count) do
    test = self()
    pids = for _ <- 1..count, do: spawn(fn -> wait(Process.monitor(test)) end)
    on_exit(fn -> Enum.each(pids, &Process.exit(&1, :kill)) end)
    pids
  end

  defp wait(test), do: receive(do: ({:DOWN, ^test, :process, _pid, _reason} -> :ok))

  defp add(subscribers, pid), do: Subscribers.add(subscribers, pid, 10, @joined)

  # As the gauge of the subscriber's mailbox reports. The subscriber is sent its resync then.
  defp measured(subscribers, pid) do
    ref = Map.fetch!(subscribers.references, pid)
    Subscribers.gauged(subscribers, ref, {:length, pid, 0}, @joined)
  end

  defp phases(subscribers), do: Subscribers.summary(subscribers)[:phases]

  defp all!(count) do
    pids = processes!(count)
    subscribers = Enum.reduce(pids, Subscribers.new(), &add(&2, &1))
    {pids, Enum.reduce(pids, subscribers, &measured(&2, &1))}
  end

  describe "costs in proportion to the number of subscribers:" do
    test "each that comes, begins anew, and goes" do
      assert_in_proportion(fn count ->
        pids = processes!(count)

        reductions(fn ->
          subscribers = Enum.reduce(pids ++ pids, Subscribers.new(), &add(&2, &1))
          assert Subscribers.count(subscribers) == count
          {gone, ended} = Enum.split(pids, div(count, 2))
          subscribers = Enum.reduce(gone, subscribers, &Subscribers.drop(&2, &1))
          references = Enum.map(ended, &Map.fetch!(subscribers.references, &1))
          subscribers = Enum.reduce(references, subscribers, &Subscribers.down(&2, &1))
          assert subscribers == Subscribers.new()
        end)
      end)
    end

    test "each report of a mailbox, and the question whether any waits for a snapshot" do
      assert_in_proportion(fn count ->
        {pids, subscribers} = all!(count)

        subscribers =
          subscribers |> Subscribers.attach() |> Subscribers.snapshot(@pieces, @joined)

        assert phases(subscribers) == %{live: count}

        reductions(fn ->
          for pid <- pids, reduce: subscribers do
            subscribers ->
              subscribers = measured(subscribers, pid)
              refute Subscribers.waiting?(subscribers)
              subscribers
          end
        end)
      end)
    end

    test "the snapshot of each that comes when the others have theirs" do
      assert_in_proportion(fn count ->
        pids = processes!(count)

        reductions(fn ->
          subscribers =
            for pid <- pids, reduce: Subscribers.new() do
              subscribers ->
                subscribers = subscribers |> add(pid) |> measured(pid)
                assert Subscribers.waiting?(subscribers)

                subscribers
                |> Subscribers.attach()
                |> Subscribers.failed(Error.new(:recv, :enobufs), @joined, true)
                |> Subscribers.attach()
                |> Subscribers.snapshot(@pieces, @joined)
            end

          send(self(), {:subscribers, subscribers})
        end)
      end)

      assert_received {:subscribers, subscribers}
      assert phases(subscribers) == %{live: 1_000}
    end
  end

  test "those that wait, have a snapshot coming, or are gone, are told apart" do
    {[one, two, three], subscribers} = all!(3)
    assert phases(subscribers) == %{waiting: 3}
    subscribers = subscribers |> Subscribers.drop(three) |> Subscribers.attach()
    assert phases(subscribers) == %{attached: 2}
    refute Subscribers.waiting?(subscribers)

    # It subscribes again while the dump runs, and waits for the next.
    subscribers = subscribers |> add(two) |> measured(two)
    assert phases(subscribers) == %{attached: 1, waiting: 1}
    subscribers = Subscribers.snapshot(subscribers, @pieces, @joined)
    assert phases(subscribers) == %{live: 1, waiting: 1}
    assert Subscribers.waiting?(subscribers)

    subscribers = subscribers |> Subscribers.attach() |> Subscribers.gap(:overrun)
    assert phases(subscribers) == %{owed: 2}
    subscribers = Subscribers.snapshot(subscribers, @pieces, @joined)
    assert phases(subscribers) == %{owed: 2}
    assert Subscribers.drop(Subscribers.drop(subscribers, one), two) == Subscribers.new()
    assert Subscribers.drop(subscribers, three) == subscribers
    assert Subscribers.down(subscribers, make_ref()) == subscribers
  end
end
