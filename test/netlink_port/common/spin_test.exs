defmodule NetlinkPort.SpinTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Spin

  @limit System.convert_time_unit(50, :microsecond, :native)

  # A state after answers with these gaps between them, and the time of the last.
  defp after_gaps(gaps, spin \\ Spin.new(50)) do
    Enum.reduce(gaps, {Spin.answered(spin, 0), 0}, fn gap, {spin, now} ->
      {Spin.answered(spin, now + gap), now + gap}
    end)
  end

  test "it does not spin before answers come soon after each other" do
    refute Spin.on?(Spin.new(50), 0)
    {spin, now} = after_gaps([])
    refute Spin.on?(spin, now)
    {spin, now} = after_gaps([4 * @limit])
    assert Spin.on?(spin, now)
    assert Spin.on?(spin, now + @limit - 1)
    refute Spin.on?(spin, now + @limit)
  end

  test "a few late answers turn it off, and a soon one turns it on" do
    late = 4 * @limit + 1
    {spin, now} = after_gaps([@limit, late, late, late])
    assert Spin.on?(spin, now)
    {spin, now} = after_gaps([@limit, late, late, late, late])
    refute Spin.on?(spin, now)
    {spin, now} = after_gaps([late, late, late, late, @limit])
    assert Spin.on?(spin, now)
  end

  test "a limit of zero never spins" do
    {spin, now} = after_gaps([0, 0, 0], Spin.new(0))
    refute Spin.on?(spin, now)
  end

  # Invariant: a server without traffic does not wake up.
  test "the server is asleep soon after the last answer" do
    server = start_server!(ping_interval: :infinity)
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns!()})

    for _ <- 1..100 do
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      assert_receive {:netlink, ^socket, _answer}, within(5_000)
    end

    # A process that spins is never waiting.
    eventually!(fn -> Process.info(server, :status) == {:status, :waiting} end)
    # Counts times that the server runs, and not how long they take. Nobody sends it anything now.
    :erlang.trace(server, true, [:running])
    refute_receive {:trace, ^server, :in, _function}, 200
    :erlang.trace(server, false, [:running])
  end
end
