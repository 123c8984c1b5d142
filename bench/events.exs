defmodule Bench.Events do
  @moduledoc false
  # Route events as fast as `ip -batch` makes them, in two namespaces at once: checks that none is lost, and
  # measures the CPU time of VM and helper together.

  alias Bench.{Baseline, Measure, Place}

  @events 20_000
  # RTNLGRP_IPV4_ROUTE.
  @group 7

  def cpu(context) do
    cpu(context, fn netns ->
      opts = [netns: {:name, netns}, groups: [@group], rcvbuf: 8_000_000]
      {:ok, socket} = NetlinkPort.open(context.server, :route, opts)
      {fn -> event(socket) end, fn -> NetlinkPort.close(socket) end}
    end)
  end

  # Any other message, such as an overrun, ends the benchmark.
  def event(socket) do
    receive do
      {:netlink, ^socket, _event} -> :ok
      {_tag, ^socket, _what} = other -> raise inspect(other)
    end
  end

  def cpu_baseline(context) do
    cpu(context, fn netns ->
      socket = Baseline.open(netns, Bitwise.bsl(1, @group - 1))
      :ok = :socket.setopt(socket, {:socket, :rcvbuf}, 4_000_000)
      {fn -> Baseline.recv(socket) end, fn -> Baseline.close(socket) end}
    end)
  end

  defp cpu(context, prepare) do
    lines = Place.routes(@events)

    Place.with_netns("other", fn other ->
      places = [context.netns, other]
      listeners = Enum.map(places, &listen(&1, prepare))
      for pid <- listeners, do: receive(do: ({:ready, ^pid} -> :ok))
      before = Measure.cpu_of_both(context.server)
      makers = for place <- places, do: Task.async(fn -> Place.batch(lines, place) end)
      Task.await_many(makers, 60_000)
      for pid <- listeners, do: receive(do: ({:done, ^pid} -> :ok))
      time = Measure.cpu_of_both(context.server) - before
      Place.flush(context.netns)
      time
    end)
  end

  defp listen(netns, prepare) do
    parent = self()

    spawn_link(fn ->
      {next, finish} = prepare.(netns)
      send(parent, {:ready, self()})
      for _ <- 1..@events, do: next.()
      send(parent, {:done, self()})
      finish.()
    end)
  end
end
