defmodule NetlinkPort.Sandbox.RefusalTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Sandbox.Refusal

  # A machine, as its files in /proc describe it.
  defp line(printed, files), do: Refusal.line(printed, &Map.get(files, &1))

  defp root(capabilities), do: "Uid:\t0\t0\t0\t0\nCapEff:\t#{capabilities}\nSeccomp:\t0\n"

  @eperm "netlink_port: unshare(2): EPERM: Operation not permitted"

  test "one line names the cause of a refused namespace, and the remedy" do
    for {printed, files, what, remedy} <- [
          {@eperm, %{"/proc/sys/kernel/unprivileged_userns_clone" => "0"},
           "sysctl kernel.unprivileged_userns_clone is 0",
           "sysctl -w kernel.unprivileged_userns_clone=1"},
          {"netlink_port: /proc/self/uid_map: EPERM: Operation not permitted",
           %{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns" => "1"},
           "sysctl kernel.apparmor_restrict_unprivileged_userns is 1",
           "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
          {"netlink_port: unshare(2): ENOSPC: No space left on device",
           %{"/proc/sys/user/max_user_namespaces" => "0"}, "sysctl user.max_user_namespaces is 0",
           "sysctl -w user.max_user_namespaces="},
          {"netlink_port: unshare(2): ENOSPC: No space left on device",
           %{"/proc/sys/user/max_user_namespaces" => "20"}, "the limit on namespaces is reached",
           "raise user.max_user_namespaces"},
          {@eperm, %{"/proc/self/status" => "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1"},
           "a seccomp filter", "seccomp=unconfined"},
          {"netlink_port: unknown argument \"--sandbox\"; try --help", %{},
           "the helper does not run", "mix netlink_port.doctor"},
          {"x: error while loading shared libraries: y", %{}, "the helper does not run",
           "mix netlink_port.doctor"},
          {@eperm,
           %{
             "/proc/sys/kernel/unprivileged_userns_clone" => "1",
             "/proc/sys/kernel/apparmor_restrict_unprivileged_userns" => "0",
             "/proc/self/status" => "Seccomp:\t0\n"
           }, "the kernel or a security module", "run the tests as root"},
          {@eperm, %{"/proc/self/status" => root("0000000000000000")},
           "the kernel or a security module", "with CAP_SYS_ADMIN, which its root lacks here"},
          {@eperm, %{"/proc/self/status" => root("000001ffffffffff")},
           "the kernel or a security module", "allow them for this user"}
        ] do
      line = line(printed, files)
      assert line =~ what
      assert line =~ remedy
      assert line =~ printed
      refute line =~ "\n"
      # Root is not advised to be root.
      refute line =~ "as root" and Map.get(files, "/proc/self/status", "") =~ "Uid:\t0"
    end
  end

  # A suite that uses NetlinkPort.Sandbox, in another VM without privileges. A limit refuses its user namespaces.
  @tag :userns
  test "where namespaces are refused tests are skipped, with that line once; with the setup alone they fail with it" do
    {output, 2} = suite(["setpriv", "--bounding-set", "-all"])
    # Until Elixir 1.19, and from 1.20: one of the two that ran.
    assert output =~ ~r"5 tests, 1 failure, 3 skipped|Result: 1/2 passed, 3 skipped"
    line = "no network namespaces for NetlinkPort.Sandbox: sysctl user.max_user_namespaces is 0"
    assert length(String.split(output, "Skipped: " <> line)) == 2
    assert output =~ "(RuntimeError) " <> line
  end

  test "where the helper cannot be run, the line names it" do
    named = "/nonexistent/helper cannot be run (enoent): see that it exists"
    line = unavailable("/nonexistent/helper", "")
    assert line =~ "no network namespaces for NetlinkPort.Sandbox: " <> named
  end

  @tag :userns
  test "where nsenter(1) is missing, the line names it" do
    line = unavailable(helper(), "System.put_env(\"PATH\", \"/nonexistent\")")
    assert line =~ "NetlinkPort.Sandbox: nsenter(1) is missing; install util-linux"
  end

  # The line of a VM without a helper of the build.
  defp unavailable(executable, before) do
    folder = tmp_path!("ebin")
    File.mkdir_p!(folder)
    ebin = Application.app_dir(:netlink_port, "ebin")
    File.cp_r!(ebin, Path.join(folder, "ebin"))
    script = before <> "; IO.puts(NetlinkPort.Sandbox.unavailable())"
    arguments = ["-pa", Path.join(folder, "ebin"), "-e", script]
    env = [{"NETLINK_PORT_EXECUTABLE", executable}]
    {line, 0} = System.cmd("elixir", arguments, stderr_to_stdout: true, env: env)
    line
  end

  @tag :userns
  test "root needs no user namespaces" do
    {output, status} = suite([])
    assert status == 0, output
    assert output =~ ~r/5 tests, 0 failures|Result: 5 passed/
  end

  defp suite(wrapper) do
    folder = tmp_path!("suite")
    File.mkdir_p!(folder)
    File.chmod!(folder, 0o755)

    File.cp_r!(:code.lib_dir(:netlink_port), Path.join(folder, "netlink_port"),
      dereference_symlinks: true
    )

    file = Path.join(folder, "suite.exs")
    File.write!(file, suite_source())

    elixir = [
      System.find_executable("elixir"),
      "-pa",
      Path.join(folder, "netlink_port/ebin"),
      file
    ]

    # In its own user namespace the limit affects no other process.
    script = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\""
    arguments = ["--user", "--map-root-user", "sh", "-c", script, "sh"]
    System.cmd("unshare", arguments ++ wrapper ++ elixir, stderr_to_stdout: true, cd: folder)
  end

  defp suite_source do
    """
    ExUnit.start()

    defmodule Skipped do
      use ExUnit.Case, async: true
      use NetlinkPort.Sandbox
      setup :netlink_sandbox
      for n <- 1..2, do: test("\#{n}", c, do: {:ok, _} = NetlinkPort.open(c.server, :route, netns: c.netns))
    end

    defmodule SkippedToo do
      use ExUnit.Case, async: true
      use NetlinkPort.Sandbox
      setup :netlink_sandbox
      test "joins", c, do: veth(c.sandbox, start_supervised!(NetlinkPort.Sandbox))
    end

    defmodule Alone do
      use ExUnit.Case, async: true
      import NetlinkPort.Sandbox
      setup :netlink_sandbox
      test "a", c, do: {:ok, _} = NetlinkPort.open(c.server, :route, netns: c.netns)
    end

    defmodule Without do
      use ExUnit.Case, async: true
      test "a", do: :ok
    end
    """
  end
end
