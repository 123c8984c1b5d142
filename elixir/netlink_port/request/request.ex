defmodule NetlinkPort.Request do
  @moduledoc false
  # Requests, batches and dumps in the process that owns the socket: numbers them, sends them, reads until the answer is
  # complete (NetlinkPort.Request.Exchange), and sends an incomplete dump again.
  #
  # Datagrams that belong to no request stay in the owner's mailbox when the socket is active, and are sent there when it
  # is passive. NetlinkPort.Request.SocketState keeps the state of a socket between requests.

  alias NetlinkPort.{Deadline, Error, Message, Options, Pin, Socket}
  alias NetlinkPort.Request.{Exchange, Reader, Reply, SocketState}
  alias NetlinkPort.Server.{Client, LateAnswers, PinNumbers, Refusal}

  # How long the rest of an abandoned dump may be silent, in ms.
  @patience 5_000
  ## Requests

  @doc "Carries out a request, a batch or a dump. Raises `ArgumentError` for wrong arguments."
  @spec run(Socket.t(), Exchange.question(), map()) :: Exchange.outcome()
  def run(_socket, {:batch, []}, _opts), do: {:ok, []}

  def run(socket, question, opts) do
    with {:ok, exchange} <- new!(socket, question) do
      Reader.defer_losses(socket)
      outcome = outcome(socket, exchange, opts, Deadline.at(opts.total_timeout))
      SocketState.deliver_deferred(socket)
      Exchange.in_caller(outcome, socket.helper)
    end
  end

  defp new!(socket, question) do
    with {:ok, question} <- PinNumbers.resolve_question(question, socket),
         {:ok, exchange} <- Exchange.new(socket.protocol, question) do
      {:ok, %{exchange | socket: socket}}
    else
      {:wrong, sentence} -> raise ArgumentError, sentence
      {:error, error} -> {:error, error}
    end
  end

  defp outcome(socket, exchange, opts, limit) do
    with {:ok, reader} <- start(socket, exchange, opts, limit, :begin),
         {:ok, reader} <- settled(reader, collect(reader)) do
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
         Reader.defer_losses(socket),
         {:ok, reader} <- start(socket, exchange, opts, Deadline.at(opts.total_timeout), :wait) do
      {%{reader | limit: :infinity}, opts}
    else
      {:error, error} ->
        SocketState.deliver_deferred(socket)
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
      {_again, error} -> raise Refusal.request_in_caller(error, reader.socket.helper)
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
    SocketState.deliver_deferred(socket)
  end

  defp leave(socket, opts) do
    SocketState.leave(socket)
    _drained = drain(socket, opts, Deadline.at(opts.total_timeout))
    :ok
  end

  @doc """
  Reads what a dump has left on a socket before another process becomes its owner. Returns the numbers of exchanges whose
  answers may still come.
  """
  @spec release(Socket.t()) :: LateAnswers.classes()
  def release(socket) do
    opts = Options.request!([], [:timeout, :total_timeout, :max_bytes])
    if SocketState.dump(socket), do: leave(socket, opts)
    SocketState.deliver_deferred(socket)
    SocketState.late(socket)
  end

  ## One exchange

  # With `:begin` the outcome of the last sendmsg(2) is not awaited. settled/2 ends that.
  defp start(socket, %{dump?: dump?} = exchange, opts, limit, how) do
    SocketState.leave(socket)
    if dump? or exchange.kind == :batch, do: earlier(socket)

    with {:ok, skipped} <- if(dump?, do: drain(socket, opts, limit), else: {:ok, nil}) do
      {exchange, datagrams, next} = Exchange.number(exchange, SocketState.next(socket))
      SocketState.number(socket, next)
      reader = Reader.new(socket, exchange, opts, limit)

      case send_all(reader, datagrams, how) do
        {:ok, reader} ->
          if dump?, do: SocketState.live(socket, exchange.answer.last)
          {:ok, %{reader | skipped: skipped}}

        # The kernel may have got an earlier datagram of the same exchange.
        {:error, error} ->
          give_up(socket, exchange, error)
          Exchange.cut(exchange, error)
      end
    end
  end

  # An owner that only receives from now on would take late answers for events. The rest of a dump is not dropped, since
  # the next dump has to see its end.
  defp give_up(socket, %{answer: %{classes: classes}, dump?: dump?}, error) do
    SocketState.late(socket, classes)

    # A server that did not answer a moment ago is not waited for.
    if not dump?, do: drop_answers(socket, classes, error.stage != :thread)
  end

  defp drop_answers(socket, classes, wait?) do
    Client.drop_answers(socket, classes, wait?)
    Reader.drop_answers(socket, classes)
  end

  # What the server keeps of a passive socket came before the request. A loss among it is none of the answer. Only a dump
  # or a batch has to know: the answer to a single request shows whether it is whole. Of an active socket the server
  # keeps nothing, or sends it as messages (`max_queue:`).
  defp earlier(socket) do
    case if(not Reader.active?(socket), do: info(socket)) do
      {:ok, %{active: false, kept: kept}} when kept > 0 -> earlier(socket, kept)
      _active_or_closed -> :ok
    end
  end

  defp earlier(socket, 0), do: Client.let_go(socket)

  defp earlier(socket, kept) do
    case Client.hold(socket, 0) do
      {:ok, datagram} ->
        skipped(socket, datagram, nil)

      {:ok, datagram, metadata} ->
        skipped(socket, datagram, metadata)

      {:error, %{stage: :send} = error} ->
        SocketState.deliver(socket, Reader.failure(socket, error))

      {:error, %{stage: :recv, reason: reason}} when reason in [:einval, :etimedout] ->
        :ok

      {:error, %{stage: :recv} = error} ->
        SocketState.defer(socket, Reader.failure(socket, error))

      # The send that follows has the error, too.
      {:error, _closed} ->
        :ok
    end

    earlier(socket, kept - 1)
  end

  defp skipped(socket, datagram, metadata) do
    case Message.read(datagram) do
      {:ok, messages} ->
        SocketState.note_end(socket, messages)
        pass_on(socket, datagram, messages, metadata)

      {:error, _messages, _number, _error} ->
        SocketState.deliver(socket, Reader.message(socket, datagram, metadata))
    end
  end

  # What the server knows of the socket.
  defp info(socket),
    do: Client.ask(socket.helper, {:vm_info, socket.handle}, socket.helper.call_timeout)

  # The error of sendmsg(2) comes where the answer would.
  defp send_all(%{active?: true, socket: socket, deadline: deadline} = reader, [last], :begin) do
    with {:ok, under_way} <- Client.begin(socket, last, :active, Deadline.left(deadline)),
         do: {:ok, Reader.begin(reader, under_way)}
  end

  defp send_all(%{socket: %{helper: helper} = socket} = reader, [last], :begin)
       when node(helper.server) == node() do
    with {:ok, under_way} <- Client.begin(socket, last, :passive, Deadline.left(reader.deadline)),
         do: {:ok, %{reader | under_way: under_way}}
  end

  defp send_all(reader, [], _how), do: {:ok, reader}

  # Waits for the outcome of sendmsg(2), so that an error is known to be that of this datagram, and not that of an earlier
  # send/3. A helper that has not told the outcome in time may have sent the datagram.
  defp send_all(%{socket: socket, deadline: deadline} = reader, [datagram | datagrams], how) do
    case Client.send(socket, datagram, true, Deadline.left(deadline)) do
      {:error, %{stage: :thread, reason: :etimedout}} -> send_all(reader, datagrams, how)
      {:error, error} -> {:error, error}
      :ok -> send_all(reader, datagrams, how)
    end
  end

  defp settled(%{under_way: {nil, _none}}, outcome), do: outcome

  defp settled(%{socket: socket, under_way: under_way} = reader, outcome) do
    how =
      case outcome do
        {:ok, _reader} -> :answered
        {:error, %{reason: :etimedout}} -> {:overdue, Reader.waited(reader)}
        {:error, _error} -> :given_up
      end

    :ok = Client.settle(socket, under_way, how)
    outcome
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
    case Reader.read(reader) do
      {:datagram, datagram, metadata, reader} ->
        reader = sort(reader, datagram, metadata)
        excess = if not Exchange.done?(reader.exchange), do: Exchange.excess(reader.exchange)
        if excess, do: abandon(reader, excess), else: {:ok, reader}

      # The lost datagrams may have been part of the answer. The rest of it still comes.
      {:lost, error, reader} ->
        {:ok, %{reader | exchange: Exchange.lose(exchange, error)}}

      {:unsent, error} ->
        if exchange.dump?, do: SocketState.over(reader.socket, exchange.answer.last)
        abandon(reader, error)

      {:error, error} ->
        abandon(reader, error)
    end
  end

  defp abandon(%{socket: socket, exchange: exchange}, error) do
    SocketState.leave(socket)
    give_up(socket, exchange, error)
    Client.let_go(socket)
    Exchange.cut(exchange, error)
  end

  # A datagram belongs to the exchange or not. Only a peer in user space mixes messages of both kinds in one datagram.
  defp sort(%{exchange: %{answer: answer}} = reader, datagram, metadata) do
    group = group(metadata)

    case Message.read(datagram) do
      {:ok, messages} ->
        {mine, others} = Reply.split(answer, messages, group)
        SocketState.note_end(reader.socket, messages)
        pass_on(reader.socket, if(mine == [], do: datagram, else: others), others, metadata)
        add(reader, mine, byte_size(datagram))

      {:error, messages, number, error} ->
        mine = Enum.filter(messages, &Reply.mine?(answer, &1, group))

        if mine == [] and not is_map_key(answer.classes, number) do
          SocketState.deliver(reader.socket, Reader.message(reader.socket, datagram, metadata))
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
    if exchange.kind == :dump, do: Reader.extend(reader), else: reader
  end

  # A message of a complete answer may still come. SocketState.late/2 has it dropped, and the server an ack behind
  # NLMSG_DONE, which does come.
  defp settle(%{exchange: %{answer: answer} = exchange, socket: socket} = reader) do
    if exchange.dump?, do: SocketState.over(socket, answer.last)
    if Exchange.more?(exchange), do: SocketState.late(socket, answer.classes)

    if answer.ended == :done and not exchange.dump?,
      do: drop_answers(socket, answer.classes, reader.active? or Reader.active?(socket))

    # EBUSY: the dump that was skipped is still under way.
    case {reader.skipped, Reply.error(exchange.answer)} do
      {seq, %{reason: :ebusy}} when seq != nil -> SocketState.left(socket, seq)
      _not_refused -> :ok
    end
  end

  defp pass_on(_socket, _datagram, [], _metadata), do: :ok

  defp pass_on(socket, datagram, others, metadata) do
    group = group(metadata)
    late = SocketState.late(socket)

    unless Enum.all?(others, &LateAnswers.answers?(late, &1, group)) do
      datagram = if is_binary(datagram), do: datagram, else: encode(datagram)
      SocketState.deliver(socket, Reader.message(socket, datagram, metadata))
    end
  end

  defp encode(messages), do: messages |> Message.encode() |> IO.iodata_to_binary()

  defp group(%{group: group}), do: group
  defp group(nil), do: nil

  ## The rest of an abandoned dump

  # Reads an abandoned dump to its end. A dump that goes silent is skipped: the kernel may never have answered it. A
  # dump that does not end costs the socket.
  defp drain(socket, opts, limit) do
    case SocketState.dump(socket) do
      nil ->
        {:ok, nil}

      {_left, seq} ->
        exchange = Exchange.rest(socket.protocol, seq, opts.max_bytes)
        opts = %{opts | timeout: min(opts.timeout, @patience)}
        drain_step(Reader.new(socket, exchange, opts, limit), seq)
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
    total? = Deadline.left(reader.limit) == 0

    cond do
      error.stage != :request -> {:error, error}
      error.reason == :etimedout and exchange.bytes == 0 -> skip(socket, seq)
      error.reason == :etimedout and not total? -> skip(socket, seq)
      true -> {:error, endless(socket, error)}
    end
  end

  defp skip(socket, seq) do
    SocketState.over(socket)
    {:ok, seq}
  end

  defp endless(socket, error) do
    late = SocketState.late(socket)
    notify? = notify?(socket)
    Client.close(socket)
    SocketState.deliver_deferred(socket)
    SocketState.forget(socket)
    Reader.flush(socket, late)
    if notify?, do: send(self(), {:netlink_closed, socket, :endless_dump})

    %{
      error
      | hint: "what an earlier dump has left on the socket did not end; the socket was closed"
    }
  end

  defp notify?(socket) do
    case info(socket) do
      {:ok, %{closed_message: notify?}} -> notify?
      _closed -> true
    end
  end

  defdelegate forget(socket), to: SocketState
end
