defmodule NetlinkPort.UnprivilegedTest do
  # Runs the tests of namespaces again in a VM without privileges: as an ordinary user with a helper that has file
  # capabilities, and in user namespaces.
  use NetlinkPort.Case, async: true

  @moduletag root: true, userns: true, init_user_namespace: true, timeout: within(300_000)

  @suites ~w(namespaces active flow_control native)
  @nobody ~w(--reuid 65534 --regid 65534 --clear-groups)

  # A copy of all that the suite needs, in a folder of that user.
  setup do
    home = tmp_path!("nobody")
    File.mkdir_p!(home)
    File.cp_r!(:code.lib_dir(:netlink_port), Path.join(home, "netlink_port"))
    # The build has a link to priv/.
    File.rm_rf!(Path.join(home, "netlink_port/priv"))
    File.mkdir_p!(Path.join(home, "netlink_port/priv"))

    File.cp!(
      NetlinkPort.Helper.Executable.path(),
      Path.join(home, "netlink_port/priv/netlink_port")
    )

    File.cp_r!(Path.expand("..", __DIR__), Path.join(home, "test"))
    File.chmod!(home, 0o700)
    {_output, 0} = System.cmd("chown", ["-R", "65534:65534", home])
    %{home: home}
  end

  # Runs the suite as that user, by the command `wrapper`, without the tests that have some tags.
  defp run(home, wrapper, without, environment) do
    files = for suite <- @suites, do: "test/netlink_port/#{suite}_test.exs"
    requires = Enum.flat_map(["test/test_helper.exs" | files], &["-r", &1])
    elixir = [System.find_executable("elixir"), "-pa", "netlink_port/ebin" | requires]
    environment = [{"HOME", home}, {"NETLINK_PORT_TEST_WITHOUT", without} | environment]
    opts = [cd: home, env: environment, stderr_to_stdout: true]
    {output, status} = System.cmd("setpriv", @nobody ++ wrapper ++ elixir, opts)
    assert status == 0, output
    # The latter since Elixir 1.20.
    [_ | passed] = Regex.run(~r"(\d+) tests, 0 failures|Result: (\d+) passed", output)
    passed = List.last(passed)
    assert String.to_integer(passed) > 60
    refute output =~ ~r/\d skipped/
  end

  test "the suite passes as an ordinary user, with a helper that has file capabilities", %{
    home: home
  } do
    # Outside the build, which would overwrite it.
    executable = Path.join(home, "helper")
    File.cp!(helper(), executable)
    {_output, 0} = System.cmd("setcap", ["cap_sys_admin,cap_net_admin+ep", executable])

    # For ip(8) alone. The code under test does not use it.
    su = Path.join(home, "su")
    File.cp!(System.find_executable("setpriv"), su)
    {_output, 0} = System.cmd("setcap", ["cap_setuid,cap_setgid+ep", su])

    run(home, [], "trace net_broadcast", [
      {"NETLINK_PORT_TEST_SU", "#{su} --reuid 0 --regid 0 --clear-groups"},
      {"NETLINK_PORT_TEST_SERVER", inspect(executable: executable)}
    ])
  end

  # Names of namespaces are mounts, so that these need a mount namespace, too.
  @mount ["sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$@\"", "sh"]

  test "the suite passes inside unshare -Urn, without any privilege outside", %{home: home} do
    run(home, ["unshare", "-Urnm" | @mount], "trace init_user_namespace", [])
  end

  test "the suite passes inside unshare -Ur, where a child of the helper enters", %{home: home} do
    options = {"NETLINK_PORT_TEST_SERVER", inspect(user_namespaces: true)}
    run(home, ["unshare", "-Urm" | @mount], "trace init_user_namespace", [options])
  end
end
