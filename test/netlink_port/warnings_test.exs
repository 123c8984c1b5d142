defmodule NetlinkPort.WarningsTest do
  # Warnings of the kernel with a success, and sentences that depend on which part has refused.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Connection, ExtAck}

  @moduletag :root

  @newtclass 40
  @getlink 18
  @newlink 16
  @lo <<0::32, 1::32-native, 0::64>>

  setup do
    netns = netns!()
    server = start_server!()
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
    connection = {Connection, [server: server, protocol: :route, netns: {:name, netns}]}
    %{netns: netns, socket: socket, connection: start_supervised!(connection)}
  end

  # An htb class of 10 Gbit, whose quantum the kernel finds big: struct tcmsg, tc_htb_opt.
  defp class(minor) do
    rate = <<0, 1, 0::16, 0::16, 0::16, 1_250_000_000::32-native>>
    opt = <<rate::binary, rate::binary, 1000::32-native, 1000::32-native, 0::96>>
    rate64 = <<1_250_000_000::64-native>>
    options = {:plain, [{1, opt}, {6, rate64}, {7, rate64}]}

    [
      <<0::32, 1::32-native, 0x10000 + minor::32-native, 0x10000::32-native, 0::32>>
      | Attr.encode([{1, "htb" <> <<0>>}, {2, options}])
    ]
  end

  @tag :warnings
  test "ext_ack: true returns the warning of a success, and changes nothing else", context do
    %{netns: netns, socket: socket, connection: connection} = context
    ip!(["netns", "exec", netns, "tc" | ~w(qdisc add dev lo root handle 1: htb)])
    flags = [:create, :excl]
    warned = [flags: flags, ext_ack: true]
    assert {:ok, []} = NetlinkPort.request(socket, @newtclass, class(1), flags: flags)
    assert {:ok, []} = Connection.request(connection, @newtclass, class(2), flags: flags)
    quantum = ~r/quantum of class .* is big/

    assert {:ok, [], %ExtAck{message: told}} =
             NetlinkPort.request(socket, @newtclass, class(3), warned)

    assert told =~ quantum

    assert {:ok, [], %ExtAck{message: told}} =
             Connection.request(connection, @newtclass, class(4), warned)

    assert told =~ quantum
    batch = [{@newtclass, flags, class(5)}, {@newtclass, flags, class(6)}]
    assert {:ok, [ok: [], ok: []]} = NetlinkPort.batch(socket, batch)
    # Only the last message is acked, unless the others ask for it.
    batch = [{@newtclass, [:ack | flags], class(7)}, {@newtclass, flags, class(8)}]

    assert {:ok, [{:ok, [], one}, {:ok, [], two}]} =
             NetlinkPort.batch(socket, batch, ext_ack: true)

    assert one.message =~ quantum
    assert two.message =~ quantum
  end

  test "ext_ack: true returns nil without a warning", %{socket: socket, connection: connection} do
    for ask <- [
          &NetlinkPort.request(socket, @getlink, @lo, &1),
          &NetlinkPort.dump(socket, @getlink, <<0::128>>, &1),
          &Connection.request(connection, @getlink, @lo, &1),
          &Connection.dump(connection, @getlink, <<0::128>>, &1)
        ] do
      assert {:ok, [_lo]} = ask.([])
      assert {:ok, [_lo], nil} = ask.(ext_ack: true)
    end

    assert {:ok, [{:ok, [_lo], nil}]} =
             Connection.batch(connection, [{@getlink, [], @lo}], ext_ack: true)
  end

  test "EBADF from the kernel names the descriptor, and does not say that the socket is closed",
       context do
    # IFLA_NET_NS_FD
    attrs = Attr.encode([{28, Attr.u32(9_999)}])
    assert {:error, error} = NetlinkPort.request(context.socket, @newlink, [@lo | attrs])
    assert {error.stage, error.reason} == {:request, :ebadf}
    refute Exception.message(error) =~ "closed"
    assert Exception.message(error) =~ "a descriptor that is not open in the helper"
    NetlinkPort.close(context.socket)
    assert {:error, error} = NetlinkPort.request(context.socket, @newlink, [@lo | attrs])
    assert Exception.message(error) =~ "the socket is closed"
  end
end
