defmodule NetlinkPort.Monitor.SubscriberTest do
  use ExUnit.Case, async: true

  alias NetlinkPort.Monitor.Subscriber

  @joined {:joined, :socket}
  @begin {:netlink_snapshot, :begin}

  defp new(bound \\ 4, credit \\ 4), do: %{Subscriber.new(self(), bound) | credit: credit}
  defp credit(subscriber, credit), do: %{subscriber | credit: credit}
  defp event(subscriber, n), do: Subscriber.event(subscriber, {:event, n})
  defp events(subscriber, numbers), do: Enum.reduce(numbers, subscriber, &event(&2, &1))
  defp sent(subscriber, place \\ @joined), do: Subscriber.advance(subscriber, place, true)

  defp attached(bound \\ 4) do
    {[{:netlink_resync, :subscribed}], subscriber} = sent(new(bound, bound))
    Subscriber.attach(subscriber)
  end

  defp live(bound \\ 4) do
    {[@begin], subscriber} = attached(bound) |> Subscriber.snapshot([@begin]) |> sent()
    credit(subscriber, bound)
  end

  test "events from before the dump are not sent; later events follow the snapshot" do
    {_resync, subscriber} = new() |> event(1) |> sent()
    subscriber = subscriber |> event(2) |> Subscriber.attach() |> event(3)
    assert {[], subscriber} = sent(subscriber)
    assert {[@begin, {:event, 3}], _live} = subscriber |> Subscriber.snapshot([@begin]) |> sent()
  end

  test "without a dump a subscriber is live from the resync on" do
    assert {[{:netlink_resync, :subscribed}], live} = Subscriber.advance(new(), @joined, false)
    assert {[{:event, 1}], _live} = live |> event(1) |> Subscriber.advance(@joined, false)
  end

  test "nothing is sent without credit; with credit everything is sent, in order" do
    subscriber = live() |> credit(0) |> events(1..3)
    assert {[], subscriber} = sent(subscriber)
    assert {[event: 1, event: 2], subscriber} = subscriber |> credit(2) |> sent()
    assert {[event: 3, event: 4], _live} = subscriber |> event(4) |> credit(9) |> sent()
  end

  test "one event too many means :behind: no older event is sent, and the resync waits for half of the room" do
    subscriber = live() |> credit(0) |> events(1..5)
    assert {[], subscriber} = subscriber |> credit(2) |> sent()
    assert Subscriber.waiting?(subscriber, @joined)
    assert {[{:netlink_resync, :behind}], _waiting} = subscriber |> credit(3) |> sent()
  end

  test "too many events during a dump repeat the dump, without a message" do
    subscriber = attached() |> events(1..5)
    assert {[], subscriber} = sent(subscriber)
    assert subscriber.phase == :waiting
    assert {[], ^subscriber} = subscriber |> Subscriber.snapshot([@begin]) |> sent()
    subscriber = subscriber |> Subscriber.attach() |> event(6) |> Subscriber.snapshot([@begin])
    assert {[@begin, {:event, 6}], _live} = subscriber |> credit(9) |> sent()
  end

  test "after a failed dump the subscriber waits for the next" do
    subscriber = attached() |> event(1) |> Subscriber.detach()
    assert {[], subscriber} = sent(subscriber)
    subscriber = subscriber |> Subscriber.attach() |> Subscriber.snapshot([@begin])
    assert {[@begin], _live} = sent(subscriber)
  end

  test "several gaps are one until the resync of the first; a gap drops the rest of a snapshot" do
    subscriber = attached() |> Subscriber.snapshot([@begin]) |> event(1)
    subscriber = subscriber |> Subscriber.gap(:overrun) |> Subscriber.gap(:later) |> event(2)
    assert {[{:netlink_resync, :overrun}], subscriber} = sent(subscriber)

    assert {[{:netlink_resync, :later}], _} =
             subscriber |> Subscriber.gap(:later) |> credit(4) |> sent()
  end

  test "down is sent once a gap, and not to a subscriber that is opening" do
    subscriber = Subscriber.gap(live(8), :namespace_gone)
    down = {:down, :namespace_gone}
    assert Subscriber.waiting?(subscriber, down)
    assert {[{:netlink_down, :namespace_gone}], subscriber} = sent(subscriber, down)
    refute Subscriber.waiting?(subscriber, down)
    assert {[], subscriber} = sent(subscriber, down)
    assert {[{:netlink_resync, :namespace_gone}], _waiting} = sent(subscriber)
    assert {[], _owed} = sent(new(), :opening)
  end

  test "messages outside the order take credit, too" do
    assert {[:aside], %{credit: 3}} = Subscriber.unordered(new(), :aside)
    assert {[], %{credit: 0}} = Subscriber.unordered(new(4, 0), :aside)
  end
end
