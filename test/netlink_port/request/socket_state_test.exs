defmodule NetlinkPort.Request.SocketStateTest do
  use NetlinkPort.Case, async: true

  import NetlinkPort.Nodes

  alias NetlinkPort.Remote
  alias NetlinkPort.Request.SocketState

  @getlink <<0::32, 1::32-native, 0::64>>
  # What may be left of sockets that have ended, beside what is kept of open ones.
  @few 40

  defp kept, do: for({{SocketState, _server, what}, _state} <- Process.get(), do: what)

  defp asked!(server, opts) do
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    assert {:ok, [_link]} = NetlinkPort.request(socket, 18, @getlink)
    socket
  end

  defp close_elsewhere(socket),
    do: fn -> NetlinkPort.close(socket) end |> Task.async() |> Task.await()

  describe "a process forgets what it keeps" do
    test "of sockets that another process has closed" do
      server = start_server!()

      for n <- 1..200, active <- [false, true] do
        socket = asked!(server, active: active)
        :ok = close_elsewhere(socket)
        assert {n, length(kept())} <= {n, @few}
      end
    end

    @tag :root
    test "of sockets whose namespace is gone" do
      server = start_server!()

      for _ <- 1..60 do
        netns = netns!()
        socket = asked!(server, netns: {:name, netns}, close_on: :namespace_gone)
        ip!(["netns", "del", netns])
        assert_receive {:netlink_closed, ^socket, :namespace_gone}, within(5_000)
      end

      assert length(kept()) <= @few
    end

    test "of servers that have ended, and of their sockets" do
      for _ <- 1..40 do
        server = start_server!()
        sockets = for active <- [false, true], do: asked!(server, active: active)
        signal!(os_pid(server), "KILL")
        for socket <- sockets, do: assert_receive({:netlink_closed, ^socket, _}, within(5_000))
      end

      assert length(kept()) <= @few
    end

    @tag :root
    test "of sockets on another node" do
      distributed!()
      {_peer, node} = peer!()
      name = :"server-#{System.unique_integer([:positive])}"
      Node.spawn(node, Remote, :run_a_server, [self(), name])
      assert_receive {:started, server}, within(15_000)

      for _ <- 1..60, do: close_elsewhere(asked!(server, active: false))
      assert length(kept()) <= @few
    end
  end

  describe "a process remembers" do
    test "what it keeps of open sockets, however many others end" do
      server = start_server!()

      open =
        for n <- 1..100 do
          {:ok, socket} = NetlinkPort.open(server, :route, active: false)
          :ok = SocketState.number(socket, n)
          :ok = SocketState.late(socket, %{n => :answers})
          socket
        end

      for _ <- 1..100, do: close_elsewhere(asked!(server, active: false))
      assert Enum.map(open, &SocketState.next/1) == Enum.to_list(1..100)
      assert Enum.map(open, &SocketState.late/1) == for(n <- 1..100, do: %{n => :answers})
      assert length(kept()) <= 2 * (100 + @few)
    end

    test "the dump that a stream reads, so that the stream tells how its socket ended" do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, active: false)

      error =
        assert_raise Error, fn ->
          for _message <- NetlinkPort.stream(socket, 18, <<0::128>>) do
            :ok = close_elsewhere(socket)
            for _ <- 1..@few, do: close_elsewhere(asked!(server, active: false))
          end
        end

      assert {error.stage, error.reason} == {:info, :ebadf}
    end
  end
end
