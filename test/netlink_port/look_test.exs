defmodule NetlinkPort.LookTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Look

  @limit System.convert_time_unit(50, :microsecond, :native)

  # A look after answers with these gaps between them, and the time of the last.
  defp after_gaps(gaps, look \\ Look.new(50)) do
    Enum.reduce(gaps, {Look.answered(look, 0), 0}, fn gap, {look, now} ->
      {Look.answered(look, now + gap), now + gap}
    end)
  end

  test "it does not look before answers come soon after each other" do
    refute Look.on?(Look.new(50), 0)
    {look, now} = after_gaps([])
    refute Look.on?(look, now)
    {look, now} = after_gaps([4 * @limit])
    assert Look.on?(look, now)
    assert Look.on?(look, now + @limit - 1)
    refute Look.on?(look, now + @limit)
  end

  test "a few late answers turn it off, and a soon one turns it on" do
    late = 4 * @limit + 1
    {look, now} = after_gaps([@limit, late, late, late])
    assert Look.on?(look, now)
    {look, now} = after_gaps([@limit, late, late, late, late])
    refute Look.on?(look, now)
    {look, now} = after_gaps([late, late, late, late, @limit])
    assert Look.on?(look, now)
  end

  test "a limit of zero never looks" do
    {look, now} = after_gaps([0, 0, 0], Look.new(0))
    refute Look.on?(look, now)
  end

  # Invariant: nothing wakes the server when nothing moves.
  test "the server is asleep soon after the last answer" do
    server = start_server!(ping_interval: :infinity)
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns!()})

    for _ <- 1..100 do
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      assert_receive {:netlink, ^socket, _answer}, within(5_000)
    end

    Process.sleep(100)
    {:reductions, before} = Process.info(server, :reductions)
    Process.sleep(200)
    {:reductions, now} = Process.info(server, :reductions)
    # Each look is thousands; being asked is some.
    assert now - before < 1_000
  end
end
