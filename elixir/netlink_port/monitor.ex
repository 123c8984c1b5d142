defmodule NetlinkPort.Monitor do
  @moduledoc """
  A subscription to multicast groups that outlives its socket, the helper and the namespace.

  A monitor is a supervised process with a socket in the groups. It hands what the kernel tells to
  any number of subscribers, opens the socket again whenever it is lost, and tells each subscriber
  where something is missing. With `dump:` it also reads what is there, so that a subscriber sees a
  snapshot, then changes, never a hole:

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

        # One without IFLA_IFNAME (3) is not of the whole link: it may hold IFLA_WIRELESS alone.
        if is_map_key(attrs, 3),
          do: Map.put(links, index, attrs),
          else: Map.update(links, index, attrs, &Map.merge(&1, attrs))
      end

      defp change(%{type: 17, payload: <<0, _::24, index::32-native, _::binary>>}, links),
        do: Map.delete(links, index)

      # Those of the family AF_BRIDGE, in the same group, are about the ports of a bridge: an
      # RTM_DELLINK of it tells that a link has left its bridge, and not that it is gone.
      defp change(_message, links), do: links

  ## Messages to subscribers

  `monitor` is the pid that `subscribe/2` returns.

    * `{:netlink_resync, monitor, reason}`: before it something may be missing, and after it nothing
      is: whoever dumps the tables now, and applies the events from here on, has the true state.
      It comes once for each gap, before anything newer than the gap, and as the first message of
      each subscription. `t:reason/0` says why.
    * `{:netlink_snapshot, monitor, :begin}`, then any number of
      `{:netlink_snapshot, monitor, messages}`, lists of up to 100 `NetlinkPort.Message`, then
      `{:netlink_snapshot, monitor, :end}`: with `dump:`, what the dumps have read, in their order,
      after each `:netlink_resync`. The socket was in its groups before the first of them began. A gap
      can come before the `:end`; then another snapshot begins.
    * `{:netlink_event, monitor, datagram}`: what was sent to the groups, as the kernel wrote it, and
      `{:netlink_event, monitor, datagram, metadata}` with `pktinfo` or `listen_all_nsid`, see
      `t:NetlinkPort.metadata/0`.
    * `{:netlink_down, monitor, reason}`: nothing can come until the next `:netlink_resync`, since the
      socket is lost or cannot be opened. Once for each time; a gap that is told by it and that
      `:netlink_resync` is one.
    * `{:netlink_error, monitor, error}`: a dump has failed. It is tried again, and not told of again
      until one has succeeded.

  The first events after a snapshot may be older than its end: those which came while it was read
  are sent, whether or not it holds what they tell. Applied in their order they lead to the true
  state, if an addition of what is there replaces it, and the removal of what is not there does nothing.

  What an addition replaces is said by the flags of its message (`NetlinkPort.Message.flag?/2`). Links,
  addresses, neighbours and nexthop objects: what has the same key. Routes can share one (table,
  destination, TOS, priority):

    * IPv4: they stand in an order. With `NLM_F_APPEND` a route comes last; with `NLM_F_REPLACE` it takes the
      place of the first; with neither it comes first. A dump has their order. An `RTM_DELROUTE` is of the
      one that is the same in all else.
    * IPv6: those with a gateway are one route. Each addition of a nexthop tells all of them, in
      `RTA_MULTIPATH`, and replaces the route; an `RTM_DELROUTE` without `RTA_MULTIPATH` takes away the
      one nexthop that it names. Those without a gateway stand beside it, one for each interface.
      `NLM_F_REPLACE` takes the place of the first of its kind, or else of the other kind.

  The flag `NLM_F_REPLACE` does not name the route that is gone. Where routes share a key, and one is
  replaced right after a snapshot, read that key again.

  ## Families that take a message for a subscription

  Some families send nothing to who is only in a group, or have no groups: they take a message. With
  `:subscription` the monitor sends it over each socket that it opens, before any subscriber is told
  `:netlink_resync`. A request, `{type, flags, payload}`, is sent as by `NetlinkPort.request/4`, and its
  ack awaited. A datagram, as iodata, is sent as it is.

  Process events of the connector (`PROC_CN_MCAST_LISTEN`, `include/uapi/linux/cn_proc.h`); root, in the first
  namespaces of the machine:

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

  Packets that a rule logs to group 5 (`nft … log group 5`), of nflog, which has no groups of netlink:

      # NFNL_SUBSYS_ULOG and NFULNL_MSG_CONFIG; struct nfgenmsg; NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND
      bind = {0x0401, [], [<<0, 0, 5::16>>, NetlinkPort.Attr.encode([{1, <<1>>}])]}

      {:ok, packets} =
        NetlinkPort.Monitor.start_link(
          server: MyApp.Netlink,
          netns: {:name, "blue"},
          protocol: :netfilter,
          subscription: [bind]
        )

  What cannot be sent, is answered with an errno, or is not answered within 5 s, takes the monitor down with
  that error, and it tries again. Of a datagram those messages are answered that have `NLM_F_ACK`, and
  those to the process events of the connector, which answers each to the whole group: `PROC_EVENT_NONE`, told
  apart by its `ack` alone. A refusal of any other takes the monitor down whenever it comes.

  Not for a monitor is what wants an answer over the same socket: the verdicts of nfqueue. Groups that
  processes send to (`:usersock`) are heard with `user_peers: true`, and not without.

  ## Groups of generic netlink

  Families and groups of `:generic` have numbers that the kernel chooses when they are registered, and others
  when their module is loaded again; then it ends all memberships, and tells the members nothing. So a
  monitor takes them by name, `groups: [{"ethtool", "monitor"}]`, and the types of `:dump` and `:subscription`
  too. It follows what `nlctrl` tells of families in its group `notify`, and joins the groups anew: that is a
  gap, `{:family, name}`. While a family or a group is not there the monitor is down with `ENOENT`; it loads no module.

  ## What the kernel does not tell

  Not every change is an event. A snapshot has it all: to subscribe again is to get one. Here is what is
  untold, and by what it can be known (Linux 6.18):

    * An interface that is deleted (`RTM_DELLINK`), or goes down (`RTM_NEWLINK` without `IFF_UP`), takes its IPv4
      routes with it: no `RTM_DELROUTE`. Those of the scope host stay until it is deleted. A route with several
      nexthops goes with the last of their interfaces; until then, in IPv6 too, the nexthop has
      `RTNH_F_DEAD`, and loses it when the interface is up again.
    * Nexthops on an interface without a carrier have `RTNH_F_LINKDOWN`; told is an `RTM_NEWLINK`
      without `IFF_LOWER_UP` and `IFF_RUNNING`.
    * A nexthop object that is deleted takes the IPv4 routes with it that use it (`RTA_NH_ID`), and a group that
      has it loses a nexthop: told in `RTNLGRP_NEXTHOP` (32) alone, by `RTM_DELNEXTHOP` of the one and
      `RTM_NEWNEXTHOP` of the other. An interface that goes down or loses its carrier deletes its nexthop
      objects, and that is told nowhere.
    * IPv6 routes lose their `RTA_PREFSRC` with the address; told is `RTM_DELADDR`. Of IPv4 each is an
      `RTM_DELROUTE`.
    * A rule (ip-rule(8)) for an interface that is deleted has `FIB_RULE_IIF_DETACHED`, or that of `OIF`.
    * A qdisc that is deleted takes its classes and filters with it, an interface its qdiscs, and its
      proxy entries of neighbours.
    * Elements of nftables sets that time out.
    * Flows of conntrack, with `net.netfilter.nf_conntrack_events` 2, the default since Linux 5.19: one that
      began while nobody was in a group of conntrack, in any namespace of the machine, so also one between
      the end of a helper and its successor, is in the snapshot, and is never told of again, its end
      (`NFNLGRP_CONNTRACK_DESTROY`) included. `sysctl net.netfilter.nf_conntrack_events=1` in the
      namespace, before the flows, has all of them told.
    * Counters, and what ages.

  ## When something is lost

  A socket that is lost, and one that could not be opened, is opened again after 20 ms, and then, as
  long as that fails, at growing intervals of up to 1 s: so often a monitor looks whether its
  namespace, its server or its helper is back. Its socket closes with its namespace (see "When a
  namespace goes" of `NetlinkPort`), so that it never follows one that is deleted. A process that its namespace was
  found by is that process from then on: when it has ended and another one has its number, the monitor stays down:
  each try to open its socket is `ESRCH`.

  A dump that fails is tried again in the same way. One that the kernel marks as interrupted by
  changes is tried five times at once, see `NetlinkPort.dump/4`: tables that change all the time faster
  than they can be read give no snapshot until they pause.

  ## Memory

  Each subscriber's mailbox takes at most `max_queue:` messages, of whatever sender, before the
  monitor's are kept back for it, up to another `max_queue:` events. Beyond that it is behind: it is sent
  nothing any more until half of its mailbox is free, and then `{:netlink_resync, monitor, :behind}` and,
  with `dump:`, a snapshot of its own. So a subscriber that is slow, suspended or stuck holds up no other.

  In the same way the monitor's own mailbox takes at most 1 000 messages; after that the socket's
  window fills, then the kernel's queue, and what the kernel drops is a gap: with a larger `rcvbuf:` there
  are fewer. What a monitor takes is bounded by the tables it dumps, and for each subscriber by
  its bound. A message is at most as large as the datagram it holds.

  A subscriber that ends is forgotten. When the monitor itself ends its subscribers are told nothing:
  a subscriber monitors it (`Process.monitor/1`) and subscribes again. So does one on another node, which is
  forgotten when the connection is lost.
  """

  use GenServer

  alias NetlinkPort.{Errno, Error, Options, Redaction, Telemetry}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.Client
  alias NetlinkPort.Generic
  alias NetlinkPort.Generic.Follow
  alias NetlinkPort.Monitor.{Config, Opening, Snapshot, Subscriber, Subscribers, Subscription}

  # How long until what has failed is tried again, in ms.
  @soonest 20
  @latest 1_000
  @max_queue 10_000

  @typedoc """
  Why something may be missing: the subscription has just begun; the kernel dropped datagrams; the
  socket was closed, and is open again (`t:NetlinkPort.closed_reason/0`); its namespace was gone, and is
  back; a generic family that it follows by name was registered or unregistered; the subscriber did not
  keep up; or a datagram could not be received.
  """
  @type reason ::
          :subscribed
          | :overrun
          | {:closed, NetlinkPort.closed_reason()}
          | :namespace_gone
          | {:family, String.t()}
          | :behind
          | {:error, Error.t()}

  defmodule State do
    @moduledoc false
    # `opening` and `run` are the tasks that open the socket and read the dumps; `ended` is what was
    # closed before it was known to be open, and `refusal` what has refused its subscription by then. `known`
    # are the processes that its namespace was found by. `open_wait` and `dump_wait` are how long until the next try. `follow` is what is known of the generic
    # families that are followed by name.
    @enforce_keys [:config, :open_wait, :dump_wait]
    defstruct [
      :config,
      :open_wait,
      :dump_wait,
      :opening,
      :run,
      :dump_timer,
      :ended,
      :refusal,
      :follow,
      place: :opening,
      known: [],
      subscribers: %{}
    ]
  end

  ## Interface

  @doc """
  The specification of a child for a supervisor: `{NetlinkPort.Monitor, options}`, see `start_link/1`.

      iex> NetlinkPort.Monitor.child_spec(name: MyApp.Links, groups: [1]).id
      MyApp.Links
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts) do
    Options.keyword!(opts)

    %{
      id: Keyword.get(opts, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [opts]},
      type: :worker
    }
  end

  @doc """
  Starts a monitor, linked to the caller. It starts whether or not its server and its namespace are there.

  Options, beside `:netns`, `:groups` and `:user_peers` of `NetlinkPort.open/3` and the options of
  `NetlinkPort.setopts/2` but `:active`:

    * `:name` - what to register the monitor as; no name unless told otherwise.
    * `:server` - the server that opens the socket, `NetlinkPort` unless told otherwise. It may be on another
      node, `{MyApp.Netlink, :"agent@host"}`: the loss of that node, or of the connection, is a gap like the
      end of a helper.
    * `:protocol` - `:route` unless told otherwise. See `t:NetlinkPort.protocol/0`.
    * `:dump` - the dumps of a snapshot, in their order: `{type, payload}` each, as
      `NetlinkPort.dump/4` takes them. They are read over a socket that has the monitor's
      `:get_strict_chk`. None unless told otherwise.
    * `:subscription` - what is sent over each socket once it is open, in its order, for families that
      take a message for a subscription: requests `{type, flags, payload}` and datagrams. See above.
      None unless told otherwise.

  With the protocol `:generic` groups can be `{family, group}`, and types the name of a family. For example:

      {:ok, monitor} =
        NetlinkPort.Monitor.start_link(server: MyApp.Netlink, netns: {:name, "blue"}, groups: [1])

  Errors: `{:already_started, pid}` for a name that is taken. Wrong options raise `ArgumentError`; what fails later
  is told to subscribers.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    with {:ok, config} <- Config.new(opts) do
      name = Keyword.get(opts, :name)
      GenServer.start_link(__MODULE__, config, if(name, do: [name: name], else: []))
    end
  end

  @doc """
  Subscribes the calling process; returns the pid that its messages name. One that is subscribed
  already begins anew.

  Options:

    * `:max_queue` - how many messages the mailbox of the calling process may hold before the monitor
      sends no more, 10 000 unless told otherwise. See "Memory" above.

  For example:

      {:ok, monitor} = NetlinkPort.Monitor.subscribe(MyApp.Links)
      receive do: ({:netlink_resync, ^monitor, :subscribed} -> :ok)

  Errors: `ESRCH` where there is no such monitor, `EPIPE` where it has just ended.
  """
  @spec subscribe(GenServer.server(), max_queue: pos_integer()) ::
          {:ok, pid()} | {:error, Error.t()}
  def subscribe(monitor, opts \\ []) do
    Options.keyword!(opts)
    Options.known!(opts, [:max_queue])
    bound = Config.max_queue!(Keyword.get(opts, :max_queue, @max_queue))
    call(monitor, {:subscribe, self(), bound})
  end

  @doc """
  Ends the subscription of the calling process, if it has one. Nothing is sent any more; what
  was sent before stays in its mailbox.

      :ok = NetlinkPort.Monitor.unsubscribe(MyApp.Links)

  Errors are those of `subscribe/2`.
  """
  @spec unsubscribe(GenServer.server()) :: :ok | {:error, Error.t()}
  def unsubscribe(monitor), do: call(monitor, {:unsubscribe, self()})

  defp call(monitor, message) do
    with {:error, {stage, errno, _detail}} <- Client.call(monitor, message, 15_000) do
      {:error, Error.new(stage, errno)}
    end
  end

  ## The process

  @impl true
  def init(config) do
    {:ok, open(%State{config: config, open_wait: @soonest, dump_wait: @soonest})}
  end

  @impl true
  def handle_call({:subscribe, pid, bound}, from, state) do
    subscribers = Subscribers.add(state.subscribers, pid, bound, ways(state))
    Relay.reply(from, {:ok, self()})
    {:noreply, %{state | subscribers: subscribers}}
  end

  def handle_call({:unsubscribe, pid}, from, state) do
    subscribers = Subscribers.drop(state.subscribers, pid)
    Relay.reply(from, :ok)
    {:noreply, %{state | subscribers: subscribers}}
  end

  # Who takes it for a server, say.
  def handle_call(_unknown, from, state) do
    Relay.reply(from, {:error, {:protocol, Errno.number(:einval), ""}})
    {:noreply, state}
  end

  @impl true
  def handle_cast(_unknown, state), do: {:noreply, state}

  @impl true
  def handle_info({:netlink, socket, datagram}, %{place: {:joined, socket}} = state) do
    {:noreply, arrived(state, datagram, {:netlink_event, datagram})}
  end

  def handle_info({:netlink, socket, datagram, metadata}, %{place: {:joined, socket}} = state) do
    {:noreply, arrived(state, datagram, {:netlink_event, datagram, metadata})}
  end

  def handle_info({:netlink_overrun, socket, _dropped}, %{place: {:joined, socket}} = state) do
    # What nlctrl has told may be among it.
    if state.follow,
      do: {:noreply, renew(state, :overrun)},
      else: {:noreply, gap(state, :overrun)}
  end

  def handle_info({:netlink_error, socket, error}, %{place: {:joined, socket}} = state) do
    {:noreply, gap(state, {:error, error})}
  end

  def handle_info({:netlink_closed, socket, reason}, %{place: {:joined, socket}} = state) do
    {:noreply, lost(state, reason)}
  end

  # The task that has opened it has not told yet.
  def handle_info({:netlink_closed, socket, reason}, state) do
    {:noreply, %{state | ended: {socket, reason}}}
  end

  # Likewise: an event is older than the resync that follows, but a refusal comes once.
  def handle_info(message, %{opening: %{}, refusal: nil} = state)
      when elem(message, 0) == :netlink and tuple_size(message) in [3, 4] do
    error = Subscription.refusal(state.config.subscription, elem(message, 2))
    {:noreply, if(error, do: %{state | refusal: {elem(message, 1), error}}, else: state)}
  end

  def handle_info({ref, result}, %{opening: %{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, opened(%{state | opening: nil}, result)}
  end

  # A generic family is not there: the task waits until it is.
  def handle_info({:not_there, pid, error}, %{opening: %{pid: pid}} = state) do
    {:noreply, advance(%{state | place: down(state.place, {:error, error})})}
  end

  def handle_info({ref, result}, %{run: %{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, %{state | run: nil} |> dumped(result) |> advance() |> dump()}
  end

  def handle_info(:open, state), do: {:noreply, open(state)}
  def handle_info(:dump, state), do: {:noreply, dump(%{state | dump_timer: nil})}

  def handle_info({:gauge, ref, report}, state) do
    subscribers = Subscribers.gauged(state.subscribers, ref, report, ways(state))
    {:noreply, dump(%{state | subscribers: subscribers})}
  end

  def handle_info({:DOWN, ref, :process, _pid, _reason}, state) do
    {:noreply, %{state | subscribers: Map.delete(state.subscribers, ref)}}
  end

  def handle_info({:relay_idle, node, relay, handled}, state) do
    Relay.idle(node, relay, handled)
    {:noreply, state}
  end

  # What an earlier socket has left, and what strangers send.
  def handle_info(_message, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state) do
    tasks = Enum.filter([state.opening, state.run], & &1)
    Enum.each(tasks, &Task.shutdown(&1, :brutal_kill))
    Redaction.forget_mailbox()
  end

  ## The socket

  # By a task, so that a server that does not answer holds nobody up. It closes the socket before, if
  # there is one.
  defp open(%{config: config} = state, old \\ nil) do
    monitor = self()
    known = state.known
    tell = &send(monitor, {:not_there, self(), &1})
    task = Task.async(fn -> Opening.run(config, monitor, old, known, tell) end)
    %{state | opening: task, ended: nil, refusal: nil}
  end

  defp opened(%{ended: {socket, reason}} = state, {:ok, socket, known, _follow}),
    do: lost(%{state | known: known}, reason)

  # Nothing older than this is told by anybody: whoever is owed a resync gets it now.
  defp opened(state, {:ok, socket, known, follow}) do
    state = %{state | known: known}
    Telemetry.execute([:monitor, :up], %{count: 1}, %{monitor: self(), socket: socket})
    state = %{state | place: {:joined, socket}, follow: follow, open_wait: @soonest}

    case state.refusal do
      {^socket, error} -> refused(state, error)
      _none -> state |> advance() |> dump()
    end
  end

  # It was the monitor's already, and closed before all was done.
  defp opened(%{ended: {_socket, reason}} = state, {:error, _error}), do: lost(state, reason)
  defp opened(state, {:error, error}), do: away(state, {:error, error})

  # Something is missing, and the groups of this socket may be others by now: the next one joins those.
  defp renew(%{place: {:joined, socket}} = state, reason) do
    %{gaps(state, reason) | place: :opening} |> open(socket)
  end

  # The family has refused to be subscribed to.
  defp refused(%{place: {:joined, socket}} = state, error) do
    _pid = spawn(fn -> NetlinkPort.close(socket) end)
    %{state | open_wait: @latest} |> gaps({:error, error}) |> away({:error, error})
  end

  defp lost(state, :namespace_gone), do: state |> gaps(:namespace_gone) |> away(:namespace_gone)
  defp lost(state, reason), do: state |> gaps({:closed, reason}) |> away({:closed, reason})

  defp away(state, reason) do
    {wait, next} = back_off(state.open_wait)
    _timer = Process.send_after(self(), :open, wait)
    advance(%{state | place: down(state.place, reason), open_wait: next})
  end

  # What it is down for is why it went down, not why it has not come back yet.
  defp down({:down, _first} = place, _reason), do: place

  defp down(_place, reason) do
    Telemetry.execute([:monitor, :down], %{count: 1}, %{monitor: self(), reason: reason})
    {:down, reason}
  end

  defp back_off(wait), do: {wait, min(2 * wait, @latest)}

  ## The dumps

  # One at a time, for all who wait by now: whoever comes later waits for the next. It is not ended by
  # a gap, which would begin another at once, for as long as gaps come.
  defp dump(%{place: {:joined, _socket}, run: nil, dump_timer: nil} = state) do
    if Subscribers.waiting?(state.subscribers) do
      %{server: server, protocol: protocol, dump_open: opts, dumps: dumps} = state.config
      known = state.known
      dumps = for {type, payload} <- dumps, do: {Follow.number(state.follow, type), payload}
      task = Task.async(fn -> Snapshot.read(server, protocol, opts, known, dumps) end)
      each(%{state | run: task}, &Subscriber.attach/1)
    else
      state
    end
  end

  defp dump(state), do: state

  defp dumped(state, {:ok, messages}) do
    pieces = Snapshot.pieces(messages)
    each(%{state | dump_wait: @soonest}, &Subscriber.snapshot(&1, pieces))
  end

  defp dumped(state, {:error, error}) do
    tell? = state.dump_wait == @soonest and error.stage != :thread
    {wait, next} = back_off(state.dump_wait)
    timer = Process.send_after(self(), :dump, wait)
    # The end of a helper is told as that of the socket.
    subscribers = Subscribers.failed(state.subscribers, error, tell?)
    %{state | dump_timer: timer, dump_wait: next, subscribers: subscribers}
  end

  ## What arrives

  defp arrived(state, datagram, message) do
    case Subscription.refusal(state.config.subscription, datagram) do
      nil -> followed(state, datagram, message)
      error -> refused(state, error)
    end
  end

  defp followed(%{follow: nil} = state, _datagram, message), do: event(state, message)

  defp followed(%{follow: follow, config: config} = state, datagram, message) do
    case Generic.told(follow, datagram) do
      {[], follow} ->
        state = %{state | follow: follow}
        if config.notify? or not Follow.notice?(datagram), do: event(state, message), else: state

      {[family | _], _follow} ->
        state = if config.notify?, do: event(state, message), else: state
        renew(state, {:family, family})
    end
  end

  ## The subscribers

  defp event(state, message), do: advance(state, &Subscriber.event(&1, message))
  defp gap(state, reason), do: state |> gaps(reason) |> advance() |> dump()
  defp gaps(state, reason), do: each(state, &Subscriber.gap(&1, reason))
  defp each(state, fun), do: %{state | subscribers: Subscribers.each(state.subscribers, fun)}

  # Sends whatever can be sent, to each after what `fun` does with it.
  defp advance(state, fun \\ & &1) do
    %{state | subscribers: Subscribers.advance(state.subscribers, ways(state), fun)}
  end

  defp ways(state), do: {state.place, state.config.dumps != []}

  # What crash reports and :sys.get_status/1 show. A callback of GenServer since Elixir 1.17.
  @doc false
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %State{} = state} = status) do
    Redaction.status(
      status,
      [
        server: state.config.server,
        protocol: state.config.protocol,
        netns: Keyword.get(state.config.open, :netns, :host),
        place: Redaction.brief(state.place),
        dumping?: state.run != nil
      ] ++ Subscribers.shown(state.subscribers)
    )
  end

  def format_status(status),
    do: Redaction.status(status, Redaction.brief(Map.get(status, :state)))
end
