defmodule NetlinkPort.GenericFollowTest do
  # Groups of generic families by name. They are joined again when a family is registered again.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Generic, Message, Monitor, Nlctrl}

  @moduletag :root

  # A family that this kernel does not have, and its number.
  @family "nlp-fake"
  @id 1_000

  setup do
    netns = netns!()
    server = :"server#{System.unique_integer([:positive])}"
    start_server!(name: server, restart: :permanent)
    {:ok, asking} = NetlinkPort.open(server, :generic, netns: {:name, netns}, active: false)
    {:ok, families} = Generic.families(asking)

    groups =
      for %{name: name, groups: groups} when name in ["ethtool", "netdev"] <- families,
          {group, number} <- groups,
          into: %{},
          do: {group, number}

    peer = Nlctrl.peer!(server, netns)
    ip!(["-n", netns, "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
    %{netns: netns, server: server, asking: asking, peer: peer, numbers: groups}
  end

  # Makes an event in the group `monitor` of ethtool; see generic_test.exs.
  defp in_monitor!(%{asking: asking}) do
    for {bit, on?} <- [{"tx-checksum-ip-generic", false}, {"tx-checksum-ip-generic", true}] do
      value = if on?, do: [{3, ""}], else: []
      payload = Attr.encode([{1, [{2, "v0\0"}]}, {3, [{3, [{1, [{2, bit <> "\0"} | value]}]}]}])
      {:ok, _changed} = Generic.request(asking, "ethtool", 12, payload)
    end
  end

  # Makes an event in the group `mgmt` of netdev.
  defp in_mgmt!(%{netns: netns}) do
    name = "b#{System.unique_integer([:positive])}"
    ip!(["-n", netns, "link", "add", name, "type", "bridge"])
  end

  defp family(datagram, %{asking: asking}) do
    {:ok, [%Message{type: type} | _]} = Message.decode(datagram)
    {:ok, families} = Generic.families(asking)
    Enum.find_value(families, &(&1.id == type && &1.name))
  end

  describe "a socket" do
    setup context do
      opts = [netns: {:name, context.netns}, active: false, user_peers: true]
      {:ok, socket} = NetlinkPort.open(context.server, :generic, opts)
      {:ok, socket: socket}
    end

    # The next datagram, as the owner takes it.
    defp take(follow, socket) do
      {:ok, datagram, _metadata} = NetlinkPort.recv(socket, within(5_000))
      {:ok, changed, follow} = Generic.rejoin(follow, datagram)
      {changed, follow, datagram}
    end

    test "follows a group that exists", %{socket: socket, numbers: numbers} = context do
      {:ok, follow} = Generic.follow(socket, [{"ethtool", "monitor"}])
      assert NetlinkPort.memberships(socket) == {:ok, Enum.sort([16, numbers["monitor"]])}
      in_monitor!(context)
      assert {[], ^follow, datagram} = take(follow, socket)
      assert family(datagram, context) == "ethtool"
    end

    @tag :netdev
    test "joins a group that is registered later, and again by its new number", context do
      %{socket: socket, numbers: numbers, peer: peer} = context
      {:ok, follow} = Generic.follow(socket, [{@family, "events"}])
      assert NetlinkPort.memberships(socket) == {:ok, [16]}
      Nlctrl.registered(peer, @family, @id, %{"events" => numbers["monitor"]})
      assert {[@family], follow, _datagram} = take(follow, socket)
      in_monitor!(context)
      assert {[], follow, datagram} = take(follow, socket)
      assert family(datagram, context) == "ethtool"
      {[], follow, _second} = take(follow, socket)
      # A repeated event changes nothing, nor does the end of an earlier registration.
      Nlctrl.registered(peer, @family, @id, %{"events" => numbers["monitor"]})
      Nlctrl.unregistered(peer, @family, @id - 1)
      assert {[], follow, _datagram} = take(follow, socket)
      assert {[], follow, _datagram} = take(follow, socket)
      Nlctrl.unregistered(peer, @family, @id)
      assert {[@family], follow, _datagram} = take(follow, socket)
      Nlctrl.registered(peer, @family, @id + 1, %{"events" => numbers["mgmt"]})
      assert {[@family], follow, _datagram} = take(follow, socket)
      in_mgmt!(context)
      assert {[], _follow, datagram} = take(follow, socket)
      assert family(datagram, context) == "netdev"
    end

    @tag :netdev
    test "ignores other families, and malformed datagrams", context do
      %{socket: socket, peer: peer, numbers: numbers} = context
      {:ok, follow} = Generic.follow(socket, [{"ethtool", "monitor"}])
      Nlctrl.registered(peer, @family, @id, %{"monitor" => numbers["mgmt"]})
      assert {[], ^follow, _datagram} = take(follow, socket)

      for datagram <- ["", <<0::128>>, <<16::32-native, 16::16-native, 0::80>>, <<1::32-native>>] do
        assert Generic.rejoin(follow, datagram) == {:ok, [], follow}
      end
    end

    test "raises for groups of another form", %{socket: socket} do
      for groups <- [
            ["ethtool"],
            [{"ethtool", "monitor"} | :x],
            [{"ethtool", "monitor", 1}],
            {"ethtool", "monitor"},
            [{"ethtool", 1}],
            :ethtool,
            [{"a name of seventeen", "x"}]
          ] do
        assert_raise ArgumentError, fn -> Generic.follow(socket, groups) end
      end
    end
  end

  describe "a monitor" do
    defp monitor!(context, opts) do
      place = [server: context.server, netns: {:name, context.netns}, protocol: :generic]
      monitor = start_supervised!({Monitor, Keyword.merge(place, opts)}, restart: :temporary)
      assert Monitor.subscribe(monitor) == {:ok, monitor}
      monitor
    end

    defp next(monitor) do
      assert_receive message when elem(message, 1) == monitor
      message
    end

    test "follows a group by its name", context do
      monitor = monitor!(context, groups: [{"ethtool", "monitor"}])
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      in_monitor!(context)
      assert {:netlink_event, ^monitor, datagram} = next(monitor)
      assert family(datagram, context) == "ethtool"
    end

    @tag :netdev
    test "is down while a family does not exist, and joins its groups each time it is registered",
         context do
      %{peer: peer, numbers: numbers} = context
      monitor = monitor!(context, groups: [{@family, "events"}], user_peers: true)
      assert {:netlink_down, ^monitor, {:error, error}} = next(monitor)

      assert Exception.message(error) =~
               ~r/group events of nlp-fake: ENOENT: .*no such group, or there is no such family/

      assert {error.stage, error.reason} == {:request, :enoent}
      # The socket waits, and does not ask again and again.
      assert {:ok, %{sockets: sockets}} = NetlinkPort.stats(context.server)
      sent = fn sockets -> Enum.sum(for socket <- sockets, do: socket.sent) end
      refute_receive {_tag, ^monitor, _any}, 300
      assert {:ok, %{sockets: later}} = NetlinkPort.stats(context.server)
      assert sent.(later) == sent.(sockets)

      Nlctrl.registered(peer, @family, @id, %{"events" => numbers["monitor"]})
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      in_monitor!(context)
      for _n <- 1..2, do: assert({"ethtool", :event} == event(monitor, context))
      Nlctrl.unregistered(peer, @family, @id)
      assert {:netlink_down, ^monitor, {:error, %{reason: :enoent}}} = next(monitor)
      Nlctrl.registered(peer, @family, @id + 1, %{"events" => numbers["mgmt"]})
      assert {:netlink_resync, ^monitor, {:family, @family}} = next(monitor)
      # The group that it was in is not its group any more.
      in_monitor!(context)
      in_mgmt!(context)
      assert {"netdev", :event} == event(monitor, context)
    end

    # Datagrams that come during a request on a passive socket are in the mailbox. `report` is called when the families
    # have been read.
    test "finds a family that is registered while it reads the families", context do
      %{server: server, numbers: numbers} = context
      opts = [server: server, netns: {:name, context.netns}, protocol: :generic]
      {:ok, config} = NetlinkPort.Monitor.Config.new([groups: [{@family, "events"}]] ++ opts)
      notice = Nlctrl.datagram(1, @family, @id, %{"events" => numbers["monitor"]})
      reading = self()

      for message <- [&{:netlink, &1, notice}, &{:netlink, &1, notice, %{group: 16, nsid: nil}}] do
        report = fn %Error{reason: :enoent} ->
          {:ok, %{sockets: sockets}} = NetlinkPort.stats(server)

          [socket] =
            for %{owner: ^reading, protocol: :generic, handle: handle} = stats <- sockets,
                handle not in [Socket.handle(context.asking), Socket.handle(context.peer)],
                do: stats.socket

          send(reading, message.(socket))
        end

        assert {:ok, socket, [], %{families: %{@family => %{id: @id}}}} =
                 NetlinkPort.Monitor.Opening.run(config, idle_process(), nil, [], report)

        assert NetlinkPort.memberships(socket) == {:ok, Enum.sort([16, numbers["monitor"]])}
        NetlinkPort.close(socket)
      end
    end

    # The task that opens the socket passes on what came during its requests, before its result.
    test "is down again for a family that is unregistered while it opens its socket", context do
      %{server: server, peer: peer, numbers: numbers} = context
      monitor = monitor!(context, groups: [{@family, "events"}], user_peers: true)
      assert {:netlink_down, ^monitor, {:error, %{reason: :enoent}}} = next(monitor)
      %{opening: %{pid: opening}} = :sys.get_state(monitor)
      {:ok, %{sockets: sockets}} = NetlinkPort.stats(server)
      [socket] = for %{owner: ^opening} = stats <- sockets, do: stats.socket
      send(monitor, {:netlink, socket, Nlctrl.datagram(2, @family, @id, %{})})
      Nlctrl.registered(peer, @family, @id, %{"events" => numbers["monitor"]})

      # Another task waits for the family.
      eventually!(fn ->
        case :sys.get_state(monitor) do
          %{opening: %{pid: pid}, place: {:down, {:error, %{reason: :enoent}}}} -> pid != opening
          _not_yet -> false
        end
      end)

      refute_received {:netlink_resync, ^monitor, _reason}
    end

    @tag :netdev
    test "waits for a family with the next helper, and in the next namespace", context do
      monitor = monitor!(context, groups: [{@family, "events"}], user_peers: true)
      assert {:netlink_down, ^monitor, {:error, %{reason: :enoent}}} = next(monitor)
      context.server |> os_pid() |> signal!("KILL")
      eventually!(fn -> waiting?(context) end)
      ip!(["netns", "del", context.netns])
      ip!(["netns", "add", context.netns])
      eventually!(fn -> waiting?(context) end)
      peer = Nlctrl.peer!(context.server, context.netns)
      Nlctrl.registered(peer, @family, @id, %{"events" => context.numbers["mgmt"]})
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      in_mgmt!(context)
      assert {"netdev", :event} == event(monitor, context_of(context))
    end

    # The new socket is in the present namespace of that name, and has asked for the families.
    defp waiting?(%{server: server, netns: netns}) do
      with {:ok, %{sockets: [%{sent: 1, inode: inode, received: received}]}} <-
             NetlinkPort.stats(server),
           do: inode == inode(netns_path(netns)) and received > 0,
           else: (_not_yet -> false)
    end

    # With a socket of the present helper.
    defp context_of(context) do
      place = [netns: {:name, context.netns}, active: false]
      {:ok, asking} = NetlinkPort.open(context.server, :generic, place)
      %{context | asking: asking}
    end

    defp event(monitor, context) do
      assert {:netlink_event, ^monitor, datagram, _metadata} = next(monitor)
      {family(datagram, context), :event}
    end

    @tag :netdev
    test "reads its dump and joins its group again after a registration", context do
      # ETHTOOL_MSG_STRSET_GET with a header, without which Linux 6.1 answers EINVAL.
      dump = [{"ethtool", [<<1, 1, 0::16>>, Attr.encode([{1, []}])]}]
      groups = [{"ethtool", "monitor"}]
      monitor = monitor!(context, groups: groups, dump: dump, user_peers: true)
      {:ok, %{id: id}} = Generic.family(context.asking, "ethtool")

      for reason <- [:subscribed, {:family, "ethtool"}] do
        assert {:netlink_resync, ^monitor, ^reason} = next(monitor)
        assert {:netlink_snapshot, ^monitor, :begin} = next(monitor)
        assert {:netlink_snapshot, ^monitor, [%Message{type: ^id} | _]} = next(monitor)
        assert {:netlink_snapshot, ^monitor, :end} = next(monitor)
        in_monitor!(context)
        for _n <- 1..2, do: assert({"ethtool", :event} == event(monitor, context))
        # The kernel's answer is current again.
        Nlctrl.registered(context.peer, "ethtool", @id, %{"monitor" => context.numbers["mgmt"]})
      end

      assert {:netlink_resync, ^monitor, {:family, "ethtool"}} = next(monitor)
    end

    test "does not pass on events of nlctrl unless its group is named", context do
      monitor = monitor!(context, groups: [{"ethtool", "monitor"}], user_peers: true)
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      Nlctrl.registered(context.peer, @family, @id, %{})
      in_monitor!(context)
      assert {"ethtool", :event} == event(monitor, context)
    end

    test "may be in the group of nlctrl itself", context do
      monitor = monitor!(context, groups: [{"nlctrl", "notify"}], user_peers: true)
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      Nlctrl.registered(context.peer, @family, @id, %{})
      assert {"nlctrl", :event} == event(monitor, context)
    end

    test "takes names only with the protocol :generic" do
      for opts <- [
            [groups: [{"ethtool", "monitor"}]],
            [protocol: :generic, groups: [{"ethtool", 1}]],
            [protocol: :generic, groups: [{:ethtool, "monitor"}]],
            [dump: [{"ethtool", ""}]]
          ] do
        assert_raise ArgumentError, fn -> Monitor.start_link(opts) end
      end
    end

    # The family of drop_monitor exists only in the initial namespace.
    for {family, group, module, host?} <- [
          {"psample", "config", "psample", false},
          {"NET_DM", "events", "drop_monitor", true}
        ] do
      @tag :modules
      test "joins the group of #{module} again after that is unloaded and loaded", context do
        {family, group, module} = {unquote(family), unquote(group), unquote(module)}
        netns = if unquote(host?), do: :host, else: {:name, context.netns}
        {:ok, asking} = NetlinkPort.open(context.server, :generic, netns: netns, active: false)
        context = %{context | asking: asking}
        on_exit(fn -> as_root("modprobe", ["--remove", module]) end)
        monitor = monitor!(context, groups: [{family, group}], netns: netns)
        # It loads no module by itself.
        assert {:netlink_down, ^monitor, {:error, %{reason: :enoent}}} = next(monitor)
        refute File.read!("/proc/modules") =~ ~r/^#{module} /m
        {_output, 0} = as_root("modprobe", [module])
        assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
        assert in_group?(monitor, family, group, context)
        {_output, 0} = as_root("modprobe", ["--remove", module])
        assert {:netlink_down, ^monitor, {:error, %{reason: :enoent}}} = next(monitor)
        {_output, 0} = as_root("modprobe", [module])
        assert {:netlink_resync, ^monitor, {:family, ^family}} = next(monitor)
        assert in_group?(monitor, family, group, context)
      end
    end

    defp in_group?(monitor, family, group, %{asking: asking}) do
      {:joined, socket} = :sys.get_state(monitor).place
      {:ok, %{groups: %{^group => number}}} = Generic.family(asking, family)
      {:ok, numbers} = NetlinkPort.memberships(socket)
      number in numbers
    end
  end
end
