defmodule NetlinkPort.Connection.Calls do
  @moduledoc false
  # The calls of a connection: which callers wait, which calls are under way, and which may be sent next. Pure, except
  # for the clock.
  #
  # Invariants:
  # - At most one dump is under way, requests that are answered by one included, and as many requests as there is room for.
  # - `seqs` has the sequence number of every message under way.
  # - A call that was sent keeps its place until it is answered, whether or not its caller still waits. A call without
  #   `from` was given up by its caller.

  alias NetlinkPort.{Deadline, Error, Message, Queue}
  alias NetlinkPort.Request.{Exchange, Reply}

  # How many requests may be under way. The helper sends all requests that it has read from its pipe before it receives
  # answers. The kernel counts some kB for each answer, and drops answers beyond rmem_default.
  @max_under_way 16
  # How many bytes of payload count as one request: an error message repeats its request.
  @bytes_per_request 4_096
  # NLMSG_NOOP
  @noop 1
  # Limits for the rest of an answer that was given up: how long a dump's next datagram may take, in ms, how long the
  # whole may take, in ms, and how many bytes of it are read.
  @answer_timeout 5_000
  @drain_timeout 60_000
  @drain_bytes 268_435_456
  # How many calls a connection looks at in a millisecond, at most, to find those that are due.
  @looked_at_in_a_ms 1_000

  @type id :: reference()
  @type reply :: {id(), GenServer.from(), Exchange.outcome()}
  @typep call :: %{
           exchange: Exchange.t(),
           from: GenServer.from() | nil,
           timeout: timeout(),
           total: timeout(),
           deadline: integer() | :infinity,
           limit: integer() | :infinity,
           quiet: integer() | :infinity,
           weight: non_neg_integer()
         }
  @type t :: %__MODULE__{
          next: Reply.sequence(),
          calls: %{id() => call()},
          seqs: %{Reply.sequence() => id()},
          dump: id() | nil,
          dumps: Queue.t(),
          requests: Queue.t(),
          probe: id() | nil,
          before: [id()],
          unsure: [id()],
          room: non_neg_integer(),
          unusable?: boolean()
        }

  # `dump` is under way. `dumps` and `requests`, which includes batches, were not sent yet. A dump that was given up and
  # does not end makes the socket `unusable?`: nothing more is sent on it. `unsure` are calls whose answer may be lost,
  # and `before` those of them that the kernel has answered before it answers `probe`.
  @enforce_keys [:next]
  defstruct [
    :next,
    :dump,
    :probe,
    calls: %{},
    seqs: %{},
    dumps: Queue.new(),
    requests: Queue.new(),
    before: [],
    unsure: [],
    room: @max_under_way,
    unusable?: false
  ]

  @doc "Returns an empty set of calls. Sequence numbers start at a random number."
  @spec new() :: t()
  def new, do: %__MODULE__{next: :rand.uniform(0xFFFFFFFF)}

  @doc """
  Adds a call, with `left` ms for its first datagram. `timeout` is the limit for each further datagram of a dump, and
  `total` the limit for all of it.
  """
  @spec add(t(), id(), Exchange.t(), GenServer.from(), {timeout(), timeout()}, timeout()) :: t()
  def add(state, id, exchange, from, {timeout, total}, left) do
    limit = Deadline.at(total)

    call = %{
      exchange: exchange,
      from: from,
      timeout: timeout,
      total: total,
      deadline: min(Deadline.at(left), limit),
      limit: limit,
      quiet: :infinity,
      weight: weight(exchange)
    }

    calls = Map.put(state.calls, id, call)

    if exchange.dump?,
      do: %{state | calls: calls, dumps: Queue.add(state.dumps, id, [])},
      else: %{state | calls: calls, requests: Queue.add(state.requests, id, [])}
  end

  defp weight(%{messages: messages}) do
    bytes = Enum.reduce(messages, 0, &(IO.iodata_length(&1.payload) + &2))
    min(max(length(messages), div(bytes, @bytes_per_request) + 1), @max_under_way)
  end

  @doc "Takes the call that may be sent next, as numbered datagrams, or returns `nil`."
  @spec next(t()) :: {id(), [iodata(), ...], t()} | nil
  def next(%{unusable?: true}), do: nil
  def next(%{unsure: [_ | _]} = state), do: probe(state, dump_sent?(state))
  def next(state), do: next_call(state)

  # While a dump is under way, it takes all the room there is, and the answer to a probe would be another loss.
  defp probe(state, true), do: next_call(state)

  defp probe(%{unsure: unsure} = state, false) do
    state = %{state | unsure: []}

    with [id | _] = before <- Enum.filter(unsure, &member?(state, &1)),
         question = {:request, @noop, "", %{flags: 0, ack: true}},
         {:ok, exchange} <- Exchange.new(state.calls[id].exchange.protocol, question) do
      probe = make_ref()
      times = %{timeout: :infinity, total: :infinity, deadline: :infinity, limit: :infinity}
      call = Map.merge(times, %{exchange: exchange, from: nil, weight: 0, quiet: :infinity})
      number(%{state | probe: probe, before: before}, probe, call)
    else
      # All are answered, or nothing is acked (fib_lookup).
      _no_probe -> next_call(state)
    end
  end

  defp next_call(%{dump: nil} = state) do
    case Queue.first(state.dumps) do
      {:ok, id, []} ->
        dumps = Queue.delete(state.dumps, id)
        number(%{state | dump: id, dumps: dumps}, id, state.calls[id])

      :empty ->
        next_request(state)
    end
  end

  # A dump without an answer is to be sent again. It has kept its place.
  defp next_call(%{dump: id} = state) do
    case state.calls[id] do
      %{exchange: %{answer: nil}} = call -> number(state, id, call)
      _under_way -> next_request(state)
    end
  end

  # No request weighs nothing.
  defp next_request(%{room: 0}), do: nil

  defp next_request(%{room: room, calls: calls} = state) do
    with {:ok, id, []} <- Queue.first(state.requests),
         %{^id => %{weight: weight} = call} when weight <= room <- calls do
      requests = Queue.delete(state.requests, id)
      number(%{state | requests: requests, room: room - weight}, id, call)
    else
      _nothing_or_no_room -> nil
    end
  end

  defp number(state, id, call) do
    {exchange, datagrams, next} = Exchange.number(call.exchange, state.next)
    seqs = Enum.reduce(Map.keys(exchange.answer.requests), state.seqs, &Map.put(&2, &1, id))
    calls = Map.put(state.calls, id, %{call | exchange: exchange})
    {id, datagrams, %{state | seqs: seqs, next: next, calls: calls}}
  end

  @doc "Whether `next/1` may have a call. If not, it has none."
  @spec more?(t()) :: boolean()
  def more?(%{room: room, requests: requests, dumps: dumps, dump: dump, unsure: unsure}) do
    (room > 0 and not Queue.empty?(requests)) or not Queue.empty?(dumps) or dump != nil or
      unsure != []
  end

  @doc "Whether no call is under way."
  @spec none_sent?(t()) :: boolean()
  def none_sent?(%{seqs: seqs}), do: seqs == %{}

  @doc "Whether a call may share its datagram with others."
  @spec shares?(t(), id()) :: boolean()
  def shares?(%{calls: calls}, id), do: Exchange.shares?(Map.fetch!(calls, id).exchange)

  @doc """
  Frees the room of a request that was sent a while ago and is not answered. Some requests never are, and the kernel has
  answered all others by then.
  """
  @spec unanswered(t(), id()) :: t()
  def unanswered(state, id) do
    case state.calls do
      %{^id => %{weight: weight, exchange: %{dump?: false, answer: %Reply{}}}} ->
        state = put_in(state.calls[id].weight, 0)
        %{state | room: state.room + weight}

      _over ->
        state
    end
  end

  @doc "Notes that a call was sent, and that `unanswered/2` is due if it has no answer in `patience` ms."
  @spec sent(t(), id(), timeout()) :: t()
  def sent(state, id, patience) do
    case state.calls do
      %{^id => call} ->
        %{state | calls: %{state.calls | id => %{call | quiet: Deadline.at(patience)}}}

      _over ->
        state
    end
  end

  @doc "The calls whose deadline has passed, and those that are due for `unanswered/2`, which is noted."
  @spec due(t()) :: {[id()], [id()], t()}
  def due(%{calls: calls} = state) do
    now = System.monotonic_time(:millisecond)
    overdue = for {id, %{deadline: deadline}} <- calls, deadline <= now, do: id
    quiet = for {id, %{quiet: quiet}} <- calls, quiet <= now, do: id

    calls = Enum.reduce(quiet, calls, fn id, calls -> put_in(calls[id].quiet, :infinity) end)

    {overdue, quiet, %{state | calls: calls}}
  end

  @doc "When the first call will be due, in monotonic time; `:infinity` without calls."
  @spec next_due(t()) :: integer() | :infinity
  def next_due(%{calls: calls}) do
    for {_id, call} <- calls, reduce: :infinity do
      first -> min(first, due_at(call))
    end
  end

  @doc """
  When to look for calls that are due again, after a look, which goes through all calls. With thousands of calls looks
  are further apart, and calls end that much later.
  """
  @spec next_look(t()) :: integer() | :infinity
  def next_look(%{calls: calls} = state) do
    pause = div(map_size(calls), @looked_at_in_a_ms)

    case next_due(state) do
      :infinity -> :infinity
      due_at -> max(due_at, System.monotonic_time(:millisecond) + pause)
    end
  end

  @doc "When a call is due, in monotonic time; `:infinity` if it is over."
  @spec next_due(t(), id()) :: integer() | :infinity
  def next_due(%{calls: calls}, id) do
    case calls do
      %{^id => call} -> due_at(call)
      _over -> :infinity
    end
  end

  defp due_at(%{deadline: deadline, quiet: quiet}), do: min(deadline, quiet)

  @doc """
  Takes a datagram that was sent to `group`. Messages that belong to no call are dropped. A malformed message is an error
  only of the call that it belongs to.
  """
  @spec received(t(), binary(), non_neg_integer() | nil) :: {[reply()], t()}
  def received(state, datagram, group) do
    size = byte_size(datagram)

    case Message.read(datagram) do
      {:ok, [_one] = messages} ->
        answered(state, messages, group, size)

      {:ok, messages} ->
        received(state, messages, nil, group, size)

      {:error, messages, number, error} ->
        received(state, messages, {state.seqs[number], error}, group, size)
    end
  end

  defp received(state, messages, broken, group, size) do
    last = if messages != [], do: state.seqs[List.last(messages).seq]

    {replies, state} =
      messages
      |> Enum.chunk_by(&state.seqs[&1.seq])
      |> Enum.reduce({[], state}, fn messages, {replies, state} ->
        {further, state} = answered(state, messages, group, size)
        {further ++ replies, state}
      end)

    {further, state} = broken(state, broken, last)
    {further ++ replies, state}
  end

  defp answered(state, [%{seq: seq} | _] = messages, group, size) do
    with %{^seq => id} <- state.seqs,
         %{^id => call} = calls = state.calls,
         [_ | _] = mine <- Enum.filter(messages, &Reply.mine?(call.exchange.answer, &1, group)) do
      call = take(call, mine, size)

      if Exchange.done?(call.exchange) do
        conclude(state, id, call)
      else
        state = %{state | calls: %{calls | id => call}}
        error = Exchange.excess(call.exchange)
        if error, do: excess(state, id, error), else: {[], state}
      end
    else
      _late_or_an_event -> {[], state}
    end
  end

  defp broken(state, nil, _last), do: {[], state}

  defp broken(state, {id, error}, last) do
    case state.calls[id || last] do
      nil -> {[], state}
      _call -> lost(state, id || last, Exchange.malformed(error))
    end
  end

  # A dump is read to its end, and then sent again.
  defp lost(%{dump: id} = state, id, error) do
    {[], update_in(state.calls[id].exchange, &Exchange.lose(&1, error))}
  end

  defp lost(state, id, error), do: finish(state, id, {:error, error})

  defp excess(state, id, error) do
    case state.calls[id] do
      %{from: nil} -> {[], %{state | unusable?: true}}
      call -> {reply(id, call, Exchange.cut(call.exchange, error)), give_up(state, id)}
    end
  end

  defp take(%{from: nil} = call, messages, size) do
    %{answer: answer} = exchange = Exchange.add(call.exchange, messages, size)
    {_discarded, answer} = Reply.take(answer)
    %{call | exchange: %{exchange | answer: answer}, deadline: deadline(call, @answer_timeout)}
  end

  # Each datagram of a dump moves the deadline.
  defp take(%{exchange: %{kind: :dump} = exchange} = call, messages, size) do
    exchange = Exchange.add(exchange, messages, size)
    %{call | exchange: exchange, deadline: deadline(call, call.timeout)}
  end

  defp take(call, messages, size),
    do: %{call | exchange: Exchange.add(call.exchange, messages, size)}

  defp conclude(state, id, %{from: nil}), do: finish(state, id, :unwanted)

  defp conclude(state, id, %{exchange: exchange} = call) do
    case Exchange.outcome(exchange) do
      {:again, again} ->
        calls = %{state.calls | id => %{call | exchange: again}}
        {[], %{state | calls: calls, seqs: without(state.seqs, exchange)}}

      outcome ->
        finish(state, id, outcome)
    end
  end

  @doc """
  Notes a loss, which may have hit the answer to any call that was sent. A call whose answer is whole all the same
  succeeds. The others get the error as soon as it is known that their answer does not come: the kernel answers in the
  order in which it is sent requests, so `next/1` sends a probe, a message that does nothing, and the answer to the
  probe ends the calls before it. A dump still comes to its end, since the kernel waits for room before it continues a
  dump.

  Calls that a probe cannot decide end after five seconds, or at their deadline before that: the queries of audit,
  which a kernel thread answers, calls without an ack, and those of `unsent`, which another process is about to send.

  Returns the calls whose deadlines are new.
  """
  @spec lose(t(), Error.t(), unsent :: [id()]) :: {[id()], t()}
  def lose(%{dump: dump} = state, error, unsent) do
    state = without_probe(if dump_sent?(state), do: lost_of(state, dump, error), else: state)

    ids =
      for {_seq, id} <- state.seqs,
          id != dump,
          match?(%{^id => %{from: from}} when from != nil, state.calls),
          uniq: true,
          do: id

    state =
      Enum.reduce(ids, state, fn id, state ->
        state = lost_of(state, id, error)
        update_in(state.calls[id].deadline, &min(&1, Deadline.at(@answer_timeout)))
      end)

    unsure = for id <- ids, state.calls[id].exchange.reads != :plain, id not in unsent, do: id
    {ids, %{state | unsure: unsure}}
  end

  defp dump_sent?(%{dump: dump, calls: calls}),
    do: dump != nil and calls[dump].exchange.answer != nil

  defp lost_of(state, id, error),
    do: update_in(state.calls[id].exchange, &Exchange.lose(&1, error))

  defp without_probe(%{probe: nil} = state), do: state
  defp without_probe(%{probe: id} = state), do: forget(state, id)

  @doc "Ends a call with an outcome."
  @spec finish(t(), id(), Exchange.outcome() | :unwanted) :: {[reply()], t()}
  def finish(%{probe: id, before: before} = state, id, _outcome) do
    Enum.reduce(before, {[], forget(state, id)}, fn id, {replies, state} ->
      case state.calls do
        %{^id => %{exchange: %{lost: error}}} ->
          {more, state} = finish(state, id, {:error, error})
          {more ++ replies, state}

        _answered ->
          {replies, state}
      end
    end)
  end

  def finish(state, id, outcome), do: {reply(id, state.calls[id], outcome), forget(state, id)}

  defp reply(_id, %{from: nil}, _outcome), do: []
  defp reply(id, %{from: from}, outcome), do: [{id, from, outcome}]

  @doc "Ends all calls with an error."
  @spec close(t(), Error.t()) :: {[reply()], t()}
  def close(state, error) do
    replies =
      for {id, call} <- state.calls,
          reply <- reply(id, call, Exchange.cut(call.exchange, error)),
          do: reply

    {replies, new()}
  end

  @doc "Whether a caller waits for the answer to a call that was sent."
  @spec under_way?(t()) :: boolean()
  def under_way?(%{calls: calls, seqs: seqs}) do
    Enum.any?(seqs, fn {_seq, id} -> match?(%{^id => %{from: from}} when from != nil, calls) end)
  end

  @doc "Keeps the calls that were not sent, for a new socket. No caller waits for the others."
  @spec unsent(t()) :: t()
  def unsent(state) do
    calls = Map.filter(state.calls, fn {_id, %{exchange: %{answer: answer}}} -> answer == nil end)
    dump = if is_map_key(calls, state.dump), do: state.dump
    state = %{state | probe: nil, before: [], unsure: []}
    %{state | calls: calls, dump: dump, seqs: %{}, room: @max_under_way, unusable?: false}
  end

  @doc """
  Ends a call whose deadline has passed. A dump that was given up before, and does not go on, makes the socket
  unusable: the kernel refuses every other dump on it.
  """
  @spec expire(t(), id()) :: {[reply()], t()}
  def expire(state, id) do
    case state.calls[id] do
      %{from: nil} when state.dump == id ->
        {[], %{put_in(state.calls[id].deadline, :infinity) | unusable?: true}}

      %{from: nil} ->
        {[], forget(state, id)}

      call ->
        outcome = Exchange.cut(call.exchange, Exchange.overdue(call))
        {reply(id, call, outcome), give_up(state, id)}
    end
  end

  @doc """
  Notes that the caller no longer waits. The answer to a call that was sent still comes, and is read and dropped. A call
  without an ack is forgotten, since its answer may never come.
  """
  @spec give_up(t(), id()) :: t()
  def give_up(state, id) do
    case state.calls[id] do
      %{exchange: %{answer: %Reply{}, dump?: dump?, reads: reads} = exchange} = call
      when dump? or reads != :plain ->
        {_discarded, answer} = Reply.take(exchange.answer)
        exchange = %{exchange | answer: answer, bytes: 0, max_bytes: @drain_bytes}
        call = %{call | from: nil, exchange: exchange, limit: Deadline.at(@drain_timeout)}
        put_in(state.calls[id], %{call | deadline: deadline(call, @answer_timeout)})

      _call ->
        forget(state, id)
    end
  end

  @doc "Whether there is such a call."
  @spec member?(t(), id()) :: boolean()
  def member?(state, id), do: is_map_key(state.calls, id)

  @doc "Returns the time until the deadline of a call, in ms."
  @spec left(t(), id()) :: timeout()
  def left(state, id), do: Deadline.left(state.calls[id].deadline)

  @doc "Returns the number of calls."
  @spec count(t()) :: non_neg_integer()
  def count(state), do: map_size(state.calls)

  defp forget(state, id) do
    {%{exchange: exchange} = call, calls} = Map.pop!(state.calls, id)
    state = %{state | calls: calls, seqs: without(state.seqs, exchange)}

    cond do
      state.probe == id -> %{state | probe: nil, before: []}
      state.dump == id -> %{state | dump: nil}
      exchange.dump? -> %{state | dumps: Queue.delete(state.dumps, id)}
      exchange.answer == nil -> %{state | requests: Queue.delete(state.requests, id)}
      true -> %{state | room: state.room + call.weight}
    end
  end

  defp without(seqs, %{answer: nil}), do: seqs
  defp without(seqs, %{answer: answer}), do: Map.drop(seqs, Map.keys(answer.requests))

  defp deadline(%{limit: limit}, timeout), do: min(Deadline.at(timeout), limit)
end
