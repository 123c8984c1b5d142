defmodule NetlinkPort.AnswerTest do
  # Messages that the kernel may send, written by hand, since it is hard to make the kernel send them.
  use ExUnit.Case, async: true

  import Bitwise

  alias NetlinkPort.{Attr, Error, Message}
  alias NetlinkPort.Request.Reply

  @multi 2
  @dump_intr 0x10
  @ack_tlvs 0x200

  defp message(type, seq, payload \\ "", flags \\ 0) do
    %Message{type: type, seq: seq, payload: payload, flags: flags}
  end

  defp done(seq, payload, flags \\ 0), do: message(3, seq, payload, @multi ||| flags)
  defp error(seq, errno), do: message(2, seq, <<-errno::32-native, 0::128>>)

  defp read(answer, messages), do: Reply.add(answer, messages)

  defp new(kind, numbers, last) do
    Reply.new(kind, Map.new(numbers, &{&1, ""}), Map.new(numbers, &{&1, :answers}), last)
  end

  defp dump, do: new(:dump, [7], 7)

  test "NLMSG_DONE ends a dump, after data, alone, and with an errno" do
    answer = read(dump(), [message(16, 7, "a", @multi), done(7, <<0::32>>)])
    assert {answer.ended, Reply.error(answer)} == {:done, nil}
    assert [%Message{payload: "a"}] = Reply.messages(answer)

    answer = read(dump(), [done(7, "")])
    assert {answer.ended, Reply.error(answer), Reply.messages(answer)} == {:done, nil, []}

    answer = read(dump(), [done(7, <<-12::32-native>>)])
    assert %Error{stage: :request, reason: :enomem, ext_ack: nil} = Reply.error(answer)
  end

  test "NLMSG_DONE can carry an extended ack" do
    attrs = IO.iodata_to_binary(Attr.encode([{1, "filter not supported\0"}, {5, Attr.u32(3)}]))
    answer = read(dump(), [done(7, <<-22::32-native, attrs::binary>>, @ack_tlvs)])
    assert %Error{reason: :einval, ext_ack: ext_ack} = error = Reply.error(answer)
    assert {ext_ack.message, ext_ack.missing_type} == {"filter not supported", 3}
    assert Exception.message(error) =~ "filter not supported; attribute 3 is missing"
  end

  test "an interruption is seen in any message of the dump" do
    for messages <- [
          [message(16, 7, "", @multi ||| @dump_intr), done(7, <<0::32>>)],
          [message(16, 7, "", @multi), done(7, <<0::32>>, @dump_intr)]
        ] do
      assert %{interrupted?: true, ended: :done} = read(dump(), messages)
    end

    assert %{interrupted?: false} = read(dump(), [done(7, <<0::32>>)])
  end

  test "a dump that the kernel refuses ends with the error" do
    assert %{ended: :error} = answer = read(dump(), [error(7, 16)])
    assert %Error{reason: :ebusy} = Reply.error(answer)
  end

  test "ENOBUFS at the start of a dump does not end it: the kernel starts it later" do
    answer = read(dump(), [error(7, 105)])
    refute Reply.done?(answer)
    answer = read(answer, [message(16, 7, "", @multi), done(7, <<0::32>>)])
    assert {answer.ended, answer.count, Reply.error(answer)} == {:done, 1, nil}
    # In NLMSG_DONE it is the error of the dump; in the answer to a request it is final.
    assert %Error{reason: :enobufs} = Reply.error(read(dump(), [done(7, <<-105::32-native>>)]))
    assert %{ended: :error} = read(new(:acked, [7], 7), [error(7, 105)])
  end

  test "NLMSG_NOOP is ignored, NLMSG_OVERRUN is a loss" do
    assert read(dump(), [message(1, 7)]) == dump()
    assert %Error{reason: :enobufs} = Reply.error(read(dump(), [message(4, 7)]))
  end

  test "a request with an ack ends with that or with NLMSG_DONE, not with its messages" do
    answer = read(new(:acked, [7], 7), [message(16, 7), message(16, 7, "", @multi)])
    refute Reply.done?(answer)
    assert %{ended: :ack} = read(answer, [error(7, 0)])
    assert %{ended: :done} = read(answer, [done(7, <<0::32>>), error(7, 0)])
  end

  test "a request without an ack ends with its first message, or with NLMSG_DONE if that has NLM_F_MULTI" do
    plain = new(:plain, [7], 7)
    assert %{ended: :message} = read(plain, [message(16, 7)])
    refute Reply.done?(read(plain, [message(16, 7, "", @multi)]))
    assert %{ended: :done} = read(plain, [message(16, 7, "", @multi), done(7, <<0::32>>)])
    assert %{ended: :message} = read(%{plain | alone?: true}, [message(16, 7, "", @multi)])
  end

  test "a dump does not end with a message without NLM_F_MULTI; it ends with an ack" do
    answer = read(dump(), [message(16, 7), message(16, 7)])
    refute Reply.done?(answer)
    assert %{ended: :ack, count: 2} = read(answer, [error(7, 0)])
    assert %{ended: :done, count: 2} = read(answer, [done(7, <<0::32>>)])
  end

  test "the kernel's ack of a control message does not end the answer of a peer in user space" do
    control = %{dump() | control?: true}
    assert %{ended: :ack} = read(control, [error(7, 0)])
    answer = read(control, [message(16, 7, "", @multi), error(7, 0)])
    refute Reply.done?(answer)
    assert %{ended: :done} = read(answer, [done(7, <<0::32>>)])
  end

  test "a batch ends with the ack of its last message; the errors of the others are kept by number" do
    batch = new(:batch, 7..9, 9)
    answer = read(batch, [error(7, 17)])
    refute Reply.done?(answer)

    assert %{ended: :ack, errors: %{7 => %Error{reason: :eexist}}} = read(answer, [error(9, 0)])
    # NLMSG_DONE of another request ends nothing.
    for message <- [error(8, 0), done(8, <<0::32>>)],
        do: refute(Reply.done?(read(batch, [message])))

    # A begin of nf_tables itself.
    begun = %{batch | begin: 7}
    assert %{ended: :error} = read(begun, [error(7, 1)])
    refute Reply.done?(read(begun, [error(7, 0)]))
  end

  test "a cut extended ack leaves the errno alone" do
    cut = message(2, 7, <<-22::32-native, 1, 2, 3>>, @ack_tlvs)
    assert %Error{reason: :einval, ext_ack: nil} = Reply.error(read(dump(), [cut]))
    broken = message(2, 7, <<-22::32-native, 20::32-native, 0::96, 200, 0, 1, 0>>, @ack_tlvs)
    assert %Error{reason: :einval, ext_ack: nil} = Reply.error(read(dump(), [broken]))
    assert Reply.error(read(dump(), [message(2, 7, "")])) == nil
  end
end
