defmodule NetlinkPort.Request do
  @moduledoc false
  # Requests, batches and dumps, in the process that owns the socket: numbers them, sends them, reads
  # until the answer is whole (NetlinkPort.Exchange), and tries a dump again that was not.
  #
  # A process keeps, for each socket it asks on, the next number, the numbers whose answers it has
  # given up, and the dump that is under way, `{:live, seq}` as long as someone reads it, and
  # `{:left, seq}` after that: the kernel runs one dump a socket, and refuses the next with EBUSY before
  # that one is read to its end. So a dump begins with reading what another has left, and any request
  # ends a stream that is not done. What comes on the socket and belongs to no request is
  # left to the owner: in the mailbox of an active socket, and sent there from a passive one.

  alias NetlinkPort.{Answer, Error, Exchange, Message, Payload, Pin, Socket}

  # How many given-up numbers are remembered.
  @late 64
  @last_sequence 0xFFFFFFFF

  defmodule State do
    @moduledoc false
    defstruct [:next, late: [], dump: nil]
  end

  defmodule Reader do
    @moduledoc false
    @enforce_keys [:socket, :timeout, :deadline, :exchange]
    defstruct [:socket, :timeout, :deadline, :exchange, active?: false]
  end

  @type options :: [
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          ack: boolean()
        ]

  ## Requests

  @spec request(Socket.t(), 0..0xFFFF, Pin.payload(), map()) ::
          {:ok, [Message.t()]} | {:error, Error.t()}
  def request(socket, type, payload, opts) do
    outcome(socket, Exchange.request(type, payload, opts), opts.timeout)
  end

  @spec batch(Socket.t(), [{0..0xFFFF, 0..0xFFFF, Pin.payload()}], map()) ::
          {:ok, [{:ok, [Message.t()]} | {:error, Error.t()}]} | {:error, Error.t()}
  def batch(_socket, [], _opts), do: {:ok, []}

  def batch(socket, requests, opts) do
    outcome(socket, Exchange.batch(socket.protocol, requests), opts.timeout)
  end

  @spec dump(Socket.t(), 0..0xFFFF, Pin.payload(), map()) ::
          {:ok, [Message.t()]} | {:error, Error.t()}
  def dump(socket, type, payload, opts) do
    outcome(socket, Exchange.dump(type, payload, opts), opts.timeout)
  end

  ## Streams

  @spec stream(Socket.t(), 0..0xFFFF, Pin.payload(), map()) :: Enumerable.t()
  def stream(socket, type, payload, %{timeout: timeout} = opts) do
    exchange = Exchange.dump(type, payload, opts)
    Stream.resource(fn -> begin!(socket, exchange, timeout) end, &next!/1, &finish/1)
  end

  defp begin!(socket, exchange, timeout) do
    case start(socket, exchange, timeout) do
      {:ok, reader} -> reader
      {:error, error} -> raise error
    end
  end

  defp next!(%{exchange: %{answer: %{messages: [], done?: true}}} = reader) do
    case Exchange.whole(reader.exchange) do
      :ok -> {:halt, reader}
      {_again, error} -> raise error
    end
  end

  defp next!(%{exchange: %{answer: %{messages: [], last: last}}, socket: socket} = reader) do
    case if(state(socket).dump == {:live, last}, do: step(reader), else: {:error, ended()}) do
      {:ok, reader} -> next!(reader)
      {:error, error} -> raise error
    end
  end

  defp next!(reader) do
    {messages, answer} = Answer.take(reader.exchange.answer)
    {messages, %{reader | exchange: %{reader.exchange | answer: answer}}}
  end

  defp ended do
    Error.new(:request, :ebusy, subject: "a dump that another request on its socket has ended")
  end

  # One that is left early is read to its end at once: the rest would fill the socket's window.
  defp finish(%{socket: socket, exchange: %{answer: %{last: last}}, timeout: timeout}) do
    if state(socket).dump == {:live, last}, do: leave_and_drain(socket, timeout), else: :ok
  end

  defp leave_and_drain(socket, timeout) do
    leave(socket)
    _drained = drain(socket, timeout)
    :ok
  end

  ## One exchange

  defp outcome(socket, exchange, timeout) do
    with {:ok, reader} <- start(socket, exchange, timeout),
         {:ok, reader} <- collect(reader) do
      case Exchange.outcome(reader.exchange) do
        {:again, exchange} -> outcome(socket, exchange, timeout)
        outcome -> outcome
      end
    end
  end

  # Pins are looked at before anything is sent, or read.
  defp start(socket, %{kind: kind} = exchange, timeout) do
    with {:ok, messages} <- Payload.resolve_all(exchange.messages, socket),
         :ok <- leave(socket),
         exchange = %{exchange | messages: messages},
         :ok <- if(kind == :dump, do: drain(socket, timeout), else: :ok) do
      %State{next: next} = state = state(socket)
      {exchange, datagram, next} = Exchange.number(exchange, next)
      put(socket, %{state | next: next})
      deadline = deadline(timeout)

      with :ok <- NetlinkPort.send(socket, datagram, timeout: timeout) do
        last = exchange.answer.last
        if kind == :dump, do: put(socket, %{state(socket) | dump: {:live, last}})
        {:ok, %Reader{socket: socket, timeout: timeout, deadline: deadline, exchange: exchange}}
      end
    end
  end

  defp collect(%{exchange: %{answer: %{done?: true}}} = reader), do: {:ok, reader}

  defp collect(reader) do
    with {:ok, reader} <- step(reader), do: collect(reader)
  end

  # One datagram, or what came in its place.
  defp step(%{exchange: exchange, socket: socket} = reader) do
    case read(reader) do
      {:datagram, datagram, reader} ->
        sort(reader, datagram)

      # The rest of the answer still comes; what was lost may have been a part of it.
      {:lost, error, reader} ->
        {:ok, %{reader | exchange: Exchange.lose(reader.exchange, error)}}

      {:error, error} ->
        give_up(socket, exchange.answer, error)
        Exchange.cut(exchange, error)
    end
  end

  defp sort(%{exchange: exchange, socket: socket} = reader, datagram) do
    case Message.decode(datagram) do
      {:ok, messages} ->
        note_end(socket, messages)
        {mine, others} = Enum.split_with(messages, &Answer.mine?(exchange.answer, &1))
        if mine == [], do: pass_on(socket, datagram, others)
        {:ok, %{extend(reader) | exchange: Exchange.add(exchange, mine)}}

      {:error, malformed} ->
        {:ok, %{reader | exchange: Exchange.lose(exchange, Exchange.malformed(malformed))}}
    end
  end

  # A dump takes as long as it takes, as long as it goes on.
  defp extend(%{exchange: %{kind: :dump}} = reader) do
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
  defp take(%{socket: socket} = reader, timeout) do
    %{requests: requests} = reader.exchange.answer
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
        exchange = Exchange.rest(seq)
        deadline = deadline(timeout)
        reader = %Reader{socket: socket, timeout: timeout, deadline: deadline, exchange: exchange}
        drain_step(reader)
    end
  end

  defp drain_step(%{exchange: %{answer: %{done?: true}}}), do: :ok

  defp drain_step(reader) do
    case step(reader) do
      {:ok, reader} ->
        {_unwanted, answer} = Answer.take(reader.exchange.answer)
        drain_step(%{reader | exchange: %{reader.exchange | answer: answer}})

      {:error, error} ->
        {:error, %{error | messages: nil}}
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
