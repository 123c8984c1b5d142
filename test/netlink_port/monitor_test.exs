defmodule NetlinkPort.MonitorTest do
  use NetlinkPort.Case, async: true

  import NetlinkPort.Cost

  alias NetlinkPort.{Message, Mirror, Monitor}
  alias NetlinkPort.Monitor.Subscribers

  doctest NetlinkPort.Monitor
  doctest NetlinkPort.Monitor.Snapshot

  @moduletag :root

  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR
  @links 1
  @addresses 5
  # RTM_GETLINK of all links
  @dump_links {18, <<0::128>>}

  setup do
    server = :"server#{System.unique_integer([:positive])}"
    start_server!(name: server, restart: :permanent)
    %{server: server, netns: netns!()}
  end

  defp monitor!(context, opts) do
    opts = Keyword.merge([server: context.server, netns: {:name, context.netns}], opts)
    # A server that ends is not restarted: a new one would open the next socket.
    start_supervised!({Monitor, opts}, id: make_ref(), restart: :temporary)
  end

  defp subscribed!(monitor, opts \\ []) do
    assert Monitor.subscribe(monitor, opts) == {:ok, monitor}
    assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
    monitor
  end

  defp close_socket!(server, monitor) do
    {:ok, %{sockets: sockets}} = NetlinkPort.stats(server)
    [socket] = for %{owner: ^monitor, socket: socket} <- sockets, do: socket
    :ok = NetlinkPort.close(socket)
  end

  # The next message of any kind: the order counts.
  defp next(monitor, timeout \\ 5_000) do
    assert_receive message when elem(message, 1) == monitor, within(timeout)
    message
  end

  # The names of the links in the next snapshot.
  defp snapshot(monitor) do
    assert {:netlink_snapshot, ^monitor, :begin} = next(monitor)
    Enum.sort(links(monitor))
  end

  defp links(monitor) do
    case next(monitor) do
      {:netlink_snapshot, ^monitor, :end} ->
        []

      {:netlink_snapshot, ^monitor, messages} ->
        names = for %Message{type: 16, payload: payload} <- messages, do: Rtnl.link_name(payload)
        names ++ links(monitor)
    end
  end

  # The name of the link of the next event.
  defp event(monitor) do
    assert {:netlink_event, ^monitor, datagram} = next(monitor)
    [{_type, _sequence, payload}] = Rtnl.messages(datagram)
    Rtnl.link_name(payload)
  end

  defp address(monitor) do
    assert {:netlink_event, ^monitor, datagram} = next(monitor)
    [{20, _sequence, payload}] = Rtnl.messages(datagram)
    {10, 0, high, low} = Rtnl.address(payload)
    high * 256 + low
  end

  defp add_bridge!(netns, name), do: ip!(["-n", netns, "link", "add", name, "type", "bridge"])

  defp add_addresses!(netns, range) do
    ip_batch!(netns, for(n <- range, do: "addr add 10.0.#{div(n, 256)}.#{rem(n, 256)}/32 dev lo"))
  end

  # A subscriber in its own process, which passes everything on.
  defp follower!(monitor, opts \\ []) do
    test = self()

    pid =
      spawn_link(fn ->
        {:ok, ^monitor} = Monitor.subscribe(monitor, opts)
        send(test, {:following, self()})
        pass_on(test)
      end)

    assert_receive {:following, ^pid}
    pid
  end

  defp pass_on(test) do
    receive do
      message -> send(test, {self(), message})
    end

    pass_on(test)
  end

  defp subscribers(monitor),
    do: Subscribers.count(:sys.get_state(monitor).subscribers)

  defp kill_helper!(server), do: server |> os_pid() |> signal!("KILL")

  describe "a subscription" do
    test "begins with a resync, and events follow", context do
      monitor = subscribed!(monitor!(context, groups: [@links]))
      add_bridge!(context.netns, "br0")
      assert event(monitor) == "br0"
    end

    test "with dump begins with a snapshot, then changes", context do
      add_bridge!(context.netns, "br0")
      opts = [groups: [@links], dump: [@dump_links], name: :"m#{System.unique_integer()}"]
      monitor = monitor!(context, opts)
      assert Monitor.subscribe(opts[:name]) == {:ok, monitor}
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      assert snapshot(monitor) == ["br0", "lo"]
      add_bridge!(context.netns, "br1")
      assert event(monitor) == "br1"
    end

    test "that begins later has its own snapshot, and sends nothing to other subscribers",
         context do
      monitor = subscribed!(monitor!(context, groups: [@links], dump: [@dump_links]))
      assert snapshot(monitor) == ["lo"]
      add_bridge!(context.netns, "br0")
      assert event(monitor) == "br0"
      mirror = Mirror.start(monitor)
      eventually!(fn -> Mirror.read(mirror).tables != nil end)
      assert map_size(Mirror.read(mirror).tables) == 2
      refute_received {_tag, ^monitor, _any}
    end

    test "that is repeated begins again with a snapshot", context do
      monitor = subscribed!(monitor!(context, groups: [@links], dump: [@dump_links]))
      assert snapshot(monitor) == ["lo"]
      subscribed!(monitor)
      assert snapshot(monitor) == ["lo"]
      assert subscribers(monitor) == 1
      add_bridge!(context.netns, "br0")
      assert event(monitor) == "br0"
      refute_receive {_tag, ^monitor, _any}, 50
    end

    test "ends with unsubscribe/1, or with its process", context do
      monitor = subscribed!(monitor!(context, groups: [@links]))
      follower = follower!(monitor)
      assert subscribers(monitor) == 2
      Process.unlink(follower)
      Process.exit(follower, :kill)
      eventually!(fn -> subscribers(monitor) == 1 end)
      assert Monitor.unsubscribe(monitor) == :ok
      assert Monitor.unsubscribe(monitor) == :ok
      assert subscribers(monitor) == 0
      add_bridge!(context.netns, "br0")
      refute_receive {_tag, ^monitor, _any}, 50
    end

    test "of thousands of processes, and their end, cost the monitor in proportion to their number",
         context do
      test = self()

      assert_in_proportion(fn count ->
        monitor = monitor!(context, groups: [@links], dump: [@dump_links])

        reductions(monitor, fn ->
          followers = for _ <- 1..count, do: spawn(fn -> follow_snapshot(monitor, test) end)
          on_exit(fn -> Enum.each(followers, &Process.exit(&1, :kill)) end)
          for _ <- followers, do: assert_receive({:followed, _pid}, within(60_000))
          Enum.each(followers, &Process.exit(&1, :kill))
          eventually!(fn -> subscribers(monitor) == 0 end)
        end)
      end)
    end

    defp follow_snapshot(monitor, test) do
      {:ok, ^monitor} = Monitor.subscribe(monitor)
      receive(do: ({:netlink_snapshot, ^monitor, :end} -> send(test, {:followed, self()})))
      pass_on(test)
    end

    test "to a monitor that does not run is ESRCH" do
      assert {:error, %Error{reason: :esrch}} = Monitor.subscribe(:no_such_monitor)
      assert {:error, %Error{reason: :esrch}} = Monitor.unsubscribe(:no_such_monitor)
    end

    test "has metadata with pktinfo: true", context do
      monitor = subscribed!(monitor!(context, groups: [@links], pktinfo: true))
      add_bridge!(context.netns, "br0")
      assert {:netlink_event, ^monitor, _datagram, %{group: @links}} = next(monitor)
    end
  end

  describe "a gap" do
    test "by an overrun is one resync, after older events", context do
      monitor = subscribed!(monitor!(context, groups: [@addresses], rcvbuf: 10_000))
      helper = os_pid(context.server)
      signal!(helper, "STOP")
      add_addresses!(context.netns, 1..200)
      signal!(helper, "CONT")
      kept = up_to_resync(monitor, :overrun)
      assert kept == Enum.to_list(1..length(kept))
      assert length(kept) in 1..199
      add_addresses!(context.netns, 201..201)
      assert address(monitor) == 201
      refute_received {:netlink_resync, ^monitor, _reason}
    end

    defp up_to_resync(monitor, reason) do
      case next(monitor) do
        {:netlink_resync, ^monitor, ^reason} ->
          []

        {:netlink_event, ^monitor, datagram} ->
          [{20, _sequence, payload}] = Rtnl.messages(datagram)
          {10, 0, high, low} = Rtnl.address(payload)
          [high * 256 + low | up_to_resync(monitor, reason)]
      end
    end

    test "by the end of the helper is one down and one resync", context do
      monitor = subscribed!(monitor!(context, groups: [@links], dump: [@dump_links]))
      assert snapshot(monitor) == ["lo"]

      for n <- 1..3 do
        kill_helper!(context.server)
        assert {:netlink_down, ^monitor, {:closed, {:helper_exit, _status}} = why} = next(monitor)
        assert {:netlink_resync, ^monitor, ^why} = next(monitor)
        assert length(snapshot(monitor)) == n
        add_bridge!(context.netns, "br#{n}")
        assert event(monitor) == "br#{n}"
      end
    end

    test "by another process that closes the socket is one down and one resync", context do
      # The task that opens the socket gives this monitor its socket, and closes it again when the families change.
      by_name = [protocol: :generic, groups: [{"nlctrl", "notify"}]]

      for opts <- [[groups: [@links]], by_name] do
        monitor = subscribed!(monitor!(context, opts))

        for _ <- 1..2 do
          close_socket!(context.server, monitor)
          assert {:netlink_down, ^monitor, {:closed, :closed}} = next(monitor)
          assert {:netlink_resync, ^monitor, {:closed, :closed}} = next(monitor)
        end

        if opts != by_name do
          add_bridge!(context.netns, "br0")
          assert event(monitor) == "br0"
        end
      end
    end

    test "by the end of the namespace lasts until the namespace is back", context do
      monitor = subscribed!(monitor!(context, groups: [@links], dump: [@dump_links]))
      assert snapshot(monitor) == ["lo"]
      add_bridge!(context.netns, "br0")
      assert event(monitor) == "br0"
      ip!(["netns", "del", context.netns])
      assert {:netlink_down, ^monitor, :namespace_gone} = next(monitor)
      # Long enough for several tries, of which one is reported.
      refute_receive {_tag, ^monitor, _any}, 200
      # A subscriber that comes meanwhile is told, too.
      follower = follower!(monitor)
      assert_receive {^follower, {:netlink_down, ^monitor, :namespace_gone}}
      ip!(["netns", "add", context.netns])
      assert {:netlink_resync, ^monitor, :namespace_gone} = next(monitor)
      assert snapshot(monitor) == ["lo"]
      assert_receive {^follower, {:netlink_resync, ^monitor, :subscribed}}
      add_bridge!(context.netns, "br1")
      assert event(monitor) == "br1"
    end

    test "by a datagram that cannot be received is a resync", context do
      switch = tmp_path!("fault")
      script = script!("exec #{fixture!("inject")} recvmsg EIO file:#{switch} #{helper()} \"$@\"")
      server = start_server!(executable: script)
      monitor = subscribed!(monitor!(context, server: server, groups: [@links]))
      File.write!(switch, "")
      add_bridge!(context.netns, "br0")
      assert {:netlink_resync, ^monitor, {:error, %Error{reason: :eio}}} = next(monitor)
      File.rm!(switch)
    end

    test "loses no events that come while the dump runs, and sends them after the snapshot",
         context do
      switch = tmp_path!("hold")
      on_exit(fn -> File.rm(switch <> ".held") end)
      # The helper is held in the first sendmsg(2), that of the dump.
      script =
        script!("exec #{fixture!("inject")} sendto EPERM hold:#{switch} #{helper()} \"$@\"")

      server = start_server!(executable: script, call_timeout: 60_000)
      File.write!(switch, "")

      monitor =
        subscribed!(monitor!(context, server: server, groups: [@links], dump: [@dump_links]))

      eventually!(fn -> File.exists?(switch <> ".held") end)
      add_bridge!(context.netns, "br0")
      refute_received {_tag, ^monitor, _any}
      File.rm!(switch <> ".held")
      # The link is in both.
      assert snapshot(monitor) == ["br0", "lo"]
      assert event(monitor) == "br0"
    end
  end

  describe "a monitor" do
    test "starts before its server and its namespace, and reports what is missing", context do
      ip!(["netns", "del", context.netns])
      server = :"server#{System.unique_integer([:positive])}"
      monitor = monitor!(context, server: server, groups: [@links])
      assert Monitor.subscribe(monitor) == {:ok, monitor}
      assert {:netlink_down, ^monitor, {:error, %Error{reason: :esrch}}} = next(monitor)
      start_server!(name: server)
      refute_receive {_tag, ^monitor, _any}, 100
      ip!(["netns", "add", context.netns])
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
    end

    test "delays no subscriber while its server does not answer", context do
      :sys.suspend(context.server)
      monitor = monitor!(context, groups: [@links])
      follower = follower!(monitor)
      assert subscribers(monitor) == 1
      refute_received {^follower, _any}
      :sys.resume(context.server)
      assert_receive {^follower, {:netlink_resync, ^monitor, :subscribed}}
    end

    test "whose socket is closed before the reply of the open opens another", context do
      closed_while_opening(context, fn server, _monitor -> kill_helper!(server) end)
    end

    test "whose socket another process closes before the reply of the open opens another",
         context do
      closed_while_opening(context, &close_socket!/2)
    end

    defp closed_while_opening(context, close) do
      hold = tmp_path!("hold")
      on_exit(fn -> File.rm(hold <> ".held") end)
      script = script!("exec #{fixture!("inject")} setns EPERM hold:#{hold} #{helper()} \"$@\"")
      server = :"server#{System.unique_integer([:positive])}"
      start_server!(name: server, executable: script, restart: :permanent)
      File.write!(hold, "")
      monitor = monitor!(context, server: server, groups: [@links])
      eventually!(fn -> File.exists?(hold <> ".held") end)
      %{opening: %{pid: opening}} = :sys.get_state(monitor)
      :erlang.suspend_process(opening)
      File.rm!(hold <> ".held")
      eventually!(fn -> match?({:ok, %{sockets: 1}}, NetlinkPort.info(server)) end)
      close.(server, monitor)
      eventually!(fn -> :sys.get_state(monitor).closed != [] end)
      :erlang.resume_process(opening)
      assert Monitor.subscribe(monitor) == {:ok, monitor}
      await_resync(monitor)
      add_bridge!(context.netns, "br0")
      assert event(monitor) == "br0"
    end

    # The subscriber may come too early or too late to be told that the monitor was down.
    defp await_resync(monitor) do
      with {:netlink_down, ^monitor, {:closed, _reason}} <- next(monitor), do: next(monitor)
    end

    test "of the host's namespace is like any other", context do
      monitor =
        subscribed!(monitor!(context, netns: :host, groups: [@links], dump: [@dump_links]))

      assert "lo" in snapshot(monitor)
    end

    test "reports a failing dump once, and repeats it", context do
      # No rtnetlink message has this type.
      monitor = subscribed!(monitor!(context, groups: [@links], dump: [{1_000, ""}]))
      assert {:netlink_error, ^monitor, %Error{reason: :eopnotsupp}} = next(monitor)
      eventually!(fn -> :sys.get_state(monitor).dump_wait > 80 end)
      refute_received {_tag, ^monitor, _any}
    end

    test "leaves nothing behind when it ends, nor do its dumps", context do
      before = fds(context.server)
      monitor = subscribed!(monitor!(context, groups: [@links], dump: [@dump_links]))
      assert snapshot(monitor) == ["lo"]
      # The socket, and inotify.
      eventually!(fn -> fds(context.server) == before + 2 end)
      :ok = GenServer.stop(monitor)
      eventually!(fn -> fds(context.server) == before end)
    end

    test "ignores unexpected messages", context do
      monitor = subscribed!(monitor!(context, groups: [@links]))
      send(monitor, {:netlink, :nothing, ""})
      send(monitor, {:netlink_closed, :nothing, :why})
      send(monitor, {make_ref(), {:ok, :nothing}})
      add_bridge!(context.netns, "br0")
      assert event(monitor) == "br0"
    end

    test "and a connection answer EINVAL to the calls of a server", context do
      monitor = monitor!(context, groups: [@links])

      {:ok, connection} =
        start_supervised({NetlinkPort.Connection, server: context.server, protocol: :route})

      GenServer.cast(monitor, :nothing)

      for other <- [monitor, connection] do
        assert {:error, %{reason: :einval}} = NetlinkPort.stats(other)
        assert {:error, %{reason: :einval}} = NetlinkPort.info(other)
        assert {:error, %{reason: :einval}} = NetlinkPort.socket(other, 1)
        assert NetlinkPort.Native.bind_netlink(other, 1, 1) == {:error, 22}
        assert NetlinkPort.Native.close_fd(other, 1) == :ok
        assert Process.alive?(other)
      end
    end

    test "raises for wrong entries of dump: and subscription:, and names the option",
         context do
      {:ok, pin} = NetlinkPort.pin(context.server, :host)

      for {option, wrong} <- [
            dump: [{18, ""} | :x],
            dump: [{18, :x}],
            dump: [{18, pin}],
            dump: [{18, [<<0>>, pin]}],
            dump: %{},
            subscription: ["" | :x],
            subscription: [{1, [], :x}],
            subscription: [{1, [], pin}],
            subscription: [[1, :x]],
            subscription: %{}
          ] do
        assert_raise ArgumentError, ~r/expected #{option}: /, fn ->
          Monitor.start_link([{option, wrong}])
        end
      end
    end

    test "raises for a message of dump: or subscription: that NetlinkPort.dump/4 raises for" do
      for type <- [16, 17],
          {option, entry} <- [dump: {type, <<0, 0, 0, 10>>}, subscription: {type, [], <<10::32>>}] do
        assert_raise ArgumentError, ~r/expected #{option}: .*type #{type} .*nf_tables/, fn ->
          Monitor.start_link([{option, [entry]}, protocol: :netfilter])
        end
      end
    end

    test "raises for wrong options" do
      for opts <- [
            [active: true],
            [owner: self()],
            [dump: :links],
            [dump: [18]],
            [dump: [{70_000, ""}]],
            [groups: [0]],
            [protocol: :nothing],
            [server: 1],
            [rcvbuf: -1]
          ] do
        assert_raise ArgumentError, fn -> Monitor.start_link(opts) end
      end

      for opts <- [[max_queue: 0], [max_queue: :infinity], [window: 1]] do
        assert_raise ArgumentError, fn -> Monitor.subscribe(self(), opts) end
      end

      assert_raise ArgumentError, ~r/max_queue: is an option of .*\.subscribe\/2$/, fn ->
        Monitor.start_link(max_queue: 10)
      end

      assert_raise ArgumentError, ~r/groups: is an option of .*\.start_link\/1$/, fn ->
        Monitor.subscribe(self(), groups: [1])
      end
    end
  end

  describe "a subscriber" do
    test "that is suspended is :behind, delays no other, and takes no memory", context do
      count = room!(context.server, 1_000)
      monitor = monitor!(context, groups: [@addresses], rcvbuf: 8_000_000)
      slow = follower!(monitor, max_queue: 100)
      assert_receive {^slow, {:netlink_resync, ^monitor, :subscribed}}
      :erlang.suspend_process(slow)
      subscribed!(monitor)
      add_addresses!(context.netns, 1..count)
      for n <- 1..count, do: assert(address(monitor) == n)
      {:message_queue_len, length} = Process.info(slow, :message_queue_len)
      assert length <= 100
      [{_ref, %{queue: queue, phase: phase}}] = owed(monitor)
      assert {phase, :queue.len(queue)} == {{:owed, :behind, false}, 0}
      :erlang.resume_process(slow)
      # First the messages in its mailbox, in order, then the resync, then later messages.
      for n <- 1..length, do: assert({n, :event} == {n, follows(slow, monitor)})
      assert follows(slow, monitor) == {:resync, :behind}
      add_addresses!(context.netns, (count + 1)..(count + 1))
      assert follows(slow, monitor) == :event
      refute_receive {^slow, _any}, 50
    end

    test "is sent every event after the monitor was suspended, whose mailbox has a bound",
         context do
      # The mailbox holds 1,000.
      count = room!(context.server, 1_500)
      monitor = subscribed!(monitor!(context, groups: [@addresses], rcvbuf: 8_000_000))
      :sys.suspend(monitor)
      add_addresses!(context.netns, 1..count)
      {:ok, _info} = NetlinkPort.info(context.server)
      {:message_queue_len, length} = Process.info(monitor, :message_queue_len)
      assert length in 1..1_000
      :sys.resume(monitor)
      for n <- 1..count, do: assert(address(monitor) == n)
    end

    defp owed(monitor) do
      for {_ref, %{phase: {:owed, _, _}}} = one <- :sys.get_state(monitor).subscribers.all,
          do: one
    end

    defp follows(pid, monitor) do
      assert_receive {^pid, message}

      case message do
        {:netlink_event, ^monitor, _datagram} -> :event
        {:netlink_resync, ^monitor, reason} -> {:resync, reason}
      end
    end
  end
end
