defmodule NetlinkPort.Exchange do
  @moduledoc false
  # One request, batch or dump, whoever carries it out: the messages it is sent as, the answer they
  # get, what was lost meanwhile, and what it comes to. Pure.

  alias NetlinkPort.{Answer, Error, Message, Options, Pin}

  import Bitwise

  # How often a dump is tried before its inconsistency is told.
  @attempts 5
  @last_sequence 0xFFFFFFFF

  @request Message.flags([:request])
  @ack Message.flags([:ack])
  @dump Message.flags([:dump])
  # A batch of nf_tables begins and ends with one of these, include/uapi/linux/netfilter/nfnetlink.h.
  @nfnl_msg_batch_begin 16
  @nfnl_msg_batch_end 17
  @netfilter 12

  @type outcome ::
          {:ok, [Message.t()] | [{:ok, [Message.t()]} | {:error, Error.t()}]}
          | {:error, Error.t()}

  @type t :: %__MODULE__{
          kind: Answer.kind(),
          messages: [Message.t()],
          last: non_neg_integer(),
          begin?: boolean(),
          attempts: pos_integer(),
          answer: Answer.t() | nil,
          lost: Error.t() | nil
        }

  # `last` is the index of the message whose ack ends the answer, and `begin?` whether an error of the
  # first does. `lost` is an error of the transport, after which the answer is read to its end all the
  # same. There is an `answer` once the messages are numbered.
  @enforce_keys [:kind, :messages]
  defstruct [:kind, :messages, :answer, :lost, last: 0, begin?: false, attempts: @attempts]

  ## What is asked

  @doc "A request, of checked options."
  @spec request(0..0xFFFF, Pin.payload(), map()) :: t()
  def request(type, payload, %{flags: flags, ack: ack?}) do
    flags = @request ||| flags ||| if(ack?, do: @ack, else: 0)
    message = %Message{type: type, flags: flags, payload: payload}
    %__MODULE__{kind: if(ack?, do: :acked, else: :plain), messages: [message]}
  end

  @doc "Requests in one datagram, checked, at least one."
  @spec batch(NetlinkPort.protocol(), [{0..0xFFFF, 0..0xFFFF, Pin.payload()}, ...]) :: t()
  def batch(protocol, requests) do
    netfilter? = Options.protocol!(protocol) == @netfilter
    last = if netfilter?, do: before_end(requests), else: length(requests) - 1

    messages =
      for {{type, flags, payload}, index} <- Enum.with_index(requests) do
        ack = if index == last, do: @ack, else: 0
        %Message{type: type, flags: @request ||| flags ||| ack, payload: payload}
      end

    begin? = netfilter? and hd(messages).type == @nfnl_msg_batch_begin
    %__MODULE__{kind: :batch, messages: messages, last: last, begin?: begin?}
  end

  # The end of a batch of nf_tables is no request.
  defp before_end(requests) do
    ends = requests |> Enum.reverse() |> Enum.take_while(&(elem(&1, 0) == @nfnl_msg_batch_end))
    max(length(requests) - length(ends) - 1, 0)
  end

  @doc "A dump, of checked options."
  @spec dump(0..0xFFFF, Pin.payload(), map()) :: t()
  def dump(type, payload, %{flags: flags}) do
    message = %Message{type: type, flags: @request ||| @dump ||| flags, payload: payload}
    %__MODULE__{kind: :dump, messages: [message]}
  end

  @doc "What is left of a dump that nobody wants any more, by its number."
  @spec rest(Answer.sequence()) :: t()
  def rest(seq) do
    %__MODULE__{kind: :dump, messages: [], answer: Answer.new(:dump, %{seq => ""}, seq)}
  end

  @doc "Numbers the messages from `next` on: the datagram to send, and the next number."
  @spec number(t(), Answer.sequence()) :: {t(), [binary()], Answer.sequence()}
  def number(%{kind: kind, messages: messages} = exchange, next) do
    {first, next} = sequence(next, length(messages))

    requests =
      for {message, seq} <- Enum.with_index(messages, first) do
        {seq, IO.iodata_to_binary(Message.encode(%{message | seq: seq}))}
      end

    begin = if exchange.begin?, do: first
    answer = Answer.new(kind, Map.new(requests), first + exchange.last, begin)
    {%{exchange | answer: answer}, Enum.map(requests, &elem(&1, 1)), next}
  end

  @doc """
  The first of `count` numbers in a row, and the next after them: never 0, and never across the end.

      iex> NetlinkPort.Exchange.sequence(0xFFFFFFFF, 1)
      {0xFFFFFFFF, 1}
      iex> NetlinkPort.Exchange.sequence(0xFFFFFFFF, 2)
      {1, 3}
  """
  @spec sequence(pos_integer(), pos_integer()) :: {pos_integer(), pos_integer()}
  def sequence(next, count) when next + count - 1 > @last_sequence, do: sequence(1, count)
  def sequence(next, count) when next + count > @last_sequence, do: {next, 1}
  def sequence(next, count), do: {next, next + count}

  ## What comes

  @doc "Messages that belong to it, in their order."
  @spec add(t(), [Message.t()]) :: t()
  def add(exchange, messages) do
    %{exchange | answer: Enum.reduce(messages, exchange.answer, &Answer.add(&2, &1))}
  end

  @doc "Something was lost, which may have been a part of the answer. The first such error counts."
  @spec lose(t(), Error.t()) :: t()
  def lose(exchange, error), do: %{exchange | lost: exchange.lost || error}

  @doc "The error of a datagram that cannot be read."
  @spec malformed(NetlinkPort.DecodeError.t()) :: Error.t()
  def malformed(error), do: Error.new(:recv, :ebadmsg, subject: Exception.message(error))

  @doc "Whether the answer is whole."
  @spec done?(t()) :: boolean()
  def done?(%{answer: answer}), do: answer.done?

  ## What it comes to

  @doc "The outcome of an exchange that is done; or the same, to be numbered and sent once more."
  @spec outcome(t()) :: outcome() | {:again, t()}
  def outcome(%{kind: :batch, lost: nil, answer: answer}), do: {:ok, told(answer)}
  def outcome(%{kind: :batch, lost: error}), do: {:error, error}

  def outcome(%{kind: :dump, attempts: attempts, answer: answer} = exchange) do
    case whole(exchange) do
      :ok -> {:ok, Answer.messages(answer)}
      {:again, _error} when attempts > 1 -> {:again, again(exchange)}
      {_again, error} -> {:error, %{error | messages: Answer.messages(answer)}}
    end
  end

  def outcome(%{answer: answer, lost: lost}) do
    case lost || Answer.error(answer) do
      nil -> {:ok, Answer.messages(answer)}
      error -> {:error, error}
    end
  end

  @doc "Whether a dump that is done is whole, and else whether it may be tried again."
  @spec whole(t()) :: :ok | {:failed, Error.t()} | {:again, Error.t()}
  def whole(%{answer: answer, lost: lost}) do
    error = Answer.error(answer)

    cond do
      error -> {:failed, error}
      lost -> {:again, lost}
      answer.interrupted? -> {:again, Error.new(:request, :eintr)}
      true -> :ok
    end
  end

  defp again(exchange) do
    %{exchange | attempts: exchange.attempts - 1, answer: nil, lost: nil}
  end

  defp told(answer) do
    replies = answer |> Answer.messages() |> Enum.group_by(& &1.seq)

    for seq <- answer.requests |> Map.keys() |> Enum.sort() do
      case answer.errors do
        %{^seq => error} -> {:error, error}
        _none -> {:ok, Map.get(replies, seq, [])}
      end
    end
  end

  @doc "The outcome of an exchange that is given up for an error before its answer is whole."
  @spec cut(t(), Error.t()) :: {:error, Error.t()}
  def cut(%{lost: %Error{} = lost} = exchange, %{reason: :etimedout}) do
    cut(%{exchange | lost: nil}, lost)
  end

  def cut(%{kind: :dump, answer: nil}, error), do: {:error, %{error | messages: []}}

  def cut(%{kind: :dump, answer: answer}, error) do
    {:error, %{error | messages: Answer.messages(answer)}}
  end

  def cut(_exchange, error), do: {:error, error}
end
