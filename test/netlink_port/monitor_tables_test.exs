defmodule NetlinkPort.MonitorTablesTest do
  # The tables that subscribers make of a monitor's messages are those of the kernel.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Changes, Mirror, Monitor}

  @moduletag :root

  setup do
    server = :"server#{System.unique_integer([:positive])}"
    start_server!(name: server, restart: :permanent)
    %{server: server, netns: netns!()}
  end

  defp monitor!(context, rcvbuf) do
    opts = [server: context.server, netns: {:name, context.netns}, rcvbuf: rcvbuf]
    start_supervised!({Monitor, [groups: Mirror.groups(), dump: Mirror.dumps()] ++ opts})
  end

  test "a subscriber with room for a single message is sent the whole snapshot, and later events",
       context do
    routes = for n <- 1..300, do: "route add 10.2.#{div(n, 256)}.#{rem(n, 256)} dev lo"
    ip_batch!(context.netns, routes)
    monitor = monitor!(context, 1_000_000)
    mirror = Mirror.start(monitor, max_queue: 1)
    eventually!(fn -> Mirror.read(mirror).tables != nil end)
    changes = changes!(context, 1)
    assert_true([mirror], changes)
    assert Mirror.read(mirror).reasons == %{subscribed: 1}
    assert_true([mirror], Changes.make(changes, 500))
  end

  test "the tables of many subscribers, some of which end, match the kernel's", context do
    monitor = monitor!(context, 1_000_000)
    {changes, mirrors} = {changes!(context, 1), for(_ <- 1..200, do: Mirror.start(monitor))}
    changes = Enum.reduce(1..10, changes, fn _n, changes -> Changes.make(changes, 100) end)
    {ended, kept} = Enum.split(mirrors, 100)
    for pid <- ended, do: Process.unlink(pid)
    for pid <- ended, do: Process.exit(pid, :kill)
    changes = Enum.reduce(1..10, changes, fn _n, changes -> Changes.make(changes, 100) end)
    assert_true(kept, changes)
    assert NetlinkPort.Monitor.Subscribers.count(:sys.get_state(monitor).subscribers) == 100
  end

  @changes 100_000
  @rounds 10

  # Takes seconds; longer on a machine with other work.
  @tag timeout: within(180_000)
  test "the tables of links and routes match the kernel's after 100,000 random changes, overruns and kills",
       context do
    # The seed decides which changes are made, but not when.
    seed = ExUnit.configuration()[:seed]
    monitor = monitor!(context, 100_000)
    causes = causes!(monitor)
    mirror = Mirror.start(monitor)
    # With little room in its mailbox, and suspended at times.
    slow = Mirror.start(monitor, max_queue: 50)

    {changes, largest} =
      for round <- 1..@rounds, reduce: {changes!(context, seed), 0} do
        {changes, largest} ->
          if rem(round, 2) == 0, do: :erlang.suspend_process(slow)
          kill_if_there(context.server)
          changes = storm(changes, context.server, div(@changes, @rounds))
          if rem(round, 2) == 0, do: :erlang.resume_process(slow)
          # A subscriber that comes late, and goes.
          late = Mirror.start(monitor)
          assert_true([mirror, slow, late], changes)
          Process.unlink(late)
          Process.exit(late, :kill)
          {one_by_one(mirror, changes), max(largest, map_size(changes.routes))}
      end

    # On a slow machine the kills can leave no time for an overrun.
    assert_true(
      [mirror, slow],
      while_stopped(context.server, fn -> Changes.make(changes, 1_000) end)
    )

    assert_listed(Mirror.read(mirror).tables, context.netns)
    seen = Mirror.read(mirror)
    assert %{overrun: _some, closed: _more} = seen.reasons
    assert %{behind: _some} = Mirror.read(slow).reasons

    # How many changes come as events depends on the machine: the slower it is, the more are dropped by the kernel, or
    # come while a snapshot is awaited that contains them. But there is no resync without a cause.
    assert seen.reasons.overrun <= count(causes, monitor, :netlink_overrun)
    assert seen.reasons.closed <= count(causes, monitor, :netlink_closed)
    assert seen.counts.netlink_resync == Enum.sum(Map.values(seen.reasons))

    # The snapshots were of several datagrams. In the end there may be fewer routes: those of an interface go with it.
    assert largest > 500
  end

  # A process that counts the messages which make a monitor resync.
  defp causes!(monitor) do
    tracer = spawn_link(fn -> trace(%{}) end)
    :erlang.trace(monitor, true, [:receive, tracer: tracer])
    tracer
  end

  defp trace(counts) do
    receive do
      {:trace, _monitor, :receive, message}
      when elem(message, 0) in [:netlink_overrun, :netlink_closed] ->
        trace(Map.update(counts, elem(message, 0), 1, &(&1 + 1)))

      {:trace, _monitor, :receive, _message} ->
        trace(counts)

      {:read, from, ref} ->
        send(from, {ref, counts})
        trace(counts)
    end
  end

  defp count(tracer, monitor, kind) do
    delivered = :erlang.trace_delivered(monitor)
    assert_receive {:trace_delivered, ^monitor, ^delivered}, within(5_000)
    ref = make_ref()
    send(tracer, {:read, self(), ref})
    assert_receive {^ref, counts}, within(5_000)
    Map.get(counts, kind, 0)
  end

  # The socket has room for the events of one change. So changes that are made one by one come as events, without a
  # resync and a snapshot, however slow the machine is.
  defp one_by_one(mirror, changes) do
    before = Mirror.read(mirror)

    changes =
      for _ <- 1..10, reduce: changes do
        changes ->
          changes = Changes.make(changes, 1)
          assert_true([mirror], changes)
          changes
      end

    now = Mirror.read(mirror)
    assert now.reasons == before.reasons
    assert now.counts.netlink_snapshot == before.counts.netlink_snapshot
    # Before the first round's changes one by one there may have been no event.
    assert now.counts.netlink_event > Map.get(before.counts, :netlink_event, 0)
    changes
  end

  # With its own helper, which nothing kills.
  defp changes!(context, seed) do
    opts = [netns: {:name, context.netns}, active: false, rcvbuf: 4_000_000, sndbuf: 1_000_000]
    {:ok, socket} = NetlinkPort.open(start_server!(), :route, opts)
    Changes.new(socket, seed)
  end

  # In datagrams of very different lengths: some overrun the monitor's socket, and some do not.
  defp storm(changes, _server, 0), do: changes

  defp storm(changes, server, left) do
    {exponent, changes} = Changes.random(changes, 10)
    count = min(left, Bitwise.bsl(1, exponent))
    changes = Changes.make(changes, count)
    {n, changes} = Changes.random(changes, 50)
    if n == 1, do: kill_if_there(server)
    storm(changes, server, left - count)
  end

  defp while_stopped(server, fun) do
    helper = os_pid(server)
    signal!(helper, "STOP")
    result = fun.()
    signal!(helper, "CONT")
    result
  end

  defp kill_if_there(server) do
    with {:ok, %{os_pid: os_pid}} <- NetlinkPort.info(server), do: signal!(os_pid, "KILL")
  end

  defp assert_true(mirrors, changes) do
    # New links change for a while by themselves.
    for mirror <- mirrors do
      eventually!(fn -> Mirror.read(mirror).tables == Mirror.kernel(changes.socket) end, 20_000)
    end
  end

  # The tables by ip(8).
  defp assert_listed(tables, netns) do
    listed = fn arguments, pattern ->
      ["-n", netns, "-j" | arguments]
      |> ip!()
      |> then(&Regex.scan(pattern, &1, capture: :all_but_first))
      |> Enum.sort()
    end

    links =
      for {index, {name, {:ok, mtu}, _flags, _master, _kind}} <- tables,
          is_integer(index),
          do: ["#{index}", name, "#{mtu}"]

    pattern = ~r/"ifindex":(\d+),"ifname":"([^"]+)","flags":[^\]]*\],"mtu":(\d+)/
    assert listed.(["link"], pattern) == Enum.sort(links)

    routes =
      for {{2, 254, {:ok, <<a, b, c, d>>}, 32, _tos, _priority}, [_route]} <- tables,
          do: ["#{a}.#{b}.#{c}.#{d}"]

    assert listed.(~w(-4 route), ~r/"dst":"([^"]+)"/) == Enum.sort(routes)
  end
end
