defmodule NetlinkPort.OwnEventsTest do
  # A member of a group gets the event of its own request, with the request's sequence number, as if it were an
  # answer. With NLM_F_ECHO it gets the echo instead, which names the group although it is unicast. And datagrams
  # that are no answers, and cannot be read.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Connection, Message}

  @moduletag :root

  @newlink 16
  @getlink 18
  @newaddr 20
  @newroute 24
  @lo <<0::32, 1::32-native, 0::64>>
  @link_group 1
  @address_group 5
  @route_group 7

  setup do
    server = start_server!()
    %{server: server, netns: netns!()}
  end

  defp route(n) do
    attrs = Attr.encode([{1, <<10, 0, 0, n>>}, {4, Attr.u32(1)}])
    [<<2, 32, 0, 0, 254, 3, 253, 1, 0::32>> | attrs]
  end

  defp address(n), do: [<<2, 32, 0, 0, 1::32-native>> | Attr.encode([{2, <<10, 1, 0, n>>}])]

  defp bridge(name) do
    [<<0::128>> | Attr.encode([{3, name <> <<0>>}, {18, [{1, "bridge" <> <<0>>}]}])]
  end

  defp table(name), do: [<<2, 0, 0::16>> | Attr.encode([{1, name <> <<0>>}])]
  defp limit(type), do: {type, [], <<0, 0, 10::16>>}

  # The types of the events that the owner was sent, in order.
  defp events(socket) do
    receive do
      {:netlink, ^socket, datagram} -> types(datagram) ++ events(socket)
      {:netlink, ^socket, datagram, %{group: group}} -> told(datagram, group) ++ events(socket)
    after
      0 -> []
    end
  end

  defp types(datagram) do
    {:ok, messages} = Message.decode(datagram)
    Enum.map(messages, & &1.type)
  end

  defp told(datagram, group) do
    assert group > 0
    types(datagram)
  end

  # After this all that the kernel had to send has come.
  defp settled(socket, request \\ {@getlink, @lo}) do
    {type, payload} = request
    assert {:ok, [_one]} = NetlinkPort.request(socket, type, payload)
    socket
  end

  # Each test in its own namespace.
  defp ways(context) do
    for active <- [true, false], pktinfo <- [true, false] do
      Map.merge(context, %{opts: [active: active, pktinfo: pktinfo], netns: netns!()})
    end
  end

  test "the event of the owner's own change goes to the owner, and is no answer", context do
    for context <- ways(context) do
      groups = [@address_group, @route_group]
      socket = socket!(context, :route, [groups: groups] ++ context.opts)
      new = [flags: [:create, :excl]]
      assert {:ok, []} = NetlinkPort.request(socket, @newaddr, address(1), new)
      assert {:ok, []} = NetlinkPort.request(socket, @newroute, route(1), new)
      assert Enum.sort(events(settled(socket))) == [@newaddr, @newroute, @newroute]

      add = fn n -> {@newroute, [:create, :excl], route(n)} end

      assert {:ok, [{:ok, []}, {:error, _}, {:ok, []}]} =
               NetlinkPort.batch(socket, [add.(2), add.(2), add.(3)])

      assert events(settled(socket)) == [@newroute, @newroute]

      # RTM_DELROUTE, and a request that fails
      assert {:ok, []} = NetlinkPort.request(socket, @newroute + 1, route(3))
      assert {:error, _} = NetlinkPort.request(socket, @newroute + 1, route(3))
      assert events(settled(socket)) == [@newroute + 1]
    end
  end

  test "the event of the owner's own change keeps its order among other events", context do
    for context <- ways(context) do
      groups = [@link_group, @route_group]
      socket = socket!(context, :route, [groups: groups] ++ context.opts)
      ip!(["-n", context.netns, "link", "add", "br0", "type", "bridge"])

      assert {:ok, []} = NetlinkPort.request(socket, @newroute, route(1), flags: [:create, :excl])

      ip!(["-n", context.netns, "link", "del", "br0"])
      types = events(settled(socket))
      assert Enum.uniq(types) == [@newlink, @newroute, @newlink + 1]
    end
  end

  @tag :nftables
  test "nf_tables: the events of a batch go to the owner", context do
    for context <- ways(context) do
      # NFNLGRP_NFTABLES
      socket = socket!(context, :netfilter, [groups: [7]] ++ context.opts)
      new = fn name -> {0xA00, [:create], table(name)} end

      assert {:ok, [ok: [], ok: [], ok: [], ok: []]} =
               NetlinkPort.batch(socket, [limit(16), new.("a"), new.("b"), limit(17)])

      settled(socket, {0xA10, <<0::32>>})
      # NFT_MSG_NEWGEN comes last.
      assert events(socket) == [0xA00, 0xA00, 0xA0F]
    end
  end

  @tag :link_echo
  test "an echo is the answer, for members of the group and for others", context do
    for context <- ways(context) do
      for groups <- [[], [@link_group, @address_group, @route_group]] do
        socket = socket!(context, :route, [groups: groups] ++ context.opts)
        new = [flags: [:create, :excl, :echo]]
        name = "br#{length(groups)}"

        assert {:ok, [%Message{type: @newlink}]} =
                 NetlinkPort.request(socket, @newlink, bridge(name), new)

        assert {:ok, [%Message{type: @newroute}]} =
                 NetlinkPort.request(socket, @newroute, route(10 + length(groups)), new)

        assert {:ok, [%Message{type: @newaddr}]} =
                 NetlinkPort.request(
                   socket,
                   @newaddr,
                   address(2 + length(groups)),
                   [ack: false] ++ new
                 )

        echoed = {@newroute, [:create, :excl, :echo], route(20 + length(groups))}
        plain = {@newroute, [:create, :excl], route(30 + length(groups))}

        assert {:ok, [{:ok, [%Message{type: @newroute}]}, {:ok, []}]} =
                 NetlinkPort.batch(socket, [echoed, plain])

        # The address has a route, whose event goes to the owner, and is no echo.
        local = if groups == [], do: [], else: [@newroute, @newroute]
        assert events(settled(socket)) == local
      end
    end
  end

  test "a dump is complete beside events", context do
    for context <- ways(context) do
      socket = socket!(context, :route, [groups: [@route_group]] ++ context.opts)
      assert {:ok, []} = NetlinkPort.request(socket, @newroute, route(1), flags: [:create])
      assert {:ok, [_lo]} = NetlinkPort.dump(socket, @getlink, <<0::128>>)
      assert events(socket) == [@newroute]
    end
  end

  test "a datagram that cannot be decoded and is no answer goes to the owner unchanged",
       context do
    for context <- ways(context) do
      opts = [active: context.opts[:active], pktinfo: context.opts[:pktinfo]]
      socket = socket!(context, :route, [user_peers: true] ++ opts)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(socket)
      peer = socket!(context, :route, user_peers: true, active: false)
      whole = IO.iodata_to_binary(Message.encode(%Message{type: 1300, payload: "abcd"}))
      # Like records of audit, whose length does not include the header.
      record = <<24::32-native, 1300::16-native, 0::80, 0::192>>

      for strange <- [record, whole <> "tail", binary_part(whole, 0, 18), "short", <<>>] do
        if strange != <<>>, do: :ok = NetlinkPort.send(peer, strange, to: {port_id, 0})
        assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @lo)
        assert {:ok, [_lo]} = NetlinkPort.dump(socket, @getlink, <<0::128>>)

        if strange != <<>> do
          assert_receive {:netlink, ^socket, ^strange, %{port_id: sender}}
          assert sender != port_id
        end
      end
    end
  end

  test "a datagram of a passive socket that goes to the owner keeps its metadata", context do
    opts = [active: false, pktinfo: true, groups: [@link_group]]
    socket = socket!(context, :route, opts)
    ip!(["-n", context.netns, "link", "add", "br0", "type", "bridge"])
    assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @lo)
    assert_received {:netlink, ^socket, _datagram, %{group: @link_group, nsid: nil}}
  end

  @tag :link_echo
  test "a connection returns echoes, also with pktinfo", context do
    for pktinfo <- [true, false] do
      opts = [server: context.server, protocol: :route, netns: {:name, context.netns}]
      spec = {Connection, [pktinfo: pktinfo] ++ opts}
      connection = start_supervised!(Supervisor.child_spec(spec, id: make_ref()))
      new = [flags: [:create, :excl, :echo], timeout: 60_000]

      for opts <- [[], [ack: false]] do
        name = "br#{pktinfo}#{length(opts)}"

        assert {:ok, [%Message{type: @newlink}]} =
                 Connection.request(connection, @newlink, bridge(name), opts ++ new)
      end
    end
  end
end
