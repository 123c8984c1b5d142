defmodule NetlinkPort.InstallTest do
  # `mix netlink_port.install` does what it says. If it cannot, it leaves nothing behind and says what to do. The
  # group exists on every Debian and has no members.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [&&&: 2]
  import ExUnit.CaptureIO

  alias Mix.Tasks.NetlinkPort.Install, as: Task
  alias NetlinkPort.Helper.Install

  @moduletag :root
  # Each runs the task, which builds the helper first.
  @moduletag :cargo
  @group "games"
  @user ~w(--reuid 12345 --regid 12345)
  @always ~w(cap_net_admin cap_sys_admin)

  setup do
    directory = tmp_path!("libexec")
    File.mkdir!(directory)
    File.chmod!(directory, 0o755)
    %{directory: directory, to: Path.join(directory, "helper")}
  end

  defp install(to, more \\ []),
    do: capture_io(fn -> Task.run(["--to", to, "--group", @group | more]) end)

  defp refused(arguments),
    do: Exception.message(assert_raise(Mix.Error, fn -> Task.run(arguments) end))

  defp plan!(to, changes \\ []) do
    {:ok, plan} = Install.plan(helper(), to, @group, [])
    struct!(plan, changes)
  end

  defp assert_installed(path, capabilities) do
    assert File.read!(path) == File.read!(helper())
    %{uid: uid, gid: gid, mode: mode} = File.stat!(path)
    assert {uid, gid, mode &&& 0o7777} == {0, gid(), 0o750}
    {output, 0} = System.cmd("getcap", [path])
    [_, names] = Regex.run(~r/([a-z_,]+)[=+]ep\n$/, output)
    assert names |> String.split(",") |> Enum.sort() == capabilities
    assert File.ls!(Path.dirname(path)) == [Path.basename(path)]
  end

  defp gid do
    {line, 0} = System.cmd("getent", ["group", @group])
    line |> String.split(":") |> Enum.at(2) |> String.to_integer()
  end

  # With setpriv(1) alone root's capabilities over files would remain.
  defp as_user(groups, command) do
    opts = [stderr_to_stdout: true, env: [{"LC_ALL", "C"}]]
    System.cmd("setpriv", @user ++ groups ++ ["env" | command], opts)
  end

  @tag :init_user_namespace
  test "the helper belongs to root and the group, has its capabilities, and only the group can run it",
       c do
    output = install(c.to)
    assert output =~ "#{c.to} has been installed: root:#{@group}, mode 0750"
    assert output =~ "a privileged proxy for everyone in the group #{@group}"
    assert output =~ ~s(config :netlink_port, executable: "#{c.to}")
    assert output =~ "Set the variable only where the release is started"
    assert_installed(c.to, @always)
    version = "netlink_port #{Mix.Project.config()[:version]}\n"
    assert {^version, 0} = as_user(["--groups", "#{gid()}"], [c.to, "--version"])
    assert {denied, 126} = as_user(["--clear-groups"], [c.to, "--version"])
    assert denied =~ "Permission denied"
  end

  @tag :init_user_namespace
  test "in a directory the file is netlink_port; more capabilities can be named", c do
    # A second installation changes nothing.
    install(
      c.directory,
      ~w(--capability sys_ptrace --capability audit_read --capability sys_ptrace)
    )

    assert_installed(Path.join(c.directory, "netlink_port"), ~w(cap_audit_read cap_net_admin
      cap_sys_admin cap_sys_ptrace))
  end

  @tag :init_user_namespace
  test "a correct file is left as it is; a file that differs is replaced", c do
    install(c.to)
    %{inode: inode} = File.stat!(c.to)
    assert install(c.to) =~ "#{c.to} is as it should be"
    assert %{inode: ^inode} = File.stat!(c.to)

    for {program, arguments} <- [
          {"chmod", ["0755", c.to]},
          {"chown", ["12345", c.to]},
          {"setcap", ["-r", c.to]},
          {"setcap", ["cap_sys_admin,cap_net_admin,cap_sys_ptrace+ep", c.to]},
          {"cp", ["--remove-destination", "/bin/true", c.to]}
        ] do
      {_output, 0} = System.cmd(program, arguments)
      assert install(c.to) =~ "has been installed"
      assert_installed(c.to, @always)
    end
  end

  @tag :init_user_namespace
  test "a warning says that the former group cannot run the helper any more", c do
    install(c.to)
    assert capture_io(:stderr, fn -> install(c.to) end) == ""
    {_output, 0} = System.cmd("chgrp", ["daemon", c.to])
    told = capture_io(:stderr, fn -> install(c.to) end)
    assert told =~ "it was for the group daemon, whose members cannot run it any more"
    assert_installed(c.to, @always)
  end

  @tag :init_user_namespace
  test "a FIFO, a device or a directory in the place of the file is named, and not replaced", c do
    File.mkdir!(Path.join(c.directory, "netlink_port"))
    target = Path.join(c.directory, "target")
    link = Path.join(c.directory, "link")
    File.ln_s!(target, link)

    for {program, arguments, to, kind} <- [
          {"mkfifo", [target], target, "a FIFO"},
          # That of /dev/null, in a folder of the test's own.
          {"mknod", [target, "c", "1", "3"], target, "a character device"},
          {"mknod", [target, "c", "1", "3"], link, "a character device"},
          {"mknod", [target, "b", "7", "250"], target, "a block device"},
          {"true", [], c.directory, "a directory"}
        ] do
      {_output, 0} = System.cmd(program, arguments)
      %{inode: inode} = File.stat!(if to == link, do: target, else: to)
      path = if to == c.directory, do: Path.join(to, "netlink_port"), else: to
      refused = refused(["--to", to, "--group", @group])
      assert refused =~ "#{path} is #{kind}, and the task replaces nothing but a file; choose"
      assert %{inode: ^inode} = File.stat!(if to == link, do: target, else: to)
      _none = File.rm(target)
    end

    {:ok, socket} = :gen_udp.open(0, [:local, ip: {:local, target}])
    assert refused(["--to", target, "--group", @group]) =~ "#{target} is a socket, and the task"
    :ok = :gen_udp.close(socket)
  end

  test "arguments that are missing, unknown or name nothing are refused", c do
    usage = "usage: mix netlink_port.install --to PATH --group GROUP"
    assert refused(["--group", @group]) =~ "--to is missing; " <> usage
    assert refused(["--to", c.to]) =~ "--group is missing; " <> usage
    assert refused(["--to", c.to, "--group", @group, "--mode", "x"]) =~ "unknown: x --mode; "
    assert refused(["--to", c.to, "--group", @group, "x"]) =~ "unknown: x; "

    assert refused(["--to", c.to, "--group", "no-such-group"]) =~
             "there is no group no-such-group; `groupadd --system no-such-group` makes one"

    assert refused(["--to", c.to, "--group", @group, "--capability", "setuid"]) =~
             "--capability setuid: expected one of sys_ptrace, net_broadcast"

    missing = Path.join(c.directory, "missing")

    assert refused(["--to", Path.join(missing, "helper"), "--group", @group]) =~
             "there is no directory #{missing}; `install -d #{missing}`"
  end

  @tag :init_user_namespace
  test "a path with a slash at its end is a directory, which has to exist", c do
    missing = Path.join(c.directory, "missing")

    assert refused(["--to", missing <> "/", "--group", @group]) =~
             "there is no directory #{missing}; `install -d #{missing}`"

    assert File.ls!(c.directory) == []
    File.touch!(c.to)
    assert refused(["--to", c.to <> "/", "--group", @group]) == "#{c.to} is not a directory"
    File.rm!(c.to)
    install(c.directory <> "/")
    assert_installed(Path.join(c.directory, "netlink_port"), @always)
  end

  test "arguments that are empty, and a path that is relative, are refused", c do
    assert refused(["--to", "", "--group", @group]) =~ "--to is empty: name the file"
    assert refused(["--to", c.to, "--group", ""]) =~ "--group is empty: name the group"

    assert refused(["--to", "lib/helper", "--group", @group]) =~
             "--to lib/helper: expected an absolute path without . and ..; from here that is " <>
               File.cwd!()
  end

  @tag :init_user_namespace
  test "a directory that is closed to the user is not called missing", c do
    File.chmod!(c.directory, 0o700)

    for to <- [c.to, c.directory <> "/helper/"] do
      code =
        "NetlinkPort.Helper.Install.plan(\"source\", #{inspect(to)}, #{inspect(@group)}, []) |> IO.inspect()"

      {{output, 0}, _source} = in_user_vm(["--clear-groups"], path(%{}), code)
      assert output =~ "#{c.to} cannot be seen: a directory above it is closed to this user"
    end
  end

  @tag :init_user_namespace
  test "a user who runs the task by sudo, and is not in the group, is warned", c do
    # No other user may read it.
    before = System.get_env("SUDO_USER", "")
    on_exit(fn -> System.put_env("SUDO_USER", before) end)

    warning = fn user ->
      System.put_env("SUDO_USER", user)
      capture_io(:stderr, fn -> install(c.to) end)
    end

    told = warning.("nobody")
    assert told =~ "nobody is not in the group #{@group}, and cannot run it."
    assert told =~ "`usermod -aG #{@group} nobody` as root, and log in again"
    # A user of that name has that group.
    assert warning.(@group) == ""
    assert warning.("root") == ""
  end

  test "--help is the documentation", c do
    help = capture_io(fn -> Task.run(["--to", c.to, "--help"]) end)
    assert help =~ "mix netlink_port.install" and help =~ "--capability"
    assert File.ls!(c.directory) == []
    assert refused(["--bogus"]) =~ "see `mix help netlink_port.install`"
  end

  test "an executable that is missing, another program or another version is refused", c do
    plan = fn source -> Install.plan(source, c.to, @group, []) end
    assert {:error, reason} = plan.("/nonexistent")
    assert reason =~ "/nonexistent cannot be run: no such file or directory; build it first"
    assert {:error, reason} = plan.(script!("echo hello"))
    assert reason =~ ~s(is not netlink_port, it says "hello\\n")
    assert {:error, reason} = plan.(script!("echo netlink_port 0.0.9"))
    assert reason =~ "is version 0.0.9, and the library #{Mix.Project.config()[:version]}"
    assert File.ls!(c.directory) == []
  end

  @tag :init_user_namespace
  test "a directory that others may write to is refused, and so is a directory in it", c do
    inner = Path.join(c.directory, "inner")
    File.mkdir!(inner)

    for {path, owner, mode} <- [
          {inner, "0:0", 0o777},
          {inner, "0:0", 0o1777},
          {inner, "0:#{gid()}", 0o775},
          # Like an access control list that lets another user write.
          {inner, "0:0", 0o775},
          {inner, "12345:0", 0o755},
          {c.directory, "0:0", 0o757},
          {c.directory, "12345:0", 0o755}
        ] do
      {_output, 0} = System.cmd("chown", [owner, path])
      chmod!(path, mode)
      # By any path that reaches it.
      link = tmp_path!("link")
      File.ln_s!(inner, link)

      for to <- [inner, link] do
        assert refused(["--to", to, "--group", @group]) =~
                 "#{path} " <>
                   if(owner =~ "12345", do: "belongs to user 12345", else: "is not root's alone")
      end

      {_output, 0} = System.cmd("chown", ["0:0", path])
      File.chmod!(path, 0o755)
    end

    assert File.ls!(inner) == []
    # In a sticky folder other users cannot replace the file.
    chmod!(c.directory, 0o1777)
    assert install(inner) =~ "has been installed"
  end

  @tag :init_user_namespace
  test "the file is installed in the folder that a link leads to, not through the link, which others could change",
       c do
    theirs = tmp_path!("theirs")
    File.mkdir!(theirs)
    File.ln_s!(c.directory, Path.join(theirs, "link"))
    {_output, 0} = System.cmd("chown", ["-h", "-R", "12345:12345", theirs])

    for {name, file} <- [{"link", "netlink_port"}, {"link/helper", "helper"}] do
      {:ok, plan} = Install.plan(helper(), Path.join(theirs, name), @group, [])
      assert plan.to == Path.join(c.directory, file)
    end

    assert install(Path.join(theirs, "link/helper")) =~ "#{c.to} has been installed"
    assert_installed(c.to, @always)
  end

  @tag :init_user_namespace
  test "a path may have any characters, and temporary files of killed tasks are removed", c do
    for name <- ["a{b", "a[b]*?", "a b'c=ep", "-x", "ä"] do
      directory = Path.join(c.directory, name)
      File.mkdir!(directory)
      to = Path.join(directory, name)
      File.write!(to <> ".tmp999999999", "")
      assert install(to) =~ "#{to} has been installed"
      assert_installed(to, @always)
    end
  end

  # File.stat/1 leaves the sticky bit out.
  defp chmod!(path, mode) do
    {_output, 0} = System.cmd("chmod", [Integer.to_string(mode, 8), path])
  end

  defp mount!(directory, type, options) do
    {_output, 0} = System.cmd("mount", ["-t", type, "-o", options, "none", directory])
    on_exit(fn -> System.cmd("umount", [directory]) end)
  end

  @tag :init_user_namespace
  test "a file system that is mounted nosuid, noexec or read-only is named", c do
    mount!(c.directory, "tmpfs", "mode=755")

    for option <- ~w(nosuid noexec ro) do
      {_output, 0} =
        System.cmd("mount", ["-o", "remount,bind,suid,exec,rw,#{option}", c.directory])

      assert refused(["--to", c.to, "--group", @group]) =~
               "is on #{c.directory}, which is mounted #{option}: there a helper cannot be installed"
    end
  end

  @tag :init_user_namespace
  test "a file system without extended attributes is named, and nothing is left", c do
    mount!(c.directory, "ramfs", "mode=755")
    assert refused(["--to", c.to, "--group", @group]) =~ "keeps no extended attributes"
    assert File.ls!(c.directory) == []
  end

  @tag :init_user_namespace
  test "a file that lacks a capability or an owner at the end does not get the name, and is removed",
       c do
    File.write!(c.to, "an older one")
    nothing = System.find_executable("true")

    for {tool, reason} <- [
          {"setcap", "has not got the capabilities it should have"},
          {"getcap", "has not got the capabilities it should have"},
          {"install", "No such file or directory"}
        ] do
      plan = plan!(c.to)
      assert {:error, message} = Install.run(%{plan | tools: Map.put(plan.tools, tool, nothing)})
      assert message =~ reason
      assert File.ls!(c.directory) == ["helper"]
      assert File.read!(c.to) == "an older one"
    end

    # Installed for the wrong owner.
    plan = plan!(c.to, gid: 0)

    install =
      script!("exec install -g #{gid()} -m 0700 -T -- #{helper()} #{c.to}.tmp#{System.pid()}")

    assert {:error, message} =
             Install.run(%{plan | tools: Map.put(plan.tools, "install", install)})

    assert message =~ "has not got the owner, group or mode it should have"
    assert File.ls!(c.directory) == ["helper"]
  end

  # Runs code in another VM, as an ordinary user with a copy of the library.
  defp in_user_vm(setpriv, path, code) do
    home = tmp_path!("home")
    File.mkdir_p!(Path.join(home, "netlink_port"))
    File.cp_r!(Application.app_dir(:netlink_port, "ebin"), Path.join(home, "netlink_port/ebin"))
    File.cp!(helper(), Path.join(home, "source"))
    {_output, 0} = System.cmd("chown", ["-R", "12345:12345", home])
    elixir = System.find_executable("elixir")

    arguments =
      @user ++ setpriv ++ [elixir, "-pa", Path.join(home, "netlink_port/ebin"), "-e", code]

    environment = [{"PATH", path}, {"HOME", home}]
    opts = [cd: home, env: environment, stderr_to_stdout: true]
    {System.cmd("setpriv", arguments, opts), Path.join(home, "source")}
  end

  defp run_as(setpriv, path, c) do
    in_user_vm(setpriv, path, """
    {:ok, plan} = NetlinkPort.Helper.Install.plan("source", #{inspect(c.to)}, #{inspect(@group)}, [])
    case NetlinkPort.Helper.Install.run(plan) do
      {:ok, done} -> IO.puts(done)
      {:error, reason} -> IO.puts(reason)
    end
    """)
  end

  # Programs in a folder of the test come first, and root's folders are not in PATH, as for users.
  defp path(scripts) do
    bin = tmp_path!("bin")
    File.mkdir!(bin)
    for {name, body} <- scripts, do: File.cp!(script!(body), Path.join(bin, name))
    "#{public!(bin)}:#{Path.dirname(System.find_executable("elixir"))}:/usr/bin:/bin"
  end

  @tag :init_user_namespace
  test "an ordinary user without sudo is shown the commands that root has to run, and they work",
       c do
    # Without this machine's sudo(8).
    sudo = "echo 'sudo: a password is required' >&2; exit 1"
    {{output, 0}, source} = run_as(["--clear-groups"], path(%{"sudo" => sudo}), c)
    assert output =~ "this takes root, and sudo: a password is required. What root has to run:"
    assert output =~ "    install -o root -g #{@group} -m 0750 -T #{source} #{c.to}\n"
    assert output =~ "    setcap cap_sys_admin,cap_net_admin+ep #{c.to}\n"
    assert File.ls!(c.directory) == []

    [_, commands] = Regex.run(~r/root has to run:\n\n(.*?)\n\n/s, output)
    {_output, 0} = System.cmd("sh", ["-ec", commands], stderr_to_stdout: true)
    assert_installed(c.to, @always)
    {{output, 0}, _source} = run_as(["--groups", "#{gid()}"], path(%{"sudo" => sudo}), c)
    assert output == "there\n"

    assert {:error, message} = Install.run(plan!(c.to <> "2", prefix: :root_has_to))
    assert message =~ "this takes root, and there is no sudo. What root has to run:"
  end

  @tag :init_user_namespace
  test "a tool that fails under a sudo that prints warnings is named, and missing privileges are not blamed",
       c do
    sudo = script!("echo 'sudo: unable to resolve host a' >&2\nexec \"$@\"")
    full = script!("echo 'install: No space left on device' >&2\nexit 1")
    plan = plan!(c.to, prefix: [sudo])

    assert {:error, "install has failed: sudo: unable to resolve host a\ninstall: No space" <> _} =
             Install.run(%{plan | tools: Map.put(plan.tools, "install", full)})
  end

  @tag :init_user_namespace
  test "for an ordinary user with sudo, sudo runs the commands that need root", c do
    # With the two capabilities that sudo(8) has by its set-user-ID bit.
    setpriv = ~w(--clear-groups --inh-caps +setuid,+setgid --ambient-caps +setuid,+setgid)

    # Without its warning about a host that has no name.
    sudo = """
    echo 'sudo: unable to resolve host' >&2
    shift
    exec setpriv --reuid 0 --regid 0 --clear-groups "$@"
    """

    {{output, 0}, _source} = run_as(setpriv, path(%{"sudo" => sudo}), c)
    assert output =~ ~r/^installed$/m
    assert_installed(c.to, @always)
  end

  @tag :init_user_namespace
  test "where sudo may not run the file, execve(2) and its EPERM are named, and nothing is left",
       c do
    setpriv = ~w(--clear-groups --inh-caps +setuid,+setgid --ambient-caps +setuid,+setgid)

    sudo = """
    shift
    test "$2" != --version || set -- setpriv --bounding-set -sys_admin "$@"
    exec setpriv --reuid 0 --regid 0 --clear-groups "$@"
    """

    {{output, 0}, _source} = run_as(setpriv, path(%{"sudo" => sudo}), c)
    assert output =~ "#{c.to} was not run, execve(2) says EPERM: "
    refute output =~ "it says"
    assert File.ls!(c.directory) == []
  end

  @tag :init_user_namespace
  test "a helper with a capability outside the bounding set of its VM is an error that names it, and says what to do",
       c do
    install(c.to)
    code = "Process.flag(:trap_exit, true); NetlinkPort.start_link(executable: #{inspect(c.to)})"
    setpriv = ["--groups", "#{gid()}", "--bounding-set", "-net_admin"]
    {{output, 0}, _source} = in_user_vm(setpriv, path(%{}), code)

    assert output =~
             "#{c.to} was not run, execve(2) says EPERM: a capability of the file is not in"
  end

  @tag :init_user_namespace
  # As in the build of an image: root, with fewer capabilities than a helper takes.
  test "where the task itself may not run the file, execve(2) and its EPERM are named, and nothing is left",
       c do
    code = """
    {:ok, plan} = NetlinkPort.Helper.Install.plan(#{inspect(helper())}, #{inspect(c.to)}, #{inspect(@group)}, [])
    {:error, reason} = NetlinkPort.Helper.Install.run(plan)
    IO.puts(reason)
    """

    ebin = Application.app_dir(:netlink_port, "ebin")
    elixir = ["--bounding-set", "-sys_admin", "elixir", "-pa", ebin, "-e", code]
    {output, 0} = System.cmd("setpriv", elixir, stderr_to_stdout: true)

    assert output =~
             "#{c.to} was not run, execve(2) says EPERM: a capability of the file is not in the bounding set of this " <>
               "VM: CAP_SYS_ADMIN. The bounding set of this build or container"

    assert output =~ "as in the build of an image, the file can be made without being run"
    refute output =~ "is not netlink_port"
    assert File.ls!(c.directory) == []

    # The advised commands install the file.
    [_, commands] = Regex.run(~r/root has to run:\n\n(.*?)\n\n/s, output)
    without = ["--bounding-set", "-sys_admin", "sh", "-ec", commands]
    {_output, 0} = System.cmd("setpriv", without, stderr_to_stdout: true)
    assert_installed(c.to, @always)
  end

  @tag :init_user_namespace
  test "a task that is killed leaves a file that only root can run; the next task removes it",
       c do
    setpriv = ~w(--clear-groups --inh-caps +setuid,+setgid --ambient-caps +setuid,+setgid)

    sudo = """
    shift
    case "$1" in */chmod) kill -KILL $(ps -o ppid= -p $PPID); sleep 60;; esac
    exec setpriv --reuid 0 --regid 0 --clear-groups "$@"
    """

    {{_output, status}, _source} = run_as(setpriv, path(%{"sudo" => sudo}), c)
    assert status != 0
    assert [left] = File.ls!(c.directory)
    assert left =~ ~r/^helper\.tmp\d+$/
    left = Path.join(c.directory, left)
    assert (File.stat!(left).mode &&& 0o7777) == 0o700
    assert {_denied, 126} = as_user(["--groups", "#{gid()}"], [left, "--version"])
    install(c.to)
    assert_installed(c.to, @always)
  end
end
