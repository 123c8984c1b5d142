defmodule NetlinkPort.Server.WriteQueue do
  @moduledoc false
  # Frames on their way from the server to its port, in order, without ever waiting: those that find
  # the port busy are kept and tried again. A port does not tell when it is busy no more.

  alias NetlinkPort.Telemetry

  # How often a busy port is tried again, in ms.
  @retry 5

  @type t :: %__MODULE__{port: port(), kept: :queue.queue(iodata()), timer: reference() | nil}

  @enforce_keys [:port]
  defstruct [:port, :timer, kept: :queue.new()]

  @doc "Nothing is on its way to `port`."
  @spec new(port()) :: t()
  def new(port), do: %__MODULE__{port: port}

  @doc "Writes a frame, or keeps it: then the calling process gets the message `:retry`."
  @spec write(t(), iodata()) :: t()
  def write(%__MODULE__{} = outgoing, frame) do
    none_kept? = :queue.is_empty(outgoing.kept)

    if none_kept? and command(outgoing.port, frame) do
      outgoing
    else
      # Once for each time, however many there will be.
      if none_kept?, do: Telemetry.execute([:helper, :busy], %{count: 1}, %{server: self()})
      later(%{outgoing | kept: :queue.in(frame, outgoing.kept)})
    end
  end

  @doc "Answers the message `:retry`."
  @spec retry(t()) :: t()
  def retry(%__MODULE__{} = outgoing), do: drain(%{outgoing | timer: nil})

  @doc "How many frames are kept."
  @spec kept(t()) :: non_neg_integer()
  def kept(%__MODULE__{kept: kept}), do: :queue.len(kept)

  defp drain(outgoing) do
    case :queue.out(outgoing.kept) do
      {{:value, frame}, rest} ->
        if command(outgoing.port, frame) do
          drain(%{outgoing | kept: rest})
        else
          later(outgoing)
        end

      {:empty, _kept} ->
        outgoing
    end
  end

  # A closed port has sent, or will send, its exit: that is what ends the server, not this.
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
