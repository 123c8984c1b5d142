defmodule NetlinkPort.Connection.Transmit do
  @moduledoc false
  # Sends the datagrams of a call, one after the other, without blocking the connection.

  alias NetlinkPort.{Error, ProcessLimit, Socket}
  alias NetlinkPort.Helper.Reference

  import Kernel, except: [send: 2]

  # Any socket's send buffer has room for a datagram of this size (SOCK_MIN_SNDBUF, include/net/sock.h).
  @small 4_096

  @doc """
  Sends small datagrams at once, when that neither fails nor blocks. Otherwise a separate process sends them. Its monitor
  is returned, and its exit reason is `{:sent, result}`, so that the connection knows which call has failed.
  """
  @spec send(Socket.t(), [iodata()]) :: :ok | {:later, reference()} | {:error, Error.t()}
  def send(_socket, []), do: :ok

  def send(socket, [datagram | rest] = datagrams) do
    case at_once(socket, datagram) do
      :ok -> send(socket, rest)
      :later -> later(socket, datagrams)
      {:error, error} -> {:error, error}
    end
  end

  @doc "Whether any socket has room for a datagram of this size, so that sendmsg(2) does not block."
  @spec small?(non_neg_integer()) :: boolean()
  def small?(size), do: size <= @small

  @doc "Sends a datagram if that does not block, and returns `:later` if it may."
  @spec at_once(Socket.t(), iodata()) :: :ok | :later | {:error, Error.t()}
  def at_once(socket, datagram) do
    if Reference.local?(socket.helper) and small?(IO.iodata_length(datagram)) do
      with {:error, %{reason: :eagain}} <- NetlinkPort.send(socket, datagram, timeout: 0),
           do: :later
    else
      :later
    end
  end

  defp later(socket, datagrams) do
    case ProcessLimit.spawn_monitor(fn -> exit({:sent, all(socket, datagrams)}) end) do
      {:ok, {_pid, monitor}} -> {:later, monitor}
      :system_limit -> {:error, ProcessLimit.error(:send)}
    end
  end

  defp all(_socket, []), do: :ok

  defp all(socket, [datagram | rest]) do
    with :ok <- NetlinkPort.send(socket, datagram, wait: true, timeout: :infinity),
         do: all(socket, rest)
  end
end
