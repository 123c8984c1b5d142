defmodule NetlinkPort.Request.Reader do
  @moduledoc false
  # Reads the datagrams of an answer in the process that owns the socket: from its mailbox while the socket is active,
  # with recv/2 while it is passive. Any process may change that meanwhile.

  alias NetlinkPort.{Deadline, Error, Socket, Spin}
  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Request.{Exchange, Reply, SocketState}
  alias NetlinkPort.Server.{Client, LateAnswers}

  import NetlinkPort.Server.LateAnswers, only: [is_answer: 4]

  # How long one way of reading a socket lasts before the other is tried, in ms. With a timeout below a few ms a scheduler
  # does not sleep, and may keep the processor from the helper.
  @shortest_pause 10
  @longest_pause 50

  # The length of the longest mailbox that is searched for earlier losses.
  @longest_searched 1_000

  # `deadline` is for the next datagram, and `limit` for the whole answer, `total` ms after the start. `overdue?` is
  # whether the deadline has passed: datagrams that wait then are still read, once. `skipped` is the number of an
  # abandoned dump that went silent before its end. `searched` is what the board said of the socket when no answer, and no
  # late one, was in the mailbox: only while it says `nil` and the same turn, none is there that came before those that the
  # server keeps. `put_back?`: such a one may be there for certain. `under_way` is the datagram whose outcome is not known:
  # if sendmsg(2) fails, a message to its alias comes. `spin` is set until the first datagram after that.
  @type t :: %__MODULE__{
          socket: Socket.t(),
          timeout: timeout(),
          deadline: timeout() | nil,
          started: integer(),
          total: timeout(),
          limit: timeout(),
          exchange: Exchange.t(),
          active?: boolean(),
          searched: {pid() | nil, Reference.turn()} | nil,
          put_back?: boolean(),
          overdue?: boolean(),
          skipped: Reply.sequence() | nil,
          under_way: Client.under_way() | {nil, reference()},
          spin: Spin.t() | nil
        }

  @enforce_keys [:socket, :timeout, :deadline, :started, :total, :limit, :exchange]
  defstruct @enforce_keys ++
              [:searched, :under_way, :spin, :skipped] ++
              [active?: false, put_back?: false, overdue?: false]

  @doc "Returns a reader of the answer, whose `limit` is in monotonic time."
  @spec new(Socket.t(), Exchange.t(), map(), timeout()) :: t()
  def new(socket, exchange, opts, limit) do
    extend(%__MODULE__{
      socket: socket,
      timeout: opts.timeout,
      deadline: nil,
      started: Deadline.at(0),
      total: opts.total_timeout,
      limit: limit,
      exchange: exchange,
      active?: match?({pid, _turn} when pid == self(), recipient(socket)),
      searched: SocketState.searched(socket),
      under_way: {nil, make_ref()}
    })
  end

  @doc "A datagram is under way: the calling process spins for its answer, where that pays."
  @spec begin(t(), Client.under_way()) :: t()
  def begin(reader, under_way) do
    spin = Spin.asked(SocketState.spin(reader.socket), System.monotonic_time())
    %{reader | under_way: under_way, spin: spin}
  end

  @doc "Moves the deadline for the next datagram, which never is later than that for all of them."
  @spec extend(t()) :: t()
  def extend(%{limit: limit} = reader) do
    %{
      reader
      | deadline: min(Deadline.at(reader.timeout), limit),
        overdue?: Deadline.left(limit) == 0
    }
  end

  @doc "For how many ms an answer that is overdue was awaited, since its start and since its last datagram."
  @spec waited(t()) :: non_neg_integer()
  def waited(%{started: started, timeout: timeout}), do: min(timeout, Deadline.at(0) - started)

  ## The mailbox

  @doc """
  Defers the losses that the owner has not read yet: they came before this request, and are no losses of its answer. The
  owner gets them at its end, with those that come meanwhile: a loss may have hit the owner's events, too.

  A long mailbox is not searched, which would cost more than the request. Then a loss in it makes the request ENOBUFS.
  """
  @spec defer_losses(Socket.t()) :: :ok
  def defer_losses(socket), do: if(short_mailbox?(), do: search(socket), else: :ok)

  defp short_mailbox? do
    {:message_queue_len, length} = Process.info(self(), :message_queue_len)
    length <= @longest_searched
  end

  defp search(socket) do
    receive do
      {:netlink_overrun, ^socket, _dropped} = message -> defer(socket, message)
      {:netlink_error, ^socket, %{stage: :recv}} = message -> defer(socket, message)
    after
      0 -> :ok
    end
  end

  defp defer(socket, message) do
    SocketState.defer(socket, message)
    search(socket)
  end

  @doc "Removes the datagrams of these exchanges from the mailbox."
  @spec flush(Socket.t(), LateAnswers.classes()) :: :ok
  def flush(socket, classes) do
    receive do
      {:netlink, ^socket, <<_::64, seq::32-native, _::binary>>} when is_map_key(classes, seq) ->
        flush(socket, classes)

      {:netlink, ^socket, <<_::64, seq::32-native, _::binary>>, _}
      when is_map_key(classes, seq) ->
        flush(socket, classes)
    after
      0 -> :ok
    end
  end

  @doc "Removes the datagrams from the mailbox that hold nothing but answers to these exchanges."
  @spec drop_answers(Socket.t(), LateAnswers.classes()) :: :ok
  def drop_answers(socket, classes), do: drop_answers(socket, classes, [])

  defp drop_answers(socket, classes, mixed) do
    receive do
      {:netlink, ^socket, <<_::32, type::16-native, _::16, seq::32-native, _::binary>> = datagram} =
          message
      when is_answer(classes, seq, type, nil) ->
        drop_answers(socket, classes, mixed(mixed, classes, message, datagram, nil))

      {:netlink, ^socket, <<_::32, type::16-native, _::16, seq::32-native, _::binary>> = datagram,
       %{group: group} = metadata} = message
      when is_answer(classes, seq, type, group) ->
        drop_answers(socket, classes, mixed(mixed, classes, message, datagram, metadata))
    after
      0 -> mixed |> Enum.reverse() |> Enum.each(&send(self(), &1))
    end
  end

  # Only a peer in user space mixes answers with other messages.
  defp mixed(mixed, classes, message, datagram, metadata) do
    if LateAnswers.only?(classes, datagram, metadata), do: mixed, else: [message | mixed]
  end

  @doc "The message of a datagram on an active socket."
  @spec message(Socket.t(), binary(), NetlinkPort.metadata() | nil) :: tuple()
  def message(socket, datagram, nil), do: {:netlink, socket, datagram}
  def message(socket, datagram, metadata), do: {:netlink, socket, datagram, metadata}

  ## Reading

  @doc """
  Reads one datagram, or an error in its place: that of sendmsg(2), which means that nothing will come, is `:unsent`.
  Datagrams that wait at the deadline are still read, once.

  Takes only datagrams of this exchange or of an earlier one from the mailbox of the calling process. Events stay
  there, in their order.
  """
  @spec read(t()) ::
          {:datagram, binary(), NetlinkPort.metadata() | nil, t()}
          | {:lost, Error.t(), t()}
          | {:unsent, Error.t()}
          | {:error, Error.t()}
  def read(reader) do
    left = Deadline.left(reader.deadline)

    if left == 0 and reader.overdue?,
      do: {:error, overdue(reader)},
      else: read(%{reader | overdue?: left == 0}, left)
  end

  # The answer was not late if another process was sent it.
  defp overdue(%{socket: socket, exchange: %{bytes: bytes}} = reader) do
    error = Exchange.overdue(reader)

    case recipient(socket) do
      {owner, _turn} when is_pid(owner) and owner != self() and bytes == 0 ->
        hint =
          "the socket is active, so its owner, #{inspect(owner)}, is sent the answer: make requests in the owner, or " <>
            "set active: false, or use a NetlinkPort.Connection"

        %{error | hint: hint}

      _mine ->
        error
    end
  end

  # No message says that a socket becomes passive: `:once` and a count end with a datagram, and any process may call
  # setopts/2. So each way of reading lasts for a pause at most, and then comes the other.
  defp read(reader, left), do: read(reader, left, @shortest_pause)

  # What was put back comes before what the server keeps.
  defp read(%{put_back?: true} = reader, left, pause) do
    with :timeout <- take(reader, 0),
         do: read(%{reader | put_back?: false}, left, pause)
  end

  defp read(%{active?: true} = reader, left, pause) do
    with :timeout <- glance(reader),
         :timeout <- take(reader, min(left, pause)) do
      receive_one(reader, Deadline.left(reader.deadline), pause)
    else
      taken -> spun(reader, taken)
    end
  end

  defp read(reader, left, pause), do: receive_one(reader, left, pause)

  defp glance(%{spin: nil}), do: :timeout

  defp glance(%{spin: spin} = reader) do
    with :timeout <- take(reader, 0) do
      if Spin.on?(spin, System.monotonic_time()) do
        Spin.turn()
        glance(reader)
      else
        :timeout
      end
    end
  end

  # The process remembers whether spinning pays.
  defp spun(%{spin: %Spin{} = spin, socket: socket}, {:datagram, datagram, metadata, reader}) do
    spin = Spin.answered(spin, System.monotonic_time())
    SocketState.spin(socket, spin)
    {:datagram, datagram, metadata, %{reader | spin: nil}}
  end

  defp spun(_reader, taken), do: taken

  defp receive_one(%{socket: socket} = reader, left, pause) do
    {reference, _alias} = reader.under_way

    case Client.hold(socket, min(left, @longest_pause), reference) do
      {:unsent, error} ->
        {:unsent, error}

      {:error, %{stage: :recv, reason: :einval}} ->
        more(%{reader | active?: true}, left, pause)

      {:error, %{stage: :recv, reason: :etimedout}} ->
        more(%{reader | active?: false}, left, pause)

      received ->
        in_order(%{reader | active?: false}, received)
    end
  end

  defp more(reader, left, pause) do
    case take(reader, 0) do
      :timeout when left == 0 -> {:error, overdue(reader)}
      :timeout -> read(reader, Deadline.left(reader.deadline), min(2 * pause, @longest_pause))
      taken -> taken
    end
  end

  # On a socket that was active when the request was sent, or has been since, a datagram in the mailbox came before the
  # one that hold/2 returns. The server sends no newer one meanwhile.
  # The search costs more, the longer the mailbox is. It is made only if the board has changed since the last one, be
  # that of an earlier request.
  defp in_order(%{searched: searched, socket: socket} = reader, received) do
    case recipient(socket) do
      {nil, _turn} = ^searched -> received(reader, received)
      now -> in_order(reader, received, now)
    end
  end

  defp in_order(%{socket: socket} = reader, received, now) do
    case take(%{reader | put_back?: true}, 0) do
      :timeout ->
        SocketState.searched(socket, now)
        received(%{reader | searched: now}, received)

      earlier ->
        put_back(socket, received)
        earlier
    end
  end

  @doc "Whether a socket was active a moment ago, as far as is known without a call of the server."
  @spec active?(Socket.t()) :: boolean()
  def active?(socket), do: match?({recipient, _turn} when recipient != nil, recipient(socket))

  defp recipient(socket), do: Reference.recipient(socket.helper, Socket.handle(socket))

  defp received(reader, {:ok, datagram}), do: {:datagram, datagram, nil, reader}
  defp received(reader, {:ok, datagram, metadata}), do: {:datagram, datagram, metadata, reader}
  defp received(reader, {:error, error}), do: failed(reader, error)

  # What recv/2 has returned becomes the message that it would have been on an active socket. An error of the call itself
  # is no item of the socket, and the next call has it, too.
  defp put_back(socket, {:ok, datagram}), do: send(self(), message(socket, datagram, nil))

  defp put_back(socket, {:ok, bytes, metadata}),
    do: send(self(), message(socket, bytes, metadata))

  defp put_back(socket, {:error, %{stage: stage} = error}) when stage in [:recv, :send],
    do: send(self(), failure(socket, error))

  defp put_back(_socket, {:error, _error}), do: :ok

  @doc "The message of an error on an active socket."
  @spec failure(Socket.t(), Error.t()) :: tuple()
  def failure(socket, %{reason: :enobufs, stage: :recv, dropped: dropped}) when dropped != nil,
    do: {:netlink_overrun, socket, dropped}

  def failure(socket, error), do: {:netlink_error, socket, error}

  # This is the error of a send/3 of the owner, since the outcome of a request's own send does not come this way.
  defp failed(%{socket: socket} = reader, %{stage: :send} = error) do
    SocketState.deliver(socket, {:netlink_error, socket, error})
    read(reader, Deadline.left(reader.deadline))
  end

  defp failed(%{socket: socket} = reader, %{stage: :recv} = error) do
    SocketState.defer(socket, failure(socket, error))
    if Deadline.left(reader.deadline) == 0, do: {:error, error}, else: {:lost, error, reader}
  end

  defp failed(_reader, error), do: {:error, error}

  defp take(%{socket: socket} = reader, timeout) do
    classes = reader.exchange.answer.classes
    late = SocketState.late(socket)
    {_reference, alias} = reader.under_way

    receive do
      {:netlink, ^socket, <<_::32, type::16-native, _::16, seq::32-native, _::binary>> = datagram}
      when is_answer(classes, seq, type, nil) or is_answer(late, seq, type, nil) ->
        {:datagram, datagram, nil, reader}

      {:netlink, ^socket, <<_::32, type::16-native, _::16, seq::32-native, _::binary>> = datagram,
       %{group: group} = metadata}
      when is_answer(classes, seq, type, group) or is_answer(late, seq, type, group) ->
        {:datagram, datagram, metadata, reader}

      {:netlink_overrun, ^socket, dropped} = message ->
        SocketState.defer(socket, message)
        {:lost, Error.new(:recv, :enobufs, dropped: dropped), reader}

      {:netlink_error, ^socket, %{stage: :recv} = error} ->
        failed(reader, error)

      # The owner must get this message, too.
      {:netlink_closed, ^socket, reason} = message ->
        SocketState.deliver(socket, message)
        {:error, closed(reason)}

      {^alias, failed} ->
        {:unsent, Client.failure(socket, failed)}
    after
      timeout -> :timeout
    end
  end

  # As a call on a passive socket fails. The helper has not ended.
  defp closed(:namespace_gone),
    do: Error.new(:info, :ebadf, hint: "the socket is closed, since its namespace is gone")

  defp closed(:closed), do: Error.new(:info, :ebadf)

  defp closed(:noconnection) do
    Error.new(:thread, :epipe,
      hint: "the node of the server, or the connection to it, was lost, and with it the socket"
    )
  end

  defp closed(_reason), do: Error.new(:thread, :epipe)
end
