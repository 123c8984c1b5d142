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

  Requests that wait at the same time share a datagram of up to 4 kB, where the kernel reads all messages of a datagram,
  each for itself: with `:route`, `:generic`, `:xfrm` and `:sock_diag`. A capture shows them so.

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
  socket as above. A socket is closed when its helper or its server ends, when another process closes it
  (`NetlinkPort.close/1`), or, with `close_on: :namespace_gone`, when its namespace is gone. The connection also
  replaces its socket when the helper reports an error that belongs to no request. Callers then get that error.

  So one connection outlives any number of helpers. It needs no restart when its server restarts: do not put the two
  under a `:rest_for_one` supervisor.

  A connection that found its namespace through a process, as with `netns: {:pid, pid}`, remembers that process. When
  the process has ended and another one has its number, calls return `ESRCH`.
  """

  alias NetlinkPort.{
    Arguments,
    Deadline,
    ExtAck,
    Message,
    Options,
    Payload,
    Pin,
    ProcessLimit,
    Telemetry
  }

  alias NetlinkPort.Request.Exchange
  alias NetlinkPort.Server.Client

  @max_queue 1_000
  # Options of a socket that the connection sets itself.
  @fixed [:active, :owner, :groups, :user_peers, :closed_message]

  @typedoc "A connection: its pid, or the name it was started with."
  @type t :: GenServer.server()

  @doc """
  The child specification for a supervisor: `{NetlinkPort.Connection, options}`, see `start_link/1`.

      iex> NetlinkPort.Connection.child_spec(protocol: :route, name: MyApp.Blue).id
      MyApp.Blue
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
    Arguments.keyword!(opts)
    {own, opts} = Keyword.split(opts, [:server, :protocol, :name])
    server = Arguments.server!(Keyword.get(own, :server, NetlinkPort))
    _checked = Arguments.name!(own[:name])
    protocol = Keyword.get(own, :protocol)
    if fixed = Enum.find(@fixed, &Keyword.has_key?(opts, &1)), do: refuse!(fixed)
    opts = Keyword.put_new(opts, :max_queue, @max_queue)

    with {:ok, %{netns: netns}} <- Options.open(protocol, opts) do
      # An absolute path: the working directory may be another when the socket is opened again.
      opts = Keyword.put(opts, :netns, netns)

      arguments = {server, protocol, opts}

      ProcessLimit.start("connection", fn ->
        GenServer.start_link(
          NetlinkPort.Connection.Process,
          arguments,
          Keyword.take(own, [:name])
        )
      end)
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
    question = {:request, Arguments.type!(type), Payload.compact(payload), opts}
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
      for {type, flags, payload} <- Arguments.batch!(requests),
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
    question = {:dump, Arguments.type!(type), Payload.compact(payload), opts}
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
      {:refused, outcome, helper} -> Exchange.in_caller(outcome, helper)
      {:error, reason} -> Client.failed(reason, {:connection, connection})
      outcome -> outcome
    end
  end
end
