defmodule NetlinkPort.Server.Frames do
  @moduledoc false
  # What each frame from the helper does: a datagram or an event goes to its socket, a reply to whom it is for.

  alias NetlinkPort.{Error, Redaction}
  alias NetlinkPort.Helper.{Protocol, Reference}
  alias NetlinkPort.Server.{Commands, Refusal, Sockets, State, Status}

  @doc "Handles a frame, as a callback of the server."
  @spec handle(binary(), State.t()) ::
          {:noreply, State.t()} | {:noreply, State.t(), timeout()} | {:stop, term(), State.t()}
  def handle(frame, state) do
    state = %{state | frames: state.frames + 1}

    case Protocol.decode(frame) do
      {:data, handle, datagram, metadata} ->
        {:noreply, datagram(state, handle, datagram, metadata)}

      {:answer, handle, datagram} ->
        state |> datagram(handle, datagram, nil) |> State.answered()

      {:reply, reference, reply} ->
        state |> Commands.replied(reference, reply) |> State.answered()

      {:overrun, handle, dropped} ->
        {:noreply, arrive(state, handle, {:overrun, dropped})}

      {:failed, handle, stage, errno, length} ->
        state = if stage == :recv, do: taken(state, 0), else: state
        item = {:error, failure(state, stage, errno, length)}
        {:noreply, state |> arrive(handle, item) |> State.grant_all()}

      {:gone, handle} ->
        {:noreply, State.update(state, Sockets.gone(state.sockets, handle))}

      {:malformed, reason} ->
        {:noreply, Status.malformed(state, reason)}

      other ->
        {:stop, {:protocol_error, Redaction.brief(other)}, state}
    end
  end

  defp datagram(state, handle, datagram, metadata) do
    state
    |> taken(byte_size(datagram))
    |> arrive(handle, {:data, datagram, metadata})
    |> State.grant_all()
  end

  defp taken(state, size), do: %{state | taken: state.taken + Protocol.charge(size)}

  defp arrive(state, handle, item),
    do: State.update(state, Sockets.arrive(state.sockets, handle, item))

  defp failure(state, stage, errno, 0) do
    Refusal.error({stage, errno, ""}, {nil, :host}, Reference.privileges(state.helper))
  end

  defp failure(_state, stage, errno, length), do: Error.new(stage, errno, length: length)
end
