defmodule NetlinkPort.ExchangeTest do
  # What becomes of answers, without a kernel: the rest is in connection_test.exs.
  use ExUnit.Case, async: true

  doctest NetlinkPort.Exchange

  alias NetlinkPort.{Error, Exchange, Message}

  @opts %{flags: 0, ack: true, timeout: 1_000}
  @done 3
  @error 2

  defp dump, do: 18 |> Exchange.dump("", @opts) |> Exchange.number(7) |> elem(0)
  defp link(seq, flags \\ [:multi]), do: %Message{type: 16, seq: seq, flags: Message.flags(flags)}
  defp done(seq), do: %Message{type: @done, seq: seq, flags: 2, payload: <<0::32>>}

  defp failed(seq, errno),
    do: %Message{type: @error, seq: seq, payload: <<-errno::signed-32-native, 0::128>>}

  # How often a dump is sent whose answer is always `spoil`ed, and what it comes to.
  defp tries(exchange, spoil, tries \\ 1) do
    case Exchange.outcome(spoil.(exchange)) do
      {:again, exchange} ->
        {exchange, _datagram, _next} = Exchange.number(exchange, 7)
        tries(exchange, spoil, tries + 1)

      outcome ->
        {tries, outcome}
    end
  end

  test "a dump that is interrupted each time is EINTR after five, with what was read" do
    interrupted = link(7, [:multi, :dump_intr])
    spoil = &Exchange.add(&1, [interrupted, done(7)])
    assert {5, {:error, error}} = tries(dump(), spoil)
    assert {error.stage, error.reason, error.messages} == {:request, :eintr, [interrupted]}
  end

  test "a dump of which something is lost each time is ENOBUFS after five" do
    lost = Error.new(:recv, :enobufs, dropped: 3)
    spoil = &(&1 |> Exchange.lose(lost) |> Exchange.add([link(7), done(7)]))
    assert {5, {:error, error}} = tries(dump(), spoil)
    assert {error.reason, error.dropped, length(error.messages)} == {:enobufs, 3, 1}
  end

  test "a dump that the kernel refuses is not tried again" do
    spoil = &(&1 |> Exchange.lose(Error.new(:recv, :enobufs)) |> Exchange.add([failed(7, 95)]))
    assert {1, {:error, %Error{reason: :eopnotsupp}}} = tries(dump(), spoil)
  end

  test "given up, it says what was lost before it says that time was up" do
    etimedout = Error.new(:request, :etimedout)
    assert {:error, %Error{reason: :etimedout, messages: []}} = Exchange.cut(dump(), etimedout)
    lost = Exchange.lose(dump(), Error.new(:recv, :enobufs))
    assert {:error, %Error{reason: :enobufs}} = Exchange.cut(lost, etimedout)
    epipe = Error.new(:thread, :epipe)
    assert {:error, %Error{reason: :epipe}} = Exchange.cut(lost, epipe)
    # One that waits for its turn.
    assert {:error, %Error{messages: []}} = Exchange.cut(Exchange.dump(18, "", @opts), etimedout)
    assert {:error, ^epipe} = Exchange.cut(Exchange.request(18, "", @opts), epipe)
  end

  test "batches: the last is acked, of nf_tables the one before the end" do
    batch = [{16, 0, ""}, {18, 4, "x"}, {17, 0, ""}]
    acked = fn exchange -> Enum.map(exchange.messages, &Message.flag?(&1, :ack)) end
    assert acked.(Exchange.batch(:route, batch)) == [false, true, true]

    assert acked.(Exchange.batch(12, [{16, 0, ""}, {18, 0, ""}, {17, 0, ""}])) == [
             false,
             true,
             false
           ]

    {exchange, datagram, 12} = Exchange.number(Exchange.batch(:netfilter, batch), 9)
    assert length(datagram) == 3
    # The begin refused: nothing behind it is looked at.
    refused = Exchange.add(exchange, [failed(9, 1)])
    assert Exchange.done?(refused)

    assert {:ok, [{:error, %Error{reason: :eperm}}, {:ok, []}, {:ok, []}]} =
             Exchange.outcome(refused)
  end
end
