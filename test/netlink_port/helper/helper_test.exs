defmodule NetlinkPort.HelperTest do
  # Executables that are no helpers, and helpers that misbehave. Each is refused or ended with words that say what is
  # wrong, and no process is left behind.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2]

  alias NetlinkPort.Helper.{OsProcess, Protocol}

  # Waits for a message of a server that ends normally, which may take its two seconds.
  @end_timeout within(10_000)
  # How long to wait for a helper that never says hello. Others get more time, for busy machines.
  @hello_timeout 300
  @patient within(10_000)

  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  # In another VM, since environment and configuration are those of this VM, too.
  defp executable(environment, configured) do
    script = """
    Application.put_env(:netlink_port, :executable, #{inspect(configured)})
    {:error, error} = NetlinkPort.start_link()
    IO.puts(Exception.message(error))
    """

    ebin = Application.app_dir(:netlink_port, "ebin")
    opts = [env: [{"NETLINK_PORT_EXECUTABLE", environment}], stderr_to_stdout: true]
    arguments = ["-pa", ebin, "-e", "Process.flag(:trap_exit, true)\n" <> script]
    {output, 0} = System.cmd("elixir", arguments, opts)
    output
  end

  test "the executable is that of the environment variable, or else of the configuration" do
    assert executable("/nonexistent/e", "/nonexistent/c") =~ "/nonexistent/e: ENOENT"
    assert executable("", "/nonexistent/c") =~ "/nonexistent/c: ENOENT"
    assert executable(nil, "/nonexistent/c") =~ "/nonexistent/c: ENOENT"
  end

  # Starts a server that is expected to fail. Returns its error and the sentence.
  defp refused(executable, hello_timeout \\ @patient) do
    assert {:error, %Error{stage: :thread} = error} =
             NetlinkPort.start_link(
               name: nil,
               executable: executable,
               hello_timeout: hello_timeout
             )

    # As with every start_link: the exit of the process that was to be the server. OTP 26 and later receive it before
    # start_link returns.
    if String.to_integer(System.otp_release()) < 26,
      do: assert_receive({:EXIT, _pid, ^error}),
      else: refute_received({:EXIT, _pid, _reason})

    {error, Exception.message(error)}
  end

  # Starts a server that is expected to run.
  defp started!(executable, opts \\ []) do
    opts = [name: nil, executable: executable, hello_timeout: @patient] ++ opts
    {:ok, server} = NetlinkPort.start_link(opts)
    server
  end

  # A helper whose processes can be identified, also after it has become another program.
  defp helper!(body), do: script!(["export NLP_TEST=\"$0\"\n", body])

  # The processes of a helper, by its path on their command lines or in their environment.
  defp processes(executable) do
    for "/proc/" <> pid = directory <- Path.wildcard("/proc/[0-9]*"),
        running?(pid),
        Enum.any?(["cmdline", "environ"], &mentions?(Path.join(directory, &1), executable)),
        do: pid
  end

  defp mentions?(path, text) do
    case File.read(path) do
      {:ok, content} -> String.contains?(content, text)
      {:error, _gone} -> false
    end
  end

  # processes/1 does not tell: during execve(2) a process has no command line and no environment.
  defp helper_runs?(server), do: running?(:sys.get_state(server).process.os_pid)

  # The notifier kills processes that have not ended within half a second.
  defp assert_gone(executable), do: eventually!(fn -> processes(executable) == [] end, 5_000)

  defp hello, do: print_frame(vector!("hello"))
  defp hello(version, properties), do: print_term({:hello, version, properties})
  defp print_term(term), do: print_frame(:erlang.term_to_binary(term))

  defp properties do
    {:hello, _version, properties} = Protocol.decode(vector!("hello"))
    properties
  end

  # The first frame of a server, which a helper can wait for.
  defp await_grant, do: "head -c #{4 + byte_size(Protocol.grant_all(8_388_608))} >/dev/null"

  @ignore_input "exec cat >/dev/null"
  # Neither reads nor ends with its standard input: only a signal ends it.
  @deaf "exec sleep 600"

  describe "an executable" do
    test "that is missing is ENOENT" do
      path = tmp_path!("missing")
      assert {%Error{reason: :enoent, subject: ^path}, message} = refused(path)

      assert message ==
               "helper #{path}: ENOENT: there is no such file; `executable:` names it, and " <>
                 "`mix netlink_port.install` installs one"
    end

    test "behind a symbolic link that leads nowhere is not called missing itself" do
      folder = tmp_path!("links")
      File.mkdir!(folder)
      link = Path.join(folder, "link")
      File.ln_s!("/nowhere/netlink_port", link)

      for {path, said} <- [
            {link, "it is a symbolic link, and the file that it leads to is not there"},
            {"#{link}/netlink_port",
             "#{link} is a symbolic link, and the folder that it leads to is not there"}
          ] do
        assert {%Error{reason: :enoent, subject: ^path}, message} = refused(path)
        assert message =~ "ENOENT: #{said}; `executable:` names it, and "
        assert [{:fail, line, _remedy}] = NetlinkPort.Doctor.Executable.checks(path)
        assert line == "#{path}: #{said}"
      end
    end

    test "whose directory is a file is ENOTDIR" do
      assert {%Error{reason: :enotdir}, message} = refused("/etc/hostname/netlink_port")
      assert message =~ "ENOTDIR: there is no such file"
    end

    test "that is not executable is EACCES" do
      path = tmp_path!("plain")
      File.write!(path, "#!/bin/sh\n")
      File.chmod!(path, 0o644)
      assert {%Error{reason: :eacces, subject: ^path}, message} = refused(path)
      assert message =~ "EACCES: this user may not run it, which `executable:` names: it is "
      assert message =~ "0644, which does not let its owner run it; chmod u+x #{path}"
    end

    test "that is a directory is an error with its path" do
      path = tmp_path!("directory")
      File.mkdir!(path)
      assert {%Error{}, message} = refused(path)
      assert message =~ "helper #{path}"
      assert message =~ "it is no file but a directory; name the file"
    end

    test "that the kernel cannot run is an error with its path" do
      garbage = tmp_path!("garbage")
      File.write!(garbage, "garbage")
      orphan = tmp_path!("orphan")
      File.write!(orphan, "#!/no/such/interpreter\n")

      for path <- [garbage, orphan] do
        File.chmod!(path, 0o755)
        assert {%Error{reason: :eproto}, message} = refused(path)
        assert message =~ "helper #{path} ended with exit status"
        assert_gone(path)
      end
    end

    test "with a path that is too long is ENAMETOOLONG" do
      assert {%Error{reason: :enametoolong}, _message} = refused(String.duplicate("a", 5_000))
    end
  end

  describe "a program that is no helper" do
    test "and ends at once is EPROTO with its exit status" do
      for {body, status} <- [{"exit 0", 0}, {"exit 3", 3}] do
        path = helper!(body)
        assert {%Error{reason: :eproto}, message} = refused(path)

        assert message ==
                 "helper #{path} ended with exit status #{status} before its first frame: " <>
                   "EPROTO: protocol error"

        assert_gone(path)
      end
    end

    test "and says nothing is ETIMEDOUT, and is killed" do
      for body <- [@ignore_input, @deaf] do
        path = helper!(body)
        assert {%Error{reason: :etimedout}, message} = refused(path, @hello_timeout)
        assert message =~ "helper #{path} sent no first frame within #{@hello_timeout} ms"
        assert_gone(path)
      end
    end

    test "and stops in the middle of its hello is ETIMEDOUT, and is killed" do
      part = binary_part(<<byte_size(vector!("hello"))::32, vector!("hello")::binary>>, 0, 50)
      path = helper!([print_bytes(part), "\n", @deaf])
      assert {%Error{reason: :etimedout}, _message} = refused(path, @hello_timeout)
      assert_gone(path)
    end

    test "and ends in the middle of its hello is EPROTO" do
      part = binary_part(<<byte_size(vector!("hello"))::32, vector!("hello")::binary>>, 0, 50)
      path = helper!(print_bytes(part))
      assert {%Error{reason: :eproto}, message} = refused(path)
      assert message =~ "exit status 0"
      assert_gone(path)
    end

    test "and sends a frame of its own is EPROTO, with what it sent" do
      for frame <- [
            "",
            "Hello, world",
            <<131, 106>>,
            vector!("ok"),
            vector!("data"),
            vector!("malformed"),
            binary_part(vector!("hello"), 0, 100)
          ] do
        path = helper!([print_frame(frame), "\n", @deaf])
        assert {%Error{reason: :eproto}, message} = refused(path)
        begin = binary_part(frame, 0, min(byte_size(frame), 64))
        assert message =~ "helper #{path} is not netlink_port: it began with #{inspect(begin)}"
        assert_gone(path)
      end
    end

    test "and sends a long frame is quoted in part" do
      path = helper!([print_frame(:binary.copy("x", 10_000)), "\n", @deaf])
      assert {%Error{reason: :eproto}, message} = refused(path)
      assert message =~ inspect(:binary.copy("x", 64)) and byte_size(message) < 1_000
      assert_gone(path)
    end

    test "and prints text, which reads as a huge length, is ETIMEDOUT" do
      path = helper!(["echo 'Usage: netlink_port [--help]'\n", @deaf])
      assert {%Error{reason: :etimedout}, _message} = refused(path, @hello_timeout)
      assert_gone(path)
    end
  end

  describe "a hello" do
    test "of another version names both versions" do
      ours = Protocol.version()
      <<head::binary-size(10), 97, ^ours, rest::binary>> = vector!("hello")
      path = helper!([print_frame(<<head::binary, 97, 1, rest::binary>>), "\n", @deaf])
      assert {%Error{reason: :eproto}, message} = refused(path)

      assert message =~
               "helper #{path} speaks protocol version 1, this library speaks #{ours}: " <>
                 "build both from one source"

      assert_gone(path)
    end

    test "of another version may have other properties" do
      for version <- [0, -1, 1, Protocol.version() + 1, 1 <<< 40],
          properties <- [[], [granted: 1]] do
        path = helper!([hello(version, properties), "\n", @deaf])
        assert {%Error{reason: :eproto}, message} = refused(path)
        assert message =~ "protocol version #{version},"
        assert_gone(path)
      end
    end

    test "without each of its properties is EPROTO" do
      for missing <- Keyword.keys(properties()) do
        path =
          helper!([hello(Protocol.version(), Keyword.delete(properties(), missing)), "\n", @deaf])

        assert {%Error{reason: :eproto}, message} = refused(path)
        assert message =~ "is not netlink_port"
        assert_gone(path)
      end
    end

    test "with malformed properties is EPROTO" do
      for properties <- [[], [1, 2], [{:program, "0.1.0", 1}], [:program], ~c"program"] do
        path = helper!([hello(Protocol.version(), properties), "\n", @deaf])
        assert {%Error{reason: :eproto}, message} = refused(path)
        assert message =~ "is not netlink_port"
        assert_gone(path)
      end

      for {name, wrong} <- [max_frame: nil, max_fds: "1024", capabilities: :all] do
        path =
          helper!([
            hello(Protocol.version(), Keyword.replace(properties(), name, wrong)),
            "\n",
            @deaf
          ])

        assert {%Error{reason: :eproto}, _message} = refused(path)
        assert_gone(path)
      end
    end

    test "with unknown properties is accepted" do
      path =
        helper!([hello(Protocol.version(), properties() ++ [granted: 1]), "\n", @ignore_input])

      server = started!(path)
      assert helper_runs?(server)
      Process.exit(server, :kill)
      assert_gone(path)
    end

    test "that comes in single bytes, with pauses, is accepted" do
      frame = <<byte_size(vector!("hello"))::32, vector!("hello")::binary>>
      bytes = for <<byte <- frame>>, do: [print_bytes(<<byte>>), "; sleep 0.002\n"]
      path = helper!([bytes, @ignore_input])
      server = started!(path)
      assert Process.alive?(server)
      assert helper_runs?(server)
      Process.exit(server, :kill)
      assert_gone(path)
    end
  end

  describe "a helper that has said hello" do
    test "and sends garbage ends its server with a protocol error" do
      for {frame, what} <- [
            {<<1, 2, 3>>, :not_a_term},
            {"", :not_a_term},
            {:erlang.term_to_binary({:dance, 1}), {:dance, 1}},
            {vector!("data") <> <<0>>, {1, 7, <<0, 1, 2, 255>>}}
          ] do
        path = helper!([hello(), "\n", print_frame(frame), "\n", await_grant(), "\n"])
        server = started!(path)
        assert_receive {:EXIT, ^server, {:protocol_error, {:unknown, ^what}}}, @end_timeout
        assert_gone(path)
      end
    end

    test "and sends garbage and runs on is killed" do
      path = helper!([hello(), "\n", print_frame("garbage"), "\n", @deaf])
      server = started!(path)
      assert_receive {:EXIT, ^server, {:protocol_error, {:unknown, :not_a_term}}}, @end_timeout
      assert_gone(path)
    end

    test "and says hello again ends its server with a protocol error" do
      path = helper!([hello(), "\n", hello(), "\n", await_grant()])
      server = started!(path)
      assert_receive {:EXIT, ^server, {:protocol_error, {:hello, _ours, _}}}, @end_timeout
      assert_gone(path)
    end

    test "and sends events of sockets that are not open: the server ignores them" do
      names = ["ok", "ok groups", "error", "failed", "overrun", "gone", "malformed", "data"]
      events = for name <- names ++ ["data metadata"], do: [print_frame(vector!(name)), "\n"]
      # The last frame ends the server, which has seen the earlier ones by then.
      path = helper!([hello(), "\n", events, print_frame("end"), "\n", await_grant()])
      server = started!(path)
      assert_receive {:EXIT, ^server, {:protocol_error, {:unknown, :not_a_term}}}, @end_timeout
      refute_received _nothing_else
      assert_gone(path)
    end

    test "and ends is reported with its exit status" do
      for {body, status} <- [{"exit 0", 0}, {"exit 3", 3}, {"kill -KILL $$", 137}] do
        # It has read all that was sent, so that no command can race with its end.
        path = helper!([hello(), "\n", await_grant(), "\n", body])
        server = started!(path)
        assert_receive {:EXIT, ^server, {:helper_exit, ^status}}, @end_timeout
        assert_gone(path)
      end
    end

    test "and does not answer is killed after the deadline" do
      path = helper!([hello(), "\n", @deaf])
      server = started!(path, call_timeout: within(200))
      assert helper_runs?(server)

      assert {:error, %Error{stage: :thread, reason: :etimedout}} =
               NetlinkPort.open(server, :route, timeout: 5_000)

      assert_receive {:EXIT, ^server, :stuck}, @end_timeout
      assert_gone(path)
    end

    test "and does not answer is found by the ping" do
      path = helper!([hello(), "\n", @ignore_input])
      server = started!(path, call_timeout: within(200), ping_interval: within(50))
      assert_receive {:EXIT, ^server, :stuck}, @end_timeout
      assert_gone(path)
    end

    test "and ignores the end of its input is killed, however its server ends" do
      for reason <- [:kill, :shutdown] do
        path = helper!([hello(), "\n", @deaf])
        server = started!(path)
        assert helper_runs?(server)
        Process.exit(server, reason)
        assert_receive {:EXIT, ^server, _reason}, @end_timeout
        assert_gone(path)
      end
    end
  end

  describe "kill" do
    test "ends the process, and not another process that has its id by now" do
      port = Port.open({:spawn_executable, "/bin/sleep"}, args: ["600"])
      {:os_pid, os_pid} = Port.info(port, :os_pid)
      {:ok, stat} = File.read("/proc/#{os_pid}/stat")
      start_time = stat |> String.split() |> Enum.at(21)
      process = %OsProcess{os_pid: os_pid, start_time: start_time}
      assert OsProcess.state(process) == :alive

      # The same number with another start time is another process.
      successor = %{process | start_time: "1"}
      assert OsProcess.state(successor) == :gone
      assert OsProcess.kill(successor) == :gone
      assert OsProcess.kill(nil) == :gone
      assert running?(os_pid)

      assert OsProcess.kill(process) == :gone
      assert not running?(os_pid)
      assert OsProcess.kill(process) == :gone
    end
  end

  # Like print_frame/1, for bytes that are no whole frame.
  defp print_bytes(bytes) do
    ["printf '%b' '", for(<<byte <- bytes>>, do: "\\0" <> Integer.to_string(byte, 8)), "'"]
  end
end
