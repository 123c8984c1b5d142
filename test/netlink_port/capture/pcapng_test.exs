defmodule NetlinkPort.PcapngTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Tshark
  alias NetlinkPort.Capture.Pcapng

  @stamp 1_700_000_000_123_456_789

  defp file!(blocks) do
    path = tmp_path!("trace.pcapng")
    File.write!(path, blocks)
    path
  end

  defp datagram(interface, direction, bytes, comment \\ nil) do
    Pcapng.datagram(interface, @stamp, direction, 0, {bytes, byte_size(bytes)}, comment)
  end

  # `{type, body}` of each block. The length is on both sides of the body.
  defp blocks(<<>>), do: []

  defp blocks(
         <<type::32-native, length::32-native, body::binary-size(length - 12), again::32-native,
           rest::binary>>
       ) do
    assert rem(length, 4) == 0
    assert again == length
    [{type, body} | blocks(rest)]
  end

  test "the bytes are those of the specification" do
    assert [{0x0A0D0D0A, section}] = blocks(Pcapng.section_header())

    assert <<0x1A2B3C4D::32-native, 1::16-native, 0::16, -1::signed-64, options::binary>> =
             section

    assert <<4::16-native, 12::16-native, "netlink_port"::binary, 0::32>> = options

    assert [{1, <<253::16-native, 0::16, 262_144::32-native, options::binary>>}] =
             blocks(Pcapng.interface("blue!"))

    assert <<2::16-native, 5::16-native, "blue!", 0::24, 9::16-native, 1::16-native, 9, 0::24,
             0::32>> = options

    assert [{6, body}] = blocks(Pcapng.datagram(7, @stamp, :out, 16, {"abcde", 9}))
    high = Bitwise.bsr(@stamp, 32)
    low = Bitwise.band(@stamp, 0xFFFFFFFF)

    assert <<7::32-native, ^high::32-native, ^low::32-native, 21::32-native, 25::32-native,
             packet::binary-size(24), options::binary>> = body

    # In network byte order, with padding.
    assert packet == <<7::16, 824::16, 0::80, 16::16, "abcde", 0::24>>
    assert options == <<2::16-native, 4::16-native, 2::32-native, 0::32>>
    assert [{6, <<_fixed::160, 6::16, 824::16, _::binary>>}] = blocks(datagram(0, :in, ""))
  end

  @tag :tshark
  test "tshark reads datagrams of any length, names of any length, and comments" do
    names = for size <- [1, 2, 3, 4, 5, 20_000], do: String.duplicate("n", size)

    packets =
      for {_name, index} <- Enum.with_index(names), size <- [0, 1, 2, 3, 4, 5, 15, 16, 17] do
        {index, if(rem(size, 2) == 0, do: :in, else: :out), :binary.copy(<<0>>, size)}
      end

    path =
      file!([
        Pcapng.section_header(),
        Enum.map(names, &Pcapng.interface/1),
        for({index, direction, bytes} <- packets, do: datagram(index, direction, bytes, "é!"))
      ])

    wanted = ~w(frame.interface_id frame.interface_name frame.packet_flags_direction frame.len
         frame.comment frame.time_epoch)

    expected =
      for {index, direction, bytes} <- packets do
        flag = if direction == :in, do: "0x00000001", else: "0x00000002"
        length = Integer.to_string(16 + byte_size(bytes))
        ["#{index}", Enum.at(names, index), flag, length, "é!", "1700000000.123456789"]
      end

    assert Tshark.fields(path, wanted) == expected
  end

  @tag :tshark
  test "tshark reads the longest datagram, and refuses one byte more" do
    header = [Pcapng.section_header(), Pcapng.interface("x")]
    whole = :binary.copy(<<0>>, Pcapng.longest())
    path = file!([header, Pcapng.datagram(0, @stamp, :in, 0, {whole, 9_000_000})])
    assert Tshark.fields(path, ~w(frame.cap_len frame.len)) == [["262144", "9000016"]]
    path = file!([header, datagram(0, :in, whole <> <<0>>)])
    assert_raise MatchError, fn -> Tshark.fields(path, ~w(frame.len)) end
  end
end
