defmodule NetlinkPort.Monitor do
  @moduledoc """
  A subscription to multicast groups that survives the loss of its socket, its helper and its namespace.

  A monitor is a supervised process with a socket in the groups. It sends every event of the groups to any number
  of subscribers. When the socket is lost, the monitor opens another. When events may be missing, it sends each
  subscriber a message that says so. With `dump:` it also reads the tables of the kernel, so that a subscriber
  gets a snapshot and then the changes, without a hole between them:

      children = [
        {NetlinkPort, name: MyApp.Netlink},
        # RTNLGRP_LINK; RTM_GETLINK of all links, behind a struct ifinfomsg
        {NetlinkPort.Monitor,
         name: MyApp.Links,
         server: MyApp.Netlink,
         netns: {:name, "blue"},
         groups: [1],
         dump: [{18, <<0::128>>}]}
      ]

  A subscriber that keeps a table of the links by their index:

      def init(_argument) do
        {:ok, _monitor} = NetlinkPort.Monitor.subscribe(MyApp.Links)
        {:ok, %{}}
      end

      def handle_info({:netlink_snapshot, _monitor, :begin}, _links), do: {:noreply, %{}}
      def handle_info({:netlink_snapshot, _monitor, :end}, links), do: {:noreply, links}

      def handle_info({:netlink_snapshot, _monitor, messages}, links) do
        {:noreply, Enum.reduce(messages, links, &change/2)}
      end

      def handle_info({:netlink_event, _monitor, datagram}, links) do
        {:ok, messages} = NetlinkPort.Message.decode(datagram)
        {:noreply, Enum.reduce(messages, links, &change/2)}
      end

      # :netlink_resync, :netlink_down and :netlink_error
      def handle_info({_tag, _monitor, _reason}, links), do: {:noreply, links}

      # RTM_NEWLINK and RTM_DELLINK of the family AF_UNSPEC; the attributes of each link, by type
      defp change(%{type: 16, payload: <<0, _::24, index::32-native, _::64, attrs::binary>>}, links) do
        {:ok, attrs} = NetlinkPort.Attr.decode(attrs)
        attrs = Map.new(attrs)

        # A message without IFLA_IFNAME (3) does not describe the whole link. It may hold only IFLA_WIRELESS.
        if is_map_key(attrs, 3),
          do: Map.put(links, index, attrs),
          else: Map.update(links, index, attrs, &Map.merge(&1, attrs))
      end

      defp change(%{type: 17, payload: <<0, _::24, index::32-native, _::binary>>}, links),
        do: Map.delete(links, index)

      # The same group carries messages of the family AF_BRIDGE, about the ports of a bridge. Their
      # RTM_DELLINK means that a link has left its bridge, not that the link is gone.
      defp change(_message, links), do: links

  ## Messages to subscribers

  `monitor` is the pid that `subscribe/2` returns.

    * `{:netlink_resync, monitor, reason}`: events may be missing before this message, and none are missing
      after it. A subscriber that dumps the tables now, and applies the events from here on, has the true state.
      The monitor sends it when a subscription begins and once for each gap, before any event that is newer than
      the gap. `t:reason/0` says why.
    * `{:netlink_snapshot, monitor, :begin}`, then any number of
      `{:netlink_snapshot, monitor, messages}`, lists of up to 100 `NetlinkPort.Message`, then
      `{:netlink_snapshot, monitor, :end}`: what the dumps of `dump:` have read, in the order of the dumps. With
      `dump:` a snapshot follows each `:netlink_resync`. The socket has joined its groups before the first dump
      begins. When a gap comes before the `:end`, the `:end` is not sent: another `:netlink_resync` and another
      snapshot follow.
    * `{:netlink_event, monitor, datagram}`: a datagram that was sent to the groups, as the kernel wrote it. With
      `pktinfo` or `listen_all_nsid` it is `{:netlink_event, monitor, datagram, metadata}`, see
      `t:NetlinkPort.metadata/0`.
    * `{:netlink_down, monitor, reason}`: the socket is lost or cannot be opened. No event comes until the next
      `:netlink_resync`. The monitor sends it once, however often it fails to open the socket. A `:netlink_down`
      and the `:netlink_resync` behind it are about the same gap. A process that subscribes while the monitor is
      down gets `:netlink_down` as its first message.
    * `{:netlink_error, monitor, error}`: a dump has failed. The monitor tries it again. It sends the next
      `:netlink_error` only after a dump has succeeded in between.

  The first events after a snapshot may be older than its end. The monitor sends all events that came while it
  read the snapshot, whether or not the snapshot already contains the change. Applied in their order they lead to
  the true state, on two conditions: an addition of an entry that is there replaces it, and the removal of an
  entry that is not there does nothing.

  The flags of a message (`NetlinkPort.Message.flag?/2`) say what an addition replaces. A link, an address, a
  neighbour or a nexthop object replaces the entry with the same key. Several routes can share one key (table,
  destination, TOS, priority):

    * IPv4: routes with the same key have an order. With `NLM_F_APPEND` a route comes last; with `NLM_F_REPLACE` it
      takes the place of the first; with neither it comes first. A dump lists them in their order. An
      `RTM_DELROUTE` removes the one route of this key that is the same in all other attributes.
    * IPv6: the routes with a gateway form one multipath route. The event of an added nexthop lists all nexthops, in
      `RTA_MULTIPATH`, and replaces the route. An `RTM_DELROUTE` without `RTA_MULTIPATH` removes the one nexthop
      that it names. Routes without a gateway stand beside the multipath route, one for each interface.
      `NLM_F_REPLACE` takes the place of the first route of the same kind, or else of the other kind.

  The flag `NLM_F_REPLACE` does not name the route that it has removed. When routes share a key, and one of them is
  replaced right after a snapshot, read the routes of that key again.

  ## Families that take a message for a subscription

  Some families have no multicast groups, or send nothing to a socket that has only joined a group. They want a
  message first. The monitor sends the messages of `:subscription` over each socket that it opens, before it
  sends any subscriber `:netlink_resync`. An entry is one of two things:

    * a request, `{type, flags, payload}`. The monitor sends it as `NetlinkPort.request/4` does, and waits for its
      ack.
    * a datagram, as iodata. The monitor sends it unchanged.

  Process events of the connector (`PROC_CN_MCAST_LISTEN`, `include/uapi/linux/cn_proc.h`). They need root and the
  initial namespaces of the machine:

      # struct cn_msg: CN_IDX_PROC, CN_VAL_PROC, seq, ack, len, flags; then the operation
      listen = <<1::32-native, 1::32-native, 0::32, 0::32, 4::16-native, 0::16, 1::32-native>>
      datagram = NetlinkPort.Message.encode(%NetlinkPort.Message{type: 3, payload: listen})

      {:ok, processes} =
        NetlinkPort.Monitor.start_link(
          server: MyApp.Netlink,
          protocol: :connector,
          groups: [1],
          subscription: [datagram]
        )

  Packets that a rule logs to group 5 (`nft … log group 5`). The groups of nflog are no multicast groups of netlink, so
  there is no `groups:` here:

      # NFNL_SUBSYS_ULOG and NFULNL_MSG_CONFIG; struct nfgenmsg; NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND
      bind = {0x0401, [], [<<0, 0, 5::16>>, NetlinkPort.Attr.encode([{1, <<1>>}])]}

      {:ok, packets} =
        NetlinkPort.Monitor.start_link(
          server: MyApp.Netlink,
          netns: {:name, "blue"},
          protocol: :netfilter,
          subscription: [bind]
        )

  What cannot be sent, or is refused, or is not answered within 5 s, takes the monitor down with that error, and
  the monitor tries again. In a datagram the monitor waits for the ack of each message that has `NLM_F_ACK`. It
  also waits for the answer to each message that controls the process events of the connector. The kernel sends that
  answer to the whole group: a `PROC_EVENT_NONE`, which the monitor recognizes by its field `ack` alone. A refusal of
  any other message takes the monitor down whenever it arrives.

  A monitor is the wrong process for a family that wants answers over the same socket, such as the verdicts of
  nfqueue: `examples/nfqueue.exs` has a process with a socket of its own. Groups that processes send to (`:usersock`) need `user_peers: true`; without it nothing arrives.

  ## Groups of generic netlink

  The kernel gives a family of `:generic` and its groups their numbers when the family is registered. When the module
  of the family is unloaded, the kernel ends all memberships of its groups, and sends the members nothing. When the
  module is loaded again, the numbers are different.

  So a monitor takes these groups by name, `groups: [{"ethtool", "monitor"}]`, and names of families as types in
  `:dump` and `:subscription`. It follows the group `notify` of the family `nlctrl`, where the kernel announces
  families, and joins the groups again. This is a gap with the reason `{:family, name}`. While a family or a
  group does not exist, the monitor is down with `ENOENT`. The monitor loads no module. Some families are in the
  initial namespace alone, such as `NET_DM` of drop_monitor: in other namespaces they are `ENOENT` for good.

  ## What the kernel does not tell

  The kernel does not send an event for every change. A snapshot contains all of them; subscribe again to get one.
  These changes have no event of their own. Each entry says which event, if any, shows the change (Linux 6.18):

    * An interface that is deleted (`RTM_DELLINK`), or goes down (`RTM_NEWLINK` without `IFF_UP`), takes its IPv4
      routes with it, without an `RTM_DELROUTE`. Routes of the scope host stay until the interface is deleted. A
      route with several nexthops goes with the last of their interfaces. Until then, in IPv6 too, the nexthop has
      `RTNH_F_DEAD`, and loses the flag when the interface is up again.
    * An interface that enters or leaves a VRF (`RTM_NEWLINK` with another `IFLA_MASTER`) loses all its IPv4 routes,
      those of the scope host too, and then has an `RTM_NEWROUTE` for each that it has in the other table.
    * Nexthops on an interface without a carrier have `RTNH_F_LINKDOWN`. The event is an `RTM_NEWLINK` without
      `IFF_LOWER_UP` and `IFF_RUNNING`.
    * A nexthop object that is deleted takes the IPv4 routes that use it (`RTA_NH_ID`) with it, and a group that
      contains it loses a nexthop. The only events are in `RTNLGRP_NEXTHOP` (32): an `RTM_DELNEXTHOP` of the object
      and an `RTM_NEWNEXTHOP` of the group. An interface that goes down or loses its carrier deletes its nexthop
      objects, and no group has an event for that.
    * IPv6 routes lose their `RTA_PREFSRC` when the address is removed. The event is an `RTM_DELADDR`. IPv4 has an
      `RTM_DELROUTE` for each route, but not on Linux 5.10: there the routes go with the `RTM_DELADDR` alone.
    * A rule (ip-rule(8)) for an interface that is deleted gets the flag `FIB_RULE_IIF_DETACHED` or
      `FIB_RULE_OIF_DETACHED`.
    * A qdisc that is deleted takes its classes and filters with it. An interface takes its qdiscs and its proxy
      entries of neighbours with it.
    * Elements of nftables sets time out.
    * With `net.netfilter.nf_conntrack_events` 2, the default since Linux 5.19, the kernel sends no event of a flow
      that began while no socket, in any namespace of the machine, was in a group of conntrack. That includes a
      flow that began between the end of a helper and its successor. Such a flow is in the snapshot, but even its
      end (`NFNLGRP_CONNTRACK_DESTROY`) has no event. After `sysctl net.netfilter.nf_conntrack_events=1` in the
      namespace, before the flows begin, the kernel sends events of all of them.
    * Counters change, and entries age.

  ## When something is lost

  When the helper, its server or the namespace goes, or another process closes the socket (`NetlinkPort.close/1`), the
  socket is lost, and subscribers are sent `:netlink_down`. The monitor opens another socket after 20 ms, and
  subscribers are sent `:netlink_resync`. While it cannot open a socket, the monitor tries again at growing intervals of
  up to 1 s, so that it finds its namespace, its server or its helper soon after they are back. No supervisor has to
  restart the monitor. It opens its socket with `close_on: :namespace_gone` (see "When a namespace goes" of
  `NetlinkPort`), so that it never follows a namespace that was deleted.

  A monitor that found its namespace through a process, as with `netns: {:pid, pid}`, remembers that process. When
  the process has ended and another one has its number, the monitor stays down: each attempt to open the socket is
  `ESRCH`.

  A dump that fails is tried again at the same intervals. A dump that the kernel marks as interrupted by changes is
  tried five times at once, see `NetlinkPort.dump/4`. Tables that always change faster than they can be read give no
  snapshot until they pause.

  ## Memory

  A subscriber's mailbox holds at most `max_queue:` messages, from any sender, before the monitor holds back the
  events for this subscriber. The monitor keeps up to another `max_queue:` events for it. Beyond that the subscriber
  is behind. The monitor then sends it nothing until half of its mailbox is free, and then
  `{:netlink_resync, monitor, :behind}` and, with `dump:`, a snapshot of its own. So a subscriber that is slow,
  suspended or stuck delays no other.

  The monitor's own mailbox holds at most 1 000 messages. After that the socket's window fills, and then the
  kernel's queue. Datagrams that the kernel drops are a gap. A larger `rcvbuf:` makes gaps rarer.

  A monitor costs one process and one socket, and a second socket while it reads a snapshot. All subscribers that
  wait for a snapshot at that time share it. The memory of a monitor is bounded by the tables that it dumps, and for
  each subscriber by `max_queue:`. A message is at most as large as the datagram that it holds.

  When a subscriber ends, the monitor forgets it. When the monitor itself ends, its subscribers are sent nothing: a
  subscriber should monitor it (`Process.monitor/1`) and subscribe again. The same holds for a subscriber on another
  node, which the monitor forgets when the connection between the nodes is lost.
  """

  alias NetlinkPort.{Arguments, Error, ProcessLimit}
  alias NetlinkPort.Server.Client
  alias NetlinkPort.Monitor.Config

  @max_queue 10_000

  @typedoc """
  Why events may be missing:

    * `:subscribed`: the subscription has just begun.
    * `:overrun`: the kernel dropped datagrams.
    * `{:closed, reason}`: the socket was closed, and another is open now. See `t:NetlinkPort.closed_reason/0`.
    * `:namespace_gone`: the namespace was gone, and is back.
    * `{:family, name}`: a generic family that the monitor follows by name was registered or unregistered.
    * `:behind`: the subscriber did not keep up.
    * `{:error, error}`: a datagram could not be received, or the family refused a message of `:subscription`.
  """
  @type reason ::
          :subscribed
          | :overrun
          | {:closed, NetlinkPort.closed_reason()}
          | :namespace_gone
          | {:family, String.t()}
          | :behind
          | {:error, Error.t()}

  @doc """
  The child specification for a supervisor: `{NetlinkPort.Monitor, options}`, see `start_link/1`.

      iex> NetlinkPort.Monitor.child_spec(name: MyApp.Links, groups: [1]).id
      MyApp.Links
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts) do
    Arguments.keyword!(opts)

    %{
      id: Keyword.get(opts, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [opts]},
      type: :worker
    }
  end

  @doc """
  Starts a monitor, linked to the caller. It starts even when its server does not run or its namespace does not
  exist yet. It then opens its socket later.

  Options:

    * `:name` - the name to register the monitor under. Defaults to no name.
    * `:server` - the server that opens the socket. Defaults to `NetlinkPort`. It may be on another node,
      `{MyApp.Netlink, :"agent@host"}`. The loss of that node, or of the connection to it, is a gap like the end
      of a helper.
    * `:protocol` - see `t:NetlinkPort.protocol/0`. Defaults to `:route`.
    * `:dump` - the dumps of a snapshot, in their order: a list of `{type, payload}`, as `NetlinkPort.dump/4`
      takes them. The monitor reads them over another socket, with the same `:get_strict_chk`. Defaults to `[]`.
    * `:subscription` - the messages that the monitor sends over each socket once it is open, in their order:
      requests `{type, flags, payload}` and datagrams. See "Families that take a message for a subscription"
      above. Defaults to `[]`.
    * `:netns`, `:groups` and `:user_peers` of `NetlinkPort.open/3`.
    * the options of `NetlinkPort.setopts/2` except `:active`.

  With the protocol `:generic` a group can be `{family, group}`, and a type can be the name of a family. For
  example:

      {:ok, monitor} =
        NetlinkPort.Monitor.start_link(server: MyApp.Netlink, netns: {:name, "blue"}, groups: [1])

  Errors: `{:already_started, pid}` for a name that is taken. Wrong options raise `ArgumentError`. Subscribers are
  sent what fails later, as `:netlink_down` and `:netlink_error`.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    with {:ok, config} <- Config.new(opts) do
      name = Arguments.name!(opts[:name])

      names = if(name, do: [name: name], else: [])

      ProcessLimit.start("monitor", fn ->
        GenServer.start_link(NetlinkPort.Monitor.Process, config, names)
      end)
    end
  end

  @doc """
  Subscribes the calling process. Returns the pid of the monitor, which is in each message to the subscriber.

  When the calling process is subscribed already, its subscription begins anew.

  Options:

    * `:max_queue` - how many messages the mailbox of the calling process may hold before the monitor sends no
      more. Defaults to `10_000`. See "Memory" above.

  For example:

      {:ok, monitor} = NetlinkPort.Monitor.subscribe(MyApp.Links)
      receive do: ({:netlink_resync, ^monitor, :subscribed} -> :ok)

  Errors: `ESRCH` when there is no such monitor, `EPIPE` when it has just ended.
  """
  @spec subscribe(GenServer.server(), max_queue: pos_integer()) ::
          {:ok, pid()} | {:error, Error.t()}
  def subscribe(monitor, opts \\ []) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:max_queue], Config.elsewhere())
    bound = Config.max_queue!(Keyword.get(opts, :max_queue, @max_queue))
    call(monitor, {:subscribe, self(), bound})
  end

  @doc """
  Ends the subscription of the calling process, if it has one. The monitor sends it nothing more. The messages that
  were sent before stay in its mailbox.

      :ok = NetlinkPort.Monitor.unsubscribe(MyApp.Links)

  Errors are those of `subscribe/2`.
  """
  @spec unsubscribe(GenServer.server()) :: :ok | {:error, Error.t()}
  def unsubscribe(monitor), do: call(monitor, {:unsubscribe, self()})

  defp call(monitor, message) do
    with {:error, reason} <- Client.call(monitor, message, 15_000),
         do: Client.failed(reason, {:monitor, monitor})
  end
end
