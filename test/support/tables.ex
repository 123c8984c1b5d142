defmodule NetlinkPort.Tables do
  @moduledoc false
  # Links, routes and nexthop objects, kept up to date from the kernel's events. A message has its own effect, and
  # effects that the kernel sends no event for ("What the kernel does not tell" of NetlinkPort.Monitor).
  #
  # The tables are a map:
  # - of links by index;
  # - of routes by {family, table, destination, length, tos, priority}, in the order of the kernel;
  # - of nexthop objects by id, under :nexthops.
  #
  # Left out are the flags RTNH_F_DEAD and RTNH_F_LINKDOWN, which follow from links, and the nexthops of a route that
  # has a nexthop object.

  alias NetlinkPort.{Attr, Message}

  # RTM_NEWLINK, RTM_DELLINK, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEXTHOP, RTM_DELNEXTHOP
  @newlink 16
  @dellink 17
  @deladdr 21
  @newroute 24
  @delroute 25
  @newnexthop 104
  @delnexthop 105
  @inet 2
  @inet6 10
  # IFF_UP; IFF_RUNNING and IFF_LOWER_UP: one of them is left while there is a carrier.
  @up 1
  @carrier 0x10040
  # RT_SCOPE_HOST
  @host 254

  @doc "Applies a message of an event or of a dump."
  # Ignored are RTM_NEWLINK of the family AF_BRIDGE, which are about ports, and those of AF_UNSPEC without a name,
  # which are not about the whole link.
  def change(
        %{type: @newlink, payload: <<0, _, _::16, index::32-native, rest::binary>>},
        tables
      ) do
    <<flags::32-native, _change::32, attrs::binary>> = rest
    {:ok, attrs} = Attr.decode(attrs)

    case Attr.string(attrs, 3) do
      {:ok, name} ->
        tables = if up?(flags), do: tables, else: down(tables, index)
        tables = if carrier?(flags), do: tables, else: without_nexthops_of(tables, index)
        master = Attr.u32(attrs, 10)
        tables = if vrf_changes?(tables, index, master), do: gone(tables, index), else: tables
        Map.put(tables, index, {name, Attr.u32(attrs, 4), flags, master, kind(attrs)})

      :missing ->
        tables
    end
  end

  def change(%{type: @dellink, payload: <<0, _, _::16, index::32-native, _::binary>>}, tables) do
    tables |> Map.delete(index) |> gone(index) |> without_nexthops_of(index)
  end

  # The kernel removes a deleted IPv6 address from the routes that have it as their source.
  def change(%{type: @deladdr, payload: <<@inet6, _::56, attrs::binary>>}, tables) do
    {:ok, attrs} = Attr.decode(attrs)
    address = Attr.binary(attrs, 1)

    each_route(tables, fn {family, _, _, _, _, _}, route ->
      if family == @inet6 and route.source == address,
        do: [%{route | source: :missing}],
        else: [route]
    end)
  end

  # On Linux 5.10 routes from a deleted IPv4 address go without an RTM_DELROUTE. IFA_LOCAL is 2.
  def change(%{type: @deladdr, payload: <<@inet, _::56, attrs::binary>>}, tables) do
    {:ok, attrs} = Attr.decode(attrs)
    address = Attr.binary(attrs, 2)

    each_route(tables, fn {family, _, _, _, _, _}, route ->
      if family == @inet and route.source == address, do: [], else: [route]
    end)
  end

  def change(%{type: type, payload: <<family, _::88, _::binary>>} = message, tables)
      when type in [@newroute, @delroute] and family in [@inet, @inet6] do
    {key, route} = route(message)
    routes = Map.get(tables, key, [])

    routes =
      if type == @newroute, do: add(family, routes, route, message), else: routes -- [route]

    routes = if type == @delroute and family == @inet6, do: remove6(routes, route), else: routes

    put(tables, key, routes)
  end

  def change(%{type: @newnexthop} = message, tables) do
    {id, nexthop} = nexthop(message)
    put_nexthops(tables, Map.put(nexthops(tables), id, nexthop))
  end

  def change(%{type: @delnexthop} = message, tables) do
    {id, _nexthop} = nexthop(message)
    without_nexthops(tables, [id])
  end

  def change(_other, tables), do: tables

  defp up?(flags), do: Bitwise.band(flags, @up) != 0
  defp carrier?(flags), do: up?(flags) and Bitwise.band(flags, @carrier) != 0

  # IFLA_LINKINFO, IFLA_INFO_KIND
  defp kind(attrs) do
    with {:ok, info} <- Attr.nested(attrs, 18), {:ok, kind} <- Attr.string(info, 1), do: kind
  end

  # An interface that enters or leaves a VRF loses its IPv4 routes, those of the scope host, too.
  defp vrf_changes?(tables, index, master) do
    case tables do
      %{^index => {_name, _mtu, _flags, old, _kind}} when old != master ->
        vrf?(tables, old) or vrf?(tables, master)

      _new_or_same ->
        false
    end
  end

  defp vrf?(tables, {:ok, index}),
    do: match?(%{^index => {_name, _mtu, _flags, _master, "vrf"}}, tables)

  defp vrf?(_tables, :missing), do: false

  ## Routes

  defp route(%{payload: <<family, header::binary-size(11), attrs::binary>>}) do
    <<length, _source, tos, _table, protocol, scope, kind, _flags::32-native>> = header
    {:ok, attrs} = Attr.decode(attrs)
    {:ok, table} = Attr.u32(attrs, 15)
    key = {family, table, Attr.binary(attrs, 1), length, tos, Attr.u32(attrs, 6)}
    id = Attr.u32(attrs, 30)

    route = %{
      protocol: protocol,
      scope: scope,
      kind: kind,
      source: Attr.binary(attrs, 7),
      object: id,
      nexthops: if(id == :missing, do: nexthops(family, attrs), else: [])
    }

    {key, route}
  end

  # {interface, gateway, weight} each. Sorted for IPv6, where their order has no meaning.
  defp nexthops(family, attrs) do
    case Attr.binary(attrs, 9) do
      {:ok, multipath} when family == @inet6 -> Enum.sort(multipath(multipath))
      {:ok, multipath} -> multipath(multipath)
      :missing -> [{Attr.u32(attrs, 4), gateway(attrs), 1}]
    end
  end

  defp multipath(<<>>), do: []

  # struct rtnexthop
  defp multipath(<<length::16-native, _flags, hops, index::32-native, rest::binary>>) do
    {attrs, rest} =
      {binary_part(rest, 0, length - 8),
       binary_part(rest, length - 8, byte_size(rest) - (length - 8))}

    {:ok, attrs} = Attr.decode(attrs)
    [{{:ok, index}, gateway(attrs), hops + 1} | multipath(rest)]
  end

  # RTA_GATEWAY, or RTA_VIA of another family.
  defp gateway(attrs) do
    with :missing <- Attr.binary(attrs, 5), do: Attr.binary(attrs, 18)
  end

  # A message of a dump has only the flag NLM_F_MULTI. Routes of a dump come in the order of the kernel.
  defp add(@inet, routes, route, message) do
    cond do
      Message.flag?(message, :replace) -> [route | Enum.drop(routes, 1) -- [route]]
      route in routes -> routes
      Message.flag?(message, :append) or Message.flag?(message, :multi) -> routes ++ [route]
      true -> [route | routes]
    end
  end

  # The event of a changed nexthop has all nexthops of the route.
  defp add(@inet6, routes, route, message) do
    same? =
      if Message.flag?(message, :replace),
        do: &(several?(&1) == several?(route)),
        else: &same6?(&1, route)

    case Enum.find_index(routes, same?) do
      nil when routes == [] ->
        [route]

      nil ->
        if Message.flag?(message, :replace), do: [route | tl(routes)], else: routes ++ [route]

      n ->
        List.replace_at(routes, n, route)
    end
    |> Enum.sort()
  end

  defp same6?(one, other) do
    (several?(one) and several?(other)) or
      {one.object, one.nexthops} == {other.object, other.nexthops}
  end

  # The kernel joins IPv6 routes that have gateways and the same key to one route.
  defp several?(%{nexthops: [{_interface, gateway, _weight} | _]}), do: gateway != :missing
  defp several?(_object), do: false

  # Removes one nexthop of a route, or all of them.
  defp remove6(routes, removed) do
    Enum.flat_map(routes, fn route ->
      cond do
        several?(route) and several?(removed) -> left(route, route.nexthops -- removed.nexthops)
        same6?(route, removed) -> []
        true -> [route]
      end
    end)
  end

  defp left(_route, []), do: []
  defp left(route, nexthops), do: [%{route | nexthops: nexthops}]

  # The kernel deletes an IPv4 route with the last of its interfaces, without an event. Routes of the scope host are
  # deleted with their address instead. For IPv6 each route has an event.
  defp down(tables, index), do: without(tables, index, &(&1.scope != @host))
  defp gone(tables, index), do: without(tables, index, fn _route -> true end)

  defp without(tables, index, goes?) do
    for {{@inet, _, _, _, _, _} = key, routes} <- tables,
        Enum.any?(routes, &dead?(&1, tables, index)),
        reduce: tables do
      tables -> put(tables, key, Enum.reject(routes, &(goes?.(&1) and dead?(&1, tables, index))))
    end
  end

  # The usual case first, since all routes are checked when a link goes down.
  defp dead?(%{nexthops: [{interface, _gateway, _weight}]}, _tables, index),
    do: interface == {:ok, index}

  defp dead?(%{nexthops: nexthops}, tables, index) do
    List.keymember?(nexthops, {:ok, index}, 0) and
      Enum.all?(nexthops, fn {{:ok, other}, _gateway, _weight} ->
        other == index or not up_there?(tables, other)
      end)
  end

  defp up_there?(tables, index) do
    case tables do
      %{^index => {_name, _mtu, flags, _master, _kind}} -> up?(flags)
      _gone -> false
    end
  end

  defp each_route(tables, fun) do
    for {key, routes} <- tables, tuple_size_of(key) == 6, reduce: tables do
      tables ->
        case Enum.flat_map(routes, &fun.(key, &1)) do
          ^routes -> tables
          left -> put(tables, key, left)
        end
    end
  end

  defp tuple_size_of(key), do: if(is_tuple(key), do: tuple_size(key), else: 0)
  defp put(tables, key, []), do: Map.delete(tables, key)
  defp put(tables, key, routes), do: Map.put(tables, key, routes)

  ## Nexthop objects

  defp nexthop(%{payload: <<family, _scope, _protocol, _reserved, _flags::32, attrs::binary>>}) do
    {:ok, attrs} = Attr.decode(attrs)
    {:ok, id} = Attr.u32(attrs, 1)

    members =
      case Attr.binary(attrs, 2) do
        {:ok, group} -> for <<id::32-native, weight, _::24 <- group>>, do: {id, weight}
        :missing -> nil
      end

    {id, {family, members, Attr.u32(attrs, 5), Attr.binary(attrs, 6)}}
  end

  defp nexthops(tables), do: Map.get(tables, :nexthops, %{})

  defp put_nexthops(tables, none) when none == %{}, do: Map.delete(tables, :nexthops)
  defp put_nexthops(tables, nexthops), do: Map.put(tables, :nexthops, nexthops)

  defp without_nexthops_of(tables, index) do
    ids = for {id, {_family, _members, {:ok, ^index}, _gateway}} <- nexthops(tables), do: id
    without_nexthops(tables, ids)
  end

  # The kernel deletes the routes of a nexthop object with the object, and a group with its last member.
  defp without_nexthops(tables, []), do: tables

  defp without_nexthops(tables, ids) do
    left =
      for {id, {family, members, interface, gateway}} <- Map.drop(nexthops(tables), ids) do
        {id, {family, members && Enum.reject(members, &(elem(&1, 0) in ids)), interface, gateway}}
      end

    tables
    |> put_nexthops(Map.new(left))
    |> each_route(fn _key, route ->
      case route.object do
        {:ok, id} -> if id in ids, do: [], else: [route]
        :missing -> [route]
      end
    end)
    |> without_nexthops(for {id, {_family, [], _interface, _gateway}} <- left, do: id)
  end
end
