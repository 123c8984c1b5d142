defmodule NetlinkPort.Connection.Transmit do
  @moduledoc false
  # Sends the datagrams of a call, one after the other, without holding the connection up.

  alias NetlinkPort.{Error, Socket}
  alias NetlinkPort.Helper.Reference

  import Kernel, except: [send: 2]

  # What is not larger has room in any socket's buffer (SOCK_MIN_SNDBUF, include/net/sock.h).
  @small 4_096

  @doc """
  Sends them here where that neither can fail nor has to wait; elsewhere a process of its own waits, whose
  monitor is returned and whose exit reason is `{:sent, result}`, so that a failure is known to be of this call.
  """
  @spec send(Socket.t(), [iodata()]) :: :ok | {:later, reference()} | {:error, Error.t()}
  def send(_socket, []), do: :ok

  def send(socket, [datagram | rest] = datagrams) do
    case now(socket, datagram) do
      :ok -> send(socket, rest)
      :later -> {:later, later(socket, datagrams)}
      {:error, error} -> {:error, error}
    end
  end

  defp now(socket, datagram) do
    if Reference.local?(socket.link) and IO.iodata_length(datagram) <= @small do
      with {:error, %{reason: :eagain}} <- NetlinkPort.send(socket, datagram, timeout: 0),
           do: :later
    else
      :later
    end
  end

  defp later(socket, datagrams) do
    {_pid, monitor} = spawn_monitor(fn -> exit({:sent, all(socket, datagrams)}) end)
    monitor
  end

  defp all(_socket, []), do: :ok

  defp all(socket, [datagram | rest]) do
    with :ok <- NetlinkPort.send(socket, datagram, wait: true, timeout: :infinity),
         do: all(socket, rest)
  end
end
