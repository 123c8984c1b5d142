defmodule NetlinkPort.Monitor.Snapshot do
  @moduledoc false
  # The dumps of a monitor: read over a socket of their own, and made into messages for subscribers.

  alias NetlinkPort.{Error, Message}
  alias NetlinkPort.Server.Opening

  # How many messages of the kernel's there are in one for a subscriber.
  @piece 100

  @type dumps :: [{0..0xFFFF, iodata()}]

  @doc "Reads the dumps, one after the other, in the calling process."
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

  # A dump that failed has what it read in its error: that is of no use here, and may be large.
  defp read(socket, [{type, payload} | dumps], read) do
    case NetlinkPort.dump(socket, type, payload) do
      {:ok, messages} -> read(socket, dumps, [messages | read])
      {:error, error} -> {:error, %{error | messages: nil}}
    end
  end

  @doc """
  A snapshot in pieces.

      iex> NetlinkPort.Monitor.Snapshot.pieces([])
      [{:netlink_snapshot, :begin}, {:netlink_snapshot, :end}]
  """
  @spec pieces([Message.t()]) :: [tuple()]
  def pieces(messages) do
    pieces = for piece <- Enum.chunk_every(messages, @piece), do: {:netlink_snapshot, piece}
    [{:netlink_snapshot, :begin}] ++ pieces ++ [{:netlink_snapshot, :end}]
  end
end
