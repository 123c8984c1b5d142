# What the way through the helper costs beside OTP's own socket in the same namespace, interleaved in
# the same run: medians, and the ratio ours / baseline with its spread.
#
#     make bench        (root; some minutes)

for part <- ~w(baseline work), do: Code.require_file("#{part}.exs", __DIR__)

defmodule Bench do
  alias Bench.{Baseline, Work}

  @rounds 7
  @routes String.to_integer(System.get_env("BENCH_ROUTES", "1000000"))

  def run(only) do
    netns = "nlp-#{System.pid()}-bench"
    ip(["netns", "add", netns])
    ip(["-n", netns, "link", "set", "lo", "up"])

    try do
      {:ok, server} = NetlinkPort.start_link(name: nil)
      context = %{netns: netns, server: server}
      print(["workload", "ours", "baseline", "ratio", "spread", "goal"])

      wanted = fn name -> only == [] or Enum.any?(only, &String.contains?(name, &1)) end

      for {name, unit, goal, ours, baseline} <- workloads(context), wanted.(name) do
        compare(name, unit, goal, ours, baseline)
      end

      print(["", "", "", "", "", ""])

      for {name, unit, goal, fun} <- figures(context), wanted.(name) do
        print([name, "#{figure(fun.())} #{unit}", "", "", "", goal])
      end
    after
      ip(["netns", "del", netns])
    end
  end

  # Each is a function that returns a figure, less being better.
  defp workloads(context) do
    [
      {"serial request, active", "us", "1.5", fn -> serial(context, true) end,
       fn -> serial_baseline(context) end},
      {"serial request, recv", "us", "-", fn -> serial(context, false) end,
       fn -> serial_baseline(context) end},
      {"8 callers, a request", "us", "1.0", fn -> many(context, 8) end,
       fn -> many_baseline(context, 8) end},
      {"64 callers, a request", "us", "1.0", fn -> many(context, 64) end,
       fn -> many_baseline(context, 64) end},
      {"open, bind, close", "us", "0.5", fn -> opens(context) end,
       fn -> opens_baseline(context) end},
      {"100,000 routes in batches", "ms", "0.5", fn -> batch(context) end,
       fn -> batch_ip(context) end},
      {"CPU of 40,000 events, 2 namespaces", "ms", "1.1", fn -> events(context) end,
       fn -> events_baseline(context) end},
      {"dump of #{@routes} routes, active", "ms", "1.0",
       fn -> dump(filled(context), true, & &1) end, fn -> dump_baseline(context, & &1) end},
      {"the same, decoded", "ms", "0.85", fn -> dump(filled(context), true, &Work.decode/1) end,
       fn -> dump_baseline(context, &Work.decode/1) end},
      {"the same, by recv", "ms", "1.1", fn -> dump(filled(context), false, & &1) end,
       fn -> dump_baseline(context, & &1) end}
    ]
  end

  # Figures of the helper alone.
  defp figures(context) do
    [
      {"start to hello", "ms", "10", fn -> median(for _ <- 1..20, do: start_to_hello()) end},
      {"RSS idle", "MiB", "4", fn -> rss(context.server) end},
      {"RSS, 1,000 sockets in 100 namespaces", "MiB", "8", &rss_of_many/0},
      {"CPU of 10 s idle, 1,000 sockets", "ms", "0", &cpu_of_idle/0}
    ]
  end

  defp start_to_hello do
    start = System.monotonic_time()
    {:ok, server} = NetlinkPort.start_link(name: nil)
    time = microseconds(start) / 1_000
    GenServer.stop(server)
    time
  end

  defp rss(server) do
    [_, kb] = Regex.run(~r/VmRSS:\s+(\d+)/, proc(server, "status"))
    String.to_integer(kb) / 1_024
  end

  defp rss_of_many, do: with_many(&rss/1)

  # User and system time of the helper, in ticks of 10 ms, and how often it was woken.
  defp cpu_of_idle do
    with_many(fn server ->
      before = {ticks(server), switches(server)}
      Process.sleep(10_000)
      {ticks, switches} = before
      IO.puts("wake-ups meanwhile: #{switches(server) - switches}")
      10 * (ticks(server) - ticks)
    end)
  end

  defp ticks(server) do
    fields = server |> proc("stat") |> String.split(")") |> List.last() |> String.split()
    String.to_integer(Enum.at(fields, 11)) + String.to_integer(Enum.at(fields, 12))
  end

  defp switches(server) do
    [_, count] = Regex.run(~r/^voluntary_ctxt_switches:\s+(\d+)/m, proc(server, "status"))
    String.to_integer(count)
  end

  defp proc(server, file) do
    {:ok, %{os_pid: pid}} = NetlinkPort.info(server)
    File.read!("/proc/#{pid}/#{file}")
  end

  defp with_many(fun) do
    names = for n <- 1..100, do: "nlp-#{System.pid()}-many#{n}"
    Enum.each(names, &ip(["netns", "add", &1]))
    {:ok, server} = NetlinkPort.start_link(name: nil, ping_interval: :infinity)

    try do
      for name <- names, _ <- 1..10 do
        {:ok, _} = NetlinkPort.open(server, :route, netns: {:name, name}, groups: [1])
      end

      fun.(server)
    after
      GenServer.stop(server)
      Enum.each(names, &ip(["netns", "del", &1]))
    end
  end

  defp compare(name, unit, goal, ours, baseline) do
    _warm = {ours.(), baseline.()}

    {mine, theirs} =
      Enum.unzip(
        for round <- 1..@rounds do
          # Neither is always first.
          if rem(round, 2) == 0,
            do: {ours.(), baseline.()},
            else: baseline.() |> then(&{ours.(), &1})
        end
      )

    ratios = Enum.zip_with(mine, theirs, &(&1 / &2))
    spread = "#{figure(Enum.min(ratios))}-#{figure(Enum.max(ratios))}"
    ours = "#{figure(median(mine))} #{unit}"
    print([name, ours, "#{figure(median(theirs))} #{unit}", figure(median(ratios)), spread, goal])
  end

  ## Requests

  @requests 2_000

  defp serial(context, active) do
    socket = open!(context, active: active)
    figure = timed(@requests, fn n -> ask(socket, active, n) end)
    NetlinkPort.close(socket)
    figure
  end

  defp ask(socket, true, n) do
    :ok = NetlinkPort.send(socket, Work.getlink(n))
    receive do: ({:netlink, ^socket, datagram} -> datagram)
  end

  defp ask(socket, false, n) do
    :ok = NetlinkPort.send(socket, Work.getlink(n))
    {:ok, datagram} = NetlinkPort.recv(socket, 5_000)
    datagram
  end

  defp serial_baseline(context) do
    socket = Baseline.open(context.netns)
    figure = timed(@requests, fn n -> ask_baseline(socket, n) end)
    Baseline.close(socket)
    figure
  end

  defp ask_baseline(socket, n) do
    Baseline.send(socket, Work.getlink(n))
    Baseline.recv(socket)
  end

  defp many(context, callers) do
    at_once(callers, fn ->
      socket = open!(context, active: true)
      {fn n -> ask(socket, true, n) end, fn -> NetlinkPort.close(socket) end}
    end)
  end

  defp many_baseline(context, callers) do
    at_once(callers, fn ->
      socket = Baseline.open(context.netns)
      {fn n -> ask_baseline(socket, n) end, fn -> Baseline.close(socket) end}
    end)
  end

  # Microseconds a request, over all callers together.
  defp at_once(callers, prepare) do
    each = div(20_000, callers)
    parent = self()

    pids =
      for _ <- 1..callers do
        spawn_link(fn ->
          {work, finish} = prepare.()
          send(parent, {:ready, self()})
          receive do: (:go -> :ok)
          for n <- 1..each, do: work.(n)
          send(parent, {:done, self()})
          finish.()
          send(parent, {:finished, self()})
        end)
      end

    for pid <- pids, do: receive(do: ({:ready, ^pid} -> :ok))
    start = System.monotonic_time()
    for pid <- pids, do: send(pid, :go)
    for pid <- pids, do: receive(do: ({:done, ^pid} -> :ok))
    time = microseconds(start)
    for pid <- pids, do: receive(do: ({:finished, ^pid} -> :ok))
    time / (each * callers)
  end

  ## Opening

  defp opens(context) do
    timed(1_000, fn _n -> context |> open!(groups: [1]) |> NetlinkPort.close() end)
  end

  defp opens_baseline(context) do
    timed(1_000, fn _n -> context.netns |> Baseline.open(1) |> Baseline.close() end)
  end

  ## Events

  @events 20_000
  # RTNLGRP_IPV4_ROUTE.
  @route_group 7

  # CPU time of VM and helper while `ip -batch` makes events in two namespaces at once; none is lost.
  defp events(context) do
    cpu_of_events(context, fn netns ->
      opts = [netns: {:name, netns}, groups: [@route_group], rcvbuf: 8_000_000]
      {:ok, socket} = NetlinkPort.open(context.server, :route, opts)

      {fn -> receive(do: ({:netlink, ^socket, _event} -> :ok)) end,
       fn -> NetlinkPort.close(socket) end}
    end)
  end

  defp events_baseline(context) do
    cpu_of_events(context, fn netns ->
      socket = Baseline.open(netns, Bitwise.bsl(1, @route_group - 1))
      :ok = :socket.setopt(socket, {:socket, :rcvbuf}, 4_000_000)
      {fn -> Baseline.recv(socket) end, fn -> Baseline.close(socket) end}
    end)
  end

  defp cpu_of_events(context, prepare) do
    other = context.netns <> "2"
    ip(["netns", "add", other])
    ip(["-n", other, "link", "set", "lo", "up"])
    path = Path.join(System.tmp_dir!(), context.netns <> ".events")
    File.write!(path, for(n <- 0..(@events - 1), do: "route add #{destination(n)}/32 dev lo\n"))
    parent = self()

    listeners =
      for netns <- [context.netns, other] do
        spawn_link(fn ->
          {next, finish} = prepare.(netns)
          send(parent, {:ready, self()})
          for _ <- 1..@events, do: next.()
          send(parent, {:done, self()})
          finish.()
        end)
      end

    for pid <- listeners, do: receive(do: ({:ready, ^pid} -> :ok))
    before = cpu(context)

    makers =
      for netns <- [context.netns, other],
          do: Task.async(fn -> ip(["-n", netns, "-batch", path]) end)

    Task.await_many(makers, 60_000)
    for pid <- listeners, do: receive(do: ({:done, ^pid} -> :ok))
    time = cpu(context) - before
    File.rm!(path)
    ip(["netns", "del", other])
    flush(context)
    time
  end

  # In ms; the helper's in ticks of 10 ms.
  defp cpu(context) do
    {vm, _since} = :erlang.statistics(:runtime)
    vm + 10 * ticks(context.server)
  end

  ## Routes

  @batch 100_000
  # A datagram's worth: 44 bytes a route.
  @together 500

  defp batch(context) do
    socket = open!(context, active: true, sndbuf: 4_000_000)
    start = System.monotonic_time()

    for first <- 0..(@batch - 1)//@together do
      last = first + @together - 1
      datagram = for n <- first..last, do: Work.new_route(n, n + 1, n == last)
      :ok = NetlinkPort.send(socket, datagram)
    end

    # NLMSG_ERROR of errno 0 is the ack of the last of each datagram.
    for first <- 0..(@batch - 1)//@together do
      sequence = first + @together

      receive do
        {:netlink, ^socket,
         <<_::32, 2::16-native, _::16, ^sequence::32-native, _::32, 0::32, _::binary>>} ->
          :ok
      end
    end

    time = microseconds(start) / 1_000
    NetlinkPort.close(socket)
    flush(context)
    time
  end

  defp batch_ip(context) do
    path = Path.join(System.tmp_dir!(), context.netns <> ".batch")
    File.write!(path, for(n <- 0..(@batch - 1), do: "route add #{destination(n)}/32 dev lo\n"))
    start = System.monotonic_time()
    ip(["-n", context.netns, "-batch", path])
    time = microseconds(start) / 1_000
    File.rm!(path)
    flush(context)
    time
  end

  defp flush(context), do: ip(["-n", context.netns, "route", "flush", "table", "main"])

  # Made once, when they are first needed.
  defp filled(context) do
    if Process.put(:filled, true) == nil, do: fill(context, @routes)
    context
  end

  defp fill(context, count) do
    socket = open!(context, active: true, sndbuf: 4_000_000)

    for first <- 0..(count - 1)//@together do
      last = min(first + @together, count) - 1
      datagram = for n <- first..last, do: Work.new_route(n, n + 1, n == last)
      :ok = NetlinkPort.send(socket, datagram)
      receive do: ({:netlink, ^socket, _ack} -> :ok)
    end

    NetlinkPort.close(socket)
  end

  defp dump(context, active, read) do
    socket = open!(context, active: active)
    start = System.monotonic_time()
    :ok = NetlinkPort.send(socket, Work.dump_routes(1))
    drain(fn -> next(socket, active) end, read)
    time = microseconds(start) / 1_000
    NetlinkPort.close(socket)
    time
  end

  defp next(socket, true), do: receive(do: ({:netlink, ^socket, datagram} -> datagram))

  defp next(socket, false) do
    {:ok, datagram} = NetlinkPort.recv(socket, 5_000)
    datagram
  end

  defp dump_baseline(context, read) do
    socket = Baseline.open(context.netns)
    start = System.monotonic_time()
    Baseline.send(socket, Work.dump_routes(1))
    drain(fn -> Baseline.recv(socket) end, read)
    time = microseconds(start) / 1_000
    Baseline.close(socket)
    time
  end

  defp drain(next, read) do
    datagram = next.()
    _routes = read.(datagram)
    if Work.last?(datagram), do: :ok, else: drain(next, read)
  end

  ## Around it

  defp open!(context, opts) do
    {:ok, socket} =
      NetlinkPort.open(context.server, :route, [netns: {:name, context.netns}] ++ opts)

    socket
  end

  defp destination(n), do: "10.#{div(n, 65_536)}.#{rem(div(n, 256), 256)}.#{rem(n, 256)}"

  defp timed(count, fun) do
    start = System.monotonic_time()
    for n <- 1..count, do: fun.(n)
    microseconds(start) / count
  end

  defp microseconds(start) do
    System.convert_time_unit(System.monotonic_time() - start, :native, :nanosecond) / 1_000
  end

  defp median(list), do: list |> Enum.sort() |> Enum.at(div(length(list), 2))
  defp figure(number), do: :erlang.float_to_binary(number / 1, decimals: 2)
  defp ip(arguments), do: {_output, 0} = System.cmd("ip", arguments, stderr_to_stdout: true)

  defp print([name | cells]) do
    cells = Enum.map_join(cells, &String.pad_leading(&1, 14))
    IO.puts(String.pad_trailing(name, 34) <> cells)
  end
end

Bench.run(System.argv())
