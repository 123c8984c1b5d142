defmodule NetlinkPort.Answer do
  @moduledoc false
  # What the kernel has answered to one datagram of requests so far, and whether that is all. Pure;
  # netlink(7), Documentation/userspace-api/netlink/intro.rst.
  #
  # A request ends with its ack or its error, or with NLMSG_DONE; without an ack asked for, with its first
  # message that is not one of many. A dump ends with NLMSG_DONE, wherever in a datagram, or an error.
  # A batch ends with the ack or the error of that of its requests which asks for an ack; the kernel
  # reports errors of the others without being asked. One of nf_tables ends with an error of its begin,
  # too: nothing behind that is looked at.

  alias NetlinkPort.{Error, ExtAck, Message}

  @type kind :: :acked | :plain | :dump | :batch
  @type sequence :: 1..0xFFFFFFFF

  @type t :: %__MODULE__{
          kind: kind(),
          requests: %{sequence() => binary()},
          last: sequence(),
          begin: sequence() | nil,
          messages: [Message.t()],
          errors: %{sequence() => Error.t()},
          done?: boolean(),
          interrupted?: boolean()
        }

  @enforce_keys [:kind, :requests, :last]
  defstruct [
    :kind,
    :requests,
    :last,
    :begin,
    messages: [],
    errors: %{},
    done?: false,
    interrupted?: false
  ]

  @doc """
  Nothing yet. `requests` are the bytes that were sent, `last` ends the answer, and so does an error of
  `begin`.
  """
  @spec new(kind(), %{sequence() => binary()}, sequence(), sequence() | nil) :: t()
  def new(kind, requests, last, begin \\ nil) do
    %__MODULE__{kind: kind, requests: requests, last: last, begin: begin}
  end

  @doc "Whether a message belongs to it."
  @spec mine?(t(), Message.t()) :: boolean()
  def mine?(%{requests: requests}, %Message{seq: seq}), do: is_map_key(requests, seq)

  @doc "One more message that belongs to it."
  @spec add(t(), Message.t()) :: t()
  def add(answer, message) do
    answer = %{
      answer
      | interrupted?: answer.interrupted? or (multi?(message) and intr?(message))
    }

    case Message.control(message.type) do
      :noop -> answer
      :error -> ended(answer, message)
      :done -> ended(%{answer | done?: true}, message)
      :overrun -> failed(answer, message.seq, Error.new(:recv, :enobufs))
      nil -> %{answer | messages: [message | answer.messages]} |> alone(message)
    end
  end

  defp multi?(message), do: Message.flag?(message, :multi)
  defp intr?(message), do: Message.flag?(message, :dump_intr)

  defp ended(answer, message) do
    {errno, ext_ack} = ExtAck.read(message, Map.fetch!(answer.requests, message.seq))
    last? = message.seq == answer.last or (errno > 0 and message.seq == answer.begin)
    answer = %{answer | done?: answer.done? or last?}

    if errno > 0 do
      failed(answer, message.seq, Error.new(:request, errno, ext_ack: ext_ack))
    else
      answer
    end
  end

  defp failed(answer, seq, error) do
    %{answer | errors: Map.put_new(answer.errors, seq, error)}
  end

  defp alone(%{kind: :plain} = answer, message),
    do: %{answer | done?: answer.done? or not multi?(message)}

  defp alone(answer, _message), do: answer

  @doc "What was read, in its order."
  @spec messages(t()) :: [Message.t()]
  def messages(%{messages: messages}), do: Enum.reverse(messages)

  @doc "Takes what was read, for those who do not wait for the rest."
  @spec take(t()) :: {[Message.t()], t()}
  def take(answer), do: {messages(answer), %{answer | messages: []}}

  @doc "The first error, by sequence of the requests."
  @spec error(t()) :: Error.t() | nil
  def error(%{errors: errors}) when errors == %{}, do: nil
  def error(%{errors: errors}), do: errors |> Enum.min_by(&elem(&1, 0)) |> elem(1)
end
