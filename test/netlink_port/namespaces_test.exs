defmodule NetlinkPort.NamespacesTest do
  use NetlinkPort.Case, async: true

  @moduletag :root

  @link_group 1
  @ipv4_address_group 5

  setup do
    %{server: start_server!(), netns: netns!()}
  end

  defp open!(server, netns, opts \\ []) do
    {:ok, socket} = NetlinkPort.open(server, :route, [netns: {:name, netns}] ++ opts)
    socket
  end

  # The network namespaces of the threads of a process, from /proc.
  defp namespaces(os_pid) do
    for thread <- Path.wildcard("/proc/#{os_pid}/task/*/ns/net"), uniq: true do
      File.read_link!(thread)
    end
  end

  test "a link that is made in one namespace is seen there and nowhere else",
       %{server: server} = context do
    other = netns!()
    here = open!(server, context.netns, groups: [@link_group])
    there = open!(server, other, groups: [@link_group])
    {:ok, host} = NetlinkPort.open(server, :route, groups: [@link_group])

    ip!(["-n", context.netns, "link", "add", "br0", "type", "bridge"])
    assert_receive {:netlink, ^here, datagram}
    assert [{16, 0, payload} | _] = Rtnl.messages(datagram)
    assert Rtnl.link_name(payload) == "br0"

    # Messages to other processes would have been sent before this one.
    ip!(["-n", other, "link", "add", "br1", "type", "bridge"])
    assert_receive {:netlink, ^there, datagram}
    assert [{16, 0, payload} | _] = Rtnl.messages(datagram)
    assert Rtnl.link_name(payload) == "br1"
    refute_received {:netlink, ^host, _}
  end

  test "info/1 shows the namespace that a socket really is in", %{server: server, netns: netns} do
    inode = inode(netns_path(netns))
    socket = open!(server, netns)
    assert {:ok, %{inode: ^inode, verified: true, cookie: cookie}} = NetlinkPort.info(socket)
    assert cookie?(cookie)

    {:ok, host} = NetlinkPort.open(server, :route, netns: :host)
    home = inode("/proc/self/ns/net")
    assert {:ok, %{inode: ^home, cookie: other}} = NetlinkPort.info(host)
    assert cookie == nil or other != cookie
    assert {:ok, %{home_inode: ^home}} = NetlinkPort.info(server)
  end

  test "every kind of target leads to the same namespace", %{server: server, netns: netns} do
    inode = inode(netns_path(netns))
    os_pid = sleeper!(netns)

    for target <- [{:name, netns}, {:path, netns_path(netns)}, {:pid, os_pid}] do
      assert {:ok, socket} = NetlinkPort.open(server, :route, netns: target)
      assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
    end
  end

  test "a process that has ended is ESRCH", %{server: server} do
    port = Port.open({:spawn, "true"}, [:exit_status])
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    assert_receive {^port, {:exit_status, 0}}
    eventually!(fn -> not File.exists?("/proc/#{os_pid}") end)
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, os_pid})
    assert {error.stage, error.reason} == {:open, :esrch}
  end

  test "an open of a process that ends meanwhile is ESRCH, or in its namespace", %{server: server} do
    home = inode("/proc/self/ns/net")

    for _ <- 1..200 do
      port = Port.open({:spawn, "true"}, [])

      with {:os_pid, os_pid} <- Port.info(port, :os_pid) do
        case NetlinkPort.open(server, :route, netns: {:pid, os_pid}) do
          {:ok, socket} -> assert {:ok, %{inode: ^home}} = NetlinkPort.info(socket)
          {:error, error} -> assert {error.stage, error.reason} == {:open, :esrch}
        end
      end
    end
  end

  test "a zombie is ESRCH, a loop of links ELOOP", %{server: server} do
    # exec leaves a child behind that no process waits for.
    port = Port.open({:spawn, "sh -c 'sleep 0.1 & echo $!; exec sleep 60'"}, [:binary, :line])
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> as_root("kill", ["-KILL", "#{os_pid}"]) end)
    assert_receive {^port, {:data, {:eol, zombie}}}
    eventually!(fn -> File.read!("/proc/#{zombie}/stat") =~ ") Z " end)
    netns = {:pid, String.to_integer(zombie)}

    assert {:error, %Error{stage: :open, reason: :esrch}} =
             NetlinkPort.open(server, :route, netns: netns)

    loop = tmp_path!("loop")
    File.ln_s!(loop, loop)
    netns = {:path, loop}

    assert {:error, %Error{stage: :open, reason: :eloop}} =
             NetlinkPort.open(server, :route, netns: netns)
  end

  test "a namespace that is made again under its name is another", context do
    %{server: server, netns: netns} = context
    old = open!(server, netns, active: false)
    {:ok, %{inode: inode, cookie: cookie}} = NetlinkPort.info(old)
    ip!(["netns", "del", netns])
    {_output, _status} = as_root("ip", ["netns", "add", netns])
    ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
    new = open!(server, netns, active: false)
    assert {:ok, %{inode: other, cookie: another}} = NetlinkPort.info(new)
    assert other != inode and (cookie == nil or another != cookie)
    assert Rtnl.link_names(old) == ["lo"]
    assert Enum.sort(Rtnl.link_names(new)) == ["br0", "lo"]
  end

  # /proc shows this of a helper only to a process that may trace it.
  @tag :trace
  test "after every failed open all threads are in the helper's own namespace", %{
    server: server,
    netns: netns
  } do
    home = namespaces(System.pid())
    assert [one] = home
    assert namespaces(os_pid(server)) == [one]

    for {netns, protocol} <- [
          {{:name, netns}, 250},
          {{:name, "nlp-missing"}, 0},
          {{:path, "/proc/self/ns/mnt"}, 0},
          {{:path, "/etc"}, 0},
          {{:pid, 0x7FFFFFFF}, 0}
        ],
        _round <- 1..20 do
      assert {:error, %Error{}} = NetlinkPort.open(server, protocol, netns: netns)
      assert namespaces(os_pid(server)) == [one]
    end

    # A failing option closes the socket that was opened.
    before = fds(server)
    opts = [netns: {:name, netns}, groups: [100_000]]
    assert {:error, error} = NetlinkPort.open(server, :route, opts)
    assert {error.stage, error.subject} == {:setsockopt, "add_membership"}
    assert fds(server) == before
    assert namespaces(System.pid()) == home
  end

  test "a deleted namespace lives on while a socket is open in it", %{
    server: server,
    netns: netns
  } do
    socket = open!(server, netns, active: false)
    ip!(["netns", "del", netns])
    assert Rtnl.link_names(socket) == ["lo"]
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
    assert {error.stage, error.reason} == {:open, :enoent}
    assert Exception.message(error) =~ "open of /run/netns/#{netns}: ENOENT"
  end

  describe "requests and events" do
    test "a request has its reply, an error its errno", %{server: server, netns: netns} do
      socket = open!(server, netns, active: false)
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 7))
      assert {:ok, reply} = NetlinkPort.recv(socket, within(1_000))
      assert [{16, 7, payload}] = Rtnl.messages(reply)
      assert Rtnl.link_name(payload) == "lo"

      :ok = NetlinkPort.send(socket, Rtnl.getlink(12_345, 8), wait: true)
      assert {:ok, reply} = NetlinkPort.recv(socket, within(1_000))
      # NLMSG_ERROR with -ENODEV.
      assert [{2, 8, <<-19::32-signed-native, _::binary>>}] = Rtnl.messages(reply)
    end

    test "a dump of 10,000 routes is complete to the last one", %{server: server, netns: netns} do
      routes = for a <- 0..39, b <- 1..250, do: "route add blackhole 10.#{a}.#{b}.0/24"

      ip_batch!(netns, routes)
      socket = open!(server, netns, active: false)
      :ok = NetlinkPort.send(socket, Rtnl.dump_routes(3))
      # RTM_NEWROUTE of table main (254): those of lo are in table local.
      seen =
        for {24, 3, <<_family, _::24, 254, _::binary>> = route} <- Rtnl.collect(socket, 3),
            do: Rtnl.destination(route)

      wanted = for a <- 0..39, b <- 1..250, do: {10, a, b, 0}
      assert length(seen) == 10_000
      assert Enum.sort(seen) == Enum.sort(wanted)
    end

    test "events come in order", %{server: server, netns: netns} do
      # With room for all of them, however late the helper reads.
      count = room!(server, 500)
      socket = open!(server, netns, groups: [@ipv4_address_group], rcvbuf: 2_000_000)
      addresses = for n <- 1..count, do: {10, 0, div(n, 250), rem(n, 250)}
      lines = for a <- addresses, do: "addr add #{:inet.ntoa(a)}/32 dev lo"
      ip_batch!(netns, lines)

      seen =
        for _ <- addresses do
          assert_receive {:netlink, ^socket, datagram}
          [{20, _, payload}] = Rtnl.messages(datagram)
          Rtnl.address(payload)
        end

      assert seen == addresses
    end

    test "groups are joined and left, those above 32 too", %{server: server, netns: netns} do
      socket = open!(server, netns, groups: [@link_group, 33])
      assert NetlinkPort.memberships(socket) == {:ok, [1, 33]}
      assert NetlinkPort.leave(socket, @link_group) == :ok
      assert NetlinkPort.memberships(socket) == {:ok, [33]}
      assert NetlinkPort.join(socket, @link_group) == :ok
      assert NetlinkPort.memberships(socket) == {:ok, [1, 33]}
      assert NetlinkPort.leave(socket, @link_group) == :ok
      event = event_above_32(socket, netns)
      # Of the groups that were left, nothing comes before it.
      assert_above_32(socket, event)

      assert {:error, error} = NetlinkPort.join(socket, 100_000)
      assert {error.stage, error.reason} == {:setsockopt, :einval}

      # The longest list that is accepted fits into a command.
      many = open!(server, netns, groups: List.duplicate(1, 4_096))
      assert NetlinkPort.memberships(many) == {:ok, [1]}
    end

    defp assert_above_32(socket, event) do
      assert_receive {:netlink, ^socket, datagram}

      case Rtnl.messages(datagram) do
        [{^event, _, _} | _] -> :ok
        # RTM_NEWVLAN, of the first VLAN of a bridge, if the kernel has CONFIG_BRIDGE_VLAN_FILTERING.
        [{112, _, _} | _] -> assert_above_32(socket, event)
      end
    end

    # RTNLGRP_IPV4_MCADDR (37) since Linux 6.14, RTNLGRP_BRVLAN (33) before.
    defp event_above_32(socket, netns) do
      ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])

      case NetlinkPort.join(socket, 37) do
        :ok ->
          # A link that comes up joins 224.0.0.1: RTM_NEWMULTICAST.
          ip!(["-n", netns, "link", "set", "br0", "up"])
          56

        {:error, %Error{reason: :einval}} ->
          ip!(["-n", netns, "link", "set", "br0", "type", "bridge", "vlan_filtering", "1"])
          {_, 0} = as_root("bridge", ~w(-n #{netns} vlan add dev br0 vid 7 self))
          # RTM_NEWVLAN
          112
      end
    end

    test "generic: a family is resolved, and events of its group arrive", %{
      server: server,
      netns: netns
    } do
      {:ok, socket} = NetlinkPort.open(server, :generic, netns: {:name, netns}, active: false)
      # CTRL_CMD_GETFAMILY (3) of "nlctrl", attribute CTRL_ATTR_FAMILY_NAME (2).
      attribute = <<11::16-native, 2::16-native, "nlctrl", 0, 0>>
      request = Rtnl.message(16, 1, 5, <<3, 1, 0, 0, attribute::binary>>)
      :ok = NetlinkPort.send(socket, request)
      assert {:ok, reply} = NetlinkPort.recv(socket, within(1_000))
      assert [{16, 5, payload}] = Rtnl.messages(reply)
      assert payload =~ "nlctrl"
      # All families, as a dump.
      :ok = NetlinkPort.send(socket, Rtnl.message(16, 0x301, 6, <<3, 1, 0, 0>>))
      assert length(Rtnl.collect(socket, 6)) > 1
      # The group `notify` of nlctrl.
      assert NetlinkPort.join(socket, 16) == :ok
      assert NetlinkPort.memberships(socket) == {:ok, [16]}
    end

    test "sock_diag: a dump of sockets", %{server: server, netns: netns} do
      {:ok, socket} = NetlinkPort.open(server, :sock_diag, netns: {:name, netns}, active: false)
      # SOCK_DIAG_BY_FAMILY (20) for AF_NETLINK (16): struct netlink_diag_req, all protocols.
      request = Rtnl.message(20, 0x301, 9, <<16, 255, 0::16, 0::32, 0::32, 0::64>>)
      :ok = NetlinkPort.send(socket, request)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(socket)
      # struct netlink_diag_msg: our own socket is among them, with dst_portid 0.
      assert Enum.any?(Rtnl.collect(socket, 9), fn
               {20, 9, <<16, _, 4, _, ^port_id::32-native, 0::32, _::binary>>} -> true
               _other -> false
             end)
    end

    @tag :nftables
    test "netfilter: events of a table, and a dump", %{server: server, netns: netns} do
      # NFNLGRP_NFTABLES
      {:ok, socket} =
        NetlinkPort.open(server, :netfilter, netns: {:name, netns}, active: false, groups: [7])

      name = <<9::16-native, 1::16-native, "blue", 0, 0::24>>
      # NFNL_MSG_BATCH_BEGIN (16), NFT_MSG_NEWTABLE (10 << 8), NFNL_MSG_BATCH_END (17).
      batch = [
        Rtnl.message(16, 1, 1, <<0, 0, 10::16>>),
        Rtnl.message(0x0A00, 0x405, 2, <<2, 0, 0::16, name::binary>>),
        Rtnl.message(17, 1, 3, <<0, 0, 10::16>>)
      ]

      :ok = NetlinkPort.send(socket, batch)
      # The event to the group, and NLMSG_ERROR with 0: the acknowledgement.
      seen = drain(socket, &match?({2, 2, <<0::32, _::binary>>}, &1))
      assert Enum.any?(seen, fn {type, _, payload} -> type == 0x0A00 and payload =~ "blue" end)
      assert NetlinkPort.leave(socket, 7) == :ok

      :ok = NetlinkPort.send(socket, Rtnl.message(0x0A01, 0x301, 4, <<2, 0, 0::16>>))
      # NLMSG_DONE
      seen = drain(socket, &match?({3, 4, _}, &1))
      assert Enum.any?(seen, fn {_, sequence, payload} -> sequence == 4 and payload =~ "blue" end)
    end

    # All messages up to the expected one.
    defp drain(socket, last?, seen \\ []) do
      {:ok, datagram} = NetlinkPort.recv(socket, within(5_000))
      seen = seen ++ Rtnl.messages(datagram)
      if Enum.any?(seen, last?), do: seen, else: drain(socket, last?, seen)
    end
  end

  describe "options" do
    test "are read back as they were set", %{server: server, netns: netns} do
      socket = open!(server, netns)

      assert NetlinkPort.getopts(socket, [:ext_ack, :active]) ==
               {:ok, ext_ack: true, active: true}

      flags = ~w(pktinfo broadcast_error no_enobufs ext_ack cap_ack get_strict_chk)a

      for flag <- flags, value <- [true, false] do
        assert {flag, NetlinkPort.setopts(socket, [{flag, value}])} == {flag, :ok}
        assert NetlinkPort.getopts(socket, [flag]) == {:ok, [{flag, value}]}
      end

      # The kernel doubles the size.
      assert NetlinkPort.setopts(socket, rcvbuf: 200_000, sndbuf: 100_000) == :ok

      assert NetlinkPort.getopts(socket, [:rcvbuf, :sndbuf]) ==
               {:ok, rcvbuf: 400_000, sndbuf: 200_000}
    end

    # CAP_NET_ADMIN of the initial user namespace: SO_RCVBUFFORCE, socket(7).
    @tag :init_user_namespace
    test "buffers may be larger than the limit of the system", %{server: server, netns: netns} do
      socket = open!(server, netns)
      assert NetlinkPort.setopts(socket, rcvbuf: 80_000_000, sndbuf: 50_000_000) == :ok

      assert NetlinkPort.getopts(socket, [:rcvbuf, :sndbuf]) ==
               {:ok, rcvbuf: 160_000_000, sndbuf: 100_000_000}
    end

    @tag :net_broadcast
    test "listen_all_nsid is read back as it was set", %{netns: netns} do
      socket = open!(start_server!(keep: [:net_broadcast]), netns)

      for value <- [true, false] do
        assert NetlinkPort.setopts(socket, listen_all_nsid: value) == :ok
        assert NetlinkPort.getopts(socket, [:listen_all_nsid]) == {:ok, listen_all_nsid: value}
      end
    end

    test "at open have effect from the start", %{server: server, netns: netns} do
      opts = [ext_ack: false, pktinfo: true, rcvbuf: 100_000, groups: [1]]
      socket = open!(server, netns, opts)

      assert NetlinkPort.getopts(socket, [:ext_ack, :pktinfo, :rcvbuf]) ==
               {:ok, ext_ack: false, pktinfo: true, rcvbuf: 200_000}

      ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
      assert_receive {:netlink, ^socket, _datagram, %{group: 1, nsid: nil}}
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      assert_receive {:netlink, ^socket, _datagram, %{group: 0, nsid: nil}}
      :ok = NetlinkPort.setopts(socket, pktinfo: false)
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 2))
      assert_receive {:netlink, ^socket, _datagram}
    end

    @tag :net_broadcast
    test "listen_all_nsid names the namespace an event comes from", context do
      netns = context.netns
      server = start_server!(keep: [:net_broadcast])
      other = netns!()
      ip!(["-n", netns, "netns", "set", other, "42"])

      socket = open!(server, netns, groups: [@link_group], listen_all_nsid: true, active: false)

      ip!(["-n", other, "link", "add", "br0", "type", "bridge"])
      assert {:ok, _datagram, %{group: nil, nsid: 42}} = NetlinkPort.recv(socket, within(2_000))
      ip!(["-n", netns, "link", "add", "br1", "type", "bridge"])
      assert from_here?(socket)
    end

    # More events of the other namespace may come first.
    defp from_here?(socket) do
      case NetlinkPort.recv(socket, within(2_000)) do
        {:ok, _datagram, %{nsid: nil}} -> true
        {:ok, _datagram, %{nsid: 42}} -> from_here?(socket)
        {:error, %Error{reason: :etimedout}} -> false
      end
    end

    test "a filter keeps datagrams out until it is detached", %{server: server, netns: netns} do
      # BPF_RET | BPF_K with 0: nothing passes.
      nothing = [{0x06, 0, 0, 0}]
      socket = open!(server, netns, groups: [@link_group], filter: nothing)
      assert NetlinkPort.getopts(socket, [:filter]) == {:ok, filter: nothing}
      ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
      assert NetlinkPort.setopts(socket, filter: nil) == :ok
      assert NetlinkPort.getopts(socket, [:filter]) == {:ok, filter: []}
      ip!(["-n", netns, "link", "add", "br1", "type", "bridge"])
      assert_receive {:netlink, ^socket, datagram}
      assert [{16, 0, payload} | _] = Rtnl.messages(datagram)
      assert Rtnl.link_name(payload) == "br1"

      # A program that the kernel refuses.
      assert {:error, error} = NetlinkPort.setopts(socket, filter: [{0xFFFF, 0, 0, 0}])
      assert {error.stage, error.reason, error.subject} == {:setsockopt, :einval, "filter"}
    end

    test "that are unknown raise, with the list of known ones", %{server: server, netns: netns} do
      socket = open!(server, netns)

      assert_raise ArgumentError, ~r/:colour.*:pktinfo/s, fn ->
        NetlinkPort.setopts(socket, colour: 1)
      end

      assert_raise ArgumentError, ~r/:colour/, fn -> NetlinkPort.getopts(socket, [:colour]) end
    end
  end

  describe "descriptors" do
    test "2,000 opens and closes, failed opens among them, leave none behind", context do
      %{netns: netns} = context
      limited = script!("ulimit -n 64; exec #{helper()} \"$@\"")
      server = start_server!(executable: limited)
      {:ok, %{max_fds: 64, fds: before}} = NetlinkPort.info(server)

      for round <- 1..2_000 do
        case rem(round, 4) do
          0 ->
            assert {:error, %Error{}} = NetlinkPort.open(server, 250, netns: {:name, netns})

          1 ->
            opts = [netns: {:name, netns}, groups: [100_000]]
            assert {:error, %Error{}} = NetlinkPort.open(server, :route, opts)

          _other ->
            socket = open!(server, netns)
            assert NetlinkPort.close(socket) == :ok
        end
      end

      assert fds(server) == before
    end

    test "at the limit make an open EMFILE, and open sockets go on", %{netns: netns} do
      server = start_server!(executable: script!("ulimit -n 64; exec #{helper()} \"$@\""))
      {:ok, %{max_fds: 64, fds: before}} = NetlinkPort.info(server)
      sockets = open_to_the_limit(server, netns, [])
      assert length(sockets) > 40

      for _ <- 1..50 do
        assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
        assert error.reason == :emfile
        assert Exception.message(error) =~ "EMFILE"
      end

      assert {:ok, [rcvbuf: _]} = NetlinkPort.getopts(hd(sockets), [:rcvbuf])
      Enum.each(sockets, &NetlinkPort.close/1)
      assert fds(server) == before
      open!(server, netns)
    end

    defp open_to_the_limit(server, netns, sockets) do
      case NetlinkPort.open(server, :route, netns: {:name, netns}) do
        {:ok, socket} -> open_to_the_limit(server, netns, [socket | sockets])
        {:error, %Error{reason: :emfile}} -> sockets
      end
    end
  end

  describe "peers in user space" do
    test "are refused and counted by default", %{server: server, netns: netns} do
      target = open!(server, netns, active: false)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(target)

      {:ok, peer} =
        NetlinkPort.open(server, :route, netns: {:name, netns}, user_peers: true, active: false)

      # The kernel refuses unicast, since the target is connected to the kernel.
      assert {:error, error} = NetlinkPort.send(peer, Rtnl.noop(1), to: {port_id, 0})
      assert {error.stage, error.reason} == {:send, :econnrefused}
      assert Exception.message(error) =~ ~r/port id #{port_id}, or .* needs user_peers: true$/

      # The kernel lets multicast through; the helper drops and counts it.
      :ok = NetlinkPort.join(target, @link_group)
      assert :ok = NetlinkPort.send(peer, Rtnl.noop(2), to: {0, 1})
      eventually!(fn -> match?({:ok, %{foreign: 1}}, NetlinkPort.info(target)) end)
      assert Rtnl.link_names(target) == ["lo"]
    end

    test "get a datagram to their groups, also where the kernel does not listen and sendmsg(2) is ECONNREFUSED",
         %{server: server, netns: netns} do
      opts = [netns: {:name, netns}, user_peers: true]
      {:ok, member} = NetlinkPort.open(server, :usersock, [groups: [3]] ++ opts)
      {:ok, peer} = NetlinkPort.open(server, :usersock, [active: false] ++ opts)

      assert {:error, %{reason: :econnrefused} = error} =
               NetlinkPort.send(peer, "to the group", to: {0, 0b100})

      assert Exception.message(error) =~ "send: ECONNREFUSED: members of group 3 have got it"
      assert_receive {:netlink, ^member, "to the group", _metadata}, within(5_000)

      # To the kernel alone, in all ways of sending.
      for refused <- [
            NetlinkPort.send(peer, "x", wait: true),
            NetlinkPort.send(peer, "x", to: {0, 0}),
            NetlinkPort.request(peer, 16),
            NetlinkPort.batch(peer, [{16, [], ""}]),
            NetlinkPort.dump(peer, 16)
          ] do
        assert {:error, %{reason: :econnrefused} = error} = refused
        assert Exception.message(error) =~ "no part of the kernel listens to this protocol"
      end
    end

    test "get a datagram to several groups only if they are in the lowest, which the error names",
         context do
      [two, three] =
        for n <- [2, 3], do: socket!(context, :usersock, groups: [n], user_peers: true)

      peer = socket!(context, :usersock, user_peers: true, active: false)

      # The second shows that nothing more of the first was to come.
      for {groups, lowest} <- [{0b110, 2}, {0b100, 3}] do
        assert {:error, error} = NetlinkPort.send(peer, "to #{groups}", to: {0, groups})
        assert Exception.message(error) =~ "ECONNREFUSED: members of group #{lowest} have got it"
      end

      assert_receive {:netlink, ^two, "to 6", _metadata}, within(5_000)
      assert_receive {:netlink, ^three, datagram, _metadata}, within(5_000)
      assert datagram == "to 4"
    end

    test "whose receive queue is full are named by EAGAIN, and not the helper, which is idle",
         context do
      opts = [user_peers: true, active: false]
      slow = socket!(context, :usersock, [groups: [1], window: 1, rcvbuf: 0] ++ opts)
      peer = socket!(context, :usersock, opts)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(slow)
      # The helper reads the first, and no more: that uses up the window.
      :ok = NetlinkPort.send(peer, "first", to: {port_id, 0})
      eventually!(fn -> match?({:ok, %{received: 1}}, NetlinkPort.stats(slow)) end)
      assert {:error, error} = fill(peer, {port_id, 0}, 5_000)
      assert {error.stage, error.reason} == {:send, :eagain}

      assert Exception.message(error) ==
               "send: EAGAIN: port id #{port_id} has not got it: the receive queue of the peer is full; " <>
                 "send it again when the peer has read, or raise the peer's rcvbuf"

      # It goes to the group, too, and another member gets it.
      member = socket!(context, :usersock, [groups: [1]] ++ opts)
      assert {:error, error} = NetlinkPort.send(peer, "to both", to: {port_id, 1})
      assert error.reason == :eagain

      assert Exception.message(error) =~
               "EAGAIN: members of group 1 have got it; port id #{port_id}"

      assert {:ok, "to both", _metadata} = NetlinkPort.recv(member, within(5_000))

      assert {:ok, _datagram, _metadata} = NetlinkPort.recv(slow, within(5_000))
      eventually!(fn -> NetlinkPort.send(peer, "x", to: {port_id, 0}) == :ok end)
    end

    test "are sent nothing by a helper that does not read, and EAGAIN blames the helper",
         %{server: server} = context do
      peer = socket!(context, :usersock, user_peers: true, active: false)
      helper = os_pid(server)
      signal!(helper, :STOP)
      longest = :binary.copy(<<0>>, 1_000_000)
      refused = fn -> NetlinkPort.send(peer, longest, timeout: 0) end
      eventually!(fn -> match?({:error, %{reason: :eagain}}, refused.()) end)
      assert {:error, error} = NetlinkPort.send(peer, longest, to: {1, 1}, timeout: 0)
      signal!(helper, :CONT)

      assert Exception.message(error) ==
               "send: EAGAIN: the helper is not keeping up; try again later"
    end

    test "are not sent to by a socket without user_peers:, and EISCONN names that option",
         %{server: server, netns: netns} do
      socket = open!(server, netns)

      for peer <- [{5, 0}, {0, 1}, {5, 1}] do
        assert {:error, error} = NetlinkPort.send(socket, Rtnl.noop(1), to: peer)

        assert Exception.message(error) ==
                 "send: EISCONN: the socket is connected to the kernel, and sends to no peer; " <>
                   "open it with user_peers: true"
      end
    end

    # The queue has room for a few datagrams of this size.
    defp fill(peer, to, left) when left > 0 do
      with :ok <- NetlinkPort.send(peer, :binary.copy(<<0>>, 1_000), to: to),
           do: fill(peer, to, left - 1)
    end

    test "are received, with their port id, with user_peers: true", %{
      server: server,
      netns: netns
    } do
      opts = [netns: {:name, netns}, user_peers: true]
      {:ok, one} = NetlinkPort.open(server, :usersock, opts ++ [bind: 4_000_000_000])
      {:ok, other} = NetlinkPort.open(server, :usersock, opts)
      {:ok, %{port_id: from}} = NetlinkPort.info(other)
      assert {:ok, %{port_id: 4_000_000_000}} = NetlinkPort.info(one)
      assert :ok = NetlinkPort.send(other, "hello", to: {4_000_000_000, 0})
      assert_receive {:netlink, ^one, "hello", %{port_id: ^from, group: nil, nsid: nil}}
    end

    test "cannot take a port id twice", %{server: server, netns: netns} do
      assert {:ok, _} = NetlinkPort.open(server, :route, netns: {:name, netns}, bind: 77)
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns}, bind: 77)
      assert {error.stage, error.reason} == {:bind, :eaddrinuse}
    end
  end

  test "a file of ip netns add is EINVAL until the namespace is mounted on it" do
    server = start_server!()
    name = "nlp-#{System.pid()}-#{System.unique_integer([:positive])}"
    on_exit(fn -> as_root("ip", ["netns", "del", name]) end)
    # The steps of ip-netns(8).
    {_output, 0} = as_root("touch", [netns_path(name)])
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, name})
    assert {error.stage, error.reason} == {:setns, :einval}

    assert Exception.message(error) =~
             "it is not a network namespace: nothing is mounted on it. `ip netns add` makes the file a moment before"

    {_output, 0} =
      as_root("unshare", ["--net", "mount", "--bind", "/proc/self/ns/net", netns_path(name)])

    assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, name})
    assert {:ok, %{inode: inode}} = NetlinkPort.info(socket)
    assert inode == inode(netns_path(name))
  end
end
