defmodule NetlinkPort.DropInSocketTest do
  # The module of the examples that others take as their own.
  use NetlinkPort.Case, async: false

  Code.require_file("../examples/drop_in_socket.ex", __DIR__)

  alias Examples.DropInSocket
  alias NetlinkPort.Message

  # It uses the server that is called NetlinkPort.
  setup do
    start_server!(name: NetlinkPort)
    :ok
  end

  test "asks and gets its answer in a namespace, by path and by process" do
    netns = netns!()
    sleeper = sleeper!(netns)

    for place <- [{:path, netns_path(netns)}, {:pid, sleeper}] do
      {:ok, socket} = DropInSocket.open(:route, place)
      seq = DropInSocket.next_seq(socket)
      payload = <<0::32, 1::32-native, 0::64>>
      request = %Message{type: 18, flags: 1, seq: seq, payload: payload}
      assert :ok = DropInSocket.send(socket, Message.encode(request))
      assert {:ok, datagram} = DropInSocket.recv_datagram(socket, 32_768)
      assert {:ok, [%Message{type: 16, seq: ^seq}]} = Message.decode(datagram)
      assert {:error, :etimedout} = DropInSocket.recv_datagram(socket, size: 8, timeout: 10)
      assert :ok = DropInSocket.close(socket)
      assert {:error, :ebadf} = DropInSocket.send(socket, "")
    end
  end

  test "joins and leaves groups" do
    netns = netns!()
    {:ok, socket} = DropInSocket.open(0, {:path, netns_path(netns)})
    assert :ok = DropInSocket.set_rcvbuf(socket, 1_000_000)
    assert :ok = DropInSocket.add_membership(socket, 5)
    ip!(["-n", netns, "addr", "add", "10.0.0.1/32", "dev", "lo"])
    assert {:ok, <<_::32, 20::16-native, _::binary>>} = DropInSocket.recv_datagram(socket)
    assert :ok = DropInSocket.drop_membership(socket, 5)
    assert {:error, :einval} = DropInSocket.add_membership(socket, 1_000)
  end

  test "numbers are unique from many processes, and start at 1" do
    {:ok, socket} = DropInSocket.open(:route)

    numbers =
      1..20
      |> Enum.map(fn _ ->
        Task.async(fn -> for _ <- 1..50, do: DropInSocket.next_seq(socket) end)
      end)
      |> Task.await_many()
      |> Enum.concat()

    assert Enum.sort(numbers) == Enum.to_list(1..1_000)
  end

  test "an error is an atom" do
    assert {:error, :enoent} = DropInSocket.open(:route, {:path, "/run/netns/no-such-name"})
  end
end
