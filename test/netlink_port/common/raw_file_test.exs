defmodule NetlinkPort.RawFileTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.RawFile

  # What asks OTP's file server, or may.
  @asks [
    {File, :any},
    {:filelib, :any},
    {:file, :any},
    {System, :cmd},
    {System, :shell},
    {System, :find_executable},
    {System, :cwd},
    {System, :cwd!},
    {System, :tmp_dir},
    {System, :tmp_dir!},
    {:os, :find_executable},
    {:os, :cmd}
  ]
  # Of /2, with a folder that is given.
  @asks_alone [{Path, :absname, 1}, {Path, :expand, 1}, {Path, :expand, 2}, {Path, :wildcard, 1}]
  @pure [{:file, :native_name_encoding, 0}, {:file, :format_error, 1}]

  # Tasks of mix, what people run by hand, the test kit, and a process of its own that writes a capture.
  @aside [
    ~r/^Mix\./,
    ~r/^NetlinkPort\.(Doctor|Top|Attach|Survey|Sandbox|Capture|Operations)\b/,
    ~r/^NetlinkPort\.Helper\.Install$/
  ]

  @allowed [
    # With `:raw`.
    {RawFile, :file},
    # The path of getcap(8) is absolute, and then System.cmd/3 does not search it. id(1) is run for the task that installs.
    {NetlinkPort.Helper.Execve, System},
    {NetlinkPort.Helper.ExecutableAccess, System}
  ]

  test "no module that a call or a server runs uses OTP's file server" do
    {:ok, modules} = :application.get_key(:netlink_port, :modules)

    used =
      for module <- modules,
          not (to_string(module.module_info(:compile)[:source]) =~ "/test/support/"),
          not Enum.any?(@aside, &(inspect(module) =~ &1)),
          {:ok, {_, [imports: imports]}} =
            module |> :code.which() |> :beam_lib.chunks([:imports]),
          {used, function, arity} = call <- imports,
          {used, :any} in @asks or {used, function} in @asks or call in @asks_alone,
          call not in @pure and {module, used} not in @allowed,
          do: {module, used, function, arity}

    assert used == []
    assert NetlinkPort.Server in modules
  end

  test "a file is read as by File: an empty one, one of many chunks, one of /proc, and none" do
    for bytes <- ["", :crypto.strong_rand_bytes(200_000)] do
      path = tmp_path!("file")
      File.write!(path, bytes)
      assert RawFile.read(path) == {:ok, bytes}
    end

    for path <- ["/proc/self/status", "/proc/self/mountinfo"],
        do: assert({:ok, <<_, _::binary>>} = RawFile.read(path))

    for path <- ["/nlp/none", "/etc/passwd/none", "/", "/nlp\0none"],
        do: assert({path, RawFile.read(path)} == {path, File.read(path)})
  end

  test "the target of a link, and whether there is a file, are as of File" do
    dangling = tmp_path!("dangling")
    File.ln_s!("/nlp/ü", dangling)
    assert RawFile.read_link(dangling) == {:ok, "/nlp/ü"}

    for path <- ["/proc/self", "/proc/self/ns/net", "/etc", "/nlp/none", "/etc/passwd", dangling] do
      assert {path, RawFile.read_link(path)} == {path, File.read_link(path)}
      assert {path, RawFile.exists?(path)} == {path, File.exists?(path)}
      assert {path, RawFile.dir?(path)} == {path, File.dir?(path)}
    end
  end

  test "a program is found in PATH as by System.find_executable/1" do
    for name <- ["sh", "kill", "nlp-none"],
        do: assert({name, RawFile.find_executable(name)} == {name, System.find_executable(name)})
  end
end
