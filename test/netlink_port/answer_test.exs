defmodule NetlinkPort.AnswerTest do
  # What the kernel may send, by hand: what it is hard to make it do.
  use ExUnit.Case, async: true

  import Bitwise

  alias NetlinkPort.{Answer, Attr, Error, Message}

  @multi 2
  @dump_intr 0x10
  @ack_tlvs 0x200

  defp message(type, seq, payload \\ "", flags \\ 0) do
    %Message{type: type, seq: seq, payload: payload, flags: flags}
  end

  defp done(seq, payload, flags \\ 0), do: message(3, seq, payload, @multi ||| flags)
  defp error(seq, errno), do: message(2, seq, <<-errno::32-native, 0::128>>)

  defp read(answer, messages), do: Enum.reduce(messages, answer, &Answer.add(&2, &1))
  defp dump, do: Answer.new(:dump, %{7 => ""}, 7)

  test "NLMSG_DONE ends a dump, behind data, empty, and with an errno" do
    answer = read(dump(), [message(16, 7, "a", @multi), done(7, <<0::32>>)])
    assert {answer.done?, Answer.error(answer)} == {true, nil}
    assert [%Message{payload: "a"}] = Answer.messages(answer)

    answer = read(dump(), [done(7, "")])
    assert {answer.done?, Answer.error(answer), Answer.messages(answer)} == {true, nil, []}

    answer = read(dump(), [done(7, <<-12::32-native>>)])
    assert %Error{stage: :request, reason: :enomem, ext_ack: nil} = Answer.error(answer)
  end

  test "NLMSG_DONE may bring an extended ack" do
    attrs = IO.iodata_to_binary(Attr.encode([{1, "filter not supported\0"}, {5, Attr.u32(3)}]))
    answer = read(dump(), [done(7, <<-22::32-native, attrs::binary>>, @ack_tlvs)])
    assert %Error{reason: :einval, ext_ack: ext_ack} = error = Answer.error(answer)
    assert {ext_ack.message, ext_ack.missing_type} == {"filter not supported", 3}
    assert Exception.message(error) =~ "filter not supported; attribute 3 is missing"
  end

  test "an interruption is seen wherever it is told" do
    for messages <- [
          [message(16, 7, "", @multi ||| @dump_intr), done(7, <<0::32>>)],
          [message(16, 7, "", @multi), done(7, <<0::32>>, @dump_intr)]
        ] do
      assert %{interrupted?: true, done?: true} = read(dump(), messages)
    end

    assert %{interrupted?: false} = read(dump(), [done(7, <<0::32>>)])
  end

  test "a dump that the kernel refuses ends with the error" do
    assert %{done?: true} = answer = read(dump(), [error(7, 16)])
    assert %Error{reason: :ebusy} = Answer.error(answer)
  end

  test "NLMSG_NOOP is nothing, NLMSG_OVERRUN a loss" do
    assert read(dump(), [message(1, 7)]) == dump()
    assert %Error{reason: :enobufs} = Answer.error(read(dump(), [message(4, 7)]))
  end

  test "a request ends with its ack, not with its messages" do
    answer = read(Answer.new(:acked, %{7 => ""}, 7), [message(16, 7)])
    refute answer.done?
    assert %{done?: true} = read(answer, [error(7, 0)])
  end

  test "without an ack it ends with its first message, or NLMSG_DONE where there are many" do
    plain = Answer.new(:plain, %{7 => ""}, 7)
    assert %{done?: true} = read(plain, [message(16, 7)])
    refute read(plain, [message(16, 7, "", @multi)]).done?
    assert %{done?: true} = read(plain, [message(16, 7, "", @multi), done(7, <<0::32>>)])
  end

  test "a batch ends with the ack of its last; errors of the others are kept by number" do
    batch = Answer.new(:batch, Map.new(7..9, &{&1, ""}), 9)
    answer = read(batch, [error(7, 17)])
    refute answer.done?
    assert %{done?: true, errors: %{7 => %Error{reason: :eexist}}} = read(answer, [error(9, 0)])
    refute read(batch, [error(8, 0)]).done?
    # The begin of nf_tables' own.
    begun = %{batch | begin: 7}
    assert %{done?: true} = read(begun, [error(7, 1)])
    refute read(begun, [error(7, 0)]).done?
  end

  test "what is cut short is no more than an errno" do
    cut = message(2, 7, <<-22::32-native, 1, 2, 3>>, @ack_tlvs)
    assert %Error{reason: :einval, ext_ack: nil} = Answer.error(read(dump(), [cut]))
    broken = message(2, 7, <<-22::32-native, 20::32-native, 0::96, 200, 0, 1, 0>>, @ack_tlvs)
    assert %Error{reason: :einval, ext_ack: nil} = Answer.error(read(dump(), [broken]))
    assert Answer.error(read(dump(), [message(2, 7, "")])) == nil
  end
end
