defmodule NetlinkPort.Sandbox.HolderTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Places
  alias NetlinkPort.Sandbox.Holder

  # A command to a program without a standard input ends the port with `:epipe`, without an exit status. The
  # same happens with a killed holder, until OTP has noticed its end.
  test "a holder that was killed a moment before ends at once" do
    test = self()

    spawn_link(fn ->
      Process.flag(:trap_exit, true)

      {:ok, port} =
        Holder.spawn_program(System.find_executable("sh"), [
          "-c",
          "exec <&-; echo ready; exec sleep 600"
        ])

      {:ok, {_port, os_pid} = holder} = Holder.await(port)

      # OTP's program that forks holds the pipe a moment longer, and forks one program after the other.
      {"", 0} = System.cmd("true", [])
      send(test, {:started, os_pid})
      send(test, {:stopped, Holder.stop(holder)})
    end)

    assert_receive {:started, os_pid}, within(5_000)
    on_exit(fn -> Holder.signal("KILL", os_pid) end)
    assert_receive {:stopped, :ok}, within(5_000)
  end

  # Started by hand, with an empty standard input.
  defp hold(program, owner, before \\ []) do
    script = "exec </dev/null \"$@\""
    command = before ++ [program, "--sandbox", owner]
    System.cmd("sh", ["-c", script, "sh" | command], stderr_to_stdout: true)
  end

  test "what is no owner is refused" do
    for owner <- ["", "old", "1.5"] do
      assert {"netlink_port: --sandbox takes own, new or a process id\n", 64} =
               hold(helper(), owner)
    end
  end

  @tag :userns
  test "the holder ends when its standard input does" do
    assert {"ready\n", 0} = hold(helper(), "new")
  end

  # Its file may have any: the helper that is installed for a group has two.
  @tag :root
  @tag :userns
  @tag :init_user_namespace
  test "the holder has no capabilities by its file" do
    folder = tmp_path!("holder")
    File.mkdir!(folder)
    File.chmod!(folder, 0o755)
    path = Path.join(folder, "netlink_port")
    File.cp!(helper(), path)
    Places.install!(path, "cap_sys_admin,cap_net_admin,cap_sys_ptrace+ep")
    # File.chmod/2 would remove the capabilities.
    {"", 0} = System.cmd("chmod", ["755", path])
    user = ["setpriv", "--reuid", "23457", "--regid", "23457", "--clear-groups"]

    # A user namespace of root, which these capabilities would open.
    %{os_pid: os_pid} = NetlinkPort.Sandbox.info(start_supervised!(NetlinkPort.Sandbox))

    assert {"netlink_port: /proc/<pid>/ns/user: EACCES: Permission denied\n", 71} =
             hold(path, "#{os_pid}", user)

    assert {"netlink_port: unshare(2): EPERM: Operation not permitted\n", 71} =
             hold(path, "own", user)

    assert {"ready\n", 0} = hold(path, "new", user)
  end
end
