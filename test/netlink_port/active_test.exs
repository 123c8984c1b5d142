defmodule NetlinkPort.ActiveTest do
  # The modes of `active`, with the meaning of inet:setopts/2, and ownership, on real sockets.
  use NetlinkPort.Case, async: true

  @moduletag :root

  setup do
    %{server: start_server!(), netns: netns!()}
  end

  # Sends one request. Its answer carries this sequence number.
  defp ask(socket, sequence),
    do: :ok = NetlinkPort.send(socket, Rtnl.getlink(1, sequence), wait: true)

  defp sequence(datagram) do
    [{_type, sequence, _payload} | _] = Rtnl.messages(datagram)
    sequence
  end

  # Waits until the answers to earlier requests have been delivered, as far as the mode lets them through.
  defp settle(socket), do: {:ok, _} = NetlinkPort.info(socket)

  test "active: true sends every datagram as a message", context do
    socket = socket!(context, active: true)
    for n <- 1..10, do: ask(socket, n)

    for n <- 1..10 do
      assert_receive {:netlink, ^socket, datagram}
      assert sequence(datagram) == n
    end

    assert {:error, %Error{stage: :recv, reason: :einval}} = NetlinkPort.recv(socket, 0)
  end

  test "active: false sends none; recv returns them in order", context do
    socket = socket!(context, active: false)
    for n <- 1..3, do: ask(socket, n)

    for n <- 1..3 do
      assert {:ok, datagram} = NetlinkPort.recv(socket, within(1_000))
      assert sequence(datagram) == n
    end

    refute_received {:netlink, _, _}
    assert {:error, %Error{stage: :recv, reason: :etimedout}} = NetlinkPort.recv(socket, 0)
    assert {:error, %Error{reason: :etimedout}} = NetlinkPort.recv(socket, 20)
  end

  test "active: :once sends one datagram, and no :netlink_passive", context do
    socket = socket!(context, active: :once)
    ask(socket, 1)
    ask(socket, 2)
    assert_receive {:netlink, ^socket, _datagram}
    settle(socket)
    refute_received {:netlink, ^socket, _datagram}
    refute_received {:netlink_passive, ^socket}
    assert NetlinkPort.getopts(socket, [:active]) == {:ok, active: false}
    assert NetlinkPort.setopts(socket, active: :once) == :ok
    assert_receive {:netlink, ^socket, datagram}
    assert sequence(datagram) == 2
  end

  test "a count sends that many datagrams, then :netlink_passive", context do
    socket = socket!(context, active: 2)
    for n <- 1..3, do: ask(socket, n)
    assert_receive {:netlink, ^socket, _}
    assert_receive {:netlink, ^socket, _}
    assert_receive {:netlink_passive, ^socket}
    settle(socket)
    refute_received {:netlink, ^socket, _}
    assert {:ok, datagram} = NetlinkPort.recv(socket, within(1_000))
    assert sequence(datagram) == 3
  end

  test "counts are added, as with gen_udp", context do
    socket = socket!(context, active: 5)
    {:ok, udp} = :gen_udp.open(0, active: 5)
    on_exit(fn -> :gen_udp.close(udp) end)

    for change <- [3, -2, 32_767, 32_761, 1, true, 7, :once, false, 4, -4, 0, 10] do
      ours = NetlinkPort.setopts(socket, active: change)
      theirs = :inet.setopts(udp, active: change)
      assert match?(:ok, ours) == match?(:ok, theirs), "active: #{inspect(change)}"
      {:ok, active: ours} = NetlinkPort.getopts(socket, [:active])
      {:ok, active: theirs} = :inet.getopts(udp, [:active])
      assert {change, ours} == {change, theirs}
      assert received?({:netlink_passive, socket}) == received?({:udp_passive, udp})
    end

    assert {:error, %Error{reason: :einval}} = NetlinkPort.setopts(socket, active: 32_767)
  end

  defp received?(message) do
    receive do
      ^message -> true
    after
      50 -> false
    end
  end

  test "recv with a timeout of 0 returns a kept datagram, however late the server is", context do
    socket = socket!(context, active: false)
    ask(socket, 1)
    settle(socket)
    :sys.suspend(context.server)
    reader = Task.async(fn -> NetlinkPort.recv(socket, 0) end)
    Process.sleep(50)
    :sys.resume(context.server)
    assert {:ok, datagram} = Task.await(reader, within(5_000))
    assert sequence(datagram) == 1
  end

  test "kept datagrams come first when the socket becomes active", context do
    socket = socket!(context, active: false)
    for n <- 1..3, do: ask(socket, n)
    settle(socket)
    assert NetlinkPort.setopts(socket, active: true) == :ok
    ask(socket, 4)

    for n <- 1..4 do
      assert_receive {:netlink, ^socket, datagram}
      assert sequence(datagram) == n
    end
  end

  test "callers of recv are served in order", context do
    socket = socket!(context, active: false)

    waiters =
      for n <- 1..5 do
        pid = spawn_reporting(fn -> NetlinkPort.recv(socket, within(5_000)) end)
        eventually!(fn -> waiting(context.server, socket) == n end)
        pid
      end

    for n <- 1..5, do: ask(socket, n)

    for {pid, n} <- Enum.with_index(waiters, 1) do
      assert_receive {:result, ^pid, {:ok, datagram}}
      assert sequence(datagram) == n
    end
  end

  test "a recv that has timed out, or whose caller has died, takes no datagram", context do
    socket = socket!(context, active: false)
    assert {:error, %Error{reason: :etimedout}} = NetlinkPort.recv(socket, 10)
    pid = spawn(fn -> NetlinkPort.recv(socket, :infinity) end)
    eventually!(fn -> waiting(context.server, socket) == 1 end)
    Process.exit(pid, :kill)
    eventually!(fn -> waiting(context.server, socket) == 0 end)
    ask(socket, 1)
    assert {:ok, datagram} = NetlinkPort.recv(socket, within(1_000))
    assert sequence(datagram) == 1
  end

  # The datagram is in the server's mailbox before the timeout of the wait.
  test "a recv that times out, or whose caller dies, while the server is suspended loses nothing",
       context do
    for finish <- [:timeout, :kill] do
      socket = socket!(context, active: false)
      # Long enough to be seen waiting, also on a busy machine.
      timeout = if finish == :timeout, do: within(1_000), else: :infinity
      pid = spawn(fn -> NetlinkPort.recv(socket, timeout) end)
      eventually!(fn -> waiting(context.server, socket) == 1 end)
      :sys.suspend(context.server)
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      eventually!(fn -> queued?(context.server, :data) end)

      if finish == :kill,
        do: Process.exit(pid, :kill),
        else: eventually!(fn -> queued?(context.server, :recv_timeout) end)

      :sys.resume(context.server)
      assert {:ok, datagram} = NetlinkPort.recv(socket, within(1_000))
      assert sequence(datagram) == 1
    end
  end

  defp queued?(server, kind) do
    {:messages, messages} = Process.info(server, :messages)

    Enum.any?(messages, fn
      {_port, {:data, _frame}} -> kind == :data
      {:recv_timeout, _handle, _monitor} -> kind == :recv_timeout
      _other -> false
    end)
  end

  test "a waiting recv returns EINVAL when the socket becomes active", context do
    socket = socket!(context, active: false)
    pid = spawn_reporting(fn -> NetlinkPort.recv(socket) end)
    eventually!(fn -> waiting(context.server, socket) == 1 end)
    assert NetlinkPort.setopts(socket, active: true) == :ok
    assert_receive {:result, ^pid, {:error, %Error{stage: :recv, reason: :einval}}}
    ask(socket, 1)
    assert_receive {:netlink, ^socket, _datagram}
  end

  test "wrong arguments raise in the caller, and the server goes on", context do
    socket = socket!(context, [])

    for wrong <- [
          fn -> NetlinkPort.send(socket, "x", wait: "yes") end,
          fn -> NetlinkPort.send(socket, ["x" | 1]) end,
          fn -> NetlinkPort.send(nil, "x") end,
          fn -> NetlinkPort.close(nil) end,
          fn -> NetlinkPort.recv(socket, -1) end,
          fn -> NetlinkPort.memberships(:socket) end,
          fn -> NetlinkPort.controlling_process(socket, nil) end,
          fn -> NetlinkPort.batch(socket, :requests) end,
          fn -> NetlinkPort.batch(socket, [{18, [], ""} | :requests]) end,
          fn -> NetlinkPort.open(1, :route, []) end,
          fn -> NetlinkPort.open(context.server, :route) end,
          fn -> NetlinkPort.info("server") end,
          fn -> NetlinkPort.socket([], 1) end,
          fn -> NetlinkPort.setopts(socket, filter: List.duplicate({6, 0, 0, 0}, 2_000_000)) end
        ] do
      assert_raise ArgumentError, wrong
    end

    assert NetlinkPort.Native.close_fd(1, 1) == :ok
    assert {:error, _} = GenServer.call(context.server, :bogus)
    GenServer.cast(context.server, :bogus)
    ask(socket, 1)
    assert_receive {:netlink, ^socket, _datagram}
  end

  defp waiting(server, socket) do
    entry = :sys.get_state(server).sockets.entries[Socket.handle(socket)]
    length(NetlinkPort.Server.Delivery.waiters(entry.delivery))
  end

  test "a send that fails later is a message to the owner, or the error of the next recv",
       context do
    active = socket!(context, [])
    # A datagram larger than the send buffer.
    large = :binary.copy(<<0>>, 1_000_000)
    assert NetlinkPort.send(active, large) == :ok
    assert_receive {:netlink_error, ^active, %Error{stage: :send, reason: :emsgsize}}

    assert {:error, %Error{stage: :send, reason: :emsgsize}} =
             NetlinkPort.send(active, large, wait: true)

    passive = socket!(context, active: false)
    assert NetlinkPort.send(passive, large) == :ok

    assert {:error, %Error{stage: :send, reason: :emsgsize}} =
             NetlinkPort.recv(passive, within(1_000))

    # A datagram beyond the limit of frames is not even sent to the helper.
    huge = :binary.copy(<<0>>, 17_000_000)
    assert {:error, %Error{stage: :send, reason: :emsgsize}} = NetlinkPort.send(passive, huge)
    ask(passive, 1)
    assert {:ok, _datagram} = NetlinkPort.recv(passive, within(1_000))
  end

  test "close sends no message, and later calls are EBADF", context do
    socket = socket!(context, groups: [1])
    waiting = socket!(context, active: false)
    pid = spawn_reporting(fn -> NetlinkPort.recv(waiting) end)
    eventually!(fn -> waiting(context.server, waiting) == 1 end)

    for socket <- [socket, waiting] do
      assert NetlinkPort.close(socket) == :ok
      assert NetlinkPort.close(socket) == :ok
    end

    assert_receive {:result, ^pid, {:error, %Error{reason: :ebadf}}}
    ip!(["-n", context.netns, "link", "add", "br0", "type", "bridge"])
    refute_received _any

    for failed <- [
          NetlinkPort.send(socket, "x"),
          NetlinkPort.send(socket, "x", wait: true),
          NetlinkPort.recv(socket, 0),
          NetlinkPort.setopts(socket, active: true),
          NetlinkPort.setopts(socket, rcvbuf: 1),
          NetlinkPort.getopts(socket, [:active]),
          NetlinkPort.getopts(socket, [:rcvbuf]),
          NetlinkPort.join(socket, 1),
          NetlinkPort.leave(socket, 1),
          NetlinkPort.memberships(socket),
          NetlinkPort.info(socket),
          NetlinkPort.controlling_process(socket, self())
        ] do
      assert {:error, %Error{reason: :ebadf}} = failed
    end
  end

  describe "a socket" do
    test "can belong to another process from the start", context do
      test = self()
      owner = spawn(fn -> receive do: (message -> send(test, {:owner_got, message})) end)
      socket = socket!(context, owner: owner)
      ask(socket, 1)
      assert_receive {:owner_got, {:netlink, ^socket, _datagram}}
    end

    test "is closed when its owner ends, and no other socket is", context do
      mine = socket!(context, [])
      before = fds(context.server)
      owner = idle_process()
      sockets = for _ <- 1..20, do: socket!(context, owner: owner)
      assert fds(context.server) == before + 20
      Process.exit(owner, :kill)
      eventually!(fn -> fds(context.server) == before end)

      for socket <- sockets do
        assert {:error, %Error{reason: :ebadf}} = NetlinkPort.send(socket, "x")
      end

      ask(mine, 1)
      assert_receive {:netlink, ^mine, _datagram}
    end

    test "is closed if its owner had ended before", context do
      owner = idle_process()
      before = fds(context.server)
      Process.exit(owner, :kill)
      {:ok, _socket} = NetlinkPort.open(context.server, :route, owner: owner)
      eventually!(fn -> fds(context.server) == before end)
    end

    test "can be given away only by the owner", context do
      socket = socket!(context, [])
      other = idle_process()
      pid = spawn_reporting(fn -> NetlinkPort.controlling_process(socket, other) end)
      assert_receive {:result, ^pid, {:error, %Error{reason: :eperm}}}

      dead = idle_process()
      Process.exit(dead, :kill)
      eventually!(fn -> not Process.alive?(dead) end)
      assert {:error, %Error{reason: :esrch}} = NetlinkPort.controlling_process(socket, dead)
      ask(socket, 1)
      assert_receive {:netlink, ^socket, _datagram}
      assert NetlinkPort.controlling_process(socket, self()) == :ok
      assert NetlinkPort.controlling_process(socket, other) == :ok
      assert {:ok, %{owner: ^other}} = NetlinkPort.info(socket)
    end

    # A new owner that takes one datagram at a time asks for the next as soon as it has the first from the old
    # owner's mailbox, before it owns the socket. The soak found this.
    test "in a change of owner keeps its datagrams for the new owner, which may set active: already",
         context do
      for mode <- [true, :once, 5] do
        socket = socket!(context, active: false)
        server = socket.helper.server
        new = relaying_process(self())
        assert {:ok, nil} = GenServer.call(server, {:pause, Socket.handle(socket)})
        ask(socket, 1)
        task = Task.async(fn -> NetlinkPort.setopts(socket, active: mode) end)
        assert Task.await(task, within(5_000)) == :ok
        eventually!(fn -> match?({:ok, %{kept: 1}}, NetlinkPort.info(socket)) end)
        refute_received {:netlink, ^socket, _datagram}
        assert {:ok, nil} = GenServer.call(server, {:give, Socket.handle(socket), new, %{}})
        assert_receive {:heard, ^new, {:netlink, ^socket, _datagram}}
        NetlinkPort.close(socket)
      end
    end

    test "that is active ends a waiting recv with EINVAL when it changes owners", context do
      for mode <- [true, :once, 5] do
        socket = socket!(context, active: mode)
        server = socket.helper.server
        new = relaying_process(self())
        assert {:ok, nil} = GenServer.call(server, {:pause, Socket.handle(socket)})
        pid = spawn_reporting(fn -> NetlinkPort.recv(socket) end)
        eventually!(fn -> waiting(server, socket) == 1 end)
        assert {:ok, nil} = GenServer.call(server, {:give, Socket.handle(socket), new, %{}})
        assert_receive {:result, ^pid, {:error, %Error{stage: :recv, reason: :einval}}}
        ask(socket, 1)
        assert_receive {:heard, ^new, {:netlink, ^socket, _datagram}}
        NetlinkPort.close(socket)
      end
    end

    test "goes on with its owner if that gives up the change and sets active: again", context do
      socket = socket!(context, active: true)
      assert {:ok, nil} = GenServer.call(socket.helper.server, {:pause, Socket.handle(socket)})
      ask(socket, 1)
      assert NetlinkPort.setopts(socket, active: true) == :ok
      assert_receive {:netlink, ^socket, _datagram}
    end

    defp relaying_process(test) do
      spawn_link(fn -> relay(test) end)
    end

    defp relay(test) do
      receive do: (message -> send(test, {:heard, self(), message}))
      relay(test)
    end

    # Datagrams arrive while the socket is passed from process to process. At the end each is in exactly one
    # mailbox, in order. The race that gen_udp:controlling_process/2 guards against is that of datagrams that are
    # in a mailbox when the socket is passed on.
    test "loses no datagram, and keeps their order, while it changes owners", context do
      total = 3_000
      test = self()
      final = spawn_link(fn -> gather(test, [], total) end)

      first =
        spawn_link(fn ->
          receive do: ({:socket, socket} -> hand_round(socket, final, 40))
          receive do: (:stop -> :ok)
        end)

      # A window for all of them: on a busy machine more datagrams come in one change of owner than the usual
      # window and the kernel's buffer hold.
      socket = socket!(context, owner: first, window: 16_000_000)
      sender = Task.async(fn -> for n <- 1..total, do: ask(socket, n) end)
      send(first, {:socket, socket})
      Task.await(sender, within(20_000))
      assert_receive {:gathered, sequences}, within(10_000)
      assert sequences == Enum.to_list(1..total)
    end

    # Passes the socket to a new process, which does the same, and at last to the final process.
    defp hand_round(socket, final, 0), do: :ok = NetlinkPort.controlling_process(socket, final)

    defp hand_round(socket, final, left) do
      # Lets some datagrams collect in this mailbox first.
      await_mail(20)

      next =
        spawn_link(fn ->
          receive do: (:go -> hand_round(socket, final, left - 1))
          receive do: (:stop -> :ok)
        end)

      :ok = NetlinkPort.controlling_process(socket, next)
      send(next, :go)
    end

    defp await_mail(0), do: :ok

    defp await_mail(tries) do
      case Process.info(self(), :message_queue_len) do
        {:message_queue_len, queued} when queued > 5 ->
          :ok

        _few ->
          Process.sleep(1)
          await_mail(tries - 1)
      end
    end

    defp gather(test, seen, 0), do: send(test, {:gathered, Enum.reverse(seen)})

    defp gather(test, seen, left) do
      receive do
        {:netlink, _socket, datagram} -> gather(test, [sequence(datagram) | seen], left - 1)
      end
    end
  end

  describe "sockets of many processes" do
    test "get their own replies, with 64 processes", context do
      tasks =
        for n <- 1..64 do
          Task.async(fn ->
            socket = socket!(context, active: false)

            for round <- 1..50 do
              sequence = n * 1_000 + round
              :ok = NetlinkPort.send(socket, Rtnl.getlink(1, sequence))
              {:ok, datagram} = NetlinkPort.recv(socket, within(10_000))
              sequence(datagram) == sequence
            end
          end)
        end

      assert tasks |> Task.await_many(within(60_000)) |> List.flatten() |> Enum.all?()
    end
  end

  test "a datagram larger than the helper's receive buffer is an error, and the next one of that size fits",
       context do
    opts = [netns: {:name, context.netns}, user_peers: true, active: false]

    {:ok, to} =
      NetlinkPort.open(context.server, :usersock, opts ++ [rcvbuf: 20_000_000, bind: 99])

    {:ok, from} = NetlinkPort.open(context.server, :usersock, opts ++ [sndbuf: 20_000_000])

    # An ordinary user gets the size that wmem_max allows. The kernel doubles it and uses a part itself.
    {:ok, [sndbuf: sndbuf]} = NetlinkPort.getopts(from, [:sndbuf])
    assert_told_and_fits(from, to, min(sndbuf - 32, 3_000_000))
  end

  # The helper's receive buffer has one megabyte at first.
  defp assert_told_and_fits(from, to, size) when size < 1_048_576 do
    longer = <<0::size(size)-unit(8), 0>>

    assert {:error, %Error{reason: :emsgsize}} =
             NetlinkPort.send(from, longer, to: {99, 0}, wait: true)

    whole = :crypto.strong_rand_bytes(size)
    assert NetlinkPort.send(from, whole, to: {99, 0}) == :ok
    assert {:ok, ^whole, _metadata} = NetlinkPort.recv(to, within(2_000))
  end

  defp assert_told_and_fits(from, to, size) do
    large = :crypto.strong_rand_bytes(size)
    assert NetlinkPort.send(from, large, to: {99, 0}) == :ok

    assert {:error, %Error{reason: :emsgsize, length: ^size}} =
             NetlinkPort.recv(to, within(2_000))

    assert NetlinkPort.send(from, large, to: {99, 0}) == :ok
    assert {:ok, ^large, _metadata} = NetlinkPort.recv(to, within(2_000))
  end
end
