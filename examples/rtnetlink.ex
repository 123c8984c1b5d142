defmodule Examples.Rtnetlink do
  @moduledoc """
  As much of rtnetlink(7) as the examples need: links, addresses and the routes of the main table,
  listed or followed as events.

  An item is a map with a `:kind`: `:link`, `:address` or `:route`. An event is
  `{:new | :deleted, item}`; `:new` stands for changes, too.
  """

  import Bitwise

  @error 2
  @done 3
  @changes %{
    16 => {:new, :link},
    17 => {:deleted, :link},
    20 => {:new, :address},
    21 => {:deleted, :address},
    24 => {:new, :route},
    25 => {:deleted, :route}
  }

  # The type of a request, and the size of the header that follows.
  @dumps %{link: {18, 16}, address: {22, 8}, route: {26, 12}}
  @request_and_dump 0x301
  @dump_interrupted 0x10

  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR and IPV6_ROUTE
  @groups [1, 5, 7, 9, 11]

  @unspec 0
  @inet 2
  @inet6 10
  @main_table 254
  @cached_route 0x200

  @states {"UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP"}

  ## Asking

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

  @doc "All items of a kind. The socket must be passive and in no group."
  def dump(socket, kind, attempts \\ 5) do
    sequence = System.unique_integer([:positive]) &&& 0xFFFFFFFF

    with :ok <- NetlinkPort.send(socket, dump_request(kind, sequence)),
         {:ok, answers} <- collect(socket, sequence, []) do
      cond do
        not Enum.any?(answers, &((&1.flags &&& @dump_interrupted) != 0)) ->
          {:ok, for(answer <- answers, {:new, item} <- decode(answer), do: item)}

        attempts > 1 ->
          dump(socket, kind, attempts - 1)

        true ->
          {:error, %RuntimeError{message: "the kernel's list of #{kind}s keeps changing"}}
      end
    end
  end

  defp dump_request(kind, sequence) do
    {type, size} = Map.fetch!(@dumps, kind)

    <<16 + size::native-32, type::native-16, @request_and_dump::native-16, sequence::native-32,
      0::32, @unspec, 0::size(size - 1)-unit(8)>>
  end

  # The end of a dump is the last message of its datagram, alone or after items.
  defp collect(socket, sequence, collected) do
    with {:ok, datagram} <- NetlinkPort.recv(socket, 5_000) do
      answers = Enum.filter(messages(datagram), &(&1.sequence == sequence))
      collected = [answers | collected]

      case List.last(answers) do
        %{type: type, payload: <<errno::native-signed-32, _rest::binary>>}
        when type in [@error, @done] ->
          if errno == 0, do: {:ok, in_order(collected)}, else: {:error, refusal(errno)}

        _more ->
          collect(socket, sequence, collected)
      end
    end
  end

  defp in_order(collected), do: collected |> Enum.reverse() |> Enum.concat()
  defp refusal(errno), do: %RuntimeError{message: "the kernel refused: errno #{-errno}"}

  ## Following

  @doc """
  Opens a socket that sends the events of a namespace to the calling process. While no server runs
  it tries again for 5 seconds, so that a supervisor can restart it.
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

  @doc "The events of a datagram."
  def events(datagram), do: datagram |> messages() |> Enum.flat_map(&decode/1)

  ## Messages

  defp messages(<<>>), do: []

  defp messages(<<length::native-32, type::native-16, flags::native-16, rest::binary>>) do
    <<sequence::native-32, _port_id::32, rest::binary>> = rest
    {payload, rest} = take(rest, length - 16)
    [%{type: type, flags: flags, sequence: sequence, payload: payload} | messages(rest)]
  end

  defp attributes(binary), do: binary |> attribute_list() |> Map.new()

  defp attribute_list(<<>>), do: []

  # The two highest bits of the type are flags.
  defp attribute_list(<<length::native-16, type::native-16, rest::binary>>) do
    {value, rest} = take(rest, length - 4)
    [{type &&& 0x3FFF, value} | attribute_list(rest)]
  end

  # Messages and attributes start at multiples of 4 bytes; their lengths do not count the padding.
  defp take(binary, length) do
    <<taken::binary-size(length), rest::binary>> = binary
    padding = min(rem(4 - rem(length, 4), 4), byte_size(rest))
    <<_padding::binary-size(padding), rest::binary>> = rest
    {taken, rest}
  end

  ## Items

  defp decode(%{type: type, payload: payload}) do
    case @changes do
      %{^type => {change, kind}} -> for item <- item(kind, payload), do: {change, item}
      _other -> []
    end
  end

  # Of the family of bridges are the ports of a bridge: one that is deleted is still a link.
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
        # The index of the link at the other end or below, here or in another namespace.
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

  defp multipath(<<length::native-16, _::16, index::native-32, rest::binary>>) do
    {attributes, rest} = take(rest, length - 8)
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

  # A name can hold almost any byte.
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
