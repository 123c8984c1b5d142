defmodule NetlinkPort.VMTest do
  # The crash and the orderly end of a whole VM: no helper stays behind, and nothing hangs.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # Runs a script in another VM, with this library. Returns its port and its OS pid. It prints lines, which arrive as
  # `{port, {:data, {:eol, line}}}`.
  defp vm!(script, environment \\ [], command \\ "exec elixir") do
    path = tmp_path!("vm.exs")
    File.write!(path, script)
    ebin = Path.join(Mix.Project.app_path(), "ebin")

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        :exit_status,
        {:line, 1_000},
        args: ["-c", "#{command} -pa #{ebin} #{path}"],
        env: [{~c"LC_ALL", ~c"C.UTF-8"} | environment]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    # Also if the suite is killed: then the shell's standard input ends.
    kill = "kill -KILL #{os_pid} 2>/dev/null"
    Port.open({:spawn_executable, "/bin/sh"}, args: ["-c", "cat >/dev/null; #{kill}"])
    on_exit(fn -> System.cmd("sh", ["-c", kill]) end)
    {port, os_pid}
  end

  defp line!(port) do
    assert_receive {^port, {:data, {:eol, line}}}, within(20_000)
    line
  end

  defp start(netns) do
    """
    Application.ensure_all_started(:logger)
    Logger.configure(level: :critical)
    {:ok, _} = Supervisor.start_link([{NetlinkPort, call_timeout: 60_000}], strategy: :one_for_one)
    {:ok, %{os_pid: helper}} = NetlinkPort.info(NetlinkPort)
    {:ok, socket} = NetlinkPort.open(:route, netns: {:name, "#{netns}"}, groups: [5])
    IO.puts(helper)
    _ = socket
    """
  end

  test "the VM is killed with SIGKILL while datagrams arrive: the helper ends, running or stopped" do
    vms =
      for stopped? <- [false, true] do
        netns = netns!()

        vm =
          vm!(
            start(netns) <>
              """
              receive do: ({:netlink, _, _} -> IO.puts("flowing"))
              Process.sleep(:infinity)
              """
          )

        {vm, netns, stopped?}
      end

    for {{port, vm}, netns, stopped?} <- vms do
      helper = port |> line!() |> String.to_integer()
      assert running?(helper)
      # `elixir` is a shell script that execs the VM.
      ip_batch!(netns, for(n <- 1..200, do: "addr add 10.0.0.#{n}/32 dev lo"))
      assert line!(port) == "flowing"
      if stopped?, do: signal!(helper, :STOP)
      signal!(vm, :KILL)
      eventually!(fn -> not running?(helper) end, 1_000)
    end
  end

  # A script supervises the server, and no application does, so that only the notifier can stop it in order. The
  # server is suspended, and cannot even be asked.
  test "System.stop returns with a stopped helper and a full queue" do
    # Both at once, since each waits for deadlines.
    vms =
      for suspended? <- [false, true] do
        netns = netns!()

        vm!(
          start(netns) <>
            """
            if #{suspended?}, do: :sys.suspend(NetlinkPort)
            System.cmd("kill", ["-STOP", to_string(helper)])
            large = :binary.copy(<<0>>, 1_000_000)
            fill = fn fill -> if NetlinkPort.send(socket, large, timeout: 50) == :ok, do: fill.(fill) end
            fill.(fill)
            IO.puts("full")
            System.stop(3)
            Process.sleep(:infinity)
            """,
          [],
          # The script is killed while it sleeps, and says so.
          "exec 2>/dev/null; exec elixir"
        )
      end

    for {port, _vm} <- vms do
      helper = port |> line!() |> String.to_integer()
      assert line!(port) == "full"
      assert_receive {^port, {:exit_status, 3}}, within(15_000)
      eventually!(fn -> not running?(helper) end, 1_000)
    end
  end

  test "the VM is stopped for longer than every deadline, and continued: the helper is not suspected" do
    netns = netns!()

    {port, vm} =
      vm!("""
      Application.ensure_all_started(:logger)
      child = {NetlinkPort, call_timeout: #{within(500)}, ping_interval: #{within(200)}}
      {:ok, _} = Supervisor.start_link([child], strategy: :one_for_one)
      {:ok, %{os_pid: helper}} = NetlinkPort.info(NetlinkPort)
      {:ok, socket} = NetlinkPort.open(:route, netns: {:name, "#{netns}"}, groups: [5])
      # Calls are made all the time. One of them may time out meanwhile.
      ask = fn ask -> _answer = NetlinkPort.info(socket); ask.(ask) end
      spawn(fn -> ask.(ask) end)
      IO.puts(helper)
      receive do
        {:netlink, ^socket, _event} -> IO.puts("flowing")
        {:netlink_closed, ^socket, reason} -> IO.puts(inspect(reason))
      end
      Process.sleep(:infinity)
      """)

    helper = port |> line!() |> String.to_integer()
    signal!(vm, :STOP)
    Process.sleep(within(2_500))
    signal!(vm, :CONT)
    # Longer than the deadline and the last chance together.
    Process.sleep(within(2_500))
    ip!(["-n", netns, "addr", "add", "10.0.0.1/32", "dev", "lo"])
    assert line!(port) == "flowing"
    assert running?(helper)
  end

  # The clock only of that VM and its helper: see clock.rs.
  test "the wall clock jumps by a day, in both directions: no deadline moves, the helper is not suspected" do
    offset = tmp_path!("offset")
    File.write!(offset, <<0::64>>)
    File.write!(offset <> ".request", Rtnl.getlink(1, 1))
    on_exit(fn -> File.rm(offset <> ".request") end)
    preload = {~c"LD_PRELOAD", to_charlist(fixture!("libclock.so"))}

    {port, _vm} =
      vm!(
        """
        Application.ensure_all_started(:logger)
        child = {NetlinkPort, call_timeout: 5_000, ping_interval: 100}
        {:ok, _} = Supervisor.start_link([child], strategy: :one_for_one)
        {:ok, %{os_pid: helper}} = NetlinkPort.info(NetlinkPort)
        {:ok, socket} = NetlinkPort.open(:route, active: false)
        request = File.read!("#{offset}.request")
        server = Process.whereis(NetlinkPort)
        start = System.os_time(:second)

        for jump <- [86_400, -86_400, 0] do
          # A caller that waits already when the clock jumps.
          waiting = Task.async(fn -> NetlinkPort.recv(socket, 30_000) end)
          waits? = fn -> map_size(:sys.get_state(server).sockets.monitors) == 2 end
          Enum.find(Stream.repeatedly(waits?), & &1)
          {:ok, file} = :file.open("#{offset}", [:raw, :read, :write])
          :ok = :file.pwrite(file, 0, <<jump::64-signed-native>>)
          true = abs(System.os_time(:second) - start - jump) < 3_600
          :ok = NetlinkPort.send(socket, request)
          {:ok, _datagram} = Task.await(waiting, 30_000)

          # Some pings, and some deadlines that pass.
          for _ <- 1..5 do
            {:error, %{reason: :etimedout}} = NetlinkPort.recv(socket, 100)
            {:ok, %{os_pid: ^helper}} = NetlinkPort.info(NetlinkPort)
          end

          IO.puts(jump)
        end

        receive do: (message -> IO.inspect(message)), after: (0 -> IO.puts("nothing else"))
        Process.sleep(:infinity)
        """,
        [preload, {~c"CLOCK_OFFSET", to_charlist(offset)}]
      )

    for line <- ["86400", "-86400", "0", "nothing else"], do: assert(line!(port) == line)
  end

  # Modules that the VM loads on demand take a descriptor, too.
  @load """
  for app <- [:kernel, :stdlib, :elixir, :logger, :netlink_port] do
    _loaded = Application.load(app)
    {:ok, modules} = :application.get_key(app, :modules)
    Enum.each(modules, &Code.ensure_loaded/1)
  end

  Application.ensure_all_started(:logger)
  Logger.configure(level: :critical)
  Process.flag(:trap_exit, true)
  """

  @take """
  take = fn take, open, taken ->
    case open.() do
      {:ok, one} -> take.(take, open, [one | taken])
      {:error, _limit} -> taken
    end
  end
  """

  test "the VM has no descriptor left: no server starts, and a stuck helper is killed when one is free" do
    {port, _vm} =
      vm!(
        @load <>
          @take <>
          """
          {:ok, server} = NetlinkPort.start_link(name: nil, call_timeout: #{within(500)}, ping_interval: #{within(200)})
          {:ok, %{os_pid: helper}} = NetlinkPort.info(server)
          IO.puts(helper)
          taken = take.(take, fn -> :file.open("/dev/null", [:raw, :read]) end, [])
          {:error, error} = NetlinkPort.start_link(name: nil)
          IO.puts(Exception.message(error))
          "go\n" = IO.gets("")
          receive do: ({:EXIT, ^server, :stuck} -> IO.puts("stuck"))
          "go\n" = IO.gets("")
          Enum.each(taken, &:file.close/1)
          Process.sleep(:infinity)
          """,
        [],
        "ulimit -n 60; exec elixir"
      )

    helper = port |> line!() |> String.to_integer()
    assert line!(port) =~ "EMFILE: the VM has no port or descriptor left"
    signal!(helper, :STOP)
    Port.command(port, "go\n")
    assert line!(port) == "stuck"
    # The notifier has tried by now, without success.
    Process.sleep(1_000)
    assert running?(helper)
    Port.command(port, "go\n")
    eventually!(fn -> not running?(helper) end, 5_000)
  end

  @tag root: true, init_user_namespace: true
  test "the VM's user may start no more processes: the error names the limits, and running servers go on" do
    # A user without other processes. The port program that starts the VM's programs is the one that forks.
    script = tmp_path!("nproc.exs")
    public = public!(helper())

    File.write!(script, """
    Process.flag(:trap_exit, true)
    opts = [name: nil, executable: "#{public}"]
    {:ok, server} = NetlinkPort.start_link(opts)
    limit = "prlimit --nproc=1:1 --pid $(pgrep -P #{"\#{System.pid()}"} erl_child_setup)"
    {_output, 0} = System.cmd("sh", ["-c", limit])
    {:error, error} = NetlinkPort.start_link(opts)
    IO.puts(Exception.message(error))
    {:ok, _socket} = NetlinkPort.open(server, :route, [])
    IO.puts("open")
    """)

    user = ["--reuid", "61234", "--regid", "61234", "--clear-groups"]
    elixir = ["elixir", "-pa", public_ebin!(), public!(script)]
    opts = [env: [{"HOME", "/"}], stderr_to_stdout: true]
    {output, status} = System.cmd("setpriv", user ++ elixir, opts)
    assert {output, status} == {output, 0}
    assert output =~ "EAGAIN: the VM can start no more processes: raise the limit of its user's"
    assert output =~ ~r/^open$/m
  end

  # In a VM of its own: the counter of the handles is the VM's.
  test "the VM has used up its handles: an open says to restart the VM, and open sockets go on" do
    {port, _vm} =
      vm!("""
      {:ok, server} = NetlinkPort.start_link(name: nil)
      # The first open makes the counter.
      {:ok, _first} = NetlinkPort.open(server, :route, [])
      counter = :persistent_term.get(NetlinkPort.Helper.Handle)
      :ok = :atomics.put(counter, 1, 0x7FFFFFFE)
      {:ok, %{handle: 0x7FFFFFFF} = last} = NetlinkPort.open(server, :route, active: false)
      {:ok, other} = NetlinkPort.start_link(name: nil)

      for server <- [server, other] do
        for failed <- [NetlinkPort.open(server, :route, []), NetlinkPort.pin(server, :host)] do
          {:error, error} = failed
          IO.puts(Exception.message(error))
        end

        IO.puts(inspect(NetlinkPort.Native.open_in_netns(server, "/proc/self/ns/net", 0)))
      end

      # RTM_GETLINK of interface 1
      {:ok, [_lo]} = NetlinkPort.request(last, 18, <<0::32, 1::32-native, 0::64>>)
      IO.puts("open sockets go on")
      """)

    hint =
      "EOVERFLOW: this VM has used up its 2^31 handles, one for each socket and pin that it ever opened; restart the VM"

    for _server <- 1..2 do
      assert line!(port) == "socket: " <> hint
      assert line!(port) == "open: " <> hint
      assert line!(port) == "{:error, {:socket, 75}}"
    end

    assert line!(port) == "open sockets go on"
  end

  test "the VM has no port left: no server starts, and running servers go on" do
    {port, _vm} =
      vm!(
        @load <>
          @take <>
          """
          {:ok, server} = NetlinkPort.start_link(name: nil)
          {:ok, socket} = NetlinkPort.open(server, :route, [])
          taken = take.(take, fn -> :gen_udp.open(0) end, [])
          {:error, error} = NetlinkPort.start_link(name: nil)
          IO.puts(Exception.message(error))
          {:ok, _} = NetlinkPort.info(socket)
          Enum.each(taken, &:gen_udp.close/1)
          {:ok, _server} = NetlinkPort.start_link(name: nil)
          IO.puts("started")
          System.stop(0)
          """,
        [],
        "exec elixir --erl '+Q 1024'"
      )

    assert line!(port) =~ "EMFILE: the VM has no port or descriptor left"
    assert line!(port) == "started"
    assert_receive {^port, {:exit_status, 0}}, within(20_000)
  end

  test "the VM has no process left: a call that needs one says so, and the server, its sockets and connections go on" do
    {port, _vm} =
      vm!(
        @load <>
          """
          {:ok, server} = NetlinkPort.start_link(name: nil)
          {:ok, socket} = NetlinkPort.open(server, :route, active: false)
          {:ok, connection} = NetlinkPort.Connection.start_link(server: server, protocol: :route)
          {:ok, monitor} = NetlinkPort.Monitor.start_link(server: server, protocol: :route, groups: [1])
          {:ok, ^monitor} = NetlinkPort.Monitor.subscribe(monitor)
          receive do: ({:netlink_resync, _, :subscribed} -> :ok)

          fill = fn fill ->
            try do
              spawn(fn -> Process.sleep(:infinity) end)
            rescue
              SystemLimitError -> :full
            else
              _pid -> fill.(fill)
            end
          end

          # What ends meanwhile leaves room for others.
          full = fn call ->
            fill.(fill)
            call.()
          end

          says = fn call ->
            {:error, error} = full.(call)
            IO.puts(Exception.message(error))
          end

          says.(fn -> NetlinkPort.start_link(name: nil) end)
          says.(fn -> NetlinkPort.Connection.start_link(server: server, protocol: :route) end)
          says.(fn -> NetlinkPort.Monitor.start_link(server: server, protocol: :route, groups: [1]) end)
          says.(fn -> NetlinkPort.capture(server, "#{tmp_path!("capture")}") end)
          says.(fn -> NetlinkPort.Connection.request(connection, 18, :binary.copy(<<0>>, 5_000)) end)

          {:ok, %{rss: nil, cpu: nil}} = full.(fn -> NetlinkPort.stats(server) end)
          {:ok, bounded} = full.(fn -> NetlinkPort.open(server, :route, groups: [1], max_queue: 10) end)
          {:ok, _links} = full.(fn -> NetlinkPort.dump(socket, 18, <<0::128>>) end)
          {:ok, _links} = full.(fn -> NetlinkPort.Connection.dump(connection, 18, <<0::128>>) end)

          # The notifier that is killed is replaced once there is room.
          %{notifier: notifier} = :sys.get_state(server)
          Process.exit(notifier, :kill)
          Process.sleep(50)
          true = Enum.all?([server, connection, monitor], &Process.alive?/1)
          {:ok, _info} = NetlinkPort.info(bounded)
          IO.puts("alive")
          System.halt(0)
          """,
        [],
        "exec elixir --erl '+P 1024'"
      )

    for what <- ["helper", "connection", "monitor", "capture", "send"] do
      assert line!(port) =~
               ~r/^#{what}: EAGAIN: the VM has no process left, of 1024 at most; raise \+P of erl/
    end

    assert line!(port) == "alive"
    assert_receive {^port, {:exit_status, 0}}, within(20_000)
  end

  # `:code.purge/1` kills each process that still runs the code that was loaded before the last time.
  test "the library's code is loaded twice: no process of the library ends, and an owner on another node keeps its socket" do
    NetlinkPort.Nodes.distributed!()

    {port, _vm} =
      vm!("""
      {:ok, _} = Application.ensure_all_started(:logger)
      Logger.configure(level: :critical)
      {:ok, _} = Node.start(:"nlp\#{System.pid()}@127.0.0.1", :longnames)
      Node.set_cookie(:twice)
      args = [~c"-setcookie", ~c"twice" | Enum.flat_map(:code.get_path(), &[~c"-pa", &1])]
      options = %{host: ~c"127.0.0.1", longnames: true, connection: :standard_io, wait_boot: #{within(15_000)}}
      {:ok, peer, node} = :peer.start_link(Map.merge(options, %{name: :peer.random_name(), args: args}))
      {:ok, _} = :peer.call(peer, :application, :ensure_all_started, [:elixir], #{within(5_000)})
      true = Node.connect(node)

      {:ok, server} = NetlinkPort.start_link(name: nil)
      {:ok, connection} = NetlinkPort.Connection.start_link(server: server, protocol: :route)
      family = [server: server, protocol: :generic, groups: [{"no_such_family", "events"}]]
      {:ok, monitor} = NetlinkPort.Monitor.start_link(family)
      {:ok, ^monitor} = NetlinkPort.Monitor.subscribe(monitor)
      receive do: ({:netlink_down, _, {:error, %{reason: :enoent}}} -> :ok)
      owner = :erpc.call(node, :erlang, :spawn, [:timer, :sleep, [:infinity]])
      {:ok, socket} = NetlinkPort.open(server, :route, owner: owner)

      notifier = :sys.get_state(server).notifier
      {:dictionary, dictionary} = Process.info(server, :dictionary)
      [relay] = for {{NetlinkPort.Nodes.Relay, ^node}, {relay, _sent}} <- dictionary, do: relay
      remote = :sys.get_state(relay).notifier

      load = fn ->
        for {module, _file} <- :code.all_loaded(), "Elixir.NetlinkPort" <> _ <- [Atom.to_string(module)] do
          {^module, code, file} = :code.get_object_code(module)
          :code.purge(module)
          {:module, ^module} = :code.load_binary(module, file, code)
        end
      end

      for _ <- 1..3 do
        load.()
        :erpc.call(node, :code, :purge, [NetlinkPort.Nodes.RemoteOwnerNotifier])
        {:module, _} = :erpc.call(node, :code, :load_file, [NetlinkPort.Nodes.RemoteOwnerNotifier])
      end

      for {name, process} <- [server: server, connection: connection, monitor: monitor, notifier: notifier, relay: relay],
          do: IO.puts("\#{name} \#{Process.alive?(process)}")

      IO.puts("remote \#{:erpc.call(node, Process, :alive?, [remote])}")
      {:ok, %{sockets: sockets}} = NetlinkPort.stats(server)
      IO.puts("socket \#{socket.handle in Enum.map(sockets, & &1.handle)}")
      {:ok, [_ | _]} = NetlinkPort.Connection.dump(connection, 18, <<0::128>>)
      System.halt(0)
      """)

    for name <- ~w(server connection monitor notifier relay remote socket),
        do: assert(line!(port) == "#{name} true")

    assert_receive {^port, {:exit_status, 0}}, within(20_000)
  end

  # A write(2) beyond the limit is SIGXFSZ, which ends the VM.
  test "the VM may write no longer file: a capture ends before that, and the VM goes on" do
    path = tmp_path!("capture")

    {port, _vm} =
      vm!("""
      {:ok, server} = NetlinkPort.start_link(name: nil)
      {:ok, socket} = NetlinkPort.open(server, :route, active: false)

      limit = fn bytes ->
        {"", 0} = System.cmd("prlimit", ["--fsize=\#{bytes}:", "--pid", System.pid()])
      end

      limit.(8_192)
      {:ok, capture} = NetlinkPort.capture(server, "#{path}")
      for _ <- 1..20, do: {:ok, _links} = NetlinkPort.dump(socket, 18, <<0::128>>)
      receive do: ({:netlink_capture_end, ^capture, error, _counts} -> IO.puts(Exception.message(error)))
      limit.(100)
      {:error, error} = NetlinkPort.capture(server, "#{path}")
      IO.puts(Exception.message(error))
      {:ok, _links} = NetlinkPort.dump(socket, 18, <<0::128>>)
      IO.puts("alive")
      System.halt(0)
      """)

    told = "capture of #{path}: EFBIG: the VM may write no longer file; raise its RLIMIT_FSIZE"
    for _ <- 1..2, do: assert(line!(port) =~ told)
    assert line!(port) == "alive"
    assert File.stat!(path).size in 4_096..8_192
  end
end
