defmodule NetlinkPort.SandboxTest do
  # NetlinkPort.Sandbox as its users call it. Nothing here needs root.
  use ExUnit.Case, async: true
  use NetlinkPort.Sandbox

  import NetlinkPort.Case,
    only: [eventually!: 1, eventually!: 2, tmp_path!: 1, signal!: 2, within: 1]

  alias NetlinkPort.{Error, Rtnl, Sandbox}

  setup :netlink_sandbox

  defp bridge(name) do
    attrs = NetlinkPort.Attr.encode([{3, name <> <<0>>}, {18, [{1, "bridge" <> <<0>>}]}])
    [<<0::128>> | attrs]
  end

  defp links!(server, netns) do
    {:ok, socket} = NetlinkPort.open(server, :route, netns: netns, active: false)
    names = Rtnl.link_names(socket)
    :ok = NetlinkPort.close(socket)
    Enum.sort(names)
  end

  describe "a sandbox" do
    test "is a new namespace, with its loopback up", c do
      assert links!(c.server, c.netns) == ["lo"]
      assert run!(c.sandbox, "ip", ["link", "show", "lo"]) =~ "LOOPBACK,UP"
      home = File.stat!("/proc/self/ns/net").inode
      refute File.stat!(Sandbox.info(c.sandbox).path).inode == home
    end

    test "sends events of changes that programs make in it", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns, groups: [1])
      assert {:ok, %{verified: true}} = NetlinkPort.info(socket)
      run!(c.sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
      assert_receive {:netlink, ^socket, _datagram}
    end

    test "runs programs, with their output and status", c do
      assert {"0\n", 0} = run(c.sandbox, "id", ["-u"])
      assert {_said, 3} = run(c.sandbox, "sh", ["-c", "exit 3"])
      assert {said, 127} = run(c.sandbox, "/no/such/program", [])
      assert said =~ "/no/such/program"

      assert {"there\n", 0} =
               run(c.sandbox, "sh", ["-c", "echo $WHERE"], env: [{"WHERE", "there"}])

      assert_raise RuntimeError, ~r/ip link show nothing: exit status 1: .*nothing/, fn ->
        run!(c.sandbox, "ip", ["link", "show", "nothing"])
      end
    end

    test "is joined with others by veths", c do
      other = start_supervised!(Sandbox)
      assert {"veth0", "veth0"} = veth(c.sandbox, other)
      assert {"veth1", "veth0"} = veth(c.sandbox, third = start_supervised!({Sandbox, []}))
      assert {"veth1", "veth1"} = veth(other, third)
      run!(c.sandbox, "ip", ["addr", "add", "192.0.2.1/24", "dev", "veth0"])
      run!(other, "ip", ["addr", "add", "192.0.2.2/24", "dev", "veth0"])

      assert run!(c.sandbox, "ip", ["link", "show", "veth0"]) =~ "state UP"
      assert run!(c.sandbox, "ip", ["link", "show", "veth1"]) =~ "state UP"
    end

    test "is the argument that functions ask for when they are given a server, a context or nothing",
         c do
      server = GenServer.whereis(c.server)

      for wrong <- [c.server, server, c, nil, __MODULE__.Nobody, {:global, __MODULE__}, self()],
          fun <- [
            &veth(&1, c.sandbox),
            &veth(c.sandbox, &1),
            &run(&1, "true", []),
            &fault(&1, :helper_killed),
            &Sandbox.info/1
          ] do
        error = assert_raise ArgumentError, fn -> fun.(wrong) end

        assert Exception.message(error) =~
                 "expected a sandbox (`sandbox` in the context of a test"

        assert Exception.message(error) =~ inspect(wrong)
      end

      assert GenServer.whereis(c.server) == server
      assert {_taken, _names} = veth(c.sandbox, c.sandbox)
    end

    test "can be named to ip(8) by its path", c do
      other = start_supervised!(Sandbox)
      run!(c.sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
      run!(c.sandbox, "ip", ["link", "add", "v0", "type", "veth", "peer", "name", "v1"])
      run!(c.sandbox, "ip", ["link", "set", "v1", "netns", Sandbox.info(other).path])
      assert "v1" in links!(Sandbox.info(other).server, Sandbox.info(other).netns)
    end

    test "can use an existing server, which outlives it", c do
      server = start_supervised!({NetlinkPort, name: nil, user_namespaces: true})
      sandbox = start_supervised!({Sandbox, server: server}, id: :guest)
      assert %{server: ^server, netns: netns} = Sandbox.info(sandbox)
      assert links!(server, netns) == ["lo"]
      assert links!(server, c.netns) == ["lo"]
      :ok = stop_supervised!(:guest)
      assert {:ok, _info} = NetlinkPort.info(server)
    end

    test "can have a name, and a server with a name and options" do
      opts = [name: __MODULE__.Named, server: [name: __MODULE__.Netlink, call_timeout: 700]]
      start_supervised!({Sandbox, opts})
      assert %{server: __MODULE__.Netlink} = Sandbox.info(__MODULE__.Named)
      assert {:ok, _info} = NetlinkPort.info(__MODULE__.Netlink)
    end

    test "refuses wrong options in the caller" do
      for opts <- [
            [pth: true],
            [path: 1],
            [stand_in: :yes],
            [server: 7],
            [server: nil],
            [server: [1]],
            [server: self(), stand_in: true]
          ] do
        assert_raise ArgumentError, fn -> Sandbox.start_link(opts) end
      end

      assert_raise ArgumentError, ~r/:call_timeout, .* as server: \[/, fn ->
        Sandbox.start_link(call_timeout: 500)
      end
    end

    test "names the wrong option of its server" do
      Process.flag(:trap_exit, true)

      for {server, said} <- [
            {[foo: 1], "unknown option :foo"},
            {[call_timeout: -1], "expected call_timeout: a positive number of ms"}
          ],
          kind <- [[], [path: true], [stand_in: true]] do
        assert {:error, %ArgumentError{} = error} = Sandbox.start_link([server: server] ++ kind)
        assert Exception.message(error) =~ said
      end

      sandbox = start_supervised!({Sandbox, server: [name: nil]})
      assert {:ok, _info} = NetlinkPort.info(Sandbox.info(sandbox).server)
    end

    test "can be joined with itself; veth/2 chooses free names", c do
      other = start_supervised!(Sandbox)
      run!(c.sandbox, "ip", ["link", "add", "type", "veth"])
      run!(other, "ip", ["link", "add", "veth2", "type", "bridge"])
      assert {"veth3", "veth3"} = veth(c.sandbox, other)
      assert {"veth4", "veth5"} = veth(c.sandbox, c.sandbox)
      assert run!(c.sandbox, "ip", ["link", "show", "veth5"]) =~ "state UP"
    end

    test "whose server cannot start returns the server's error, and leaves nothing behind" do
      Process.flag(:trap_exit, true)
      opts = [path: true, server: [executable: "/no/such/helper"]]
      assert {:error, %Error{reason: :enoent}} = Sandbox.start_link(opts)
    end
  end

  test "programs that end without a parent are waited for by the init process of the sandbox",
       c do
    run!(c.sandbox, "sh", ["-c", "for n in 1 2 3; do (setsid true &); done"])
    init = c.sandbox |> Sandbox.info() |> Map.fetch!(:os_pid) |> children() |> String.trim()
    eventually!(fn -> children(init) == "" end)
  end

  defp children(os_pid) do
    {pids, _status} = System.cmd("ps", ["--ppid", "#{os_pid}", "-o", "pid="])
    pids
  end

  describe "nothing stays behind of" do
    # The processes of a sandbox, seen from outside: those in its network namespace.
    defp inside(inode) do
      for pid <- File.ls!("/proc"),
          pid =~ ~r/^\d+$/,
          {:ok, %{inode: ^inode}} <- [File.stat("/proc/#{pid}/ns/net")],
          do: pid
    end

    defp inode(sandbox), do: File.stat!(Sandbox.info(sandbox).path).inode

    # A daemon that has cut all ties with its parent.
    defp daemon!(sandbox) do
      run!(sandbox, "sh", ["-c", "setsid sleep 600 </dev/null >/dev/null 2>&1 &"])
    end

    test "a sandbox that has ended, its programs and its folder included", c do
      sandbox = start_supervised!({Sandbox, path: true}, id: :ending)
      {inode, %{netns: {:path, path}}} = {inode(sandbox), Sandbox.info(sandbox)}
      daemon!(sandbox)
      assert [_ | _] = inside(inode)
      # This sandbox is not the one that holds the user namespace for the others.
      assert links!(c.server, c.netns) == ["lo"]
      :ok = stop_supervised!(:ending)
      eventually!(fn -> inside(inode) == [] end)
      refute File.exists?(Path.dirname(path))
      other = start_supervised!(Sandbox)
      assert {"veth0", "veth0"} = veth(c.sandbox, other)
    end

    test "a sandbox that was killed" do
      {:ok, sandbox} = start_unlinked(path: true)
      {inode, %{netns: {:path, path}}} = {inode(sandbox), Sandbox.info(sandbox)}
      daemon!(sandbox)
      Process.exit(sandbox, :kill)
      eventually!(fn -> inside(inode) == [] and not File.exists?(Path.dirname(path)) end)
    end

    defp start_unlinked(opts) do
      test = self()

      spawn(fn ->
        Process.flag(:trap_exit, true)
        send(test, Sandbox.start_link(opts))
        Process.sleep(:infinity)
      end)

      assert_receive {:ok, sandbox}, within(10_000)
      {:ok, sandbox}
    end

    # A VM that runs a script. Its processes are known by their environment, in which TMPDIR is `tmp`.
    defp vm!(script) do
      tmp = tmp_path!("vm")
      File.mkdir!(tmp)
      paths = for path <- :code.get_path(), do: ["-pa", to_string(path)]

      # What a VM that is killed says on standard error is of no interest.
      elixir = ["-c", "exec elixir \"$@\" 2>/dev/null", "sh"]

      port =
        Port.open({:spawn_executable, System.find_executable("sh")}, [
          :binary,
          line: 200,
          args: elixir ++ List.flatten(paths) ++ ["-e", script],
          env: [{~c"TMPDIR", to_charlist(tmp)}]
        ])

      {:os_pid, vm} = Port.info(port, :os_pid)
      on_exit(fn -> System.cmd("kill", ["-KILL", "#{vm}"], stderr_to_stdout: true) end)
      assert_receive {^port, {:data, {:eol, line}}}, within(30_000)
      {vm, tmp, line}
    end

    # The processes of the VM that still run, what they have mounted included.
    defp left(tmp) do
      for pid <- File.ls!("/proc"),
          pid =~ ~r/^\d+$/,
          {:ok, environ} <- [File.read("/proc/#{pid}/environ")],
          environ =~ "TMPDIR=" <> tmp <> <<0>>,
          do: pid
    end

    defp assert_nothing_left(tmp) do
      eventually!(fn -> left(tmp) == [] end, 30_000)
      assert File.ls!(tmp) == []
      refute File.read!("/proc/self/mountinfo") =~ tmp
    end

    test "a VM that was killed, with its helper stopped or not", _c do
      for stop? <- [false, true], opts <- [[path: true], [stand_in: true]] do
        {vm, tmp, line} =
          vm!("""
          {:ok, sandbox} = NetlinkPort.Sandbox.start_link(#{inspect(opts)})
          %{path: path, server: server} = NetlinkPort.Sandbox.info(sandbox)
          {:ok, helper} = NetlinkPort.info(server)
          NetlinkPort.Sandbox.run!(sandbox, "sh", ["-c", "setsid sleep 600 </dev/null >/dev/null 2>&1 &"])
          if #{stop?}, do: NetlinkPort.Sandbox.fault(sandbox, :helper_stopped)
          IO.puts("\#{File.stat!(path).inode} \#{helper.os_pid}")
          Process.sleep(:infinity)
          """)

        [inode, helper] = line |> String.split() |> Enum.map(&String.to_integer/1)
        assert [_ | _] = inside(inode)
        assert to_string(helper) in left(tmp)
        signal!(vm, "KILL")
        eventually!(fn -> inside(inode) == [] end)
        assert_nothing_left(tmp)
      end
    end

    # The moments at which the VM is killed are ms from the beginning of the start, which takes some 50 ms.
    @tag timeout: within(300_000)
    test "a VM that was killed while its sandboxes started" do
      for moment <- 0..81//9 do
        {vm, tmp, "now"} =
          vm!("""
          IO.puts("now")
          for opts <- [[path: true], [stand_in: true], [path: true, stand_in: true], []],
              do: spawn(fn -> NetlinkPort.Sandbox.start_link(opts); Process.sleep(:infinity) end)
          Process.sleep(:infinity)
          """)

        Process.sleep(moment)
        signal!(vm, "KILL")
        assert_nothing_left(tmp)
      end
    end

    @tag netlink_sandbox: [path: true], capture_log: true
    test "a sandbox whose processes were all killed at once, its folder included", c do
      {:path, path} = c.netns
      [_, keeper] = Regex.run(~r{^/proc/(\d+)/}, path)
      monitor = Process.monitor(c.sandbox)
      holder = "#{Sandbox.info(c.sandbox).os_pid}"
      # The sandbox would end the second process as soon as it learns of the first.
      :ok = :sys.suspend(c.sandbox)
      {_output, 0} = System.cmd("kill", ["-KILL", keeper, holder])
      :ok = :sys.resume(c.sandbox)
      assert_receive {:DOWN, ^monitor, :process, _pid, reason}, within(5_000)
      assert reason == "the process that holds the folder of the sandbox was ended"
      refute File.exists?(Path.dirname(path))
    end
  end

  describe "faults:" do
    test "the helper killed: owners are notified, and the server is restarted", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
      assert :ok = fault(c.sandbox, :helper_killed)
      assert_receive {:netlink_closed, ^socket, {:helper_exit, 137}}
      assert {:ok, _socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
      for _ <- 1..5, do: fault(c.sandbox, :helper_killed)
      assert links!(c.server, c.netns) == ["lo"]
    end

    test "the helper stopped and continued: nothing is lost", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns, groups: [1])
      fault(c.sandbox, :helper_stopped)
      run!(c.sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
      refute_received {:netlink, ^socket, _datagram}
      fault(c.sandbox, :helper_continued)
      assert_receive {:netlink, ^socket, _datagram}

      assert_raise RuntimeError, ~r/no helper of this sandbox is stopped/, fn ->
        fault(c.sandbox, :helper_continued)
      end
    end

    # The deadlines of calls are longer than the test: nothing asks the stopped helper.
    @tag netlink_sandbox: [server: [call_timeout: 600_000, ping_interval: :infinity]]
    test "with the helper stopped, other faults are made or refused at once", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
      for _ <- 1..2, do: assert(:ok = fault(c.sandbox, :helper_stopped))
      assert :ok = fault(c.sandbox, {:open_refused, :emfile})

      for fault <- [{:overrun, 1}, :open_allowed] do
        assert_raise RuntimeError, ~r/the helper is stopped/, fn -> fault(c.sandbox, fault) end
      end

      assert :ok = fault(c.sandbox, :helper_killed)
      assert_receive {:netlink_closed, ^socket, {:helper_exit, 137}}

      assert_raise RuntimeError, ~r/no helper of this sandbox is stopped/, fn ->
        fault(c.sandbox, :helper_continued)
      end

      assert links!(c.server, c.netns) == ["lo"]
    end

    test "an overrun has the exact count, comes after older datagrams, and affects no other socket",
         c do
      opts = [netns: c.netns, groups: [1]]
      {:ok, socket} = NetlinkPort.open(c.server, :route, opts)
      {:ok, other} = NetlinkPort.open(c.server, :route, opts)
      {:ok, tiny} = NetlinkPort.open(c.server, :route, opts ++ [rcvbuf: 2_048])

      for {victim, count} <- [{socket, 1}, {socket, 37}, {tiny, 4}] do
        run!(c.sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
        fault(c.sandbox, {:overrun, count}, of: victim)
        assert_receive {first, ^victim, _datagram} when first == :netlink
        assert_receive {:netlink_overrun, ^victim, ^count}
        run!(c.sandbox, "ip", ["link", "del", "br0"])
      end

      refute_received {:netlink_overrun, ^other, _dropped}
      assert {:ok, [1]} = NetlinkPort.memberships(socket)
      assert {:ok, [1]} = NetlinkPort.memberships(tiny)

      fault(c.sandbox, {:overrun, 2})

      for victim <- [socket, other, tiny],
          do: assert_receive({:netlink_overrun, ^victim, 2})
    end

    test "an overrun of a passive socket, and of a socket of another protocol", c do
      for protocol <- [:route, :generic, :usersock] do
        {:ok, socket} = NetlinkPort.open(c.server, protocol, netns: c.netns, active: false)
        fault(c.sandbox, {:overrun, 5}, of: self())

        assert {^protocol, {:error, %Error{reason: :enobufs, dropped: 5}}} =
                 {protocol, NetlinkPort.recv(socket, within(5_000))}

        :ok = NetlinkPort.close(socket)
      end
    end

    test "an overrun that loses the event of a change", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns, groups: [1])
      add = fn name -> run!(c.sandbox, "ip", ["link", "add", name, "type", "bridge"]) end
      fault(c.sandbox, {:overrun, 9}, lose: fn -> add.("lost") end)
      assert_receive {:netlink_overrun, ^socket, 9}
      add.("seen")
      assert_receive {:netlink, ^socket, datagram}
      assert datagram =~ "seen"
      refute_received {:netlink, ^socket, _lost}

      many = fn -> for n <- 1..3, do: add.("br#{n}") end

      assert_raise RuntimeError, ~r/lost: `lose:` makes more/, fn ->
        fault(c.sandbox, {:overrun, 1}, lose: many)
      end

      assert_receive {:netlink_overrun, ^socket, _more}

      assert_raise ArgumentError, fn ->
        fault(c.sandbox, {:overrun, 2}, lose: fn -> raise ArgumentError end)
      end

      assert_receive {:netlink_overrun, ^socket, 1}
    end

    test "an overrun without a socket is an error that says so", c do
      assert_raise RuntimeError, ~r/no such socket is open/, fn ->
        fault(c.sandbox, {:overrun, 1})
      end
    end

    test "the namespace gone, by its process", c do
      opts = [netns: c.netns, close_on: :namespace_gone]
      {:ok, socket} = NetlinkPort.open(c.server, :route, opts)
      fault(c.sandbox, :namespace_gone)
      assert_receive {:netlink_closed, ^socket, :namespace_gone}
      assert {:error, %Error{reason: :esrch}} = NetlinkPort.open(c.server, :route, netns: c.netns)
      assert_raise RuntimeError, ~r/is gone/, fn -> run(c.sandbox, "true", []) end
      assert_raise RuntimeError, ~r/is gone/, fn -> fault(c.sandbox, :namespace_gone) end
      fault(c.sandbox, :namespace_back)
      assert links!(c.server, Sandbox.info(c.sandbox).netns) == ["lo"]
      assert_raise RuntimeError, ~r/is there/, fn -> fault(c.sandbox, :namespace_back) end
    end

    @tag netlink_sandbox: [path: true]
    test "the namespace gone and back under its path: a monitor survives", c do
      opts = [server: c.server, netns: c.netns, groups: [1]]
      start_supervised!({NetlinkPort.Monitor, [name: __MODULE__.Back] ++ opts})
      {:ok, monitor} = NetlinkPort.Monitor.subscribe(__MODULE__.Back)
      assert_receive {:netlink_resync, ^monitor, :subscribed}
      fault(c.sandbox, :namespace_gone)
      assert_receive {:netlink_down, ^monitor, :namespace_gone}

      assert {:error, %Error{reason: :enoent}} =
               NetlinkPort.open(c.server, :route, netns: c.netns)

      fault(c.sandbox, :namespace_back)
      assert_receive {:netlink_resync, ^monitor, :namespace_gone}
      run!(c.sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
      assert_receive {:netlink_event, ^monitor, _datagram}
    end

    test "a monitor: an overrun, a restart", c do
      opts = [server: c.server, netns: c.netns, groups: [1]]
      monitor = start_supervised!({NetlinkPort.Monitor, opts})
      {:ok, ^monitor} = NetlinkPort.Monitor.subscribe(monitor)
      assert_receive {:netlink_resync, ^monitor, :subscribed}
      fault(c.sandbox, {:overrun, 3}, of: monitor)
      assert_receive {:netlink_resync, ^monitor, :overrun}
      fault(c.sandbox, :helper_killed)
      assert_receive {:netlink_resync, ^monitor, {:closed, {:helper_exit, _status}}}
    end

    test "opens refused with EMFILE, until they are allowed", c do
      fault(c.sandbox, {:open_refused, :emfile})

      assert {:error, %Error{reason: :emfile}} =
               NetlinkPort.open(c.server, :route, netns: c.netns)

      assert {:error, %Error{reason: :emfile}} = NetlinkPort.open(c.server, :route, [])
      fault(c.sandbox, :open_allowed)
      assert {:ok, _socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
    end

    # The program is looked for in PATH, which is that of the whole VM.
    test "a missing program is named", _c do
      {_vm, _tmp, said} =
        vm!("""
        {:ok, sandbox} = NetlinkPort.Sandbox.start_link()
        System.put_env("PATH", "/nonexistent")
        refused = fn -> NetlinkPort.Sandbox.fault(sandbox, {:open_refused, :emfile}) end
        said = try(do: refused.(), rescue: (error in RuntimeError -> error.message))
        {:error, stand_in} = NetlinkPort.Sandbox.StandIn.start_link("/nonexistent")
        IO.puts(said <> "; " <> stand_in)
        """)

      assert said =~ "there is no prlimit(1), which limits the descriptors of the helper"
      assert said =~ "needs mkfifo(1)"
    end

    test "options for a fault that takes none are refused, and the fault is not made", c do
      for fault <- [:helper_killed, :helper_stopped, :helper_continued, :open_allowed] do
        assert_raise ArgumentError, ~r/the fault #{inspect(fault)} takes no options/, fn ->
          fault(c.sandbox, fault, times: 2)
        end
      end

      for fault <- [:namespace_gone, :namespace_back] do
        assert_raise ArgumentError, ~r/takes no options, got: \[path: true\]/, fn ->
          fault(c.sandbox, fault, path: true)
        end
      end

      assert links!(c.server, c.netns) == ["lo"]
    end

    @tag netlink_sandbox: [server: [ping_interval: within(100), call_timeout: within(500)]]
    test "the helper stopped without calls: a ping finds it, and it cannot be continued after that",
         c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
      fault(c.sandbox, :helper_stopped)
      assert_receive {:netlink_closed, ^socket, :stuck}
      # The server is away for a moment.
      eventually!(fn -> match?({:ok, _info}, NetlinkPort.info(c.server)) end)

      assert_raise RuntimeError, ~r/has ended with its server, as by :stuck/, fn ->
        fault(c.sandbox, :helper_continued)
      end
    end

    test "faults that need a stand-in say so without one", c do
      for fault <- [:interrupted_dump, {:answer, :enospc}, {:open_refused, :eperm}] do
        assert_raise ArgumentError, ~r/stand_in: true/, fn -> fault(c.sandbox, fault) end
      end

      assert_raise ArgumentError, ~r/expected a fault/, fn -> fault(c.sandbox, :earthquake) end
    end
  end

  describe "a stand-in" do
    @describetag netlink_sandbox: [stand_in: true]

    test "raises for wrong options in the caller, and goes on", c do
      for {fault, opts} <- [
            {{:answer, :nosucherrno}, []},
            {{:answer, nil}, []},
            {{:answer, :enospc}, [type: :newlink]},
            {{:answer, :enospc}, [message: 7]},
            {{:answer, :enospc}, [message: "a\0b"]},
            {{:answer, :enospc}, [offset: -1]},
            {{:open_refused, :nosucherrno}, []},
            {{:open_refused, :eperm}, [stage: :nope]},
            {{:overrun, 1}, [lose: 7]},
            {{:overrun, 1}, [lose: fn _ -> :ok end]}
          ] do
        assert_raise ArgumentError, fn -> fault(c.sandbox, fault, opts) end
      end

      assert links!(c.server, c.netns) == ["lo"]
    end

    test "refuses an open by any errno, once", c do
      fault(c.sandbox, {:open_refused, :eperm})

      assert {:error, %Error{stage: :setns, reason: :eperm}} =
               NetlinkPort.open(c.server, :route, netns: c.netns)

      fault(c.sandbox, {:open_refused, :eacces}, stage: :open, times: 2)

      for _ <- 1..2,
          do:
            assert(
              {:error, %Error{stage: :open, reason: :eacces}} =
                NetlinkPort.open(c.server, :route, netns: c.netns)
            )

      assert {:ok, _socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
    end

    test "answers a request with any errno and extended ack, without carrying it out",
         c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
      fault(c.sandbox, {:answer, :enospc}, message: "no room", offset: 32)
      assert {:error, error} = NetlinkPort.request(socket, 16, bridge("br0"), flags: [:create])
      assert %Error{stage: :request, reason: :enospc, ext_ack: ext_ack} = error
      assert %{message: "no room", offset: 32, attribute: {3, "br0" <> _}} = ext_ack
      assert links!(c.server, c.netns) == ["lo"]
      assert {:ok, []} = NetlinkPort.request(socket, 16, bridge("br0"), flags: [:create])

      fault(c.sandbox, {:answer, :ebusy}, type: 17)
      assert {:ok, [_link]} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)

      assert {:error, %Error{reason: :ebusy, ext_ack: nil}} =
               NetlinkPort.request(socket, 17, bridge("br0"))
    end

    test "answers one message of a batch; the others are carried out", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns, active: false)
      fault(c.sandbox, {:answer, :eperm}, type: 17)

      batch = [
        {16, [:create], bridge("br0")},
        {17, [], bridge("br0")},
        {16, [:create], bridge("br1")}
      ]

      assert {:ok, [{:ok, _}, {:error, %Error{reason: :eperm}}, {:ok, _}]} =
               NetlinkPort.batch(socket, batch)

      assert links!(c.server, c.netns) == ["br0", "br1", "lo"]
    end

    test "answers requests of a connection, and sends with wait: true", c do
      connection =
        start_supervised!(
          {NetlinkPort.Connection, server: c.server, protocol: :route, netns: c.netns}
        )

      {:ok, [_ | _]} = NetlinkPort.Connection.dump(connection, 18, <<0::128>>)
      fault(c.sandbox, {:answer, :enomem})

      assert {:error, %Error{reason: :enomem}} =
               NetlinkPort.Connection.request(connection, 16, bridge("br0"), flags: [:create])

      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns, active: false)
      fault(c.sandbox, {:answer, :enomem})
      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 7), wait: true)
      assert {:ok, datagram} = NetlinkPort.recv(socket, within(5_000))
      assert [{2, 7, <<-12::signed-32-native, _::binary>>}] = Rtnl.messages(datagram)
    end

    test "marks a dump as interrupted: it is repeated, five times", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
      fault(c.sandbox, :interrupted_dump)
      assert {:ok, [_lo]} = NetlinkPort.dump(socket, 18, <<0::128>>)
      fault(c.sandbox, :interrupted_dump, times: 5)

      assert {:error, %Error{reason: :eintr, messages: [_]}} =
               NetlinkPort.dump(socket, 18, <<0::128>>)

      assert {:ok, [_lo]} = NetlinkPort.dump(socket, 18, <<0::128>>)
    end

    test "changes nothing else: events, batches, large dumps, exit statuses", c do
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns, groups: [1])
      batch = for n <- 1..50, do: {16, [:create], bridge("br#{n}")}
      {:ok, maker} = NetlinkPort.open(c.server, :route, netns: c.netns, active: false)
      {:ok, outcomes} = NetlinkPort.batch(maker, batch)
      assert Enum.all?(outcomes, &match?({:ok, _}, &1))
      assert length(links!(c.server, c.netns)) == 51
      assert_receive {:netlink, ^socket, _datagram}
      fault(c.sandbox, {:overrun, 3}, of: socket)
      assert_receive {:netlink_overrun, ^socket, 3}

      for _ <- 1..3 do
        {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns)
        fault(c.sandbox, :helper_killed)
        assert_receive {:netlink_closed, ^socket, {:helper_exit, 137}}
        assert "br50" in links!(c.server, c.netns)
      end

      fault(c.sandbox, :interrupted_dump)
    end

    test "ends with its sandbox", c do
      {:ok, %{os_pid: os_pid}} = NetlinkPort.info(c.server)
      fault(c.sandbox, :helper_stopped)
      GenServer.stop(c.sandbox)
      eventually!(fn -> not NetlinkPort.Case.running?(os_pid) end)
    end
  end

  @tag timeout: within(120_000)
  test "a hundred sandboxes at once are separate, and any two can be joined" do
    test = self()

    for _ <- 1..100 do
      run = fn ->
        send(test, Sandbox.start_link())
        Process.sleep(:infinity)
      end

      start_supervised!({Task, run}, id: make_ref())
    end

    sandboxes =
      for _ <- 1..100 do
        assert_receive {:ok, sandbox}, within(60_000)
        sandbox
      end

    places = for sandbox <- sandboxes, do: File.stat!(Sandbox.info(sandbox).path).inode
    assert places == Enum.uniq(places)

    links = &links!(Sandbox.info(&1).server, Sandbox.info(&1).netns)
    answers = Task.async_stream(sandboxes, links, timeout: within(60_000))

    assert Enum.all?(answers, &(&1 == {:ok, ["lo"]}))
    assert {"veth0", "veth0"} = veth(hd(sandboxes), List.last(sandboxes))
  end
end
