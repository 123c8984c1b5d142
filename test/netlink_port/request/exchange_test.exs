defmodule NetlinkPort.ExchangeTest do
  # Answers without a kernel; the rest is in connection_test.exs.
  use ExUnit.Case, async: true

  doctest NetlinkPort.Request.Exchange

  alias NetlinkPort.{Error, Message}
  alias NetlinkPort.Request.Exchange

  @opts %{flags: 0, ack: true, max_bytes: :infinity}
  @nlm_f_ack 4
  @done 3
  @error 2

  defp new(protocol, question) do
    {:ok, exchange} = Exchange.new(protocol, question)
    exchange
  end

  defp asked(opts \\ @opts), do: new(:route, {:dump, 18, <<0::128>>, opts})
  defp dump(opts \\ @opts), do: opts |> asked() |> Exchange.number(7) |> elem(0)
  defp link(seq, flags \\ [:multi]), do: %Message{type: 16, seq: seq, flags: Message.flags(flags)}
  defp done(seq), do: %Message{type: @done, seq: seq, flags: 2, payload: <<0::32>>}

  defp failed(seq, errno),
    do: %Message{type: @error, seq: seq, payload: <<-errno::signed-32-native, 0::128>>}

  # How often a dump is sent if `spoil` changes every answer, and its result.
  defp tries(exchange, spoil, tries \\ 1) do
    case Exchange.outcome(spoil.(exchange)) do
      {:again, exchange} ->
        {exchange, _datagram, _next} = Exchange.number(exchange, 7)
        tries(exchange, spoil, tries + 1)

      outcome ->
        {tries, outcome}
    end
  end

  test "a dump that is interrupted five times is EINTR, with the messages that were read" do
    interrupted = link(7, [:multi, :dump_intr])
    spoil = &Exchange.add(&1, [interrupted, done(7)])
    assert {5, {:error, error}} = tries(dump(), spoil)
    assert {error.stage, error.reason, error.messages} == {:request, :eintr, [interrupted]}
  end

  test "a dump that loses datagrams five times is ENOBUFS" do
    lost = Error.new(:recv, :enobufs, dropped: 3)
    spoil = &(&1 |> Exchange.lose(lost) |> Exchange.add([link(7), done(7)]))
    assert {5, {:error, error}} = tries(dump(), spoil)
    assert {error.reason, error.dropped, length(error.messages)} == {:enobufs, 3, 1}
  end

  # RTM_GETLINK is answered by a link, RTM_NEWLINK by its ack alone.
  test "a loss is no error if the answer is complete" do
    lost = Error.new(:recv, :enobufs, dropped: 3)
    get = {:request, 18, <<0::128>>, @opts}
    change = {:request, 16, <<0::128>>, @opts}
    plain = {:request, 18, <<0::128>>, %{@opts | ack: false}}
    batch = fn flags -> {:batch, [{18, 0, <<0::128>>}, {16, flags, <<0::128>>}, {18, 0, ""}]} end
    {ack, enodev} = {failed(7, 0), failed(7, 19)}

    whole = [
      {get, [link(7, []), ack]},
      {get, [enodev]},
      {change, [ack]},
      {plain, [link(7, [])]},
      {batch.(@nlm_f_ack), [link(7, []), failed(8, 0), failed(9, 22)]}
    ]

    missing = [
      {get, [ack]},
      {get, [link(7), ack]},
      {get, [link(7, []), link(7, []), ack]},
      {batch.(@nlm_f_ack), [failed(8, 0), failed(9, 22)]},
      # A refusal of the second message may be lost.
      {batch.(0), [link(7, []), failed(9, 22)]}
    ]

    outcome = fn question, messages ->
      exchange = :route |> new(question) |> Exchange.number(7) |> elem(0)
      exchange |> Exchange.lose(lost) |> Exchange.add(messages) |> Exchange.outcome()
    end

    for {question, messages} <- whole do
      refute match?({:error, ^lost}, outcome.(question, messages)), inspect(messages)
    end

    for {question, messages} <- missing do
      assert {messages, {:error, lost}} == {messages, outcome.(question, messages)}
    end
  end

  test "an unreadable part of the answer is the error, also beside losses" do
    lost = Error.new(:recv, :enobufs, dropped: 3)
    unread = Error.new(:recv, :ebadmsg)
    {exchange, _, _} = Exchange.number(new(:route, {:request, 16, <<0::128>>, @opts}), 7)
    exchange = exchange |> Exchange.lose(lost) |> Exchange.lose(unread) |> Exchange.lose(lost)
    assert {:error, ^unread} = exchange |> Exchange.add([failed(7, 0)]) |> Exchange.outcome()
  end

  test "a dump that the kernel refuses is not repeated" do
    spoil = &(&1 |> Exchange.lose(Error.new(:recv, :enobufs)) |> Exchange.add([failed(7, 95)]))
    assert {1, {:error, %Error{reason: :eopnotsupp}}} = tries(dump(), spoil)
  end

  test "at the timeout a loss is reported as ENOBUFS, and otherwise ETIMEDOUT" do
    etimedout = Error.new(:request, :etimedout)
    assert {:error, %Error{reason: :etimedout, messages: []}} = Exchange.cut(dump(), etimedout)
    lost = Exchange.lose(dump(), Error.new(:recv, :enobufs))
    assert {:error, %Error{reason: :enobufs}} = Exchange.cut(lost, etimedout)
    delayed = Exchange.add(dump(), [failed(7, 105)])
    assert {:error, %Error{reason: :enobufs}} = Exchange.cut(delayed, etimedout)
    epipe = Error.new(:thread, :epipe)
    assert {:error, %Error{reason: :epipe}} = Exchange.cut(lost, epipe)
    # A dump that waits for its turn.
    assert {:error, %Error{messages: []}} = Exchange.cut(asked(), etimedout)
    assert {:error, ^epipe} = Exchange.cut(new(:route, {:request, 18, <<0>>, @opts}), epipe)
  end

  test "an ack may follow NLMSG_DONE, and nothing follows an ack" do
    {exchange, [_datagram], _next} = Exchange.number(new(:generic, {:request, 30, "", @opts}), 7)

    ended = Exchange.add(exchange, [link(7), done(7)])
    assert Exchange.done?(ended) and Exchange.more?(ended)
    assert {:ok, [_reply], nil} = Exchange.outcome(ended)
    ended = Exchange.add(exchange, [link(7), failed(7, 0)])
    assert Exchange.done?(ended) and not Exchange.more?(ended)
  end

  test "a warning can come in NLMSG_DONE" do
    warning = IO.iodata_to_binary(NetlinkPort.Attr.encode([{1, "old table\0"}]))
    done = %{done(7) | flags: 0x202, payload: <<0::32, warning::binary>>}
    ended = Exchange.add(dump(), [link(7), done])
    assert {:ok, [_link], %{message: "old table"}} = Exchange.outcome(ended)
  end

  test "max_bytes: bounds the collected answer" do
    exchange = dump(%{@opts | max_bytes: 2_000})
    exchange = Exchange.add(exchange, [link(7)], 1_500)
    assert Exchange.excess(exchange) == nil

    assert %Error{reason: :emsgsize} =
             error = Exchange.excess(Exchange.add(exchange, [link(7)], 500))

    assert Exception.message(error) =~ "max_bytes: 2000"
  end

  test "a repeated dump counts its bytes from 0" do
    exchange = Exchange.add(dump(), [link(7, [:multi, :dump_intr]), done(7)], 5_000)
    assert {:again, %{bytes: 0}} = Exchange.outcome(exchange)
  end
end
