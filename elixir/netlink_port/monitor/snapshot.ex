defmodule NetlinkPort.Monitor.Snapshot do
  @moduledoc false
  # Reads the dumps of a monitor over a socket of their own, and cuts them into messages for subscribers.

  alias NetlinkPort.{Error, Message}
  alias NetlinkPort.Server.Opening

  # How many netlink messages one message to a subscriber contains.
  @piece 100

  @type dumps :: [{0..0xFFFF, iodata()}]

  @doc "Runs the dumps one after the other, in the calling process."
  @spec read(
          GenServer.server(),
          NetlinkPort.protocol(),
          keyword(),
          Opening.known(),
          dumps()
        ) :: {:ok, [Message.t()]} | {:error, Error.t()}
  def read(server, protocol, opts, known, dumps) do
    opts = [active: false] ++ opts

    with {:ok, socket, _known} <- Opening.again(server, protocol, opts, known) do
      try do
        read(socket, dumps, [])
      after
        NetlinkPort.close(socket)
      end
    end
  end

  defp read(_socket, [], read), do: {:ok, read |> Enum.reverse() |> Enum.concat()}

  # The error of a failed dump contains the messages that were read. They may be large, and are of no use here.
  defp read(socket, [{type, payload} | dumps], read) do
    case NetlinkPort.dump(socket, type, payload) do
      {:ok, messages} -> read(socket, dumps, [messages | read])
      {:error, error} -> {:error, %{error | messages: nil}}
    end
  end

  @doc """
  Cuts a snapshot into messages.

      iex> NetlinkPort.Monitor.Snapshot.pieces([])
      [{:netlink_snapshot, :begin}, {:netlink_snapshot, :end}]
  """
  @spec pieces([Message.t()]) :: [tuple()]
  def pieces(messages) do
    pieces = for piece <- Enum.chunk_every(messages, @piece), do: {:netlink_snapshot, piece}
    [{:netlink_snapshot, :begin}] ++ pieces ++ [{:netlink_snapshot, :end}]
  end
end
