defmodule NetlinkPort.Request do
  @moduledoc false
  # Requests, batches and dumps, in the process that owns the socket: numbers them, sends them, reads
  # until the answer is whole (NetlinkPort.Answer), and tries a dump again that was not.
  #
  # A process keeps, for each socket it asks on, the next number, the numbers whose answers it has
  # given up, and the dump that is under way, `{:live, seq}` as long as someone reads it, and
  # `{:left, seq}` after that: the kernel runs one dump a socket, and refuses the next with EBUSY before
  # that one is read to its end. So a dump begins with reading what another has left, and any request
  # ends a stream that is not done. What comes on the socket and belongs to no request is
  # left to the owner: in the mailbox of an active socket, and sent there from a passive one.

  alias NetlinkPort.{Answer, Error, Message, Socket}

  import Bitwise

  # How often a dump is tried before its inconsistency is told.
  @attempts 5
  # How many given-up numbers are remembered.
  @late 64
  @last_sequence 0xFFFFFFFF

  @request Message.flags([:request])
  @ack Message.flags([:ack])
  @dump Message.flags([:dump])
  # A batch of nf_tables begins and ends with one of these, include/uapi/linux/netfilter/nfnetlink.h.
  @nfnl_msg_batch_begin 16
  @nfnl_msg_batch_end 17
  @netfilter [:netfilter, 12]

  defmodule State do
    @moduledoc false
    defstruct [:next, late: [], dump: nil]
  end

  defmodule Reader do
    @moduledoc false
    @enforce_keys [:socket, :timeout, :deadline, :answer]
    # `lost` is an error of the transport, after which the answer is read to its end all the same.
    defstruct [:socket, :timeout, :deadline, :answer, :lost, active?: false]
  end

  @type options :: [
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          ack: boolean()
        ]

  ## Requests

  @spec request(Socket.t(), 0..0xFFFF, iodata(), map()) ::
          {:ok, [Message.t()]} | {:error, Error.t()}
  def request(socket, type, payload, %{flags: flags, ack: ack?, timeout: timeout}) do
    flags = @request ||| flags ||| if(ack?, do: @ack, else: 0)
    kind = if ack?, do: :acked, else: :plain
    message = %Message{type: type, flags: flags, payload: payload}

    with {:ok, reader} <- exchange(socket, kind, [message], timeout),
         nil <- reader.lost || Answer.error(reader.answer) do
      {:ok, Answer.messages(reader.answer)}
    else
      {:error, error} -> {:error, error}
      error -> {:error, error}
    end
  end

  @spec batch(Socket.t(), [{0..0xFFFF, 0..0xFFFF, iodata()}], map()) ::
          {:ok, [{:ok, [Message.t()]} | {:error, Error.t()}]} | {:error, Error.t()}
  def batch(_socket, [], _opts), do: {:ok, []}

  def batch(socket, requests, %{timeout: timeout}) do
    acked = acked(socket, requests)

    messages =
      for {{type, flags, payload}, index} <- Enum.with_index(requests) do
        ack = if index == acked, do: @ack, else: 0
        %Message{type: type, flags: @request ||| flags ||| ack, payload: payload}
      end

    with {:ok, reader} <- exchange(socket, {:batch, acked}, messages, timeout) do
      if reader.lost, do: {:error, reader.lost}, else: {:ok, told(reader.answer)}
    end
  end

  # The last of them; the end of a batch of nf_tables is none.
  defp acked(%Socket{protocol: protocol}, requests) when protocol in @netfilter do
    ends = requests |> Enum.reverse() |> Enum.take_while(&(elem(&1, 0) == @nfnl_msg_batch_end))
    max(length(requests) - length(ends) - 1, 0)
  end

  defp acked(_socket, requests), do: length(requests) - 1

  defp begin(%Socket{protocol: protocol}, [%{type: @nfnl_msg_batch_begin} | _], first)
       when protocol in @netfilter,
       do: first

  defp begin(_socket, _messages, _first), do: nil

  defp told(answer) do
    replies = answer |> Answer.messages() |> Enum.group_by(& &1.seq)

    for seq <- answer.requests |> Map.keys() |> Enum.sort() do
      case answer.errors do
        %{^seq => error} -> {:error, error}
        _none -> {:ok, Map.get(replies, seq, [])}
      end
    end
  end

  ## Dumps

  @spec dump(Socket.t(), 0..0xFFFF, iodata(), map()) ::
          {:ok, [Message.t()]} | {:error, Error.t()}
  def dump(socket, type, payload, opts), do: dump(socket, type, payload, opts, @attempts)

  defp dump(socket, type, payload, %{flags: flags, timeout: timeout} = opts, attempts) do
    message = %Message{type: type, flags: @request ||| @dump ||| flags, payload: payload}

    with {:ok, reader} <- exchange(socket, :dump, [message], timeout) do
      case outcome(reader) do
        :ok -> {:ok, Answer.messages(reader.answer)}
        {:again, _error} when attempts > 1 -> dump(socket, type, payload, opts, attempts - 1)
        {_again, error} -> {:error, %{error | messages: Answer.messages(reader.answer)}}
      end
    end
  end

  defp outcome(%{answer: answer, lost: lost}) do
    error = Answer.error(answer)

    cond do
      error -> {:failed, error}
      lost -> {:again, lost}
      answer.interrupted? -> {:again, Error.new(:request, :eintr)}
      true -> :ok
    end
  end

  @spec stream(Socket.t(), 0..0xFFFF, iodata(), map()) :: Enumerable.t()
  def stream(socket, type, payload, %{flags: flags, timeout: timeout}) do
    message = %Message{type: type, flags: @request ||| @dump ||| flags, payload: payload}
    Stream.resource(fn -> begin!(socket, message, timeout) end, &next!/1, &finish/1)
  end

  defp begin!(socket, message, timeout) do
    case start(socket, :dump, [message], timeout) do
      {:ok, reader} -> reader
      {:error, error} -> raise error
    end
  end

  defp next!(%{answer: %{messages: [], done?: true}} = reader) do
    case outcome(reader) do
      :ok -> {:halt, reader}
      {_again, error} -> raise error
    end
  end

  defp next!(%{answer: %{messages: [], last: last}, socket: socket} = reader) do
    case if(state(socket).dump == {:live, last}, do: step(reader), else: {:error, ended()}) do
      {:ok, reader} -> next!(reader)
      {:error, error} -> raise error
    end
  end

  defp next!(reader) do
    {messages, answer} = Answer.take(reader.answer)
    {messages, %{reader | answer: answer}}
  end

  defp ended do
    Error.new(:request, :ebusy, subject: "a dump that another request on its socket has ended")
  end

  # One that is left early is read to its end at once: the rest would fill the socket's window.
  defp finish(%{socket: socket, answer: %{last: last}, timeout: timeout}) do
    if state(socket).dump == {:live, last} do
      leave(socket)
      _drained = drain(socket, timeout)
    end

    :ok
  end

  ## One exchange

  defp exchange(socket, kind, messages, timeout) do
    with {:ok, reader} <- start(socket, kind, messages, timeout), do: collect(reader)
  end

  defp start(socket, kind, messages, timeout) do
    leave(socket)

    with :ok <- if(kind == :dump, do: drain(socket, timeout), else: :ok) do
      {answer, datagram} = numbered(socket, kind, messages)
      deadline = deadline(timeout)

      with :ok <- NetlinkPort.send(socket, datagram, timeout: timeout) do
        if kind == :dump, do: put(socket, %{state(socket) | dump: {:live, answer.last}})
        {:ok, %Reader{socket: socket, timeout: timeout, deadline: deadline, answer: answer}}
      end
    end
  end

  defp numbered(socket, kind, messages) do
    %State{next: next} = state = state(socket)
    {first, next} = sequence(next, length(messages))
    put(socket, %{state | next: next})

    requests =
      for {message, seq} <- Enum.zip(messages, first..(first + length(messages) - 1)) do
        {seq, IO.iodata_to_binary(Message.encode(%{message | seq: seq}))}
      end

    answer =
      case kind do
        {:batch, acked} ->
          begin = begin(socket, messages, first)
          Answer.new(:batch, Map.new(requests), first + acked, begin)

        kind ->
          Answer.new(kind, Map.new(requests), first)
      end

    {answer, Enum.map(requests, &elem(&1, 1))}
  end

  @doc """
  The first of `count` numbers in a row, and the next after them: never 0, and never across the end.

      iex> NetlinkPort.Request.sequence(0xFFFFFFFF, 1)
      {0xFFFFFFFF, 1}
      iex> NetlinkPort.Request.sequence(0xFFFFFFFF, 2)
      {1, 3}
  """
  @spec sequence(pos_integer(), pos_integer()) :: {pos_integer(), pos_integer()}
  def sequence(next, count) when next + count - 1 > @last_sequence, do: sequence(1, count)
  def sequence(next, count) when next + count > @last_sequence, do: {next, 1}
  def sequence(next, count), do: {next, next + count}

  defp collect(%{answer: %{done?: true}} = reader), do: {:ok, reader}

  defp collect(reader) do
    with {:ok, reader} <- step(reader), do: collect(reader)
  end

  # One datagram, or what came in its place.
  defp step(%{answer: answer, socket: socket} = reader) do
    case read(reader) do
      {:datagram, datagram, reader} ->
        sort(reader, datagram)

      # The rest of the answer still comes; what was lost may have been a part of it.
      {:lost, error, reader} ->
        {:ok, %{reader | lost: reader.lost || error}}

      {:error, error} ->
        give_up(socket, answer, error)
        messages = Answer.messages(answer)
        error = if error.reason == :etimedout, do: reader.lost || error, else: error
        {:error, %{error | messages: if(answer.kind == :dump, do: messages)}}
    end
  end

  defp sort(%{answer: answer, socket: socket} = reader, datagram) do
    case Message.decode(datagram) do
      {:ok, messages} ->
        note_end(socket, messages)
        {mine, others} = Enum.split_with(messages, &Answer.mine?(answer, &1))
        if mine == [], do: pass_on(socket, datagram, others)
        {:ok, %{extend(reader) | answer: Enum.reduce(mine, answer, &Answer.add(&2, &1))}}

      {:error, malformed} ->
        error = Error.new(:recv, :ebadmsg, subject: Exception.message(malformed))
        {:ok, %{reader | lost: reader.lost || error}}
    end
  end

  # A dump takes as long as it takes, as long as it goes on.
  defp extend(%{answer: %{kind: :dump}} = reader) do
    %{reader | deadline: deadline(reader.timeout)}
  end

  defp extend(reader), do: reader

  defp pass_on(socket, datagram, messages) do
    late = state(socket).late
    unless Enum.any?(messages, &(&1.seq in late)), do: send(self(), {:netlink, socket, datagram})
  end

  ## Reading

  defp read(%{active?: true} = reader) do
    with :timeout <- take(reader, left(reader.deadline)) do
      {:error, Error.new(:request, :etimedout)}
    end
  end

  defp read(%{socket: socket} = reader) do
    case NetlinkPort.recv(socket, left(reader.deadline)) do
      {:ok, datagram} -> {:datagram, datagram, reader}
      {:ok, datagram, metadata} -> sorted(reader, datagram, metadata)
      {:error, %{stage: :recv, reason: :einval}} -> read(%{reader | active?: true})
      {:error, error} -> failed(reader, error)
    end
  end

  # An event, even where a request of ours has caused it and it bears its number.
  defp sorted(reader, datagram, %{group: group} = metadata) when group not in [nil, 0] do
    send(self(), {:netlink, reader.socket, datagram, metadata})
    read(reader)
  end

  defp sorted(reader, datagram, _metadata), do: {:datagram, datagram, reader}

  defp failed(_reader, %{stage: :recv, reason: :etimedout}) do
    {:error, Error.new(:request, :etimedout)}
  end

  defp failed(reader, %{stage: :recv} = error) do
    if left(reader.deadline) == 0, do: {:error, error}, else: {:lost, error, reader}
  end

  defp failed(_reader, error), do: {:error, error}

  # Takes only what belongs to the request, or to one that was given up.
  defp take(%{socket: socket, answer: %{requests: requests}} = reader, timeout) do
    late = Map.new(state(socket).late, &{&1, true})

    receive do
      {:netlink, ^socket, <<_::64, seq::32-native, _::binary>> = datagram}
      when is_map_key(requests, seq) or is_map_key(late, seq) ->
        {:datagram, datagram, reader}

      {:netlink, ^socket, <<_::64, seq::32-native, _::binary>> = datagram, %{group: group}}
      when group in [nil, 0] and (is_map_key(requests, seq) or is_map_key(late, seq)) ->
        {:datagram, datagram, reader}

      {:netlink_overrun, ^socket, dropped} ->
        {:lost, Error.new(:recv, :enobufs, dropped: dropped), reader}

      {:netlink_error, ^socket, error} ->
        failed(reader, error)

      # The owner is to see it, too.
      {:netlink_closed, ^socket, _reason} = message ->
        send(self(), message)
        {:error, Error.new(:thread, :epipe)}
    after
      timeout -> :timeout
    end
  end

  ## What is left of requests that were given up

  # One that could not be sent is not answered.
  defp give_up(socket, %{kind: :dump}, %{stage: :send}) do
    put(socket, %{state(socket) | dump: nil})
  end

  defp give_up(socket, %{requests: requests}, _error) do
    leave(socket)
    late(socket, Map.keys(requests))
  end

  defp leave(socket) do
    case state(socket) do
      %{dump: {:live, seq}} = state ->
        put(socket, %{state | dump: {:left, seq}})
        late(socket, [seq])

      _none ->
        :ok
    end
  end

  defp late(socket, numbers) do
    %State{late: late} = state = state(socket)
    put(socket, %{state | late: Enum.take(Enum.uniq(numbers ++ late), @late)})
  end

  # The dump under way may end while another answer is read.
  defp note_end(socket, messages) do
    with %{dump: {_live_or_left, seq}} = state <- state(socket),
         true <-
           Enum.any?(messages, &(&1.seq == seq and Message.control(&1.type) in [:done, :error])) do
      put(socket, %{state | dump: nil})
    end
  end

  # Reads a dump to its end that nobody wants any more.
  defp drain(socket, timeout) do
    case state(socket).dump do
      nil ->
        :ok

      {_left, seq} ->
        answer = Answer.new(:dump, %{seq => ""}, seq)
        reader = %Reader{socket: socket, timeout: timeout, deadline: nil, answer: answer}
        drain_step(%{reader | deadline: deadline(timeout)})
    end
  end

  defp drain_step(%{answer: %{done?: true}}), do: :ok

  defp drain_step(reader) do
    case step(reader) do
      {:ok, reader} -> drain_step(%{reader | answer: %{reader.answer | messages: []}})
      {:error, error} -> {:error, %{error | messages: nil}}
    end
  end

  ## The state

  defp state(%Socket{} = socket) do
    Process.get(key(socket)) || %State{next: :rand.uniform(@last_sequence)}
  end

  defp put(socket, state) do
    _old = Process.put(key(socket), state)
    :ok
  end

  @doc "Forgets what the calling process keeps of a socket that it has closed."
  @spec forget(Socket.t()) :: :ok
  def forget(socket) do
    _state = Process.delete(key(socket))
    :ok
  end

  defp key(%Socket{handle: handle, link: link}), do: {__MODULE__, link.server, handle}

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  defp left(:infinity), do: :infinity
  defp left(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)
end
