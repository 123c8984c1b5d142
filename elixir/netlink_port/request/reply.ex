defmodule NetlinkPort.Request.Reply do
  @moduledoc false
  # What the kernel has answered to one datagram of requests so far, and whether the answer is complete. Pure. It follows
  # the table in docs/concepts.md, "What ends an answer".
  #
  #   acked   an ack or an error; NLMSG_DONE
  #   plain   an error; NLMSG_DONE; a message without NLM_F_MULTI, or any message of an `alone?` answer
  #   dump    NLMSG_DONE; an error; the ack of a command that has no dump
  #   batch   the ack, the error or the NLMSG_DONE of `last`; an error of `begin`
  #
  # The flags of a message never end a dump: some families dump without NLM_F_MULTI (netdev), so that its absence does
  # not mean the answer of a command.

  alias NetlinkPort.{Error, ExtAck, Message}
  alias NetlinkPort.Server.LateAnswers

  import NetlinkPort.Message, only: [is_control: 1]

  @type kind :: :acked | :plain | :dump | :batch
  @type sequence :: 1..0xFFFFFFFF
  @type ended :: :ack | :error | :done | :message

  @type t :: %__MODULE__{
          kind: kind(),
          requests: %{sequence() => binary()},
          classes: %{sequence() => LateAnswers.class()},
          last: sequence(),
          begin: sequence() | nil,
          alone?: boolean(),
          control?: boolean(),
          messages: [Message.t()],
          count: non_neg_integer(),
          errors: %{sequence() => Error.t()},
          acks: %{sequence() => ExtAck.t() | nil},
          ended: ended() | nil,
          delayed: Error.t() | nil,
          interrupted?: boolean()
        }

  @enobufs 105

  # A `control?` dump has a type that the kernel does not answer. `delayed` is why a dump has not begun yet. `count`
  # counts all messages, also those that take/1 has removed. `acks` has the extended acknowledgement of each success.
  @enforce_keys [:kind, :requests, :classes, :last]
  defstruct [
    :kind,
    :requests,
    :classes,
    :last,
    :begin,
    :ended,
    :delayed,
    alone?: false,
    control?: false,
    messages: [],
    count: 0,
    errors: %{},
    acks: %{},
    interrupted?: false
  ]

  @doc """
  Returns an empty answer. `requests` are the bytes that were sent, and `classes` says what a message with the number of
  each may be. The answer to `last` ends it.
  """
  @spec new(kind(), %{sequence() => binary()}, %{sequence() => LateAnswers.class()}, sequence()) ::
          t()
  def new(kind, requests, classes, last) do
    %__MODULE__{kind: kind, requests: requests, classes: classes, last: last}
  end

  @doc "Whether the answer is complete."
  @spec done?(t()) :: boolean()
  def done?(%{ended: ended}), do: ended != nil

  @doc """
  Whether nothing of a complete answer can be missing, although datagrams were lost: for each request there is an error,
  its only message (one without NLM_F_MULTI), or, where no message answers it, its ack.
  """
  @spec whole?(t()) :: boolean()
  def whole?(%{classes: classes, errors: errors} = answer) do
    messages = Enum.group_by(answer.messages, & &1.seq)

    Enum.all?(classes, fn {seq, class} ->
      case messages do
        _any when is_map_key(errors, seq) -> true
        %{^seq => [message]} -> not multi?(message)
        %{^seq => _several} -> false
        _none -> is_map_key(answer.acks, seq) and acked_alone?(answer, seq, class)
      end
    end)
  end

  defp acked_alone?(_answer, _seq, :changes), do: true

  defp acked_alone?(%{requests: requests}, seq, _class) do
    <<_length::32, type::16-native, _::binary>> = Map.fetch!(requests, seq)
    is_control(type)
  end

  @doc "Whether a message that was sent to `group` belongs to the answer. `nil` is an unknown group."
  @spec mine?(t(), Message.t(), non_neg_integer() | nil) :: boolean()
  def mine?(%{classes: classes}, message, group),
    do: LateAnswers.answers?(classes, message, group)

  @doc "Returns the messages that belong to the answer, and the others."
  @spec split(t(), [Message.t()], non_neg_integer() | nil) :: {[Message.t()], [Message.t()]}
  def split(answer, messages, group) do
    if Enum.all?(messages, &mine?(answer, &1, group)),
      do: {messages, []},
      else: Enum.split_with(messages, &mine?(answer, &1, group))
  end

  @doc "Adds messages that belong to the answer, in their order."
  @spec add(t(), [Message.t()]) :: t()
  def add(answer, messages), do: add(messages, answer, answer.messages, answer.count)

  # A dump may have millions of messages, so that most of them must not change the struct.
  defp add([message | messages], answer, gathered, count) do
    answer = interrupted(answer, message)

    case Message.control(message.type) do
      nil ->
        add(messages, replied(answer, message), [message | gathered], count + 1)

      control ->
        add(messages, judged(%{answer | count: count}, control, message), gathered, count)
    end
  end

  defp add([], answer, gathered, count), do: %{answer | messages: gathered, count: count}

  defp interrupted(answer, message) do
    if multi?(message) and intr?(message), do: %{answer | interrupted?: true}, else: answer
  end

  defp replied(%{kind: :plain} = answer, message) do
    if answer.alone? or not multi?(message), do: ended(answer, :message), else: answer
  end

  defp replied(answer, _message), do: answer

  defp judged(answer, :noop, _message), do: answer
  defp judged(answer, :error, message), do: judge(answer, message, :ack)
  defp judged(answer, :done, message), do: judge(answer, message, :done)

  defp judged(answer, :overrun, message),
    do: failed(answer, message.seq, Error.new(:recv, :enobufs))

  defp multi?(message), do: Message.flag?(message, :multi)
  defp intr?(message), do: Message.flag?(message, :dump_intr)

  defp judge(answer, %{seq: seq} = message, how) do
    case ExtAck.read(message, Map.fetch!(answer.requests, seq)) do
      # The kernel only acks a control message. A peer in user space has answered this one, and its NLMSG_DONE follows.
      {0, _ext_ack} when answer.control? and answer.count > 0 and how == :ack ->
        answer

      {0, ext_ack} ->
        answer = %{answer | acks: Map.put_new(answer.acks, seq, ext_ack)}
        if seq == answer.last, do: ended(answer, how), else: answer

      # The kernel found no room for the first datagram of a dump. It begins the dump when there is room.
      {@enobufs, ext_ack} when answer.kind == :dump and how == :ack ->
        %{answer | delayed: Error.new(:request, @enobufs, ext_ack: ext_ack)}

      {errno, ext_ack} ->
        error = Error.new(:request, errno, ext_ack: ext_ack)
        answer = failed(answer, seq, error)
        if seq in [answer.last, answer.begin], do: ended(answer, :error), else: answer
    end
  end

  defp ended(answer, how), do: %{answer | ended: answer.ended || how}

  defp failed(answer, seq, error) do
    %{answer | errors: Map.put_new(answer.errors, seq, error)}
  end

  @doc "Returns the messages that were read, in their order."
  @spec messages(t()) :: [Message.t()]
  def messages(%{messages: messages}), do: Enum.reverse(messages)

  @doc "Removes and returns the messages that were read so far."
  @spec take(t()) :: {[Message.t()], t()}
  def take(answer), do: {messages(answer), %{answer | messages: []}}

  @doc "Returns the error of the first request that has one, in the order of the requests."
  @spec error(t()) :: Error.t() | nil
  def error(%{errors: errors}) when errors == %{}, do: nil
  def error(%{errors: errors}), do: errors |> Enum.min_by(&elem(&1, 0)) |> elem(1)
end
