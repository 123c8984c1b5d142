defmodule NetlinkPort.Connection do
  @moduledoc """
  A supervised process that owns a netlink socket and carries out the requests of many callers on it, concurrently.

      children = [
        {NetlinkPort, name: MyApp.Netlink},
        {NetlinkPort.Connection,
         server: MyApp.Netlink, protocol: :route, netns: {:name, "blue"}, name: MyApp.Blue}
      ]

      # RTM_GETLINK of interface 1, and of all, rtnetlink(7)
      {:ok, [link]} = NetlinkPort.Connection.request(MyApp.Blue, 18, <<0::32, 1::32-native, 0::64>>)
      {:ok, links} = NetlinkPort.Connection.dump(MyApp.Blue, 18, <<0::128>>)

  `request/4`, `batch/3` and `dump/4` take the same arguments and return the same values as those of `NetlinkPort`.
  The difference is who owns the socket. Any process may call a connection, from any node.

  The connection matches answers to callers by the sequence number, so that many requests are under way at once. The
  limit is sixteen, for which the socket's buffer has room. A batch counts once for each of its messages. A request or
  batch whose payload is larger than 4 kB counts at least once for each 4 kB. When it counts sixteen or more, it goes
  alone. A request that has no answer after five seconds stops counting.

  Dumps wait for one another, and for nothing else. A request that is answered by a dump, with `:dump` in its flags or
  LIST of ipset, is a dump in this. The kernel runs one dump on a socket, so the connection sends the
  next dump when it has read the `NLMSG_DONE` of the last.

  ## Deadlines

  The `:timeout` of a request or a batch covers the whole call. The `:timeout` of a dump covers its first datagram,
  including the wait for earlier dumps, and then each further datagram. `:total_timeout` and `:max_bytes` bound the
  dump as a whole.

  When the deadline passes, the caller gets `ETIMEDOUT`. The request itself is not taken back: the kernel may have
  carried it out. The connection drops the answer when it arrives.

  When the caller of a dump has given up or has ended, the connection reads the dump to its end before it sends the
  next one. If no datagram of it comes for five seconds, or if it has not ended after a minute or 256 MiB, the
  connection sends nothing more on this socket. It opens another, and sends there all calls that were not sent yet.
  Calls that are under way on the old socket are still answered there. After five more seconds their callers get
  `ETIMEDOUT`.

  ## Loss

  When the kernel has dropped datagrams, the connection cannot know whose answers they were. Requests and batches whose
  answers come whole all the same succeed. The others get `ENOBUFS`, in five seconds at most, and the kernel may or may
  not have carried them out. To know that an answer does not come any more, the connection sends a message that does
  nothing, `NLMSG_NOOP`. The dump under way is sent again, up to five times in all, like a dump that was interrupted by
  changes. A connection never sends anything else twice.

  The mailbox of the connection is bounded. It holds at most `max_queue:` datagrams (1 000 by default), and one message
  from each caller. Further datagrams stay in the socket's window and in the kernel.

  ## Starting, and starting again

  `start_link/1` makes the first attempt to open the socket before it returns, so that processes that start later find
  the connection ready. When the attempt fails, because the server does not run or the namespace does not exist yet,
  the connection starts all the same, and its supervisor sees no failure. The connection does not wait for a server on
  another node: a node that does not answer takes seconds to be given up.

  While the connection has no socket, each call returns the error of the last attempt at once. The connection tries
  again after 10 ms, and then at growing intervals of up to 1 s.

  When the socket is closed, all callers get `EPIPE` of the stage `:thread` at once, and the connection opens another
  socket as above. A socket is closed when its helper or its server ends, or, with `close_on: :namespace_gone`, when
  its namespace is gone. The connection also replaces its socket when the helper reports an error that belongs to no
  request. Callers then get that error.

  So one connection outlives any number of helpers. It needs no restart when its server restarts: do not put the two
  under a `:rest_for_one` supervisor.

  A connection that found its namespace through a process, as with `netns: {:pid, pid}`, remembers that process. When
  the process has ended and another one has its number, calls return `ESRCH`.
  """

  use GenServer

  alias NetlinkPort.{Deadline, Error, ExtAck, Message, Options, Payload, Pin, Redaction, Socket}
  alias NetlinkPort.Telemetry
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Request.Exchange
  alias NetlinkPort.Server.{Client, Opening, PinNumbers}
  alias NetlinkPort.Connection.{Calls, Transmit}

  # The shortest and the longest pause before another attempt to open the socket, in ms.
  @soonest 10
  @latest 1_000
  @max_queue 1_000
  # How long calls that are under way may keep others waiting, in ms. The kernel answers at once.
  @patience 5_000
  # Options of a socket that the connection sets itself.
  @fixed [:active, :owner, :groups, :user_peers, :closed_message]

  # When there is no `socket`, `error` says why. `fresh` replaces `socket` as soon as no call is under way on
  # `socket`. A call is known by the monitor of its caller. `senders` maps the monitor of each process that waits
  # for sendmsg(2) to its call. `opener` monitors the process that opens a socket. `monitor` monitors the server,
  # if it is on this node. `known` are the processes that led to the namespace.
  @enforce_keys [:server, :protocol, :opts, :calls]
  defstruct [
    :server,
    :protocol,
    :opts,
    :calls,
    :socket,
    :monitor,
    :error,
    :opener,
    :fresh,
    backoff: @soonest,
    known: [],
    senders: %{}
  ]

  @typedoc "A connection: its pid, or the name it was started with."
  @type t :: GenServer.server()

  ## The process

  @doc """
  The child specification for a supervisor: `{NetlinkPort.Connection, options}`, see `start_link/1`.

      iex> NetlinkPort.Connection.child_spec(protocol: :route, name: MyApp.Blue).id
      MyApp.Blue
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
  Starts a connection, linked to the caller. Usually a supervisor does this.

  Options:

    * `:protocol` - the protocol of the socket, `t:NetlinkPort.protocol/0`. Required.
    * `:server` - the server that opens the socket. Defaults to `NetlinkPort`.
    * `:name` - the name to register the connection under. Defaults to no name.
    * `:max_queue` - see "Loss" above. Defaults to `1_000`.
    * the other options of `NetlinkPort.open/3`, except `:active`, `:owner`, `:groups`, `:user_peers` and
      `:closed_message`. The connection owns the socket, and has no use for events.

  For example:

      {:ok, connection} =
        NetlinkPort.Connection.start_link(server: MyApp.Netlink, protocol: :route, netns: {:name, "blue"})

      {:ok, links} = NetlinkPort.Connection.dump(connection, 18, <<0::128>>)

  Errors: `{:already_started, pid}` for a name that is taken. A server or a namespace that does not exist is no error
  here: calls return it. Wrong options raise `ArgumentError`.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    Options.keyword!(opts)
    {own, opts} = Keyword.split(opts, [:server, :protocol, :name])
    server = Options.server!(Keyword.get(own, :server, NetlinkPort))
    protocol = Keyword.get(own, :protocol)
    if fixed = Enum.find(@fixed, &Keyword.has_key?(opts, &1)), do: refuse!(fixed)
    opts = Keyword.put_new(opts, :max_queue, @max_queue)

    with {:ok, %{netns: netns}} <- Options.open(protocol, opts) do
      # An absolute path: the working directory may be another when the socket is opened again.
      opts = Keyword.put(opts, :netns, netns)
      GenServer.start_link(__MODULE__, {server, protocol, opts}, Keyword.take(own, [:name]))
    end
  end

  defp refuse!(name) do
    raise ArgumentError, "#{inspect(name)} is the connection's own to decide"
  end

  ## Calls

  @doc """
  Like `NetlinkPort.request/4`, on the connection's socket.

      {:ok, [link]} = NetlinkPort.Connection.request(MyApp.Blue, 18, <<0::32, 1::32-native, 0::64>>)

  Errors are those of `NetlinkPort.request/4`. While the connection has no socket, the error says why.
  """
  @spec request(t(), 0..0xFFFF, Pin.payload(),
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          ack: boolean(),
          ext_ack: boolean()
        ) :: {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def request(connection, type, payload \\ "", opts \\ []) do
    request_of(nil, connection, type, payload, opts)
  end

  @doc false
  # For NetlinkPort.Generic. Raises `ArgumentError` where the connection is of another protocol.
  @spec request_of(NetlinkPort.protocol() | nil, t(), 0..0xFFFF, Pin.payload(), keyword()) ::
          {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def request_of(protocol, connection, type, payload, opts) do
    opts = Options.request!(opts, [:flags, :timeout, :ack, :ext_ack])
    question = {:request, Options.type!(type), Payload.compact(payload), opts}
    call(connection, {:request, type}, only_of(protocol, question), opts, opts.timeout)
  end

  defp only_of(nil, question), do: question
  defp only_of(protocol, question), do: {:only_of, protocol, question}

  @doc """
  Like `NetlinkPort.batch/3`, on the connection's socket.

      # RTM_GETLINK (18) and RTM_GETNSID (90) of an interface and a process that are not there
      link = {18, [], <<0::32, 1_000_000::32-native, 0::64>>}
      nsid = {90, [], [<<0::32>>, NetlinkPort.Attr.encode([{2, NetlinkPort.Attr.u32(0)}])]}
      {:ok, [{:error, _}, {:error, _}]} = NetlinkPort.Connection.batch(MyApp.Blue, [link, nsid])

  A batch of nf_tables is all or nothing. A batch that the kernel would discard raises `ArgumentError`, as with
  `NetlinkPort.batch/3`.

  Errors are those of `NetlinkPort.batch/3`. While the connection has no socket, the error says why.
  """
  @spec batch(t(), [{0..0xFFFF, [Message.flag()] | 0..0xFFFF, Pin.payload()}],
          timeout: timeout(),
          ext_ack: boolean()
        ) ::
          {:ok,
           [{:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()]}
          | NetlinkPort.error()
  def batch(connection, requests, opts \\ []) do
    opts = Options.request!(opts, [:timeout, :ext_ack])

    requests =
      for {type, flags, payload} <- Options.batch!(requests),
          do: {type, flags, Payload.compact(payload)}

    if requests == [],
      do: {:ok, []},
      else: call(connection, {:batch, nil}, {:batch, requests}, opts, opts.timeout)
  end

  @doc """
  Like `NetlinkPort.dump/4`, on the connection's socket.

      {:ok, links} = NetlinkPort.Connection.dump(MyApp.Blue, 18, <<0::128>>)

  Errors are those of `NetlinkPort.dump/4`. While the connection has no socket, the error says why.
  """
  @spec dump(t(), 0..0xFFFF, Pin.payload(),
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          total_timeout: timeout(),
          max_bytes: pos_integer() | :infinity,
          ext_ack: boolean()
        ) :: {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def dump(connection, type, payload \\ "", opts \\ []) do
    dump_of(nil, connection, type, payload, opts)
  end

  @doc false
  @spec dump_of(NetlinkPort.protocol() | nil, t(), 0..0xFFFF, Pin.payload(), keyword()) ::
          {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def dump_of(protocol, connection, type, payload, opts) do
    opts = Options.request!(opts, [:flags, :timeout, :total_timeout, :max_bytes, :ext_ack])
    question = {:dump, Options.type!(type), Payload.compact(payload), opts}
    # The connection ends the call, however long the dump goes on.
    call(connection, {:dump, type}, only_of(protocol, question), opts, :infinity)
  end

  defp call(connection, {kind, type}, question, opts, patience) do
    ask = fn -> ask(connection, question, opts, patience) end
    Exchange.face(Telemetry.request(kind, type, {:connection, connection}, ask), opts)
  end

  defp ask(connection, question, opts, patience) do
    timeouts = {opts.timeout, opts.total_timeout}
    message = {:exchange, question, timeouts, Deadline.new(opts.timeout)}

    case Client.call(connection, message, patience) do
      {:error, {:wrong, sentence}} -> raise ArgumentError, sentence
      {:error, {stage, errno, _detail}} -> {:error, Error.new(stage, errno)}
      outcome -> outcome
    end
  end

  ## The socket

  @impl true
  def init({server, protocol, opts}) do
    opts = [owner: self()] ++ opts
    state = %__MODULE__{server: server, protocol: protocol, opts: opts, calls: Calls.new()}

    if elsewhere?(server),
      do: {:ok, open(%{state | error: Error.new(:thread, :esrch)})},
      else: {:ok, opened(state, Opening.again(server, protocol, opts, []))}
  end

  defp elsewhere?({_name, node}) when is_atom(node), do: node != node()
  defp elsewhere?(server) when is_pid(server), do: node(server) != node()
  defp elsewhere?(_name), do: false

  # The new socket replaces a socket that is still in use.
  defp opened(%{socket: %Socket{}} = state, {:ok, fresh, known}) do
    swap_when_free(%{state | opener: nil, fresh: fresh, known: known})
  end

  defp opened(%{socket: %Socket{}} = state, {:error, error}) do
    reset(%{state | opener: nil}, error)
  end

  defp opened(state, {:ok, %Socket{link: link} = socket, known}) do
    # A remote witness reports the end of a server on another node, by :netlink_closed.
    monitor = if Reference.local?(link), do: Process.monitor(link.server)
    Telemetry.execute([:connection, :up], %{count: 1}, %{connection: self(), socket: socket})
    state = %{state | socket: socket, monitor: monitor, opener: nil, backoff: @soonest}
    %{state | known: known}
  end

  defp opened(state, {:error, error}) do
    if state.error == nil, do: told_down(state, error)
    open_later(%{state | error: error, opener: nil})
  end

  defp told_down(state, error) do
    metadata = %{connection: self(), error: error}
    Telemetry.execute([:connection, :down], %{calls: Calls.count(state.calls)}, metadata)
  end

  defp open(%{server: server, protocol: protocol, opts: opts, known: known} = state) do
    {_pid, opener} =
      spawn_monitor(fn -> exit({:opened, Opening.again(server, protocol, opts, known)}) end)

    %{state | opener: opener}
  end

  defp open_later(%{backoff: backoff} = state) do
    _timer = Process.send_after(self(), :open, backoff)
    %{state | backoff: min(2 * backoff, @latest)}
  end

  defp closed(state, error) do
    if state.monitor, do: Process.demonitor(state.monitor, [:flush])
    _pid = if state.fresh, do: close_aside(state.fresh)
    told_down(state, error)
    state = %{state | socket: nil, monitor: nil, fresh: nil, error: error}
    state = settle(state, Calls.close(state.calls, error))
    if state.opener, do: state, else: open_later(state)
  end

  defp reset(%{socket: socket} = state, error) do
    _pid = close_aside(socket)
    closed(state, error)
  end

  # In another process: a helper that does not answer must not block the connection.
  defp close_aside(socket), do: spawn(fn -> NetlinkPort.close(socket) end)

  ## Another socket, for one that a dump has spoilt

  # Calls that were sent on the old socket are still answered there. The others go to the new socket.
  defp replace(%{calls: %{spoilt?: true}, opener: nil, fresh: nil, socket: %Socket{}} = state) do
    _timer = Process.send_after(self(), {:replace, state.socket}, @patience)
    open(state)
  end

  defp replace(state), do: swap_when_free(state)

  defp swap_when_free(%{fresh: %Socket{} = fresh, socket: old} = state) do
    if Calls.under_way?(state.calls) do
      state
    else
      _pid = close_aside(old)
      if state.monitor, do: Process.demonitor(state.monitor, [:flush])
      state = %{state | socket: nil, monitor: nil, fresh: nil, calls: Calls.fresh(state.calls)}
      send_next(opened(state, {:ok, fresh, state.known}))
    end
  end

  defp swap_when_free(state), do: state

  defp ended, do: Error.new(:thread, :epipe)

  ## A call begins

  @impl true
  def handle_call({:exchange, {:only_of, protocol, question}, timeouts, deadline}, from, state) do
    if Options.protocol!(protocol) == Options.protocol!(state.protocol) do
      handle_call({:exchange, question, timeouts, deadline}, from, state)
    else
      sentence =
        "expected a connection of the protocol #{inspect(protocol)}, " <>
          "got one of #{inspect(state.protocol)}"

      answer(from, {:error, {:wrong, sentence}}, state)
    end
  end

  def handle_call({:exchange, _question, _timeouts, _deadline}, from, %{socket: nil} = state) do
    answer(from, {:error, state.error}, state)
  end

  def handle_call({:exchange, question, {timeout, _total} = timeouts, deadline}, from, state) do
    left = Deadline.time_left(deadline, timeout)

    # Pins are resolved before a call waits. Their numbers hold as long as the helper of this socket, and a call that
    # waits ends with that socket.
    made =
      with {:ok, question} <- PinNumbers.resolve_question(question, state.socket),
           do: Exchange.new(state.protocol, question)

    case made do
      {:ok, exchange} when is_integer(left) and left <= 0 and timeout > 0 ->
        answer(from, Exchange.cut(exchange, Exchange.overdue(:silent)), state)

      {:ok, exchange} ->
        {:noreply, begin(state, exchange, from, timeouts, left)}

      {:error, error} ->
        answer(from, {:error, error}, state)

      {:wrong, _sentence} = wrong ->
        answer(from, {:error, wrong}, state)
    end
  end

  def handle_call(_unknown, from, state) do
    answer(from, {:error, Error.new(:protocol, :einval)}, state)
  end

  defp answer(from, answer, state) do
    Relay.reply(from, answer)
    {:noreply, state}
  end

  @impl true
  def handle_cast(_unknown, state), do: {:noreply, state}

  defp begin(state, exchange, {caller, _tag} = from, timeouts, left) do
    id = Relay.monitor(caller)
    calls = Calls.add(state.calls, id, exchange, from, timeouts, left)
    arm(calls, id)
    send_next(%{state | calls: calls})
  end

  # Replies to the callers, then sends the calls that may be sent now.
  defp settle(state, {replies, calls}) do
    for {id, {caller, _tag} = from, outcome} <- replies do
      # A dump that was given up is still read, with a deadline of its own.
      arm(calls, id)
      Relay.demonitor(id, caller)
      Relay.reply(from, outcome)
    end

    replace(send_next(%{state | calls: calls}))
  end

  defp send_next(state) do
    case Calls.next(state.calls) do
      {id, datagrams, calls} -> send_next(transmit(%{state | calls: calls}, id, datagrams))
      nil -> state
    end
  end

  defp transmit(state, id, datagrams) do
    _timer =
      if Calls.left(state.calls, id) > @patience,
        do: Process.send_after(self(), {:unanswered, id}, @patience)

    case Transmit.send(state.socket, datagrams) do
      :ok -> state
      {:later, monitor} -> put_in(state.senders[monitor], id)
      {:error, error} -> unsent(state, id, error)
    end
  end

  defp unsent(state, id, %{stage: :send, reason: reason} = error) when reason != :ebadf do
    settle(state, Calls.finish(state.calls, id, {:error, error}))
  end

  # The socket is closed, or the helper has ended. The message that says so may come later, or came too early.
  defp unsent(state, _id, _error), do: closed(state, ended())

  ## A call goes on

  @impl true
  def handle_info({:netlink, socket, datagram}, %{socket: socket} = state) do
    {:noreply, settle(state, Calls.received(state.calls, datagram, nil))}
  end

  # With metadata, as pktinfo gives it.
  def handle_info({:netlink, socket, datagram, %{group: group}}, %{socket: socket} = state) do
    {:noreply, settle(state, Calls.received(state.calls, datagram, group))}
  end

  def handle_info({:netlink_overrun, socket, dropped}, %{socket: socket} = state) do
    {:noreply, lost(state, Error.new(:recv, :enobufs, dropped: dropped))}
  end

  def handle_info({:netlink_error, socket, %{stage: :recv} = error}, %{socket: socket} = state) do
    {:noreply, lost(state, error)}
  end

  def handle_info({:netlink_error, socket, error}, %{socket: socket} = state) do
    {:noreply, reset(state, error)}
  end

  def handle_info({:netlink_closed, socket, _reason}, %{socket: socket} = state) do
    {:noreply, closed(state, ended())}
  end

  def handle_info({:DOWN, monitor, :process, _server, _reason}, %{monitor: monitor} = state) do
    {:noreply, closed(state, ended())}
  end

  def handle_info({:DOWN, monitor, :process, _pid, reason}, %{opener: monitor} = state) do
    case reason do
      {:opened, result} -> {:noreply, opened(state, result)}
      _killed -> {:noreply, opened(state, {:error, ended()})}
    end
  end

  def handle_info({:DOWN, monitor, :process, _pid, reason}, %{senders: senders} = state)
      when is_map_key(senders, monitor) do
    {id, senders} = Map.pop!(senders, monitor)
    {:noreply, sent(%{state | senders: senders}, id, reason)}
  end

  def handle_info({:DOWN, id, :process, caller, _reason}, state) do
    if Calls.member?(state.calls, id) do
      calls = Calls.give_up(state.calls, id)
      arm(calls, id)
      Relay.demonitor(id, caller)
      {:noreply, settle(state, {[], calls})}
    else
      {:noreply, state}
    end
  end

  def handle_info({:deadline, id}, state) do
    if Calls.member?(state.calls, id),
      do: {:noreply, deadline(state, id)},
      else: {:noreply, state}
  end

  def handle_info({:unanswered, id}, state) do
    {:noreply, settle(state, {[], Calls.unanswered(state.calls, id)})}
  end

  # The calls on a socket that a dump has spoilt have had their time.
  def handle_info({:replace, socket}, %{socket: socket} = state) do
    {:noreply, reset(state, Exchange.overdue(:silent))}
  end

  def handle_info(:open, %{socket: nil, opener: nil} = state), do: {:noreply, open(state)}

  def handle_info({:relay_idle, node, relay, handled}, state) do
    Relay.idle(node, relay, handled)
    {:noreply, state}
  end

  # Messages of a closed socket, of a finished call, and of strangers.
  def handle_info(_message, state), do: {:noreply, state}

  defp lost(state, error) do
    {ids, calls} = Calls.lose(state.calls, error, Map.values(state.senders))
    Enum.each(ids, &arm(calls, &1))
    settle(state, {[], calls})
  end

  defp sent(state, _id, {:sent, :ok}), do: state

  defp sent(state, id, reason) do
    case {Calls.member?(state.calls, id), reason} do
      {false, _reason} -> state
      {true, {:sent, {:error, error}}} -> unsent(state, id, error)
      {true, _killed} -> reset(state, ended())
    end
  end

  ## Deadlines

  defp deadline(state, id) do
    if Calls.left(state.calls, id) > 0 do
      arm(state.calls, id)
      state
    else
      settle(state, Calls.expire(state.calls, id))
    end
  end

  # The deadline of a dump that goes on has moved by the time this timer fires.
  defp arm(calls, id) do
    left = if Calls.member?(calls, id), do: Calls.left(calls, id), else: :infinity
    _timer = if left != :infinity, do: Process.send_after(self(), {:deadline, id}, left)
    :ok
  end

  @impl true
  def terminate(_reason, _state), do: Redaction.forget_mailbox()

  # For crash reports and :sys.get_status/1. Payloads may contain keys and must not be shown. A callback of GenServer
  # since Elixir 1.17.
  @doc false
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %__MODULE__{} = state} = status) do
    Redaction.status(status,
      server: state.server,
      protocol: state.protocol,
      netns: Keyword.get(state.opts, :netns, :host),
      socket: state.socket,
      error: state.error && Exception.message(state.error),
      calls: Calls.count(state.calls),
      sending: map_size(state.senders)
    )
  end

  def format_status(status),
    do: Redaction.status(status, Redaction.brief(Map.get(status, :state)))
end
