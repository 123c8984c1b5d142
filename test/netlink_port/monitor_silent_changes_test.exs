defmodule NetlinkPort.MonitorSilentChangesTest do
  # "What the kernel does not tell", except routes (monitor_routes_test.exs): a dump shows the change, but no event
  # comes before that of a later change.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Message, Monitor}

  @moduletag :root

  setup do
    netns = netns!()
    server = start_server!()

    ip_batch!(netns, [
      "link add va index 101 type veth peer name pa",
      "link add vb index 102 type veth peer name pb",
      "link set va up",
      "link set vb up"
    ])

    %{netns: netns, server: server}
  end

  defp monitor!(context, opts) do
    place = [server: context.server, netns: {:name, context.netns}, rcvbuf: 1_000_000]
    monitor = start_supervised!({Monitor, place ++ opts})
    {:ok, ^monitor} = Monitor.subscribe(monitor)
    assert_receive {:netlink_resync, ^monitor, :subscribed}
    monitor
  end

  defp open!(context, protocol) do
    place = [netns: {:name, context.netns}, active: false]
    {:ok, socket} = NetlinkPort.open(context.server, protocol, place)
    socket
  end

  defp in_it!(netns, program, arguments), do: ip!(["netns", "exec", netns, program | arguments])

  # The messages up to the first for which `last?` is true.
  defp told(monitor, last?) do
    assert_receive {:netlink_event, ^monitor, datagram}
    {:ok, messages} = Message.decode(datagram)

    case Enum.split_while(messages, &(not last?.(&1))) do
      {messages, []} -> messages ++ told(monitor, last?)
      {messages, _last} -> messages
    end
  end

  defp types(messages, types), do: for(%{type: type} <- messages, type in types, do: type)

  test "a rule for an interface that is deleted is detached", context do
    %{netns: netns} = context
    socket = open!(context, :route)
    ip!(["-n", netns, "rule", "add", "iif", "va", "table", "7", "priority", "99"])
    ip!(["-n", netns, "rule", "add", "oif", "va", "table", "7", "priority", "98"])
    # FIB_RULE_IIF_DETACHED 8 and FIB_RULE_OIF_DETACHED 16 in struct fib_rule_hdr; FRA_PRIORITY 6
    detached = fn ->
      {:ok, rules} = NetlinkPort.dump(socket, 34, <<2, 0::88>>)

      for %{payload: <<_::64, flags::32-native, attrs::binary>>} <- rules,
          {:ok, attrs} = Attr.decode(attrs),
          {:ok, priority} when priority in [98, 99] <- [Attr.u32(attrs, 6)],
          do: {priority, Bitwise.band(flags, 24)}
    end

    assert detached.() == [{98, 0}, {99, 0}]
    # RTNLGRP_LINK, RTNLGRP_IPV4_RULE; RTM_DELLINK, RTM_NEWRULE, RTM_DELRULE
    monitor = monitor!(context, groups: [1, 8])
    ip!(["-n", netns, "link", "del", "va"])
    ip!(["-n", netns, "rule", "add", "to", "1.2.3.4", "table", "7"])
    assert [17 | _] = monitor |> told(&(&1.type == 32)) |> types([17, 33])
    assert detached.() == [{98, 16}, {99, 8}]
  end

  test "a qdisc takes its classes with it, and an interface its qdiscs", context do
    %{netns: netns} = context
    tc = fn line -> in_it!(netns, "tc", String.split(line)) end
    tc.("qdisc add dev va root handle 1: htb")
    tc.("class add dev va parent 1: classid 1:1 htb rate 1mbit")
    # RTNLGRP_TC; RTM_NEWQDISC, RTM_DELQDISC, RTM_DELTCLASS, RTM_DELTFILTER
    monitor = monitor!(context, groups: [4])
    tc.("qdisc del dev va root")
    assert tc.("class show dev va") == ""
    tc.("qdisc add dev vb root handle 1: htb")
    # struct tcmsg: family, ifi_index
    {index, other} = {101, 102}

    of = fn index ->
      &match?(%{type: 36, payload: <<_::32, ^index::32-native, _::binary>>}, &1)
    end

    messages = told(monitor, of.(other))
    assert 37 in types(messages, [37])
    assert types(messages, [41, 45]) == []
    tc.("qdisc add dev va root handle 2: htb")
    _told = told(monitor, of.(index))
    ip!(["-n", netns, "link", "del", "va"])
    tc.("qdisc replace dev vb root handle 3: htb")
    messages = told(monitor, of.(other))
    refute Enum.any?(messages, &match?(%{payload: <<_::32, ^index::32-native, _::binary>>}, &1))
  end

  test "an interface takes its proxy entries with it", context do
    %{netns: netns} = context
    proxies = fn -> ip!(["-n", netns, "neigh", "show", "proxy"]) end
    ip!(["-n", netns, "neigh", "add", "proxy", "10.3.0.7", "dev", "va"])
    assert proxies.() =~ "10.3.0.7"
    # RTNLGRP_NEIGH; RTM_NEWNEIGH of a neighbour with that address, RTM_DELNEIGH
    monitor = monitor!(context, groups: [3])
    ip!(["-n", netns, "link", "del", "va"])
    assert proxies.() == ""
    ip!(["-n", netns, "neigh", "add", "10.3.0.9", "lladdr", "02:00:00:00:00:01", "dev", "vb"])
    last? = &(&1.type == 28 and &1.payload =~ <<10, 3, 0, 9>>)
    refute Enum.any?(told(monitor, last?), &(&1.payload =~ <<10, 3, 0, 7>>))
  end

  @tag :nftables
  test "elements of nftables sets time out", context do
    %{netns: netns} = context
    nft = fn line -> in_it!(netns, "nft", [line]) end
    nft.("add table ip t")
    nft.("add set ip t s { type ipv4_addr; flags timeout; timeout 200ms; }")
    nft.("add element ip t s { 10.3.0.7 }")
    # NFNLGRP_NFTABLES; NFT_MSG_NEWTABLE, NFT_MSG_DELSETELEM
    monitor = monitor!(context, protocol: :netfilter, groups: [7])
    eventually!(fn -> not (nft.("list set ip t s") =~ "10.3.0.7") end)
    nft.("add table ip t2")
    assert monitor |> told(&(&1.type == 0x0A00)) |> types([0x0A0E]) == []
  end

  describe "conntrack" do
    @describetag :nftables

    setup %{netns: netns} do
      rules = "add table ip t; add chain ip t c { type filter hook output priority 0; }"
      in_it!(netns, "nft", [rules <> "; add rule ip t c ct state new accept"])
      :ok
    end

    defp flow!(netns, port),
      do: in_it!(netns, "bash", ["-c", "echo >/dev/udp/127.0.0.1/#{port}; true"])

    defp sysctl!(netns, value) do
      path = "/proc/sys/net/netfilter/nf_conntrack_events"
      in_it!(netns, "sh", ["-c", "echo #{value} >#{path}"])
    end

    # IPCTNL_MSG_CT_GET and IPCTNL_MSG_CT_DELETE, of all; NFNLGRP_CONNTRACK_NEW and _DESTROY
    @get 0x0101
    @delete 0x0102
    @groups [1, 3]
    @dump {@get, <<2, 0, 0, 0>>}

    # The event at the end of a flow that is older than the monitor, and in its snapshot.
    defp ends_told(context, setting) do
      %{netns: netns} = context
      sysctl!(netns, setting)
      flow!(netns, 4_001)
      socket = open!(context, :netfilter)
      monitor = monitor!(context, protocol: :netfilter, groups: @groups, dump: [@dump])
      assert_receive {:netlink_snapshot, ^monitor, [_flow]}
      assert_receive {:netlink_snapshot, ^monitor, :end}
      {:ok, _acked} = NetlinkPort.request(socket, @delete, <<2, 0, 0, 0>>)
      assert NetlinkPort.dump(socket, @get, <<2, 0, 0, 0>>) == {:ok, []}
      flow!(netns, 4_002)
      # IPCTNL_MSG_CT_NEW has the number 0x0100.
      monitor |> told(&(&1.type == 0x0100)) |> types([@delete]) |> length()
    end

    # Without a listener there is no event: findings/conntrack_events_of_any_namespace.sh. Here others may listen.
    test "with nf_conntrack_events 2 the end of an older flow is an event if any namespace had a listener",
         context do
      other = [netns: {:name, netns!()}, groups: @groups]
      {:ok, _listener} = NetlinkPort.open(context.server, :netfilter, other)
      assert ends_told(context, 2) == 1
    end

    test "with nf_conntrack_events 1 the end of a flow older than the monitor is an event",
         context do
      assert ends_told(context, 1) == 1
    end
  end
end
