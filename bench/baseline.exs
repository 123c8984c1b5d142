defmodule Bench.Baseline do
  @moduledoc false
  # The baseline, which is what the user of a NIF has: OTP's own socket in the namespace, in the VM.

  @netlink 16

  @doc "A bound socket of NETLINK_ROUTE; `groups` is a mask."
  def open(netns, groups \\ 0) do
    {:ok, socket} = :socket.open(@netlink, :raw, 0, %{netns: "/run/netns/" <> netns})
    address = <<0::16, 0::32-native, groups::32-native>>
    :ok = :socket.bind(socket, %{family: @netlink, addr: address})
    socket
  end

  def send(socket, datagram), do: :ok = :socket.send(socket, datagram)

  @doc "Receives a datagram. The kernel would make no use of a larger buffer."
  def recv(socket) do
    {:ok, datagram} = :socket.recv(socket, 65_536)
    datagram
  end

  def close(socket), do: :socket.close(socket)
end
