defmodule NetlinkPort.SampleTest do
  # The library as a dependency. A sample application depends on it, by path and by git. It is built for this
  # machine and for another, and released. The release runs as an ordinary user.
  #
  # By path the build uses Cargo's folder of this build, so that nothing is compiled again. By git Cargo does not
  # optimise, since the test checks how the build goes, and not the speed of the result.
  use NetlinkPort.Case, async: true

  @moduletag timeout: within(300_000)
  @moduletag :cargo

  @root Path.expand("../..", __DIR__)
  # The same folder every time: for Cargo a crate in another folder is another crate.
  @work Path.join(@root, "target/sample")
  @quick [
    {"CARGO_TARGET_DIR", Path.join(@root, "target/quick")},
    {"CARGO_PROFILE_RELEASE_LTO", "off"},
    {"CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"},
    {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"}
  ]
  @group "games"
  @user 12_345

  setup_all do
    File.rm_rf!(@work)
    files = package_files()
    for file <- files, do: copy!(file, Path.join(@work, "package"))
    by_path = sample!("by_path", [{"SAMPLE_PATH", @root}])

    %{
      files: files,
      git: bare_clone!(Path.join(@work, "package")),
      by_path: by_path,
      first_build: build(by_path)
    }
  end

  defp package_files do
    patterns = Mix.Project.config()[:package][:files]

    for pattern <- patterns,
        paths = Path.wildcard(Path.join(@root, pattern), match_dot: true),
        paths != [] or flunk("#{pattern} of the package is not there"),
        path <- paths,
        file <- if(File.dir?(path), do: Path.wildcard(path <> "/**"), else: [path]),
        File.regular?(file),
        do: Path.relative_to(file, @root)
  end

  defp copy!(file, directory) do
    File.mkdir_p!(Path.dirname(Path.join(directory, file)))
    File.cp!(Path.join(@root, file), Path.join(directory, file))
  end

  defp bare_clone!(directory) do
    bare = directory <> ".git"
    git!(directory, ~w(init --quiet))
    git!(directory, ~w(add --all))

    git!(
      directory,
      ~w(-c user.name=sample -c user.email=sample@localhost commit --quiet -m package)
    )

    git!(directory, ~w(clone --quiet --bare . #{bare}))
    bare
  end

  defp git!(directory, arguments) do
    env = [{"GIT_CONFIG_GLOBAL", "/dev/null"}, {"GIT_CONFIG_NOSYSTEM", "1"}]

    {output, status} =
      System.cmd("git", arguments, cd: directory, env: env, stderr_to_stdout: true)

    assert {output, status} == {"", 0}
  end

  # A copy of the sample; `environment` says what it depends on. Without Hex: Mix's home is empty.
  defp sample!(name, environment) do
    directory = Path.join(@work, name)
    File.cp_r!(Path.join(@root, "examples/sample"), directory)
    for left <- ~w(_build deps mix.lock), do: File.rm_rf!(Path.join(directory, left))
    home = Path.join(@work, "home")
    File.mkdir_p!(home)

    unset = ~w(NETLINK_PORT_EXECUTABLE CARGO_BUILD_TARGET MIX_TARGET MIX_BUILD_PATH MIX_DEPS_PATH
               MIX_BUILD_ROOT MIX_EXS SAMPLE_PATH SAMPLE_GIT SAMPLE_NETNS)

    set = [
      {"MIX_ENV", "prod"},
      {"MIX_HOME", home},
      {"HEX_HOME", home},
      {"HEX_OFFLINE", "1"},
      {"CARGO_TARGET_DIR", Path.join(@root, "target")}
    ]

    # Of two values the later one counts.
    %{directory: directory, environment: Enum.map(unset, &{&1, nil}) ++ set ++ environment}
  end

  defp mix!(sample, arguments) do
    opts = [cd: sample.directory, env: sample.environment, stderr_to_stdout: true]
    {output, status} = System.cmd("mix", arguments, opts)
    assert status == 0, output
    output
  end

  # A program that runs until the test ends. Sends its output line by line.
  defp start!(sample, program, arguments, environment) do
    port =
      Port.open({:spawn_executable, System.find_executable(program)}, [
        :binary,
        :stderr_to_stdout,
        :exit_status,
        line: 4096,
        cd: sample.directory,
        args: arguments,
        env:
          for {name, value} <- sample.environment ++ environment do
            {String.to_charlist(name), value != nil && String.to_charlist(value)}
          end
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true) end)
    {port, os_pid}
  end

  defp await_line!(port, wanted, seen \\ []) do
    receive do
      {^port, {:data, {:eol, line}}} ->
        line =~ wanted || await_line!(port, wanted, [line | seen])

      {^port, {:exit_status, status}} ->
        flunk("ended with #{status}: #{inspect(Enum.reverse(seen))}")
    after
      within(60_000) -> flunk("no #{inspect(wanted)}: #{inspect(Enum.reverse(seen))}")
    end
  end

  # An event in another namespace reaches the sample.
  defp assert_event!(port, netns) do
    await_line!(port, ~s(watching the links of {:name, "#{netns}"}, verified: true))
    ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
    await_line!(port, "new link br0")
  end

  defp build(sample), do: mix!(sample, ["deps.get"]) <> mix!(sample, ["compile"])

  defp assert_built_once(sample, first_build, helper) do
    assert first_build =~ "Generated netlink_port app"
    assert first_build =~ "Generated sample app"
    %{inode: inode, mtime: mtime} = File.stat!(helper)
    assert mix!(sample, ["compile"]) == ""
    assert %{inode: ^inode, mtime: ^mtime} = File.stat!(helper)
  end

  defp built(sample, build),
    do: Path.join(sample.directory, "_build/#{build}/lib/netlink_port/priv/netlink_port")

  test "the package has all files that a build needs, and no build products", %{files: files} do
    {:ok, manifest} = File.read(Path.join(@root, "Cargo.toml"))
    named = for [_, path] <- Regex.scan(~r/^path = "(.+)"$/m, manifest), do: path
    assert named != []
    sources = Path.wildcard(Path.join(@root, "{src,elixir}/**/*.{rs,ex}"))
    needed = Enum.map(sources, &Path.relative_to(&1, @root))

    for file <-
          named ++
            needed ++
            ~w(Cargo.toml Cargo.lock mix.exs build.exs priv/.gitkeep LICENSE docs/deployment.md
                                      README.md CHANGELOG.md),
        do: assert(file in files)

    for file <- files,
        do: refute(file =~ ~r"^(target|_build|deps|test/.*_test\.exs)|netlink_port$")
  end

  @tag :root
  test "a sample that depends by path is built once, without Hex, and gets events", c do
    assert_built_once(c.by_path, c.first_build, built(c.by_path, "prod"))
    netns = netns!()
    {port, _os_pid} = start!(c.by_path, "mix", ["run", "--no-halt"], [{"SAMPLE_NETNS", netns}])
    assert_event!(port, netns)
  end

  @tag :userns
  test "the sample's own tests pass", c do
    environment = c.by_path.environment ++ [{"MIX_ENV", "test"}]
    output = mix!(%{c.by_path | environment: environment}, ["test"])
    assert output =~ ~r/9 tests, 0 failures|Result: 9 passed/
  end

  test "a sample for another target gets its executable, and keeps the host's", c do
    sample = c.by_path
    host = File.stat!(built(sample, "prod"))

    # A target whose standard library is installed. Cargo does not care that it is this machine's.
    {about, 0} = System.cmd("rustc", ["-vV"])
    [_, triple] = Regex.run(~r/^host: (.+)$/m, about)
    target = [{"MIX_TARGET", "board"}, {"CARGO_BUILD_TARGET", triple} | @quick]
    cross = %{sample | environment: sample.environment ++ target}

    assert_built_once(cross, build(cross), Path.join(@root, "priv/netlink_port"))
    assert {:error, :einval} = File.read_link(Path.dirname(built(sample, "board_prod")))
    assert File.stat!(Path.join(@root, "priv/netlink_port")) == host

    assert File.read!(built(sample, "board_prod")) ==
             File.read!(Path.join(@root, "target/quick/#{triple}/release/netlink_port"))

    mix!(cross, ["release"])

    [released] =
      Path.wildcard(
        Path.join(
          sample.directory,
          "_build/board_prod/rel/sample/lib/netlink_port-*/priv/netlink_port"
        )
      )

    assert File.read!(released) == File.read!(built(sample, "board_prod"))

    # Back to the host's target.
    mix!(sample, ["compile"])
    assert File.stat!(built(sample, "prod")) == host
  end

  describe "a release" do
    @describetag root: true, init_user_namespace: true

    # By git, since the library is released in that way.
    setup %{git: git} do
      directory = tmp_path!("release")
      File.mkdir!(directory)
      File.chmod!(directory, 0o755)
      {line, 0} = System.cmd("getent", ["group", @group])
      gid = line |> String.split(":") |> Enum.at(2)
      %{sample: sample!("by_git", [{"SAMPLE_GIT", git} | @quick]), tmp: directory, gid: gid}
    end

    # As that user, without capabilities: with setpriv(1) alone root's capabilities over files would remain.
    defp start_release!(c, groups, environment) do
      arguments =
        ~w(--reuid #{@user} --regid #{@user}) ++
          groups ++ ["env", "#{c.tmp}/sample/bin/sample", "start"]

      environment = [{"RELEASE_DISTRIBUTION", "none"}, {"HOME", c.tmp} | environment]
      start!(c.sample, "setpriv", arguments, environment)
    end

    test "of a sample that depends by git runs as an ordinary user, with a helper installed for its group",
         c do
      assert_built_once(c.sample, build(c.sample), built(c.sample, "prod"))
      mix!(c.sample, ["release"])
      File.cp_r!(Path.join(c.sample.directory, "_build/prod/rel/sample"), "#{c.tmp}/sample")
      {_output, 0} = System.cmd("chown", ["-R", "#{@user}:#{@user}", "#{c.tmp}/sample"])
      installed = Path.join(c.tmp, "helper")
      install = ["netlink_port.install", "--to", installed, "--group", @group]
      assert mix!(c.sample, install) =~ "#{installed} has been installed"

      netns = netns!()
      environment = [{"NETLINK_PORT_EXECUTABLE", installed}, {"SAMPLE_NETNS", netns}]
      {port, os_pid} = start_release!(c, ["--groups", c.gid], environment)
      assert_event!(port, netns)
      status = File.read!("/proc/#{os_pid}/status")
      assert status =~ ~r/^Uid:(\t#{@user}){4}$/m
      assert status =~ ~r/^CapPrm:\t0{16}$/m

      # The VM of another user may not run that file, and says so.
      {port, _os_pid} = start_release!(c, ["--clear-groups"], environment)
      await_line!(port, "#{installed}: EACCES")
      # With the executable of the release it may not enter the namespace.
      {port, _os_pid} = start_release!(c, ["--clear-groups"], [{"SAMPLE_NETNS", netns}])
      await_line!(port, "EPERM: the helper lacks CAP_SYS_ADMIN")
    end
  end
end
