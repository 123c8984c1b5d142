defmodule NetlinkPort.AttrTest do
  use ExUnit.Case, async: true

  alias NetlinkPort.{Attr, DecodeError, Golden, Message, Properties}

  doctest Attr

  defp attrs(name, header) do
    {:ok, [%Message{payload: payload} | _]} = Message.decode(Golden.datagram!(name))
    {_header, bytes} = :erlang.split_binary(payload, header)
    {:ok, attrs} = Attr.decode(bytes)
    attrs
  end

  defp bytes(attrs), do: IO.iodata_to_binary(Attr.encode(attrs))

  describe "attributes from the kernel" do
    test "a link: its name, length of queue, MTU, flags and statistics" do
      link = attrs("link", 16)
      assert Attr.string(link, 3) == {:ok, "lo"}
      assert {Attr.u32(link, 13), Attr.u32(link, 4)} == {{:ok, 1_000}, {:ok, 65_536}}
      assert Attr.u8(link, 16) == {:ok, 0}
      # IFLA_AF_SPEC, nested by family.
      assert {:ok, families} = Attr.nested(link, 26)
      assert {:ok, [_ | _]} = Attr.nested(families, 2)
      assert Attr.binary(link, 9_999) == :missing
    end

    test "a family: an array of operations" do
      family = attrs("family", 4)
      assert {Attr.string(family, 2), Attr.u16(family, 1)} == {{:ok, "nlctrl"}, {:ok, 16}}
      assert {:ok, [first | _] = operations} = Attr.array(family, 6)
      assert Attr.u32(first, 1) == {:ok, 3}
      assert length(operations) == 2
      assert {:ok, [group]} = Attr.array(family, 7)
      assert Attr.string(group, 1) == {:ok, "notify"}
    end
  end

  describe "getters" do
    test "tell a wrong length from a missing attribute" do
      attrs = [{1, <<1, 2>>}, {2, <<0, 1, 2, 3>>}, {3, ""}]
      assert Attr.be16(attrs, 1) == {:ok, 0x0102}
      assert Attr.be32(attrs, 2) == {:ok, 0x00010203}
      assert {:error, %DecodeError{what: :value} = error} = Attr.u32(attrs, 1)
      assert Exception.message(error) =~ "attribute 1 is 2 bytes, not 4"
      assert {:error, %DecodeError{}} = Attr.bitfield32(attrs, 2)
      assert Attr.u64(attrs, 4) == :missing
      assert {Attr.flag?(attrs, 3), Attr.flag?(attrs, 4)} == {true, false}
    end

    test "return integers of each length, signed and unsigned" do
      attrs = [{1, <<-1::32-native>>}, {2, <<-1::64-native>>}, {3, <<1>>}]
      assert {Attr.uint(attrs, 1), Attr.sint(attrs, 1)} == {{:ok, 0xFFFFFFFF}, {:ok, -1}}
      assert {Attr.uint(attrs, 2), Attr.sint(attrs, 2)} == {{:ok, 0xFFFFFFFFFFFFFFFF}, {:ok, -1}}
      assert {:error, %DecodeError{}} = Attr.uint(attrs, 3)
      assert Attr.s8(attrs, 3) == {:ok, 1}
    end

    test "return the first attribute of a type, or all of them" do
      attrs = [{1, "a"}, {2, "b"}, {1, "c\0d"}]
      assert {Attr.binary(attrs, 1), Attr.all(attrs, 1)} == {{:ok, "a"}, ["a", "c\0d"]}
      assert Attr.string([{1, "c\0d"}], 1) == {:ok, "c"}
    end

    test "return the error in a nested attribute" do
      assert {:error, %DecodeError{what: :attribute}} = Attr.nested([{1, <<3, 0, 0, 0>>}], 1)
      broken = bytes([{1, <<9, 0, 0, 0>>}])
      assert {:error, %DecodeError{}} = Attr.array([{1, broken}], 1)
    end
  end

  describe "encoding" do
    test "sets the flags that the kernel checks, and decoding removes them" do
      assert <<8::16-native, 0x8001::16-native, _::binary>> = bytes([{1, [{2, true}]}])
      assert <<8::16-native, 1::16-native, _::binary>> = bytes([{1, {:plain, [{2, true}]}}])

      assert <<6::16-native, 0x4001::16-native, 1, 2, 0, 0>> =
               bytes([{1, {:net_byteorder, <<1, 2>>}}])

      assert {:ok, [{1, <<1, 2>>}]} = Attr.decode(bytes([{1, {:net_byteorder, <<1, 2>>}}]))
    end

    test "raises for integers out of range" do
      assert Attr.u16(0xFFFF) == <<255, 255>>
      assert Attr.s16(-1) == <<255, 255>>
      for fun <- [&Attr.u8/1, &Attr.s8/1], do: assert_raise(ArgumentError, fn -> fun.(256) end)
      assert_raise ArgumentError, fn -> Attr.u32("1") end
    end

    test "takes a struct and attributes behind it as the value of an attribute" do
      behind = Attr.encode([{3, "eth0\0"}, {4, Attr.u32(7)}])
      whole = bytes([{1, IO.iodata_to_binary(["struct", 0, 0 | behind])}])
      assert bytes([{1, ["struct", 0, 0 | behind]}]) == whole
      assert bytes([{1, ["struct", [0, 0], behind]}]) == whole
      assert <<12::16-native, 0x8002::16-native, rest::binary>> = bytes([{2, [{1, ["abcd"]}]}])
      assert rest == <<8::16-native, 1::16-native, "abcd">>

      # A charlist is no name, and attributes are no bytes.
      for wrong <- [~c"eth0", ["a", {2, "b"}], [{2, "b"}, "a"], [[{2, "b"}]], ["a" | :b]] do
        assert_raise ArgumentError, fn -> Attr.encode([{1, wrong}]) end
      end

      assert_raise ArgumentError, fn -> Attr.encode([{1, ["a", :binary.copy("b", 65_531)]}]) end
    end

    test "raises for attributes that are too long or malformed" do
      longest = :binary.copy(<<1>>, 65_531)
      assert {:ok, [{1, ^longest}]} = Attr.decode(bytes([{1, longest}]))
      assert_raise ArgumentError, fn -> Attr.encode([{1, longest <> <<1>>}]) end
      assert_raise ArgumentError, fn -> Attr.encode([{1, [{1, longest}]}]) end

      for wrong <- [{0x4000, "a"}, {-1, "a"}, {1, 5}, {1, nil}, :a] do
        assert_raise ArgumentError, fn -> Attr.encode([wrong]) end
      end
    end
  end

  test "the error of malformed bytes says where, and what is wrong" do
    for {binary, offset, reason} <- [
          {<<1, 2, 3>>, 0, "3 bytes are left"},
          {<<3::16-native, 0::16>>, 0, "its length is 3, less than"},
          {<<9::16-native, 0::16, 1>>, 0, "its length is 9, and 5 bytes are left"},
          {<<4::16-native, 0::16, 0>>, 4, "1 bytes are left"}
        ] do
      assert {:error, %DecodeError{what: :attribute, offset: ^offset} = error} =
               Attr.decode(binary)

      assert Exception.message(error) =~ reason
    end

    # The last attribute may lack its padding.
    assert Attr.decode(<<5::16-native, 1::16-native, 7>>) == {:ok, [{1, <<7>>}]}
  end

  if Properties.available?() do
    defp leaf, do: {:proper_types.integer(0, 0x3FFF), :proper_types.binary()}

    defp nested(0), do: :proper_types.list(leaf())

    defp nested(depth) do
      inner = {:proper_types.integer(0, 0x3FFF), nested(depth - 1)}
      :proper_types.list(:proper_types.oneof([leaf(), inner]))
    end

    # Encoded attributes are decoded to this.
    defp flat(attrs) do
      for {type, value} <- attrs, do: {type, if(is_list(value), do: bytes(value), else: value)}
    end

    test "attributes are decoded as they were encoded, also nested" do
      property = fn attrs -> Attr.decode(bytes(attrs)) == {:ok, flat(attrs)} end
      # Small, since the limit is 65,531 bytes.
      small = :proper_types.resize(5, nested(2))
      assert Properties.check(small, 1_000, property) == true
    end

    test "any bytes are attributes, or an error at an offset within them" do
      property = fn binary ->
        case Attr.decode(binary) do
          {:ok, attrs} -> is_list(attrs)
          {:error, %DecodeError{offset: offset}} -> offset in 0..byte_size(binary)
        end
      end

      assert Properties.check(:proper_types.binary(), 3_000, property) == true
      <<_::binary-size(32), link::binary>> = Golden.datagram!("link")
      change = :proper_types.tuple([:proper_types.integer(0, 400), :proper_types.integer(0, 255)])
      type = :proper_types.tuple([:proper_types.list(change), :proper_types.integer(0, 1_436)])

      changed = fn {changes, size} ->
        binary = Enum.reduce(changes, binary_part(link, 0, size), &put/2)
        property.(binary)
      end

      assert Properties.check(type, 5_000, changed) == true
    end

    defp put({at, byte}, binary) when at < byte_size(binary) do
      {before, <<_, rest::binary>>} = :erlang.split_binary(binary, at)
      <<before::binary, byte, rest::binary>>
    end

    defp put(_beyond, binary), do: binary
  end
end
