defmodule Bench.Requests do
  @moduledoc false
  # One request and its answer: in series, from many processes; and opening sockets.

  alias Bench.{Baseline, Measure, Work}

  @requests 2_000

  def serial(context, active) do
    socket = open!(context, active: active)
    figure = Measure.each(@requests, &ask(socket, active, &1))
    NetlinkPort.close(socket)
    figure
  end

  # Without NLM_F_ACK, like the baseline.
  def serial_by_request(context) do
    socket = open!(context, active: true)
    link = <<0::32, 1::32-native, 0::64>>

    figure =
      Measure.each(@requests, fn _n ->
        {:ok, [_link]} = NetlinkPort.request(socket, 18, link, ack: false)
      end)

    NetlinkPort.close(socket)
    figure
  end

  def serial_baseline(context) do
    socket = Baseline.open(context.netns)
    figure = Measure.each(@requests, &ask_baseline(socket, &1))
    Baseline.close(socket)
    figure
  end

  def ask(socket, true, n) do
    :ok = NetlinkPort.send(socket, Work.getlink(n))
    receive do: ({:netlink, ^socket, datagram} -> datagram)
  end

  def ask(socket, false, n) do
    :ok = NetlinkPort.send(socket, Work.getlink(n))
    {:ok, datagram} = NetlinkPort.recv(socket, 5_000)
    datagram
  end

  def ask_baseline(socket, n) do
    Baseline.send(socket, Work.getlink(n))
    Baseline.recv(socket)
  end

  @doc "Microseconds for a request, over all callers together. Each has its own socket."
  def many(context, callers) do
    at_once(callers, fn ->
      socket = open!(context, active: true)
      {&ask(socket, true, &1), fn -> NetlinkPort.close(socket) end}
    end)
  end

  def many_baseline(context, callers) do
    at_once(callers, fn ->
      socket = Baseline.open(context.netns)
      {&ask_baseline(socket, &1), fn -> Baseline.close(socket) end}
    end)
  end

  def at_once(callers, prepare) do
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
    time = Measure.microseconds(start)
    for pid <- pids, do: receive(do: ({:finished, ^pid} -> :ok))
    time / (each * callers)
  end

  def opens(context) do
    Measure.each(1_000, fn _n -> context |> open!(groups: [1]) |> NetlinkPort.close() end)
  end

  def opens_baseline(context) do
    Measure.each(1_000, fn _n -> context.netns |> Baseline.open(1) |> Baseline.close() end)
  end

  def open!(context, opts) do
    # With several servers (partitions.exs) a function takes one by turns.
    server = if is_function(context.server), do: context.server.(), else: context.server
    {:ok, socket} = NetlinkPort.open(server, :route, [netns: {:name, context.netns}] ++ opts)
    socket
  end
end
