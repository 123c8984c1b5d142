defmodule NetlinkPort.EndsTest do
  # The end of an answer, family by family, against the real kernel: docs/concepts.md. If the kernel says at once that
  # nothing comes, the timeout is a minute, so that a test cannot pass by waiting.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Connection, Generic, Message}
  alias NetlinkPort.Request.SocketState

  @moduletag :root

  @minute within(60_000)
  @newlink 16
  @getlink 18
  @all_links <<0::128>>
  @lo <<0::32, 1::32-native, 0::64>>
  @nfgenmsg <<0::32>>

  setup do
    server = start_server!(keep: [:audit_control])
    %{server: server, netns: netns!()}
  end

  defp open!(context, protocol, opts \\ []) do
    opts = [netns: {:name, context.netns}, active: false] ++ opts
    {:ok, socket} = NetlinkPort.open(context.server, protocol, opts)
    socket
  end

  defp connect!(context, protocol) do
    opts = [server: context.server, protocol: protocol, netns: {:name, context.netns}]
    start_supervised!(Supervisor.child_spec({Connection, opts}, id: make_ref()))
  end

  defp mailbox, do: Process.info(self(), :messages) |> elem(1)

  # No bridges: to delete many of them the kernel holds RTNL for seconds, and answers no request of any namespace
  # meanwhile.
  defp add_link!(netns, n),
    do: ip!(["-n", netns | ~w(link add x#{n} type vxlan id #{n} dstport 0)])

  # RTM_NEWLINK of a bridge.
  defp bridge(name) do
    [@all_links | Attr.encode([{3, name <> <<0>>}, {18, [{1, "bridge" <> <<0>>}]}])]
  end

  # A filter that drops the kernel's NLMSG_ERROR, acks among them.
  defp without_acks do
    [{0x28, 0, 0, 4}, {0x15, 0, 1, errors()}, {0x6, 0, 0, 0}, {0x6, 0, 0, 0xFFFFFFFF}]
  end

  # A half word is loaded in network byte order.
  defp errors do
    <<type::16>> = <<2::16-native>>
    type
  end

  # Each test in its own namespace.
  defp ways(context) do
    for active <- [true, false], do: Map.merge(context, %{active: active, netns: netns!()})
  end

  test "a dump whose header is too short is EINVAL at once, says what is missing, and leaves nothing behind",
       context do
    for context <- ways(context) do
      for {protocol, type, payload, struct, whole} <- [
            {:route, @getlink, "", "struct rtgenmsg", @all_links},
            {:route, 26, "", "struct rtgenmsg", <<2, 0::88>>},
            {:netfilter, 0xA01, "", "struct nfgenmsg", @nfgenmsg},
            {:netfilter, 0x101, <<0, 0>>, "struct nfgenmsg", @nfgenmsg}
          ] do
        socket = open!(context, protocol, active: context.active)
        opts = [timeout: @minute]
        assert {:error, error} = NetlinkPort.dump(socket, type, payload, opts)
        assert {error.stage, error.reason} == {:request, :einval}
        assert Exception.message(error) =~ "#{byte_size(payload)} bytes, and #{struct}"
        error = %{error | messages: nil}
        assert {:error, ^error} = NetlinkPort.request(socket, type, payload, opts)
        opts = [ack: false, timeout: @minute]
        assert {:error, ^error} = NetlinkPort.request(socket, type, payload, opts)

        assert_raise Error, fn ->
          Enum.to_list(NetlinkPort.stream(socket, type, payload, timeout: @minute))
        end

        assert {:ok, _all} = NetlinkPort.dump(socket, type, whole, timeout: @minute)
        assert mailbox() == []
      end
    end
  end

  test "a dump of a type without dumps ends with its ack or error, and returns the messages that came",
       context do
    for context <- ways(context) do
      for {protocol, type, payload, outcome} <- [
            # NFT_MSG_GETGEN, IPCTNL_MSG_CT_GET_STATS, XFRM_MSG_GETSADINFO: one message, and the ack.
            {:netfilter, 0xA10, @nfgenmsg, 1},
            {:netfilter, 0x105, @nfgenmsg, 1},
            {:xfrm, 0x23, <<0::32>>, 1},
            # XFRM_MSG_FLUSHSA, RTM_SETLINK and RTM_NEWLINK without NLM_F_CREATE are commands.
            {:xfrm, 0x1C, <<0>>, :eopnotsupp},
            {:route, 19, @lo, :eopnotsupp},
            {:route, @newlink, @all_links, :enodev},
            # The kernel skips it.
            {:route, 1, "", :eopnotsupp},
            {:generic, 3, "", :eopnotsupp},
            # Too short for sock_diag and generic netlink, which answer with an error.
            {:sock_diag, 20, "", :einval},
            {:generic, 16, "", :einval}
          ] do
        socket = open!(context, protocol, active: context.active)

        case NetlinkPort.dump(socket, type, payload, timeout: @minute) do
          {:ok, messages} -> assert length(messages) == outcome
          {:error, error} -> assert {error.stage, error.reason} == {:request, outcome}
        end

        assert mailbox() == []
      end
    end
  end

  test "a dump without NLM_F_MULTI, as of the netdev family, is read to NLMSG_DONE", context do
    for context <- ways(context) do
      ip_batch!(
        context.netns,
        for(n <- 1..100, do: "link add x#{n} type vxlan id #{n} dstport 0")
      )

      with {:ok, netdev} <- Generic.family(open!(context, :generic), "netdev") do
        # The first datagram of a socket's first dump has at most 4 kB, about 60 of 101 devices.
        socket = open!(context, :generic, active: context.active)
        # NETDEV_CMD_DEV_GET
        assert {:ok, devices} = Generic.dump(socket, netdev, 1, "", timeout: @minute)
        assert length(devices) == 101
      end

      assert mailbox() == []
    end
  end

  test "a control message is acked; without an ack it is EINVAL at once", context do
    for context <- ways(context) do
      for protocol <- [:route, :netfilter, :generic, :xfrm, :sock_diag],
          type <- [0, 1, 3, 15] do
        socket = open!(context, protocol, active: context.active)
        assert {:ok, []} = NetlinkPort.request(socket, type, @lo, timeout: @minute)
        opts = [ack: false, timeout: @minute]
        assert {:error, %{reason: :einval}} = NetlinkPort.request(socket, type, @lo, opts)
      end
    end
  end

  # struct tcmsg of the root of lo.
  @root_qdisc <<0::32, 1::32-native, 0x10000::32-native, 0xFFFFFFFF::32-native, 0::32>>

  test "route: the GET of one qdisc is an event of RTNLGRP_TC, and an answer with :echo",
       context do
    for context <- ways(context), pktinfo <- [false, true] do
      device = ["netns", "exec", context.netns, "tc", "qdisc", "replace", "dev", "lo"]
      ip!(device ++ ~w(root handle 1: pfifo))
      opts = [pktinfo: pktinfo, active: context.active]
      socket = open!(context, :route, opts)
      member = open!(context, :route, [groups: [4]] ++ opts)

      for socket <- [socket, member] do
        assert {:ok, [%Message{type: 36}]} =
                 NetlinkPort.request(socket, 38, @root_qdisc, flags: [:echo], timeout: @minute)
      end

      assert {:ok, []} = NetlinkPort.request(socket, 38, @root_qdisc, timeout: @minute)
      assert {:ok, messages} = NetlinkPort.request(member, 38, @root_qdisc, timeout: @minute)

      # A member that does not know the group takes the event for the answer. Linux 5.10 sends the requester no event.
      expected = if pktinfo or not linux?(6, 1), do: [], else: [36]
      assert Enum.map(messages, & &1.type) == expected
    end
  end

  # Audit answers only in the initial user namespace.
  @tag :init_user_namespace
  test "audit: queries are complete, although audit answers after its ack", context do
    for context <- ways(context) do
      {:ok, socket} = NetlinkPort.open(context.server, :audit, active: context.active)
      # AUDIT_GET, AUDIT_GET_FEATURE, and AUDIT_LIST_RULES, which has no answer
      for opts <- [[], [ack: false]], type <- [1000, 1019] do
        assert {:ok, [%Message{type: ^type}]} = NetlinkPort.request(socket, type, "", opts)
      end

      assert {:ok, [%Message{type: 1000}]} = NetlinkPort.dump(socket, 1000)
      assert {:ok, []} = NetlinkPort.dump(socket, 1013)
      assert mailbox() == []
    end
  end

  test "a request to fib_lookup ends with its answer, which has no ack", context do
    for context <- ways(context) do
      socket = open!(context, :fib_lookup, active: context.active)
      # struct fib_result_nl of 127.0.0.1
      lookup = <<127, 0, 0, 1, 0::128>>
      assert {:ok, [_result]} = NetlinkPort.request(socket, 18, lookup, timeout: @minute)
      assert {:error, error} = NetlinkPort.request(socket, 18, "", timeout: @minute)
      assert Exception.message(error) =~ "struct fib_result_nl"
    end
  end

  # IPCTNL_MSG_CT_NEW of a flow, for 300 s, and the GET of that flow.
  defp flow do
    proto = [{1, <<17>>}, {2, <<1::16>>}, {3, <<2::16>>}]
    reply = [{1, <<17>>}, {2, <<2::16>>}, {3, <<1::16>>}]
    tuple = [{1, [{1, <<10, 0, 0, 1>>}, {2, <<10, 0, 0, 2>>}]}, {2, proto}]
    back = [{1, [{1, <<10, 0, 0, 2>>}, {2, <<10, 0, 0, 1>>}]}, {2, reply}]

    {[<<2, 0, 0::16>> | Attr.encode([{1, tuple}, {2, back}, {7, <<300::32>>}])],
     [<<2, 0, 0::16>> | Attr.encode([{1, tuple}])]}
  end

  test "the dump of the expectations of a flow that cannot have any is empty", context do
    for context <- ways(context) do
      socket = open!(context, :netfilter, active: context.active)
      {new, get} = flow()
      assert {:ok, []} = NetlinkPort.request(socket, 0x100, new, flags: [:create, :excl])
      # IPCTNL_MSG_EXP_GET with CTA_EXPECT_MASTER, which has the number of CTA_TUPLE_ORIG
      assert {:ok, []} = NetlinkPort.dump(socket, 0x201, get, timeout: @minute)
      assert [] = Enum.to_list(NetlinkPort.stream(socket, 0x201, get, timeout: @minute))
      assert {:ok, []} = NetlinkPort.dump(socket, 0x201, @nfgenmsg, timeout: @minute)
      assert mailbox() == []
    end
  end

  test "the echo of conntrack has the sequence number 0, and goes to the owner", context do
    for context <- ways(context) do
      # Without a member of a group conntrack makes no events, and no echoes.
      _member = open!(context, :netfilter, groups: [1])
      socket = open!(context, :netfilter, active: context.active)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(socket)
      {new, get} = flow()
      flags = [:create, :excl, :echo]
      assert {:ok, []} = NetlinkPort.request(socket, 0x100, new, flags: flags)
      assert {:ok, [_flow]} = NetlinkPort.request(socket, 0x101, get)
      assert_received {:netlink, ^socket, datagram}
      assert {:ok, [%Message{type: 0x100, seq: 0, pid: ^port_id}]} = Message.decode(datagram)
      assert mailbox() == []
    end
  end

  test "a message whose answer has no recognisable end raises or is EINVAL, and is not sent",
       context do
    for context <- ways(context) do
      route = open!(context, :route, active: context.active)
      dump = {@getlink, [:dump], @all_links}

      assert_raise ArgumentError, ~r/no dump in a batch: the rest of the one at index 1/, fn ->
        NetlinkPort.batch(route, [{@getlink, [], @lo}, dump])
      end

      # RTM_NEWLINK, of which the bits of NLM_F_DUMP are NLM_F_REPLACE and NLM_F_EXCL
      new = {@newlink, [:replace, :excl], @lo}
      assert {:ok, [{:error, _exists}]} = NetlinkPort.batch(route, [new])
      fib_lookup = open!(context, :fib_lookup, active: context.active)

      assert_raise ArgumentError, ~r/call request\/4/, fn ->
        NetlinkPort.batch(fib_lookup, [{18, [], <<127, 0, 0, 1, 0::128>>}])
      end

      {:ok, audit} = NetlinkPort.open(context.server, :audit, active: context.active)

      assert_raise ArgumentError, ~r/call request\/4/, fn ->
        NetlinkPort.batch(audit, [{1000, [], ""}])
      end

      {:ok, connector} = NetlinkPort.open(context.server, :connector, active: context.active)

      for outcome <- [
            NetlinkPort.request(connector, 3, @all_links, timeout: @minute),
            NetlinkPort.dump(connector, 3, @all_links, timeout: @minute),
            NetlinkPort.batch(connector, [{3, [], @all_links}], timeout: @minute)
          ] do
        assert {:error, %{reason: :einval} = error} = outcome
        assert Exception.message(error) =~ "the connector acks nothing"
      end
    end
  end

  test "an abandoned request with the flags of a dump is read to its end before the next dump",
       context do
    for context <- ways(context) do
      ip_batch!(context.netns, addresses(1_000))
      socket = open!(context, :route, active: context.active, window: 1)
      opts = [flags: [:dump], timeout: 0]
      assert {:error, error} = NetlinkPort.request(socket, 22, <<2, 0::56>>, opts)
      assert error.reason == :etimedout
      opts = [timeout: @minute]
      assert {:ok, addresses} = NetlinkPort.dump(socket, 22, <<2, 0::56>>, opts)
      assert length(addresses) == 1_001
      opts = [flags: [:dump], timeout: @minute]
      assert {:ok, addresses} = NetlinkPort.request(socket, 22, <<2, 0::56>>, opts)
      assert length(addresses) == 1_001
      assert mailbox() == []
    end
  end

  defp addresses(count) do
    for n <- 1..count, do: "addr add 10.0.#{div(n, 256)}.#{rem(n, 256)}/32 dev lo"
  end

  # IPSET_CMD_CREATE of a set; false for a kernel without ipset.
  defp set?(socket, name) do
    attrs = [{1, <<7>>}, {2, name <> <<0>>}, {3, "hash:ip\0"}, {4, <<0>>}, {5, <<2>>}, {7, []}]
    create = [<<2, 0, 0::16>> | Attr.encode(attrs)]
    match?({:ok, []}, NetlinkPort.request(socket, 0x602, create, flags: [:create, :excl]))
  end

  defp list(attrs \\ []), do: [<<2, 0, 0::16>> | Attr.encode([{1, <<7>>} | attrs])]

  test "ipset: an error that the kernel sends twice is returned once", context do
    for context <- ways(context) do
      socket = open!(context, :netfilter, active: context.active)

      if set?(socket, "a") do
        missing = list([{2, "missing" <> <<0>>}])

        for _ <- 1..2 do
          assert {:error, error} = NetlinkPort.request(socket, 0x607, missing, timeout: @minute)
          assert {error.stage, error.reason} == {:request, :enoent}
          assert {:ok, [_set]} = NetlinkPort.request(socket, 0x607, list(), timeout: @minute)
          assert mailbox() == []
        end
      end
    end
  end

  test "a conntrack GET ends with its only message, although that has NLM_F_MULTI",
       context do
    for context <- ways(context) do
      socket = open!(context, :netfilter, active: context.active)
      {new, get} = flow()
      assert {:ok, []} = NetlinkPort.request(socket, 0x100, new, flags: [:create, :excl])

      for opts <- [[], [ack: false]] do
        opts = [timeout: @minute] ++ opts
        assert {:ok, [flow]} = NetlinkPort.request(socket, 0x101, get, opts)
        assert Message.flag?(flow, :multi)
        assert {:ok, [_stats]} = NetlinkPort.request(socket, 0x105, @nfgenmsg, opts)
      end

      assert {:ok, [_flow]} = NetlinkPort.dump(socket, 0x101, @nfgenmsg)
      assert mailbox() == []
    end
  end

  @tag :nftables
  test "an ack after the end of an answer is part of the answer", context do
    for context <- ways(context) do
      socket = open!(context, :netfilter, active: context.active)
      limit = fn type, flags -> {type, flags, <<0, 0, 10::16>>} end
      table = fn name -> [<<2, 0, 0::16>> | Attr.encode([{1, name <> <<0>>}])] end
      new = fn name -> {0xA00, [:create, :ack], table.(name)} end
      batch = [limit.(16, [:ack]), new.("a"), new.("b"), limit.(17, [:ack])]
      assert {:ok, [ok: [], ok: [], ok: [], ok: []]} = NetlinkPort.batch(socket, batch)
      # When this is answered, all answers of the kernel have come.
      assert {:ok, [_gen]} = NetlinkPort.request(socket, 0xA10, @nfgenmsg)
      assert {:error, %{reason: :etimedout}} = passive(socket)
      assert mailbox() == []
    end
  end

  test "events do not move the deadline of a dump", context do
    for context <- ways(context) do
      opts = [groups: [1], filter: without_acks(), active: context.active]
      socket = open!(context, :route, opts)

      storm =
        spawn(fn ->
          for n <- Stream.iterate(1, &(&1 + 1)),
              do: add_link!(context.netns, n)
        end)

      # Its ack is filtered out, so that nothing comes.
      assert {:error, error} = NetlinkPort.dump(socket, 1, "", timeout: 1_000)
      assert {error.reason, error.messages} == {:etimedout, []}
      assert Exception.message(error) =~ "no answer came in time"
      event(socket)
      Process.exit(storm, :kill)
      NetlinkPort.close(socket)
      assert mailbox() |> Enum.all?(&match?({:netlink, ^socket, _event}, &1))
      for {:netlink, ^socket, _event} = message <- mailbox(), do: assert_received(^message)
    end
  end

  # At least one, wherever it waits.
  defp event(socket) do
    case NetlinkPort.recv(socket, @minute) do
      {:ok, datagram} -> send(self(), {:netlink, socket, datagram})
      {:error, %{reason: :einval}} -> assert_receive {:netlink, ^socket, _event}, @minute
    end
  end

  test "an endless dump is bounded by max_bytes and total_timeout; its socket is closed when it is abandoned",
       context do
    for context <- ways(context) do
      socket = fn -> open!(context, :route, [user_peers: true] ++ silent(context)) end
      endless = socket.()
      flood!(context, endless)
      opts = [max_bytes: 1_000_000, timeout: 5_000]
      assert {:error, error} = NetlinkPort.dump(endless, 1, "", opts)
      assert {error.stage, error.reason} == {:request, :emsgsize}
      assert Exception.message(error) =~ "larger than max_bytes: 1000000"
      assert length(error.messages) > 100
      # The next request would have to read the endless dump to its end.
      assert {:error, error} = NetlinkPort.dump(endless, @getlink, @all_links, opts)
      assert Exception.message(error) =~ "the socket was closed"
      assert_receive {:netlink_closed, ^endless, :endless_dump}
      assert {:error, %{reason: :ebadf}} = NetlinkPort.request(endless, @getlink, @lo)
      refute Enum.any?(mailbox(), &match?({:netlink, ^endless, _, _}, &1))

      # Also when the kernel acks a message that it skips.
      acked = open!(context, :route, user_peers: true, active: context.active)
      flood!(context, acked)
      assert {:error, error} = NetlinkPort.dump(acked, 1, "", opts)
      assert error.reason in [:emsgsize, :eopnotsupp]

      endless = socket.()
      flood!(context, endless)
      opts = [timeout: 500, total_timeout: 700, max_bytes: :infinity]
      assert {:error, error} = NetlinkPort.dump(endless, 1, "", opts)
      assert error.reason == :etimedout
      assert Exception.message(error) =~ "still went on after total_timeout: 700 ms"

      endless = socket.()
      flood!(context, endless)
      opts = [timeout: 5_000, max_bytes: 1_000_000]
      assert [%Message{}] = endless |> NetlinkPort.stream(1, "", opts) |> Enum.take(1)
      assert_receive {:netlink_closed, ^endless, :endless_dump}
      assert {:ok, [_lo]} = NetlinkPort.dump(open!(context, :route), @getlink, @all_links)
    end
  end

  test "closed_message: false: the owner is not notified when an endless dump closes the socket",
       context do
    silent = [filter: without_acks(), active: false, closed_message: false]
    endless = open!(context, :route, [user_peers: true] ++ silent)
    flood!(context, endless)
    opts = [timeout: 5_000, max_bytes: 1_000_000]
    assert [%Message{}] = endless |> NetlinkPort.stream(1, "", opts) |> Enum.take(1)
    assert {:error, %{reason: :ebadf}} = NetlinkPort.recv(endless, 0)
    refute Enum.any?(mailbox(), &(elem(&1, 0) == :netlink_closed))
  end

  test "a dump without an answer does not delay the next", context do
    for context <- ways(context) do
      socket = open!(context, :route, silent(context))

      for _ <- 1..2 do
        assert {:error, %{reason: :etimedout}} = NetlinkPort.dump(socket, 1, "", timeout: 100)
      end

      assert {:ok, [_lo]} = NetlinkPort.dump(socket, @getlink, @all_links, timeout: @minute)
    end
  end

  defp silent(context), do: [filter: without_acks(), active: context.active]

  defp passive(socket) do
    case NetlinkPort.recv(socket, 0) do
      {:error, %{reason: :einval}} -> {:error, %{reason: :etimedout}}
      received -> received
    end
  end

  # Endless datagrams with the sequence number of the caller's next dump.
  defp flood!(context, socket) do
    {:ok, %{port_id: port_id}} = NetlinkPort.info(socket)
    peer = open!(context, :route, user_peers: true)
    SocketState.number(socket, 77)

    message = %Message{type: @newlink, flags: 2, seq: 77, payload: :binary.copy(<<0>>, 1_000)}
    datagram = IO.iodata_to_binary(Message.encode(message))
    pid = spawn_link(fn -> flood(peer, datagram, port_id) end)
    on_exit(fn -> Process.exit(pid, :kill) end)
  end

  defp flood(peer, datagram, port_id) do
    _sent = NetlinkPort.send(peer, datagram, to: {port_id, 0})
    flood(peer, datagram, port_id)
  end

  describe "on a connection," do
    test "requests that are answered by a dump wait for dumps, and no dump fails",
         context do
      ip_batch!(context.netns, addresses(1_000))
      sets = open!(context, :netfilter)
      sets? = set?(sets, "a") and set?(sets, "b")
      all = <<2, 0::56>>

      for {protocol, type, payload, flags, count} <-
            [{:route, 22, all, [:dump], 1_001}] ++
              if(sets?, do: [{:netfilter, 0x607, list(), [], 2}], else: []) do
        opts = [server: context.server, protocol: protocol, netns: {:name, context.netns}]
        connection = start_supervised!({Connection, opts ++ [window: 1]}, id: make_ref())
        # All of them wait when the connection goes on.
        :erlang.suspend_process(connection)

        callers =
          for n <- 1..12 do
            spawn_reporting(fn ->
              if rem(n, 2) == 0,
                do: Connection.dump(connection, type, payload, timeout: @minute),
                else: Connection.request(connection, type, payload, flags: flags)
            end)
          end

        eventually!(fn ->
          Process.info(connection, :message_queue_len) == {:message_queue_len, 12}
        end)

        :erlang.resume_process(connection)

        for pid <- callers do
          assert_receive {:result, ^pid, {:ok, messages}}, within(15_000)
          assert length(messages) == count
        end
      end
    end

    test "an impossible dump is an error for its caller only, at once", context do
      for {protocol, type, whole} <- [
            {:route, @getlink, @all_links},
            {:netfilter, 0xA01, @nfgenmsg},
            {:xfrm, 0x12, <<0::192>>}
          ] do
        connection = connect!(context, protocol)
        opts = [timeout: @minute]
        assert {:error, error} = Connection.dump(connection, 1, "", opts)
        assert {error.stage, error.reason} == {:request, :eopnotsupp}

        if protocol != :xfrm do
          assert {:error, %{reason: :einval}} = Connection.dump(connection, type, "", opts)
          opts = [ack: false] ++ opts
          assert {:error, %{reason: :einval}} = Connection.request(connection, type, "", opts)
        end

        assert {:ok, _all} = Connection.dump(connection, type, whole, opts)
      end
    end

    test "max_bytes bounds the collected answer, and the rest is read and dropped", context do
      connection = connect!(context, :route)
      for n <- 1..50, do: add_link!(context.netns, n)
      opts = [max_bytes: 1_000]
      assert {:error, error} = Connection.dump(connection, @getlink, @all_links, opts)
      assert {error.stage, error.reason} == {:request, :emsgsize}
      assert {:ok, links} = Connection.dump(connection, @getlink, @all_links)
      assert length(links) == 51
    end

    test "a dump without an answer closes the socket, and other callers are served", context do
      opts = [server: context.server, protocol: :route, netns: {:name, context.netns}]
      connection = start_supervised!({Connection, [filter: without_acks()] ++ opts})
      socket = :sys.get_state(connection).socket
      stop = :atomics.new(1, [])

      asking =
        spawn_reporting(fn ->
          Stream.repeatedly(fn ->
            Connection.request(connection, @getlink, @lo, ack: false, timeout: @minute)
          end)
          |> Stream.take_while(fn outcome ->
            assert {:ok, [_lo]} = outcome
            :atomics.get(stop, 1) == 0
          end)
          |> Enum.count()
        end)

      assert {:error, error} = Connection.dump(connection, 1, "", timeout: 100)
      assert {error.stage, error.reason} == {:request, :etimedout}
      opts = [timeout: @minute]
      waiting = spawn_reporting(fn -> Connection.dump(connection, @getlink, @all_links, opts) end)
      assert_receive {:result, ^waiting, {:ok, [_lo]}}, within(20_000)
      assert :sys.get_state(connection).socket != socket
      :atomics.put(stop, 1, 1)
      assert_receive {:result, ^asking, count} when count > 0
    end

    test "sixteen requests without an answer delay no other caller", context do
      connection = connect!(context, :route)

      # The answer to a command is only its ack.
      callers =
        for n <- 1..16 do
          spawn_reporting(fn ->
            opts = [flags: [:create, :excl], ack: false, timeout: 20_000]
            Connection.request(connection, @newlink, bridge("br#{n}"), opts)
          end)
        end

      waiting? = fn -> map_size(:sys.get_state(connection).calls.calls) == 16 end
      eventually!(waiting?)
      assert {:ok, [_lo]} = Connection.request(connection, @getlink, @lo, timeout: 15_000)
      assert waiting?.()
      for pid <- callers, do: Process.exit(pid, :kill)
    end
  end

  @tag :team
  test "team: the ack after NLMSG_DONE is part of the answer", context do
    for context <- ways(context) do
      ip!(["-n", context.netns, "link", "add", "team0", "index", "9", "type", "team"])
      socket = open!(context, :generic, active: context.active)
      # TEAM_CMD_OPTIONS_GET with TEAM_ATTR_TEAM_IFINDEX
      attrs = Attr.encode([{1, Attr.u32(9)}])
      assert {:ok, [_ | _]} = Generic.request(socket, "team", 2, attrs, timeout: @minute)
      assert {:ok, _nlctrl} = Generic.family(socket, "nlctrl")
      assert {:error, %{reason: :etimedout}} = passive(socket)
      assert mailbox() == []
    end
  end

  test "the number of groups of every protocol but route is rounded up", context do
    for protocol <- [:xfrm, :netfilter, :sock_diag] do
      socket = open!(context, protocol)
      assert :ok = NetlinkPort.join(socket, 32)
      assert {:error, %Error{reason: :einval}} = NetlinkPort.join(socket, 33)
      assert {:ok, [32]} = NetlinkPort.memberships(socket)
    end

    # RTNLGRP_MAX is not a multiple of 32.
    assert {:error, %Error{reason: :einval}} = NetlinkPort.join(open!(context, :route), 64)
    assert :ok = NetlinkPort.join(open!(context, :generic), 32)
  end

  test "a group that the protocol does not have is EINVAL, which says so, as for the bit of a mask",
       context do
    socket = open!(context, :route)
    # RTMGRP_IPV4_ROUTE
    opts = [netns: {:name, context.netns}, groups: [0x40]]

    for refused <- [
          NetlinkPort.join(socket, 0x40),
          NetlinkPort.leave(socket, 0x40),
          NetlinkPort.open(context.server, :route, opts)
        ] do
      assert {:error, %Error{stage: :setsockopt, reason: :einval} = error} = refused
      assert Exception.message(error) =~ "EINVAL: the protocol has no group of that number"
    end
  end

  test "a command without an ack is carried out, and times out", context do
    socket = open!(context, :route)
    opts = [flags: [:create, :excl], ack: false, timeout: 100]

    assert {:error, %{reason: :etimedout}} =
             NetlinkPort.request(socket, @newlink, bridge("br0"), opts)

    assert {:ok, [_lo, _br0]} = NetlinkPort.dump(socket, @getlink, @all_links)
  end
end
