defmodule NetlinkPort.StatsTest do
  # The result of stats/1: exact counts of datagrams, and where datagrams wait.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # RTM_GETLINK of interface 1 with NLM_F_ACK: one datagram to the kernel, two back.
  @getlink 18
  @payload <<0::32, 1::32-native, 0::64>>

  defp stats!(of) do
    {:ok, stats} = NetlinkPort.stats(of)
    stats
  end

  defp drain(socket, datagrams \\ []) do
    case NetlinkPort.recv(socket, 0) do
      {:ok, datagram} -> drain(socket, [datagram | datagrams])
      {:error, %Error{reason: :etimedout}} -> datagrams
    end
  end

  describe "stats/1 of a socket" do
    test "counts datagrams and bytes exactly, in both directions" do
      netns = netns!()
      server = start_server!()
      opts = [netns: {:name, netns}, groups: [1], active: false]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)

      assert %{received: 0, received_bytes: 0, sent: 0, sent_bytes: 0, drops: 0, foreign: 0} =
               stats!(socket)

      request =
        NetlinkPort.Message.encode(%NetlinkPort.Message{type: 18, flags: 5, payload: @payload})

      request = IO.iodata_to_binary(request)
      for _ <- 1..10, do: :ok = NetlinkPort.send(socket, request, wait: true)
      ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
      eventually!(fn -> stats!(socket).kept >= 21 end)
      stats = stats!(socket)
      assert {stats.sent, stats.sent_bytes} == {10, 10 * byte_size(request)}
      datagrams = drain(socket)
      assert stats.received == length(datagrams)
      assert stats.received_bytes == IO.iodata_length(datagrams)
      assert stats.kept == length(datagrams)
      assert stats!(socket).kept == 0
    end

    test "does not count a datagram that the kernel refuses" do
      netns = netns!()
      server = start_server!()
      opts = [netns: {:name, netns}, active: false, sndbuf: 4_608]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      long = :binary.copy(<<0>>, 65_536)
      assert {:error, %Error{reason: :emsgsize}} = NetlinkPort.send(socket, long, wait: true)
      assert %{sent: 0, sent_bytes: 0} = stats!(socket)
    end

    test "counts datagrams to and from peers in user space" do
      server = start_server!()
      opts = [user_peers: true, active: false]
      {:ok, one} = NetlinkPort.open(server, :usersock, opts)
      {:ok, two} = NetlinkPort.open(server, :usersock, opts)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(two)
      :ok = NetlinkPort.send(one, "hello", to: {port_id, 0})
      assert {:ok, "hello", _metadata} = NetlinkPort.recv(two, within(5_000))
      assert %{sent: 1, sent_bytes: 5, received: 0} = stats!(one)
      assert %{sent: 0, received: 1, received_bytes: 5} = stats!(two)
    end

    test "shows where datagrams wait: in the window, then in the kernel" do
      netns = netns!()
      server = start_server!()
      opts = [netns: {:name, netns}, groups: [5], active: false, window: 1_000]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      stats = stats!(socket)
      assert %{window: 1_000, window_left: 1_000, queued_bytes: 0, kept: 0} = stats
      assert stats.queue_limit > 0
      ip_batch!(netns, for(n <- 1..50, do: "addr add 10.0.0.#{n}/32 dev lo"))
      eventually!(fn -> stats!(socket).window_left == 0 end)
      stats = stats!(socket)
      assert stats.kept == stats.received
      assert stats.received < 50
      assert stats.queued_bytes in 1..stats.queue_limit
    end

    test "counts drops once the overrun is reported" do
      netns = netns!()
      server = start_server!()
      opts = [netns: {:name, netns}, groups: [5], active: false, window: 1, rcvbuf: 4_096]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      ip_batch!(netns, for(n <- 1..100, do: "addr add 10.0.0.#{n}/32 dev lo"))
      dropped = until_overrun(socket)
      assert %{drops: ^dropped, received: received} = stats!(socket)
      assert received + dropped == 100
    end

    test "that is closed is EBADF" do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      :ok = NetlinkPort.close(socket)
      assert {:error, %Error{reason: :ebadf}} = NetlinkPort.stats(socket)
    end
  end

  defp until_overrun(socket) do
    case NetlinkPort.recv(socket, within(5_000)) do
      {:ok, _datagram} -> until_overrun(socket)
      {:error, %Error{reason: :enobufs, dropped: dropped}} -> dropped
    end
  end

  describe "stats/1 of a server" do
    test "shows the resources of the helper, and each socket" do
      netns = netns!()
      name = :"stats_#{System.unique_integer([:positive])}"
      server = start_server!(name: name)
      {:ok, one} = NetlinkPort.open(name, :route, netns: {:name, netns})
      {:ok, two} = NetlinkPort.open(name, :generic, active: false)
      {:ok, _link} = NetlinkPort.request(one, @getlink, @payload)
      stats = stats!(name)
      assert %{server: ^server, name: ^name, restarts: 0, outgoing: 0, malformed: 0} = stats
      assert stats.os_pid == os_pid(name)
      # A lower bound that any program exceeds, and an upper bound that the helper does not.
      assert stats.rss in 100_000..50_000_000
      assert is_integer(stats.cpu) and is_integer(stats.uptime)
      assert stats.fds < stats.max_fds
      assert stats.frames > 0

      assert [%{socket: ^one, sent: 1, owner: owner} = first, %{socket: ^two, sent: 0}] =
               stats.sockets

      assert owner == self()
      assert first.inode == inode(netns_path(netns))
      assert Map.keys(first) == Map.keys(stats!(one))
    end

    test "leaves out a socket that is closed meanwhile" do
      server = start_server!()

      opener =
        spawn_link(fn ->
          for _ <- Stream.cycle([:again]) do
            {:ok, socket} = NetlinkPort.open(server, :route, [])
            NetlinkPort.close(socket)
          end
        end)

      for _ <- 1..300, do: assert({:ok, %{sockets: _}} = NetlinkPort.stats(server))
      Process.unlink(opener)
      Process.exit(opener, :kill)
    end

    test "shows many sockets, and leaves no message in the caller's mailbox" do
      server = start_server!()
      for _ <- 1..100, do: {:ok, _socket} = NetlinkPort.open(server, :route, [])
      Process.flag(:trap_exit, true)
      {:ok, stats} = NetlinkPort.stats(server)
      handles = for socket <- stats.sockets, do: socket.handle
      assert length(handles) == 100
      assert handles == Enum.sort(handles)
      refute_receive {_tag, _pid, _reason}, 50
    end

    test "that does not run is ESRCH" do
      assert {:error, %Error{stage: :thread, reason: :esrch}} = NetlinkPort.stats(:no_such_server)
    end
  end

  test "the servers of a node are listed while they run" do
    named = start_server!(name: :"servers_#{System.unique_integer([:positive])}")
    unnamed = start_server!()
    assert [] == [named, unnamed] -- NetlinkPort.Server.OwnerNotifier.servers()
    GenServer.stop(unnamed)
    eventually!(fn -> unnamed not in NetlinkPort.Server.OwnerNotifier.servers() end)
    assert named in NetlinkPort.Server.OwnerNotifier.servers()
  end
end
