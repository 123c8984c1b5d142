defmodule NetlinkPort.ProcessNamespacesTest do
  # Namespaces by process id, where processes end, are replaced, stopped, or see other files.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # A process that can be ended and reaped; its number is free afterwards.
  defp process!(netns \\ nil) do
    inside = if netns, do: ["ip", "netns", "exec", netns], else: []
    [program | arguments] = inside ++ ["sleep", "600"]
    pid = os_process!(program, arguments)
    eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
    pid
  end

  defp end!(pid) do
    signal!(pid, :KILL)
    eventually!(fn -> not File.exists?("/proc/#{pid}") end)
  end

  # A server whose helper can be held where it has found a process, before it opens its namespace.
  defp start_held! do
    hold = tmp_path!("hold")
    on_exit(fn -> File.rm(hold <> ".held") end)
    {start_injected!("openat EPERM hold:#{hold}"), hold}
  end

  # Opens a socket in the namespace of a process; `fun` is run between the look-up and the open.
  defp open_held(server, hold, pid, fun) do
    File.write!(hold, "")
    opening = spawn_reporting(fn -> NetlinkPort.open(server, :route, netns: {:pid, pid}) end)
    eventually!(fn -> File.exists?(hold <> ".held") end)
    fun.()
    File.rm!(hold <> ".held")
    assert_receive {:result, ^opening, result}, 5_000
    result
  end

  # Takes a number that is free for a process in a namespace: the kernel counts up from the last one.
  defp successor!(_pid, _netns, 0), do: flunk("the number is never free")

  defp successor!(pid, netns, tries) do
    script = """
    echo #{pid - 1} > /proc/sys/kernel/ns_last_pid
    nsenter --net=#{netns_path(netns)} sleep 600 > /dev/null 2>&1 &
    echo $!
    """

    {output, 0} = System.cmd("sh", ["-c", script])
    taken = output |> String.trim() |> String.to_integer()
    on_exit(fn -> as_root("kill", ["-KILL", "#{taken}"]) end)

    if taken == pid do
      inode = inode(netns_path(netns))
      eventually!(fn -> inode("/proc/#{pid}/ns/net") == inode end)
    else
      signal!(taken, :KILL)
      successor!(pid, netns, tries - 1)
    end
  end

  test "a process that ends between look-up and open is ESRCH" do
    {server, hold} = start_held!()
    before = fds(server)
    pid = process!()
    assert {:error, error} = open_held(server, hold, pid, fn -> end!(pid) end)
    assert {error.stage, error.reason} == {:open, :esrch}
    assert fds(server) == before
  end

  test "one whose number another process has taken meanwhile is ESRCH, and not that other's" do
    {server, hold} = start_held!()
    before = fds(server)
    [one, other] = [netns!(), netns!()]
    pid = process!(one)

    result =
      open_held(server, hold, pid, fn ->
        end!(pid)
        successor!(pid, other, 100)
      end)

    assert {:error, %Error{stage: :open, reason: :esrch}} = result
    assert fds(server) == before
    # Asked for by that number now, it is the successor's.
    assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    inode = inode(netns_path(other))
    assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
  end

  test "that of a stopped process is opened like any other" do
    netns = netns!()
    pid = process!(netns)
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
