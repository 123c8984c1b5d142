defmodule NetlinkPort.Server.Stats do
  @moduledoc false
  # The statistics of sockets: what the server knows, merged with the counters of the helper. Runs in the calling
  # process.

  alias NetlinkPort.{Error, Options, ProcessLimit, Socket}
  alias NetlinkPort.Server.Client

  # So many processes ask at once: with one, thousands of sockets would take seconds.
  @askers 16

  @doc "The statistics of one socket. `known` is what its server knows."
  @spec of(Socket.t(), map()) :: {:ok, NetlinkPort.socket_stats()} | {:error, Error.t()}
  def of(%Socket{} = socket, known) do
    with {:ok, reply} <- Client.request(socket, {:info, socket.handle}),
         {:ok, broadcast_error} <-
           Client.request(socket, {:get, socket.handle, :broadcast_error}) do
      info = Map.new(reply)
      {_device, inode} = info.namespace

      {:ok,
       info
       |> Map.drop([:namespace, :cookie, :verified, :port_id, :granted, :charged])
       |> Map.merge(Map.delete(known, :closed_message))
       |> Map.merge(Map.take(socket, [:handle, :protocol, :netns]))
       |> Map.merge(%{inode: inode, window_left: max(info.granted - info.charged, 0)})
       |> Map.put(:broadcast_error, Options.read(:broadcast_error, broadcast_error))}
    end
  end

  @doc "The statistics of all sockets of a server, by handle. Sockets that close meanwhile are left out."
  @spec all([map()]) :: [NetlinkPort.socket_stats()]
  def all(sockets), do: sockets |> gathered() |> Enum.sort_by(& &1.handle)

  defp gathered(sockets) when length(sockets) <= @askers, do: in_turn(sockets)

  defp gathered(sockets) do
    sockets
    |> Enum.chunk_every(div(length(sockets), @askers) + 1)
    |> Enum.map(&{&1, ProcessLimit.spawn_monitor(fn -> exit({:stats, in_turn(&1)}) end)})
    |> Enum.flat_map(&await/1)
  end

  # Not Task: its links would put messages into the mailbox of a caller that traps exits.
  defp await({sockets, :system_limit}), do: in_turn(sockets)

  defp await({_sockets, {:ok, {asker, monitor}}}) do
    receive do
      {:DOWN, ^monitor, :process, ^asker, {:stats, stats}} -> stats
      {:DOWN, ^monitor, :process, ^asker, _killed} -> []
    end
  end

  defp in_turn(sockets) do
    for known <- sockets, {:ok, stats} <- [of(known.socket, known)], do: stats
  end
end
