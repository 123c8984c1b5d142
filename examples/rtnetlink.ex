defmodule Examples.Rtnetlink do
  @moduledoc """
  The parts of rtnetlink(7) that the examples need: links, addresses and the routes of the main table, listed or
  followed as events.

  An item is a map with a `:kind`: `:link`, `:address` or `:route`. An event is `{:new | :deleted, item}`. A change is
  `:new`, too.
  """

  alias NetlinkPort.{Attr, Message}

  import Bitwise

  @changes %{
    16 => {:new, :link},
    17 => {:deleted, :link},
    20 => {:new, :address},
    21 => {:deleted, :address},
    24 => {:new, :route},
    25 => {:deleted, :route}
  }

  # The type of a request, and a header of the family AF_UNSPEC, which stands for all.
  @dumps [link: {18, <<0::128>>}, address: {22, <<0::64>>}, route: {26, <<0::96>>}]

  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR and IPV6_ROUTE
  @groups [1, 5, 7, 9, 11]

  @unspec 0
  @inet 2
  @inet6 10
  @main_table 254
  @cached_route 0x200

  @states {"UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP"}

  ## Asking

  @doc "The requests that dump links, addresses and routes, in this order."
  def dumps, do: Keyword.values(@dumps)

  @doc "All links, addresses and routes of a namespace, in the order of the kernel."
  def list(netns) do
    with {:ok, socket} <- NetlinkPort.open(:route, netns: netns, active: false) do
      try do
        with {:ok, links} <- dump(socket, :link),
             {:ok, addresses} <- dump(socket, :address),
             {:ok, routes} <- dump(socket, :route) do
          {:ok, %{links: links, addresses: addresses, routes: routes}}
        end
      after
        NetlinkPort.close(socket)
      end
    end
  end

  defp dump(socket, kind) do
    {type, header} = @dumps[kind]

    with {:ok, messages} <- NetlinkPort.dump(socket, type, header) do
      {:ok, for({:new, item} <- changes(messages), do: item)}
    end
  end

  ## Following

  @doc """
  Opens a socket that sends the events of a namespace to the calling process. If no server runs, it tries again for
  5 seconds, so that a supervisor can restart the server.
  """
  def subscribe(netns, attempts \\ 100) do
    case NetlinkPort.open(:route, netns: netns, groups: @groups) do
      {:error, %{stage: :thread}} when attempts > 1 ->
        Process.sleep(50)
        subscribe(netns, attempts - 1)

      result ->
        result
    end
  end

  @doc "The groups of the events about links, addresses and routes."
  def groups, do: @groups

  @doc "The events of a datagram."
  def events(datagram) do
    {:ok, messages} = Message.decode(datagram)
    changes(messages)
  end

  @doc "The events of messages."
  def changes(messages), do: Enum.flat_map(messages, &decode/1)

  defp attributes(binary) do
    {:ok, attrs} = Attr.decode(binary)
    Map.new(attrs)
  end

  ## Items

  defp decode(%{type: type, payload: payload}) do
    case @changes do
      %{^type => {change, kind}} -> for item <- item(kind, payload), do: {change, item}
      _other -> []
    end
  end

  # Messages of the family AF_BRIDGE are about ports of a bridge. A port that is deleted is still a link.
  defp item(:link, <<@unspec, _, _::16, index::native-32, flags::native-32, _::32, rest::binary>>) do
    attributes = attributes(rest)

    [
      %{
        kind: :link,
        index: index,
        name: string(attributes[3]),
        flags: flags,
        mac: attributes[1],
        mtu: number(attributes[4]),
        state: state(attributes[16]),
        # The index of the link at the other end or below, in this or another namespace.
        peer: number(attributes[5]),
        peer_elsewhere?: is_map_key(attributes, 37)
      }
    ]
  end

  defp item(:address, <<family, prefix, _flags, scope, index::native-32, rest::binary>>)
       when family in [@inet, @inet6] do
    attributes = attributes(rest)
    address = ip(attributes[2] || attributes[1])
    peer = ip(attributes[1])

    [
      %{
        kind: :address,
        index: index,
        address: address,
        prefix: prefix,
        peer: if(peer != address, do: peer),
        scope: scope,
        label: string(attributes[3])
      }
    ]
  end

  defp item(:route, <<family, prefix, _::24, protocol, scope, type, rest::binary>>)
       when family in [@inet, @inet6] do
    <<flags::native-32, rest::binary>> = rest
    attributes = attributes(rest)
    main? = number(attributes[15]) == @main_table and (flags &&& @cached_route) == 0

    route = %{
      kind: :route,
      type: type,
      destination: destination(attributes[1], prefix),
      hops: hops(attributes),
      protocol: protocol,
      scope: scope,
      source: ip(attributes[7]),
      metric: number(attributes[6]),
      flags: flags,
      preference: attributes[20]
    }

    if main?, do: [route], else: []
  end

  defp item(_kind, _payload), do: []

  defp hops(%{9 => multipath}), do: multipath(multipath)
  defp hops(attributes), do: [hop(number(attributes[4]), attributes)]

  defp multipath(<<>>), do: []

  # struct rtnexthop and its attributes, at multiples of 4 bytes.
  defp multipath(
         <<length::native-16, _::16, index::native-32, attributes::binary-size(length - 8),
           rest::binary>>
       ) do
    padding = min(-length &&& 3, byte_size(rest))
    rest = binary_part(rest, padding, byte_size(rest) - padding)
    [hop(index, attributes(attributes)) | multipath(rest)]
  end

  # An IPv4 route may have an IPv6 gateway.
  defp hop(index, %{18 => <<@inet6::native-16, gateway::binary>>}) do
    %{index: index, gateway: "inet6 " <> ip(gateway)}
  end

  defp hop(index, attributes), do: %{index: index, gateway: ip(attributes[5])}

  ## Values, `nil` for those that are not given

  defp number(nil), do: nil
  defp number(<<number::native-32>>), do: number

  defp state(nil), do: "UNKNOWN"
  defp state(<<state>>), do: elem(@states, state)

  # A name can contain almost any byte.
  defp string(nil), do: nil

  defp string(bytes) do
    name = String.trim_trailing(bytes, <<0>>)
    if String.printable?(name), do: name, else: inspect(name)
  end

  defp destination(nil, 0), do: "default"
  defp destination(bytes, prefix) when prefix == bit_size(bytes), do: ip(bytes)
  defp destination(bytes, prefix), do: "#{ip(bytes)}/#{prefix}"

  defp ip(nil), do: nil
  defp ip(<<a, b, c, d>>), do: ntoa({a, b, c, d})
  defp ip(bytes), do: for(<<word::16 <- bytes>>, do: word) |> List.to_tuple() |> ntoa()

  defp ntoa(address), do: address |> :inet.ntoa() |> List.to_string()
end
