defmodule NetlinkPort.Request.Exchange do
  @moduledoc false
  # One request, batch or dump, for NetlinkPort.Request and NetlinkPort.Connection: its messages, the answer to them,
  # what was lost meanwhile, and the outcome. Pure, except for `in_caller/2`.

  alias NetlinkPort.{Deadline, Error, ExtAck, Message, Socket}
  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Request.{Batch, Family, Permission, Reply}
  alias NetlinkPort.Server.Refusal

  import Bitwise
  import NetlinkPort.Message, only: [is_control: 1]

  # How often a dump is sent before its inconsistency is returned as an error.
  @attempts 5
  @last_sequence 0xFFFFFFFF
  # What a datagram counts in addition to its length, as in a window.
  @datagram 300

  @request Message.flags([:request])
  @ack Message.flags([:ack])
  @dump Message.flags([:dump])
  @typedoc "A request, batch or dump with checked options, before the protocol is known."
  @type question ::
          {:request | :dump, 0..0xFFFF, iodata(), map()}
          | {:batch, [{0..0xFFFF, 0..0xFFFF, iodata()}, ...]}

  @typedoc "A success, with the kernel's extended acknowledgement or `nil`."
  @type success :: {:ok, [Message.t()], ExtAck.t() | nil}
  @type outcome :: success() | {:ok, [success() | {:error, Error.t()}]} | {:error, Error.t()}

  @type t :: %__MODULE__{
          kind: :request | :batch | :dump,
          reads: Reply.kind(),
          protocol: NetlinkPort.protocol(),
          socket: Socket.t() | nil,
          messages: [Message.t()],
          last: non_neg_integer(),
          dump?: boolean(),
          transaction?: boolean(),
          probe?: boolean(),
          attempts: pos_integer(),
          answer: Reply.t() | nil,
          lost: Error.t() | nil,
          bytes: non_neg_integer(),
          max_bytes: pos_integer() | :infinity
        }

  # The `socket` explains an EPERM. A `dump?` takes the socket's place for a dump: a dump, or a request that the kernel answers with one.
  # `reads` is how the answer is read, and `last` the index of the message whose answer ends it. A `transaction?` is a
  # batch of nf_tables, which an error of its first message also ends. With `probe?` the last message is a datagram of
  # its own. `lost` is an error of the transport, after which the answer is still read to its end. It is no error of an
  # answer that is whole all the same. `bytes` of
  # `max_bytes` have been gathered. `answer` is set once the messages are numbered.
  @enforce_keys [:kind, :reads, :protocol, :messages]
  defstruct [
    :kind,
    :reads,
    :protocol,
    :socket,
    :messages,
    :answer,
    :lost,
    last: 0,
    dump?: false,
    transaction?: false,
    probe?: false,
    attempts: @attempts,
    bytes: 0,
    max_bytes: :infinity
  ]

  ## A new exchange

  @doc """
  Returns an exchange for a socket of this protocol, the error of a request that the kernel would not answer, or what is
  wrong with the arguments.
  """
  @spec new(NetlinkPort.protocol(), question()) ::
          {:ok, t()} | {:error, Error.t()} | {:wrong, String.t()}
  def new(protocol, {:request, type, payload, %{flags: flags, ack: ack?}}) do
    ack? = ack? and Family.acks?(protocol, type)

    with :ok <- no_batch_limit(protocol, type),
         :ok <- not_ignored(protocol, type, payload, ack?) do
      flags = @request ||| flags ||| if(ack?, do: @ack, else: 0)
      message = %Message{type: type, flags: flags, payload: payload}
      dump? = Family.dump?(protocol, type, flags)
      reads = if ack?, do: if(dump?, do: :dump, else: :acked), else: :plain

      exchange = %__MODULE__{
        kind: :request,
        reads: reads,
        protocol: protocol,
        messages: [message]
      }

      {:ok, %{exchange | dump?: dump?}}
    end
  end

  # With NLM_F_ACK a dump ends with NLMSG_DONE and has no ack. A command that is no dump is acked, and so ends, too.
  def new(protocol, {:dump, type, payload, %{flags: flags, max_bytes: max_bytes}}) do
    ack? = Family.acks?(protocol, type)

    with :ok <- no_batch_limit(protocol, type),
         :ok <- not_ignored(protocol, type, payload, ack?) do
      flags = @request ||| @dump ||| flags ||| if(ack?, do: @ack, else: 0)
      message = %Message{type: type, flags: flags, payload: payload}
      reads = if ack?, do: :dump, else: :plain
      exchange = %__MODULE__{kind: :dump, reads: reads, protocol: protocol, messages: [message]}
      {:ok, %{exchange | dump?: true, max_bytes: max_bytes}}
    end
  end

  def new(protocol, {:batch, requests}) do
    with {:ok, batch} <- Batch.new(protocol, requests) do
      exchange = %__MODULE__{kind: :batch, reads: :batch, protocol: protocol, messages: []}
      {:ok, struct!(exchange, batch)}
    end
  end

  # The kernel reads such a message as a batch, and throws it away without a word.
  defp no_batch_limit(protocol, type) do
    if Family.batch_limit?(protocol, type),
      do:
        {:wrong,
         "expected a request: the type #{type} begins or ends a batch of nf_tables; call batch/3 " <>
           "with all of it, from NFNL_MSG_BATCH_BEGIN (16) to NFNL_MSG_BATCH_END (17)"},
      else: :ok
  end

  # Refuses a message that would be awaited in vain, since the kernel ignores it without an ack. With an ack the check
  # comes after the answer, since that may be another error.
  defp not_ignored(_protocol, _type, _payload, true), do: :ok

  defp not_ignored(protocol, type, payload, false) do
    case Family.ignored_error(protocol, %Message{type: type, payload: payload}) do
      nil -> :ok
      error -> {:error, error}
    end
  end

  @doc "Returns an exchange that reads the rest of an abandoned dump, given its sequence number."
  @spec rest(NetlinkPort.protocol(), Reply.sequence(), pos_integer()) :: t()
  def rest(protocol, seq, max_bytes) do
    answer = Reply.new(:dump, %{seq => ""}, %{seq => :answers}, seq)
    exchange = %__MODULE__{kind: :dump, reads: :dump, protocol: protocol, messages: []}
    %{exchange | dump?: true, answer: answer, max_bytes: max_bytes}
  end

  @doc "Numbers the messages from `next` on. Returns the datagrams to send, and the next number."
  @spec number(t(), Reply.sequence()) :: {t(), [iodata(), ...], Reply.sequence()}
  def number(%{messages: messages, protocol: protocol} = exchange, next) do
    {first, next} = sequence(next, length(messages))
    numbered = for {message, seq} <- Enum.with_index(messages, first), do: %{message | seq: seq}
    requests = for m <- numbered, do: {m.seq, IO.iodata_to_binary(Message.encode(m))}

    classes =
      if exchange.kind == :dump,
        do: %{first => :answers},
        else: Map.new(numbered, &{&1.seq, Family.class(protocol, &1.type, &1.flags)})

    answer = Reply.new(exchange.reads, Map.new(requests), classes, first + exchange.last)
    %{type: type, flags: flags} = hd(messages)

    answer = %{
      answer
      | begin: if(exchange.transaction?, do: first),
        alone?: Family.alone?(protocol, type, flags),
        control?: exchange.kind == :dump and is_control(type)
    }

    {%{exchange | answer: answer}, datagrams(exchange, Enum.map(requests, &elem(&1, 1))), next}
  end

  @doc "Whether the kernel reads such a message also where others are before and behind it in the datagram."
  @spec shares?(t()) :: boolean()
  def shares?(%{kind: :request, dump?: false, protocol: protocol}),
    do: Family.reads_all?(protocol)

  def shares?(_batch_or_dump), do: false

  defp datagrams(%{probe?: true}, requests) do
    {requests, probe} = Enum.split(requests, -1)
    [requests, probe]
  end

  defp datagrams(_exchange, requests), do: [requests]

  @doc """
  Returns the first of `count` consecutive numbers, and the next number after them. They are never 0 and never wrap
  around.

      iex> NetlinkPort.Request.Exchange.sequence(0xFFFFFFFF, 1)
      {0xFFFFFFFF, 1}
      iex> NetlinkPort.Request.Exchange.sequence(0xFFFFFFFF, 2)
      {1, 3}
  """
  @spec sequence(pos_integer(), pos_integer()) :: {pos_integer(), pos_integer()}
  def sequence(next, count) when next + count - 1 > @last_sequence, do: sequence(1, count)
  def sequence(next, count) when next + count > @last_sequence, do: {next, 1}
  def sequence(next, count), do: {next, next + count}

  ## The answer

  @doc "Adds the messages of a datagram of `size` bytes that belong to the exchange, in their order."
  @spec add(t(), [Message.t()], non_neg_integer()) :: t()
  def add(exchange, messages, size \\ 0) do
    %{
      exchange
      | answer: Reply.add(exchange.answer, messages),
        bytes: exchange.bytes + size + @datagram
    }
  end

  @doc "Notes a loss, which may have hit the answer, or a malformed part of the answer, which counts before any loss."
  @spec lose(t(), Error.t()) :: t()
  def lose(exchange, %{reason: :ebadmsg} = error), do: %{exchange | lost: error}
  def lose(exchange, error), do: %{exchange | lost: exchange.lost || error}

  @doc "Returns the error of a malformed datagram."
  @spec malformed(NetlinkPort.DecodeError.t()) :: Error.t()
  def malformed(error), do: Error.new(:recv, :ebadmsg, subject: Exception.message(error))

  @doc "Whether the answer is complete."
  @spec done?(t()) :: boolean()
  def done?(%{answer: answer}), do: Reply.done?(answer)

  @doc "Whether messages with the number of a complete answer may still come."
  @spec more?(t()) :: boolean()
  def more?(%{reads: :acked, answer: answer}), do: answer.ended in [:done, :error]
  def more?(_exchange), do: true

  @doc "Returns the error of an answer larger than `max_bytes`, or `nil`."
  @spec excess(t()) :: Error.t() | nil
  def excess(%{bytes: bytes, max_bytes: max_bytes}) when bytes <= max_bytes, do: nil

  def excess(%{max_bytes: max_bytes}) do
    Error.new(:request, :emsgsize,
      hint:
        "the dump is larger than max_bytes: #{max_bytes}; raise that, or use NetlinkPort.stream/4 on a socket, which keeps " <>
          "one datagram at a time"
    )
  end

  @doc """
  Returns the error of an answer that did not come, or, past the `limit` for the whole answer, `total` ms after its start,
  of a dump that goes on for too long.
  """
  @spec overdue(:silent | %{:limit => timeout(), :total => timeout(), optional(atom()) => term()}) ::
          Error.t()
  def overdue(:silent), do: Error.new(:request, :etimedout, hint: "no answer came in time")

  def overdue(%{limit: limit, total: total}) do
    if Deadline.left(limit) == 0 do
      Error.new(:request, :etimedout,
        hint:
          "the dump still went on after total_timeout: #{total} ms; raise that, or use NetlinkPort.stream/4 on a socket"
      )
    else
      overdue(:silent)
    end
  end

  ## The outcome

  @doc "Returns the outcome of an exchange that is done, or `{:again, exchange}` to number and send it again."
  @spec outcome(t()) :: outcome() | {:again, t()}
  def outcome(%{kind: :batch} = exchange) do
    if error = missing(exchange), do: {:error, error}, else: {:ok, Batch.outcomes(exchange)}
  end

  def outcome(%{kind: :dump, attempts: attempts, answer: answer} = exchange) do
    case whole(exchange) do
      :ok -> success(answer)
      {:again, _error} when attempts > 1 -> {:again, again(exchange)}
      {_again, error} -> {:error, %{error | messages: Reply.messages(answer)}}
    end
  end

  def outcome(%{answer: answer} = exchange) do
    case missing(exchange) || refused(exchange) || ignored(exchange) do
      nil -> success(answer)
      error -> {:error, error}
    end
  end

  defp refused(%{answer: answer, messages: messages, socket: socket}) do
    if error = Reply.error(answer), do: Permission.explain(error, hd(messages), socket)
  end

  # A loss may have hit another datagram. What could not be read was part of the answer.
  defp missing(%{lost: %Error{reason: :ebadmsg} = error}), do: error

  defp missing(%{answer: answer, lost: %Error{} = error}),
    do: unless(Reply.whole?(answer), do: error)

  defp missing(_exchange), do: nil

  defp success(answer), do: {:ok, Reply.messages(answer), answer.acks[answer.last]}

  # An ack without any other message may mean that the kernel has ignored the request.
  defp ignored(%{answer: %{ended: :ack, count: 0}, messages: [message], protocol: protocol}),
    do: Family.ignored_error(protocol, message)

  defp ignored(_exchange), do: nil

  @doc "Whether a dump that is done is complete, and if not, whether it may be sent again."
  @spec whole(t()) :: :ok | {:failed, Error.t()} | {:again, Error.t()}
  def whole(%{answer: answer, lost: lost} = exchange) do
    cond do
      error = refused(exchange) -> {:failed, error}
      lost -> {:again, lost}
      answer.interrupted? -> {:again, interrupted()}
      answer.ended == :ack and answer.count == 0 -> ack_alone(exchange)
      true -> :ok
    end
  end

  # The ack came alone.
  defp ack_alone(%{messages: [%{type: type}], protocol: protocol} = exchange) do
    error = ignored(exchange)
    if error || not Family.empty?(protocol, type), do: {:failed, error || no_dump()}, else: :ok
  end

  defp ack_alone(_rest), do: {:failed, no_dump()}

  defp interrupted do
    Error.new(:request, :eintr,
      hint:
        "the tables changed while they were dumped, each time; try again when fewer changes are made"
    )
  end

  defp no_dump do
    Error.new(:request, :eopnotsupp,
      hint:
        "the kernel acknowledged it and sent nothing, not even the end of a dump: mostly since the type " <>
          "has no dump (a command has been carried out, and a control message, of a type below 16, skipped)"
    )
  end

  defp again(exchange) do
    %{exchange | attempts: exchange.attempts - 1, answer: nil, lost: nil, bytes: 0}
  end

  @doc "Returns the outcome of an exchange that an error ends before its answer is complete."
  @spec cut(t(), Error.t()) :: {:error, Error.t()}
  def cut(%{lost: %Error{} = lost} = exchange, %{reason: :etimedout}) do
    cut(%{exchange | lost: nil}, lost)
  end

  def cut(%{answer: %{delayed: %Error{} = delayed} = answer} = exchange, %{reason: :etimedout}) do
    cut(%{exchange | answer: %{answer | delayed: nil}}, delayed)
  end

  def cut(%{kind: :dump, answer: nil}, error), do: {:error, %{error | messages: []}}

  def cut(%{kind: :dump, answer: answer}, error) do
    {:error, %{error | messages: Reply.messages(answer)}}
  end

  def cut(_exchange, error), do: {:error, error}

  @doc "Whether `in_caller/2` may change an outcome."
  @spec lacking?(outcome()) :: boolean()
  def lacking?({:ok, outcomes}), do: Enum.any?(outcomes, &lacking?/1)
  def lacking?({:error, %{stage: :request, lacks: lacks}}), do: lacks != nil
  def lacking?(_outcome), do: false

  @doc "Returns an outcome with the sentences that only the caller may make, see `NetlinkPort.Server.Refusal`."
  @spec in_caller(outcome(), Reference.t()) :: outcome()
  def in_caller({:ok, outcomes}, helper), do: {:ok, Enum.map(outcomes, &in_caller(&1, helper))}

  def in_caller({:error, error}, helper),
    do: {:error, Refusal.request_in_caller(error, helper)}

  def in_caller(success, _helper), do: success

  @doc """
  Returns an outcome as callers get it: successes have the extended acknowledgement only with `ext_ack: true`.

      iex> NetlinkPort.Request.Exchange.face({:ok, [], nil}, %{ext_ack: false})
      {:ok, []}
      iex> NetlinkPort.Request.Exchange.face({:ok, [{:ok, [], nil}]}, %{ext_ack: true})
      {:ok, [{:ok, [], nil}]}
  """
  @spec face(outcome(), map()) :: tuple()
  def face(outcome, %{ext_ack: true}), do: outcome
  def face({:ok, messages, _ext_ack}, _opts), do: {:ok, messages}
  def face({:ok, outcomes}, opts), do: {:ok, Enum.map(outcomes, &face(&1, opts))}
  def face({:error, error}, _opts), do: {:error, error}
end
