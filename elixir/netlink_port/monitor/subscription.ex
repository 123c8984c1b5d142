defmodule NetlinkPort.Monitor.Subscription do
  @moduledoc false
  # Sends the messages by which a family is subscribed to, over a new socket: requests, whose ack is awaited, and
  # datagrams. In a datagram the messages with NLM_F_ACK, and those that the connector answers, are awaited. Each entry
  # is answered before the next is sent, so that messages with the same sequence number are not mixed up.
  #
  # The connector does not send netlink acks. It answers PROC_CN_MCAST_LISTEN and similar messages with an event to the
  # whole group: PROC_EVENT_NONE with an errno, whose field `ack` is one higher than that of the request. Its field
  # `seq` is an unrelated count (drivers/connector/cn_proc.c). A process outside of the initial pid and user namespaces
  # gets no answer.

  alias NetlinkPort.{Arguments, Deadline, Error, ExtAck, Message, Payload, Socket}
  alias NetlinkPort.Generic.{Follow, Nlctrl}

  # How long an answer to a datagram may take, in ms.
  @answer_timeout 5_000
  # include/uapi/linux/netlink.h
  @nlmsg_error 2
  # CN_IDX_PROC and CN_VAL_PROC, include/uapi/linux/connector.h
  @proc 1

  @type entry ::
          {type :: String.t() | 0..0xFFFF, flags :: 0..0xFFFF, binary()} | binary()
  @type t :: [entry()]

  @doc "Checks the option `:subscription` of a monitor. Only `:generic` has names of families as types."
  @spec new!(term(), boolean()) :: t()
  def new!(entries, generic?) do
    if not is_list(entries) or List.improper?(entries), do: invalid!(entries)
    Enum.map(entries, &entry!(&1, generic?))
  end

  defp entry!({name, flags, payload}, true) when is_binary(name) do
    {Nlctrl.name!(name), Message.flags(flags), binary!(payload)}
  end

  defp entry!({type, flags, payload}, _generic?) do
    {Arguments.type!(type), Message.flags(flags), binary!(payload)}
  end

  defp entry!(datagram, _generic?) when is_binary(datagram) or is_list(datagram) do
    binary!(datagram)
  end

  defp entry!(other, _generic?), do: invalid!(other)

  defp binary!(payload), do: Payload.binary!(:subscription, payload)

  @spec invalid!(term()) :: no_return()
  defp invalid!(other) do
    raise ArgumentError,
          "expected subscription: a list of requests {type, flags, payload} and of datagrams, " <>
            "got: #{inspect(other)}"
  end

  @doc "Sends the entries in their order, and stops at the first that fails."
  @spec send(Socket.t(), t(), Follow.t() | nil) :: :ok | {:error, Error.t()}
  def send(socket, entries, follow) do
    Enum.reduce_while(entries, :ok, fn entry, :ok ->
      with :ok <- send_entry(socket, entry, entries, follow),
           :ok <- check_mailbox(socket, entries) do
        {:cont, :ok}
      else
        failed -> {:halt, failed}
      end
    end)
  end

  # A refusal that came while a request was answered is in the mailbox. Events stay there for the monitor.
  defp check_mailbox(socket, entries) do
    receive do
      {:netlink, ^socket, <<_::32, @nlmsg_error::16-native, _::binary>> = datagram} ->
        refused_in(datagram, socket, entries)

      {:netlink, ^socket, <<_::32, @nlmsg_error::16-native, _::binary>> = datagram, _metadata} ->
        refused_in(datagram, socket, entries)
    after
      0 -> :ok
    end
  end

  defp refused_in(datagram, socket, entries) do
    case refusal(entries, datagram) do
      nil -> check_mailbox(socket, entries)
      error -> {:error, error}
    end
  end

  defp send_entry(socket, {type, flags, payload}, _entries, follow) do
    with {:ok, _messages} <-
           NetlinkPort.request(socket, Follow.number(follow, type), payload, flags: flags),
         do: :ok
  end

  defp send_entry(socket, datagram, entries, _follow) do
    with :ok <- NetlinkPort.send(socket, datagram, wait: true) do
      deadline = Deadline.at(@answer_timeout)
      await(socket, awaited(socket.protocol, datagram), entries, deadline)
    end
  end

  # The answers to wait for: `{:ack, seq}` or `{:connector, ack}`.
  defp awaited(protocol, datagram) when protocol in [:connector, 11] do
    for %{payload: <<@proc::32-native, @proc::32-native, _seq::32, ack::32-native, _::binary>>} <-
          messages(datagram),
        do: {:connector, rem(ack + 1, 0x1_0000_0000)}
  end

  defp awaited(_protocol, datagram) do
    for message <- messages(datagram), Message.flag?(message, :ack), do: {:ack, message.seq}
  end

  defp await(_socket, [], _entries, _deadline), do: :ok

  defp await(socket, awaited, entries, deadline) do
    case NetlinkPort.recv(socket, Deadline.left(deadline)) do
      {:error, %{stage: :recv, reason: :etimedout}} ->
        {:error, Error.new(:request, :etimedout, subject: "the subscription")}

      {:error, error} ->
        {:error, error}

      received ->
        datagram = elem(received, 1)
        answers = datagram |> messages() |> Enum.flat_map(&answer/1)

        with :ok <- refused(answers, awaited), nil <- refusal(entries, datagram) do
          await(socket, awaited -- Enum.map(answers, &elem(&1, 0)), entries, deadline)
        else
          {:error, error} -> {:error, error}
          error -> {:error, error}
        end
    end
  end

  defp refused(answers, awaited) do
    Enum.find_value(answers, :ok, fn {what, error} ->
      if error != nil and what in awaited, do: {:error, error}
    end)
  end

  # `[{what it answers, error | nil}]`, or `[]` for an event.
  defp answer(%{type: 2, seq: seq, payload: <<errno::32-signed-native, _::binary>>} = message) do
    [{{:ack, seq}, error(errno, message)}]
  end

  defp answer(%{
         payload:
           <<@proc::32-native, @proc::32-native, _seq::32, ack::32-native, _size::32,
             0::32-native, _cpu::32, _time::64, errno::32-native, _::binary>>
       }) do
    [{{:connector, ack}, if(errno != 0, do: Error.new(:request, errno))}]
  end

  defp answer(_event), do: []

  defp error(0, _message), do: nil

  defp error(_negative, message) do
    {errno, ext_ack} = ExtAck.read(message, "")
    Error.new(:request, errno, ext_ack: ext_ack)
  end

  @doc """
  Returns the error of a datagram by which the kernel refuses a message of the subscription's datagrams, or `nil`. The
  kernel sends a refusal even for a message without NLM_F_ACK.
  """
  @spec refusal(t(), binary()) :: Error.t() | nil
  def refusal([], _datagram), do: nil

  def refusal(entries, <<_length::32, @nlmsg_error::16-native, _::binary>> = datagram) do
    sent = for entry <- entries, is_binary(entry), message <- messages(entry), do: message.seq

    Enum.find_value(messages(datagram), fn message ->
      case answer(message) do
        [{{:ack, seq}, %Error{} = error}] -> if seq in sent, do: error
        _event -> nil
      end
    end)
  end

  def refusal(_entries, _event), do: nil

  # A datagram of a subscription may contain no netlink message. Then there is no answer to wait for.
  defp messages(datagram) do
    case Message.decode(datagram) do
      {:ok, messages} -> messages
      {:error, _malformed} -> []
    end
  end
end
