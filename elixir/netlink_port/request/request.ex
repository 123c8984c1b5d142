defmodule NetlinkPort.Request do
  @moduledoc false
  # Requests, batches and dumps in the process that owns the socket: numbers them, sends them, reads until the answer is
  # complete (NetlinkPort.Request.Exchange), and sends an incomplete dump again.
  #
  # Datagrams that belong to no request stay in the owner's mailbox when the socket is active, and are sent there when it
  # is passive. NetlinkPort.Request.SocketState keeps the state of a socket between requests.

  alias NetlinkPort.{Error, Message, Options, Pin, Socket}
  alias NetlinkPort.Request.{Exchange, Reply, SocketState}
  alias NetlinkPort.Server.{Client, Late, PinNumbers}

  import NetlinkPort.Server.Late, only: [is_answer: 4]

  # How long the rest of an abandoned dump may be silent, in ms.
  @patience 5_000
  # How long one way of reading a socket lasts before the other is tried, in ms.
  @pause 50

  # The length of the longest mailbox that is searched for earlier losses.
  @searched 1_000

  defmodule Reader do
    @moduledoc false
    # `deadline` is for the next datagram, and `limit` for the whole answer, `total` ms after the start. `overdue?` is
    # whether the deadline has passed: datagrams that wait then are still read, once. `passed` is the number of an
    # abandoned dump that went silent before its end. `mailbox?` is whether the mailbox may have datagrams that came
    # before those that the server keeps.
    @enforce_keys [:socket, :timeout, :deadline, :total, :limit, :exchange]
    defstruct @enforce_keys ++ [active?: false, mailbox?: true, overdue?: false, passed: nil]
  end

  ## Requests

  @doc "Carries out a request, a batch or a dump. Raises `ArgumentError` for wrong arguments."
  @spec run(Socket.t(), Exchange.question(), map()) :: Exchange.outcome()
  def run(_socket, {:batch, []}, _opts), do: {:ok, []}

  def run(socket, question, opts) do
    with {:ok, exchange} <- new!(socket, question) do
      set_aside(socket)
      outcome = outcome(socket, exchange, opts, deadline(opts.total_timeout))
      SocketState.give_back(socket)
      outcome
    end
  end

  defp new!(socket, question) do
    with {:ok, question} <- PinNumbers.resolve_question(question, socket),
         {:wrong, sentence} <- Exchange.new(socket.protocol, question),
         do: raise(ArgumentError, sentence)
  end

  defp outcome(socket, exchange, opts, limit) do
    with {:ok, reader} <- start(socket, exchange, opts, limit),
         {:ok, reader} <- collect(reader) do
      case Exchange.outcome(reader.exchange) do
        {:again, exchange} -> outcome(socket, exchange, opts, limit)
        outcome -> outcome
      end
    end
  end

  ## Streams

  @spec stream(Socket.t(), 0..0xFFFF, Pin.payload(), map()) :: Enumerable.t()
  def stream(socket, type, payload, opts) do
    Stream.resource(fn -> begin!(socket, type, payload, opts) end, &next!/1, &finish/1)
  end

  # The consumer bounds the stream. `max_bytes` and `total_timeout` bound only the rest of an abandoned dump.
  defp begin!(socket, type, payload, opts) do
    with {:ok, exchange} <- new!(socket, {:dump, type, payload, %{opts | max_bytes: :infinity}}),
         set_aside(socket),
         {:ok, reader} <- start(socket, exchange, opts, deadline(opts.total_timeout)) do
      {%{reader | limit: :infinity}, opts}
    else
      {:error, error} ->
        SocketState.give_back(socket)
        raise error
    end
  end

  defp next!({%{exchange: %{answer: %{messages: [], ended: nil, last: last}}} = reader, opts}) do
    live? = SocketState.dump(reader.socket) == {:live, last}

    case if(live?, do: step(reader), else: {:error, ended_by_another()}) do
      {:ok, reader} -> next!({reader, opts})
      {:error, error} -> raise error
    end
  end

  defp next!({%{exchange: %{answer: %{messages: []}} = exchange} = reader, opts}) do
    case Exchange.whole(exchange) do
      :ok -> {:halt, {reader, opts}}
      {_again, error} -> raise error
    end
  end

  defp next!({reader, opts}) do
    {messages, answer} = Reply.take(reader.exchange.answer)
    {messages, {%{reader | exchange: %{reader.exchange | answer: answer}}, opts}}
  end

  defp ended_by_another do
    Error.new(:request, :ebusy,
      subject: "a dump that another request on its socket, or a change of its owner, has ended"
    )
  end

  # A stream that is halted early is read to its end at once: the rest would fill the socket's window.
  defp finish({%{socket: socket, exchange: %{answer: %{last: last}}}, opts}) do
    if SocketState.dump(socket) == {:live, last}, do: leave(socket, opts)
    SocketState.give_back(socket)
  end

  defp leave(socket, opts) do
    SocketState.leave(socket)
    _drained = drain(socket, opts, deadline(opts.total_timeout))
    :ok
  end

  # The losses that the owner has not read yet came before this request, and are no losses of its answer. They are given
  # back at its end, with those that come meanwhile: a loss may have hit the owner's events, too.
  #
  # A long mailbox is not searched, which would cost more than the request. Then a loss in it makes the request ENOBUFS.
  defp set_aside(socket), do: if(short_mailbox?(), do: search(socket), else: :ok)

  defp short_mailbox? do
    {:message_queue_len, length} = Process.info(self(), :message_queue_len)
    length <= @searched
  end

  defp search(socket) do
    receive do
      {:netlink_overrun, ^socket, _dropped} = message -> set_aside(socket, message)
      {:netlink_error, ^socket, %{stage: :recv}} = message -> set_aside(socket, message)
    after
      0 -> :ok
    end
  end

  defp set_aside(socket, message) do
    SocketState.set_aside(socket, message)
    search(socket)
  end

  @doc """
  Reads what a dump has left on a socket before another process becomes its owner. Returns the numbers of exchanges whose
  answers may still come.
  """
  @spec release(Socket.t()) :: Late.classes()
  def release(socket) do
    opts = Options.request!([], [:timeout, :total_timeout, :max_bytes])
    if SocketState.dump(socket), do: leave(socket, opts)
    SocketState.give_back(socket)
    SocketState.late(socket)
  end

  ## One exchange

  defp start(socket, %{dump?: dump?} = exchange, opts, limit) do
    SocketState.leave(socket)
    if dump? or exchange.kind == :batch, do: earlier(socket)

    with {:ok, passed} <- if(dump?, do: drain(socket, opts, limit), else: {:ok, nil}) do
      {exchange, datagrams, next} = Exchange.number(exchange, SocketState.next(socket))
      SocketState.number(socket, next)
      reader = reader(socket, exchange, opts, limit)

      case send_all(socket, datagrams, reader.deadline) do
        :ok ->
          if dump?, do: SocketState.live(socket, exchange.answer.last)
          {:ok, %{reader | passed: passed}}

        # The kernel may have got an earlier datagram of the same exchange.
        {:error, error} ->
          SocketState.late(socket, exchange.answer.classes)
          Exchange.cut(exchange, error)
      end
    end
  end

  # What the server keeps of a passive socket came before the request. A loss among it is none of the answer. Only a dump
  # or a batch has to know: the answer to a single request shows whether it is whole.
  defp earlier(socket) do
    case Client.ask(socket.link, {:vm_info, socket.handle}, socket.link.call_timeout) do
      {:ok, %{active: false, kept: kept}} when kept > 0 -> earlier(socket, kept)
      _active_or_closed -> :ok
    end
  end

  defp earlier(socket, 0), do: Client.let_go(socket)

  defp earlier(socket, kept) do
    case Client.hold(socket, 0) do
      {:ok, datagram} -> passed(socket, datagram, nil)
      {:ok, datagram, metadata} -> passed(socket, datagram, metadata)
      {:error, %{stage: :send} = error} -> SocketState.hand_on(socket, failure(socket, error))
      {:error, %{stage: :recv, reason: reason}} when reason in [:einval, :etimedout] -> :ok
      {:error, %{stage: :recv} = error} -> SocketState.set_aside(socket, failure(socket, error))
      # The send that follows has the error, too.
      {:error, _closed} -> :ok
    end

    earlier(socket, kept - 1)
  end

  defp passed(socket, datagram, metadata) do
    case Message.read(datagram) do
      {:ok, messages} ->
        SocketState.note_end(socket, messages)
        pass_on(socket, datagram, messages, metadata)

      {:error, _messages, _number, _error} ->
        SocketState.hand_on(socket, message(socket, datagram, metadata))
    end
  end

  defp reader(socket, exchange, opts, limit) do
    extend(%Reader{
      socket: socket,
      timeout: opts.timeout,
      deadline: nil,
      total: opts.total_timeout,
      limit: limit,
      exchange: exchange,
      mailbox?: short_mailbox?()
    })
  end

  defp send_all(_socket, [], _deadline), do: :ok

  # Waits for the outcome of sendmsg(2), so that an error is known to be that of this datagram, and not that of an earlier
  # send/3. A helper that has not told the outcome in time may have sent the datagram.
  defp send_all(socket, [datagram | datagrams], deadline) do
    case Client.send(socket, datagram, true, left(deadline)) do
      {:error, %{stage: :thread, reason: :etimedout}} -> send_all(socket, datagrams, deadline)
      {:error, error} -> {:error, error}
      :ok -> send_all(socket, datagrams, deadline)
    end
  end

  defp collect(reader) do
    if Exchange.done?(reader.exchange) do
      {:ok, let_go(reader)}
    else
      with {:ok, reader} <- held_step(reader), do: collect(reader)
    end
  end

  # Reads one datagram, or an error in its place.
  defp step(reader) do
    with {:ok, reader} <- held_step(reader), do: {:ok, let_go(reader)}
  end

  # On a passive socket the server holds back messages to the owner until the next step, or until `let_go/1`.
  defp let_go(%{active?: false, socket: socket} = reader) do
    Client.let_go(socket)
    reader
  end

  defp let_go(reader), do: reader

  defp held_step(%{exchange: exchange} = reader) do
    case read(reader) do
      {:datagram, datagram, metadata, reader} ->
        reader = sort(reader, datagram, metadata)
        excess = if not Exchange.done?(reader.exchange), do: Exchange.excess(reader.exchange)
        if excess, do: abandon(reader, excess), else: {:ok, reader}

      # The lost datagrams may have been part of the answer. The rest of it still comes.
      {:lost, error, reader} ->
        {:ok, %{reader | exchange: Exchange.lose(exchange, error)}}

      {:error, error} ->
        abandon(reader, error)
    end
  end

  defp abandon(%{socket: socket, exchange: exchange}, error) do
    Client.let_go(socket)
    SocketState.leave(socket)
    SocketState.late(socket, exchange.answer.classes)
    Exchange.cut(exchange, error)
  end

  # A datagram belongs to the exchange or not. Only a peer in user space mixes messages of both kinds in one datagram.
  defp sort(%{exchange: %{answer: answer}} = reader, datagram, metadata) do
    group = group(metadata)

    case Message.read(datagram) do
      {:ok, messages} ->
        {mine, others} = Enum.split_with(messages, &Reply.mine?(answer, &1, group))
        SocketState.note_end(reader.socket, messages)
        pass_on(reader.socket, if(mine == [], do: datagram, else: others), others, metadata)
        add(reader, mine, byte_size(datagram))

      {:error, messages, number, error} ->
        mine = Enum.filter(messages, &Reply.mine?(answer, &1, group))

        if mine == [] and not is_map_key(answer.classes, number) do
          SocketState.hand_on(reader.socket, message(reader.socket, datagram, metadata))
          reader
        else
          SocketState.note_end(reader.socket, mine)
          broken(add(reader, mine, byte_size(datagram)), error)
        end
    end
  end

  # Malformed bytes behind the end of an answer do not matter.
  defp broken(%{exchange: exchange} = reader, error) do
    if Exchange.done?(exchange),
      do: reader,
      else: %{reader | exchange: Exchange.lose(exchange, Exchange.malformed(error))}
  end

  defp add(reader, [], _size), do: reader

  # Each datagram of a dump moves the deadline.
  defp add(%{exchange: exchange} = reader, mine, size) do
    exchange = Exchange.add(exchange, mine, size)
    reader = %{reader | exchange: exchange}
    _settled = if Exchange.done?(exchange), do: settle(reader)
    if exchange.kind == :dump, do: extend(reader), else: reader
  end

  # A message of a complete answer may still come. SocketState.late/2 has it dropped.
  defp settle(%{exchange: exchange, socket: socket} = reader) do
    if exchange.dump?, do: SocketState.over(socket, exchange.answer.last)
    if Exchange.more?(exchange), do: SocketState.late(socket, exchange.answer.classes)

    # EBUSY: the dump that was passed over is still under way.
    case {reader.passed, Reply.error(exchange.answer)} do
      {seq, %{reason: :ebusy}} when seq != nil -> SocketState.left(socket, seq)
      _not_refused -> :ok
    end
  end

  defp extend(%{limit: limit} = reader) do
    %{reader | deadline: min(deadline(reader.timeout), limit), overdue?: left(limit) == 0}
  end

  defp pass_on(_socket, _datagram, [], _metadata), do: :ok

  defp pass_on(socket, datagram, others, metadata) do
    group = group(metadata)
    late = SocketState.late(socket)

    unless Enum.all?(others, &Late.answers?(late, &1, group)) do
      datagram = if is_binary(datagram), do: datagram, else: encode(datagram)
      SocketState.hand_on(socket, message(socket, datagram, metadata))
    end
  end

  defp encode(messages), do: messages |> Message.encode() |> IO.iodata_to_binary()

  defp message(socket, datagram, nil), do: {:netlink, socket, datagram}
  defp message(socket, datagram, metadata), do: {:netlink, socket, datagram, metadata}

  defp group(%{group: group}), do: group
  defp group(nil), do: nil

  ## Reading

  # Datagrams that wait at the deadline are still read, once.
  defp read(reader) do
    left = left(reader.deadline)

    if left == 0 and reader.overdue?,
      do: {:error, overdue(reader)},
      else: read(%{reader | overdue?: left == 0}, left)
  end

  # No message says that a socket becomes passive: `:once` and a count end with a datagram, and any process may call
  # setopts/2. So each way of reading lasts for a pause at most, and then comes the other.
  defp read(reader, left), do: read(reader, left, 1)

  defp read(%{active?: true} = reader, left, pause) do
    with :timeout <- take(reader, min(left, pause)),
         do: receive_one(reader, left(reader.deadline), pause)
  end

  defp read(reader, left, pause), do: receive_one(reader, left, pause)

  defp receive_one(%{socket: socket} = reader, left, pause) do
    case Client.hold(socket, min(left, @pause)) do
      {:error, %{stage: :recv, reason: :einval}} ->
        more(%{reader | active?: true, mailbox?: true}, left, pause)

      # The socket may become active, and passive again, before the next try.
      {:error, %{stage: :recv, reason: :etimedout}} ->
        more(%{reader | active?: false, mailbox?: true}, left, pause)

      received ->
        in_order(%{reader | active?: false}, received)
    end
  end

  defp more(reader, left, pause) do
    case take(reader, 0) do
      :timeout when left == 0 -> {:error, overdue(reader)}
      :timeout -> read(reader, left(reader.deadline), min(2 * pause, @pause))
      taken -> taken
    end
  end

  # On a socket that was active when the request was sent, or has been since, a datagram in the mailbox came before the
  # one that hold/2 returns. The server sends no newer one meanwhile.
  defp in_order(%{mailbox?: false} = reader, received), do: received(reader, received)

  defp in_order(reader, received) do
    case take(reader, 0) do
      :timeout ->
        received(%{reader | mailbox?: false}, received)

      earlier ->
        put_back(reader.socket, received)
        earlier
    end
  end

  defp received(reader, {:ok, datagram}), do: {:datagram, datagram, nil, reader}
  defp received(reader, {:ok, datagram, metadata}), do: {:datagram, datagram, metadata, reader}
  defp received(reader, {:error, error}), do: failed(reader, error)

  # What recv/2 has returned becomes the message that it would have been on an active socket.
  defp put_back(socket, {:ok, datagram}), do: send(self(), message(socket, datagram, nil))

  defp put_back(socket, {:ok, bytes, metadata}),
    do: send(self(), message(socket, bytes, metadata))

  defp put_back(socket, {:error, error}), do: send(self(), failure(socket, error))

  defp failure(socket, %{reason: :enobufs, stage: :recv, dropped: dropped}) when dropped != nil,
    do: {:netlink_overrun, socket, dropped}

  defp failure(socket, error), do: {:netlink_error, socket, error}

  defp overdue(%{limit: limit, total: total}) do
    if limit != :infinity and left(limit) == 0,
      do: Exchange.overdue({:total, total}),
      else: Exchange.overdue(:silent)
  end

  # This is the error of a send/3 of the owner, since the outcome of a request's own send does not come this way.
  defp failed(%{socket: socket} = reader, %{stage: :send} = error) do
    SocketState.hand_on(socket, {:netlink_error, socket, error})
    read(reader, left(reader.deadline))
  end

  defp failed(%{socket: socket} = reader, %{stage: :recv} = error) do
    SocketState.set_aside(socket, failure(socket, error))
    if left(reader.deadline) == 0, do: {:error, error}, else: {:lost, error, reader}
  end

  defp failed(_reader, error), do: {:error, error}

  # Takes only datagrams of this request or of an earlier one. Events stay in the mailbox, in their order.
  defp take(%{socket: socket} = reader, timeout) do
    classes = reader.exchange.answer.classes
    late = SocketState.late(socket)

    receive do
      {:netlink, ^socket, <<_::32, type::16-native, _::16, seq::32-native, _::binary>> = datagram}
      when is_answer(classes, seq, type, nil) or is_answer(late, seq, type, nil) ->
        {:datagram, datagram, nil, reader}

      {:netlink, ^socket, <<_::32, type::16-native, _::16, seq::32-native, _::binary>> = datagram,
       %{group: group} = metadata}
      when is_answer(classes, seq, type, group) or is_answer(late, seq, type, group) ->
        {:datagram, datagram, metadata, reader}

      {:netlink_overrun, ^socket, dropped} = message ->
        SocketState.set_aside(socket, message)
        {:lost, Error.new(:recv, :enobufs, dropped: dropped), reader}

      {:netlink_error, ^socket, %{stage: :recv} = error} ->
        failed(reader, error)

      # The owner must get this message, too.
      {:netlink_closed, ^socket, _reason} = message ->
        SocketState.hand_on(socket, message)
        {:error, Error.new(:thread, :epipe)}
    after
      timeout -> :timeout
    end
  end

  ## The rest of an abandoned dump

  # Reads an abandoned dump to its end. A dump that goes silent is passed over: the kernel may never have answered it. A
  # dump that does not end costs the socket.
  defp drain(socket, opts, limit) do
    case SocketState.dump(socket) do
      nil ->
        {:ok, nil}

      {_left, seq} ->
        exchange = Exchange.rest(socket.protocol, seq, opts.max_bytes)
        opts = %{opts | timeout: min(opts.timeout, @patience)}
        drain_step(reader(socket, exchange, opts, limit), seq)
    end
  end

  defp drain_step(reader, seq) do
    if Exchange.done?(reader.exchange) do
      {:ok, nil}
    else
      case step(reader) do
        {:ok, reader} ->
          {_unwanted, answer} = Reply.take(reader.exchange.answer)
          drain_step(%{reader | exchange: %{reader.exchange | answer: answer}}, seq)

        {:error, error} ->
          undrained(reader, seq, %{error | messages: nil})
      end
    end
  end

  defp undrained(%{socket: socket, exchange: exchange} = reader, seq, error) do
    total? = reader.limit != :infinity and left(reader.limit) == 0

    cond do
      error.stage != :request -> {:error, error}
      error.reason == :etimedout and exchange.bytes == 0 -> passed_over(socket, seq)
      error.reason == :etimedout and not total? -> passed_over(socket, seq)
      true -> {:error, endless(socket, error)}
    end
  end

  defp passed_over(socket, seq) do
    SocketState.over(socket)
    {:ok, seq}
  end

  defp endless(socket, error) do
    late = SocketState.late(socket)
    told? = told_of_end?(socket)
    Client.close(socket)
    SocketState.give_back(socket)
    SocketState.forget(socket)
    flush(socket, late)
    if told?, do: send(self(), {:netlink_closed, socket, :endless_dump})

    %{
      error
      | hint: "what an earlier dump has left on the socket did not end; the socket was closed"
    }
  end

  defp told_of_end?(socket) do
    case Client.ask(socket.link, {:vm_info, socket.handle}, socket.link.call_timeout) do
      {:ok, %{closed_message: told?}} -> told?
      _closed -> true
    end
  end

  defp flush(socket, late) do
    receive do
      {:netlink, ^socket, <<_::64, seq::32-native, _::binary>>} when is_map_key(late, seq) ->
        flush(socket, late)

      {:netlink, ^socket, <<_::64, seq::32-native, _::binary>>, _} when is_map_key(late, seq) ->
        flush(socket, late)
    after
      0 -> :ok
    end
  end

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  defp left(:infinity), do: :infinity
  defp left(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)

  defdelegate forget(socket), to: SocketState
end
