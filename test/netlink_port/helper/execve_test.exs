defmodule NetlinkPort.ExecveTest do
  # Executables that execve(2) or the dynamic loader refuses. A start, the log and the doctor name the reason. The
  # executables are the helper itself, with some bytes of the file changed.
  use NetlinkPort.Case, async: true

  import ExUnit.CaptureLog

  alias NetlinkPort.Doctor
  alias NetlinkPort.Helper.{Elf, Execve}

  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  # The helper with these bytes replaced by others of the same number.
  defp changed!(old, new) when byte_size(old) == byte_size(new) do
    bytes = File.read!(helper())
    assert bytes =~ old
    file!(String.replace(bytes, old, new))
  end

  defp file!(bytes) do
    path = tmp_path!("netlink_port")
    File.write!(path, bytes)
    File.chmod!(path, 0o755)
    path
  end

  # The sentence of a start, which the log has, too. The doctor's report contains what was found.
  defp said!(path, found, remedy) do
    log =
      capture_log(fn ->
        assert {:error, %Error{stage: :thread, reason: :eproto} = error} =
                 NetlinkPort.start_link(name: nil, executable: path)

        send(self(), {:said, Exception.message(error)})
      end)

    assert_received {:said, said}
    assert log =~ said
    assert said =~ found
    assert said =~ remedy
    [{:fail, line, told} | _] = Doctor.Executable.checks(path)
    assert line =~ path
    assert line =~ found
    assert told =~ remedy
    said
  end

  defp machine, do: elem(Elf.read(helper()), 1).machine

  test "a helper for another machine" do
    # s390x is big-endian, and nothing emulates it here.
    <<head::binary-size(18), _machine::16, rest::binary>> = File.read!(helper())
    path = file!(<<head::binary, 22::16-little, rest::binary>>)

    said =
      said!(
        path,
        "execve(2) says ENOEXEC: it is built for s390x, and this machine is #{machine()}",
        "make dist"
      )

    assert said =~
             "helper #{path} ended with exit status 8 before its first frame: EPROTO: it was not run, execve(2) says"
  end

  @tag :dynamic
  test "a helper without its dynamic loader" do
    {:ok, %{loader: loader}} = Elf.read(helper())

    missing =
      String.duplicate("/x", div(byte_size(loader), 2))
      |> String.pad_trailing(byte_size(loader), "y")

    path = changed!(loader <> <<0>>, missing <> <<0>>)

    said!(
      path,
      "execve(2) says ENOENT: its dynamic loader #{missing} is not on this machine",
      "make dist"
    )
  end

  @tag :dynamic
  test "a helper without a library: the whole sentence of the dynamic loader" do
    path = changed!("libgcc_s.so.1", "libgcc_x.so.1")

    said!(
      path,
      "its dynamic loader says: #{path}: error while loading shared libraries: libgcc_x.so.1: cannot open " <>
        "shared object file: No such file or directory",
      "make dist"
    )
  end

  @tag :dynamic
  test "a helper for a newer C library: the whole sentence of the dynamic loader" do
    path = changed!("GLIBC_2.34", "GLIBC_9.34")

    said =
      said!(
        path,
        ~r/its dynamic loader says: #{path}: .*libc.so.6: version `GLIBC_9.34' not found/,
        "make dist"
      )

    assert said =~ "(required by #{path})"
    refute said =~ "bounding set"
  end

  test "a file that is no program, a script without its interpreter, an incomplete file" do
    said!(
      file!("garbage"),
      "execve(2) says ENOEXEC: it is no program that a kernel runs",
      "name the helper's own file"
    )

    orphan = file!("#!/no/such/interpreter -x\n")

    said!(
      orphan,
      "execve(2) says ENOENT: it is a script for /no/such/interpreter, which is not on this machine",
      "name"
    )

    half = file!(binary_part(File.read!(helper()), 0, 100))
    said!(half, "execve(2) says", "build")
  end

  test "a script whose interpreter may not be run" do
    interpreter = file!("")
    File.chmod!(interpreter, 0o644)

    said!(
      file!("#!#{interpreter}\n"),
      "execve(2) says EACCES: it is",
      "see that its interpreter, if any, may be run"
    )
  end

  test "the exit status of a script is not taken for an errno of execve(2)" do
    for status <- [1, 2, 8, 13] do
      path = script!("exit #{status}")
      assert {:error, error} = NetlinkPort.start_link(name: nil, executable: path)

      assert Exception.message(error) =~
               "helper #{path} ended with exit status #{status} before its first frame: EPROTO"

      refute Exception.message(error) =~ "was not run"
    end
  end

  test "a script with lines that end in CR LF" do
    said!(
      file!("#!/bin/sh\r\nexit 0\r\n"),
      "execve(2) says ENOENT: it is a script with lines that end in CR LF",
      "sed -i 's/\\r$//'"
    )
  end

  test "the error quotes what the helper says on standard error" do
    path = script!("echo 'netlink_port: the system\nrefused it' >&2; exit 71")
    assert {:error, error} = NetlinkPort.start_link(name: nil, executable: path)

    assert Exception.message(error) ==
             "helper #{path} ended with exit status 71 before its first frame: EPROTO: it says: " <>
               "netlink_port: the system; refused it"
  end

  test "bytes that are no UTF-8 on standard error, as in another locale, are shown as ?" do
    path = script!("printf 'non trouv\\351: biblioth\\350que\\033[31m\\n' >&2; exit 3")
    assert {:error, %Error{} = error} = NetlinkPort.start_link(name: nil, executable: path)

    assert Exception.message(error) =~ "EPROTO: it says: non trouv?: biblioth?que?[31m"
  end

  test "a FIFO as the executable is named as such, and is not opened" do
    path = tmp_path!("fifo")
    {_output, 0} = System.cmd("mkfifo", ["-m", "755", path])
    opts = [name: nil, executable: path]

    assert {:error, %Error{stage: :thread, reason: :eproto} = error} =
             NetlinkPort.start_link(opts)

    assert Exception.message(error) =~
             "EACCES: it is no file but a FIFO or a socket; name the file"
  end

  test "the error is legible for a path of any bytes" do
    path = script!("exit 3") <> "\xFF\e[31m"
    opts = [name: nil, executable: path]
    assert {:error, %Error{reason: :enoent} = error} = NetlinkPort.start_link(opts)
    text = Exception.message(error)
    assert String.valid?(text)
    assert text =~ "\\xFF\\e[31m"
    refute text =~ "\e"
  end

  @tag :root
  test "a kernel without network namespaces is named" do
    # Like a kernel without CONFIG_NET_NS: that folder of the process is empty.
    hide = "mount -t tmpfs none /proc/$$/ns && exec #{helper()} \"$@\""
    path = script!("exec unshare -m sh -c '#{hide}' sh \"$@\"")
    assert {:error, error} = NetlinkPort.start_link(name: nil, executable: path)

    assert Exception.message(error) =~
             "it says: netlink_port: this kernel has no network namespaces, CONFIG_NET_NS: there is no /proc/self/ns/net"
  end

  @tag :qemu
  test "an emulator without seccomp(2) is named" do
    path = script!("exec #{System.find_executable("qemu-x86_64-static")} #{helper()} \"$@\"")
    assert {:error, error} = NetlinkPort.start_link(name: nil, executable: path)

    assert Exception.message(error) =~
             ~r/it says: netlink_port: seccomp\(2\) was refused.*qemu-user/
  end

  test "a limit that the system has reached is named, and no other build is advised" do
    glibc = "x: error while loading shared libraries: libgcc_s.so.1:"
    memory = "raise the limits of its memory: RLIMIT_AS and RLIMIT_DATA"
    descriptors = "raise the limit of its descriptors: RLIMIT_NOFILE"

    for {script, remedy} <- [
          {"exec prlimit --nofile=3 #{helper()}", descriptors},
          {"exec prlimit --nofile=5 #{helper()}", descriptors},
          {"echo '#{glibc} cannot open shared object file: Error 24' >&2; exit 127", descriptors},
          {"echo '#{glibc} failed to map segment from shared object' >&2; exit 127", memory},
          {"echo 'cannot allocate TLS data structures for initial thread' >&2; exit 127", memory},
          {"echo 'netlink_port: pipe: ENOMEM: Out of memory' >&2; exit 71", memory},
          # The helper's allocator ends it so.
          {"exit 71", "a helper that ends so without a word had no memory left; " <> memory},
          {"echo '#{glibc} cannot open shared object file: Permission denied' >&2; exit 127",
           "let this user read and map that library"}
        ] do
      said = refused!(script)
      assert said =~ remedy
      refute said =~ "build it on this machine"
      refute said =~ "protocol error"
    end
  end

  test "a signal that has ended the helper is named, with what can have sent it" do
    for {signal, status, told} <- [
          {"KILL", 137, "it was ended by SIGKILL: by another process, or by the OOM killer"},
          {"SYS", 159,
           "it was ended by SIGSYS: a seccomp profile ends programs for a system call"},
          {"SEGV", 139,
           "it was ended by SIGSEGV: its stack may be too small, or a seccomp profile refuses a system call of its start; raise RLIMIT_STACK"},
          {"XCPU", 152, "it was ended by SIGXCPU: its processor time was up; raise RLIMIT_CPU"},
          {"USR1", 138, "it was ended by signal 10"},
          {"ABRT", 134, "it was ended by SIGABRT; it says: fatal"}
        ] do
      words = if signal == "ABRT", do: "echo fatal >&2", else: ":"
      said = refused!("ulimit -c 0; #{words}; kill -#{signal} $$")
      assert said =~ "ended with exit status #{status} before its first frame: EPROTO: #{told}"
    end
  end

  # The sentence of a start with a script as the executable.
  defp refused!(script) do
    capture_log(fn ->
      assert {:error, %Error{stage: :thread, reason: :eproto} = error} =
               NetlinkPort.start_link(name: nil, executable: script!(script))

      send(self(), {:said, Exception.message(error)})
    end)

    assert_received {:said, said}
    said
  end

  test "a helper that fails, and hangs when it is run again for its words, is killed" do
    marker = tmp_path!("marker")
    pid = tmp_path!("pid")

    path =
      script!(
        "[ -e #{marker} ] && { echo $$ > #{pid}; exec sleep 600; }; touch #{marker}; exit 3"
      )

    assert {:error, error} = NetlinkPort.start_link(name: nil, executable: path)
    assert Exception.message(error) =~ "ended with exit status 3 before its first frame: EPROTO"
    refute pid |> File.read!() |> String.trim() |> running?()
  end

  @tag root: true, init_user_namespace: true
  test "the doctor says when file capabilities count only in a user namespace" do
    path = tmp_path!("netlink_port")
    File.cp!(helper(), path)
    {_output, 0} = System.cmd("setcap", ["-n", "1000", "cap_sys_admin,cap_net_admin+ep", path])

    assert {:ok, %{names: [_one, _two], rootid: "1000"}} = Execve.file_capabilities(path)

    assert Enum.any?(Doctor.Executable.checks(path), fn {mark, line, remedy} ->
             mark == :warn and line =~ "[rootid=1000]" and
               line =~ "made inside a user namespace, and count only where user 1000 is root" and
               remedy =~ "as root of the machine"
           end)
  end

  describe "the helper's environment" do
    @tag :root
    test "has no variables that change programs" do
      library = fixture!("libclock.so")
      offset = tmp_path!("offset")
      File.write!(offset, <<0::64>>)

      code = """
      {:ok, server} = NetlinkPort.start_link(name: nil, executable: #{inspect(helper())})
      {:ok, %{os_pid: helper}} = NetlinkPort.info(server)
      IO.write(File.read!("/proc/\#{helper}/environ") <> File.read!("/proc/\#{helper}/maps"))
      """

      env = [
        {"LD_PRELOAD", library},
        {"LD_LIBRARY_PATH", "/nowhere"},
        {"MALLOC_ARENA_MAX", "1"},
        {"GLIBC_TUNABLES", "glibc.malloc.check=0"},
        {"RUST_MIN_STACK", "1"},
        {"UBSAN_OPTIONS", "halt_on_error=1"},
        {"NLSPATH", "/nowhere"},
        {"CLOCK_OFFSET", offset},
        {"SOMETHING", "else"}
      ]

      ebin = Application.app_dir(:netlink_port, "ebin")
      {output, 0} = System.cmd("elixir", ["-pa", ebin, "-e", code], env: env)
      assert output =~ "SOMETHING=else"
      refute output =~ ~r/\0(LD_|MALLOC_|GLIBC_|RUST_|[A-Z]+SAN_OPTIONS|NLSPATH)|libclock/
    end
  end
end
