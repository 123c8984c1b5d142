defmodule NetlinkPort.EnvironmentTest do
  # Texts of /proc and what they mean. places_test.exs uses a real /proc.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Environment

  @status """
  Name:\tbeam.smp
  Uid:\t1000\t1001\t1000\t1000
  Gid:\t100\t101\t100\t100
  Groups:\t7 27\x20
  NSpid:\t42
  CapEff:\t0000000000000000
  CapBnd:\t000001ffffffffff
  NoNewPrivs:\t0
  Seccomp:\t0
  """

  @mounts """
  22 27 0:21 / /proc rw,relatime - proc proc rw
  27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
  30 27 254:1 / /opt/a\\040b rw,nosuid,nodev shared:7 master:3 - ext4 /dev/vdb rw
  31 27 254:2 / /opt rw,noexec - tmpfs none rw
  """

  @texts %{
    pid: "42",
    self: "42",
    procfs: true,
    status: @status,
    mountinfo: @mounts,
    uid_map: "         0          0 4294967295\n",
    user: "user:[4026531837]",
    pid_namespace: "pid:[4026531836]",
    marked: false
  }

  defp parse(texts), do: @texts |> Map.merge(Map.new(texts)) |> Environment.parse()
  defp proc(options), do: @mounts <> "40 22 0:39 / /proc rw - proc proc #{options}\n"

  test "an ordinary user on an ordinary machine" do
    environment = parse([])
    assert environment.proc == :own
    assert environment.hidepid == 0
    assert {environment.user_namespace, environment.pid_namespace} == {:initial, :initial}
    assert {environment.uid, environment.gids} == {1001, [101, 7, 27]}
    assert Environment.bounded?(environment, :sys_admin)
    refute Environment.capable?(environment, :sys_admin)
    refute environment.no_new_privs
    refute environment.container
    assert environment.seccomp == 0
    assert Environment.unseen(environment) == nil
  end

  test "/proc of another pid namespace is recognised, also if the process ids are equal" do
    assert parse(self: "4711").proc == :foreign
    assert parse(status: String.replace(@status, "NSpid:\t42", "NSpid:\t42\t42")).proc == :foreign
    # Read in a pid namespace that this process is not in.
    assert parse(self: nil, status: nil).proc == :foreign
    assert parse(self: nil, status: nil, procfs: false).proc == :absent
    # A kernel that does not report NSpid.
    assert parse(status: String.replace(@status, "NSpid", "No")).proc == :own
    assert Environment.unseen(parse(self: "4711")) =~ "another pid namespace"
  end

  test "hidepid, as a number and as a word, and the users from whom it hides nothing" do
    for {text, number} <- [
          {"1", 1},
          {"noaccess", 1},
          {"2", 2},
          {"invisible", 2},
          {"4", 4},
          {"ptraceable", 4},
          {"0", 0},
          {"off", 0}
        ] do
      environment = parse(mountinfo: proc("rw,gid=5,hidepid=" <> text))
      assert {environment.hidepid, environment.hidepid_gid} == {number, 5}
      assert Environment.hidden?(environment) == number > 0
    end

    assert parse(mountinfo: proc("rw,hidepid=2")).hidepid_gid == 0
    refute Environment.hidden?(parse(mountinfo: proc("rw,gid=27,hidepid=invisible")))
    refute Environment.hidden?(parse(mountinfo: proc("rw,gid=101,hidepid=1")))
    assert Environment.hidden?(parse(mountinfo: proc("rw,gid=27,hidepid=ptraceable")))

    root = String.replace(@status, ~r/CapEff:\t\d+/, "CapEff:\t000001ffffffffff")
    refute Environment.hidden?(parse(mountinfo: proc("rw,hidepid=2"), status: root))
    # A procfs of another user namespace shows no process outside.
    inside = [mountinfo: proc("rw,hidepid=2"), status: root, user: "user:[4026532179]"]
    assert Environment.hidden?(parse(inside))
    # The last mount is the visible one.
    refute Environment.hidden?(
             parse(mountinfo: proc("rw,hidepid=2") <> "41 40 0:40 / /proc rw - proc proc rw\n")
           )
  end

  test "the user namespace, by its file or by its map" do
    assert parse(user: "user:[4026532179]").user_namespace == :other
    assert parse(user: nil).user_namespace == :initial
    assert parse(user: nil, uid_map: "0 1000 1\n").user_namespace == :other
    assert parse(user: nil, uid_map: nil).user_namespace == nil
  end

  test "processes of other pid namespaces may be hidden" do
    assert Environment.unseen(parse(pid_namespace: "pid:[4026532179]")) =~ "other pid namespaces"
    assert Environment.unseen(parse(pid_namespace: nil)) =~ "other pid namespaces"
  end

  test "bounding set, no_new_privs and seccomp" do
    status =
      @status
      |> String.replace("CapBnd:\t000001ffffffffff", "CapBnd:\t00000000a80425fb")
      |> String.replace("NoNewPrivs:\t0", "NoNewPrivs:\t1")
      |> String.replace("Seccomp:\t0", "Seccomp:\t2")

    environment = parse(status: status)
    refute Environment.bounded?(environment, :sys_admin)
    assert Environment.bounded?(environment, :net_raw)
    assert environment.no_new_privs
    assert environment.seccomp == 2
    # A capability that is not reported counts as allowed.
    assert Environment.bounded?(parse(status: nil), :sys_admin)
  end

  test "the mount of a path is that with the longest mount point, and of several the last" do
    environment = parse([])
    point = fn path -> Environment.mount_of(environment, path).point end
    assert point.("/opt/a b/c") == "/opt/a b"
    assert point.("/opt/a bc") == "/opt"
    assert point.("/optional") == "/"
    mount = Environment.mount_of(environment, "/opt/a b/c")
    assert Environment.mounted?(mount, "nosuid") and not Environment.mounted?(mount, "noexec")
    again = parse(mountinfo: @mounts <> "50 27 0:9 / /opt rw - tmpfs none rw\n")
    refute Environment.mounted?(Environment.mount_of(again, "/opt/x"), "noexec")
    assert Environment.mount_of(parse(mountinfo: nil), "/opt") == nil
    refute Environment.mounted?(nil, "nosuid")
  end

  test "a path is resolved through absolute, relative and chained links" do
    folder = tmp_path!("folder")
    File.mkdir_p!(Path.join(folder, "a/b"))
    File.touch!(Path.join(folder, "a/b/file"))
    {:ok, real} = Environment.real_path(folder)

    for {name, target} <- [
          {"absolute", Path.join(folder, "a/b/file")},
          {"relative", "a/./b/../b/file"},
          {"a/up", "../a/b/file"},
          {"chain", "absolute"}
        ] do
      File.ln_s!(target, Path.join(folder, name))
      assert Environment.real_path(Path.join(folder, name)) == {:ok, Path.join(real, "a/b/file")}
    end

    File.ln_s!("loop", Path.join(folder, "loop"))
    assert Environment.real_path(Path.join(folder, "loop")) == {:error, :eloop}
    assert Environment.real_path(Path.join(folder, "nothing")) == {:error, :enoent}
    assert Environment.real_path("/") == {:ok, "/"}
    assert Environment.mount(Environment.look(), "/proc/self/status").type == "proc"
    assert Environment.mount(Environment.look(), Path.join(folder, "nothing")) == nil
  end

  test "a container is recognised by its marks and its namespaces or root file system, not by a mark alone" do
    overlay = String.replace(@mounts, "ext4 /dev/vda", "overlay overlay")
    refute parse(marked: true).container
    assert parse(marked: true, pid_namespace: "pid:[4026532179]").container
    assert parse(marked: true, mountinfo: overlay).container
    assert parse(user: "user:[4026532179]", mountinfo: overlay).container
    refute parse(user: "user:[4026532179]").container
  end

  test "the environment of this machine can be read" do
    environment = Environment.look()
    assert environment.uid == File.stat!("/proc/self").uid
    assert is_integer(environment.bounding) and environment.mounts != []
  end
end
