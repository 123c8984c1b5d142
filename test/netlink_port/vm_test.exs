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

  test "the VM has no port left: no server starts, and running servers go on" do
    {port, _vm} =
      vm!(
        @load <>
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
end
