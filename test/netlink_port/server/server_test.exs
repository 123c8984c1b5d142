defmodule NetlinkPort.ServerTest do
  # Callers, owners and helpers when one of them dies, hangs or is stopped.
  use NetlinkPort.Case, async: true

  @moduletag :root

  defp supervise!(opts) do
    name = :"netlink_#{System.unique_integer([:positive])}"
    children = [{NetlinkPort, [name: name] ++ opts}]

    start_supervised!(%{
      id: name,
      type: :supervisor,
      start: {Supervisor, :start_link, [children, [strategy: :one_for_one, max_restarts: 100]]}
    })

    name
  end

  defp restarted!(name, old) do
    eventually!(fn -> Process.whereis(name) not in [nil, old] end)
    Process.whereis(name)
  end

  defp closed!(socket) do
    assert_receive {:netlink_closed, ^socket, reason}, within(5_000)
    reason
  end

  # Datagrams in flight may come before and after the message about the end, which comes once.
  defp refute_closed_again(socket), do: refute_receive({:netlink_closed, ^socket, _}, 100)

  describe "a helper that is killed" do
    test "while calls wait and events arrive: every call is answered, each owner is notified once" do
      netns = netns!()
      name = supervise!(call_timeout: 10_000)
      server = Process.whereis(name)
      helper = os_pid(server)

      sockets =
        for _ <- 1..10 do
          {:ok, socket} = NetlinkPort.open(name, :route, netns: {:name, netns}, groups: [5])
          socket
        end

      {:ok, passive} = NetlinkPort.open(name, :route, netns: {:name, netns}, active: false)

      callers =
        for n <- 1..32 do
          spawn_reporting(fn ->
            case rem(n, 4) do
              0 ->
                NetlinkPort.recv(passive)

              1 ->
                until_it_fails(fn -> NetlinkPort.send(passive, Rtnl.getlink(1, n), wait: true) end)

              2 ->
                until_it_fails(fn -> NetlinkPort.open(name, :route, netns: {:name, netns}) end)

              3 ->
                until_it_fails(fn -> NetlinkPort.getopts(passive, [:rcvbuf]) end)
            end
          end)
        end

      lines = for n <- 1..200, do: "addr add 10.0.0.#{n}/32 dev lo"
      ip_batch!(netns, lines)
      assert_receive {:netlink, _socket, _datagram}
      signal!(helper, :KILL)

      # A command that meets the helper's end breaks the pipe, and then no status is reported.
      reasons = [{:helper_exit, 137}, {:helper_exit, :epipe}]
      for socket <- [passive | sockets], do: assert(closed!(socket) in reasons)
      for socket <- [passive | sockets], do: refute_closed_again(socket)

      for pid <- callers do
        assert_receive {:result, ^pid, result}, within(5_000)
        assert match?({:error, %Error{stage: :thread}}, result) or match?({:ok, _}, result)
      end

      # The restarted server works.
      restarted!(name, server)
      assert os_pid(name) != helper
      {:ok, socket} = NetlinkPort.open(name, :route, netns: {:name, netns}, active: false)
      assert "lo" in Rtnl.link_names(socket)

      # An earlier socket reaches nothing.
      old = hd(sockets)
      assert Socket.handle(old) < Socket.handle(socket)
      assert {:error, %Error{stage: :thread, reason: :epipe}} = NetlinkPort.send(old, "x")
      assert {:error, %Error{stage: :thread}} = NetlinkPort.setopts(old, rcvbuf: 1)
      assert NetlinkPort.close(old) == :ok
      assert {:error, %Error{reason: :ebadf}} = NetlinkPort.socket(name, Socket.handle(old))
    end

    defp until_it_fails(fun) do
      case fun.() do
        {:error, _error} = failed -> failed
        _ok -> until_it_fails(fun)
      end
    end

    test "by SIGSEGV is reported with 139; SIGTERM, SIGINT and SIGHUP do not end it" do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      for name <- [:TERM, :INT, :HUP], do: signal!(helper, name)
      assert os_pid(server) == helper
      signal!(helper, :SEGV)
      assert closed!(socket) == {:helper_exit, 139}
    end
  end

  describe "a helper that cannot return to its own namespace" do
    test "ends with exit code 80, so that no later socket is in the wrong namespace" do
      netns = netns!()

      # setns(2) is called once at start, a second time to leave home, and a third time to come back.
      server = start_injected!("setns EPERM 3")
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
      assert {error.stage, error.reason} == {:thread, :epipe}
      assert closed!(socket) == {:helper_exit, 80}
    end
  end

  describe "a helper that is stopped" do
    test "is killed after the deadline: callers get ETIMEDOUT, and the restarted server works" do
      name = supervise!(call_timeout: within(300))
      server = Process.whereis(name)
      helper = os_pid(server)
      {:ok, socket} = NetlinkPort.open(name, :route, [])
      signal!(helper, :STOP)

      waiting = spawn_reporting(fn -> NetlinkPort.getopts(socket, [:rcvbuf]) end)
      assert {:error, error} = NetlinkPort.open(name, :route, [])
      assert {error.stage, error.reason} == {:thread, :etimedout}
      assert_receive {:result, ^waiting, {:error, %Error{stage: :thread, reason: :etimedout}}}

      assert closed!(socket) == :stuck
      refute_closed_again(socket)
      eventually!(fn -> not running?(helper) end)
      restarted!(name, server)
      assert {:ok, _socket} = NetlinkPort.open(name, :route, [])
    end

    test "is found by the ping when no call is made" do
      server = start_server!(call_timeout: within(200), ping_interval: within(100))
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      # It answers pings, and so is alive.
      refute_receive {:netlink_closed, ^socket, _}, within(500)
      signal!(helper, :STOP)
      assert closed!(socket) == :stuck
      eventually!(fn -> not running?(helper) end)
    end

    test "and continued in time is not killed; its late answer reaches no other caller" do
      server = start_server!(call_timeout: within(400))
      {:ok, socket} = NetlinkPort.open(server, :route, active: false)
      before = fds(server)
      helper = os_pid(server)
      signal!(helper, :STOP)
      assert {:error, %Error{reason: :etimedout}} = NetlinkPort.open(server, :route, [])
      signal!(helper, :CONT)
      # A socket that was made after its caller had given up is closed.
      eventually!(fn -> fds(server) == before end)
      refute_received _any
      assert os_pid(server) == helper
      assert {:ok, [ext_ack: true]} = NetlinkPort.getopts(socket, [:ext_ack])
    end

    test "and continued before any deadline loses no call, command or event" do
      netns = netns!()
      server = start_server!(call_timeout: 60_000)
      opts = [netns: {:name, netns}, timeout: 60_000]
      count = room!(server, 500)
      {:ok, events} = NetlinkPort.open(server, :route, [groups: [7], rcvbuf: 8_000_000] ++ opts)
      {:ok, passive} = NetlinkPort.open(server, :route, [active: false] ++ opts)
      helper = os_pid(server)
      signal!(helper, :STOP)

      callers =
        for n <- 1..30 do
          spawn_reporting(fn ->
            case rem(n, 3) do
              0 -> NetlinkPort.open(server, :route, opts ++ [owner: server])
              1 -> NetlinkPort.getopts(passive, [:ext_ack])
              2 -> NetlinkPort.recv(passive, 60_000)
            end
          end)
        end

      for n <- 1..10, do: :ok = NetlinkPort.send(passive, Rtnl.getlink(1, n))

      ip_batch!(
        netns,
        for(n <- 1..count, do: "route add 10.0.#{div(n, 250)}.#{rem(n, 250)}/32 dev lo")
      )

      refute_received {:result, _caller, _answer}
      signal!(helper, :CONT)

      answers =
        for caller <- callers do
          assert_receive {:result, ^caller, {:ok, answer}}, within(10_000)
          answer
        end

      assert Enum.count(answers, &match?(%Socket{}, &1)) == 10
      assert Enum.count(answers, &(&1 == [ext_ack: true])) == 10
      sequences = for answer when is_binary(answer) <- answers, do: sequence(answer)
      assert Enum.sort(sequences) == Enum.to_list(1..10)

      for n <- 1..count do
        assert_receive {:netlink, ^events, datagram}, within(10_000)
        assert [{24, _sequence, route}] = Rtnl.messages(datagram)
        assert Rtnl.destination(route) == {10, 0, div(n, 250), rem(n, 250)}
      end

      assert os_pid(server) == helper
    end

    defp sequence(datagram), do: datagram |> Rtnl.messages() |> hd() |> elem(1)

    test "is not suspected when a caller's timeout is shorter than call_timeout:" do
      server = start_server!(call_timeout: 60_000)
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      signal!(helper, :STOP)
      impatient = {:error, :etimedout}
      opts = [wait: true, timeout: 0]
      assert impatient == reason(NetlinkPort.send(socket, Rtnl.getlink(1, 1), opts))
      assert impatient == reason(NetlinkPort.send(socket, "x", to: {1, 0}, timeout: 0))
      assert impatient == reason(NetlinkPort.open(server, :route, timeout: 50))
      refute_receive {:netlink_closed, ^socket, _}, 1_500
      signal!(helper, :CONT)
      assert os_pid(server) == helper
      assert {:ok, %{sockets: 1}} = NetlinkPort.info(server)
    end

    defp reason({:error, %Error{stage: :thread, reason: reason}}), do: {:error, reason}

    test "does not suspend senders: they get EAGAIN at their deadline, and later sends work" do
      server = start_server!(call_timeout: 10_000, ping_interval: :infinity)
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      signal!(helper, :STOP)
      datagram = :binary.copy(<<0>>, 1_000_000)
      refused = send_until_refused(socket, datagram, 100)
      assert {:error, %Error{stage: :send, reason: :eagain}} = refused
      signal!(helper, :CONT)
      eventually!(fn -> NetlinkPort.send(socket, "x", timeout: 100) == :ok end)
      assert {:ok, _info} = NetlinkPort.info(server)
    end

    test "while a socket is closed: its owner is sent no message, also when the helper is killed" do
      server = start_server!(call_timeout: 60_000, ping_interval: :infinity)
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      {:ok, other} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      signal!(helper, :STOP)
      closer = spawn_reporting(fn -> NetlinkPort.close(socket) end)
      # From the command on it is closed for everybody.
      eventually!(fn -> match?({:error, %{reason: :ebadf}}, NetlinkPort.send(socket, "x")) end)
      refute_received {:result, ^closer, _early}
      signal!(helper, :KILL)
      assert closed!(other) == {:helper_exit, 137}
      assert_receive {:result, ^closer, :ok}
      refute_received {:netlink_closed, ^socket, _reason}
    end

    test "and continued: a socket is closed, though the process that closed it has ended or given up" do
      server = start_server!(call_timeout: within(100), ping_interval: :infinity)
      before = fds(server)
      opts = [owner: server, timeout: 60_000]
      sockets = for _ <- 1..2, do: elem(NetlinkPort.open(server, :route, opts), 1)
      [killed, given_up] = sockets
      helper = os_pid(server)

      # The helper has to answer within a second of the call that was given up: no program is started for that.
      continue = ["-c", "read _; kill -CONT #{helper}"]
      continue = Port.open({:spawn_executable, "/bin/sh"}, [:exit_status, args: continue])
      signal!(helper, :STOP)
      closer = spawn(fn -> NetlinkPort.close(killed) end)
      eventually!(fn -> match?({:error, %{reason: :ebadf}}, NetlinkPort.send(killed, "x")) end)
      Process.exit(closer, :kill)
      assert :ok = NetlinkPort.close(given_up)
      Port.command(continue, "\n")
      assert_receive {^continue, {:exit_status, 0}}
      eventually!(fn -> fds(server) == before end)
      assert %{entries: none, monitors: none} = :sys.get_state(server).sockets
      assert none == %{}
      eventually!(fn -> not awaited?(server) end)
    end

    test "and its port is busy: a close is not lost with the process that closes" do
      server = start_server!(call_timeout: 60_000, ping_interval: :infinity)
      before = fds(server)
      {:ok, socket} = NetlinkPort.open(server, :route, owner: server)
      helper = os_pid(server)
      signal!(helper, :STOP)
      refused = send_until_refused(socket, :binary.copy(<<0>>, 1_000_000), 100)
      assert {:error, %Error{stage: :send, reason: :eagain}} = refused
      closer = spawn(fn -> NetlinkPort.close(socket) end)
      eventually!(fn -> :sys.get_state(server).sockets.entries == %{} end)
      Process.exit(closer, :kill)
      signal!(helper, :CONT)
      eventually!(fn -> fds(server) == before end)
    end

    defp send_until_refused(_socket, _datagram, 0), do: :never

    defp send_until_refused(socket, datagram, tries) do
      case NetlinkPort.send(socket, datagram, timeout: 100) do
        :ok -> send_until_refused(socket, datagram, tries - 1)
        refused -> refused
      end
    end
  end

  describe "a server that is suspended" do
    test "for longer than every deadline keeps its helper, and goes on" do
      server = start_server!(call_timeout: within(200), ping_interval: within(50))
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      :sys.suspend(server)
      spawn_reporting(fn -> NetlinkPort.open(server, :route, []) end)
      Process.sleep(within(600))
      :sys.resume(server)
      refute_receive {:netlink_closed, ^socket, _}, within(500)
      assert os_pid(server) == helper
    end
  end

  describe "a server that ends" do
    test "in order carries out every earlier command" do
      netns = netns!()
      server = start_server!()
      helper = os_pid(server)
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      # RTM_NEWLINK of a few hundred bridges: IFLA_IFNAME (3) and IFLA_LINKINFO (18).
      for n <- 1..200, do: :ok = NetlinkPort.send(socket, Rtnl.new_bridge("b#{n}", n))
      :ok = GenServer.stop(server, :shutdown)
      assert closed!(socket) == :shutdown
      refute_closed_again(socket)
      eventually!(fn -> not running?(helper) end)
      links = ip!(["-n", netns, "-br", "link"])
      for n <- 1..200, do: assert(links =~ ~r/^b#{n} /m)
    end

    test "with a stopped helper and a full queue kills the helper" do
      server = start_server!(call_timeout: 60_000)
      helper = os_pid(server)
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      signal!(helper, :STOP)
      {:error, _} = send_until_refused(socket, :binary.copy(<<0>>, 1_000_000), 100)
      :ok = GenServer.stop(server, :shutdown, 10_000)
      assert closed!(socket) == :shutdown
      eventually!(fn -> not running?(helper) end)
    end

    test "by a brutal kill: owners are notified once, and the helper ends, stopped or not" do
      for stopped? <- [false, true] do
        server = start_server!()
        helper = os_pid(server)
        {:ok, socket} = NetlinkPort.open(server, :route, [])
        waiting = spawn_reporting(fn -> NetlinkPort.open(server, :route, owner: self()) end)
        assert_receive {:result, ^waiting, {:ok, _}}
        if stopped?, do: signal!(helper, :STOP)
        pending = spawn_reporting(fn -> NetlinkPort.getopts(socket, [:rcvbuf]) end)
        Process.exit(server, :kill)
        assert closed!(socket) == :killed
        refute_closed_again(socket)
        assert_receive {:result, ^pending, answer}
        assert match?({:error, %Error{stage: :thread}}, answer) or match?({:ok, _}, answer)
        eventually!(fn -> not running?(helper) end)
      end
    end

    test "after its notifier was killed still notifies its owners" do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      notifier = :sys.get_state(server).notifier
      Process.exit(notifier, :kill)
      eventually!(fn -> :sys.get_state(server).notifier != notifier end)
      Process.exit(server, :kill)
      assert closed!(socket) == :killed
      refute_closed_again(socket)
    end
  end

  describe "a server" do
    test "whose supervisor is killed ends with its helper, and notifies the owners" do
      test = self()

      {:ok, supervisor} =
        Task.start(fn ->
          {:ok, _} = Supervisor.start_link([], strategy: :one_for_one, name: :doomed)
          Process.sleep(:infinity)
        end)

      on_exit(fn -> Process.exit(supervisor, :kill) end)
      eventually!(fn -> Process.whereis(:doomed) != nil end)
      {:ok, server} = Supervisor.start_child(:doomed, {NetlinkPort, name: nil})
      {:ok, socket} = NetlinkPort.open(server, :route, owner: test)
      helper = os_pid(server)
      Process.exit(Process.whereis(:doomed), :kill)
      assert closed!(socket) == :killed
      refute_closed_again(socket)
      eventually!(fn -> not running?(helper) end)
    end

    test "whose port is closed by another process ends with its helper, and notifies the owners" do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      spawn(fn -> Port.close(socket.helper.port) end)
      assert closed!(socket) == {:helper_exit, :normal}
      refute_closed_again(socket)
      eventually!(fn -> not running?(helper) end)
    end

    # In this case alone no process is left to notify the owners. Calls report the end.
    test "that is killed together with its notifier sends no message; calls are EPIPE, and the helper ends" do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      helper = os_pid(server)
      notifier = :sys.get_state(server).notifier
      # So that it does not start another server.
      :sys.suspend(server)
      for pid <- [notifier, server], do: Process.exit(pid, :kill)
      eventually!(fn -> not running?(helper) end)
      assert {:error, %Error{stage: :thread, reason: :epipe}} = NetlinkPort.send(socket, "x")

      assert {:error, %Error{stage: :thread, reason: :epipe}} =
               NetlinkPort.recv(socket, within(1_000))

      refute_received {:netlink_closed, ^socket, _reason}
    end

    test "whose name is taken is not started, and starts no helper" do
      name = supervise!([])
      marker = tmp_path!("marker")
      script = script!("touch #{marker}; exec #{helper()} \"$@\"")
      server = Process.whereis(name)
      started = NetlinkPort.start_link(name: name, executable: script)
      assert started == {:error, {:already_started, server}}
      refute File.exists?(marker)
      assert {:ok, _socket} = NetlinkPort.open(name, :route, [])
    end
  end

  test "a value that is no server raises in the caller" do
    for wrong <- ["NetlinkPort", 7, {:via, NoSuchRegistry, 1}, {:via, Enum, 1}, {1, node()}] do
      assert_raise ArgumentError, fn -> NetlinkPort.stats(wrong) end
      assert_raise ArgumentError, fn -> NetlinkPort.open(wrong, :route, []) end
    end
  end

  test "a call from within the server is EDEADLK, and says that a server cannot wait for itself" do
    server = start_server!()
    {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    test = self()

    :sys.replace_state(server, fn state ->
      send(test, {:told, NetlinkPort.stats(server), NetlinkPort.getopts(socket, [:rcvbuf])})
      state
    end)

    assert_receive {:told, {:error, %Error{reason: :edeadlk} = error}, {:error, same}}
    assert {same.stage, same.reason} == {:thread, :edeadlk}
    assert Exception.message(error) =~ "a server cannot wait for itself"
    assert {:ok, [rcvbuf: _]} = NetlinkPort.getopts(socket, [:rcvbuf])
  end

  test "a call from within the server is EDEADLK by every form of its name" do
    registry = start_supervised!({Registry, keys: :unique, name: __MODULE__.Registry})
    assert is_pid(registry)
    local = :"server-#{System.unique_integer([:positive])}"

    for {name, call} <- [
          {local, local},
          {local, {local, node()}},
          {{:global, local}, {:global, local}},
          {{:via, Registry, {__MODULE__.Registry, 1}}, {:via, Registry, {__MODULE__.Registry, 1}}}
        ] do
      server = start_server!(name: name)
      test = self()

      :sys.replace_state(server, fn state ->
        send(test, {:told, NetlinkPort.stats(call), NetlinkPort.open(call, :route, [])})
        state
      end)

      assert_receive {:told, {:error, error}, {:error, same}}
      assert {error.stage, error.reason} == {:thread, :edeadlk}
      assert {same.stage, same.reason} == {:thread, :edeadlk}
      GenServer.stop(server)
    end
  end

  test "a handle that is no integer raises in the caller; one that no socket has is EBADF" do
    server = start_server!()

    for wrong <- [nil, :foo, 1.5, "1", [1 | 2], self()],
        do: assert_raise(ArgumentError, ~r/handle/, fn -> NetlinkPort.socket(server, wrong) end)

    for unknown <- [-1, 0, 1, Bitwise.bsl(1, 80)],
        do: assert({:error, %Error{reason: :ebadf}} = NetlinkPort.socket(server, unknown))
  end

  describe "unexpected messages and calls" do
    test "do not disturb the server" do
      server = start_server!()
      send(server, :hello)
      send(server, {:EXIT, self(), :normal, :more})
      send(server, {make_ref(), :late})
      send(server, {:recv_timeout, 1, make_ref()})
      send(server, {:overdue, 77})
      GenServer.cast(server, :bogus)
      assert {:error, {:protocol, 22, ""}} = GenServer.call(server, :bogus)
      assert {:ok, _info} = NetlinkPort.info(server)
    end
  end

  test ":sys.get_status/1 shows the main fields in a few lines" do
    server = start_server!()
    status = inspect(:sys.get_status(server), limit: :infinity)
    assert status =~ "executable"
    assert status =~ "sockets: 0"
  end

  describe "many servers" do
    test "run beside each other, named and unnamed, and under a PartitionSupervisor" do
      name = :"partitions_#{System.unique_integer([:positive])}"

      start_supervised!(
        {PartitionSupervisor, child_spec: {NetlinkPort, name: nil}, name: name, partitions: 2}
      )

      helpers = for key <- 0..1, do: os_pid({:via, PartitionSupervisor, {name, key}})
      assert helpers == Enum.uniq(helpers)
      assert {:ok, _} = NetlinkPort.open({:via, PartitionSupervisor, {name, self()}}, :route, [])
      one = start_server!()
      two = start_server!()
      {:ok, a} = NetlinkPort.open(one, :route, [])
      {:ok, b} = NetlinkPort.open(two, :route, [])
      assert Socket.handle(a) != Socket.handle(b)
      assert a != b
    end
  end

  @tag :proc_syscall
  test "the helper does not wake up while it has no traffic and no ping" do
    netns = netns!()
    server = start_server!(ping_interval: :infinity)
    for _ <- 1..50, do: {:ok, _} = NetlinkPort.open(server, :route, netns: {:name, netns})
    helper = os_pid(server)
    # A wait is a voluntary context switch: one more than before would be a wake-up.
    asleep!(server, helper)
    before = switches(helper)
    Process.sleep(1_000)
    assert switches(helper) == before
  end

  # The kernel reports an error (ENOBUFS) whether or not a caller waits for it.
  @tag :proc_syscall
  test "an error pending on a socket whose window is used up does not wake the helper" do
    netns = netns!()
    server = start_server!(ping_interval: :infinity)
    opts = [netns: {:name, netns}, groups: [5], active: false, window: 1, rcvbuf: 4_096]
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    ip_batch!(netns, for(n <- 1..100, do: "addr add 10.0.0.#{n}/32 dev lo"))
    helper = os_pid(server)
    asleep!(server, helper)
    before = switches(helper)
    Process.sleep(500)
    assert switches(helper) == before
    assert {:ok, _first} = NetlinkPort.recv(socket, within(1_000))
    assert {:ok, _second} = NetlinkPort.recv(socket, within(1_000))
  end

  # Waits until the server has nothing to do, and the helper waits without a timeout. /proc/<pid>/syscall shows arguments
  # only of a process that is off the processor. The state S in /proc/<pid>/stat comes before the context switch, long
  # before it on a busy machine.
  defp asleep!(server, helper) do
    eventually!(fn ->
      Process.info(server, :status) == {:status, :waiting} and waits?(helper)
    end)
  end

  # The fourth argument of epoll_wait(2) is the timeout.
  defp waits?(helper) do
    {shown, _status} = as_root("cat", ["/proc/#{helper}/syscall"])
    match?([_epoll_wait, _fd, _events, _count, "0xffffffff" <> _ | _], String.split(shown))
  end

  defp switches(os_pid) do
    [_, count] =
      Regex.run(~r/^voluntary_ctxt_switches:\s+(\d+)/m, File.read!("/proc/#{os_pid}/status"))

    count
  end
end
