defmodule NetlinkPort.DeploymentTest do
  # docs/deployment.md and the unit that it describes.
  use NetlinkPort.Case, async: true

  @root Path.expand("../..", __DIR__)
  @unit Path.join(@root, "examples/systemd/sample.service")

  defp systemd_analyze(arguments) do
    env = [{"SYSTEMD_COLORS", "0"}, {"SYSTEMD_PAGER", ""}, {"LC_ALL", "C.UTF-8"}]
    System.cmd("systemd-analyze", arguments, env: env, stderr_to_stdout: true)
  end

  defp document, do: File.read!(Path.join(@root, "docs/deployment.md"))

  # The unit with a program that exists, under its own name.
  defp unit!(change) do
    directory = tmp_path!("unit")
    File.mkdir!(directory)
    path = Path.join(directory, "sample.service")
    true_ = System.find_executable("true")
    unit = @unit |> File.read!() |> String.replace("/opt/sample/bin/sample", true_)
    File.write!(path, change.(unit))
    path
  end

  @tag :systemd
  test "systemd accepts every line of the unit" do
    assert systemd_analyze(["verify", "--man=no", unit!(& &1)]) == {"", 0}
    # systemd-analyze would print errors.
    wrong = unit!(&String.replace(&1, "ProtectHome=yes", "ProtectHouse=yes"))
    {output, _status} = systemd_analyze(["verify", "--man=no", wrong])
    assert output =~ "ProtectHouse"
  end

  # The exposure by that version of systemd; other versions differ a little.
  defp assert_exposure(path, says) do
    {output, 0} = systemd_analyze(["security", "--offline=yes", "--no-pager", path])
    [_, found] = Regex.run(~r/Overall exposure level for [\w.]+: ([\d.]+)/, output)
    [_, version] = Regex.run(~r/\(systemd (\d+)\)/, document())
    [_, exposure] = Regex.run(says, document())
    {about, 0} = systemd_analyze(["--version"])

    if about =~ ~r/^systemd #{version} /,
      do: assert(found == exposure),
      else: assert_in_delta(String.to_float(found), String.to_float(exposure), 1.0)
  end

  @tag :systemd
  test "the unit's exposure is that of the document, by that version of systemd" do
    assert_exposure(@unit, ~r/says \*\*([\d.]+)\*\* of 10 for it/)
  end

  @tag :systemd
  test "systemd accepts every line of the alternative unit, and its exposure is that of the document" do
    [_, lines] = Regex.run(~r/\n    (\[Service\]\n.*?)\n\n/s, document())

    unit =
      String.replace(lines, ~r/^    /m, "") <> "\nExecStart=#{System.find_executable("true")}\n"

    path = unit!(fn _sample -> unit end)
    assert systemd_analyze(["verify", "--man=no", path]) == {"", 0}
    assert_exposure(path, ~r/With it `systemd-analyze` says ([\d.]+)\./)
  end

  test "no setting of the unit disables file capabilities" do
    unit = File.read!(@unit)
    [_, list] = Regex.run(~r/What must not be there:\n\n(.*?)\n\n/s, document())
    settings = for [_, name] <- Regex.scan(~r/`(\w+=)\w*`/, list), do: name
    assert "SystemCallFilter=" in settings and "PrivateUsers=" in settings

    for setting <- settings -- ["User=", "NoNewPrivileges="],
        do: refute(unit =~ ~r/^#{setting}/m, setting)

    assert unit =~ ~r/^NoNewPrivileges=no$/m
    # The capabilities that the Mix task gives the file, no more and no fewer.
    assert unit =~ ~r/^CapabilityBoundingSet=CAP_SYS_ADMIN CAP_NET_ADMIN$/m
  end

  test "the unit goes on when the OOM killer ends its helper" do
    assert File.read!(@unit) =~ ~r/^OOMPolicy=continue$/m
    assert document() =~ "`OOMPolicy=continue`"
    assert document() =~ "inherits `OOMScoreAdjust=` (oom_score_adj)"

    # The helper has the oom_score_adj of its parent.
    code = """
    {:ok, server} = NetlinkPort.start_link(name: nil, executable: #{inspect(helper())})
    {:ok, %{os_pid: helper}} = NetlinkPort.info(server)
    IO.write(File.read!("/proc/\#{helper}/oom_score_adj"))
    """

    ebin = Application.app_dir(:netlink_port, "ebin")
    script = "echo 321 > /proc/$$/oom_score_adj; exec elixir -pa #{ebin} -e '#{code}'"
    assert {"321\n", 0} = System.cmd("sh", ["-c", script])
  end

  test "the files that the document names exist" do
    for [_, name] <- Regex.scan(~r/`((?:src|docs|test|examples)\/[\w\/.]+)`/, document()),
        do: assert(File.exists?(Path.join(@root, name)), name)

    assert document() =~
             "mix netlink_port.install --to /usr/local/lib/netlink_port --group netlink"
  end
end
