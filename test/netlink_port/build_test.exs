defmodule NetlinkPort.BuildTest do
  # The Mix compiler where the disk, or what it needs, is not as it should be: it says so, and never
  # leaves half an executable. Cargo is stood in for by a script, since it is not under test.
  use NetlinkPort.Case, async: true

  @root Path.expand("../..", __DIR__)

  # A project of its own, with a `cargo` that does what `script` says.
  defp project!(script) do
    root = tmp_path!("project")
    File.mkdir_p!(Path.join(root, "bin"))
    File.cp!(Path.join(@root, "mix.exs"), Path.join(root, "mix.exs"))
    cargo = Path.join(root, "bin/cargo")
    File.write!(cargo, "#!/bin/sh\n" <> script)
    File.chmod!(cargo, 0o755)
    root
  end

  @builds """
  mkdir -p target/release
  cp #{NetlinkPort.Helper.executable()} target/release/netlink_port
  """

  defp compile(root, path \\ nil) do
    path = path || Path.join(root, "bin") <> ":" <> System.get_env("PATH")
    mix = System.find_executable("mix")
    environment = [{"PATH", path}, {"MIX_ENV", "prod"}]
    System.cmd(mix, ["compile.netlink_port"], cd: root, env: environment, stderr_to_stdout: true)
  end

  defp priv(root), do: Path.join(root, "priv")
  defp installed(root), do: Path.join(priv(root), "netlink_port")

  test "a build installs what cargo made, and does nothing when nothing has changed" do
    root = project!(@builds)
    assert {_output, 0} = compile(root)
    assert File.read!(installed(root)) == File.read!(NetlinkPort.Helper.executable())
    assert File.ls!(priv(root)) == ["netlink_port"]
    %{inode: inode} = File.stat!(installed(root))
    assert {_output, 0} = compile(root)
    assert %{inode: ^inode} = File.stat!(installed(root))
  end

  @tag :root
  test "a disk that is full is named; what was installed before stays" do
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
  test "a priv/ that cannot be written is named" do
    root = project!(@builds)
    File.mkdir_p!(priv(root))
    {_output, 0} = as_root("mount", ["-t", "tmpfs", "-o", "ro", "tmpfs", priv(root)])
    on_exit(fn -> as_root("umount", [priv(root)]) end)
    assert {output, 1} = compile(root)
    assert output =~ "cannot write #{installed(root)}: read-only file system"
  end

  test "a build that fails shows what cargo says" do
    root = project!("echo 'error: no space left on device'; exit 101")
    assert {output, 1} = compile(root)
    assert output =~ "error: no space left on device"
    assert output =~ "cargo build failed with status 101"
    refute File.exists?(installed(root))
  end

  test "without cargo it says how to get it" do
    root = project!(@builds)
    bin = Path.join(root, "without")
    File.mkdir_p!(bin)
    # All that mix itself takes.
    for program <- ~w(elixir erl sh env dirname basename readlink sed uname expr cut) do
      if path = System.find_executable(program), do: File.ln_s!(path, Path.join(bin, program))
    end

    assert {output, 1} = compile(root, bin)
    assert output =~ "netlink_port needs cargo; install Rust 1.85 or newer: https://rustup.rs"
  end
end
