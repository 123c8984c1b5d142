defmodule NetlinkPort.BroadcastErrorTest do
  # The effect of NETLINK_BROADCAST_ERROR on conntrack when an owner is slow, in a namespace with a conntrack table of
  # its own.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Doctor, Message}

  @moduletag root: true, nftables: true

  # NFNLGRP_CONNTRACK_NEW and NFNLGRP_CONNTRACK_DESTROY; IPCTNL_MSG_CT_GET
  @groups [1, 3]
  @get 0x0101
  @flows 300

  setup do
    netns = netns!()
    server = start_server!()
    script = tmp_path!("rules")

    # A rule that matches the state makes the kernel track flows.
    File.write!(script, """
    table ip t {
      chain c {
        type filter hook output priority 0
        ct state new accept
      }
    }
    """)

    ip!(["netns", "exec", netns, "nft", "-f", script])
    sysctl!(netns, "nf_conntrack_events", 1)
    sysctl!(netns, "nf_conntrack_udp_timeout", 1)
    {:ok, asking} = NetlinkPort.open(server, :netfilter, netns: {:name, netns}, active: false)
    %{netns: netns, server: server, asking: asking}
  end

  # These sysctls are of the network namespace.
  defp sysctl!(netns, name, value) do
    ip!(["netns", "exec", netns, "sh", "-c", "echo #{value} >/proc/sys/net/netfilter/#{name}"])
  end

  defp count(netns) do
    read = ["netns", "exec", netns, "cat", "/proc/sys/net/netfilter/nf_conntrack_count"]
    read |> ip!() |> String.trim() |> String.to_integer()
  end

  # Makes a flow for each port.
  defp flows!(netns) do
    script =
      "for p in $(seq #{@flows}); do echo >/dev/udp/127.0.0.1/$((10000+p)); done 2>/dev/null"

    ip!(["netns", "exec", netns, "bash", "-c", script <> "; true"])
  end

  # A dump removes expired entries that it finds, which the kernel does by itself only in a minute or two.
  defp expire(asking), do: {:ok, _left} = NetlinkPort.dump(asking, @get, <<2, 0, 0, 0>>)

  defp open!(context, opts) do
    place = [netns: {:name, context.netns}, groups: @groups, active: false]
    # The window takes one datagram, and the kernel's queue few.
    {:ok, socket} =
      NetlinkPort.open(context.server, :netfilter, place ++ [window: 1, rcvbuf: 2_304] ++ opts)

    socket
  end

  test "with broadcast_error flows stay in the table until a slow owner takes their end events",
       context do
    %{netns: netns, asking: asking, server: server} = context
    socket = open!(context, broadcast_error: true)
    flows!(netns)
    assert count(netns) == @flows

    # All flows have expired. The entries that are left have an end event that could not be delivered.
    expired = fn -> expire(asking) |> elem(1) == [] end
    eventually!(expired, 20_000)
    assert count(netns) > @flows - 50

    # The statistics and the doctor show it.
    assert {:ok, %{broadcast_error: true, window_left: 0} = stats} = NetlinkPort.stats(socket)
    assert 2 * stats.queued_bytes > stats.queue_limit
    assert [{:warn, line, remedy}] = Doctor.Servers.checks([{server, NetlinkPort.stats(server)}])
    assert line =~ "of #{inspect(self())} has broadcast_error, and is not read"
    assert remedy =~ "conntrack table"

    # The kernel tries again until all events are delivered.
    assert ends(socket, asking, netns) > @flows - 50
    assert {:ok, %{window_left: _, broadcast_error: true}} = NetlinkPort.stats(socket)
    eventually!(fn -> match?([{:ok, _, _} | _], calm(server)) end, 10_000)
  end

  defp calm(server), do: for({:ok, _, _} = ok <- checks(server), do: ok)
  defp checks(server), do: Doctor.Servers.checks([{server, drained(NetlinkPort.stats(server))}])
  # Without drops, which are another finding.
  defp drained({:ok, stats}),
    do: {:ok, %{stats | sockets: Enum.map(stats.sockets, &%{&1 | drops: 0})}}

  # IPCTNL_MSG_CT_DELETE, until the table is empty.
  defp ends(socket, asking, netns, ends \\ 0) do
    case NetlinkPort.recv(socket, 500) do
      {:ok, datagram} ->
        {:ok, messages} = Message.decode(datagram)
        ends(socket, asking, netns, ends + Enum.count(messages, &(&1.type == 0x0102)))

      {:error, %{reason: :enobufs}} ->
        ends(socket, asking, netns, ends)

      {:error, %{reason: :etimedout}} ->
        expire(asking)
        if count(netns) == 0, do: ends, else: ends(socket, asking, netns, ends)
    end
  end

  test "without broadcast_error flows leave the table, and their end events are lost", context do
    %{netns: netns, asking: asking, server: server} = context
    socket = open!(context, [])
    flows!(netns)

    eventually!(
      fn ->
        expire(asking)
        count(netns) == 0
      end,
      20_000
    )

    assert {:ok, %{broadcast_error: false, window_left: 0}} = NetlinkPort.stats(socket)
    refute Enum.any?(checks(server), fn {_kind, line, _remedy} -> line =~ "broadcast_error" end)
  end
end
