defmodule NetlinkPort.OwnersTest do
  # Owners and callers that die at the worst moment: nothing of theirs stays, and no other process notices.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # RTNLGRP_IPV4_ROUTE
  @route_group 7

  setup do
    server = start_server!(call_timeout: 60_000)
    %{server: server, netns: netns!(), helper: os_pid(server), before: fds(server)}
  end

  defp open!(context, opts) do
    opts = [netns: {:name, context.netns}, timeout: 60_000] ++ opts
    {:ok, socket} = NetlinkPort.open(context.server, :route, opts)
    socket
  end

  defp kill!(pid) do
    monitor = Process.monitor(pid)
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^pid, _reason}
  end

  defp assert_only(context, count) do
    eventually!(fn -> fds(context.server) == context.before + count end)
    assert {:ok, %{sockets: ^count}} = NetlinkPort.info(context.server)
  end

  test "an owner is killed while datagrams arrive: its socket is closed, another owner loses nothing",
       context do
    test = self()
    count = room!(context.server, 3_000)
    mine = open!(context, groups: [@route_group], rcvbuf: 8_000_000)

    owners =
      for _ <- 1..10 do
        spawn(fn ->
          socket = open!(context, groups: [@route_group])
          send(test, {:open, self()})
          receive do: ({:netlink, ^socket, _datagram} -> send(test, {:flowing, self()}))
          Process.sleep(:infinity)
        end)
      end

    for owner <- owners, do: assert_receive({:open, ^owner})
    lines = for n <- 1..count, do: "route add 10.0.#{div(n, 256)}.#{rem(n, 256)}/32 dev lo\n"
    batch = tmp_path!("batch")
    File.write!(batch, lines)
    storm = Task.async(fn -> ip!(["-n", context.netns, "-batch", batch]) end)

    for owner <- owners do
      assert_receive {:flowing, ^owner}, within(5_000)
      kill!(owner)
    end

    Task.await(storm, within(30_000))

    for n <- 1..count do
      assert_receive {:netlink, ^mine, datagram}, within(5_000)
      assert [{24, _sequence, route}] = Rtnl.messages(datagram)
      assert Rtnl.destination(route) == {10, 0, div(n, 256), rem(n, 256)}
    end

    assert_only(context, 1)
  end

  test "an owner that ends before its first message leaves nothing behind", context do
    test = self()

    for _ <- 1..20 do
      spawn(fn -> send(test, {:opened, open!(context, groups: [@route_group])}) end)
    end

    for _ <- 1..20 do
      assert_receive {:opened, socket}, within(5_000)
      closed? = &match?({:error, %Error{reason: :ebadf}}, &1)
      eventually!(fn -> closed?.(NetlinkPort.info(socket)) end)
    end

    mine = open!(context, active: false)
    assert Rtnl.link_names(mine) == ["lo"]
    assert_only(context, 1)
  end

  test "callers are killed while they wait: no socket stays open, no answer reaches another caller",
       context do
    mine = open!(context, active: false)
    # Their end does not close the sockets, which would stay.
    owner = idle_process()
    signal!(context.helper, :STOP)

    callers =
      for n <- 1..20 do
        spawn(fn ->
          case rem(n, 3) do
            0 -> open!(context, owner: owner)
            1 -> NetlinkPort.getopts(mine, [:rcvbuf])
            2 -> NetlinkPort.memberships(mine)
          end
        end)
      end

    # Each caller has an entry on the board, beside that of the socket.
    eventually!(fn -> on_the_way(context.server) == 20 end, 5_000)
    Enum.each(callers, &kill!/1)
    signal!(context.helper, :CONT)

    assert NetlinkPort.memberships(mine) == {:ok, []}
    assert NetlinkPort.getopts(mine, [:ext_ack]) == {:ok, ext_ack: true}
    assert Rtnl.link_names(mine) == ["lo"]
    assert_only(context, 1)
  end

  defp on_the_way(server) do
    board = :sys.get_state(server).helper.board
    Enum.count(:ets.tab2list(board), &is_integer(elem(&1, 0)))
  end

  test "a new owner dies while it is given a socket: the socket closes", context do
    socket = open!(context, groups: [@route_group])
    heir = idle_process()
    :sys.suspend(context.server)

    # This process is the owner, and waits for the server until the new owner is dead.
    spawn(fn ->
      eventually!(fn -> queued?(context.server, :pause) end)
      kill!(heir)
      :sys.resume(context.server)
    end)

    assert NetlinkPort.controlling_process(socket, heir) == :ok
    eventually!(fn -> not Process.alive?(heir) end)
    assert_only(context, 0)
    assert {:error, %Error{reason: :ebadf}} = NetlinkPort.info(socket)
  end

  defp queued?(server, request) do
    {:messages, messages} = Process.info(server, :messages)
    Enum.any?(messages, &match?({:"$gen_call", _from, {^request, _handle}}, &1))
  end
end
