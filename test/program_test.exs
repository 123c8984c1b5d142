defmodule NetlinkPort.ProgramTest do
  # The helper without the library: its command line, its descriptors and its commands. Frames that are no commands
  # are in hostile_frames_test.exs.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2, &&&: 2]
  import NetlinkPort.Program

  alias NetlinkPort.Helper.Protocol

  @max_frame 16_777_280

  # Runs a shell command. Returns its output and status. $PROGRAM and $TMP, a folder, are set for it.
  defp shell(command) do
    directory = tmp_path!("shell")
    File.mkdir!(directory)
    environment = [{"PROGRAM", executable()}, {"TMP", directory}]
    System.cmd("sh", ["-c", command], env: environment, stderr_to_stdout: true)
  end

  describe "the command line" do
    test "has --help, which names every exit code" do
      for flag <- ["--help", "-h"] do
        {help, 0} = System.cmd(executable(), [flag], stderr_to_stdout: true)

        assert help =~
                 "usage: netlink_port [--keep CAPABILITY]... [--spin MICROSECONDS] [--user-namespaces]"

        assert help =~ "(protocol #{Protocol.version()})"
        codes = for [_, code] <- Regex.scan(~r/^ +(\d+)  \w/m, help), do: code
        assert codes == ~w(0 64 65 70 71 74 80)

        # They are the exit codes of the source.
        source = File.read!(Path.expand("../src/error.rs", __DIR__))
        assert codes == for([_, code] <- Regex.scan(~r/^    \w+ = (\d+),$/m, source), do: code)
      end
    end

    test "has --version, which is that of the library" do
      version = Mix.Project.config()[:version]

      for flag <- ["--version", "-V"] do
        assert System.cmd(executable(), [flag]) == {"netlink_port #{version}\n", 0}
      end
    end

    test "with an unknown argument is refused with 64 and a sentence" do
      for arguments <- [["--frobnicate"], ["x"], [""], ["--help", "x"], ["--version", "-h"]] do
        {output, status} = System.cmd(executable(), arguments, stderr_to_stdout: true)
        assert {arguments, status} == {arguments, 64}
        first = inspect(hd(arguments))
        assert output == "netlink_port: unknown argument #{first}; try --help\n"
      end

      for wrong <- [
            ["--keep"],
            ["--keep", "chown"],
            ["--spin"],
            ["--spin", "-1"],
            ["--spin", "x"]
          ] do
        {output, status} = System.cmd(executable(), wrong, stderr_to_stdout: true)
        assert {wrong, status} == {wrong, 64}
        assert output =~ ~r/^netlink_port: .*(keep|spin).*; try --help$/
      end

      assert {output, 64} = System.cmd(executable(), [<<"--", 255>>], stderr_to_stdout: true)
      assert output =~ "unknown argument"
    end

    test "without arguments, on a terminal, is refused with 64 and a sentence" do
      if script = System.find_executable("script") do
        {output, status} = System.cmd(script, ["-qec", executable(), "/dev/null"])
        assert status == 64
        assert output =~ "this is an Erlang port program"
        assert output =~ "NetlinkPort.start_link/1"
        assert output =~ "try --help"
      end
    end

    test "without arguments, with files and devices as its pipes, is refused with 71 and a sentence" do
      for {redirection, pipe} <- [
            {"</dev/null", "input"},
            {"</etc/hostname", "input"},
            {"<&-", "input"},
            {">/dev/null", "output"},
            {">$TMP/file", "output"},
            {">&-", "output"}
          ] do
        # The helper wrote nothing before it knew what the descriptor was.
        wrote = ~S(for file in "$TMP"/*; do [ -s "$file" ] && echo wrote; done; true)
        {output, 0} = shell(~s("$PROGRAM" #{redirection}; echo "status $?"; #{wrote}))

        assert {redirection, output} ==
                 {redirection,
                  "netlink_port: standard #{pipe} is neither a pipe nor a socket: " <>
                    "EPERM: Operation not permitted\nstatus 71\n"}
      end
    end
  end

  describe "as a port the helper" do
    test "sends hello first, with all properties that the library needs" do
      %{hello: hello, os_pid: os_pid} = start!()

      assert Keyword.keys(hello) ==
               ~w(program os_pid home may_leave capabilities max_frame max_fds lowest_fd user_namespace
                  bounding no_new_privs seccomp)a

      assert hello[:program] == Mix.Project.config()[:version]
      assert hello[:max_frame] == @max_frame
      assert {_device, inode} = hello[:home]
      assert File.read_link!("/proc/#{os_pid}/ns/net") == "net:[#{inode}]"
      assert is_boolean(hello[:may_leave])

      [_, mask] = Regex.run(~r/CapPrm:\s+(\w+)/, File.read!("/proc/#{os_pid}/status"))
      mask = String.to_integer(mask, 16)
      assert hello[:capabilities] == for(n <- 0..63, (mask &&& 1 <<< n) != 0, do: n)

      limits = File.read!("/proc/#{os_pid}/limits")
      [_, soft, hard] = Regex.run(~r/Max open files +(\d+) +(\d+)/, limits)
      assert {soft, hard} == {hard, "#{hello[:max_fds]}"}

      # The restrictions that the helper started with are those of this VM.
      status = File.read!("/proc/self/status")

      for {field, told} <- [
            {"CapBnd", hello[:bounding]},
            {"NoNewPrivs", if(hello[:no_new_privs], do: 1, else: 0)},
            {"Seccomp", hello[:seccomp]}
          ] do
        [_, value] = Regex.run(~r/^#{field}:\s+(\w+)$/m, status)
        assert {field, told} == {field, String.to_integer(value, 16)}
      end

      assert File.read_link!("/proc/self/ns/user") == "user:[#{hello[:user_namespace]}]"
    end

    test "moves the wire away from the standard descriptors" do
      %{os_pid: os_pid} = start!()
      target = &File.read_link!("/proc/#{os_pid}/fd/#{&1}")
      assert target.(0) == "/dev/null"
      assert target.(1) == target.(2)
      fds = File.ls!("/proc/#{os_pid}/fd") |> Enum.map(&String.to_integer/1)

      wire =
        for fd <- Enum.sort(fds), fd >= 3, "pipe:" <> _ = pipe <- [target.(fd)], do: {fd, pipe}

      assert [{input, in_pipe}, {output, out_pipe}] = wire
      assert in_pipe != out_pipe
      assert target.(2) not in [in_pipe, out_pipe]

      # O_CLOEXEC and O_NONBLOCK, so that no child inherits them and nothing blocks on them.
      for fd <- [input, output] do
        [_, flags] = Regex.run(~r/flags:\s+(\d+)/, File.read!("/proc/#{os_pid}/fdinfo/#{fd}"))
        assert (String.to_integer(flags, 8) &&& 0o2004000) == 0o2004000
      end

      # Beside these there are the home namespace and two of epoll, and none of the VM's.
      assert Enum.to_list(1024..1028) == Enum.sort(fds) -- [0, 1, 2]
    end

    test "ignores SIGTERM, SIGINT, SIGHUP and SIGPIPE" do
      program = start!()

      for signal <- [:TERM, :INT, :HUP, :PIPE] do
        signal!(program.os_pid, signal)
        assert {signal, say(program, [])} == {signal, []}
      end

      assert running?(program.os_pid)
    end

    test "answers in the order of the commands" do
      program = start!()
      said = say(program, for(n <- 1..10_000, do: term({:ping, n})))
      assert said == for(n <- 1..10_000, do: {:reply, n, {:ok, nil}})
    end

    test "ends with 0 on the command stop, after an answer" do
      for {reference, answers} <- [{77, [{:reply, 77, {:ok, nil}}]}, {0, []}] do
        %{port: port, os_pid: os_pid} = start!()
        Port.command(port, term({:stop, reference}))
        assert rest(port) == {answers, 0}
        eventually!(fn -> not running?(os_pid) end)
      end
    end

    test "carries out the commands before a stop, and none after it" do
      port = open_port([:stream])
      {[_hello], ""} = read_frames(port, "", 1)
      frames = for command <- [{:ping, 1}, {:stop, 2}, {:ping, 3}], do: term(command)
      Port.command(port, for(frame <- frames, do: [<<byte_size(frame)::32>>, frame]))
      {pongs, ""} = read_frames(port, "", 2)
      assert Enum.map(pongs, &Protocol.decode/1) == for(n <- 1..2, do: {:reply, n, {:ok, nil}})
      assert_receive {^port, {:exit_status, 0}}, within(10_000)
      refute_received {^port, {:data, _more}}
    end

    test "ends with its standard input, also in the middle of a frame" do
      for bytes <- ["", <<0>>, <<9::32>>, <<9::32, 131, 104>>, <<@max_frame::32, 131>>] do
        port = open_port([:stream])
        {:os_pid, os_pid} = Port.info(port, :os_pid)
        {[_hello], ""} = read_frames(port, "", 1)
        if bytes != "", do: Port.command(port, bytes)
        Port.close(port)
        eventually!(fn -> not running?(os_pid) end)
      end
    end

    test "exits with 0 at the end of its standard input" do
      for bytes <- ["", "\\0", "\\0\\0\\0\\011", "\\0\\0\\0\\011\\0203\\0150"] do
        # tail leaves out the hello.
        command = ~s(printf '%b' '#{bytes}' | { "$PROGRAM"; echo "status $?"; } | tail -c 9)
        assert {bytes, shell(command)} == {bytes, {"status 0\n", 0}}
      end
    end

    test "ends with 74 when its standard output is gone" do
      # A FIFO without a reader for its output, and one that never ends for its input.
      command = ~S"""
      mkfifo "$TMP/in" "$TMP/out"
      exec 5<>"$TMP/in"
      : <"$TMP/out" & exec 4>"$TMP/out"
      wait
      "$PROGRAM" <&5 >&4; echo "status $?"
      """

      assert shell(command) == {"status 74\n", 0}
    end

    test "ends when its reader closes the pipe, even if it has nothing to write" do
      # head ends after the first bytes of hello.
      command = ~S"""
      mkfifo "$TMP/in"
      exec 5<>"$TMP/in"
      { "$PROGRAM" <&5; echo "status $?" >&2; } | head -c 4 >/dev/null
      """

      assert {"status " <> _some, 0} = shell(command)
    end

    test "ends with its standard input while its standard output is full" do
      {port, os_pid} = start_unread!()

      # The answers to that many empty frames exceed the pipe and the arena. The frames that are not answered fit the
      # inbox and the other pipe, so that the VM does not wait.
      count = 125_000
      for _ <- 1..50, do: Port.command(port, :binary.copy(<<0::32>>, div(count, 50)))
      eventually!(fn -> moved(os_pid, "rchar") > 400_000 and sleeping?(os_pid) end, 20_000)
      assert moved(os_pid, "wchar") < count * (4 + byte_size(term({:malformed, :empty})))
      Port.close(port)
      eventually!(fn -> not running?(os_pid) end, 2_000)
    end

    # Two sockets of the helper: one sends 30 MB to the other, and the VM takes none of it. The helper takes all
    # commands meanwhile, and leaves the datagrams in the kernel.
    @tag :root
    test "keeps no datagrams in memory while its standard output is full" do
      {port, os_pid} = start_unread!()
      target = {:path, netns_path(netns!())}
      settings = [rcvbuf: 100_000_000, sndbuf: 1_000_000]

      for handle <- [1, 2] do
        frame(port, {:open, 0, handle, target, 2, handle, true, 1_000_000_000, settings})
      end

      frame(port, {:grant, 1_000_000_000})
      datagram = :binary.copy(<<7>>, 60_000)
      for _ <- 1..500, do: frame(port, {:send_to, 0, 1, 2, 0, datagram})
      taken = fn -> moved(os_pid, "rchar") > 500 * 60_000 and sleeping?(os_pid) end
      eventually!(taken, 20_000)
      # The pipe is full: it took some datagrams, and not nearly all.
      assert moved(os_pid, "wchar") in 150_000..600_000
      assert_peak(%{os_pid: os_pid}, 4 * 1024 * 1024)
      Port.close(port)
      eventually!(fn -> not running?(os_pid) end, 2_000)
    end
  end

  defp frame(port, term) do
    term = term(term)
    Port.command(port, [<<byte_size(term)::32>>, term])
  end

  # A helper whose standard output is not read. Returns the port of its standard input.
  defp start_unread! do
    script = script!(~S(exec 2>/dev/null; "$1" | sleep 600))
    port = Port.open({:spawn_executable, script}, [:binary, args: [executable()]])
    {:os_pid, shell} = Port.info(port, :os_pid)

    on_exit(fn ->
      if sleep = child(shell, "sleep"), do: System.cmd("kill", ["-KILL", sleep])
    end)

    eventually!(fn -> child(shell, "sleep") && child(shell, "netlink_port") end, 10_000)
    {port, child(shell, "netlink_port")}
  end

  # A child of a process by name, as a string.
  defp child(parent, name) do
    Enum.find_value(Path.wildcard("/proc/[0-9]*/stat"), fn path ->
      with {:ok, stat} <- File.read(path),
           [_, pid, ^name, parent_pid] <- Regex.run(~r/^(\d+) \((.*)\) \w (\d+) /, stat),
           true <- parent_pid == "#{parent}" do
        pid
      else
        _another -> nil
      end
    end)
  end

  defp sleeping?(os_pid), do: File.read!("/proc/#{os_pid}/stat") =~ ~r/\) S /

  # How many bytes a process has read or written, proc(5).
  defp moved(os_pid, name) do
    [_, bytes] = Regex.run(~r/#{name}: (\d+)/, File.read!("/proc/#{os_pid}/io"))
    String.to_integer(bytes)
  end

  describe "commands" do
    test "that do not exist are refused if they have a reference" do
      program = start!()

      assert_said(program, [
        {term({:dance, 5}), refused(5, "unknown command")},
        {term({:Ping, 5}), refused(5, "unknown command")},
        {term({"ping", 5}), refused(5, "no name")},
        {term({1, 5}), refused(5, "no name")},
        {term({nil, 5}), refused(5, "unknown command")},
        # A send that is not encoded as such.
        {term({1, 5, 7, "datagram"}), refused(5, "no name")},
        # Too many bytes, too few.
        {term({:ping, 5, 1}), refused(5, "unknown command")},
        {term({:stop, 5, 1}), refused(5, "unknown command")},
        {term({:close, 5}), refused(5, "unknown command")},
        {term({:close, 5, 7, 8}), refused(5, "unknown command")},
        {term({:info, 5, 7, 8}), refused(5, "unknown command")},
        {term({:open, 5, 7, :host, 0, 0, false, 1}), refused(5, "unknown command")},
        # An answer is no command.
        {vector!("ok"), refused(300, "unknown command")}
      ])
    end

    test "without a reference are not answered" do
      program = start!()

      for frame <- [
            :ping,
            1,
            "ping",
            [],
            [:ping, 5],
            ~c"ping",
            {},
            {:ping},
            {:ping, :five},
            {:ping, "5"},
            {:ping, [5]},
            {:ping, 0},
            {:dance, 0},
            {:close, 0, 7},
            {:get, 0, 7, :rcvbuf},
            {:open, 0, 7},
            {:grant},
            {:grant, 1},
            {:grant, :all},
            {:grant, -1},
            {:grant, 7, 1},
            {:grant, 7, :all},
            {:grant, :seven, 1},
            {:grant, 7, 1, 2}
          ] do
        assert_said(program, [{term(frame), []}])
      end
    end

    test "with a wrong argument are refused, for each command and argument" do
      program = start!()
      handle = [-1, 1 <<< 31, :seven, "7", [], {}, ~c"7"]
      word = [-1, 1 <<< 32, :one, []]
      option = [:frobnicate, "rcvbuf", 1, [], :active, :""]

      commands = [
        {:close, [{7, handle}]},
        {:info, [{7, handle}]},
        {:bind, [{7, handle}, {0, word}, {0, word}]},
        {:get, [{7, handle}, {:rcvbuf, option}]},
        {:set, [{7, handle}, {:rcvbuf, option}, {1, word ++ [nil, {}, 1 <<< 63]}]},
        # A datagram that is no binary makes no send_to.
        {:send_to, [{7, handle}, {0, word}, {0, word}, {"x", []}]},
        {:open,
         [
           {7, handle},
           {:host, [:home, "host", 1, {}, [], {:path}, {:path, :a}, {:path, ~c"/a"}] ++ target()},
           {0, [:route, 1 <<< 31, -(1 <<< 31) - 1, "0", []]},
           {0, word ++ [true, nil]},
           {false, [0, 1, nil, "false", []]},
           {1, [-1, :infinity, "1", []]},
           {[], [:none, "", 1, {}, [1], [:rcvbuf], [{}], [{:rcvbuf}], ~c"rcvbuf"] ++ options()}
         ]}
      ]

      for {name, arguments} <- commands,
          right = Enum.map(arguments, &elem(&1, 0)),
          {{_right, wrongs}, at} <- Enum.with_index(arguments),
          wrong <- wrongs do
        command = List.to_tuple([name, 5 | List.replace_at(right, at, wrong)])
        said = say(program, [term(command)])
        assert {command, said} == {command, refused(5, "wrong argument")}
      end

      for wrong <- [1, :x, [], {"x"}] do
        command = {:send_to, 5, 7, 0, 0, wrong}
        assert_said(program, [{term(command), refused(5, "unknown command")}])
      end

      # None of these commands has opened a socket, or used the handle.
      assert {:ok, _opened} = opened(program, 7)
      assert_at_rest(program)
    end

    defp target do
      [
        {:path, "/a", "/b"},
        {:pid, "1"},
        {:pid, 1 <<< 31},
        {:pid, -(1 <<< 31) - 1},
        {:pid, nil},
        {:name, "blue"},
        {"path", "/a"},
        {1, 2}
      ]
    end

    defp options do
      [
        [{:rcvbuf, 1, 2}],
        [{:frobnicate, 1}],
        [{"rcvbuf", 1}],
        [{:rcvbuf, :big}],
        [{:rcvbuf, -1}],
        [{:rcvbuf, 1 <<< 32}],
        [{:rcvbuf, {}}],
        [{:rcvbuf, []}],
        [{:rcvbuf, 1}, :sndbuf]
      ]
    end

    test "of a handle that is not open are EBADF" do
      program = start!()

      for command <- [
            {:close, 7},
            {:bind, 7, 0, 1},
            {:get, 7, :rcvbuf},
            {:set, 7, :rcvbuf, 1},
            {:send_to, 7, 0, 0, "x"},
            {:info, 7}
          ] do
        assert_said(program, [{Protocol.command(5, command), closed(5)}])
      end

      send = fn reference -> IO.iodata_to_binary(Protocol.send(reference, 7, "x", 1)) end
      assert_said(program, [{send.(5), closed(5)}, {send.(0), [{:failed, 7, :info, 9, 0}]}])
      # A number beyond all handles is a handle that is not open.
      assert_said(program, [
        {<<131, 104, 4, 97, 1, 98, 5::32, 98, 0xFFFFFFFF::32, 109, 0::32>>, closed(5)}
      ])
    end

    test "open a handle only once, and handles only go up" do
      program = start!()
      used = refused(5, "handle used before")
      assert {:ok, _opened} = opened(program, 7)
      assert_said(program, [{open(5, 7), used}, {open(5, 6), used}, {open(5, 0), used}])

      # The socket is not affected.
      assert [{:reply, 5, {:ok, _told}}] = say(program, [Protocol.command(5, {:info, 7})])

      # A closed handle is used, too.
      assert_said(program, [
        {Protocol.command(5, {:close, 7}), [{:reply, 5, {:ok, nil}}]},
        {Protocol.command(5, {:close, 7}), closed(5)},
        {open(5, 7), used}
      ])

      # And so is the handle of an open that failed.
      missing = [{:reply, 5, {:error, {:open, 2, ""}}}]
      assert_said(program, [{open(5, 9, {:path, "/nowhere"}), missing}, {open(5, 9), used}])
      assert_said(program, [{open(5, 8), used}])
      assert {:ok, _opened} = opened(program, 10)
      assert {:ok, _opened} = opened(program, 0x7FFFFFFF)
      assert [{:reply, 5, {:ok, told}}] = say(program, [Protocol.command(5, {:info})])
      assert told[:sockets] == 2
    end

    test "leave nothing open after a failed open" do
      program = start!()
      [{:reply, 5, {:ok, before}}] = say(program, [Protocol.command(5, {:info})])

      for {target, protocol, options, stage} <- [
            {{:path, "/nowhere"}, 0, [], :open},
            {{:path, "/etc/hostname"}, 0, [], :setns},
            {:host, 250, [], :socket},
            {:host, 0, [add_membership: 0xFFFFFFFF], :setsockopt},
            {:host, 0, [memberships: 1], :setsockopt},
            {:host, 0, [filter: <<1>>], :setsockopt},
            {:host, 0, [rcvbuf: 4_096, filter: <<0xFFFF::64>>], :setsockopt}
          ] do
        handle = System.unique_integer([:positive, :monotonic])
        command = {:open, handle, target, protocol, 0, false, 1, options}
        said = say(program, [Protocol.command(5, command)])
        assert {_command, [{:reply, 5, {:error, {^stage, errno, _}}}]} = {command, said}
        assert errno > 0
        assert_said(program, [{Protocol.command(5, {:info, handle}), closed(5)}])
      end

      [{:reply, 5, {:ok, later}}] = say(program, [Protocol.command(5, {:info})])
      assert {later[:fds], later[:sockets]} == {before[:fds], 0}
    end
  end
end
