defmodule NetlinkPort.Rtnl do
  @moduledoc false
  # The parts of rtnetlink(7) that tests need: requests, and the headers of answers.

  @request 1
  @dump 0x300
  @ack 4

  @newlink 16
  @getlink 18
  @getroute 26

  def newlink, do: @newlink

  @doc "A message: struct nlmsghdr and its payload, in the byte order of the machine."
  def message(type, flags, sequence, payload) do
    size = 16 + byte_size(payload)

    <<size::32-native, type::16-native, flags::16-native, sequence::32-native, 0::32,
      payload::binary>>
  end

  @doc "RTM_GETLINK of one link."
  def getlink(index, sequence) do
    message(@getlink, @request, sequence, <<0::32, index::32-native, 0::64>>)
  end

  @doc "RTM_GETLINK of all links."
  def dump_links(sequence),
    do: message(@getlink, Bitwise.bor(@request, @dump), sequence, <<0::128>>)

  @doc "RTM_GETROUTE of all IPv4 routes."
  def dump_routes(sequence) do
    message(@getroute, Bitwise.bor(@request, @dump), sequence, <<2, 0::88>>)
  end

  @doc "RTM_NEWLINK that makes a bridge: IFLA_IFNAME (3), and IFLA_LINKINFO (18) of kind `bridge`."
  def new_bridge(name, sequence) do
    kind = attribute(1, "bridge" <> <<0>>)
    attributes = attribute(3, name <> <<0>>) <> attribute(18, kind)
    message(@newlink, 0x401, sequence, <<0::128>> <> attributes)
  end

  defp attribute(type, value) do
    size = 4 + byte_size(value)
    padding = 8 * rem(4 - rem(size, 4), 4)
    <<size::16-native, type::16-native, value::binary, 0::size(padding)>>
  end

  @doc "NLMSG_NOOP with NLM_F_ACK, which every protocol answers by NLMSG_ERROR."
  def noop(sequence), do: message(1, Bitwise.bor(@request, @ack), sequence, <<>>)

  @doc "The messages of a datagram, as `{type, sequence, payload}`."
  def messages(
        <<size::32-native, type::16-native, _::16, sequence::32-native, _::32,
          payload::binary-size(size - 16), rest::binary>>
      ) do
    padding = rem(4 - rem(size, 4), 4)
    rest = binary_part(rest, min(padding, byte_size(rest)), max(byte_size(rest) - padding, 0))
    [{type, sequence, payload} | messages(rest)]
  end

  def messages(<<>>), do: []

  @doc "The name in an RTM_NEWLINK payload (attribute IFLA_IFNAME, 3)."
  def link_name(<<_header::128, attributes::binary>>) do
    attributes |> find(3) |> String.trim_trailing(<<0>>)
  end

  @doc "The destination of an IPv4 RTM_NEWROUTE payload (attribute RTA_DST, 1)."
  def destination(<<2, _header::88, attributes::binary>>) do
    <<a, b, c, d>> = find(attributes, 1)
    {a, b, c, d}
  end

  @doc "The address of an IPv4 RTM_NEWADDR payload (attribute IFA_LOCAL, 2)."
  def address(<<2, _header::56, attributes::binary>>) do
    <<a, b, c, d>> = find(attributes, 2)
    {a, b, c, d}
  end

  defp find(
         <<size::16-native, type::16-native, value::binary-size(size - 4), rest::binary>>,
         wanted
       ) do
    if type == wanted do
      value
    else
      padding = rem(4 - rem(size, 4), 4)
      find(binary_part(rest, padding, byte_size(rest) - padding), wanted)
    end
  end

  defp find(<<>>, _wanted), do: nil

  @doc "Reads a whole dump from a passive socket. Returns the messages before NLMSG_DONE."
  def collect(socket, sequence, seen \\ []) do
    {:ok, datagram} = NetlinkPort.recv(socket, NetlinkPort.Pace.within(5_000))
    messages = messages(datagram)
    {data, rest} = Enum.split_while(messages, fn {type, _, _} -> type != 3 end)
    true = Enum.all?(messages, fn {_, theirs, _} -> theirs == sequence end)
    seen = [data | seen]

    if rest == [],
      do: collect(socket, sequence, seen),
      else: seen |> Enum.reverse() |> Enum.concat()
  end

  @doc "The names of the links in the namespace of a passive socket."
  def link_names(socket, sequence \\ 1) do
    :ok = NetlinkPort.send(socket, dump_links(sequence))
    for {@newlink, _, payload} <- collect(socket, sequence), do: link_name(payload)
  end
end
