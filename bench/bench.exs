# Compares the helper with OTP's own socket in the same namespace, by turns in the same run. Measures how the cost
# grows, and the same work by pyroute2 and ip(8). Writes docs/benchmarks.md and its chart. Arguments are parts of
# the names of rows: then only those rows are measured, and nothing is written.
#
#     make bench                                     (root; under five minutes)
#     mix run bench/bench.exs serial callers
#     mix run bench/bench.exs helpers                (the table of several helpers alone)
#     mix run bench/bench.exs sandbox                (the table of sandboxes alone)

parts =
  ~w(work baseline place measure requests floor goals one_processor dumps events idle spin growth others partitions sandbox report)

for part <- parts, do: Code.require_file("#{part}.exs", __DIR__)

defmodule Bench do
  alias Bench.{
    Dumps,
    Events,
    Goals,
    Growth,
    Idle,
    Measure,
    OneProcessor,
    Others,
    Partitions,
    Place
  }

  alias Bench.{Report, Requests, Spin, Work}

  import Report, only: [figure: 1, figure: 2]

  @routes String.to_integer(System.get_env("BENCH_ROUTES", "1000000"))

  def run(only) do
    start = System.monotonic_time(:second)
    _sweeper = Place.sweep_at_end()

    Place.with_netns("bench", fn netns ->
      Place.with_server(fn server ->
        context = %{netns: netns, server: server, routes: @routes}
        compared = compared(context, only)
        goals = goals(context, only)
        if only == ["one processor"], do: one_processor()
        if only == ["helpers"], do: several(context)
        if only == ["sandbox"], do: sandboxes()

        if only == [] do
          tables = [compared, goals, one_processor() | alone(context)]
          Report.write(Enum.join([Report.machine() | tables], "\n\n"))
          IO.puts("\n#{System.monotonic_time(:second) - start} s")
        end
      end)
    end)
  end

  # `{name, unit, goal, ours, baseline}`. The last two are functions that return a figure; less is better.
  defp workloads(context) do
    [
      {"a request and its answer, in series", "us", 1.5, fn -> Requests.serial(context, true) end,
       fn -> Requests.serial_baseline(context) end},
      {"the same, by recv/2", "us", nil, fn -> Requests.serial(context, false) end,
       fn -> Requests.serial_baseline(context) end},
      {"the same, by request/4", "us", nil, fn -> Requests.serial_by_request(context) end,
       fn -> Requests.serial_baseline(context) end},
      {"a request, 8 callers at once", "us", 1.0, fn -> Requests.many(context, 8) end,
       fn -> Requests.many_baseline(context, 8) end},
      {"a request, 64 callers at once", "us", 1.0, fn -> Requests.many(context, 64) end,
       fn -> Requests.many_baseline(context, 64) end},
      {"open, bind and close", "us", 0.5, fn -> Requests.opens(context) end,
       fn -> Requests.opens_baseline(context) end},
      {"CPU of 40,000 events, 2 namespaces", "ms", 1.1, fn -> Events.cpu(context) end,
       fn -> Events.cpu_baseline(context) end},
      {"100,000 routes, beside ip -batch", "ms", 0.5, fn -> Dumps.batch(context) end,
       fn -> Dumps.batch_ip(context) end}
    ]
  end

  defp dumps(context) do
    [
      {"a dump of 1,000,000 routes", "ms", 1.0, fn -> Dumps.dump(context, true, & &1) end,
       fn -> Dumps.dump_baseline(context, & &1) end},
      {"the same, decoded", "ms", 0.85, fn -> Dumps.dump(context, true, &Work.decode/1) end,
       fn -> Dumps.dump_baseline(context, &Work.decode/1) end},
      {"the same, by recv/2", "ms", 1.1, fn -> Dumps.dump(context, false, & &1) end,
       fn -> Dumps.dump_baseline(context, & &1) end},
      {"the same, by stream/4", "ms", nil, fn -> Dumps.stream(context) end,
       fn -> Dumps.stream_baseline(context) end}
    ]
  end

  defp compared(context, only) do
    head = ["workload", "ours", "OTP's socket", "ratio", "quartiles", "goal"]
    wanted = fn rows -> Enum.filter(rows, fn row -> wanted?(elem(row, 0), only) end) end
    first = Enum.map(wanted.(workloads(context)), &compare/1)
    big = wanted.(dumps(context))
    if big != [], do: Dumps.fill(context, @routes)
    rows = first ++ Enum.map(big, &compare/1)

    if only == [] do
      Report.chart(for {name, r, _cells, goal} <- rows, do: {name, r.ratio, r.low, r.high, goal})
    end

    show("Beside OTP's socket", [head | for({_name, _result, cells, _goal} <- rows, do: cells)])
  end

  # Single requests against their goals.
  defp goals(context, only) do
    head = ["workload", "against", "ours", "theirs", "ratio", "quartiles", "goal", "reached"]
    wanted = Enum.filter(Goals.rows(context), fn row -> wanted?(elem(row, 0), only) end)

    rows =
      for {name, against, unit, goal, ours, theirs} <- wanted do
        [name, against | judged(name, unit, goal, Measure.compare(ours, theirs))]
      end

    show("What a request costs", [head | rows])
  end

  defp judged(name, unit, goal, result) do
    IO.puts("#{String.pad_trailing(name, 40)} #{figure(result.ratio)}")

    [
      figure(result.ours, unit),
      figure(result.baseline, unit),
      figure(result.ratio),
      "#{figure(result.low)} - #{figure(result.high)}",
      figure(goal),
      if(result.ratio <= goal, do: "met", else: "missed")
    ]
  end

  defp one_processor do
    head = ["with one processor", "ours", "in the VM", "ratio", "quartiles", "goal", "reached"]

    rows =
      for {name, goal, result} <- OneProcessor.rows(),
          do: [name | judged(name, "us", goal, result)]

    show("With one processor", [head | rows])
  end

  defp wanted?(name, only), do: only == [] or Enum.any?(only, &String.contains?(name, &1))

  defp compare({name, unit, goal, ours, baseline}) do
    result = Measure.compare(ours, baseline)
    IO.puts("#{String.pad_trailing(name, 36)} #{figure(result.ratio)}")

    cells = [
      name,
      figure(result.ours, unit),
      figure(result.baseline, unit),
      figure(result.ratio),
      "#{figure(result.low)} - #{figure(result.high)}",
      figure(goal)
    ]

    {name, result, cells, goal}
  end

  # Figures without a baseline.
  defp alone(context) do
    memory = Measure.alone(fn -> Dumps.memory_of_stream(context) end)
    idle = Measure.alone(&Idle.thousand/0)

    helper = [
      ["the helper", "figure", "goal"],
      ["start to hello", figure(Measure.single(&Idle.start_to_hello/0), "ms"), "10"],
      ["RSS, idle", figure(Place.with_server(&Idle.rss/1), "MiB"), "4"],
      ["RSS, 1,000 sockets in 100 namespaces", figure(idle.rss, "MiB"), "8"],
      ["CPU time of 60 s with them, no ping", figure(idle.silent.cpu, "ms"), "0"],
      ["wake-ups of 60 s with them, no ping", "#{idle.silent.wakes}", "0"],
      ["wake-ups of 60 s, a ping each 30 s", "#{idle.pinged.wakes}", "2"],
      ["VM memory beyond the start, stream/4 of 1,000,000 routes", figure(memory, "MiB"), "flat"]
    ]

    spin =
      [["requests", "spin:", "each takes", "CPU time of each"]] ++
        for {name, spin, wall, cpu} <- Spin.rows() do
          [name, "#{spin} us", figure(wall, "us"), figure(cpu, "us")]
        end

    others =
      [["the same work", "netlink_port", "pyroute2", "ip(8)"]] ++
        for {name, unit, ours, pyroute2, ip} <- Others.rows(context) do
          [name, figure(ours, unit), figure(pyroute2, unit), figure(ip, unit)]
        end

    [
      show("The helper alone", helper),
      show("What looking for more costs", spin),
      show("How the cost grows", growth()),
      several(context),
      sandboxes(),
      show("Beside other tools", others)
    ]
  end

  defp several(context) do
    head = for count <- Partitions.helpers(), do: "#{count} helper#{if count > 1, do: "s"}"
    ratios = for count <- tl(Partitions.helpers()), do: "#{count} : 1"

    rows =
      for {name, unit, figures, ratios} <- Partitions.rows(context) do
        [name | Enum.map(figures, &figure(&1, unit)) ++ Enum.map(ratios, &figure/1)]
      end

    show("Over several helpers", [["the same work" | head ++ ratios] | rows])
  end

  defp sandboxes do
    [sandbox, unshare, difference, stop] = Bench.Sandbox.rows()

    show("A sandbox for a test", [
      ["beside 100 others", "figure", "goal"],
      ["start to first answer", figure(sandbox, "ms"), "15"],
      ["`unshare -Urn true`", figure(unshare, "ms"), ""],
      ["the difference", figure(difference, "ms"), "3"],
      ["its end", figure(stop, "ms"), ""]
    ])
  end

  defp growth do
    rows = [
      {"a request, so many idle sockets beside it",
       Growth.idle_sockets([1, 10, 100, 1_000, 10_000])},
      {"a request, sockets in so many namespaces", Growth.namespaces([1, 10, 100, 1_000])},
      {"an event to one of so many owners", Growth.owners([1, 10, 100, 1_000])},
      {"a datagram of so many bytes, there and back",
       Growth.datagrams([100, 1_000, 10_000, 100_000, 1_048_576])}
    ]

    [["us", "1st", "2nd", "3rd", "4th", "5th"]] ++
      for {name, points} <- rows do
        cells = for {size, time} <- points, do: "#{size}: #{figure(time)}"
        [name | Enum.take(cells ++ [""], 5)]
      end
  end

  defp show(title, rows) do
    table = Report.table(rows)
    IO.puts("\n#{title}\n\n#{table}")
    "### #{title}\n\n#{table}"
  end
end

Bench.run(System.argv())
