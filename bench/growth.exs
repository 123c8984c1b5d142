defmodule Bench.Growth do
  @moduledoc false
  # How the cost grows with the number of idle sockets, of namespaces and of owners, and with the length of a
  # datagram. Each result is a list of `{size, microseconds}`, the best of some rounds.

  alias Bench.{Measure, Place, Work}

  @rounds 5
  @events 2_000

  @doc "A request and its answer, with a number of other open sockets that get no datagrams."
  def idle_sockets(sizes), do: Measure.alone(fn -> idle_sockets_of(sizes) end)

  defp idle_sockets_of(sizes) do
    Place.with_netns("idle", fn netns ->
      Place.with_server(fn server ->
        {:ok, asked} = NetlinkPort.open(server, :route, netns: {:name, netns})

        for size <- sizes do
          {:ok, %{sockets: open}} = NetlinkPort.info(server)
          for _ <- open..(size - 1)//1, do: open!(server, netns, groups: [1])
          {size, best(fn -> Measure.each(2_000, &ask(asked, &1)) end)}
        end
      end)
    end)
  end

  @doc "A request and its answer on one socket after another, each in its own namespace."
  def namespaces(sizes), do: Measure.alone(fn -> namespaces_of(sizes) end)

  defp namespaces_of(sizes) do
    Place.with_many("grow", List.last(sizes), fn names ->
      Place.with_server(fn server ->
        sockets = for name <- names, do: open!(server, name, [])

        for size <- sizes do
          some = sockets |> Enum.take(size) |> List.to_tuple()
          {size, best(fn -> Measure.each(2_000, &ask(elem(some, rem(&1, size)), &1)) end)}
        end
      end)
    end)
  end

  @doc "An event to one of a number of owners, each with a socket that gets all events."
  def owners(sizes), do: Measure.alone(fn -> owners_of(sizes) end)

  defp owners_of(sizes) do
    Place.with_netns("owners", fn netns ->
      Place.with_server(fn server ->
        for size <- sizes, do: {size, owners(server, netns, size)}
      end)
    end)
  end

  defp owners(server, netns, size) do
    events = max(div(@events, size), 5)
    owners = for _ <- 1..size, do: owner(server, netns)
    {:ok, maker} = NetlinkPort.open(server, :route, netns: {:name, netns}, sndbuf: 1_000_000)

    time =
      best(fn ->
        start = System.monotonic_time()
        for pid <- owners, do: send(pid, {:take, events, self()})
        make(maker, events)
        for pid <- owners, do: receive(do: ({:took, ^pid} -> :ok))
        time = Measure.microseconds(start) / (events * size)
        Place.flush(netns)
        # The flush of the routes makes events, too.
        for pid <- owners, do: send(pid, {:take, events, self()})
        for pid <- owners, do: receive(do: ({:took, ^pid} -> :ok))
        time
      end)

    for pid <- owners, do: Process.exit(pid, :kill)
    NetlinkPort.close(maker)
    time
  end

  defp make(maker, events) do
    datagram = for n <- 1..events, do: Work.new_route(n, n, n == events)
    :ok = NetlinkPort.send(maker, datagram)
    receive do: ({:netlink, ^maker, _ack} -> :ok)
  end

  defp owner(server, netns) do
    parent = self()

    pid =
      spawn(fn ->
        socket = open!(server, netns, groups: [7], rcvbuf: 4_000_000)
        send(parent, {:open, self()})
        take_for_ever(socket)
      end)

    receive do: ({:open, ^pid} -> pid)
  end

  defp take_for_ever(socket) do
    receive do
      {:take, events, from} ->
        for _ <- 1..events, do: receive(do: ({:netlink, ^socket, _event} -> :ok))
        send(from, {:took, self()})
        take_for_ever(socket)
    end
  end

  @doc "A datagram of a length from one socket to another: out of the VM, and back into it."
  def datagrams(sizes), do: Measure.alone(fn -> datagrams_of(sizes) end)

  defp datagrams_of(sizes) do
    Place.with_netns("sizes", fn netns ->
      Place.with_server(fn server ->
        # NETLINK_USERSOCK: the kernel only carries the datagrams.
        opts = [netns: {:name, netns}, user_peers: true, rcvbuf: 8_000_000, sndbuf: 8_000_000]
        {:ok, from} = NetlinkPort.open(server, :usersock, opts)
        {:ok, to} = NetlinkPort.open(server, :usersock, opts)
        {:ok, %{port_id: port_id}} = NetlinkPort.info(to)

        for size <- sizes do
          datagram = :binary.copy(<<7>>, size)
          count = max(div(4_000_000, size), 4) |> min(1_000)

          {size,
           best(fn -> Measure.each(count, fn _n -> pass(from, to, port_id, datagram) end) end)}
        end
      end)
    end)
  end

  defp pass(from, to, port_id, datagram) do
    :ok = NetlinkPort.send(from, datagram, to: {port_id, 0})
    receive do: ({:netlink, ^to, _datagram, _metadata} -> :ok)
  end

  defp ask(socket, n) do
    :ok = NetlinkPort.send(socket, Work.getlink(n))
    receive do: ({:netlink, ^socket, datagram} -> datagram)
  end

  defp open!(server, netns, opts) do
    {:ok, socket} = NetlinkPort.open(server, :route, [netns: {:name, netns}] ++ opts)
    socket
  end

  defp best(fun), do: Enum.min(for _ <- 1..@rounds, do: fun.())
end
