defmodule NetlinkPort.Monitor.Process do
  @moduledoc false
  # The process of a monitor: it opens the socket and opens it again, runs the dumps, and passes events and gaps to the
  # subscribers.

  use GenServer

  alias NetlinkPort.{Errno, Error, ProcessLimit, Redaction, Telemetry}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Generic.{Follow, Nlctrl}
  alias NetlinkPort.Monitor.{Opening, Snapshot, Subscriber, Subscribers, Subscription}

  # The shortest and the longest pause before another attempt, in ms.
  @min_backoff 20
  @max_backoff 1_000

  # `opening` and `dumping` are the tasks that open the socket and read the dumps. `closed`, `refusal` and `notices` keep
  # closes, a refusal and notices of nlctrl that arrive before the result of the task `opening`. `known` are the
  # processes that led to the namespace. `open_wait` and `dump_wait` are the pauses before the next attempt, in ms.
  # `follow` are the generic families that the socket follows by name.
  @enforce_keys [:config, :open_wait, :dump_wait]
  defstruct [
    :config,
    :open_wait,
    :dump_wait,
    :opening,
    :dumping,
    :dump_timer,
    :refusal,
    :follow,
    closed: [],
    notices: [],
    place: :opening,
    known: [],
    subscribers: Subscribers.new()
  ]

  @impl true
  def init(config) do
    # A task can be killed, for example when the library's code is loaded twice while it waits.
    Process.flag(:trap_exit, true)
    {:ok, open(%__MODULE__{config: config, open_wait: @min_backoff, dump_wait: @min_backoff})}
  end

  @impl true
  def handle_call({:subscribe, pid, bound}, from, state) do
    subscribers = Subscribers.add(state.subscribers, pid, bound, socket_state(state))
    Relay.reply(from, {:ok, self()})
    {:noreply, %{state | subscribers: subscribers}}
  end

  def handle_call({:unsubscribe, pid}, from, state) do
    subscribers = Subscribers.drop(state.subscribers, pid)
    Relay.reply(from, :ok)
    {:noreply, %{state | subscribers: subscribers}}
  end

  # A caller may have mistaken the monitor for a server.
  def handle_call(_unknown, from, state) do
    Relay.reply(from, {:error, {:protocol, Errno.number(:einval), ""}})
    {:noreply, state}
  end

  @impl true
  def handle_cast(_unknown, state), do: {:noreply, state}

  @impl true
  def handle_info({:netlink, socket, datagram}, %{place: {:joined, socket}} = state) do
    {:noreply, datagram(state, datagram, {:netlink_event, datagram})}
  end

  def handle_info({:netlink, socket, datagram, metadata}, %{place: {:joined, socket}} = state) do
    {:noreply, datagram(state, datagram, {:netlink_event, datagram, metadata})}
  end

  def handle_info({:netlink_overrun, socket, _dropped}, %{place: {:joined, socket}} = state) do
    # The dropped datagrams may include a notice of nlctrl.
    if state.follow,
      do: {:noreply, reopen(state, :overrun)},
      else: {:noreply, gap(state, :overrun)}
  end

  def handle_info({:netlink_error, socket, error}, %{place: {:joined, socket}} = state) do
    {:noreply, gap(state, {:error, error})}
  end

  def handle_info({:netlink_closed, socket, reason}, %{place: {:joined, socket}} = state) do
    {:noreply, socket_closed(state, reason)}
  end

  # The close has overtaken the result of the task that opened the socket, or is that of an earlier socket, which a task
  # of the monitor has closed.
  def handle_info({:netlink_closed, socket, reason}, %{opening: %{}} = state) do
    {:noreply, %{state | closed: [{socket, reason} | state.closed]}}
  end

  # A datagram, too, can overtake the result. An event may be dropped, since a resync follows. A refusal may not, nor a
  # notice of nlctrl: the kernel sends it only once.
  def handle_info(message, %{opening: %{}} = state)
      when elem(message, 0) == :netlink and tuple_size(message) in [3, 4] do
    {:noreply, early(state, elem(message, 1), elem(message, 2))}
  end

  # The dropped datagrams may include a notice.
  def handle_info({:netlink_overrun, socket, _dropped}, %{opening: %{}} = state) do
    {:noreply, %{state | notices: [{socket, :overrun} | state.notices]}}
  end

  def handle_info({ref, result}, %{opening: %{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, opened(%{state | opening: nil}, result)}
  end

  # A generic family does not exist. The task waits until it is registered.
  def handle_info({:enoent, pid, error}, %{opening: %{pid: pid}} = state) do
    {:noreply, advance(%{state | place: down(state.place, {:error, error})})}
  end

  def handle_info({ref, result}, %{dumping: %{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, %{state | dumping: nil} |> dumped(result) |> dump()}
  end

  def handle_info({:DOWN, ref, :process, _pid, _killed}, %{opening: %{ref: ref}} = state),
    do: {:noreply, opened(%{state | opening: nil}, {:error, interrupted()})}

  def handle_info({:DOWN, ref, :process, _pid, _killed}, %{dumping: %{ref: ref}} = state),
    do: {:noreply, dumped(%{state | dumping: nil}, {:error, interrupted()})}

  # A relay that was killed loses the messages that it held.
  def handle_info({:EXIT, pid, reason}, state) do
    if Relay.mine?(pid), do: {:stop, reason, state}, else: {:noreply, state}
  end

  def handle_info(:open, state), do: {:noreply, open(state)}

  def handle_info({:close, socket}, state) do
    close(socket)
    {:noreply, state}
  end

  def handle_info(:dump, state), do: {:noreply, dump(%{state | dump_timer: nil})}

  def handle_info({:gauge, ref, report}, state) do
    subscribers = Subscribers.gauged(state.subscribers, ref, report, socket_state(state))
    {:noreply, dump(%{state | subscribers: subscribers})}
  end

  def handle_info({:DOWN, ref, :process, _pid, _reason}, state) do
    {:noreply, %{state | subscribers: Subscribers.down(state.subscribers, ref)}}
  end

  def handle_info({:relay_idle, node, relay, handled}, state) do
    Relay.idle(node, relay, handled)
    {:noreply, state}
  end

  # Messages of an earlier socket, and of strangers.
  def handle_info(_message, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state) do
    tasks = Enum.filter([state.opening, state.dumping], & &1)
    Enum.each(tasks, &Task.shutdown(&1, :brutal_kill))
    Redaction.forget_mailbox()
  end

  defp interrupted,
    do: Error.new(:thread, :eintr, subject: "monitor", hint: "its task was killed")

  ## The socket

  # A task opens the socket, so that a server that does not answer never blocks the monitor. The task first closes
  # the socket `old`.
  defp open(%{config: config} = state, old \\ nil) do
    monitor = self()
    known = state.known
    report = &send(monitor, {:enoent, self(), &1})
    state = %{state | closed: [], refusal: nil, notices: []}

    case ProcessLimit.task(fn -> Opening.run(config, monitor, old, known, report) end) do
      {:ok, task} ->
        %{state | opening: task}

      :system_limit ->
        if old, do: close(old)
        go_down(state, {:error, ProcessLimit.error(:thread, "monitor")})
    end
  end

  defp close(socket) do
    with :system_limit <- ProcessLimit.spawn(fn -> NetlinkPort.close(socket) end),
         do: Process.send_after(self(), {:close, socket}, @max_backoff)

    :ok
  end

  defp early(%{config: config} = state, socket, datagram) do
    error = Subscription.refusal(config.subscription, datagram)

    cond do
      error != nil -> %{state | refusal: state.refusal || {socket, error}}
      config.follow == [] or not Nlctrl.notice?(datagram) -> state
      true -> %{state | notices: [{socket, datagram} | state.notices]}
    end
  end

  # Why the socket has to be opened once more, from what overtook the result of the task that opened it.
  defp outdated(%{follow: nil}, _socket), do: nil

  defp outdated(%{follow: follow, notices: notices}, socket) do
    mine = for {^socket, notice} <- Enum.reverse(notices), do: notice

    Enum.reduce_while(mine, {nil, follow}, fn
      :overrun, _unchanged ->
        {:halt, {:overrun, follow}}

      datagram, {nil, follow} ->
        case Follow.update(follow, datagram) do
          {[], follow} -> {:cont, {nil, follow}}
          {[family | _], follow} -> {:halt, {{:family, family}, follow}}
        end
    end)
    |> elem(0)
  end

  defp opened(state, {:ok, socket, known, follow}) do
    state = %{state | known: known}

    case List.keyfind(state.closed, socket, 0) do
      {^socket, reason} -> socket_closed(state, reason)
      nil -> joined(state, socket, follow)
    end
  end

  # The socket already belonged to the monitor, and ended before the task was done.
  defp opened(state, {:error, error}) do
    case Enum.find(state.closed, fn {_socket, reason} -> reason != :closed end) do
      {_socket, reason} -> socket_closed(state, reason)
      nil -> go_down(state, {:error, error})
    end
  end

  # Every datagram older than this has been dropped, so that the owed resyncs may be sent now.
  defp joined(state, socket, follow) do
    Telemetry.execute([:monitor, :up], %{count: 1}, %{monitor: self(), socket: socket})
    state = %{state | place: {:joined, socket}, follow: follow, open_wait: @min_backoff}

    case {state.refusal, outdated(state, socket)} do
      {{^socket, error}, _reason} -> refused(state, error)
      {_none, nil} -> state |> advance() |> dump()
      {_none, reason} -> reopen(state, reason)
    end
  end

  # Events are missing, and the groups may have other numbers by now: the next socket joins those.
  defp reopen(%{place: {:joined, socket}} = state, reason) do
    %{note_gap(state, reason) | place: :opening} |> open(socket)
  end

  # The family has refused a message of the subscription.
  defp refused(%{place: {:joined, socket}} = state, error) do
    close(socket)
    %{state | open_wait: @max_backoff} |> note_gap({:error, error}) |> go_down({:error, error})
  end

  defp socket_closed(state, :namespace_gone),
    do: state |> note_gap(:namespace_gone) |> go_down(:namespace_gone)

  defp socket_closed(state, reason),
    do: state |> note_gap({:closed, reason}) |> go_down({:closed, reason})

  defp go_down(state, reason) do
    {wait, next} = back_off(state.open_wait)
    _timer = Process.send_after(self(), :open, wait)
    advance(%{state | place: down(state.place, reason), open_wait: next})
  end

  # The reason is why the monitor went down, not why the last attempt to come back failed.
  defp down({:down, _first} = place, _reason), do: place

  defp down(_place, reason) do
    Telemetry.execute([:monitor, :down], %{count: 1}, %{monitor: self(), reason: reason})
    {:down, reason}
  end

  defp back_off(wait), do: {wait, min(2 * wait, @max_backoff)}

  ## The dumps

  # One run of the dumps at a time, for all subscribers that wait now. Later ones wait for the next run. A gap does
  # not end a run: otherwise no run would ever end while gaps keep coming.
  defp dump(%{place: {:joined, _socket}, dumping: nil, dump_timer: nil} = state) do
    if Subscribers.waiting?(state.subscribers) do
      %{server: server, protocol: protocol, dump_open: opts, dumps: dumps} = state.config
      known = state.known
      dumps = for {type, payload} <- dumps, do: {Follow.number(state.follow, type), payload}

      case ProcessLimit.task(fn -> Snapshot.read(server, protocol, opts, known, dumps) end) do
        {:ok, task} ->
          %{state | dumping: task, subscribers: Subscribers.attach(state.subscribers)}

        :system_limit ->
          dumped(state, {:error, ProcessLimit.error(:thread, "monitor")})
      end
    else
      state
    end
  end

  defp dump(state), do: state

  defp dumped(state, {:ok, messages}) do
    pieces = Snapshot.pieces(messages)
    subscribers = Subscribers.snapshot(state.subscribers, pieces, socket_state(state))
    %{state | dump_wait: @min_backoff, subscribers: subscribers}
  end

  defp dumped(state, {:error, error}) do
    # The end of a helper also ends the socket, and subscribers learn of it by :netlink_down.
    notify? = state.dump_wait == @min_backoff and error.stage != :thread
    {wait, next} = back_off(state.dump_wait)
    timer = Process.send_after(self(), :dump, wait)
    subscribers = Subscribers.failed(state.subscribers, error, socket_state(state), notify?)
    %{state | dump_timer: timer, dump_wait: next, subscribers: subscribers}
  end

  ## Datagrams

  defp datagram(state, datagram, message) do
    case Subscription.refusal(state.config.subscription, datagram) do
      nil -> nlctrl_notice(state, datagram, message)
      error -> refused(state, error)
    end
  end

  defp nlctrl_notice(%{follow: nil} = state, _datagram, message), do: event(state, message)

  defp nlctrl_notice(%{follow: follow, config: config} = state, datagram, message) do
    case Follow.update(follow, datagram) do
      {[], follow} ->
        state = %{state | follow: follow}
        if config.notify? or not Nlctrl.notice?(datagram), do: event(state, message), else: state

      {[family | _], _follow} ->
        state = if config.notify?, do: event(state, message), else: state
        reopen(state, {:family, family})
    end
  end

  ## The subscribers

  defp event(state, message), do: advance(state, &Subscriber.event(&1, message))
  defp gap(state, reason), do: state |> note_gap(reason) |> advance() |> dump()

  defp note_gap(state, reason),
    do: %{state | subscribers: Subscribers.gap(state.subscribers, reason)}

  # Applies `fun` to each subscriber, then sends it the messages that may be sent.
  defp advance(state, fun \\ & &1) do
    %{state | subscribers: Subscribers.advance(state.subscribers, socket_state(state), fun)}
  end

  defp socket_state(state), do: {state.place, state.config.dumps != []}

  # For crash reports and :sys.get_status/1. A callback of GenServer since Elixir 1.17.
  @doc false
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %__MODULE__{} = state} = status) do
    Redaction.status(
      status,
      [
        server: state.config.server,
        protocol: state.config.protocol,
        netns: Keyword.get(state.config.open, :netns, :host),
        place: Redaction.brief(state.place),
        dumping?: state.dumping != nil
      ] ++ Subscribers.summary(state.subscribers)
    )
  end

  def format_status(status), do: Redaction.status(status)
end
