defmodule NetlinkPort.FlowControlTest do
  # Owners that take nothing while the kernel sends much. Memory stays bounded, no other owner waits, and each loss is
  # reported with its exact count, at its place among the datagrams.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # RTNLGRP_IPV4_ROUTE, and the least that one of its events costs a window.
  @route_group 7
  @cost 300
  @window 16 * 1024
  # How long to wait for the next event, in ms, while some are missing.
  @patience within(5_000)
  @modes [true, {true, 100}, :once, 25, false]

  setup do
    server = start_server!()
    # As many as the receive buffer holds of a helper without privileges, too.
    %{server: server, netns: netns!(), count: room!(server, 2_500)}
  end

  defp open!(context, mode, opts) do
    {active, opts} =
      case mode do
        {true, bound} -> {true, [max_queue: bound] ++ Keyword.put_new(opts, :rcvbuf, 32_768)}
        # The mailbox has room for all events, and so has the receive buffer on the way.
        true -> {true, opts ++ [rcvbuf: 32_000_000]}
        active -> {active, Keyword.put_new(opts, :rcvbuf, 32_768)}
      end

    opts = [netns: {:name, context.netns}, groups: [@route_group], active: active] ++ opts
    {:ok, socket} = NetlinkPort.open(context.server, :route, opts)
    socket
  end

  # Makes events that are numbered by the destination.
  defp storm!(netns, numbers) do
    ip_batch!(netns, for(n <- numbers, do: "route add #{destination(n)}/32 dev lo"))
  end

  # Makes events and takes each, no more at once than the receive buffer has room for.
  defp follow!(context, socket, count) do
    for numbers <- Enum.chunk_every(1..count, context.count) do
      storm!(context.netns, numbers)

      for n <- numbers do
        assert_receive {:netlink, ^socket, datagram}
        assert number(datagram) == n
      end
    end
  end

  defp destination(n), do: "10.#{div(n, 65_536)}.#{rem(div(n, 256), 256)}.#{rem(n, 256)}"

  defp number(datagram) do
    [{24, _sequence, payload}] = Rtnl.messages(datagram)
    {10, a, b, c} = Rtnl.destination(payload)
    65_536 * a + 256 * b + c
  end

  # A process that owns a socket, and takes nothing until it is told to take everything.
  defp staller!(context, mode, opts \\ [window: @window]) do
    test = self()

    pid =
      spawn(fn ->
        socket = open!(context, mode, opts)
        send(test, {:socket, self(), socket})
        count = receive do: ({:take, count} -> count)
        if mode != false, do: :ok = NetlinkPort.setopts(socket, active: true)
        send(test, {:taken, self(), take(socket, mode != false, count, [])})
        receive do: (:stop -> :ok)
      end)

    on_exit(fn -> Process.exit(pid, :kill) end)
    assert_receive {:socket, ^pid, socket}, within(5_000)
    {pid, socket}
  end

  # All messages in order, numbers and `{:lost, count}`, until `left` events have come or are told as lost.
  defp take(_socket, _active, left, taken) when left <= 0, do: Enum.reverse(taken)

  defp take(socket, false, left, taken) do
    case NetlinkPort.recv(socket, @patience) do
      {:ok, datagram} ->
        take(socket, false, left - 1, [number(datagram) | taken])

      {:error, %Error{dropped: lost}} when lost != nil ->
        take(socket, false, left - lost, [{:lost, lost} | taken])

      {:error, %Error{reason: :etimedout}} ->
        Enum.reverse(taken)
    end
  end

  defp take(socket, true, left, taken) do
    receive do
      {:netlink, ^socket, datagram} ->
        take(socket, true, left - 1, [number(datagram) | taken])

      {:netlink_overrun, ^socket, lost} ->
        take(socket, true, left - lost, [{:lost, lost} | taken])

      {:netlink_passive, ^socket} ->
        take(socket, true, left, taken)
    after
      @patience -> Enum.reverse(taken)
    end
  end

  defp taken!(pid, count) do
    send(pid, {:take, count})
    assert_receive {:taken, ^pid, taken}, within(30_000)
    taken
  end

  # Checks the order, and that gaps have exactly the reported size.
  defp whole?(taken, count) do
    lost = for {:lost, n} <- taken, reduce: 0, do: (sum -> sum + n)
    numbers = Enum.filter(taken, &is_integer/1)
    {gaps, rest} = gaps(taken, 1)
    assert numbers == Enum.sort(numbers)
    assert gaps
    assert {length(numbers) + lost, rest} == {count, count + 1}
    lost
  end

  # Checks that each gap is reported before the event after it. Returns the next number.
  defp gaps(taken, first) do
    Enum.reduce(taken, {true, first}, fn
      {:lost, n}, {told?, next} -> {told?, next + n}
      n, {told?, next} -> {told? and n <= next, max(n + 1, next)}
    end)
  end

  defp kept(socket) do
    {:ok, %{kept: kept}} = NetlinkPort.info(socket)
    kept
  end

  defp queue_length(pid), do: pid |> Process.info(:message_queue_len) |> elem(1)

  test "received and dropped datagrams add up to those sent, in order, in every mode", context do
    stallers = for mode <- @modes, do: {mode, staller!(context, mode)}
    storm!(context.netns, 1..context.count)

    for {mode, {pid, _socket}} <- stallers do
      lost = whole?(taken!(pid, context.count), context.count)
      # A mailbox has no bound.
      assert {mode, lost > 0} == {mode, mode != true}
    end
  end

  test "the datagrams in the VM are bounded by the window, and by max_queue", context do
    stallers = for mode <- @modes, do: {mode, staller!(context, mode)}
    storm!(context.netns, 1..context.count)

    for {mode, {pid, socket}} <- stallers do
      {:ok, info} = NetlinkPort.info(socket)

      case mode do
        true -> eventually!(fn -> queue_length(pid) == context.count end)
        {true, bound} -> assert queue_length(pid) <= bound
        :once -> eventually!(fn -> queue_length(pid) == 1 end)
        25 -> eventually!(fn -> queue_length(pid) == 26 end)
        false -> assert queue_length(pid) == 0
      end

      assert info.kept * @cost <= @window + @cost
    end
  end

  test "another socket of the same helper loses nothing meanwhile", context do
    for mode <- @modes, do: staller!(context, mode)
    other = %{context | netns: netns!()}
    socket = open!(other, true, rcvbuf: 8_000_000)
    lines = for n <- 1..20_000, do: "route add #{destination(n)}/32 dev lo\n"
    batch = tmp_path!("storm")
    File.write!(batch, lines)
    storm = Task.async(fn -> ip!(["-n", context.netns, "-batch", batch]) end)
    follow!(other, socket, 3_000)
    Task.await(storm, within(60_000))
    refute_received {:netlink_overrun, _socket, _dropped}
  end

  describe "max_queue" do
    test "counts messages of other senders, too", context do
      {pid, socket} = staller!(context, {true, 100}, window: @window, rcvbuf: 32_000_000)
      for n <- 1..90, do: send(pid, {:other, n})
      # It has credit left from before. After that its whole mailbox is counted.
      storm!(context.netns, 1..context.count)
      eventually!(fn -> kept(socket) > 0 end)
      assert queue_length(pid) <= 190
    end

    test "does not delay an owner that keeps up", context do
      socket = open!(context, {true, 50}, rcvbuf: 8_000_000)
      follow!(context, socket, 3_000)
    end

    test "goes with the socket to its new owner", context do
      socket = open!(context, {true, 10}, [])
      {pid, _socket} = staller!(context, false)
      assert NetlinkPort.controlling_process(socket, pid) == :ok
      storm!(context.netns, 1..500)
      eventually!(fn -> kept(socket) > 0 end)
      assert queue_length(pid) <= 10
      refute_received {:netlink, _socket, _datagram}
    end

    test "does not stop the server when the owner is suspended", context do
      {pid, _socket} = staller!(context, {true, 10})
      :erlang.suspend_process(pid)
      storm!(context.netns, 1..500)

      assert {:ok, socket} =
               NetlinkPort.open(context.server, :route, netns: {:name, context.netns})

      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1), wait: true)
      assert_receive {:netlink, ^socket, _datagram}
      :erlang.resume_process(pid)
      taken = taken!(pid, 500)
      whole?(taken, 500)
    end

    test "causes no messages while the owner is idle", context do
      {pid, socket} = staller!(context, {true, 10})
      storm!(context.netns, 1..10)
      eventually!(fn -> queue_length(pid) == 10 end)
      assert kept(socket) == 0
      # The last messages come, and then nothing more.
      Process.sleep(200)
      :erlang.trace(context.server, true, [:receive])
      refute_receive {:trace, _server, :receive, {:gauge, _handle, _report}}, 300
    end
  end

  test "an overrun is reported after older datagrams, also with a tiny receive buffer", context do
    for active <- [false, true] do
      context = %{context | netns: netns!()}
      {pid, _socket} = staller!(context, active, rcvbuf: 4_096, window: 600)
      # The kernel's queue is not read while these are made, so that most of them are lost.
      :sys.suspend(context.server)
      storm!(context.netns, 1..400)
      :sys.resume(context.server)
      assert whole?(taken!(pid, 400), 400) > 0
    end
  end
end
