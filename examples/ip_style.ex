defmodule Examples.IpStyle do
  @moduledoc """
  Formats the items of `Examples.Rtnetlink` like the lines of `ip -br link`, `ip -br addr`, `ip route` and
  `ip monitor`.

  Messages name links by index: `names` is a map of index to name, see `learn/2`.
  """

  import Bitwise

  @link_flags [
    {0x8, "LOOPBACK"},
    {0x2, "BROADCAST"},
    {0x10, "POINTOPOINT"},
    {0x1000, "MULTICAST"},
    {0x80, "NOARP"},
    {0x200, "ALLMULTI"},
    {0x100, "PROMISC"},
    {0x400, "MASTER"},
    {0x800, "SLAVE"},
    {0x1, "UP"},
    {0x10000, "LOWER_UP"},
    {0x20000, "DORMANT"}
  ]
  @up 0x1
  @running 0x40

  @route_types %{
    2 => "local",
    6 => "blackhole",
    7 => "unreachable",
    8 => "prohibit",
    9 => "throw"
  }
  @route_protocols %{1 => "redirect", 2 => "kernel", 4 => "static", 9 => "ra", 16 => "dhcp"}
  @route_flags [{1, "dead"}, {4, "onlink"}, {16, "linkdown"}]
  @preferences %{<<0>> => "medium", <<1>> => "high", <<3>> => "low"}
  @scopes %{0 => "global", 200 => "site", 253 => "link", 254 => "host"}

  @unicast 1
  @boot 3

  @doc "Adds the links among `items` to `names`."
  def learn(names, items) do
    for %{kind: :link, index: index, name: name} <- items, into: names, do: {index, name}
  end

  @doc "A line for each link, like `ip -br link`."
  def links(list) do
    names = learn(%{}, list.links)
    Enum.map(list.links, &link(&1, names))
  end

  @doc "A line for each link with its addresses, like `ip -br addr`."
  def addresses(list) do
    names = learn(%{}, list.links)

    for link <- list.links do
      addresses =
        for %{index: index} = address <- list.addresses, index == link.index, do: address

      String.trim_trailing(columns(link, names) <> Enum.map_join(addresses, " ", &address/1))
    end
  end

  @doc "A line for each route, like `ip route` and then `ip -6 route`."
  def routes(list) do
    names = learn(%{}, list.links)
    Enum.map(list.routes, &route(&1, names))
  end

  @doc "The line of an event, like `ip monitor`."
  def event({:new, item}, names), do: labelled(item, names)
  def event({:deleted, item}, names), do: "deleted " <> labelled(item, names)

  defp labelled(%{kind: :link} = link, names), do: "link " <> link(link, names)
  defp labelled(%{kind: :route} = route, names), do: "route " <> route(route, names)

  defp labelled(%{kind: :address} = address, names) do
    device = address.label || name(address.index, names)
    "address #{address(address)} dev #{device} scope #{word(@scopes, address.scope)}"
  end

  defp link(link, names) do
    carrier = if (link.flags &&& (@up ||| @running)) == @up, do: ["NO-CARRIER"], else: []
    flags = carrier ++ flags(link.flags, @link_flags)
    "#{columns(link, names)}#{mac(link.mac)} <#{Enum.join(flags, ",")}>"
  end

  defp columns(link, names) do
    String.pad_trailing(link.name <> peer(link, names), 16) <>
      " " <> String.pad_trailing(link.state, 15)
  end

  defp peer(%{peer: nil}, _names), do: ""
  defp peer(%{peer: 0}, _names), do: "@NONE"
  defp peer(%{peer: index, peer_elsewhere?: true}, _names), do: "@if#{index}"
  defp peer(%{peer: index}, names), do: "@" <> name(index, names)

  defp mac(nil), do: ""
  defp mac(bytes), do: for(<<byte <- bytes>>, do: hex(byte)) |> Enum.join(":")
  defp hex(byte), do: Base.encode16(<<byte>>, case: :lower)

  defp address(%{peer: nil} = address), do: "#{address.address}/#{address.prefix}"
  defp address(address), do: "#{address.address} peer #{address.peer}/#{address.prefix}"

  defp route(route, names) do
    [
      if(route.type != @unicast, do: word(@route_types, route.type)),
      route.destination,
      hops(route.hops, names),
      if(route.protocol != @boot, do: ["proto", word(@route_protocols, route.protocol)]),
      if(route.scope != 0, do: ["scope", word(@scopes, route.scope)]),
      if(route.source, do: ["src", route.source]),
      if(route.metric, do: ["metric", "#{route.metric}"]),
      flags(route.flags, @route_flags),
      if(route.preference, do: ["pref", word(@preferences, route.preference)])
    ]
    |> List.flatten()
    |> Enum.reject(&is_nil/1)
    |> Enum.join(" ")
  end

  defp hops([hop], names), do: hop(hop, names)
  defp hops(hops, names), do: for(hop <- hops, do: ["nexthop", hop(hop, names)])

  defp hop(%{index: index, gateway: gateway}, names) do
    [
      if(gateway, do: ["via", gateway]),
      if(index, do: ["dev", name(index, names)])
    ]
  end

  defp name(index, names), do: Map.get(names, index, "if#{index}")
  defp flags(flags, known), do: for({bit, word} <- known, (flags &&& bit) != 0, do: word)
  defp word(known, number), do: Map.get(known, number, inspect(number))
end
