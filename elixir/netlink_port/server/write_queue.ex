defmodule NetlinkPort.Server.WriteQueue do
  @moduledoc false
  # Writes the server's frames to its port, in order, and never waits. Frames for a busy port are queued, and written
  # when a timer fires: a port does not notify when it has room again.

  alias NetlinkPort.Telemetry

  # How often a busy port is tried again, in ms.
  @retry 5

  @type t :: %__MODULE__{port: port(), queued: :queue.queue(iodata()), timer: reference() | nil}

  @enforce_keys [:port]
  defstruct [:port, :timer, queued: :queue.new()]

  @doc "An empty queue for `port`."
  @spec new(port()) :: t()
  def new(port), do: %__MODULE__{port: port}

  @doc "Writes a frame, or queues it. While frames are queued the calling process is sent `:retry`."
  @spec write(t(), iodata()) :: t()
  def write(%__MODULE__{} = outgoing, frame) do
    empty? = :queue.is_empty(outgoing.queued)

    if empty? and command(outgoing.port, frame) do
      outgoing
    else
      # One event for each time that the port becomes busy, however many frames it delays.
      if empty?, do: Telemetry.execute([:helper, :busy], %{count: 1}, %{server: self()})
      later(%{outgoing | queued: :queue.in(frame, outgoing.queued)})
    end
  end

  @doc "Handles the message `:retry`."
  @spec retry(t()) :: t()
  def retry(%__MODULE__{} = outgoing), do: drain(%{outgoing | timer: nil})

  @doc "How many frames are queued."
  @spec count(t()) :: non_neg_integer()
  def count(%__MODULE__{queued: queued}), do: :queue.len(queued)

  defp drain(outgoing) do
    case :queue.out(outgoing.queued) do
      {{:value, frame}, rest} ->
        if command(outgoing.port, frame) do
          drain(%{outgoing | queued: rest})
        else
          later(outgoing)
        end

      {:empty, _queued} ->
        outgoing
    end
  end

  # A closed port sends its exit to the server, which ends the server. So the frame counts as written.
  defp command(port, frame) do
    Port.command(port, frame, [:nosuspend])
  rescue
    ArgumentError -> true
  end

  defp later(%{timer: nil} = outgoing) do
    %{outgoing | timer: Process.send_after(self(), :retry, @retry)}
  end

  defp later(outgoing), do: outgoing
end
