defmodule NetlinkPort.BuildTest do
  # The Mix compiler when the disk, or a program that it needs, is faulty: it says so, and never leaves half an
  # executable. A script stands in for Cargo, which is not under test.
  use NetlinkPort.Case, async: true

  @root Path.expand("../..", __DIR__)

  # A new project, with a `cargo` that runs `script`.
  defp project!(script) do
    root = tmp_path!("project")
    File.mkdir_p!(Path.join(root, "bin"))

    for file <- ~w(mix.exs build.exs Cargo.toml),
        do: File.cp!(Path.join(@root, file), in!(root, file))

    cargo!(root, script)
    root
  end

  defp in!(root, file), do: Path.join(root, file)

  defp cargo!(root, script, version \\ "1.85.0") do
    cargo = in!(root, "bin/cargo")

    File.write!(cargo, """
    #!/bin/sh
    case "$*" in
    --version) echo "cargo #{version} (0123abcd 2025-02-20)"; exit;;
    *--message-format\\ json-render-diagnostics*) ;;
    *) echo "unexpected: $*" >&2; exit 1;;
    esac
    #{script}
    """)

    File.chmod!(cargo, 0o755)
  end

  # Writes where Cargo would: below CARGO_TARGET_DIR, and in a folder of the target if there is one.
  @builds ~S"""
          built=${CARGO_TARGET_DIR:-$PWD/target}${CARGO_BUILD_TARGET:+/$CARGO_BUILD_TARGET}/release
          mkdir -p "$built"
          echo '{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null,"fresh":true}'
          echo '{"reason":"compiler-artifact","executable":"'"$(echo "$built" | sed 's/"/\\"/g')"'/netlink_port"}'
          """ <> "cp #{NetlinkPort.Helper.Executable.path()} \"$built/netlink_port\"\n"

  # Variables that would change these builds, too.
  @unset for name <- ~w(NETLINK_PORT_EXECUTABLE CARGO_BUILD_TARGET CARGO_TARGET_DIR MIX_TARGET),
             do: {name, nil}

  defp compile(root, environment \\ []) do
    path = Path.join(root, "bin") <> ":" <> System.get_env("PATH")
    environment = @unset ++ [{"PATH", path}, {"MIX_ENV", "prod"}] ++ environment
    mix = System.find_executable("mix")
    System.cmd(mix, ["compile.netlink_port"], cd: root, env: environment, stderr_to_stdout: true)
  end

  defp priv(root), do: Path.join(root, "priv")
  defp installed(root), do: Path.join(priv(root), "netlink_port")
  defp version, do: Mix.Project.config()[:version]

  # From Elixir 1.19 `mix test` warns of these. Older ones are silent, so that this is found here.
  test "`mix test` is told which scripts below test/ are no tests" do
    scripts = Path.wildcard("test/**/*.exs") -- ["test/test_helper.exs"]
    ignored? = fn file -> Enum.any?(Mix.Project.config()[:test_ignore_filters], & &1.(file)) end

    assert "test/soak/soak.exs" in scripts
    assert Enum.reject(scripts, &(String.ends_with?(&1, "_test.exs") or ignored?.(&1))) == []
    refute Enum.any?(scripts, &(String.ends_with?(&1, "_test.exs") and ignored?.(&1)))
  end

  test "a build installs the executable of cargo, and does nothing when nothing has changed" do
    root = project!(@builds)
    assert {_output, 0} = compile(root)
    assert File.read!(installed(root)) == File.read!(NetlinkPort.Helper.Executable.path())
    assert File.ls!(priv(root)) == ["netlink_port"]
    %{inode: inode} = File.stat!(installed(root))
    assert {"", 0} = compile(root)
    assert %{inode: ^inode} = File.stat!(installed(root))
  end

  test "a build takes the executable from the path that cargo prints" do
    root = project!(@builds)
    elsewhere = Path.join(root, ~s(else "where"))
    assert {_output, 0} = compile(root, [{"CARGO_TARGET_DIR", elsewhere}])
    assert File.read!(installed(root)) == File.read!(NetlinkPort.Helper.Executable.path())
    refute File.exists?(Path.join(root, "target"))

    cargo!(root, "echo '{}'")
    assert {output, 1} = compile(root)
    assert output =~ "cargo build has not said where the executable is"
  end

  @tag :root
  test "a full disk is named; the installed helper stays" do
    root = project!(@builds)
    File.mkdir_p!(priv(root))
    {_output, 0} = as_root("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", priv(root)])
    on_exit(fn -> as_root("umount", [priv(root)]) end)
    File.write!(installed(root), "an older one")
    assert {output, 1} = compile(root)
    assert output =~ "cannot write #{installed(root)}: no space left on device"
    assert File.ls!(priv(root)) == ["netlink_port"]
    assert File.read!(installed(root)) == "an older one"
  end

  @tag :root
  test "a priv/ that cannot be written is an error that names it" do
    root = project!(@builds)
    File.mkdir_p!(priv(root))
    {_output, 0} = as_root("mount", ["-t", "tmpfs", "-o", "ro", "tmpfs", priv(root)])
    on_exit(fn -> as_root("umount", [priv(root)]) end)
    assert {output, 1} = compile(root)
    assert output =~ "cannot write #{installed(root)}: read-only file system"
  end

  test "a build that fails shows the output of cargo" do
    root = project!("echo 'error: no space left on device' >&2; exit 101")
    assert {output, 1} = compile(root)
    assert output =~ "error: no space left on device"
    assert output =~ "cargo build failed with status 101"
    refute File.exists?(installed(root))
  end

  # Like `mix compile` of a project on those systems: neither Cargo nor rustc is run.
  defp compile_on(root, systems, environment) do
    path = Path.join(root, "bin") <> ":" <> System.get_env("PATH")
    environment = @unset ++ [{"PATH", path}, {"MIX_ENV", "prod"}] ++ environment

    code =
      "for os <- #{inspect(systems)}, do: IO.inspect(Mix.Tasks.Compile.NetlinkPort.build(os))"

    arguments = ["run", "--no-compile", "--no-start", "--no-deps-check", "-e", code]
    System.cmd("mix", arguments, cd: root, env: environment, stderr_to_stdout: true)
  end

  test "on another system than Linux the library compiles without the helper, with one sentence" do
    root = project!("echo 'a page of errors' >&2; exit 101")
    systems = [{:unix, :darwin}, {:win32, :nt}, {:unix, :freebsd}]

    said =
      for {_family, name} <- systems, into: "" do
        "netlink_port: compiled without the helper, which runs on Linux alone (this is #{name}); " <>
          "NetlinkPort.start_link/1 says so, too\n{:noop, []}\n"
      end

    # Programs that cannot be run there are not checked.
    for environment <- [[], [{"NETLINK_PORT_EXECUTABLE", "/nowhere"}]],
        do: assert(compile_on(root, systems, environment) == {said, 0})

    # The helper is built if another machine is the target.
    assert {output, 1} = compile_on(root, [{:unix, :darwin}], [{"MIX_TARGET", "board"}])
    assert output =~ "a page of errors"
  end

  test "NETLINK_PORT_EXECUTABLE may have letters beyond ASCII under LC_ALL=C" do
    root = project!(@builds)
    path = in!(root, "ünïcode")
    File.cp!(NetlinkPort.Helper.Executable.path(), path)
    assert {_output, 0} = compile(root, [{"LC_ALL", "C"}, {"NETLINK_PORT_EXECUTABLE", path}])
    assert File.read!(installed(root)) == File.read!(path)
  end

  test "a build without cargo says how to install it" do
    root = project!(@builds)
    bin = Path.join(root, "without")
    File.mkdir_p!(bin)
    # The programs that Mix itself needs.
    for program <- ~w(elixir erl sh env dirname basename readlink sed uname expr cut) do
      if path = System.find_executable(program), do: File.ln_s!(path, Path.join(bin, program))
    end

    assert {output, 1} = compile(root, [{"PATH", bin}])
    assert output =~ "netlink_port needs cargo; install Rust 1.85 or newer: https://rustup.rs"
  end

  test "a cargo that is too old, or does not work, is named, with what to do" do
    root = project!(@builds)
    cargo!(root, @builds, "1.84.9")
    assert {output, 1} = compile(root)
    assert output =~ "netlink_port needs cargo 1.85, #{Path.join(root, "bin/cargo")} is 1.84.9"
    assert output =~ "install Rust 1.85 or newer: https://rustup.rs"
    refute File.exists?(Path.join(root, "target"))

    File.write!(Path.join(root, "bin/cargo"), "#!/bin/sh\necho no toolchain >&2; exit 1")
    assert {output, 1} = compile(root)
    assert output =~ "bin/cargo does not work: no toolchain"
  end

  test "a build that is killed during its copy leaves no helper under that name; the next build clears up" do
    # The copy reads a FIFO, from which the VM reads 64 KiB at a time, and waits for more.
    root = project!("echo '{\"executable\":\"'$PWD'/fifo\"}'")
    {_output, 0} = System.cmd("mkfifo", [Path.join(root, "fifo")])

    environment =
      for {name, value} <-
            @unset ++ [{"PATH", Path.join(root, "bin:") <> System.get_env("PATH")}],
          do: {String.to_charlist(name), (value && String.to_charlist(value)) || false}

    mix = System.find_executable("mix")
    opts = [:exit_status, :stderr_to_stdout, cd: root, env: environment]
    port = Port.open({:spawn_executable, mix}, [args: ["compile.netlink_port"]] ++ opts)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    {:ok, fifo} = :file.open(Path.join(root, "fifo"), [:raw, :write])
    half = String.duplicate("half", 16_384)
    :ok = :file.write(fifo, half)
    temporary = installed(root) <> ".tmp#{os_pid}"
    eventually!(fn -> File.read(temporary) == {:ok, half} end, 30_000)
    signal!(os_pid, "KILL")
    assert_receive {^port, {:exit_status, _status}}
    :file.close(fifo)
    assert File.ls!(priv(root)) == [Path.basename(temporary)]

    # The temporary file of a build that is running stays.
    other = installed(root) <> ".tmp#{System.pid()}"
    File.write!(other, "")
    cargo!(root, @builds)
    assert {_output, 0} = compile(root)
    assert Enum.sort(File.ls!(priv(root))) == ["netlink_port", Path.basename(other)]
  end

  test "a build for the host after one for another machine, in the same build path, installs the host's helper" do
    root = project!(@builds <> "echo ${CARGO_BUILD_TARGET:-host} >>\"$built/netlink_port\"\n")
    built = Path.join(root, "_build/prod/lib/netlink_port/priv/netlink_port")

    for {target, what} <- [{"cross", "cross"}, {nil, "host"}, {"cross", "cross"}, {nil, "host"}] do
      assert {_output, 0} = compile(root, [{"CARGO_BUILD_TARGET", target}])
      assert String.ends_with?(File.read!(built), what <> "\n")
    end
  end

  test "the path of the project may have any characters" do
    for name <- ["a{b", "a[b]*?", "a b'c", "ä"] do
      root = Path.join(project!(@builds), name)
      File.mkdir!(root)

      for file <- ~w(mix.exs build.exs Cargo.toml bin),
          do: File.rename!(in!(Path.dirname(root), file), in!(root, file))

      File.mkdir!(priv(root))
      File.write!(installed(root) <> ".tmp999999999", "")
      assert {_output, 0} = compile(root)
      assert File.ls!(priv(root)) == ["netlink_port"]
    end
  end

  describe "with NETLINK_PORT_EXECUTABLE" do
    defp with_executable(root, path, more \\ []) do
      compile(root, [{"NETLINK_PORT_EXECUTABLE", path} | more])
    end

    test "the executable is installed without cargo, and everybody may run it" do
      root = project!("exit 1")
      path = Path.join(root, "prebuilt")
      File.cp!(NetlinkPort.Helper.Executable.path(), path)
      File.chmod!(path, 0o700)
      assert {"", 0} = with_executable(root, path)
      assert File.read!(installed(root)) == File.read!(path)
      %{mode: mode, inode: inode} = File.stat!(installed(root))
      assert Bitwise.band(mode, 0o777) == 0o755
      assert {"", 0} = with_executable(root, path)
      assert %{inode: ^inode} = File.stat!(installed(root))

      # An empty variable counts as unset.
      assert {output, 1} = with_executable(root, "")
      assert output =~ "cargo build failed"
    end

    test "an executable that is missing, of another version or another program is refused" do
      root = project!(@builds)

      for {name, content, mode, reason} <- [
            {"missing", nil, nil, "cannot be used: no such file or directory"},
            {"closed", "", 0o644, "cannot be run: permission denied"},
            {"old", "#!/bin/sh\necho netlink_port 0.0.9", 0o755, "is version 0.0.9"},
            {"other", "#!/bin/sh\necho hello", 0o755,
             "is not netlink_port: it says \"hello\\n\""},
            {"text", "hello", 0o755, "is not netlink_port"},
            {"foreign", aarch64(), 0o755, "cannot run on this machine"}
          ] do
        path = Path.join(root, name)
        if content, do: File.write!(path, content)
        if mode, do: File.chmod!(path, mode)
        assert {output, 1} = with_executable(root, path)
        assert output =~ "NETLINK_PORT_EXECUTABLE: #{path} #{reason}; it has to be netlink_port"
        assert output =~ "netlink_port #{version()} for the machine that is built for"
        # The variable may be set for the release alone.
        assert output =~ "unset NETLINK_PORT_EXECUTABLE to have Cargo build it"
      end

      assert {output, 1} = with_executable(root, root)
      assert output =~ "is no file but a directory"

      for path <- ["bin/netlink_port", "~/netlink_port"] do
        assert {output, 1} = with_executable(root, path)
        assert output =~ "NETLINK_PORT_EXECUTABLE: #{path} is not an absolute path; it has to be"
      end

      refute File.exists?(priv(root))
    end

    test "a cross build takes an executable for another machine, and keeps it apart from the host's" do
      root = project!(@builds)
      {_output, 0} = compile(root)
      path = Path.join(root, "foreign")
      File.write!(path, aarch64())
      File.chmod!(path, 0o755)

      for {variable, build} <- [{"MIX_TARGET", "board_prod"}, {"CARGO_BUILD_TARGET", "prod"}] do
        assert {"", 0} = with_executable(root, path, [{variable, "board"}])
        cross = Path.join(root, "_build/#{build}/lib/netlink_port/priv/netlink_port")
        assert File.read!(cross) == aarch64()
      end

      assert File.read!(installed(root)) == File.read!(NetlinkPort.Helper.Executable.path())
    end

    # The header of an ELF file for EM_AARCH64, elf(5).
    defp aarch64 do
      <<0x7F, "ELF", 2, 1, 1, 0::64, 0, 2::little-16, 183::little-16, 1::little-32>> <> <<0::320>>
    end
  end

  describe "with config :netlink_port, executable:" do
    defp configure!(root, value) do
      File.mkdir_p!(Path.join(root, "config"))
      config = "import Config\nconfig :netlink_port, executable: #{inspect(value)}\n"
      File.write!(Path.join(root, "config/config.exs"), config)
    end

    test "nothing is built, and the file may be missing" do
      root = project!("exit 1")
      configure!(root, "/nonexistent/netlink_port")
      assert {"", 0} = compile(root)
      configure!(root, NetlinkPort.Helper.Executable.path())
      assert {"", 0} = compile(root)
      refute File.exists?(priv(root))
    end

    test "a helper of another version is a warning, and a value that is no path is refused" do
      root = project!("exit 1")
      configure!(root, script!("echo netlink_port 0.0.9"))
      assert {output, 0} = compile(root)
      assert output =~ "is version 0.0.9, and the library #{version()}: install the helper anew"
      configure!(root, :priv)
      assert {output, 1} = compile(root)
      assert output =~ "executable:` to be a path, got: :priv"
    end
  end
end
