defmodule NetlinkPort.SpinTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Spin

  @limit System.convert_time_unit(50, :microsecond, :native)

  # A state after answers with these gaps between them, and the time of the last.
  defp after_gaps(gaps, spin \\ Spin.new(50, 2)) do
    Enum.reduce(gaps, {Spin.answered(spin, 0), 0}, fn gap, {spin, now} ->
      {Spin.answered(spin, now + gap), now + gap}
    end)
  end

  test "spinning starts only after answers in quick succession" do
    refute Spin.on?(Spin.new(50, 2), 0)
    {spin, now} = after_gaps([])
    refute Spin.on?(spin, now)
    {spin, now} = after_gaps([4 * @limit])
    assert Spin.on?(spin, now)
    assert Spin.on?(spin, now + @limit - 1)
    refute Spin.on?(spin, now + @limit)
  end

  test "misses in a row turn spinning off" do
    late = @limit + 1
    {spin, now} = after_gaps([@limit, @limit, late, late, late])
    assert Spin.on?(spin, now)
    {spin, now} = after_gaps([@limit, @limit, late, late, late, late])
    refute Spin.on?(spin, now)
  end

  test "spinning is tried again after more and more answers, and a hit turns it on" do
    {spin, now} = after_gaps([@limit])

    {spin, now} =
      for pause <- [16, 32, 64, 128, 256, 256], reduce: {spin, now} do
        {spin, now} ->
          # The miss of the last try, and the answers until the next.
          {spin, now} =
            for _ <- 0..pause, reduce: {spin, now} do
              {spin, now} ->
                spin = Spin.answered(spin, now + 2 * @limit)
                refute Spin.on?(spin, now + 2 * @limit)
                {spin, now + 2 * @limit}
            end

          spin = Spin.answered(spin, now + 2 * @limit)
          assert Spin.on?(spin, now + 2 * @limit)
          {spin, now + 2 * @limit}
      end

    assert %{misses: 0, pause: 16} = Spin.answered(spin, now + @limit)
  end

  test "late answers start no spinning" do
    {spin, now} = after_gaps(List.duplicate(4 * @limit + 1, 1_000))
    refute Spin.on?(spin, now)
  end

  test "a command starts spinning, unless its last answer came late" do
    spin = Spin.asked(Spin.new(50, 2), 0)
    assert Spin.on?(spin, @limit - 1)
    spin = spin |> Spin.answered(@limit + 1) |> Spin.asked(@limit + 2)
    refute Spin.on?(spin, @limit + 3)
  end

  test "a limit of 0 means no spinning" do
    {spin, now} = after_gaps([0, 0, 0], Spin.new(0, 2))
    refute Spin.on?(spin, now)
  end

  test "with a single scheduler nothing spins" do
    {spin, now} = after_gaps([0, 0, 0], Spin.new(50, 1))
    refute Spin.on?(spin, now)
  end

  # The caller has written the command itself. When the answer is late all the same, that is a miss.
  test "the server knows that the answer to a request on a passive socket is awaited" do
    server = start_server!()
    netns = netns!()
    helper = os_pid(server)

    owner =
      Task.async(fn ->
        {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
        assert_receive :go, within(5_000)
        NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)
      end)

    eventually!(fn -> match?({:ok, %{sockets: 1}}, NetlinkPort.info(server)) end)
    last = fn -> :sys.get_state(server).spin.last end
    before = last.()
    signal!(helper, "STOP")
    on_exit(fn -> as_root("kill", ["-CONT", "#{helper}"]) end)
    send(owner.pid, :go)

    # With a single scheduler nothing spins.
    if :erlang.system_info(:schedulers_online) > 1, do: eventually!(fn -> last.() > before end)
    signal!(helper, "CONT")
    assert {:ok, [_lo]} = Task.await(owner, within(5_000))
  end

  # Invariant: a server without traffic does not wake up.
  test "the server sleeps soon after the last answer" do
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
