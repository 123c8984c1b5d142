defmodule NetlinkPort.UserNamespacesTest do
  # Namespaces of a user namespace that is not the helper's. A child of the helper enters them: rootless containers,
  # and a helper without any privilege.
  use NetlinkPort.Case, async: true

  @moduletag root: true, userns: true, init_user_namespace: true

  @nobody ["--reuid", "65534", "--regid", "65534", "--clear-groups"]

  # A helper of an ordinary user, without any capability.
  defp start_as_nobody!(opts \\ [user_namespaces: true]) do
    script = script!("exec setpriv #{Enum.join(@nobody, " ")} #{public!(helper())} \"$@\"")
    start_server!([executable: script] ++ opts)
  end

  # A container of that user: a process in its own user and network namespaces.
  defp container! do
    pid = os_process!("setpriv", @nobody ++ ["unshare", "-Urn", "sleep", "600"])
    eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
    pid
  end

  # A refusal would come as the next datagram.
  defp create_bridge!(socket, name) do
    :ok = NetlinkPort.send(socket, Rtnl.new_bridge(name, 1), wait: true)
    assert name in Rtnl.link_names(socket)
  end

  test "without any privilege the helper opens its user's container, which can be read and changed" do
    server = start_as_nobody!()
    assert {:ok, %{capabilities: [], may_leave: false}} = NetlinkPort.info(server)
    pid = container!()

    for netns <- [{:pid, pid}, {:path, "/proc/#{pid}/ns/net"}] do
      assert {:ok, socket} = NetlinkPort.open(server, :route, netns: netns, active: false)
      inode = inode("/proc/#{pid}/ns/net")
      assert {:ok, %{inode: ^inode, verified: true}} = NetlinkPort.info(socket)
      name = "br-#{elem(netns, 0)}"
      create_bridge!(socket, name)
    end

    {links, 0} = System.cmd("nsenter", ["-t", "#{pid}", "-n", "ip", "-br", "link"])
    assert links =~ "br-pid" and links =~ "br-path"
  end

  test "events arrive from the container" do
    server = start_as_nobody!()
    pid = container!()
    {:ok, events} = NetlinkPort.open(server, :route, netns: {:pid, pid}, groups: [1])
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:pid, pid}, active: false)
    create_bridge!(socket, "br0")
    assert_receive {:netlink, ^events, datagram}
    assert [{16, _sequence, _link} | _] = Rtnl.messages(datagram)
  end

  test "errors of the child have their own stage and errno" do
    server = start_as_nobody!()
    netns = {:pid, container!()}
    root = {:pid, os_process!("sleep", ["600"])}
    other = netns!()

    for {protocol, netns, stage, errno} <- [
          {250, netns, :socket, 93},
          {:route, {:path, "/etc/passwd"}, :setns, 22},
          {:route, {:path, "/nowhere"}, :open, 2},
          # The namespaces of root do not belong to this user.
          {:route, root, :open, 13},
          {:route, {:name, other}, :setns, 1}
        ] do
      assert {:error, error} = NetlinkPort.open(server, protocol, netns: netns)
      assert {protocol, netns, error.stage, error.errno} == {protocol, netns, stage, errno}
    end
  end

  test "an open without user_namespaces: true is EPERM" do
    server = start_as_nobody!([])
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, container!()})
    assert {error.stage, error.errno} == {:setns, 1}
    assert Exception.message(error) =~ "user_namespaces: true"
  end

  test "a namespace that the helper may not enter can be pinned; the pin has a cookie only if it may" do
    container = {:pid, container!()}
    other = {:name, netns!()}
    entering = start_as_nobody!()
    {:ok, socket} = NetlinkPort.open(entering, :route, netns: container, active: false)
    {:ok, %{cookie: cookie, inode: inode}} = NetlinkPort.info(socket)
    assert {:ok, %{cookie: ^cookie, inode: ^inode}} = NetlinkPort.pin(entering, container)
    assert {:ok, %{cookie: nil}} = NetlinkPort.pin(entering, other)
    staying = start_as_nobody!([])
    assert {:ok, %{cookie: nil, inode: ^inode}} = NetlinkPort.pin(staying, container)
    # A file that the user may not open is refused as usual.
    root = {:pid, os_process!("sleep", ["600"])}
    assert {:error, %Error{stage: :open, reason: :eacces}} = NetlinkPort.pin(staying, root)
  end

  test "opens and pins leave no descriptor and no child behind" do
    server = start_as_nobody!()
    netns = {:pid, container!()}
    before = fds(server)
    children = "/proc/#{os_pid(server)}/task/#{os_pid(server)}/children"

    for _ <- 1..200 do
      {:ok, socket} = NetlinkPort.open(server, :route, netns: netns)
      :ok = NetlinkPort.close(socket)
      {:error, %{stage: :socket}} = NetlinkPort.open(server, 250, netns: netns)
      {:ok, pin} = NetlinkPort.pin(server, netns)
      :ok = NetlinkPort.unpin(pin)
    end

    assert fds(server) == before
    assert File.read!(children) == ""
  end

  test "inside unshare -Ur, where the helper could not return, the child enters other namespaces" do
    helper = public!(helper())
    pidfile = tmp_path!("pid")

    # A namespace made there belongs to that user namespace.
    script =
      script!("""
      exec setpriv #{Enum.join(@nobody, " ")} unshare -Ur sh -c '
        unshare -n sleep 600 </dev/null >/dev/null 2>&1 &
        echo $! >&3
        exec #{helper} "$@"' sh "$@" 3> #{pidfile}
      """)

    server = start_server!(executable: script, user_namespaces: true)
    pid = pidfile |> File.read!() |> String.trim() |> String.to_integer()
    on_exit(fn -> System.cmd("kill", ["-KILL", "#{pid}"], stderr_to_stdout: true) end)
    home = inode("/proc/self/ns/net")
    eventually!(fn -> inode("/proc/#{pid}/ns/net") != home end)

    assert {:ok, %{may_leave: false, home_inode: ^home}} = NetlinkPort.info(server)
    assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:pid, pid}, active: false)
    inode = inode("/proc/#{pid}/ns/net")
    assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
    create_bridge!(socket, "br0")
    assert Enum.sort(Rtnl.link_names(socket)) == ["br0", "lo"]
    assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: :host)
  end

  # Root installs the filter of the fault.
  defp start_injected_as_nobody!(fault, opts \\ []) do
    injected = "#{fixture!("inject")} #{fault} setpriv #{Enum.join(@nobody, " ")}"
    script = script!("exec #{injected} #{public!(helper())} \"$@\"")
    start_server!([executable: script, user_namespaces: true] ++ opts)
  end

  test "an open says that no process or descriptor is left for the child, and everything else goes on" do
    netns = {:pid, container!()}

    for {syscall, errno, reason} <- [
          {"clone", "EAGAIN", :eagain},
          {"socketpair", "EMFILE", :emfile},
          {"prctl", "EPERM", :eperm}
        ] do
      switch = tmp_path!("fault")
      server = start_injected_as_nobody!("#{syscall} #{errno} file:#{switch}")
      {:ok, socket} = NetlinkPort.open(server, :route, netns: netns, active: false)
      before = fds(server)
      File.write!(switch, "")
      assert {:error, error} = NetlinkPort.open(server, :route, netns: netns)
      assert {syscall, error.stage, error.reason} == {syscall, :setns, reason}
      File.rm!(switch)
      assert fds(server) == before
      assert Rtnl.link_names(socket) == ["lo"]
      assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: netns)
    end
  end

  # The owner of a user namespace may signal processes that join it.
  test "a child that is stopped in the container does not outlive its helper" do
    hold = tmp_path!("hold")
    on_exit(fn -> File.rm(hold <> ".held") end)
    server = start_injected_as_nobody!("socket EPERM hold:#{hold}", call_timeout: within(1_000))
    {:ok, socket} = NetlinkPort.open(server, :route, [])
    helper = os_pid(server)
    netns = {:pid, container!()}

    File.write!(hold, "")
    opening = spawn_reporting(fn -> NetlinkPort.open(server, :route, netns: netns) end)
    eventually!(fn -> File.exists?(hold <> ".held") end)
    {child, 0} = System.cmd("pgrep", ["-P", "#{helper}"])
    child = String.trim(child)
    on_exit(fn -> as_root("kill", ["-KILL", child]) end)
    {_output, 0} = System.cmd("setpriv", @nobody ++ ["kill", "-STOP", child])
    File.rm!(hold <> ".held")

    assert_receive {:result, ^opening, {:error, %Error{stage: :thread, reason: :etimedout}}},
                   within(5_000)

    assert_receive {:netlink_closed, ^socket, :stuck}, within(5_000)
    eventually!(fn -> not running?(helper) and not running?(child) end)
  end
end
