defmodule NetlinkPort.Server.Calls do
  @moduledoc false
  # What the server does for each call of a client (NetlinkPort.Server.Client). Where the helper does the work, its
  # reply answers the call (NetlinkPort.Server.Commands).

  alias NetlinkPort.{Capture, Deadline, Errno, Error}
  alias NetlinkPort.Helper.{Handle, Protocol, Reference}
  alias NetlinkPort.Server.{Commands, Opening, Ownership, Pins, Recv, Sockets, State}

  @doc "Handles a call, as a callback of the server."
  @spec handle(term(), GenServer.from(), State.t()) ::
          {:noreply, State.t()} | {:noreply, State.t(), timeout()}
  def handle({:open, options, deadline}, from, state) do
    case Handle.new() do
      {:ok, handle} ->
        options = Map.put(options, :deadline, deadline)
        frame = &Protocol.command(&1, opening(options, handle))
        timeout = min(options.timeout, state.helper.call_timeout)

        State.await_reply(
          Commands.ask_with(state, frame, {:open, from, handle, options}, timeout)
        )

      :exhausted ->
        State.reply(state, from, {:error, exhausted(options.kind)})
    end
  end

  def handle({:close, handle}, {closer, _tag} = from, state) do
    if Sockets.known?(state.sockets, handle) do
      :ok = Sockets.tell_close(state.sockets, handle, closer)
      State.await_reply(Commands.close(state, handle, {:server, from}, :closed))
    else
      State.reply(state, from, {:ok, nil})
    end
  end

  def handle({:unpin, handle}, from, state) do
    if Pins.known?(state.pins, handle) do
      State.await_reply(Commands.unpin(state, handle, {:server, from}, :unpinned))
    else
      State.reply(state, from, {:ok, nil})
    end
  end

  def handle({:pin_info, handle}, from, state) do
    info = Pins.info(state.pins, handle)
    State.reply(state, from, if(info, do: {:ok, info}, else: Pins.ended()))
  end

  def handle({:request, command}, from, state) do
    with {:send_to, handle, _, _, datagram} <- command,
         do: Sockets.sent(state.sockets, handle, datagram)

    State.await_reply(Commands.ask(state, command, {:server, from}))
  end

  def handle({:send, handle, datagram, true}, from, state) do
    Sockets.sent(state.sockets, handle, datagram)
    frame = &Protocol.send(&1, handle, datagram, byte_size(datagram))
    State.await_reply(Commands.ask_with(state, frame, {:server, from}))
  end

  def handle({:send, handle, datagram, false}, from, state) do
    if Sockets.open?(state.sockets, handle) do
      Sockets.sent(state.sockets, handle, datagram)
      frame = Protocol.send(0, handle, datagram, byte_size(datagram))
      state |> State.write(frame) |> State.reply(from, {:ok, nil})
    else
      State.reply(state, from, Sockets.closed())
    end
  end

  def handle(:info, from, state) do
    State.await_reply(Commands.ask(state, {:info}, {:helper_info, from}))
  end

  def handle(:stats, from, state) do
    State.await_reply(Commands.ask(state, {:info}, {:helper_stats, from}))
  end

  def handle({:vm_info, handle}, from, state) do
    State.reply(state, from, Sockets.info(state.sockets, handle))
  end

  # With a reference, of the request that the datagram is to answer: if that was not sent, there will be none.
  def handle({way, handle, timeout, deadline, reference}, from, state)
      when way in [:recv, :hold] do
    left = Deadline.time_left(deadline, timeout)

    cond do
      Deadline.gave_up?(left) ->
        {:noreply, state}

      failure = Reference.failure(state.helper, reference) ->
        State.reply(state, from, Recv.unsent(failure))

      true ->
        case Recv.recv(state.sockets, handle, from, left, way == :hold) do
          {:wait, sockets} -> state |> State.update(sockets) |> State.await_datagram(way == :hold)
          {reply, sockets} -> state |> State.update(sockets) |> State.reply(from, reply)
        end
    end
  end

  def handle({:set_active, handle, mode}, {caller, _tag} = from, state) do
    {reply, sockets} = Ownership.set_active(state.sockets, handle, mode, caller)
    state |> State.update(sockets) |> State.reply(from, reply)
  end

  def handle({:pause, handle}, {caller, _tag} = from, state) do
    {reply, sockets} = Ownership.pause(state.sockets, handle, caller)
    state |> State.update(sockets) |> State.reply(from, reply)
  end

  def handle({:give, handle, owner, late}, from, state) do
    {reply, sockets} = Ownership.give(state.sockets, handle, owner, late)
    state |> State.update(sockets) |> State.reply(from, reply)
  end

  def handle({:capture, options}, from, %{sockets: %{tap: nil}} = state) do
    case Capture.start(from, options) do
      {:ok, tap} -> {:noreply, %{state | sockets: Sockets.tap(state.sockets, tap)}}
      {:error, error} -> State.reply(state, from, {:error, error})
    end
  end

  def handle({:capture, _options}, from, state) do
    State.reply(state, from, {:error, Error.new(:capture, :ebusy)})
  end

  def handle(_unknown, from, state) do
    State.reply(state, from, {:error, {:protocol, Errno.number(:einval), ""}})
  end

  # The counter is the VM's, so another server does not help.
  defp exhausted(kind) do
    stage = if kind == :pin, do: :open, else: :socket

    Error.new(stage, :eoverflow,
      hint:
        "this VM has used up its 2^31 handles, one for each socket and pin that it ever opened; restart the VM"
    )
  end

  defp opening(%{kind: :pin, target: target}, handle), do: {:pin, handle, target}

  defp opening(%{kind: :socket, number: number} = options, handle) do
    %{bind: bind, user_peers: peers, window: window, options: settings} = options
    {:open, handle, Opening.target(options), number, bind, peers, window, settings}
  end
end
