defmodule NetlinkPort.Connection.Calls do
  @moduledoc false
  # The calls of a connection: who waits, what is under way, and what may be sent next. Pure, but for
  # the clock.
  #
  # Invariants: one dump at a time is under way, and so many requests as there is room for; the number
  # of every message under way is in `seqs`; a call that was sent keeps its place until it is answered,
  # whether or not anybody still waits. One without `from` was given up.

  alias NetlinkPort.{Answer, Error, Exchange}

  # How many requests may be under way. The helper sends what it has read from its pipe before it receives
  # again, and answers, of some kB as the kernel counts them, are dropped beyond rmem_default.
  @room 16
  # How long the rest of an answer that nobody wants any more may take, in ms; a dump's next datagram.
  @patience 5_000

  @type id :: reference()
  @type reply :: {id(), GenServer.from(), Exchange.outcome()}
  @typep call :: %{
           exchange: Exchange.t(),
           from: GenServer.from() | nil,
           timeout: timeout(),
           deadline: integer() | :infinity
         }
  @type t :: %__MODULE__{
          next: Answer.sequence(),
          calls: %{id() => call()},
          seqs: %{Answer.sequence() => id()},
          dump: id() | nil,
          dumps: :queue.queue(id()),
          requests: :queue.queue(id()),
          room: non_neg_integer()
        }

  # `dump` is under way; `dumps` and `requests`, batches among them, were not sent yet.
  @enforce_keys [:next]
  defstruct [
    :next,
    :dump,
    calls: %{},
    seqs: %{},
    dumps: :queue.new(),
    requests: :queue.new(),
    room: @room
  ]

  @doc "No calls; their numbers start anywhere."
  @spec new() :: t()
  def new, do: %__MODULE__{next: :rand.uniform(0xFFFFFFFF)}

  @doc "One more, with so much time left for its first answer; `timeout` for each further one of a dump."
  @spec add(t(), id(), Exchange.t(), GenServer.from(), timeout(), timeout()) :: t()
  def add(state, id, exchange, from, timeout, left) do
    call = %{exchange: exchange, from: from, timeout: timeout, deadline: deadline(left)}
    state = put_in(state.calls[id], call)

    if exchange.kind == :dump,
      do: %{state | dumps: :queue.in(id, state.dumps)},
      else: %{state | requests: :queue.in(id, state.requests)}
  end

  @doc "What is to be sent next, numbered, if anything may be."
  @spec next(t()) :: {id(), [binary()], t()} | nil
  def next(%{dump: nil} = state) do
    case :queue.out(state.dumps) do
      {{:value, id}, dumps} -> number(%{state | dump: id, dumps: dumps}, id)
      {:empty, _dumps} -> next_request(state)
    end
  end

  # Tried again: it has kept its place.
  def next(%{dump: id} = state) do
    if state.calls[id].exchange.answer == nil, do: number(state, id), else: next_request(state)
  end

  defp next_request(%{room: room} = state) do
    with {{:value, id}, requests} <- :queue.out(state.requests),
         weight when weight <= room <- weight(state.calls[id]) do
      number(%{state | requests: requests, room: room - weight}, id)
    else
      _nothing_or_no_room -> nil
    end
  end

  defp weight(%{exchange: %{messages: messages}}), do: min(length(messages), @room)

  defp number(state, id) do
    {exchange, datagram, next} = Exchange.number(state.calls[id].exchange, state.next)
    seqs = for {seq, _bytes} <- exchange.answer.requests, into: state.seqs, do: {seq, id}
    {id, datagram, put_in(%{state | seqs: seqs, next: next}.calls[id].exchange, exchange)}
  end

  @doc "The messages of a datagram. Those that belong to no call are dropped."
  @spec received(t(), [NetlinkPort.Message.t()]) :: {[reply()], t()}
  def received(state, messages) do
    messages
    |> Enum.chunk_by(&state.seqs[&1.seq])
    |> Enum.reduce({[], state}, fn messages, {replies, state} ->
      {more, state} = answered(state, messages)
      {more ++ replies, state}
    end)
  end

  defp answered(%{seqs: seqs} = state, [%{seq: seq} | _] = messages) when is_map_key(seqs, seq) do
    id = Map.fetch!(seqs, seq)
    call = take(state.calls[id], messages)
    state = put_in(state.calls[id], call)
    if Exchange.done?(call.exchange), do: conclude(state, id, call), else: {[], state}
  end

  defp answered(state, _late), do: {[], state}

  defp take(%{from: nil} = call, messages) do
    %{answer: answer} = exchange = Exchange.add(call.exchange, messages)
    {_unwanted, answer} = Answer.take(answer)
    %{call | exchange: %{exchange | answer: answer}, deadline: deadline(@patience)}
  end

  # A dump takes as long as it takes, as long as it goes on.
  defp take(%{exchange: %{kind: :dump} = exchange} = call, messages) do
    %{call | exchange: Exchange.add(exchange, messages), deadline: deadline(call.timeout)}
  end

  defp take(call, messages), do: %{call | exchange: Exchange.add(call.exchange, messages)}

  defp conclude(state, id, %{from: nil}), do: {[], forget(state, id)}

  defp conclude(state, id, %{exchange: exchange}) do
    case Exchange.outcome(exchange) do
      {:again, again} ->
        state = put_in(state.calls[id].exchange, again)
        {[], %{state | seqs: without(state.seqs, exchange)}}

      outcome ->
        finish(state, id, outcome)
    end
  end

  @doc """
  Something was lost, which may have been anybody's: requests and batches under way end with that. A
  dump comes to its end all the same, since the kernel waits for room before it goes on with one.
  """
  @spec lose(t(), Error.t()) :: {[reply()], t()}
  def lose(%{dump: dump, calls: calls} = state, error) do
    under_way =
      for {id, %{exchange: %{answer: answer}}} <- calls, answer != nil, id != dump, do: id

    state =
      if dump, do: update_in(state.calls[dump].exchange, &Exchange.lose(&1, error)), else: state

    Enum.reduce(under_way, {[], state}, fn id, {replies, state} ->
      {more, state} = finish(state, id, {:error, error})
      {more ++ replies, state}
    end)
  end

  @doc "A call ends."
  @spec finish(t(), id(), Exchange.outcome()) :: {[reply()], t()}
  def finish(state, id, outcome), do: {reply(id, state.calls[id], outcome), forget(state, id)}

  defp reply(_id, %{from: nil}, _outcome), do: []
  defp reply(id, %{from: from}, outcome), do: [{id, from, outcome}]

  @doc "All calls end, with an error."
  @spec close(t(), Error.t()) :: {[reply()], t()}
  def close(state, error) do
    replies =
      for {id, call} <- state.calls,
          reply <- reply(id, call, Exchange.cut(call.exchange, error)),
          do: reply

    {replies, new()}
  end

  @doc """
  A deadline has passed. The caller is told so; or nobody waits any more, and then `:stuck` is a dump that
  the kernel does not go on with: it will refuse every other on this socket.
  """
  @spec expire(t(), id()) :: {[reply()], t()} | :stuck
  def expire(state, id) do
    case state.calls[id] do
      %{from: nil} when state.dump == id ->
        :stuck

      %{from: nil} ->
        {[], forget(state, id)}

      call ->
        outcome = Exchange.cut(call.exchange, Error.new(:request, :etimedout))
        {reply(id, call, outcome), give_up(state, id)}
    end
  end

  @doc """
  Nobody waits for a call any more. One that was sent is answered nevertheless, a dump to its end; one
  without an ack may never be.
  """
  @spec give_up(t(), id()) :: t()
  def give_up(state, id) do
    case state.calls[id] do
      %{exchange: %{answer: answer, kind: kind}} = call when answer != nil and kind != :plain ->
        put_in(state.calls[id], take(%{call | from: nil}, []))

      _call ->
        forget(state, id)
    end
  end

  @doc "Whether there is such a call."
  @spec member?(t(), id()) :: boolean()
  def member?(state, id), do: is_map_key(state.calls, id)

  @doc "Who waits for a call, unless it was given up."
  @spec caller(t(), id()) :: pid() | nil
  def caller(state, id), do: with({pid, _tag} <- state.calls[id].from, do: pid)

  @doc "How long the deadline of a call is away, in ms."
  @spec left(t(), id()) :: timeout()
  def left(state, id) do
    case state.calls[id].deadline do
      :infinity -> :infinity
      deadline -> max(deadline - System.monotonic_time(:millisecond), 0)
    end
  end

  @doc "How many there are."
  @spec count(t()) :: non_neg_integer()
  def count(state), do: map_size(state.calls)

  defp forget(state, id) do
    {%{exchange: exchange} = call, calls} = Map.pop!(state.calls, id)
    state = %{state | calls: calls, seqs: without(state.seqs, exchange)}

    cond do
      state.dump == id -> %{state | dump: nil}
      exchange.kind == :dump -> %{state | dumps: :queue.delete(id, state.dumps)}
      exchange.answer == nil -> %{state | requests: :queue.delete(id, state.requests)}
      true -> %{state | room: state.room + weight(call)}
    end
  end

  defp without(seqs, %{answer: nil}), do: seqs
  defp without(seqs, %{answer: answer}), do: Map.drop(seqs, Map.keys(answer.requests))

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + max(timeout, 0)
end
