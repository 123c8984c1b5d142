defmodule NetlinkPort.NativeTest do
  use NetlinkPort.Case, async: false

  alias NetlinkPort.Native

  @moduletag :root

  setup do
    start_server!(name: NetlinkPort)
    %{netns: netns!()}
  end

  test "a socket is opened, bound, used and closed", %{netns: netns} do
    assert {:ok, handle} = Native.open_in_netns(netns_path(netns), 0)
    assert is_integer(handle) and handle >= 0
    assert Native.bind_netlink(handle, 0x1) == :ok

    assert %Socket{} = socket = NetlinkPort.socket(handle)
    assert NetlinkPort.memberships(socket) == {:ok, [1]}
    assert Rtnl.link_names(socket) == ["lo"]

    ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
    assert {:ok, event} = NetlinkPort.recv(socket, within(2_000))
    assert [{16, 0, payload}] = Rtnl.messages(event)
    assert Rtnl.link_name(payload) == "br0"

    assert Native.close_fd(handle) == :ok
    assert Native.close_fd(handle) == :ok
    assert {:error, %Error{reason: :ebadf}} = NetlinkPort.recv(socket, 0)
  end

  test "every failure has its stage and errno", %{netns: netns} do
    path = netns_path(netns)
    assert Native.open_in_netns("/nowhere", 0) == {:error, {:open, 2}}
    assert Native.open_in_netns("", 0) == {:error, {:open, 2}}
    assert Native.open_in_netns(path <> <<0>> <> "x", 0) == {:error, {:open, 22}}
    assert Native.open_in_netns(<<0>>, 0) == {:error, {:open, 22}}
    assert Native.open_in_netns(String.duplicate("a", 4096), 0) == {:error, {:open, 36}}
    assert Native.open_in_netns(String.duplicate("/", 5000), 0) == {:error, {:open, 36}}
    # 4094 bytes are a valid path, although no file has it.
    assert Native.open_in_netns(String.duplicate("/a", 2047), 0) == {:error, {:open, 2}}
    assert Native.open_in_netns("/etc/hostname/x", 0) == {:error, {:open, 20}}
    assert Native.open_in_netns("/etc/hostname", 0) == {:error, {:setns, 22}}
    assert Native.open_in_netns("/etc", 0) == {:error, {:setns, 22}}
    assert Native.open_in_netns("/dev/null", 0) == {:error, {:setns, 22}}
    assert Native.open_in_netns("/proc/self/ns/mnt", 0) == {:error, {:setns, 22}}
    assert Native.open_in_netns("/proc/self/ns/user", 0) == {:error, {:setns, 22}}

    for protocol <- [250, 32, -1, 2_147_483_648, -5_000_000_000] do
      assert Native.open_in_netns(path, protocol) == {:error, {:socket, 93}}
    end

    # The error of the path comes before that of the protocol, in the order of the system calls.
    assert Native.open_in_netns("/nowhere", 250) == {:error, {:open, 2}}
  end

  test "a FIFO is EINVAL at once" do
    fifo = tmp_path!("fifo")
    {_, 0} = System.cmd("mkfifo", [fifo])
    task = Task.async(fn -> Native.open_in_netns(fifo, 0) end)
    assert Task.await(task, within(1_000)) == {:error, {:setns, 22}}
  end

  # The open of a FIFO for writing waits for a reader.
  test "a file that is no namespace is not opened: a FIFO, a device, a socket, a directory" do
    fifo = tmp_path!("fifo")
    {_, 0} = System.cmd("mkfifo", [fifo])
    writer = os_process!("sh", ["-c", "exec 3> #{fifo}; exec sleep 600"])
    eventually!(fn -> File.read!("/proc/#{writer}/stat") =~ "(sh) S " end)
    socket = tmp_path!("socket")
    {:ok, _listener} = :gen_tcp.listen(0, ifaddr: {:local, socket})

    for path <- [fifo, "/dev/null", "/dev/tty", socket, "/", "/etc/hostname"] do
      assert {path, Native.open_in_netns(path, 0)} == {path, {:error, {:setns, 22}}}
    end

    # If its open(2) had returned, the shell would be another program (sleep) by now.
    Process.sleep(100)
    assert File.read!("/proc/#{writer}/stat") =~ "(sh) S "
  end

  test "an open creates no file" do
    path = tmp_path!("missing")
    assert Native.open_in_netns(path, 0) == {:error, {:open, 2}}
    refute File.exists?(path)
    assert Native.open_in_netns(Path.join(path, "deeper"), 0) == {:error, {:open, 2}}
    refute File.exists?(path)
  end

  test "binding twice changes the groups and keeps the port id", %{netns: netns} do
    {:ok, handle} = Native.open_in_netns(netns_path(netns), 0)
    socket = NetlinkPort.socket(handle)
    {:ok, %{port_id: port_id}} = NetlinkPort.info(socket)
    assert port_id != 0

    assert Native.bind_netlink(handle, 0x8000_0001) == :ok
    assert NetlinkPort.memberships(socket) == {:ok, [1, 32]}
    assert Native.bind_netlink(handle, 0) == :ok
    assert NetlinkPort.memberships(socket) == {:ok, []}
    assert {:ok, %{port_id: ^port_id}} = NetlinkPort.info(socket)
  end

  test "bind answers EBADF for a handle that is not open" do
    assert Native.bind_netlink(0, 1) == {:error, 9}
    assert Native.bind_netlink(2_000_000_000, 1) == {:error, 9}
  end

  test "wrong arguments raise in the caller" do
    assert_raise ArgumentError, fn -> Native.open_in_netns(:blue, 0) end
    assert_raise ArgumentError, fn -> Native.open_in_netns("/run/netns/blue", :route) end
    assert_raise ArgumentError, fn -> Native.bind_netlink(1, -1) end
    assert_raise ArgumentError, fn -> Native.bind_netlink(1, 0x1_0000_0000) end
  end

  test "close is :ok for any value" do
    for handle <- [0, 77, -1, 5_000_000_000, :none, "fd"] do
      assert Native.close_fd(handle) == :ok
    end
  end

  test "a handle closes with the process that opened it", %{netns: netns} do
    before = fds(NetlinkPort)
    test = self()

    {pid, monitor} =
      spawn_monitor(fn -> send(test, Native.open_in_netns(netns_path(netns), 0)) end)

    assert_receive {:ok, handle}
    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}
    eventually!(fn -> fds(NetlinkPort) == before end)
    assert Native.bind_netlink(handle, 1) == {:error, 9}
  end

  describe "without a helper" do
    test "a call is ESRCH if no server runs" do
      assert Native.open_in_netns(:no_such_server, "/proc/self/ns/net", 0) ==
               {:error, {:thread, 3}}

      assert Native.bind_netlink(:no_such_server, 1, 1) == {:error, 3}
      assert Native.close_fd({:via, NoSuchModule, 1}, 1) == :ok
      assert Native.close_fd(:no_such_server, 1) == :ok
    end

    test "a waiting call is EPIPE when the helper dies, and later calls are ESRCH" do
      server = start_server!(name: :dying, call_timeout: 10_000)
      os_pid = os_pid(server)
      signal!(os_pid, :STOP)

      opening = Task.async(fn -> Native.open_in_netns(:dying, "/proc/self/ns/net", 0) end)

      eventually!(fn -> awaited?(server) end)
      signal!(os_pid, :KILL)
      assert Task.await(opening, within(5_000)) == {:error, {:thread, 32}}
      eventually!(fn -> not Process.alive?(server) end)
      assert Native.open_in_netns(:dying, "/proc/self/ns/net", 0) == {:error, {:thread, 3}}
      assert Native.bind_netlink(:dying, 1, 1) == {:error, 3}
      assert Native.close_fd(:dying, 1) == :ok
    end

    test "a call is ETIMEDOUT if the helper is stuck" do
      server = start_server!(name: :stuck, call_timeout: within(200))
      {:ok, handle} = Native.open_in_netns(:stuck, "/proc/self/ns/net", 0)
      signal!(os_pid(server), :STOP)
      assert Native.open_in_netns(:stuck, "/proc/self/ns/net", 0) == {:error, {:thread, 110}}
      assert Native.close_fd(:stuck, handle) == :ok
      eventually!(fn -> not Process.alive?(server) end)
    end
  end
end
