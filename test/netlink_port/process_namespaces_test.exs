defmodule NetlinkPort.ProcessNamespacesTest do
  # Namespaces by process id, with processes that end, are replaced or stopped, or see other files.
  use NetlinkPort.Case, async: true

  @moduletag :root

  alias NetlinkPort.{Connection, Monitor}
  alias NetlinkPort.Server.Opening
  alias NetlinkPort.Monitor.Snapshot

  # A server whose helper can be held between finding a process and opening its namespace, and a shell. They have
  # their own pid namespace, so that a number can be used again there without danger to other processes.
  defp start_held! do
    hold = tmp_path!("hold")
    on_exit(fn -> File.rm(hold <> ".held") end)
    unshare = "unshare --pid --fork --kill-child --mount-proc"
    injected = "#{fixture!("inject")} openat EPERM hold:#{hold} #{helper()}"
    server = start_server!(executable: script!("exec #{unshare} #{injected} \"$@\""))
    %{os_pid: parent} = :sys.get_state(server).process
    {child, 0} = System.cmd("pgrep", ["-P", "#{parent}"])
    arguments = ["-t", String.trim(child), "--pid", "--mount", "sh"]
    nsenter = System.find_executable("nsenter")
    shell = Port.open({:spawn_executable, nsenter}, [:binary, line: 100, args: arguments])
    %{server: server, hold: hold, shell: shell, before: fds(server)}
  end

  # A shell in its own pid namespace with its own /proc, and a server whose helpers run there, also after a
  # restart.
  defp start_inside! do
    file = tmp_path!("init")
    script = "echo $$ > #{file}; exec unshare --pid --fork --kill-child --mount-proc sh"
    sh = System.find_executable("sh")
    options = [:binary, line: 100, args: ["-c", script]]
    inside = %{shell: Port.open({:spawn_executable, sh}, options)}
    assert shell!(inside, "echo $$") == "1"
    parent = file |> File.read!() |> String.trim()
    [init] = "/proc/#{parent}/task/#{parent}/children" |> File.read!() |> String.split()
    enter = "exec nsenter -t #{init} --pid --mount #{helper()} \"$@\""
    name = :"inside#{System.unique_integer([:positive])}"
    _server = start_server!(name: name, executable: script!(enter), restart: :permanent)
    Map.put(inside, :server, name)
  end

  # Another process, in another namespace, gets the number of a process that has ended.
  defp succeed!(inside, pid, netns) do
    end!(inside, pid)
    # The kernel counts up from the last number.
    "ok" = shell!(inside, "echo #{pid - 1} > /proc/sys/kernel/ns_last_pid && echo ok")
    assert process!(inside, netns) == pid
  end

  # The line that a command of the shell prints.
  defp shell!(%{shell: shell}, command) do
    Port.command(shell, command <> "\n")
    assert_receive {^shell, {:data, {:eol, line}}}, within(5_000)
    line
  end

  # A process in a namespace. Returns its number in the shell's pid namespace.
  defp process!(held, netns) do
    enter = "nsenter --net=#{netns_path(netns)}"
    pid = shell!(held, "#{enter} sleep 600 > /dev/null 2>&1 & echo $!")
    comm = "cat /proc/#{pid}/comm"
    eventually!(fn -> shell!(held, comm) == "sleep" end)
    String.to_integer(pid)
  end

  defp end!(held, pid) do
    assert shell!(held, "kill -KILL #{pid}; wait #{pid} 2> /dev/null; echo ended") == "ended"
  end

  # Opens a socket in the namespace of a process, and runs `fun` between the look-up and the open.
  defp open_held(%{server: server, hold: hold}, pid, fun) do
    File.write!(hold, "")
    opening = spawn_reporting(fn -> NetlinkPort.open(server, :route, netns: {:pid, pid}) end)
    eventually!(fn -> File.exists?(hold <> ".held") end)
    fun.()
    File.rm!(hold <> ".held")
    assert_receive {:result, ^opening, result}, within(5_000)
    result
  end

  test "a process that ends between look-up and open is ESRCH" do
    netns = netns!()
    held = start_held!()
    pid = process!(held, netns)
    assert {:error, error} = open_held(held, pid, fn -> end!(held, pid) end)
    assert {error.stage, error.reason} == {:open, :esrch}
    assert fds(held.server) == held.before
  end

  @tag :ns_last_pid
  test "an open is ESRCH when another process has taken the process id meanwhile" do
    [one, other] = [netns!(), netns!()]
    held = start_held!()
    pid = process!(held, one)

    result =
      open_held(held, pid, fn ->
        end!(held, pid)
        # The kernel counts up from the last number.
        "ok" = shell!(held, "echo #{pid - 1} > /proc/sys/kernel/ns_last_pid && echo ok")
        assert process!(held, other) == pid
      end)

    assert {:error, %Error{stage: :open, reason: :esrch}} = result
    assert fds(held.server) == held.before
    # An open by that number now finds the later process.
    assert {:ok, socket} = NetlinkPort.open(held.server, :route, netns: {:pid, pid})
    inode = inode(netns_path(other))
    assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
  end

  describe "when another process has the id of the process that was opened," do
    @describetag :ns_last_pid

    test "a connection gets ESRCH, by every path to it, also with a new helper" do
      [one, other] = [netns!(), netns!()]
      inside = start_inside!()
      pid = process!(inside, one)
      folder = tmp_path!("folder")
      File.mkdir!(folder)
      File.ln_s!("/proc/#{pid}/ns/net", Path.join(folder, "link"))

      connections =
        for netns <- [
              {:pid, pid},
              {:path, "/proc/#{pid}/ns/net"},
              {:path, "/proc/#{pid}/task/#{pid}/ns/net"},
              {:path, "/proc/#{pid}/root/proc/#{pid}/ns/net"},
              {:path, Path.join(folder, "link")}
            ],
            opts <- [[], [close_on: :namespace_gone]] do
          opts = [server: inside.server, protocol: :route, netns: netns] ++ opts
          connection = start_supervised!({Connection, opts}, id: make_ref())
          # RTM_GETLINK
          assert {:ok, [_lo]} = Connection.dump(connection, 18, <<0::128>>)
          connection
        end

      succeed!(inside, pid, other)
      # Owners that have not noticed lose their sockets, too.
      as_root("kill", ["-KILL", "#{os_pid(inside.server)}"])
      Process.exit(Process.whereis(inside.server), :kill)

      for connection <- connections do
        eventually!(fn ->
          assert {:error, error} = Connection.dump(connection, 18, <<0::128>>)
          error.reason == :esrch and Exception.message(error) =~ "another process has its number"
        end)
      end

      # A first open by that number finds the later process.
      assert {:ok, socket} = NetlinkPort.open(inside.server, :route, netns: {:pid, pid})
      inode = inode(netns_path(other))
      assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
    end

    test "a monitor stays down, and reads no snapshots" do
      [one, other] = [netns!(), netns!()]
      inside = start_inside!()
      pid = process!(inside, one)
      dump = {18, <<0::128>>}
      opts = [server: inside.server, netns: {:pid, pid}, groups: [1], dump: [dump]]
      monitor = start_supervised!({Monitor, opts})
      assert {:ok, ^monitor} = Monitor.subscribe(monitor)
      assert_receive {:netlink_snapshot, ^monitor, :end}
      %{known: [{^pid, _started, _inode}] = known} = :sys.get_state(monitor)
      succeed!(inside, pid, other)
      assert_receive {:netlink_down, ^monitor, :namespace_gone}

      # The monitor tries now, and has tried once the wait is over.
      send(monitor, :open)
      eventually!(fn -> :sys.get_state(monitor).opening == nil end)
      assert {:down, :namespace_gone} = :sys.get_state(monitor).place
      refute_received {:netlink_resync, ^monitor, :namespace_gone}

      netns = [netns: {:pid, pid}]
      assert {:error, error} = Opening.again(inside.server, :route, netns, known)
      assert {error.stage, error.reason} == {:open, :esrch}

      assert Exception.message(error) =~
               "the process #{pid} that was named has ended; another process has its number now"

      assert {:error, ^error} = Snapshot.read(inside.server, :route, netns, known, [dump])
    end

    test "a link that leads to a process with another id opens" do
      [one, other] = [netns!(), netns!()]
      inside = start_inside!()
      [pid, next] = for netns <- [one, other], do: process!(inside, netns)
      link = tmp_path!("link")
      File.ln_s!("/proc/#{pid}/ns/net", link)
      opts = [netns: {:path, link}, close_on: :namespace_gone]
      assert {:ok, socket, known} = Opening.again(inside.server, :route, opts, [])
      {_output, 0} = as_root("ln", ["-sfn", "/proc/#{next}/ns/net", link])
      assert_receive {:netlink_closed, ^socket, :namespace_gone}
      assert {:ok, socket, [{^next, _, _}]} = Opening.again(inside.server, :route, opts, known)
      inode = inode(netns_path(other))
      assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
    end
  end

  test "the namespace of a stopped process opens" do
    netns = netns!()
    pid = sleeper!(netns)
    signal!(pid, :STOP)
    server = start_server!()
    assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:pid, pid}, active: false)
    inode = inode(netns_path(netns))
    assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
    assert Rtnl.link_names(socket) == ["lo"]
  end

  test "a name of another mount namespace is EINVAL here; {:pid, pid} of a process there opens" do
    name = "nlp-#{System.pid()}-#{System.unique_integer([:positive])}"
    on_exit(fn -> File.rm(netns_path(name)) end)
    script = "ip netns add #{name} && exec ip netns exec #{name} sleep 600"
    pid = os_process!("unshare", ["--mount", "sh", "-c", script])
    eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
    server = start_server!()
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, name})
    assert {error.stage, error.reason} == {:setns, :einval}
    assert Exception.message(error) =~ "it is not a network namespace"

    inode = inode("/proc/#{pid}/ns/net")

    assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
  end

  # Without a free descriptor the helper cannot tell through which process a path leads.
  test "near the limit of descriptors an open is EMFILE, and never that of a process with the number of another" do
    pid = sleeper!(netns!())
    limited = script!("ulimit -n 40; exec #{helper()} \"$@\"")
    server = start_server!(executable: limited)
    open = fn -> NetlinkPort.open(server, :route, []) end
    sockets = open |> Stream.repeatedly() |> Enum.take_while(&match?({:ok, _socket}, &1))

    for {:ok, socket} <- [{:ok, nil} | Enum.take(sockets, 12)] do
      if socket, do: NetlinkPort.close(socket)

      for netns <- [{:pid, pid}, {:path, "/proc/#{pid}/ns/net"}],
          close_on <- [nil, :namespace_gone] do
        opts = [netns: netns, close_on: close_on, active: false]

        case Opening.again(server, :route, opts, []) do
          {:ok, opened, known} ->
            assert [{^pid, _started, _inode}] = known
            NetlinkPort.close(opened)

          {:error, error} ->
            assert error.reason == :emfile
        end

        # Another process had this number.
        assert {:error, error} = Opening.again(server, :route, opts, [{pid, 1, 1}])
        assert error.reason in [:emfile, :esrch]
      end
    end

    assert {:ok, _socket, [_process]} = Opening.again(server, :route, [netns: {:pid, pid}], [])
  end
end
