defmodule NetlinkPort.Request.SocketState do
  @moduledoc false
  # What a process keeps of a socket between its requests, in the process dictionary: the next sequence number, the
  # numbers of finished exchanges whose messages may still come (`late`), the losses that a request has met until it
  # ends (`deferred`), and the dump under way. The dump is `{:live, seq}` while a stream or a call reads it, and
  # `{:left, seq}` after that. Of the socket's server it keeps whether spinning pays.
  #
  # Nothing tells a process that a socket has ended which another process has closed, and whoever is told otherwise may
  # never call this library again. So with each new entry the process may forget those of sockets and servers that have
  # ended: whenever there are twice as many as after the last time.
  #
  # The kernel runs one dump on a socket, and refuses the next with EBUSY until that one is read to its end. So a dump
  # first reads the rest of an abandoned one, and any request ends a stream that is not done.

  alias NetlinkPort.{Message, Socket, Spin}
  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Request.Reply
  alias NetlinkPort.Server.LateAnswers

  # How many entries there may be before the first look for those of ended sockets.
  @few 16
  # How many late numbers are remembered. Those of the last exchange are always kept.
  @late 1_024
  @last_sequence 0xFFFFFFFF
  # The error of NLMSG_ERROR is negative. 105 is ENOBUFS.
  @no_room -105

  # `order` has the numbers of each exchange, the oldest first. `deferred` has messages for the owner, the newest first.
  # `searched` is what the board said when the mailbox was last searched for answers, in vain. `used?`: the entry has
  # changed since the last look for those of ended sockets.
  defstruct [:next, :helper, :dump, :searched] ++
              [used?: true, late: %{}, order: :queue.new(), deferred: []]

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

  defp put(socket, state), do: keep(key(socket), %{state | helper: socket.helper, used?: true})

  defp key(%Socket{handle: handle, helper: helper}), do: {__MODULE__, helper.server, handle}

  ## Of a server

  @doc "Returns how the calling process spins for answers of the socket's server."
  @spec spin(Socket.t()) :: Spin.t()
  def spin(%Socket{helper: helper}),
    do: Process.get({__MODULE__, helper.server, :spin}) || Spin.new(Reference.spin(helper))

  @doc "Notes how the calling process spins for answers of the socket's server."
  @spec spin(Socket.t(), Spin.t()) :: :ok
  def spin(%Socket{helper: helper}, spin), do: keep({__MODULE__, helper.server, :spin}, spin)

  ## Sockets and servers that have ended

  defp keep(key, value) do
    _room = if Process.put(key, value) == nil, do: added(Process.get(__MODULE__, @few))
    :ok
  end

  defp added(0), do: Process.put(__MODULE__, max(@few, forget_ended()))
  defp added(room), do: Process.put(__MODULE__, room - 1)

  # Returns how many entries are left.
  defp forget_ended do
    Enum.count(Process.get(), fn
      {{__MODULE__, server, _handle} = key, value} ->
        kept? = kept?(key, value, node(server) == node())
        _before = if kept?, do: unused(key, value), else: Process.delete(key)
        kept?

      _not_of_this_module ->
        false
    end)
  end

  # A stream reads it, and is to see how it ends.
  defp kept?(_key, %{dump: {:live, _seq}}, _local?), do: true
  defp kept?(_key, %{deferred: [_ | _]}, _local?), do: true
  defp kept?({_, server, :spin}, _spin, local?), do: local? and Process.alive?(server)
  defp kept?({_, _, handle}, state, true), do: Reference.recipient(state.helper, handle) != nil
  # Whether a socket of another node is open cannot be told here.
  defp kept?(_key, state, false), do: state.used?

  defp unused(key, %__MODULE__{} = state), do: Process.put(key, %{state | used?: false})
  defp unused(_key, spin), do: spin
end
