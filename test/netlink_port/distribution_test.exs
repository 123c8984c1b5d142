defmodule NetlinkPort.DistributionTest do
  # Calls and owners on another node.
  use NetlinkPort.Case, async: false

  import NetlinkPort.Nodes

  alias NetlinkPort.{Attr, Connection, Message, Monitor, Pin, Remote}
  alias NetlinkPort.Monitor.Subscribers

  @moduletag :root

  # RTNLGRP_LINK
  @links 1
  # RTM_GETLINK, of all links and of the loopback
  @dump_links {18, <<0::128>>}
  @getlink <<0::32, 1::32-native, 0::64>>

  setup do
    distributed!()
    {peer, node} = peer!()
    %{node: node, peer: peer, netns: netns!()}
  end

  defp opts(context, more \\ []), do: [netns: {:name, context.netns}, groups: [@links]] ++ more

  defp own!(owner, server, opts) do
    assert {:ok, socket} = Remote.ask(owner, :open, [server, :route, opts])
    socket
  end

  defp add_bridge!(netns, name), do: ip!(["-n", netns, "link", "add", name, "type", "bridge"])
  defp add_bridges!(netns, names), do: ip_batch!(netns, for(n <- names, do: add(n)))
  defp add(n), do: "link add b#{n} type vxlan id #{n} dstport 0"

  # The datagrams, which come before everything else, and the rest.
  defp sorted(messages), do: Enum.split_while(messages, &match?({:netlink, _, _}, &1))

  defp eventually_read!(owner, messages) do
    eventually!(fn -> owner |> Remote.read() |> sorted() |> elem(1) == messages end)
  end

  defp relays(pid) do
    {:dictionary, dictionary} = Process.info(pid, :dictionary)
    for {{NetlinkPort.Nodes.Relay, _node}, {relay, _sent}} <- dictionary, do: relay
  end

  describe "a process of another node" do
    test "opens, sends, receives and sets options", %{node: node, netns: netns} do
      name = :"distributed_#{System.unique_integer([:positive])}"
      start_server!(name: name)
      server = {name, node()}

      assert {["lo"], {:ok, [rcvbuf: 200_000]}, {:ok, [1]}, {:ok, %{verified: true}}, :ok} =
               :erpc.call(node, NetlinkPort.Remote, :use_a_socket, [server, netns])
    end

    test "gets ESRCH without a server, or without its node", %{node: node} do
      for server <- [{:no_such_server, node}, {NetlinkPort, :"nowhere@127.0.0.1"}] do
        assert {:error, %Error{stage: :thread, reason: :esrch}} =
                 NetlinkPort.open(server, :route, [])
      end
    end

    test "that waits when the connection is lost gets ESRCH; later datagrams go to other callers",
         context do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, opts(context, active: false))
      :erpc.cast(context.node, Remote, :keep, [:waited, NetlinkPort, :recv, [socket]])
      # Monitors of the owner, and of the process that waits.
      eventually!(fn -> map_size(:sys.get_state(server).sockets.monitors) == 2 end)
      Node.disconnect(context.node)
      eventually!(fn -> map_size(:sys.get_state(server).sockets.monitors) == 1 end)
      add_bridge!(context.netns, "br0")
      assert {:ok, datagram} = NetlinkPort.recv(socket, within(5_000))
      assert {:ok, [%Message{type: 16}]} = Message.decode(datagram)
      kept = fn -> :peer.call(context.peer, Remote, :kept, [:waited]) end
      eventually!(fn -> kept.() != nil end)
      assert {:error, %Error{stage: :thread, reason: :esrch}} = kept.()
    end
  end

  describe "a pin" do
    defp pins(server) do
      {:ok, %{pins: pins}} = NetlinkPort.info(server)
      pins
    end

    defp pin!(server, netns, opts) do
      {:ok, pin} = NetlinkPort.pin(server, netns, opts)
      pin
    end

    test "works in requests of another node, and is checked there", context do
      server = start_server!()

      call = fn function, arguments ->
        :erpc.call(context.node, NetlinkPort, function, arguments)
      end

      {:ok, socket} = NetlinkPort.open(server, :route, active: false)
      place = {:name, context.netns}
      assert {:ok, %Pin{} = pin} = call.(:pin, [server, place, [owner: self()]])
      assert {:ok, %{pin: ^pin, owner: owner}} = call.(:info, [pin])
      assert owner == self()
      # RTM_GETNSID of NETNSA_FD
      asked = fn pin -> [socket, 90, [<<0::32>>, Attr.encode([{3, pin}])]] end
      assert {:ok, [_nsid]} = call.(:request, asked.(pin))
      assert {:ok, [_nsid]} = apply(NetlinkPort, :request, asked.(pin))
      foreign = pin!(start_server!(), :host, [])
      refused = call.(:request, asked.(foreign))
      assert {:error, %Error{stage: :pin, reason: :exdev}} = refused
      assert :ok = call.(:unpin, [pin])
      assert pins(server) == 0
      # The check passes it, and the kernel refuses it.
      assert {:error, %Error{}} = call.(:request, asked.(pin))
    end

    test "ends with an owner on another node, and with that node", context do
      server = start_server!()
      owner = Remote.recorder(context.node)
      _pin = pin!(server, :host, owner: owner)
      assert pins(server) == 1
      Process.exit(owner, :kill)
      eventually!(fn -> pins(server) == 0 end)
      _pin = pin!(server, :host, owner: Remote.recorder(context.node))
      signal!(vm_pid(context.peer), "KILL")
      eventually!(fn -> pins(server) == 0 end)
      eventually!(fn -> relays(server) == [] end)
    end

    test "of an owner on another node ends with the connection or the server; the owner is notified once",
         context do
      server = start_server!()
      owner = Remote.recorder(context.node)
      {:ok, lost} = Remote.ask(owner, :pin, [server, :host])
      Node.disconnect(context.node)
      eventually!(fn -> pins(server) == 0 end)
      {:ok, kept} = Remote.ask(owner, :pin, [server, :host])
      monitor = Process.monitor(server)
      signal!(os_pid(server), "KILL")
      assert_receive {:DOWN, ^monitor, :process, ^server, _reason}

      closed = [
        {:netlink_closed, lost, :noconnection},
        {:netlink_closed, kept, {:helper_exit, 137}}
      ]

      eventually!(fn -> Remote.read(owner) == closed end)
    end
  end

  describe "an owner on another node" do
    test "is sent messages; the socket closes when the owner or its node ends", context do
      server = start_server!()
      before = fds(server)
      arguments = [self(), server, opts(context)]
      owner = Node.spawn(context.node, Remote, :own_a_socket, arguments)
      assert_receive {:open, socket}
      add_bridge!(context.netns, "br0")
      assert_receive {:got, {:netlink, ^socket, _datagram}}
      assert {:ok, %{owner: ^owner}} = NetlinkPort.info(socket)
      Process.exit(owner, :kill)
      eventually!(fn -> fds(server) == before end)

      Node.spawn(context.node, Remote, :own_a_socket, [self(), server, []])
      assert_receive {:open, _socket}
      assert fds(server) == before + 1
      signal!(vm_pid(context.peer), "KILL")
      eventually!(fn -> fds(server) == before end)
      # Nothing stays for a node that has gone.
      eventually!(fn -> relays(server) == [] end)
    end

    test "is notified once of the end of the server, after everything that came before",
         context do
      ends = [
        {:killed, &Process.exit(&1, :kill)},
        {:normal, &GenServer.stop/1},
        {{:helper_exit, 137}, &signal!(os_pid(&1), "KILL")}
      ]

      for {{reason, finish}, round} <- Enum.with_index(ends) do
        server = start_server!()
        ended = Process.monitor(server)
        owner = Remote.recorder(context.node)
        sockets = for _n <- 1..2, do: own!(owner, server, opts(context))
        [relay] = relays(server)
        # The notifier holds them all when the server ends.
        :erlang.suspend_process(relay)
        add_bridges!(context.netns, bridges(round))
        eventually!(fn -> Process.info(relay, :message_queue_len) >= {:message_queue_len, 40} end)
        finish.(server)
        assert_receive {:DOWN, ^ended, :process, ^server, _reason}
        :erlang.resume_process(relay)
        closed = Enum.sort(for(socket <- sockets, do: {:netlink_closed, socket, reason}))

        eventually!(fn ->
          {datagrams, rest} = sorted(Remote.read(owner))
          length(datagrams) >= 40 and Enum.sort(rest) == closed
        end)
      end
    end

    test "is notified once of a lost connection; nothing stays behind, and the next connection works",
         context do
      server = start_server!()
      before = fds(server)
      owner = Remote.recorder(context.node)

      closed =
        for round <- 1..10 do
          socket = own!(owner, server, opts(context))
          # Datagrams are in flight when the connection breaks, and when it comes back.
          storm =
            Task.async(fn ->
              for(n <- bridges(round), do: ip!(["-n", context.netns | String.split(add(n))]))
            end)

          if rem(round, 2) == 0, do: Node.disconnect(context.node), else: disconnect!(context)
          true = Node.connect(context.node)
          Task.await(storm, within(5_000))
          eventually!(fn -> fds(server) == before end)
          {:netlink_closed, socket, :noconnection}
        end

      told = fn -> Enum.filter(Remote.read(owner), &match?({:netlink_closed, _, _}, &1)) end
      eventually!(fn -> length(told.()) >= 10 end)
      assert told.() == closed
      messages = Remote.read(owner)

      for {_tag, socket, _reason} = last <- closed do
        assert messages |> Enum.filter(&(elem(&1, 1) == socket)) |> List.last() == last
      end
    end

    defp bridges(round), do: (20 * round)..(20 * round + 19)

    # From the other node's side.
    defp disconnect!(%{peer: peer}), do: :peer.call(peer, :erlang, :disconnect_node, [node()])

    test "is notified once of a connection that is lost while a socket is given to it", context do
      server = start_server!()
      owner = Remote.recorder(context.node)
      keeper = Remote.recorder(context.node)
      _other = own!(owner, server, opts(context))
      [notifier] = :peer.call(context.peer, Remote, :notifiers, [])
      {:ok, socket} = NetlinkPort.open(server, :route, opts(context))

      # The notifier has the watch of the socket, and its confirmation is lost with the connection.
      true = Remote.ask(keeper, :erlang, :suspend_process, [notifier])
      waiting = fn -> :peer.call(context.peer, :erlang, :process_info, [notifier, :messages]) end
      :ok = NetlinkPort.controlling_process(socket, owner)
      has = fn {:messages, messages} -> Enum.any?(messages, &(elem(&1, 0) == :watch)) end
      eventually!(fn -> has.(waiting.()) end)
      Node.monitor(node = context.node, true)
      disconnect!(context)
      assert_receive {:nodedown, ^node}, within(5_000)
      resume = {:ask, keeper, {:erlang, :resume_process, [notifier]}}
      :peer.call(context.peer, :erlang, :send, [keeper, resume])
      told = fn -> Enum.filter(Remote.read(owner), &match?({:netlink_closed, ^socket, _}, &1)) end
      eventually!(fn -> told.() != [] end)

      # The answer to this call, and its datagram, come behind everything that the relay has sent before.
      eventually!(fn -> match?({:error, %Error{reason: :ebadf}}, NetlinkPort.info(socket)) end)
      again = own!(owner, server, opts(context))
      add_bridge!(context.netns, "br0")
      eventually!(fn -> match?({:netlink, ^again, _}, List.last(Remote.read(owner))) end)
      assert told.() == [{:netlink_closed, socket, :noconnection}]
    end

    test "is sent no datagrams of a lost connection on the next one", context do
      server = start_server!()
      before = fds(server)
      owner = Remote.recorder(context.node)
      socket = own!(owner, server, opts(context))
      [relay] = relays(server)
      :erlang.suspend_process(relay)
      add_bridges!(context.netns, 1..20)
      eventually!(fn -> Process.info(relay, :message_queue_len) >= {:message_queue_len, 20} end)
      Node.disconnect(context.node)
      true = Node.connect(context.node)
      eventually_read!(owner, [{:netlink_closed, socket, :noconnection}])
      :erlang.resume_process(relay)
      eventually!(fn -> fds(server) == before end)
      # A message sent there now comes after all earlier ones.
      again = own!(owner, server, opts(context))
      add_bridge!(context.netns, "br0")
      eventually!(fn -> match?({:netlink, ^again, _}, List.last(Remote.read(owner))) end)

      assert [{:netlink_closed, ^socket, :noconnection}, {:netlink, ^again, _} | _] =
               Remote.read(owner)
    end

    test "is notified once of the end of its namespace", context do
      server = start_server!()
      owner = Remote.recorder(context.node)
      netns = netns!()
      opts = [netns: {:name, netns}, groups: [@links], close_on: :namespace_gone]
      socket = own!(owner, server, opts)
      add_bridge!(netns, "br0")
      ip!(["netns", "del", netns])
      eventually_read!(owner, [{:netlink_closed, socket, :namespace_gone}])
      GenServer.stop(server)
      Node.disconnect(context.node)
      Node.connect(context.node)
      eventually_read!(owner, [{:netlink_closed, socket, :namespace_gone}])
    end

    test "is not notified about a socket that it has closed", context do
      server = start_server!()
      owner = Remote.recorder(context.node)
      socket = own!(owner, server, opts(context))
      other = own!(owner, server, [])
      assert Remote.ask(owner, :close, [socket]) == :ok
      GenServer.stop(server)
      eventually_read!(owner, [{:netlink_closed, other, :normal}])
    end

    test "gives its socket away, and is given one; only the last owner is notified", context do
      server = start_server!()
      {_peer, third} = peer!()
      there = Remote.recorder(context.node)
      {:ok, socket} = NetlinkPort.open(server, :route, opts(context))
      add_bridge!(context.netns, "br0")
      :ok = NetlinkPort.controlling_process(socket, there)
      add_bridge!(context.netns, "br1")
      eventually!(fn -> length(Remote.read(there)) >= 2 end)

      assert Remote.ask(there, :controlling_process, [socket, elsewhere = Remote.recorder(third)]) ==
               :ok

      add_bridge!(context.netns, "br2")
      eventually!(fn -> Remote.read(elsewhere) != [] end)
      {:ok, %{owner: ^elsewhere}} = NetlinkPort.info(socket)
      # Earlier connections to the owner's node do not matter any more.
      Node.disconnect(context.node)
      {:ok, %{owner: ^elsewhere}} = NetlinkPort.info(socket)
      assert Remote.ask(elsewhere, :controlling_process, [socket, self()]) == :ok
      Node.disconnect(third)
      add_bridge!(context.netns, "br3")
      assert_receive {:netlink, ^socket, _datagram}
      GenServer.stop(server)
      assert_receive {:netlink_closed, ^socket, :normal}
      refute_received {:netlink_closed, ^socket, _reason}
      for owner <- [there, elsewhere], do: eventually_read!(owner, [])
    end

    test "without the library there is served, and nothing is logged",
         context do
      {peer, node} = peer!(false)
      log = tmp_path!("log")
      :ok = :peer.call(peer, :error_logger, :logfile, [{:open, to_charlist(log)}])
      server = start_server!()
      before = fds(server)
      owner = Node.spawn(node, :timer, :sleep, [:infinity])
      {:ok, socket} = NetlinkPort.open(server, :route, opts(context, owner: owner))
      add_bridge!(context.netns, "br0")
      read = fn -> :erlang |> rpc(node, :process_info, [owner, :messages]) |> elem(1) end
      eventually!(fn -> match?([{:netlink, ^socket, _datagram} | _], read.()) end)
      Node.disconnect(node)
      eventually!(fn -> fds(server) == before end)
      Node.connect(node)
      refute Enum.any?(read.(), &match?({:netlink_closed, _, _}, &1))

      {:ok, socket} = NetlinkPort.open(server, :route, opts(context, owner: owner))
      GenServer.stop(server)
      eventually!(fn -> {:netlink_closed, socket, :normal} in read.() end)
      :ok = :peer.call(peer, :error_logger, :logfile, [:close])
      refute File.read!(log) =~ "undef"
    end

    defp rpc(module, node, function, arguments) do
      :erpc.call(node, module, function, arguments)
    end

    test "cannot be reached if the server's VM is no node: its socket is closed", %{netns: netns} do
      {peer, :nonode@nohost} = peer!(:no_node)
      # NEW_PID_EXT of a node that does not exist; erl_ext_dist.
      name = "nowhere@127.0.0.1"
      pid = <<131, 88, 119, byte_size(name), name::binary, 100::32, 0::32, 1::32>>
      owner = :peer.call(peer, :erlang, :binary_to_term, [pid])
      children = [{NetlinkPort, name: MyApp.Netlink}]
      :peer.call(peer, Remote, :supervise, [children])
      {:ok, %{os_pid: helper}} = :peer.call(peer, NetlinkPort, :info, [MyApp.Netlink])
      opts = [netns: {:name, netns}, owner: owner]
      arguments = [MyApp.Netlink, :route, opts]
      assert {:ok, _socket} = :peer.call(peer, NetlinkPort, :open, arguments)
      info = fn -> :peer.call(peer, NetlinkPort, :info, [MyApp.Netlink]) |> elem(1) end
      eventually!(fn -> info.().sockets == 0 end)
      assert info.().os_pid == helper
    end

    test "is sent :netlink_closed when its notifier is killed; when the relay is killed, the server ends",
         context do
      server = start_server!()
      before = fds(server)
      owner = Remote.recorder(context.node)
      socket = own!(owner, server, opts(context))
      [notifier] = :erpc.call(context.node, Remote, :notifiers, [])
      Process.exit(notifier, :kill)
      eventually_read!(owner, [{:netlink_closed, socket, :killed}])
      eventually!(fn -> fds(server) == before end)

      again = own!(owner, server, opts(context))
      [relay] = relays(server)
      Process.exit(relay, :kill)
      closed = for s <- [socket, again], do: {:netlink_closed, s, :killed}
      eventually_read!(owner, closed)
      eventually!(fn -> not Process.alive?(server) end)
      eventually!(fn -> :erpc.call(context.node, Remote, :notifiers, []) == [] end)
      assert Remote.read(owner) == closed
    end
  end

  describe "a subscriber on another node" do
    test "is sent what other subscribers are; it is removed when its connection is lost, and can subscribe again",
         context do
      server = start_server!()

      opts = [
        server: server,
        netns: {:name, context.netns},
        groups: [@links],
        dump: [@dump_links]
      ]

      monitor = start_supervised!({Monitor, opts})
      there = Remote.recorder(context.node)
      assert Remote.ask(there, Monitor, :subscribe, [monitor]) == {:ok, monitor}
      last = fn -> List.last(Remote.read(there)) end
      eventually!(fn -> last.() == {:netlink_snapshot, monitor, :end} end)
      add_bridge!(context.netns, "br0")
      eventually!(fn -> match?({:netlink_event, ^monitor, _datagram}, last.()) end)

      Node.disconnect(context.node)
      eventually!(fn -> Subscribers.count(:sys.get_state(monitor).subscribers) == 0 end)
      assert Remote.ask(there, Monitor, :subscribe, [monitor]) == {:ok, monitor}
      eventually!(fn -> last.() == {:netlink_snapshot, monitor, :end} end)
      Process.exit(there, :kill)
      eventually!(fn -> Subscribers.count(:sys.get_state(monitor).subscribers) == 0 end)
      signal!(vm_pid(context.peer), "KILL")
      eventually!(fn -> relays(monitor) == [] end)
    end
  end

  describe "a connection" do
    test "answers callers on another node; a lost caller delays no other", context do
      opts = [server: start_server!(), protocol: :route, netns: {:name, context.netns}]
      connection = start_supervised!({Connection, opts})
      there = Remote.recorder(context.node)
      request = [connection, 18, @getlink]
      assert {:ok, [%Message{type: 16}]} = Remote.ask(there, Connection, :request, request)
      # RTM_GETLINK of all links
      assert {:ok, [_link]} = Remote.ask(there, Connection, :dump, [connection, 18, <<0::128>>])

      assert {:error, %Error{reason: :enodev}} =
               Remote.ask(there, Connection, :request, none(connection))

      :sys.suspend(connection)
      :erpc.cast(context.node, Remote, :keep, [:lost, Connection, :request, request])

      eventually!(fn ->
        Process.info(connection, :message_queue_len) == {:message_queue_len, 1}
      end)

      Node.disconnect(context.node)
      :sys.resume(connection)
      kept = fn -> :peer.call(context.peer, Remote, :kept, [:lost]) end
      eventually!(fn -> kept.() != nil end)
      assert {:error, %Error{stage: :thread, reason: :esrch}} = kept.()
      assert {:ok, [_link]} = Connection.request(connection, 18, @getlink)
      assert {:ok, [_link]} = Remote.ask(there, Connection, :request, request)
      assert NetlinkPort.Connection.Calls.count(:sys.get_state(connection).calls) == 0
    end

    # A link that does not exist.
    defp none(connection), do: [connection, 18, <<0::32, 99_999::32-native, 0::64>>]
  end
end
