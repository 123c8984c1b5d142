defmodule NetlinkPort.ExtAckTest do
  use ExUnit.Case, async: true

  doctest NetlinkPort.ExtAck

  alias NetlinkPort.{Attr, ExtAck, Golden, Message}

  # The request that the golden errors answer.
  @payload IO.iodata_to_binary([<<0::32, 1::32-native, 0::64>>, Attr.encode([{13, <<1, 2>>}])])

  defp read(name) do
    {:ok, [message]} = Message.decode(Golden.datagram!(name))
    request = %Message{type: 16, flags: 5, seq: 7, payload: @payload}
    ExtAck.read(message, IO.iodata_to_binary(Message.encode(request)))
  end

  test "after an echoed request, and after a capped request" do
    for name <- ["attribute error", "capped error"] do
      assert {34, ext_ack} = read(name)
      assert ext_ack.message == "Attribute failed policy validation"
      assert {ext_ack.offset, ext_ack.attribute} == {32, {13, <<1, 2>>}}
      assert ext_ack.policy == %{type: 4, min_value_u: 0, max_value_u: 0xFFFFFFFF}
      assert {ext_ack.cookie, ext_ack.missing_type, ext_ack.missing_nest} == {nil, nil, nil}
    end
  end

  test "a missing attribute" do
    assert {22, %ExtAck{missing_type: 1, missing_nest: nil}} = read("missing policy attribute")
  end

  test "an ack, an error without attributes, the end of a dump" do
    assert read("capped ack") == {0, nil}
    assert read("missing attribute") == {22, nil}
    assert read("address dump end") == {0, nil}
  end

  test "an offset that belongs to no attribute, or lies beyond the request" do
    tlvs = fn offset -> IO.iodata_to_binary(Attr.encode([{2, Attr.u32(offset)}])) end

    for {offset, attribute} <- [{0, {44, nil}}, {20, nil}, {4_000_000_000, nil}] do
      payload = <<-22::32-native, 0::128, tlvs.(offset)::binary>>
      message = %Message{type: 2, flags: 0x300, seq: 7, payload: payload}
      request = <<44::32-native, 0::128>>
      assert {22, %ExtAck{offset: ^offset, attribute: told}} = ExtAck.read(message, request)
      assert told == attribute or offset == 0
    end
  end
end
