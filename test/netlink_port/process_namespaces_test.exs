defmodule NetlinkPort.ProcessNamespacesTest do
  # Namespaces by process id, where processes end, are replaced, stopped, or see other files.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # A server whose helper can be held where it has found a process, before it opens its namespace; and
  # a shell beside it. They have a process id namespace of their own, so that numbers can be taken
  # again there without danger to any other process.
  defp start_held! do
    hold = tmp_path!("hold")
    on_exit(fn -> File.rm(hold <> ".held") end)
    unshare = "unshare --pid --fork --kill-child --mount-proc"
    injected = "#{fixture!("inject")} openat EPERM hold:#{hold} #{helper()}"
    server = start_server!(executable: script!("exec #{unshare} #{injected} \"$@\""))
    {parent, _start_time} = :sys.get_state(server).process
    {child, 0} = System.cmd("pgrep", ["-P", "#{parent}"])
    arguments = ["-t", String.trim(child), "--pid", "--mount", "sh"]
    nsenter = System.find_executable("nsenter")
    shell = Port.open({:spawn_executable, nsenter}, [:binary, line: 100, args: arguments])
    %{server: server, hold: hold, shell: shell, before: fds(server)}
  end

  # The line that a command of that shell prints.
  defp shell!(%{shell: shell}, command) do
    Port.command(shell, command <> "\n")
    assert_receive {^shell, {:data, {:eol, line}}}, within(5_000)
    line
  end

  # A process in a namespace; returns its number as it is in that shell.
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

  # Opens a socket in the namespace of a process; `fun` is run between the look-up and the open.
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

  test "one whose number another process has taken meanwhile is ESRCH, and not that other's" do
    [one, other] = [netns!(), netns!()]
    held = start_held!()
    pid = process!(held, one)

    result =
      open_held(held, pid, fn ->
        end!(held, pid)
        # The kernel counts up from the last one.
        "ok" = shell!(held, "echo #{pid - 1} > /proc/sys/kernel/ns_last_pid && echo ok")
        assert process!(held, other) == pid
      end)

    assert {:error, %Error{stage: :open, reason: :esrch}} = result
    assert fds(held.server) == held.before
    # Asked for by that number now, it is the successor's.
    assert {:ok, socket} = NetlinkPort.open(held.server, :route, netns: {:pid, pid})
    inode = inode(netns_path(other))
    assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
  end

  test "that of a stopped process is opened like any other" do
    netns = netns!()
    pid = sleeper!(netns)
    signal!(pid, :STOP)
    server = start_server!()
    assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:pid, pid}, active: false)
    inode = inode(netns_path(netns))
    assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
    assert Rtnl.link_names(socket) == ["lo"]
  end

  test "a name of another mount namespace is none here; a process of there leads to it" do
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
end
