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

      # RTM_NEWLINK and RTM_DELLINK
      defp change(%{type: 16, payload: <<0, _::24, index::32-native, _::binary>> = link}, links),
        do: Map.put(links, index, link)

      defp change(%{type: 17, payload: <<0, _::24, index::32-native, _::binary>>}, links),
        do: Map.delete(links, index)

      # Those of the family AF_BRIDGE are about the ports of a bridge.
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

  ## What the kernel does not tell

  Not every change is an event. The IPv4 routes of an interface that is deleted or goes down go with it
  without one each: whoever mirrors them takes them away on `RTM_DELLINK`, and on an `RTM_NEWLINK` without
  `IFF_UP`. Counters change untold. A snapshot has it all: to subscribe again is to get one.

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

  alias NetlinkPort.{Client, Errno, Error, Gauge, Opening, Options, Relay, Shown, Telemetry}
  alias NetlinkPort.Monitor.{Config, Snapshot, Subscriber}

  # How long until what has failed is tried again, in ms.
  @soonest 20
  @latest 1_000
  @max_queue 10_000

  @typedoc """
  Why something may be missing: the subscription has just begun; the kernel dropped datagrams; the
  socket was closed, and is open again (`t:NetlinkPort.closed_reason/0`); its namespace was gone, and is
  back; the subscriber did not keep up; or a datagram could not be received.
  """
  @type reason ::
          :subscribed
          | :overrun
          | {:closed, NetlinkPort.closed_reason()}
          | :namespace_gone
          | :behind
          | {:error, Error.t()}

  defmodule State do
    @moduledoc false
    # `opening` and `run` are the tasks that open the socket and read the dumps; `ended` is what was
    # closed before it was known to be open. `known` are the processes that its namespace was found by. `open_wait` and `dump_wait` are how long until the next try.
    @enforce_keys [:config, :open_wait, :dump_wait]
    defstruct [
      :config,
      :open_wait,
      :dump_wait,
      :opening,
      :run,
      :dump_timer,
      :ended,
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

  Options, beside `:netns` and `:groups` of `NetlinkPort.open/3` and the options of
  `NetlinkPort.setopts/2` but `:active`:

    * `:name` - what to register the monitor as; no name unless told otherwise.
    * `:server` - the server that opens the socket, `NetlinkPort` unless told otherwise. It may be on another
      node, `{MyApp.Netlink, :"agent@host"}`: the loss of that node, or of the connection, is a gap like the
      end of a helper.
    * `:protocol` - `:route` unless told otherwise. See `t:NetlinkPort.protocol/0`.
    * `:dump` - the dumps of a snapshot, in their order: `{type, payload}` each, as
      `NetlinkPort.dump/4` takes them. They are read over a socket that has the monitor's
      `:get_strict_chk`. None unless told otherwise.

  For example:

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
    state = drop(state, pid)
    state = advance(state, Relay.monitor(pid), Subscriber.new(pid, bound))
    Relay.reply(from, {:ok, self()})
    {:noreply, state}
  end

  def handle_call({:unsubscribe, pid}, from, state) do
    state = drop(state, pid)
    Relay.reply(from, :ok)
    {:noreply, state}
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
    {:noreply, event(state, {:netlink_event, datagram})}
  end

  def handle_info({:netlink, socket, datagram, metadata}, %{place: {:joined, socket}} = state) do
    {:noreply, event(state, {:netlink_event, datagram, metadata})}
  end

  def handle_info({:netlink_overrun, socket, _dropped}, %{place: {:joined, socket}} = state) do
    {:noreply, gap(state, :overrun)}
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

  def handle_info({ref, result}, %{opening: %{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, opened(%{state | opening: nil}, result)}
  end

  def handle_info({ref, result}, %{run: %{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, %{state | run: nil} |> dumped(result) |> advance() |> dump()}
  end

  def handle_info(:open, state), do: {:noreply, open(state)}
  def handle_info(:dump, state), do: {:noreply, dump(%{state | dump_timer: nil})}

  def handle_info({:gauge, ref, report}, state) do
    case state.subscribers do
      %{^ref => subscriber} ->
        {credit, gauge} = Gauge.read(subscriber.gauge, ref, report, subscriber.credit)
        subscriber = %{subscriber | credit: credit, gauge: gauge}
        {:noreply, state |> advance(ref, subscriber) |> dump()}

      _forgotten ->
        {:noreply, state}
    end
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
    Shown.forget_mailbox()
  end

  ## The socket

  # By a task, so that a server that does not answer holds nobody up.
  defp open(%{config: config} = state) do
    monitor = self()
    opts = [owner: monitor] ++ config.open
    known = state.known
    task = Task.async(fn -> Opening.again(config.server, config.protocol, opts, known) end)
    %{state | opening: task, ended: nil}
  end

  defp opened(%{ended: {socket, reason}} = state, {:ok, socket, known}),
    do: lost(%{state | known: known}, reason)

  # Nothing older than this is told by anybody: whoever is owed a resync gets it now.
  defp opened(state, {:ok, socket, known}) do
    state = %{state | known: known}
    Telemetry.execute([:monitor, :up], %{count: 1}, %{monitor: self(), socket: socket})
    %{state | place: {:joined, socket}, open_wait: @soonest} |> advance() |> dump()
  end

  defp opened(state, {:error, error}), do: away(state, {:error, error})

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
    if Enum.any?(state.subscribers, fn {_ref, subscriber} -> subscriber.phase == :waiting end) do
      %{server: server, protocol: protocol, dump_open: opts, dumps: dumps} = state.config
      known = state.known
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
    state = %{state | dump_timer: timer, dump_wait: next}
    failed = &(&2 |> failed(&1, error, tell?) |> Subscriber.detach())

    %{
      state
      | subscribers: Map.new(state.subscribers, fn {ref, one} -> {ref, failed.(ref, one)} end)
    }
  end

  # The end of a helper is told as that of the socket.
  defp failed(%{phase: :attached} = subscriber, ref, error, true) do
    {messages, subscriber} = Subscriber.aside(subscriber, {:netlink_error, error})
    tell(subscriber, ref, messages)
    subscriber
  end

  defp failed(subscriber, _ref, _error, _tell?), do: subscriber

  ## The subscribers

  defp drop(state, pid) do
    {dropped, kept} = Enum.split_with(state.subscribers, fn {_ref, one} -> one.pid == pid end)
    Enum.each(dropped, fn {ref, one} -> Relay.demonitor(ref, one.pid) end)
    %{state | subscribers: Map.new(kept)}
  end

  defp event(state, message) do
    advance(state, &Subscriber.event(&1, message))
  end

  defp gap(state, reason), do: state |> gaps(reason) |> advance() |> dump()
  defp gaps(state, reason), do: each(state, &Subscriber.gap(&1, reason))

  defp each(state, fun) do
    %{state | subscribers: Map.new(state.subscribers, fn {ref, one} -> {ref, fun.(one)} end)}
  end

  # Sends whatever can be sent, to each after what `fun` does with it.
  defp advance(state, fun \\ & &1) do
    Enum.reduce(state.subscribers, state, fn {ref, one}, state ->
      advance(state, ref, fun.(one))
    end)
  end

  defp advance(%{place: place} = state, ref, subscriber) do
    {messages, subscriber} = Subscriber.advance(subscriber, place, state.config.dumps != [])
    tell(subscriber, ref, messages)
    %{pid: pid, credit: credit} = subscriber
    waiting? = Subscriber.waiting?(subscriber, place)
    gauge = Gauge.watch(subscriber.gauge, ref, pid, credit, waiting?)
    %{state | subscribers: Map.put(state.subscribers, ref, %{subscriber | gauge: gauge})}
  end

  defp tell(%{pid: pid}, ref, messages) do
    Enum.each(messages, fn message ->
      with {:netlink_resync, reason} <- message do
        metadata = %{monitor: self(), subscriber: pid, reason: reason}
        Telemetry.execute([:monitor, :resync], %{count: 1}, metadata)
      end

      Relay.deliver(pid, ref, Tuple.insert_at(message, 1, self()))
    end)
  end

  # What crash reports and :sys.get_status/1 show. A callback of GenServer since Elixir 1.17.
  @doc false
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %State{} = state} = status) do
    subscribers = Map.values(state.subscribers)

    Shown.status(status,
      server: state.config.server,
      protocol: state.config.protocol,
      netns: Keyword.get(state.config.open, :netns, :host),
      place: Shown.brief(state.place),
      dumping?: state.run != nil,
      subscribers: length(subscribers),
      phases: Enum.frequencies_by(subscribers, &phase(&1.phase)),
      events_kept: Enum.sum(Enum.map(subscribers, & &1.events))
    )
  end

  def format_status(status), do: Shown.status(status, Shown.brief(Map.get(status, :state)))

  defp phase({:owed, _reason, _told?}), do: :owed
  defp phase(phase), do: phase
end
