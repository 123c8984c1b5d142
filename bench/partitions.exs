defmodule Bench.Partitions do
  @moduledoc false
  # The same work over 1, 2 and 4 helpers under a PartitionSupervisor, by turns in the same run.

  alias Bench.{Events, Measure, Place, Requests}

  @helpers [1, 2, 4]
  @namespaces 4
  @events 10_000
  # RTNLGRP_IPV4_ROUTE.
  @group 7

  @doc "`{name, unit, figures, ratios}`: medians for each number of helpers, and the median of each turn's ratio to one."
  def rows(context) do
    with_helpers(fn servers ->
      [
        row("a request, 64 callers at once", "us", servers, &requests(context, &1, 64)),
        row("a request, 8 callers at once", "us", servers, &requests(context, &1, 8)),
        row("an event, storms in #{@namespaces} namespaces", "us", servers, &events/1),
        row("CPU of each such event", "us", servers, &cpu/1)
      ]
    end)
  end

  def helpers, do: @helpers

  defp with_helpers(fun) do
    servers = for count <- @helpers, do: start(count)

    try do
      fun.(servers)
    after
      for {_name, supervisor, _count} <- servers, do: Supervisor.stop(supervisor)
    end
  end

  defp start(count) do
    name = :"Bench.Helpers#{count}"
    opts = [child_spec: {NetlinkPort, name: nil}, name: name, partitions: count]
    {:ok, supervisor} = PartitionSupervisor.start_link(opts)
    {name, supervisor, count}
  end

  # PartitionSupervisor takes integer keys modulo the number of partitions.
  defp server({name, _supervisor, _count}, n), do: {:via, PartitionSupervisor, {name, n}}

  defp row(name, unit, servers, work) do
    measure = fn server -> Measure.alone(fn -> work.(server) end) end
    _warm = Enum.map(servers, measure)
    rounds = for round <- 1..Measure.rounds(), do: turn(round, servers, measure)
    [_one | ratios] = medians(for [one | _] = round <- rounds, do: Enum.map(round, &(&1 / one)))
    {name, unit, medians(rounds), ratios}
  end

  # The medians of the columns.
  defp medians(rounds), do: Enum.zip_with(rounds, &Measure.median/1)

  # In another order each round.
  defp turn(round, servers, measure) do
    order =
      Enum.drop(servers, rem(round, length(servers))) ++
        Enum.take(servers, rem(round, length(servers)))

    measured = Map.new(order, fn server -> {server, measure.(server)} end)
    for server <- servers, do: measured[server]
  end

  defp requests(context, server, callers) do
    turns = :atomics.new(1, [])
    next = fn -> server(server, :atomics.add_get(turns, 1, 1)) end
    Requests.many(%{context | server: next}, callers)
  end

  defp events(server), do: elem(storm(server), 0)
  defp cpu(server), do: elem(storm(server), 1)

  # Wall time and CPU time of one event, for VM and helpers together.
  defp storm({_name, _supervisor, count} = server) do
    lines = Place.routes(@events)
    servers = for n <- 0..(count - 1), do: server(server, n)

    Place.with_many("storm", @namespaces, fn names ->
      for name <- names, do: Place.ip(["-n", name, "link", "set", "lo", "up"])
      listeners = for {name, n} <- Enum.with_index(names), do: listen(server(server, n), name)
      for pid <- listeners, do: receive(do: ({:ready, ^pid} -> :ok))
      before = cpu_of_all(servers)
      start = System.monotonic_time()
      makers = for name <- names, do: Task.async(fn -> Place.batch(lines, name) end)
      Task.await_many(makers, 60_000)
      for pid <- listeners, do: receive(do: ({:done, ^pid} -> :ok))
      wall = Measure.microseconds(start)
      used = 1_000 * (cpu_of_all(servers) - before)
      all = @events * @namespaces
      {wall / all, used / all}
    end)
  end

  defp cpu_of_all(servers) do
    Measure.cpu(System.pid()) +
      Enum.sum(for server <- servers, do: server |> Measure.os_pid() |> Measure.cpu())
  end

  defp listen(server, netns) do
    parent = self()

    spawn_link(fn ->
      opts = [netns: {:name, netns}, groups: [@group], rcvbuf: 8_000_000]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      send(parent, {:ready, self()})
      for _n <- 1..@events, do: Events.event(socket)
      send(parent, {:done, self()})
      NetlinkPort.close(socket)
    end)
  end
end
