defmodule Bench.Work do
  @moduledoc false
  # Requests and the reading of answers, the same for the library and for the baseline.

  @getlink 18
  @newroute 24
  @getroute 26

  @doc "RTM_GETLINK of interface 1. With the flags 5 the kernel acks it."
  def getlink(sequence, flags \\ 1) do
    message(@getlink, flags, sequence, <<0::32, 1::32-native, 0::64>>)
  end

  def dump_routes(sequence), do: message(@getroute, 0x301, sequence, <<2, 0::88>>)

  @doc "RTM_NEWROUTE of 10.a.b.c/32 over loopback, create and exclusive; with an ack if asked."
  def new_route(n, sequence, ack?) do
    # struct rtmsg: family, dst_len, src_len, tos, table, protocol (static), scope (link), type, flags
    header = <<2, 32, 0, 0, 254, 4, 253, 1, 0::32>>
    destination = <<8::16-native, 1::16-native, 10, n::24>>
    device = <<8::16-native, 4::16-native, 1::32-native>>
    flags = if ack?, do: 0x605, else: 0x601
    message(@newroute, flags, sequence, [header, destination, device])
  end

  defp message(type, flags, sequence, payload) do
    payload = IO.iodata_to_binary(payload)
    size = 16 + byte_size(payload)

    <<size::32-native, type::16-native, flags::16-native, sequence::32-native, 0::32,
      payload::binary>>
  end

  @doc "Whether a datagram of a dump is its last one. NLMSG_DONE is the last message."
  def last?(<<size::32-native, 3::16-native, _::binary>>) when size >= 16, do: true

  def last?(<<size::32-native, _::binary>> = datagram) when byte_size(datagram) > size do
    last?(binary_part(datagram, size, byte_size(datagram) - size))
  end

  def last?(_datagram), do: false

  @doc "Decodes all routes of a datagram to attributes."
  def decode(
        <<size::32-native, @newroute::16-native, _::binary-size(22),
          attributes::binary-size(size - 28), rest::binary>>
      ) do
    [attributes(attributes) | decode(rest)]
  end

  def decode(_done_or_nothing), do: []

  defp attributes(
         <<size::16-native, type::16-native, value::binary-size(size - 4),
           _::binary-size(rem(4 - rem(size, 4), 4)), rest::binary>>
       ) do
    [{type, value} | attributes(rest)]
  end

  defp attributes(<<>>), do: []
end
