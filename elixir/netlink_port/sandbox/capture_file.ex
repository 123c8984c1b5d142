defmodule NetlinkPort.Sandbox.CaptureFile do
  @moduledoc false
  # Reads the netlink datagrams of a capture file: pcapng (draft-ietf-opsawg-pcapng, as `NetlinkPort.Capture.Pcapng`
  # writes it) and pcap (draft-ietf-opsawg-pcap), in either byte order. Pure functions.
  #
  #
  #     pcap     magic:32 | major:16 | minor:16 | 0:64 | snaplen:32 | link type:32
  #     packet   seconds:32 | fraction:32 | captured:32 | length:32 | bytes
  #
  # LINKTYPE_NETLINK has a header of 16 bytes before each datagram, in network byte order: packet type, ARPHRD,
  # address length, address (8), netlink protocol.

  alias NetlinkPort.DecodeError

  @linktype_netlink 253
  @cooked 16
  # include/uapi/linux/if_packet.h
  @packet_user 6
  @packet_kernel 7

  # https://www.tcpdump.org/linktypes.html
  @linktypes %{
    0 => "BSD loopback",
    1 => "Ethernet",
    101 => "raw IP",
    105 => "IEEE 802.11",
    113 => "Linux cooked v1",
    127 => "radiotap",
    228 => "raw IPv4",
    229 => "raw IPv6",
    276 => "Linux cooked v2"
  }

  @type packet :: %{
          time: integer() | nil,
          direction: :in | :out | nil,
          protocol: non_neg_integer() | nil,
          interface: String.t() | nil,
          bytes: binary(),
          length: non_neg_integer(),
          offset: non_neg_integer()
        }

  @doc """
  The datagrams in order, and whether the file ends in the middle of a packet. Times are in ns. Packets of interfaces
  with another link type are left out, but a file with no netlink interface at all is an error.
  """
  @spec read(binary()) :: {:ok, [packet()], boolean()} | {:error, DecodeError.t()}
  def read(<<0x0A0D0D0A::32, _::binary>> = bytes), do: pcapng(bytes)
  def read(<<0xA1B2C3D4::32, _::binary>> = bytes), do: pcap(bytes, :big, 1_000)
  def read(<<0xD4C3B2A1::32, _::binary>> = bytes), do: pcap(bytes, :little, 1_000)
  def read(<<0xA1B23C4D::32, _::binary>> = bytes), do: pcap(bytes, :big, 1)
  def read(<<0x4D3CB2A1::32, _::binary>> = bytes), do: pcap(bytes, :little, 1)
  def read(<<>>), do: error(0, "it is empty")

  def read(<<0x1F, 0x8B, _::binary>>),
    do: error(0, "it is compressed by gzip(1): unpack it first")

  def read(<<0x28B52FFD::32, _::binary>>),
    do: error(0, "it is compressed by zstd(1): unpack it first")

  def read(<<"snoop", 0, _::binary>>),
    do: error(0, "it is a snoop file, and neither pcapng nor pcap: convert it by editcap(1)")

  def read(_other),
    do: error(0, "it is neither pcapng nor pcap, which Wireshark and tcpdump write")

  defp error(offset, reason),
    do: {:error, %DecodeError{what: :capture, offset: offset, reason: reason}}

  defp other_link_type(offset, type) do
    name = Map.get(@linktypes, type, "unknown here")

    error(
      offset,
      "its link type is #{type} (#{name}), and not LINKTYPE_NETLINK (253): capture on an interface of type nlmon"
    )
  end

  ## Numbers in a byte order

  defp u16(:big, <<n::16-big, _::binary>>), do: n
  defp u16(:little, <<n::16-little, _::binary>>), do: n
  defp u32(:big, <<n::32-big, _::binary>>), do: n
  defp u32(:little, <<n::32-little, _::binary>>), do: n

  defp words(order, binary), do: for(<<word::binary-4 <- binary>>, do: u32(order, word))

  ## pcap

  defp pcap(<<header::binary-24, rest::binary>>, order, unit) do
    # The upper four bits are about a frame check sequence.
    case Bitwise.band(u32(order, binary_part(header, 20, 4)), 0x0FFFFFFF) do
      @linktype_netlink -> records(rest, 24, order, unit, [])
      other -> other_link_type(20, other)
    end
  end

  defp pcap(_cut, _order, _unit), do: error(0, "its header is cut")

  defp records(<<>>, _offset, _order, _unit, packets), do: {:ok, Enum.reverse(packets), false}

  defp records(<<head::binary-16, rest::binary>>, offset, order, unit, packets) do
    [seconds, fraction, captured, length] = words(order, head)

    if byte_size(rest) >= captured do
      {bytes, rest} = :erlang.split_binary(rest, captured)
      time = seconds * 1_000_000_000 + fraction * unit
      known = %{time: time, interface: nil, direction: nil, offset: offset}

      with packet when is_map(packet) <- packet(bytes, length, known),
           do: records(rest, offset + 16 + captured, order, unit, [packet | packets])
    else
      {:ok, Enum.reverse(packets), true}
    end
  end

  defp records(_cut, _offset, _order, _unit, packets), do: {:ok, Enum.reverse(packets), true}

  ## The header of LINKTYPE_NETLINK

  defp packet(<<type::16, _arphrd::16, _address::80, protocol::16, bytes::binary>>, length, known) do
    direction = direction(type) || known.direction

    Map.merge(known, %{
      direction: direction,
      protocol: protocol,
      bytes: bytes,
      length: length - @cooked
    })
  end

  # A packet that is cut within this header: nothing of the datagram is there, and its protocol is unknown.
  defp packet(cut, length, known) when length >= @cooked do
    direction = with(<<type::16, _::binary>> <- cut, do: direction(type), else: (_ -> nil))

    Map.merge(known, %{
      direction: direction || known.direction,
      protocol: nil,
      bytes: "",
      length: length - @cooked
    })
  end

  defp packet(_whole, length, known) do
    error(
      known.offset,
      "a packet has #{length} bytes, fewer than the #{@cooked} of the header of LINKTYPE_NETLINK"
    )
  end

  # A packet on nlmon may also be PACKET_OUTGOING, which tells no direction.
  defp direction(@packet_user), do: :in
  defp direction(@packet_kernel), do: :out
  defp direction(_other), do: nil

  ## pcapng

  @section 0x0A0D0D0A
  @interface 1
  @old_packet 2
  @simple_packet 3
  @enhanced_packet 6

  @name 2
  @tsresol 9
  @tsoffset 14
  @flags 2

  # `interfaces` are those of the section by number. A capture has an interface for each socket, so there may be very many.
  defp pcapng(bytes) do
    blocks(bytes, 0, %{order: nil, interfaces: %{}, packets: [], refused: nil, netlink?: false})
  end

  defp blocks(<<>>, _offset, state), do: done(state, false)

  # The magic, which follows the length, tells the byte order of both.
  defp blocks(
         <<@section::32, _length::binary-4, magic::binary-4, _::binary>> = bytes,
         offset,
         state
       ) do
    case magic do
      <<0x1A2B3C4D::32>> -> block(bytes, offset, %{state | order: :big, interfaces: %{}})
      <<0x4D3C2B1A::32>> -> block(bytes, offset, %{state | order: :little, interfaces: %{}})
      _other -> error(offset, "its byte order is unknown")
    end
  end

  defp blocks(bytes, offset, state), do: block(bytes, offset, state)

  # The first block, cut before the magic.
  defp block(_cut, _offset, %{order: nil} = state), do: done(state, true)

  defp block(<<head::binary-8, rest::binary>> = bytes, offset, %{order: order} = state) do
    [type, length] = words(order, head)

    cond do
      length < 12 or rem(length, 4) != 0 ->
        error(offset, "a block says that it has #{length} bytes")

      byte_size(bytes) < length ->
        done(state, true)

      true ->
        body = binary_part(rest, 0, length - 12)
        # The length stands once more behind the body.
        rest = binary_part(rest, length - 8, byte_size(rest) - (length - 8))

        case one(type, body, %{state | order: order}, offset) do
          {:error, error} -> {:error, error}
          state -> blocks(rest, offset + length, state)
        end
    end
  end

  defp block(_cut, _offset, state), do: done(state, true)

  # A file with neither packets nor interfaces counts as a netlink file.
  defp done(%{refused: {offset, type}, netlink?: false}, _truncated?),
    do: other_link_type(offset, type)

  defp done(state, truncated?), do: {:ok, Enum.reverse(state.packets), truncated?}

  defp one(
         @interface,
         <<link::binary-2, _::binary-2, snaplen::binary-4, options::binary>>,
         state,
         offset
       ) do
    type = u16(state.order, link)
    options = options(options, state.order)

    interface = %{
      netlink?: type == @linktype_netlink,
      snaplen: u32(state.order, snaplen),
      name: options[@name],
      unit: unit(options[@tsresol]),
      offset: tsoffset(options[@tsoffset], state.order)
    }

    refused = if interface.netlink?, do: state.refused, else: state.refused || {offset, type}
    netlink? = state.netlink? or interface.netlink?
    interfaces = Map.put(state.interfaces, map_size(state.interfaces), interface)
    %{state | interfaces: interfaces, refused: refused, netlink?: netlink?}
  end

  defp one(@enhanced_packet, <<head::binary-20, rest::binary>>, state, offset) do
    [interface, high, low, captured, length] = words(state.order, head)
    enhanced(interface, {high, low}, captured, length, rest, state, offset)
  end

  defp one(
         @old_packet,
         <<interface::binary-2, _drops::binary-2, head::binary-16, rest::binary>>,
         state,
         offset
       ) do
    [high, low, captured, length] = words(state.order, head)
    enhanced(u16(state.order, interface), {high, low}, captured, length, rest, state, offset)
  end

  # A simple packet has no time, and no captured length: that follows from the snaplen of the first interface.
  defp one(@simple_packet, <<length::binary-4, rest::binary>>, state, offset) do
    length = u32(state.order, length)

    snaplen =
      with %{snaplen: snaplen} when snaplen > 0 <- state.interfaces[0],
           do: snaplen,
           else: (_ -> length)

    enhanced(0, nil, min(length, snaplen), length, rest, state, offset)
  end

  defp one(_other, _body, state, _offset), do: state

  defp enhanced(number, time, captured, length, rest, state, offset) do
    padded = captured + Integer.mod(-captured, 4)

    case {state.interfaces[number], rest} do
      {nil, _rest} ->
        error(offset, "a packet is of interface #{number}, which is not described")

      {%{netlink?: false}, _rest} ->
        state

      {interface, _rest} when byte_size(rest) >= padded ->
        bytes = binary_part(rest, 0, captured)
        options = rest |> binary_part(padded, byte_size(rest) - padded) |> options(state.order)

        known = %{
          time: time && nanoseconds(time, interface),
          interface: interface.name,
          direction: flagged(options[@flags], state.order),
          offset: offset
        }

        with packet when is_map(packet) <- packet(bytes, length, known),
             do: %{state | packets: [packet | state.packets]}

      _short ->
        error(offset, "a packet says that it has #{captured} bytes, and its block has fewer")
    end
  end

  # The lower two bits: 1 is inbound, 2 is outbound.
  defp flagged(nil, _order), do: nil

  defp flagged(value, order) when byte_size(value) >= 4 do
    case Bitwise.band(u32(order, value), 3) do
      1 -> :in
      2 -> :out
      _not_told -> nil
    end
  end

  defp flagged(_cut, _order), do: nil

  # The number of time units in a second, as a power of two or of ten.
  defp unit(<<1::1, power::7>>), do: Bitwise.bsl(1, power)
  defp unit(<<0::1, power::7>>), do: Integer.pow(10, power)
  defp unit(_microseconds), do: 1_000_000

  defp tsoffset(<<seconds::64-signed-big>>, :big), do: seconds
  defp tsoffset(<<seconds::64-signed-little>>, :little), do: seconds
  defp tsoffset(_none, _order), do: 0

  defp nanoseconds({high, low}, interface) do
    <<count::64>> = <<high::32, low::32>>
    div(count * 1_000_000_000, interface.unit) + interface.offset * 1_000_000_000
  end

  # Of several options with one code the first counts.
  defp options(<<code::binary-2, size::binary-2, rest::binary>>, order) do
    {code, size} = {u16(order, code), u16(order, size)}
    padded = size + Integer.mod(-size, 4)

    case rest do
      _end when code == 0 ->
        %{}

      _more when byte_size(rest) >= padded ->
        value = binary_part(rest, 0, size)
        next = binary_part(rest, padded, byte_size(rest) - padded)
        next |> options(order) |> Map.put(code, value)

      _cut ->
        %{}
    end
  end

  defp options(_none, _order), do: %{}
end
