defmodule NetlinkPort.Server.Commands do
  @moduledoc false
  # The server's own commands to the helper, and the helper's replies. While a command awaits its reply, its purpose is
  # on the board, under its reference. The purpose decides what the reply does, or the deadline if no reply comes.

  alias NetlinkPort.{Deadline, Errno, Error, Socket}
  alias NetlinkPort.Helper.{Protocol, Reference}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.{Opening, Pins, Recv, Refusal, Sockets, State, Status}

  @typedoc """
  What a command is for: the reply passed to a caller as it is, or with what the server adds to it; a socket or pin for
  a caller; the socket or pin of a caller that was sent ETIMEDOUT; or nothing but the reply.
  """
  @type purpose ::
          {:server | :helper_info | :helper_stats, GenServer.from()}
          | {:open, GenServer.from(), Socket.handle(), map()}
          | {:given_up, Socket.handle()}
          | :ping

  ## Commands

  @doc "Sends the helper a command."
  @spec ask(State.t(), Protocol.command(), purpose()) :: State.t()
  def ask(state, command, purpose), do: ask_with(state, &Protocol.command(&1, command), purpose)

  @doc "Sends the helper the frame that `frame` makes of a reference."
  @spec ask_with(State.t(), (pos_integer() -> iodata()), purpose()) :: State.t()
  def ask_with(state, frame, purpose),
    do: ask_with(state, frame, purpose, state.helper.call_timeout)

  @spec ask_with(State.t(), (pos_integer() -> iodata()), purpose(), timeout()) :: State.t()
  def ask_with(%{helper: helper} = state, frame, purpose, timeout) do
    reference = Reference.expect(helper, {nil, purpose})

    if timeout != :infinity do
      timer = Process.send_after(self(), {:overdue, reference}, timeout)
      :ets.insert(helper.board, {reference, {timer, purpose}})
    end

    State.write(state, frame.(reference))
  end

  @doc "Closes a socket."
  @spec close(State.t(), Socket.handle(), purpose(), :closed | :owner_down) :: State.t()
  def close(state, handle, purpose, reason) do
    state
    |> State.update(Sockets.remove(state.sockets, handle, reason))
    |> ask({:close, handle}, purpose)
  end

  @doc "Ends a pin."
  @spec unpin(State.t(), Socket.handle(), purpose(), :unpinned | :owner_down) :: State.t()
  def unpin(state, handle, purpose, reason) do
    ask(%{state | pins: Pins.remove(state.pins, handle, reason)}, {:close, handle}, purpose)
  end

  ## Replies

  @doc "The helper has replied to a command of the server, or of a caller that commanded the port itself."
  @spec replied(State.t(), pos_integer(), term()) :: State.t()
  def replied(%{helper: helper} = state, reference, {:error, failure} = reply) do
    case Reference.waiter(helper, reference) do
      {:asker, pid, handle} -> refuse(state, reference, {pid, handle}, failure)
      _another -> settled(state, reference, reply)
    end
  end

  def replied(state, reference, reply), do: settled(state, reference, reply)

  # The error goes to the `recv` with which the caller waits for the answer, or will.
  defp refuse(state, reference, {pid, handle}, failure) do
    case Recv.refuse(state.sockets, handle, pid, failure) do
      {:ok, sockets} ->
        true = Reference.forget(state.helper, reference)
        State.update(state, sockets)

      :none ->
        # If the caller has given up, the row is gone, and no other may take its place: nobody would forget it.
        _waits? = Reference.put_failure(state.helper, reference, failure)
        if not Process.alive?(pid), do: Reference.forget(state.helper, reference)
        state
    end
  end

  defp settled(state, reference, reply) do
    case Reference.settle(state.helper, reference) do
      {:ok, {waits_for, alias}} when waits_for in [:caller, :failure] ->
        send(alias, {alias, reply})
        state

      {:ok, {:asker, _pid, _handle}} ->
        state

      {:ok, {timer, purpose}} ->
        _left = timer && Process.cancel_timer(timer, async: true, info: false)
        replied_for(state, purpose, reply)

      # Its caller has given up.
      :error ->
        state
    end
  end

  defp replied_for(state, :ping, _reply), do: state

  defp replied_for(state, {:server, from}, reply) do
    Relay.reply(from, reply)
    state
  end

  defp replied_for(state, {:open, from, handle, options}, {:ok, place}) do
    # A caller that has given up or died would never learn of its socket or pin, so this closes it.
    if Deadline.time_left(options.deadline, :infinity) < 0 or dead?(from) do
      Relay.reply(from, {:error, Error.new(:thread, :etimedout)})
      ask(state, {:close, handle}, :ping)
    else
      opened(state, from, handle, options, place)
    end
  end

  defp replied_for(%{helper: helper} = state, {:open, from, _handle, options}, {:error, failure}) do
    place = {Map.get(options, :protocol), options.netns}
    {caller, _tag} = from

    # On another node the board cannot be read.
    if node(caller) == node(),
      do: Relay.reply(from, {:error, {:refused, failure, place, helper}}),
      else:
        Relay.reply(from, {:error, Refusal.of_open(failure, place, Reference.privileges(helper))})

    state
  end

  # The caller was sent ETIMEDOUT, so the socket must not stay open.
  defp replied_for(state, {:given_up, handle}, {:ok, _place}),
    do: ask(state, {:close, handle}, :ping)

  defp replied_for(state, {:given_up, _handle}, _failed), do: state

  defp replied_for(state, {:helper_info, from}, {:ok, info}) do
    Relay.reply(from, {:ok, Status.info(state, info)})
    state
  end

  defp replied_for(state, {:helper_stats, from}, {:ok, info}) do
    :ok = Status.stats(state, info, from)
    state
  end

  defp replied_for(state, {_helper, from}, failed) do
    Relay.reply(from, failed)
    state
  end

  defp dead?({pid, _tag}), do: node(pid) == node() and not Process.alive?(pid)

  defp opened(state, from, handle, %{kind: :pin, netns: netns, owner: owner}, place) do
    pin = Pins.pin(handle, netns, place, state.helper)
    pins = Pins.add(state.pins, pin, owner)
    Relay.reply(from, {:ok, pin})
    %{state | pins: pins}
  end

  defp opened(state, from, handle, options, place) do
    %{protocol: protocol, netns: netns} = options
    socket = Socket.new(handle, protocol, netns, state.helper)
    sockets = Sockets.add(state.sockets, socket, options)
    Relay.reply(from, {:ok, Opening.opened(socket, options, place)})
    State.update(state, sockets)
  end

  ## Deadlines

  @doc """
  A command has no reply by its deadline: its caller is sent ETIMEDOUT.

  Returns whether that tells of a helper that is stuck. After a timeout shorter than `call_timeout` it does not.
  """
  @spec overdue(State.t(), pos_integer()) :: :replied | :slow | :stuck
  def overdue(state, reference) do
    case Reference.settle(state.helper, reference) do
      {:ok, {_timer, purpose}} -> give_up(state, reference, purpose)
      :error -> :replied
    end
  end

  defp give_up(_state, _reference, :ping), do: :stuck

  defp give_up(state, reference, {:open, from, handle, options}) do
    :ets.insert(state.helper.board, {reference, {nil, {:given_up, handle}}})
    Relay.reply(from, {:error, Error.new(:thread, :etimedout)})
    if options.timeout < state.helper.call_timeout, do: :slow, else: :stuck
  end

  defp give_up(_state, _reference, {_reply_to, from}) do
    Relay.reply(from, {:error, {:thread, Errno.number(:etimedout), ""}})
    :stuck
  end
end
