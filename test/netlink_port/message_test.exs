defmodule NetlinkPort.MessageTest do
  use ExUnit.Case, async: true

  alias NetlinkPort.{DecodeError, Golden, Message, Properties}

  doctest Message
  doctest DecodeError

  @link 1_468

  defp bytes(messages), do: IO.iodata_to_binary(Message.encode(messages))

  describe "datagrams from the kernel:" do
    test "one message" do
      assert {:ok, [message]} = Message.decode(Golden.datagram!("link"))
      assert %Message{type: 16, flags: 0, seq: 7, payload: payload} = message
      assert byte_size(payload) == @link - 16

      assert <<0, 0, 772::16-native, 1::32-native, _flags_and_change::64, _attrs::binary>> =
               payload

      assert bytes(message) == Golden.datagram!("link")
    end

    test "several messages, and their end" do
      assert {:ok, [first, second]} = Message.decode(Golden.datagram!("address dump"))
      assert {first.type, second.type} == {20, 20}
      assert Enum.all?([first, second], &Message.flag?(&1, :multi))
      assert {:ok, [done]} = Message.decode(Golden.datagram!("address dump end"))
      assert {Message.control(done.type), done.payload} == {:done, <<0::32>>}
    end

    test "encoding gives the same bytes" do
      for datagram <- Golden.datagrams() do
        {:ok, messages} = Message.decode(datagram)
        assert bytes(messages) == datagram
      end
    end
  end

  describe "malformed bytes:" do
    test "the error says where, and what is wrong" do
      one = bytes(%Message{type: 1, payload: "1234"})

      for {datagram, offset, reason} <- [
            {"", 0, "0 bytes are left"},
            {<<1, 2, 3>>, 0, "3 bytes are left"},
            {<<15::32-native, 0::96>>, 0, "its length is 15, less than"},
            {<<17::32-native, 0::96>>, 0, "its length is 17, and 16 bytes are left"},
            {<<0xFFFFFFFF::32-native, 0::96>>, 0, "its length is 4294967295"},
            {one <> <<0>>, 20, "1 bytes are left"},
            {one <> <<0::32-native, 0::96>>, 20, "its length is 0"}
          ] do
        assert {:error, %DecodeError{what: :message, offset: ^offset} = error} =
                 Message.decode(datagram)

        assert Exception.message(error) =~ reason
      end
    end

    test "only the last message can lack its padding" do
      assert {:ok, [%{payload: "abc"}]} = Message.decode(<<19::32-native, 0::96, "abc">>)
      cut = <<19::32-native, 0::96, "abc">>
      assert {:error, %DecodeError{offset: 20}} = Message.decode(cut <> <<0, 1>>)
      assert {:ok, [_one]} = Message.decode(cut <> <<0>>)
    end
  end

  test "flags are names; a name needs all of its bits, and unknown names raise" do
    assert Message.flags([]) == 0
    assert Message.flags([:dump]) == Message.flags([:root, :match])
    refute Message.flag?(%Message{type: 1, flags: 0x100}, :dump)
    assert Message.flag?(%Message{type: 1, flags: 0x300}, :dump)

    for wrong <- [[:dmup], 65_536, -1, nil, [:ack | :dump], [:ack | 1], [4]],
        do: assert_raise(ArgumentError, fn -> Message.flags(wrong) end)
  end

  test "a number that has no room in the header raises, and is not cut" do
    for {field, bits} <- [type: 16, flags: 16, seq: 32, pid: 32],
        wrong <- [Bitwise.bsl(1, bits), -1, 1.5, nil, :ack, "1"] do
      message = struct!(%Message{type: 18}, [{field, wrong}])
      assert_raise ArgumentError, ~r/#{field}/, fn -> Message.encode(message) end
      assert_raise ArgumentError, ~r/#{field}/, fn -> Message.encode([message]) end
    end

    for wrong <- [nil, "x", [%Message{type: 1} | :rest], %{type: 1}],
        do: assert_raise(ArgumentError, ~r/Message/, fn -> Message.encode(wrong) end)
  end

  test "a payload that is no iodata raises, and is named as such" do
    for wrong <- [nil, :foo, 256, [256], [1 | 2], {1}, ["a" | :b], ["a", [nil]]] do
      assert_raise ArgumentError, ~r/payload.*got: /, fn ->
        Message.encode(%Message{type: 18, payload: wrong})
      end
    end
  end

  if Properties.available?() do
    defp message do
      fields = [
        :proper_types.integer(0, 0xFFFF),
        :proper_types.integer(0, 0xFFFF),
        :proper_types.integer(0, 0xFFFFFFFF),
        :proper_types.integer(0, 0xFFFFFFFF),
        :proper_types.binary()
      ]

      :proper_types.tuple(fields)
    end

    defp of({type, flags, seq, pid, payload}) do
      %Message{type: type, flags: flags, seq: seq, pid: pid, payload: payload}
    end

    test "messages are decoded as they were encoded" do
      property = fn messages ->
        messages = Enum.map(messages, &of/1)
        messages == [] or Message.decode(bytes(messages)) == {:ok, messages}
      end

      assert Properties.check(:proper_types.list(message()), 1_000, property) == true
    end

    test "any bytes are messages, or an error at an offset within them" do
      golden = Enum.map(Golden.datagrams(), &:proper_types.exactly/1)
      change = :proper_types.tuple([:proper_types.integer(0, 200), :proper_types.integer(0, 255)])
      cut = :proper_types.integer(0, 200)
      changed = [:proper_types.oneof(golden), :proper_types.list(change), cut]

      property = fn {datagram, changes, cut} ->
        datagram = binary_part(datagram, 0, max(byte_size(datagram) - cut, 0))
        datagram = Enum.reduce(changes, datagram, &put/2)

        case Message.decode(datagram) do
          {:ok, [_ | _]} -> true
          {:error, %DecodeError{offset: offset}} -> offset in 0..byte_size(datagram)
        end
      end

      assert Properties.check(:proper_types.tuple(changed), 5_000, property) == true
    end

    defp put({at, byte}, datagram) when at < byte_size(datagram) do
      {before, <<_, rest::binary>>} = :erlang.split_binary(datagram, at)
      <<before::binary, byte, rest::binary>>
    end

    defp put(_beyond, datagram), do: datagram
  end
end
