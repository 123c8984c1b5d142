defmodule NetlinkPort.BatchTest do
  # Batches without a kernel; the rest is in nf_batches_test.exs.
  use ExUnit.Case, async: true

  alias NetlinkPort.{Error, Message}
  alias NetlinkPort.Request.Exchange

  @error 2

  defp new(protocol, question) do
    {:ok, exchange} = Exchange.new(protocol, question)
    exchange
  end

  defp failed(seq, errno),
    do: %Message{type: @error, seq: seq, payload: <<-errno::signed-32-native, 0::128>>}

  test "the last message of a batch is acked; in a batch of nf_tables the message before the end" do
    batch = [{16, 0, <<0::32>>}, {18, 4, "four"}, {17, 0, <<0::32>>}]
    acked = fn exchange -> Enum.map(exchange.messages, &Message.flag?(&1, :ack)) end
    assert acked.(new(:route, {:batch, batch})) == [false, true, true]

    assert acked.(new(12, {:batch, put_in(batch, [Access.at(1), Access.elem(1)], 0)})) == [
             false,
             true,
             false
           ]

    {exchange, [datagram], 12} = Exchange.number(new(:netfilter, {:batch, batch}), 9)
    assert length(datagram) == 3
    # The begin is refused: messages after it are not looked at.
    refused = Exchange.add(exchange, [failed(9, 1)])
    assert Exchange.done?(refused)
    undone = {:error, :ecanceled}

    assert {:ok, [{:error, %Error{reason: :eperm}}, begun, ended]} = Exchange.outcome(refused)
    for {:error, error} <- [begun, ended], do: assert({:error, error.reason} == undone)
  end

  test "a batch of another nfnetlink subsystem is followed by a datagram that tells when it is over" do
    exchange = new(:netfilter, {:batch, [{0xA10, 0, <<0::32>>}, {0xA10, 0, <<0::32>>}]})
    {exchange, [[_first, _second], [probe]], 12} = Exchange.number(exchange, 9)
    assert {:ok, [%Message{type: 1, seq: 11, payload: ""}]} = Message.decode(probe)
    # Only the first message is looked at, without CAP_NET_ADMIN.
    refute Exchange.done?(Exchange.add(exchange, [failed(9, 1)]))
    over = Exchange.add(exchange, [failed(9, 1), failed(11, 1)])

    assert {:ok, [{:error, %Error{reason: :eperm}}, {:error, %Error{reason: :eperm}}]} =
             Exchange.outcome(over)

    # A subsystem's own EPERM concerns one message.
    over = Exchange.add(exchange, [failed(9, 1), failed(10, 0), failed(11, 0)])
    assert {:ok, [{:error, %Error{reason: :eperm}}, {:ok, [], nil}]} = Exchange.outcome(over)
    # A single message needs no batch.
    exchange = new(:netfilter, {:batch, [{0xA10, 0, <<0::32>>}]})
    assert {_exchange, [[_only]], 10} = Exchange.number(exchange, 9)
  end
end
