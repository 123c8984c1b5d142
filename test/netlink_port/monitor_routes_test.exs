defmodule NetlinkPort.MonitorRoutesTest do
  # "What the kernel does not tell": after each change, the tables that a subscriber makes of events and of their
  # further effects are those of the kernel.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Mirror, Monitor}

  @moduletag :root

  # RTM_GETLINK; RTM_GETROUTE of IPv4 and IPv6, RTM_GETNEXTHOP with a struct nhmsg
  @dumps [{18, <<0::128>>}, {106, <<0::64>>}, {26, <<2, 0::88>>}, {26, <<10, 0::88>>}]
  # RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_NEXTHOP
  @groups [1, 7, 9, 11, 32]
  # RTNLGRP_IPV4_IFADDR, needed only where a deleted address takes its routes with it without an RTM_DELROUTE.
  @older_kernels [5]

  # Two pairs of veth. The other end of `vb` serves to take its carrier away.
  setup do
    netns = netns!()
    server = start_server!()

    ip_batch!(netns, [
      "link add va type veth peer name pa",
      "link add vb type veth peer name pb",
      "link set va up",
      "link set pa up",
      "link set vb up",
      "link set pb up",
      "addr add 10.0.0.1/24 dev va",
      "addr add 10.0.0.9/24 dev va",
      "addr add 10.0.1.1/24 dev vb",
      "addr add fd00::1/64 dev va nodad",
      "addr add fd00::9/64 dev va nodad",
      "addr add fd01::1/64 dev vb nodad"
    ])

    eventually!(fn -> not (ip!(["-n", netns, "-6", "addr"]) =~ "tentative") end, 10_000)
    opts = [server: server, netns: {:name, netns}, rcvbuf: 1_000_000]
    groups = if linux?(6, 12), do: @groups, else: @older_kernels ++ @groups
    monitor = start_supervised!({Monitor, [groups: groups, dump: @dumps] ++ opts})
    mirror = Mirror.start(monitor)
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
    context = %{netns: netns, mirror: mirror, socket: socket}
    true!(context, "the beginning")
    {:ok, context}
  end

  defp true!(%{mirror: mirror, socket: socket, netns: netns}, change) do
    differences = fn ->
      differences(Mirror.read(mirror).tables || %{}, Mirror.kernel(socket, @dumps))
    end

    try do
      eventually!(fn -> differences.() == [] end)
    rescue
      ExUnit.AssertionError -> assert {change, differences.()} == {change, []}
    end

    assert listed(Mirror.read(mirror).tables) == listed_by_ip(netns)
    # All of it by events: there was only one snapshot.
    assert Mirror.read(mirror).reasons == %{subscribed: 1}
  end

  # The differences between the tables of the mirror and those of the kernel.
  defp differences(tables, kernel) do
    for key <- Enum.uniq(Map.keys(tables) ++ Map.keys(kernel)),
        tables[key] != kernel[key],
        do: {key, tables[key], kernel[key]}
  end

  # Destinations and gateways by ip(8), of the table main.
  defp listed(tables) do
    for {{family, 254, destination, _, _, _}, routes} <- tables, route <- routes do
      gateways = for {_interface, {:ok, gateway}, _weight} <- route.nexthops, do: address(gateway)
      if route.object == :missing, do: {family, address(destination), Enum.sort(gateways)}
    end
    |> Enum.filter(& &1)
    |> Enum.sort()
  end

  defp address({:ok, address}), do: address(address)
  defp address(:missing), do: "default"

  defp address(<<a, b, c, d>>), do: to_string(:inet.ntoa({a, b, c, d}))

  defp address(<<_::128>> = address) do
    words = for <<word::16 <- address>>, do: word
    words |> List.to_tuple() |> :inet.ntoa() |> to_string()
  end

  defp listed_by_ip(netns) do
    for {family, flag} <- [{2, "-4"}, {10, "-6"}],
        route <- String.split(ip!(["-n", netns, "-j", flag, "route"]), ~s("dst":)),
        [_, destination] <- [Regex.run(~r/^"([^"\/]+)/, route)],
        not (route =~ ~s("nhid")) do
      gateways = for [_, gateway] <- Regex.scan(~r/"gateway":"([^"]+)"/, route), do: gateway
      {family, destination, Enum.sort(gateways)}
    end
    |> Enum.sort()
  end

  defp all_true!(context, changes) do
    for change <- changes do
      ip_batch!(context.netns, List.wrap(change))
      true!(context, change)
    end
  end

  test "a deleted nexthop object takes its routes with it", context do
    all_true!(context, [
      [
        "nexthop add id 1 via 10.0.0.2 dev va",
        "nexthop add id 2 via 10.0.1.2 dev vb",
        "nexthop add id 3 group 1/2",
        "nexthop add id 4 group 2",
        "nexthop add id 11 via fd00::2 dev va",
        "nexthop add id 12 via fd01::2 dev vb",
        "nexthop add id 13 group 11/12"
      ],
      [
        "route add 10.9.0.0/24 nhid 1",
        "route add 10.9.1.0/24 nhid 3",
        "route add 10.9.2.0/24 nhid 2",
        "route add 10.9.3.0/24 nhid 4",
        "route add fd09::/64 nhid 11",
        "route add fd10::/64 nhid 13"
      ],
      "nexthop replace id 1 via 10.0.0.5 dev va",
      # The last member of group 4, and one of group 3.
      "nexthop del id 2",
      "nexthop del id 11",
      "nexthop del id 1",
      "nexthop del id 13"
    ])
  end

  test "an interface that loses its carrier takes its nexthop objects with it", context do
    all_true!(context, [
      [
        "nexthop add id 1 via 10.0.0.2 dev va",
        "nexthop add id 2 via 10.0.1.2 dev vb",
        "nexthop add id 3 group 1/2",
        "nexthop add id 12 via fd01::2 dev vb",
        "nexthop add id 13 group 12",
        "route add 10.9.1.0/24 nhid 3",
        "route add 10.9.2.0/24 nhid 2",
        "route add fd09::/64 nhid 12",
        "route add fd10::/64 nhid 13",
        "route add 10.8.0.0/24 via 10.0.1.2"
      ],
      "link set pb down",
      "link set pb up",
      "nexthop add id 2 via 10.0.1.2 dev vb",
      "route add 10.9.2.0/24 nhid 2",
      "link set vb down",
      "link set vb up",
      "link del va"
    ])
  end

  test "a deleted source address leaves IPv6 routes, and takes IPv4 routes with it", context do
    all_true!(context, [
      [
        "route add 10.8.0.0/24 via 10.0.0.2 src 10.0.0.9",
        "route add 10.8.1.0/24 via 10.0.0.2 src 10.0.0.1",
        "route add fd08::/64 via fd00::2 dev va src fd00::9",
        "route add fd07::/64 via fd00::2 dev va src fd00::1"
      ],
      "addr del fd00::9/64 dev va",
      "addr del 10.0.0.9/24 dev va",
      "addr del fd00::1/64 dev va"
    ])
  end

  test "an interface that goes down takes IPv4 routes with it, except those that also use another",
       context do
    all_true!(context, [
      [
        "route add 10.7.0.0/24 nexthop via 10.0.0.2 dev va nexthop via 10.0.1.2 dev vb",
        "route add 10.7.1.0/24 via 10.0.1.2",
        "route add 10.7.2.0/24 nexthop via 10.0.1.2 dev vb weight 2 nexthop via 10.0.1.3 dev vb",
        "route add fd07::/64 nexthop via fd00::2 dev va nexthop via fd01::2 dev vb"
      ],
      "link set vb down",
      "link set vb up",
      "link set vb down",
      "link set va down",
      "link set va up",
      "link set vb up",
      "link del vb"
    ])
  end

  test "IPv4 routes of one key have an order: NLM_F_APPEND, NLM_F_REPLACE and neither",
       context do
    all_true!(context, [
      "route append 10.6.0.0/24 via 10.0.0.2",
      "route append 10.6.0.0/24 via 10.0.0.3",
      "route prepend 10.6.0.0/24 via 10.0.0.4",
      "route replace 10.6.0.0/24 via 10.0.0.5",
      "route append 10.6.0.0/24 nexthop via 10.0.0.6 dev va nexthop via 10.0.1.6 dev vb",
      "route append unreachable 10.6.0.0/24",
      "route add 10.6.0.0/24 via 10.0.0.2 metric 5",
      "route replace 10.6.0.0/24 via 10.0.1.2 metric 5",
      "route add 10.6.0.0/24 via 10.0.0.2 tos 0x10",
      "route del 10.6.0.0/24 via 10.0.0.3",
      "route del 10.6.0.0/24 via 10.0.0.5",
      "route del 10.6.0.0/24",
      "route replace default via 10.0.0.2",
      "route replace default via 10.0.1.2"
    ])
  end

  test "IPv6 routes of one key by gateways are one route with RTA_MULTIPATH", context do
    all_true!(context, [
      "route add fd06::/64 nexthop via fd00::2 dev va nexthop via fd01::2 dev vb",
      "route del fd06::/64 via fd01::2 dev vb",
      "route append fd06::/64 via fd01::3 dev vb",
      "route append fd06::/64 nexthop via fd00::4 dev va nexthop via fd01::4 dev vb",
      "route append fd06::/64 dev vb",
      "route append fd06::/64 dev va",
      "route replace fd06::/64 via fd00::5 dev va",
      # A dump leaves out routes that are between the nexthops of a multipath route. There are none left of these.
      ["route del fd06::/64 via fd00::5", "route append fd06::/64 via fd01::5 dev vb"],
      "route add fd06::/64 via fd01::5 dev vb metric 7",
      "route del fd06::/64 dev va",
      "route del fd06::/64 dev vb metric 1024",
      "route replace fd06::/64 nexthop via fd00::6 dev va nexthop via fd01::6 dev vb",
      "route del fd06::/64 metric 1024",
      "route replace default via fd00::2 dev va",
      "route replace default via fd01::2 dev vb"
    ])
  end

  @tag :vrf
  test "an interface that enters or leaves a VRF loses its IPv4 routes", context do
    all_true!(context, [
      ["link add vrf1 type vrf table 10", "link set vrf1 up"],
      "link set vb master vrf1",
      "route add 10.9.0.0/24 via 10.0.1.2 vrf vrf1",
      "link set vb nomaster",
      "link set vb master vrf1",
      "route add 10.9.1.0/24 via 10.0.1.2 vrf vrf1",
      "link del vrf1"
    ])
  end

  @tag :vrf
  test "a dummy that loses its carrier keeps its routes, and takes its nexthop objects with it",
       context do
    all_true!(context, [
      [
        "link add d0 type dummy",
        "link set d0 up",
        "addr add 10.0.2.1/24 dev d0",
        "addr add fd02::1/64 dev d0 nodad",
        "nexthop add id 1 via 10.0.2.2 dev d0",
        "route add 10.9.0.0/24 via 10.0.2.2",
        "route add 10.9.1.0/24 nhid 1",
        "route add fd09::/64 via fd02::2"
      ],
      "link set d0 carrier off",
      "link set d0 carrier on",
      "link set d0 down",
      "link set d0 up",
      "link del d0"
    ])
  end
end
