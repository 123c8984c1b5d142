defmodule NetlinkPort.PathsTest do
  # The file that a path leads to decides, however the path is written.
  use NetlinkPort.Case, async: true

  # Many open namespaces of processes with more capabilities, CAP_SYS_PTRACE.
  @moduletag root: true, init_user_namespace: true

  # A process of root's with more capabilities than the helper, and with a folder in its mount namespace that
  # contains a namespace file: like a container.
  defp container!(netns) do
    folder = folder!()

    inside =
      "mount -t tmpfs tmpfs #{folder} && touch #{folder}/blue && " <>
        "mount --bind #{netns_path(netns)} #{folder}/blue && exec ip netns exec #{netns} sleep 600"

    pid = os_process!("unshare", ["-m", "--propagation", "private", "sh", "-c", inside])
    eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
    %{pid: pid, folder: folder}
  end

  defp folder! do
    folder = tmp_path!("folder")
    File.mkdir!(folder)
    folder
  end

  # Another mount of the same procfs, like the host's in a container.
  defp procfs! do
    folder = folder!()
    {_output, 0} = as_root("mount", ["-t", "proc", "proc", folder])
    on_exit(fn -> as_root("umount", ["--lazy", folder]) end)
    folder
  end

  # Every spelling of a path to the namespace of a process, or through the process.
  defp spellings(%{pid: pid, folder: inside}) do
    folder = folder!()
    own = "/proc/#{pid}/ns/net"
    links = [first: own, chain: "first", away: "#{folder}/chain", up: "../../../../..#{own}"]
    for {name, target} <- links, do: File.ln_s!(target, Path.join(folder, "#{name}"))
    File.ln_s!("/proc/#{pid}/ns", Path.join(folder, "namespaces"))
    other = procfs!()

    for({name, _target} <- links, do: Path.join(folder, "#{name}")) ++
      [
        own,
        "//proc/./#{pid}//ns/net",
        "/proc/#{pid}/task/../ns/net",
        "/proc/#{pid}/task/#{pid}/ns/net",
        "/proc/self/../#{pid}/ns/net",
        "/proc/self/root/proc/#{pid}/ns/net",
        Path.join(folder, "namespaces/net"),
        "#{other}/#{pid}/ns/net",
        "#{other}/#{pid}/task/#{pid}/ns/net",
        "/proc/#{pid}/root#{inside}/blue",
        "/proc/#{pid}/root#{folder}/first"
      ]
  end

  test "every form of path that leads to a process opens as {:pid, pid} does" do
    netns = netns!()
    inode = inode(netns_path(netns))
    server = start_server!()

    for path <- spellings(container!(netns)) do
      assert {^path, {:ok, socket}} =
               {path, NetlinkPort.open(server, :route, netns: {:path, path})}

      assert {:ok, %{inode: ^inode, verified: true}} = NetlinkPort.info(socket)
    end
  end

  test "a link in /run/netns that leads to a process opens as {:pid, pid} does" do
    netns = netns!()
    %{pid: pid} = container!(netns)
    name = "nlp-#{System.pid()}-#{System.unique_integer([:positive])}"
    on_exit(fn -> as_root("rm", ["-f", netns_path(name)]) end)
    {_output, 0} = as_root("ln", ["-s", "/proc/#{pid}/ns/net", netns_path(name)])
    server = start_server!()
    opts = [netns: {:name, name}, close_on: :namespace_gone]
    assert {:ok, socket} = NetlinkPort.open(server, :route, opts)
    signal!(pid, "KILL")
    assert_receive {:netlink_closed, ^socket, :namespace_gone}
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, name})
    assert error.reason == :enoent
    assert Exception.message(error) =~ "there is no process #{pid} in that /proc"
  end

  test "without CAP_SYS_PTRACE each form of path is EACCES with the process and the missing capability" do
    container = container!(netns!())
    server = start_without!("sys_ptrace")

    for path <- spellings(container), opts <- [[], [close_on: :namespace_gone]] do
      assert {:error, error} = NetlinkPort.open(server, :route, [netns: {:path, path}] ++ opts)
      assert {path, error.stage, error.reason, error.lacks} == {path, :open, :eacces, :sys_ptrace}

      assert {path, Exception.message(error) =~ "leads to process #{container.pid}"} ==
               {path, true}
    end
  end

  defp start_without!(capability) do
    drop = "setpriv --bounding-set -#{capability}"
    start_server!(executable: script!("exec #{drop} #{helper()} \"$@\""))
  end

  test "CAP_SYS_PTRACE is lowered again after an open" do
    server = start_server!()
    [path | _] = spellings(container!(netns!()))
    assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:path, path})
    status = File.read!("/proc/#{os_pid(server)}/status")
    [_, effective] = Regex.run(~r/^CapEff:\s+(\w+)$/m, status)
    # CAP_NET_ADMIN and CAP_SYS_ADMIN.
    assert String.to_integer(effective, 16) == 0x201000
  end

  test "close_on: closes the socket with the process, for every form of path" do
    netns = netns!()
    container = container!(netns)
    server = start_server!()
    before = fds(server)

    sockets =
      for path <- spellings(container) do
        opts = [netns: {:path, path}, close_on: :namespace_gone]
        assert {^path, {:ok, socket}} = {path, NetlinkPort.open(server, :route, opts)}
        {path, socket}
      end

    # The namespace itself stays alive.
    {:ok, kept} =
      NetlinkPort.open(server, :route, netns: {:name, netns}, close_on: :namespace_gone)

    signal!(container.pid, "KILL")

    for {path, socket} <- sockets do
      assert_receive {:netlink_closed, ^socket, reason}
      assert {path, reason} == {path, :namespace_gone}
    end

    assert {:ok, _info} = NetlinkPort.info(kept)
    :ok = NetlinkPort.close(kept)
    assert fds(server) == before
  end

  defp bind!(source) do
    folder = folder!()
    {_output, 0} = as_root("mount", ["--bind", source, folder])
    on_exit(fn -> as_root("umount", ["--lazy", folder]) end)
    folder
  end

  # Folders in the entry of a process under other names: bind mounts, also in another mount namespace alone, and the
  # descriptors and the working directory of another process.
  defp disguises(pid) do
    hidden = folder!()

    script =
      "mount --bind /proc/#{pid}/ns #{hidden} && cd /proc/#{pid} && " <>
        "exec sleep 600 7< /proc/#{pid} 8< /proc/#{pid}/ns"

    unshare = ["-m", "--propagation", "private", "sh", "-c", script]
    other = os_process!("unshare", unshare)
    eventually!(fn -> File.read("/proc/#{other}/comm") == {:ok, "sleep\n"} end)
    entry = bind!("/proc/#{pid}")
    link = Path.join(folder!(), "link")
    File.ln_s!(Path.join(entry, "ns/net"), link)

    [
      link,
      "#{entry}/ns/net",
      "#{entry}/task/#{pid}/ns/net",
      "#{bind!("/proc/#{pid}/ns")}/net",
      "#{bind!("/proc/#{pid}/task")}/#{pid}/ns/net",
      "#{bind!("/proc/#{pid}/task/#{pid}")}/ns/net",
      "#{bind!("#{procfs!()}/#{pid}/ns")}/net",
      "/proc/#{other}/fd/7/ns/net",
      "/proc/#{other}/fd/7/fd/../ns/net",
      "/proc/#{other}/fd/8/net",
      "/proc/#{other}/cwd/ns/net",
      "/proc/#{other}/root#{hidden}/net"
    ]
  end

  test "close_on: closes the socket with the process that a mount or a descriptor leads to" do
    netns = netns!()
    inode = inode(netns_path(netns))
    %{pid: pid} = container!(netns)
    server = start_server!()
    before = fds(server)

    sockets =
      for path <- disguises(pid) do
        opts = [netns: {:path, path}, close_on: :namespace_gone]
        assert {^path, {:ok, socket}} = {path, NetlinkPort.open(server, :route, opts)}
        assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
        {path, socket}
      end

    signal!(pid, "KILL")

    for {path, socket} <- sockets do
      assert_receive {:netlink_closed, ^socket, reason}, 5_000, path
      assert {path, reason} == {path, :namespace_gone}
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:path, path})
      assert {path, error.reason} in [{path, :enoent}, {path, :esrch}]
    end

    assert fds(server) == before
  end

  test "a number in the descriptor folder of a process is not taken for a process id" do
    pid = os_process!("sh", ["-c", "exec sleep 600 7< /etc"])
    eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
    server = start_without!("sys_ptrace")

    assert {:error, error} =
             NetlinkPort.open(server, :route, netns: {:path, "/proc/#{pid}/fd/7/x"})

    assert Exception.message(error) =~ "it leads to process #{pid}, and the namespaces"
  end

  test "close_on: is EOPNOTSUPP for a part of /proc whose process is not known, and says so" do
    %{pid: pid} = container!(netns!())
    whole = procfs!()
    part = bind!("#{whole}/#{pid}/ns")
    {_output, 0} = as_root("umount", ["--lazy", whole])
    server = start_server!()
    path = "#{part}/net"
    assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:path, path})
    opts = [netns: {:path, path}, close_on: :namespace_gone]
    assert {:error, error} = NetlinkPort.open(server, :route, opts)
    assert {error.stage, error.reason} == {:watch, :eopnotsupp}
    message = Exception.message(error)
    assert message =~ "the helper cannot tell of which process"
    assert message =~ "name the process: {:pid, pid}"
  end

  test "a process whose main thread has exited is named as such, and one of its threads opens" do
    netns = netns!()
    inode = inode(netns_path(netns))
    pid = os_process!("ip", ["netns", "exec", netns, fixture!("process"), "exited"])
    eventually!(fn -> File.read!("/proc/#{pid}/stat") =~ "(process) Z" end)
    server = start_server!()

    for place <- [{:pid, pid}, {:path, "/proc/#{pid}/ns/net"}],
        opts <- [[], [close_on: :namespace_gone]] do
      assert {:error, error} = NetlinkPort.open(server, :route, [netns: place] ++ opts)
      message = Exception.message(error)
      assert message =~ "the main thread of process #{pid} has exited"
      assert [_, path] = Regex.run(~r"\{:path, \"(/proc/#{pid}/task/\d+/ns/net)\"\}", message)
      assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:path, path})
      assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
    end
  end

  test "a process of the helper's own user that is not dumpable has that as a possible cause" do
    nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all"
    fixture = public!(fixture!("process"))
    words = String.split(nobody) ++ [fixture, "undumpable"]
    pid = os_process!(hd(words), tl(words))
    copy = public!(helper())
    server = start_server!(executable: script!("exec #{nobody} #{copy} \"$@\""))
    eventually!(fn -> match?({:ok, %{uid: 0}}, File.stat("/proc/#{pid}/ns")) end)
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    assert error.reason == :eacces
    assert Exception.message(error) =~ "the same holds for processes that are not dumpable"
  end

  test "/proc/self is the helper's own namespace, which lasts as long as the helper" do
    server = start_server!()

    for path <- ~w(/proc/self/ns/net /proc/thread-self/ns/net /proc/self/task/../ns/net) do
      opts = [netns: {:path, path}, close_on: :namespace_gone]
      assert {^path, {:ok, socket}} = {path, NetlinkPort.open(server, :route, opts)}
      inode = inode("/proc/self/ns/net")
      assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
      refute_received {:netlink_closed, ^socket, _reason}
    end
  end

  test "the id of a thread is ESRCH, and its process is named" do
    server = start_server!()
    # The VM has many threads.
    pid = System.pid()
    tid = "/proc/self/task" |> File.ls!() |> Enum.find(&(&1 != pid)) |> String.to_integer()

    for opts <- [[], [close_on: :namespace_gone]] do
      assert {:error, error} = NetlinkPort.open(server, :route, [netns: {:pid, tid}] ++ opts)
      assert error.reason == :esrch
      message = Exception.message(error)
      assert message =~ "that is the number of a thread of process #{pid}; name the process"
    end
  end

  test "the ids of a thread, a process group and a session give the same errors on older kernels" do
    tid = "/proc/self/task" |> File.ls!() |> Enum.find(&(&1 != System.pid()))
    server = start_injected!("pidfd_open EINVAL always")

    for opts <- [[], [close_on: :namespace_gone]] do
      netns = [netns: {:pid, String.to_integer(tid)}]
      assert {:error, error} = NetlinkPort.open(server, :route, netns ++ opts)
      assert error.reason == :esrch
      assert Exception.message(error) =~ "of a thread of process #{System.pid()}"

      # A number that only a process group or a session has is that of no process.
      assert {:error, error} =
               NetlinkPort.open(server, :route, [netns: {:pid, 0x7FFFFFFF}] ++ opts)

      assert error.reason == :esrch
      assert Exception.message(error) =~ "there is no such process"
    end
  end

  test "the id of a process that has ended is ESRCH while a process group and a session have it" do
    server = start_server!()
    file = tmp_path!("member")
    # The process leads a session, and leaves a member of it behind.
    script = "sleep 600 < /dev/null > /dev/null 2>&1 & echo $$ $! > #{file}"
    {_output, 0} = System.cmd("setsid", ["--wait", "sh", "-c", script])
    [leader, member] = file |> File.read!() |> String.split()
    on_exit(fn -> System.cmd("kill", ["-KILL", member], stderr_to_stdout: true) end)
    assert File.read!("/proc/#{member}/stat") =~ " #{leader} #{leader} "

    assert {:error, error} =
             NetlinkPort.open(server, :route, netns: {:pid, String.to_integer(leader)})

    assert {error.stage, error.reason} == {:open, :esrch}
  end

  test "close_on: watches the thread that a path leads to" do
    server = start_server!()
    pid = System.pid()
    tid = "/proc/self/task" |> File.ls!() |> Enum.find(&(&1 != pid))
    opts = [netns: {:path, "/proc/#{pid}/task/#{tid}/ns/net"}, close_on: :namespace_gone]

    case NetlinkPort.open(server, :route, opts) do
      {:ok, socket} ->
        assert {:ok, _info} = NetlinkPort.info(socket)

      # Before Linux 6.9.
      {:error, error} ->
        assert {error.stage, error.reason} == {:watch, :eopnotsupp}
        assert Exception.message(error) =~ "it leads to a thread"
    end
  end

  test "a link whose target does not exist is not called missing itself" do
    folder = folder!()

    for {name, target} <- [first: "/nowhere/blue", chain: "first"],
        do: File.ln_s!(target, Path.join(folder, "#{name}"))

    server = start_server!()

    for {name, said} <- [
          {"first", "it is a symbolic link, and the file that it leads to is not there"},
          {"chain", "it is a symbolic link, and the file that it leads to is not there"},
          {"none", "there is no such file"},
          {"first/blue", "there is no such file"}
        ],
        close_on <- [nil, :namespace_gone] do
      opts = [netns: {:path, Path.join(folder, name)}, close_on: close_on]
      assert {:error, error} = NetlinkPort.open(server, :route, opts)
      assert {error.stage, error.reason} == {:open, :enoent}
      assert Exception.message(error) =~ "ENOENT: " <> said
    end
  end

  test "a file of /proc or /sys without a size is not taken for one of `ip netns add`" do
    server = start_server!()

    for path <- [
          "/proc/sys/kernel/ostype",
          "/proc/uptime",
          "/sys/kernel/mm/transparent_hugepage/enabled"
        ],
        File.exists?(path) do
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:path, path})

      assert Exception.message(error) ==
               "setns into #{path}: EINVAL: it is not a network namespace"
    end
  end

  test "an empty path, and one with a NUL byte, are named as such" do
    server = start_server!()

    message = fn path ->
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:path, path})
      Exception.message(error)
    end

    assert message.("") =~ ~s(open of "": ENOENT)
    assert message.("/a\0b") =~ ~s(open of "/a\\0b": EINVAL: a path ends at its first NUL byte)
  end

  test "a file of `ip netns add` without a mount on it yet is named as such" do
    path = Path.join(folder!(), "blue")
    File.touch!(path)
    File.chmod!(path, 0)
    assert {:error, error} = NetlinkPort.open(start_server!(), :route, netns: {:path, path})
    assert {error.stage, error.reason} == {:setns, :einval}
    message = Exception.message(error)

    assert message =~
             "it is not a network namespace: nothing is mounted on it. `ip netns add` makes"

    {_output, 0} = as_root("mount", ["--bind", "/proc/self/ns/uts", path])
    on_exit(fn -> as_root("umount", ["--lazy", path]) end)
    assert {:error, error} = NetlinkPort.open(start_server!(), :route, netns: {:path, path})

    assert Exception.message(error) =~
             "it is not a network namespace, but a namespace of another kind"
  end

  describe "a /proc of another pid namespace" do
    setup do
      script = script!("exec unshare --pid --fork --kill-child #{helper()} \"$@\"")
      %{server: start_server!(executable: script)}
    end

    test "is recognised, and process ids are refused, since another process has them there", %{
      server: server
    } do
      # In there 1 is the helper itself; in this /proc it is init of the host.
      for pid <- [1, 4_000_000], opts <- [[], [close_on: :namespace_gone]] do
        assert {:error, error} = NetlinkPort.open(server, :route, [netns: {:pid, pid}] ++ opts)
        if error.stage == :open, do: assert_foreign(error), else: assert(error.reason == :esrch)
      end
    end

    defp assert_foreign(error) do
      assert error.reason == :eopnotsupp
      message = Exception.message(error)

      assert message =~
               "/proc is that of another pid namespace, where this number is another process"
    end

    test "is usable in a path, and its processes cannot be watched", %{server: server} do
      netns = netns!()
      %{pid: pid} = container!(netns)
      path = "/proc/#{pid}/ns/net"
      assert {:ok, socket} = NetlinkPort.open(server, :route, netns: {:path, path})
      inode = inode(netns_path(netns))
      assert {:ok, %{inode: ^inode}} = NetlinkPort.info(socket)
      opts = [netns: {:path, path}, close_on: :namespace_gone]
      assert {:error, error} = NetlinkPort.open(server, :route, opts)
      assert {error.stage, error.reason} == {:watch, :eopnotsupp}

      assert Exception.message(error) =~
               "a process of another pid namespace, whose end is not told"
    end
  end
end
