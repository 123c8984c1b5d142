defmodule NetlinkPort.Request.SocketState do
  @moduledoc false
  # What a process keeps of a socket between its requests, in the process dictionary: the next sequence number, the
  # numbers of finished exchanges whose messages may still come (`late`), the losses that a request has met until it
  # ends (`deferred`), and the dump under way. The dump is `{:live, seq}` while a stream or a call reads it, and
  # `{:left, seq}` after that.
  #
  # The kernel runs one dump on a socket, and refuses the next with EBUSY until that one is read to its end. So a dump
  # first reads the rest of an abandoned one, and any request ends a stream that is not done.

  alias NetlinkPort.{Message, Socket}
  alias NetlinkPort.Request.Reply
  alias NetlinkPort.Server.LateAnswers

  # How many late numbers are remembered. Those of the last exchange are always kept.
  @late 1_024
  @last_sequence 0xFFFFFFFF
  # The error of NLMSG_ERROR is negative. 105 is ENOBUFS.
  @no_room -105

  # `order` has the numbers of each exchange, the oldest first. `deferred` has messages for the owner, the newest first.
  # `searched` is what the board said when the mailbox was last searched for answers, in vain.
  defstruct [:next, :dump, :searched, late: %{}, order: :queue.new(), deferred: []]

  @type dump :: {:live | :left, Reply.sequence()} | nil

  @doc "Returns the sequence number of the next request."
  @spec next(Socket.t()) :: Reply.sequence()
  def next(socket), do: state(socket).next

  @doc "Sets the sequence number of the next request."
  @spec number(Socket.t(), Reply.sequence()) :: :ok
  def number(socket, next), do: put(socket, %{state(socket) | next: next})

  @doc "Returns what the board said of the socket when no answer was in the mailbox."
  @spec searched(Socket.t()) :: {pid() | nil, integer()} | nil
  def searched(socket), do: state(socket).searched

  @doc "Notes that no answer, and no late one, is in the mailbox."
  @spec searched(Socket.t(), {pid() | nil, integer()} | nil) :: :ok
  def searched(socket, recipient), do: put(socket, %{state(socket) | searched: recipient})

  @doc "Returns the dump under way."
  @spec dump(Socket.t()) :: dump()
  def dump(socket), do: state(socket).dump

  @doc "Notes that a dump begins."
  @spec live(Socket.t(), Reply.sequence()) :: :ok
  def live(socket, seq), do: put(socket, %{state(socket) | dump: {:live, seq}})

  @doc "Notes that the dump under way, if there is one, is no longer read."
  @spec leave(Socket.t()) :: :ok
  def leave(socket) do
    case state(socket).dump do
      {:live, seq} -> left(socket, seq)
      _none -> :ok
    end
  end

  @doc "Notes that a dump must be read to its end before the next begins."
  @spec left(Socket.t(), Reply.sequence()) :: :ok
  def left(socket, seq) do
    put(socket, %{state(socket) | dump: {:left, seq}})
    late(socket, %{seq => :answers})
  end

  @doc "Notes that no dump is under way any more."
  @spec over(Socket.t()) :: :ok
  def over(socket), do: put(socket, %{state(socket) | dump: nil})

  @doc "Notes that this dump is no longer under way."
  @spec over(Socket.t(), Reply.sequence()) :: :ok
  def over(socket, seq) do
    case state(socket).dump do
      {_live_or_left, ^seq} -> over(socket)
      _another -> :ok
    end
  end

  @doc "Notes the end of the dump, if it is among messages that were read for another answer."
  @spec note_end(Socket.t(), [Message.t()]) :: :ok
  def note_end(socket, messages) do
    case state(socket).dump do
      {_live_or_left, seq} ->
        if Enum.any?(messages, &(end?(&1) and &1.seq == seq)), do: over(socket), else: :ok

      nil ->
        :ok
    end
  end

  # ENOBUFS is no end of a dump: see NetlinkPort.Request.Reply.
  defp end?(%{type: type, payload: payload}) do
    case {Message.control(type), payload} do
      {:error, <<@no_room::signed-32-native, _::binary>>} -> false
      {control, _payload} -> control in [:done, :error]
    end
  end

  @doc "Returns the numbers of finished exchanges whose messages may still come, and what those may be."
  @spec late(Socket.t()) :: LateAnswers.classes()
  def late(socket), do: state(socket).late

  @doc "Adds late numbers, and forgets the oldest."
  @spec late(Socket.t(), LateAnswers.classes()) :: :ok
  def late(socket, classes) do
    %{late: late, order: order} = state = state(socket)

    if Enum.all?(classes, fn {seq, _class} -> is_map_key(late, seq) end) do
      :ok
    else
      late = Map.merge(late, classes)
      order = :queue.in(Map.keys(classes), order)
      put(socket, forget_oldest(%{state | late: late, order: order}))
    end
  end

  # All numbers of an exchange are forgotten together.
  defp forget_oldest(%{late: late, order: order} = state) when map_size(late) > @late do
    {{:value, oldest}, order} = :queue.out(order)

    if :queue.is_empty(order),
      do: state,
      else: forget_oldest(%{state | late: Map.drop(late, oldest), order: order})
  end

  defp forget_oldest(state), do: state

  @doc "Keeps a message for the owner until `deliver_deferred/1`."
  @spec defer(Socket.t(), tuple()) :: :ok
  def defer(socket, message) do
    state = state(socket)
    put(socket, %{state | deferred: [message | state.deferred]})
  end

  @doc "Sends a message to the owner, or keeps it behind those that are deferred."
  @spec deliver(Socket.t(), tuple()) :: :ok
  def deliver(socket, message) do
    if state(socket).deferred == [] do
      send(self(), message)
      :ok
    else
      defer(socket, message)
    end
  end

  @doc "Sends the owner the deferred messages."
  @spec deliver_deferred(Socket.t()) :: :ok
  def deliver_deferred(socket) do
    case state(socket) do
      %{deferred: []} ->
        :ok

      %{deferred: deferred} = state ->
        for message <- Enum.reverse(deferred), do: send(self(), message)
        put(socket, %{state | deferred: []})
    end
  end

  @doc "Forgets what the calling process keeps of a socket that it has closed."
  @spec forget(Socket.t()) :: :ok
  def forget(socket) do
    _state = Process.delete(key(socket))
    :ok
  end

  defp state(%Socket{} = socket) do
    Process.get(key(socket)) || %__MODULE__{next: :rand.uniform(@last_sequence)}
  end

  defp put(socket, state) do
    _old = Process.put(key(socket), state)
    :ok
  end

  defp key(%Socket{handle: handle, helper: helper}), do: {__MODULE__, helper.server, handle}
end
