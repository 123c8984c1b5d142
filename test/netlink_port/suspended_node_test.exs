defmodule NetlinkPort.SuspendedNodeTest do
  # A node that takes nothing, since its VM is stopped, suspends every sender once a megabyte waits. Only a relay
  # may be suspended so, and never a server, a monitor or a connection, which serve other processes, too.
  use NetlinkPort.Case, async: false

  import NetlinkPort.Nodes

  alias NetlinkPort.Connection.Calls
  alias NetlinkPort.{Connection, Monitor, Remote, Rtnl}

  @moduletag :root

  @links 1
  @getlink <<0::32, 1::32-native, 0::64>>
  @window 200_000
  # RTM_GETROUTE of all IPv4 routes
  @dump_routes {26, <<2, 0::88>>}

  setup do
    distributed!()
    {peer, node} = peer!()
    netns = netns!()

    ip_batch!(
      netns,
      for(n <- 0..19_999, do: "route add 10.0.#{div(n, 256)}.#{rem(n, 256)} dev lo")
    )

    name = :"suspended#{System.unique_integer([:positive])}"
    start_server!(name: name, restart: :permanent)
    %{node: node, vm: vm_pid(peer), netns: netns, server: name, opts: [netns: {:name, netns}]}
  end

  # Whether the relay is suspended, by the number of messages that wait for the other node.
  defp suspended?(server) do
    Enum.any?(relays(server), &match?({:status, :suspended}, Process.info(&1, :status)))
  end

  defp relays(server) do
    {:dictionary, dictionary} = server |> GenServer.whereis() |> Process.info(:dictionary)
    for {{NetlinkPort.Nodes.Relay, _node}, {relay, _sent}} <- dictionary, do: relay
  end

  defp relay(server) do
    [relay] = relays(server)
    relay
  end

  # Fills the connection to the other node, by dumps to sockets of an owner there.
  defp fill!(context, owner) do
    sockets =
      for _n <- 1..60 do
        opts = [window: @window] ++ context.opts
        {:ok, socket} = Remote.ask(owner, :open, [{context.server, node()}, :route, opts])
        socket
      end

    signal!(context.vm, "STOP")
    for socket <- sockets, do: :ok = NetlinkPort.send(socket, Rtnl.dump_routes(1))
    sockets
  end

  test "a suspended node delays no other socket; its datagrams are bounded, and arrive when it goes on",
       context do
    %{server: server, opts: opts} = context
    {:ok, ours} = NetlinkPort.open(server, :route, opts)
    owner = Remote.recorder(context.node)
    sockets = fill!(context, owner)
    eventually!(fn -> suspended?(server) end)
    assert {:ok, [_link]} = NetlinkPort.request(ours, 18, @getlink)
    # Owners there get no messages, and no process waits for them.
    {:ok, idle} = NetlinkPort.open(server, :route, [owner: owner] ++ opts)
    assert {:ok, %{owner: ^owner}} = NetlinkPort.info(idle)
    assert :ok = NetlinkPort.close(idle)
    # At most what the windows allow. A datagram of a dump has 32 kB.
    {:message_queue_len, waiting} = Process.info(relay(server), :message_queue_len)
    assert waiting <= div(@window + 32_768, 16_384) * length(sockets)

    signal!(context.vm, "CONT")
    done = fn -> Enum.count(Remote.read(owner), &done?/1) end
    eventually!(fn -> done.() == length(sockets) end, 20_000)
    GenServer.stop(server)
    closed = fn -> Enum.count(Remote.read(owner), &match?({:netlink_closed, _, :normal}, &1)) end
    eventually!(fn -> closed.() == length(sockets) end)
  end

  # NLMSG_DONE, whose message comes last.
  defp done?({:netlink, _socket, datagram}) do
    {type, _sequence, _payload} = List.last(Rtnl.messages(datagram))
    type == 3
  end

  defp done?(_other), do: false

  test "a suspended node does not prevent the end of a server, or of its own sockets when it is killed",
       context do
    %{server: server} = context
    helper = os_pid(server)
    before = fds(server)
    owner = Remote.recorder(context.node)
    fill!(context, owner)
    eventually!(fn -> suspended?(server) end)
    relay = relay(server)
    signal!(context.vm, "KILL")
    eventually!(fn -> fds(server) == before end)
    eventually!(fn -> not Process.alive?(relay) end)
    GenServer.stop(server)
    eventually!(fn -> not running?(helper) end)
  end

  test "a suspended node does not delay a monitor's other subscribers; its own are sent everything later",
       context do
    opts = [server: context.server, groups: [@links], dump: [@dump_routes]] ++ context.opts
    monitor = start_supervised!({Monitor, opts})
    arguments = [self(), monitor]
    there = for _n <- 1..8, do: Node.spawn(context.node, Remote, :take_snapshots, arguments)
    {:ok, ^monitor} = Monitor.subscribe(monitor)
    for pid <- there, do: assert_receive({:snapshot, ^pid}, within(20_000))
    assert_receive {:netlink_snapshot, ^monitor, :end}, within(20_000)

    # A snapshot for each of them is more than the connection takes.
    signal!(context.vm, "STOP")
    context.server |> os_pid() |> signal!("KILL")
    assert_receive {:netlink_resync, ^monitor, {:closed, _reason}}
    assert_receive {:netlink_snapshot, ^monitor, :end}, within(20_000)
    eventually!(fn -> suspended?(monitor) end)
    ip!(["-n", context.netns, "link", "add", "br0", "type", "bridge"])
    assert_receive {:netlink_event, ^monitor, _datagram}

    signal!(context.vm, "CONT")
    for pid <- there, do: assert_receive({:snapshot, ^pid}, within(20_000))
  end

  test "a suspended node does not delay a connection's other callers; its own are answered later",
       context do
    opts = [server: context.server, protocol: :route] ++ context.opts
    connection = start_supervised!({Connection, opts})
    :sys.suspend(connection)

    for n <- 1..12 do
      arguments = [{:dump, n}, Remote, :dump, [connection, @dump_routes]]
      :erpc.cast(context.node, Remote, :keep, arguments)
    end

    eventually!(fn -> Process.info(connection, :message_queue_len) == {:message_queue_len, 12} end)

    signal!(context.vm, "STOP")
    :sys.resume(connection)
    # All calls are answered, as far as the connection goes.
    eventually!(fn -> Calls.count(:sys.get_state(connection).calls) == 0 end, 20_000)
    assert suspended?(connection)
    assert {:ok, [_link]} = Connection.request(connection, 18, @getlink)

    signal!(context.vm, "CONT")
    kept = fn n -> :erpc.call(context.node, Remote, :kept, [{:dump, n}]) end
    for n <- 1..12, do: eventually!(fn -> (kept.(n) || 0) >= 20_000 end, 20_000)
  end
end
