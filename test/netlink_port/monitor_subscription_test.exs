defmodule NetlinkPort.MonitorSubscriptionTest do
  # Families whose subscription takes a message beside a group. The monitor sends it after each open.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Generic, Message, Monitor}

  @moduletag :root

  # NFNL_SUBSYS_ULOG and NFULNL_MSG_CONFIG, NFULNL_MSG_PACKET; NFULNL_CFG_CMD_BIND
  @config 0x0401
  @packet 0x0400
  @bind 1
  @group 5
  # CN_IDX_PROC; PROC_CN_MCAST_LISTEN, and an operation that does not exist
  @proc 1
  @listen 1
  @unknown 77
  # PROC_EVENT_NONE, the answer; PROC_EVENT_EXIT
  @none 0
  @exit 0x80000000

  setup do
    server = :"server#{System.unique_integer([:positive])}"
    start_server!(name: server, restart: :permanent)
    %{server: server, netns: netns!()}
  end

  defp monitor!(context, opts) do
    opts = Keyword.merge([server: context.server, netns: {:name, context.netns}], opts)
    start_supervised!({Monitor, opts}, id: make_ref(), restart: :temporary)
  end

  defp subscribe!(monitor) do
    assert Monitor.subscribe(monitor) == {:ok, monitor}
    monitor
  end

  defp next(monitor, timeout \\ 10_000) do
    assert_receive message when elem(message, 1) == monitor, within(timeout)
    message
  end

  # The first event of a kind: other events may come before it.
  defp until(monitor, fun) do
    message = next(monitor)
    if fun.(message), do: message, else: until(monitor, fun)
  end

  defp bind(group), do: {@config, [], [<<0, 0, group::16>> | Attr.encode([{1, <<@bind>>}])]}

  # Datagrams to this port of the loopback are logged to a group.
  defp log!(netns, group) do
    rules = """
    table ip t {
      chain c {
        type filter hook output priority 0
        udp dport 9 log group #{group}
      }
    }
    """

    path = tmp_path!("rules")
    File.write!(path, rules)
    ip!(["netns", "exec", netns, "nft", "-f", path])
  end

  defp packet!(netns),
    do: ip!(["netns", "exec", netns, "bash", "-c", "echo > /dev/udp/127.0.0.1/9"])

  defp packet?({:netlink_event, _monitor, datagram}) do
    {:ok, messages} = Message.decode(datagram)
    Enum.all?(messages, &(&1.type == @packet))
  end

  defp kill_helper!(server), do: server |> os_pid() |> signal!("KILL")

  describe "the subscription of nflog" do
    @describetag :nftables

    test "is sent before the first resync, and again after each open", context do
      log!(context.netns, @group)
      monitor = subscribe!(monitor!(context, protocol: :netfilter, subscription: [bind(@group)]))
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      packet!(context.netns)
      assert packet?(next(monitor))

      for _n <- 1..2 do
        kill_helper!(context.server)
        assert {:netlink_down, ^monitor, {:closed, _why}} = next(monitor)
        assert {:netlink_resync, ^monitor, {:closed, _why}} = next(monitor)
        packet!(context.netns)
        assert packet?(next(monitor))
      end

      ip!(["netns", "del", context.netns])
      assert {:netlink_down, ^monitor, :namespace_gone} = next(monitor)
      ip!(["netns", "add", context.netns])
      assert {:netlink_resync, ^monitor, :namespace_gone} = next(monitor)
      ip!(["-n", context.netns, "link", "set", "lo", "up"])
      log!(context.netns, @group)
      packet!(context.netns)
      assert packet?(next(monitor))
    end

    test "takes the monitor down with the errno that answers it, until it is accepted", context do
      opts = [protocol: :netfilter, netns: {:name, context.netns}, active: false]
      {:ok, other} = NetlinkPort.open(context.server, :netfilter, Keyword.delete(opts, :protocol))
      {type, flags, payload} = bind(@group)
      {:ok, []} = NetlinkPort.request(other, type, payload, flags: flags)
      monitor = subscribe!(monitor!(context, protocol: :netfilter, subscription: [bind(@group)]))
      before = fds(context.server)
      assert {:netlink_down, ^monitor, {:error, error}} = next(monitor)
      assert {error.stage, error.reason} == {:request, :eperm}
      # The subscription is tried several times and reported once. The tries leave nothing behind.
      refute_receive {_tag, ^monitor, _any}, 200
      :ok = NetlinkPort.close(other)
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      log!(context.netns, @group)
      packet!(context.netns)
      assert packet?(next(monitor))
      # The monitor's socket and inotify. Those of the other monitor are gone.
      assert fds(context.server) <= before + 2
    end

    # Without NLM_F_ACK: success is not reported, but errors are, whatever was reported before.
    test "takes the monitor down if it asks for no ack and is refused", context do
      {:ok, other} =
        NetlinkPort.open(context.server, :netfilter, netns: {:name, context.netns}, active: false)

      {type, [], payload} = bind(@group)
      {:ok, []} = NetlinkPort.request(other, type, payload)
      datagram = Message.encode(%Message{type: type, flags: 1, seq: 7, payload: payload})
      opts = [protocol: :netfilter, subscription: [datagram]]
      monitor = subscribe!(monitor!(context, opts))
      down = until(monitor, &(elem(&1, 0) == :netlink_down))
      assert {:netlink_down, ^monitor, {:error, %{stage: :request, reason: :eperm}}} = down
      :ok = NetlinkPort.close(other)
      eventually!(fn -> bound?(context.netns) end, 20_000)
      log!(context.netns, @group)
      packet!(context.netns)
      until(monitor, &(elem(&1, 0) == :netlink_event and packet?(&1)))
    end

    defp bound?(netns) do
      ip!(["netns", "exec", netns, "cat", "/proc/net/netfilter/nfnetlink_log"]) != ""
    end

    test "may have several messages with the same sequence number, each with its own answer",
         context do
      log!(context.netns, @group)

      # NLM_F_REQUEST and NLM_F_ACK; NFULNL_CFG_CMD_UNBIND of a group that is not bound succeeds
      [first, second] =
        for payload <- [elem(bind(@group), 2), elem(bind(@group), 2)],
            do: Message.encode(%Message{type: @config, flags: 5, seq: 0, payload: payload})

      opts = [protocol: :netfilter, subscription: [first, second]]
      monitor = subscribe!(monitor!(context, opts))
      # The second monitor binds a group that is bound already.
      assert {:netlink_down, ^monitor, {:error, %{reason: :ebusy}}} = next(monitor)
    end
  end

  describe "the subscription of the connector" do
    # The kernel answers this family only in the initial namespaces.
    @describetag init_user_namespace: true, proc_events: true

    # The kernel sends its answer to all listeners of the machine, with this `ack` plus 1, which no other listener has.
    defp proc(operation, seq \\ 0) do
      ack = :rand.uniform(0x7FFFFFFF)

      payload =
        <<@proc::32-native, @proc::32-native, seq::32-native, ack::32-native, 4::16-native, 0::16,
          operation::32-native>>

      Message.encode(%Message{type: 3, payload: payload})
    end

    defp what({:netlink_event, _monitor, datagram}) do
      <<_header::128, @proc::32-native, @proc::32-native, _seq::32, _ack::32, _size::32,
        what::32-native, _rest::binary>> = datagram

      what
    end

    defp proc_monitor!(context, operation) do
      opts = [protocol: :connector, groups: [@proc], subscription: [proc(operation)]]
      # The events are about the processes of the whole machine.
      monitor!(context, [netns: :host, rcvbuf: 8_000_000] ++ opts)
    end

    test "makes process events come, also after the socket is opened again", context do
      monitor = subscribe!(proc_monitor!(context, @listen))
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      {_output, 0} = System.cmd("true", [])
      until(monitor, &(what(&1) == @exit))
      kill_helper!(context.server)
      until(monitor, &(elem(&1, 0) == :netlink_resync))
      {_output, 0} = System.cmd("true", [])
      until(monitor, &(what(&1) == @exit))
    end

    test "takes the monitor down if the connector refuses it in an event", context do
      monitor = subscribe!(proc_monitor!(context, @unknown))
      assert {:netlink_down, ^monitor, {:error, error}} = next(monitor)
      assert {error.stage, error.reason} == {:request, :einval}
    end

    test "takes the monitor down in other namespaces, which have no connector", context do
      opts = [protocol: :connector, groups: [@proc], subscription: [proc(@listen)]]
      monitor = subscribe!(monitor!(context, opts))
      assert {:netlink_down, ^monitor, {:error, error}} = next(monitor)
      assert {error.stage, error.reason} == {:send, :econnrefused}
    end

    test "takes the monitor down with ETIMEDOUT if nobody answers", context do
      # The kernel ignores messages from another pid namespace.
      script = script!("exec unshare --pid --fork --kill-child #{helper()} \"$@\"")
      server = start_server!(executable: script)
      monitor = subscribe!(proc_monitor!(%{context | server: server}, @listen))
      assert {:netlink_down, ^monitor, {:error, error}} = next(monitor)
      assert {error.stage, error.reason} == {:request, :etimedout}
      assert Exception.message(error) =~ "the subscription"
    end

    test "ignores the answer to another listener", context do
      {:ok, other} = NetlinkPort.open(context.server, :connector, groups: [@proc])
      monitor = subscribe!(proc_monitor!(context, @listen))
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)
      # The answer is sent to the whole group, where it is an event.
      :ok = NetlinkPort.send(other, proc(@unknown))
      until(monitor, &(what(&1) == @none))
      {_output, 0} = System.cmd("true", [])
      until(monitor, &(what(&1) == @exit))
    end
  end

  describe "the subscription of a generic family" do
    # TASKSTATS asks for CAP_NET_ADMIN in the initial user namespace.
    @describetag :init_user_namespace

    # TASKSTATS_CMD_GET with TASKSTATS_CMD_ATTR_REGISTER_CPUMASK, include/uapi/linux/taskstats.h
    test "is a request by the family's name", context do
      {:ok, generic} = NetlinkPort.open(context.server, :generic, active: false)
      {:ok, %{id: id}} = Generic.family(generic, "TASKSTATS")
      cpus = "/sys/devices/system/cpu/possible" |> File.read!() |> String.trim()
      request = {"TASKSTATS", [], [<<1, 1, 0::16>>, Attr.encode([{3, cpus <> "\0"}])]}
      opts = [netns: :host, protocol: :generic, subscription: [request]]
      monitor = subscribe!(monitor!(context, opts))
      assert {:netlink_resync, ^monitor, :subscribed} = next(monitor)

      for _n <- 1..2 do
        {_output, 0} = System.cmd("true", [])
        assert {:netlink_event, ^monitor, <<_::32, ^id::16-native, _::binary>>} = next(monitor)
        kill_helper!(context.server)
        until(monitor, &(elem(&1, 0) == :netlink_resync))
      end
    end
  end

  test "events from user space are sent with user_peers: true, and not by default", context do
    {:ok, peer} =
      NetlinkPort.open(context.server, :usersock,
        netns: {:name, context.netns},
        user_peers: true,
        active: false
      )

    opts = [protocol: :usersock, groups: [1]]
    deaf = subscribe!(monitor!(context, opts))
    monitor = subscribe!(monitor!(context, [user_peers: true] ++ opts))
    for one <- [deaf, monitor], do: assert({:netlink_resync, ^one, :subscribed} = next(one))
    datagram = IO.iodata_to_binary(Message.encode(%Message{type: 16}))
    # To the group, and to the kernel, which ignores it.
    {:error, %{reason: :econnrefused}} = NetlinkPort.send(peer, datagram, to: {0, 1})
    assert {:netlink_event, ^monitor, ^datagram, %{port_id: _peer}} = next(monitor)
    refute_received {_tag, ^deaf, _datagram}
  end

  test "wrong subscriptions raise" do
    for subscription <- [:listen, [1], [{1, 2}], [{"ethtool", [], ""}], [{70_000, [], ""}]] do
      assert_raise ArgumentError, fn -> Monitor.start_link(subscription: subscription) end
    end
  end
end
