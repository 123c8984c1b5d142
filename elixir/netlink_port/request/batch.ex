defmodule NetlinkPort.Request.Batch do
  @moduledoc false
  # A batch: which requests make one, where it ends, and the outcome of each. nf_tables has batches of its own, which
  # are all or nothing. Pure.

  alias NetlinkPort.{Error, ExtAck, Message}
  alias NetlinkPort.Request.{Family, Permission, Reply}

  import Bitwise

  @request Message.flags([:request])
  @ack Message.flags([:ack])
  # A batch of nf_tables begins and ends with one of these, include/uapi/linux/netfilter/nfnetlink.h.
  @batch_begin 16
  @batch_end 17
  # sizeof(struct nfgenmsg)
  @nfgenmsg 4
  @noop 1

  @typedoc """
  The messages, and `last`, the index of the message whose answer ends the batch. A `transaction?` is a batch of
  nf_tables, which an error of its first message also ends. With `probe?` the last message is a datagram of its own.
  """
  @type t :: %{
          messages: [Message.t(), ...],
          last: non_neg_integer(),
          transaction?: boolean(),
          probe?: boolean()
        }

  ## A new batch

  @doc "Returns the batch, the error of one that the kernel would not answer, or what is wrong with the arguments."
  @spec new(NetlinkPort.protocol(), [{0..0xFFFF, 0..0xFFFF, iodata()}, ...]) ::
          {:ok, t()} | {:error, Error.t()} | {:wrong, String.t()}
  def new(protocol, requests) do
    cond do
      why = Family.silent(protocol) -> {:error, Error.new(:request, :einval, hint: why)}
      wrong = misplaced(protocol, requests) -> {:wrong, wrong}
      Family.first_only?(protocol) -> netfilter(requests, Enum.map(requests, &elem(&1, 0)))
      true -> {:ok, batch(requests, length(requests) - 1)}
    end
  end

  # A batch ends with the ack of its last message, and some answers come behind that.
  defp misplaced(protocol, requests) do
    requests
    |> Enum.with_index()
    |> Enum.find_value(fn {{type, flags, _payload}, index} ->
      at = "the one at index #{index}, of type #{type}"

      cond do
        Family.dump?(protocol, type, flags) ->
          "expected no dump in a batch: the rest of #{at}, comes behind the end of the batch; call dump/4"

        not Family.acks?(protocol, type) ->
          "expected requests whose ack comes last in a batch: #{at}, is answered behind its ack, " <>
            "or is never acked; call request/4"

        true ->
          nil
      end
    end)
  end

  defp netfilter(requests, [@batch_begin | types]) do
    case unfinished(types, requests) do
      nil ->
        # Only later kernels ack NFNL_MSG_BATCH_END itself.
        batch = batch(requests, max(length(requests) - 2, 0))
        {:ok, %{batch | transaction?: true}}

      wrong ->
        {:wrong, wrong}
    end
  end

  defp netfilter([request], [type]) when type not in [@batch_begin, @batch_end] do
    {:ok, batch([request], 0)}
  end

  # Without CAP_NET_ADMIN the kernel reads nothing behind the first message of a datagram. So another datagram follows,
  # with a message that does nothing. The kernel always answers it, and by then has answered all others.
  defp netfilter(requests, types) do
    if Enum.any?(types, &(&1 in [@batch_begin, @batch_end])) do
      {:wrong,
       "expected NFNL_MSG_BATCH_BEGIN (16) as the first message of a batch of nf_tables, " <>
         "and NFNL_MSG_BATCH_END (17) as its last, got types: #{types_text(types)}"}
    else
      batch = batch(requests ++ [{@noop, 0, ""}], length(requests))
      {:ok, acked(%{batch | probe?: true}, length(requests) - 1)}
    end
  end

  # The kernel discards such a batch without an error.
  defp unfinished(types, requests) do
    short = Enum.find_index(requests, &(IO.iodata_length(elem(&1, 2)) < @nfgenmsg))

    cond do
      short ->
        "expected messages of nf_tables that begin with struct nfgenmsg, 4 bytes; " <>
          "that at index #{short} has #{IO.iodata_length(elem(Enum.at(requests, short), 2))}"

      List.last(types) != @batch_end ->
        "expected NFNL_MSG_BATCH_END (17) as the last message of a batch of nf_tables: without it the " <>
          "kernel acknowledges the changes and throws them away; got types: #{types_text([@batch_begin | types])}"

      Enum.count(types, &(&1 in [@batch_begin, @batch_end])) > 1 ->
        "expected one batch of nf_tables: the kernel drops what is behind the first " <>
          "NFNL_MSG_BATCH_END (17); call batch/3 once for each; got types: #{types_text([@batch_begin | types])}"

      true ->
        nil
    end
  end

  defp types_text(types), do: inspect(types, limit: 20)

  defp batch(requests, last) do
    messages =
      for {type, flags, payload} <- requests,
          do: %Message{type: type, flags: @request ||| flags, payload: payload}

    acked(%{messages: messages, last: last, transaction?: false, probe?: false}, last)
  end

  defp acked(batch, index) do
    ask = &%{&1 | flags: &1.flags ||| @ack}
    %{batch | messages: List.update_at(batch.messages, index, ask)}
  end

  ## The outcomes

  @doc "Returns the outcome of each message of a batch that is done."
  @spec outcomes(map()) :: [
          {:ok, [Message.t()], ExtAck.t() | nil} | {:error, Error.t()}
        ]
  def outcomes(%{answer: answer, messages: messages} = exchange) do
    replies = answer |> Reply.messages() |> Enum.group_by(& &1.seq)
    messages = if exchange.probe?, do: Enum.drop(messages, -1), else: messages
    first = answer.last - exchange.last
    refusal = refusal(exchange, first, length(messages))

    for {message, seq} <- Enum.with_index(messages, first) do
      case answer.errors do
        %{^seq => error} -> {:error, explained(exchange, message, error)}
        _none -> refusal || done(exchange, message, Map.get(replies, seq, []), answer.acks[seq])
      end
    end
  end

  defp explained(%{transaction?: true}, _message, %{reason: :erestart} = error) do
    %{
      error
      | hint: "the rules are of another generation than NFTA_BATCH_GENID; read them and try again"
    }
  end

  defp explained(%{socket: socket}, message, error),
    do: Permission.explain(error, message, socket)

  defp done(%{protocol: protocol}, message, replies, ext_ack) do
    # The ack of a later message covers this one, whatever its flags.
    case Family.ignored_error(protocol, %{message | flags: message.flags ||| @ack}) do
      nil -> {:ok, replies, ext_ack}
      error -> {:error, error}
    end
  end

  # The error of messages that have none of their own. When one message of a transaction is refused, the kernel undoes
  # all of it. Without CAP_NET_ADMIN the kernel reads nothing behind the first message.
  defp refusal(%{transaction?: true, answer: answer}, first, _count) do
    if answer.errors != %{} do
      index = Enum.min(Map.keys(answer.errors)) - first

      {:error,
       Error.new(:request, :ecanceled,
         hint:
           "undone: the batch is all or nothing, and its message at index #{index} was refused"
       )}
    end
  end

  defp refusal(%{probe?: true, messages: messages} = exchange, first, count) do
    %{errors: errors, acks: acks} = exchange.answer
    last = first + count - 1

    case errors do
      %{^first => %{reason: :eperm} = error} when not is_map_key(errors, last) ->
        if not is_map_key(acks, last), do: {:error, explained(exchange, hd(messages), error)}

      _answered ->
        nil
    end
  end

  defp refusal(_exchange, _first, _count), do: nil
end
