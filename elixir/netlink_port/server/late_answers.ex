defmodule NetlinkPort.Server.LateAnswers do
  @moduledoc false
  # Which messages answer an exchange that its process no longer reads. The server drops the answers to a request or a
  # batch that was given up, and when the owner gives the socket away, to all of its exchanges: the new owner has not
  # asked. The process itself drops the rest of a dump when it reads the next one (NetlinkPort.Request).

  alias NetlinkPort.Message

  import NetlinkPort.Message, only: [is_control: 1]

  @typedoc """
  What a message with a request's number may be, when it is no control message:

    * `:answers`: an answer.
    * `:changes`: an event that the request has caused. Such requests are answered only by acks.
    * `:echoes`: the echo of a request with NLM_F_ECHO, which names a group although it is unicast.
  """
  @type class :: :answers | :changes | :echoes
  @type classes :: %{(sequence :: 1..0xFFFFFFFF) => class()}

  # Beyond this the server forgets the earlier numbers.
  @most 4_096

  @doc """
  Whether a message of this number and type, sent to `group`, answers one of the requests with these numbers. A control
  message always does. A message to a group is an event, unless it is an echo.

      iex> import NetlinkPort.Server.LateAnswers
      iex> for class <- [:answers, :changes, :echoes],
      ...>     do: for(group <- [nil, 0, 7], do: is_answer(%{1 => class}, 1, 16, group))
      [[true, true, false], [false, true, false], [true, true, true]]
  """
  defguard is_answer(classes, seq, type, group)
           when is_map_key(classes, seq) and
                  (is_control(type) or group == 0 or :erlang.map_get(seq, classes) == :echoes or
                     (group == nil and :erlang.map_get(seq, classes) == :answers))

  @doc "Whether a message answers one of the requests with these numbers."
  @spec answers?(classes(), Message.t(), non_neg_integer() | nil) :: boolean()
  def answers?(classes, %Message{seq: seq, type: type}, group),
    do: is_answer(classes, seq, type, group)

  @doc "Whether a datagram holds such answers and nothing else."
  @spec only?(classes(), binary(), map() | nil) :: boolean()
  def only?(classes, <<_::64, seq::32-native, _::binary>> = datagram, metadata)
      when is_map_key(classes, seq) do
    group = if metadata, do: metadata.group

    case Message.read(datagram) do
      {:ok, messages} -> Enum.all?(messages, &answers?(classes, &1, group))
      {:error, _messages, _number, _error} -> false
    end
  end

  def only?(_classes, _datagram, _metadata), do: false

  @doc "Adds numbers."
  @spec merge(classes(), classes()) :: classes()
  def merge(earlier, late) when map_size(earlier) + map_size(late) > @most, do: late
  def merge(earlier, late), do: Map.merge(earlier, late)
end
