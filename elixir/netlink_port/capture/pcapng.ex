defmodule NetlinkPort.Capture.Pcapng do
  @moduledoc false
  # The blocks of a pcapng file that holds netlink datagrams: draft-ietf-opsawg-pcapng, "PCAP Now Generic Capture File
  # Format". Numbers are in the byte order of the machine, as in the messages themselves. Pure functions.
  #
  #     section header      once, first
  #     interface           one a socket, before its first datagram; numbered from 0 in their order
  #     enhanced packet     one a datagram
  #
  # Before each datagram stands the header of LINKTYPE_NETLINK (253), in network byte order
  # (https://www.tcpdump.org/linktypes/LINKTYPE_NETLINK.html):
  #
  #     2  packet type      PACKET_USER or PACKET_KERNEL, as from an nlmon interface
  #     2  ARPHRD_NETLINK
  #     2  address length   none
  #     8  address          none
  #     2  netlink family   NETLINK_ROUTE and so on
  #
  # A block is `type:32, length:32, body, length:32`; an option is `code:16, length:16, value`. Bodies and values are
  # padded to 32 bits. Readers refuse a whole file for one packet beyond their bound (262 144 bytes). So longer
  # datagrams are cut, and the packet tells their full length.

  @section_header 0x0A0D0D0A
  @interface_description 1
  @enhanced_packet 6
  @byte_order_magic 0x1A2B3C4D
  @unknown_length -1

  # Options: of any block, of an interface, of a packet.
  @end_of_options 0
  @comment 1
  @shb_userappl 4
  @if_name 2
  @if_tsresol 9
  @epb_flags 2
  @nanoseconds 9

  @linktype_netlink 253
  # include/uapi/linux/if_arp.h and if_packet.h
  @arphrd_netlink 824
  @packet_user 6
  @packet_kernel 7

  @cooked 16
  @snaplen 262_144
  @longest @snaplen - @cooked

  @type direction :: :in | :out

  @doc "How many bytes of a datagram fit into a packet."
  @spec longest() :: pos_integer()
  def longest, do: @longest

  @doc "The first block."
  @spec section_header() :: binary()
  def section_header do
    body =
      <<@byte_order_magic::32-native, 1::16-native, 0::16-native, @unknown_length::64-native>>

    block(@section_header, [body, options([{@shb_userappl, "netlink_port"}])])
  end

  @doc "The description of the next interface. Its name is UTF-8."
  @spec interface(String.t()) :: binary()
  def interface(name) do
    body = <<@linktype_netlink::16-native, 0::16, @snaplen::32-native>>
    named = [{@if_name, name}, {@if_tsresol, <<@nanoseconds>>}]
    block(@interface_description, [body, options(named)])
  end

  @doc """
  A packet on an interface. `stamp` is in ns since the epoch. `bytes` are the first bytes of the datagram, at most
  `longest/0`, and `length` is its full length. `family` is the number of the protocol.
  """
  @spec datagram(
          non_neg_integer(),
          non_neg_integer(),
          direction(),
          non_neg_integer(),
          {binary(), non_neg_integer()},
          String.t() | nil
        ) :: binary()
  def datagram(interface, stamp, direction, family, {bytes, length}, comment \\ nil) do
    <<high::32, low::32>> = <<stamp::64>>

    fixed =
      <<interface::32-native, high::32-native, low::32-native,
        @cooked + byte_size(bytes)::32-native, @cooked + length::32-native>>

    cooked = <<packet_type(direction)::16, @arphrd_netlink::16, 0::16, 0::64, family::16>>
    flags = {@epb_flags, <<flag(direction)::32-native>>}
    told = if comment, do: [{@comment, comment}, flags], else: [flags]
    block(@enhanced_packet, [fixed, cooked, bytes, padding(byte_size(bytes)), options(told)])
  end

  defp packet_type(:in), do: @packet_user
  defp packet_type(:out), do: @packet_kernel

  defp flag(:in), do: 1
  defp flag(:out), do: 2

  defp block(type, body) do
    length = <<IO.iodata_length(body) + 12::32-native>>
    IO.iodata_to_binary([<<type::32-native>>, length, body, length])
  end

  defp options(options) do
    [Enum.map(options, &option/1), <<@end_of_options::16-native, 0::16>>]
  end

  defp option({code, value}) do
    size = byte_size(value)
    [<<code::16-native, size::16-native>>, value, padding(size)]
  end

  defp padding(size), do: <<0::size(8 * Integer.mod(-size, 4))>>
end
