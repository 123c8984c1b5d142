defmodule NetlinkPort.SeccompProfileTest do
  # The system calls that docs/deployment.md lists for a seccomp profile: the helper needs no others, and those that it
  # makes under its own filter are all there.
  use NetlinkPort.Case, async: true

  @root Path.expand("../..", __DIR__)
  @nobody ~w(--reuid 65534 --regid 65534 --clear-groups)

  # The calls of a row of the documentation.
  defp row(name) do
    text = File.read!(Path.join(@root, "docs/deployment.md"))
    assert [_before, rest] = String.split(text, "\n### System calls\n")
    assert [_line, calls] = Regex.run(~r/^\| #{Regex.escape(name)}[^|]*\| ([^|]+) \|$/m, rest)
    names(calls, ~r/`(\w+)`/)
  end

  defp names(text, pattern),
    do: pattern |> Regex.scan(text, capture: :all_but_first) |> List.flatten() |> Enum.sort()

  defp machine,
    do: hd(String.split(List.to_string(:erlang.system_info(:system_architecture)), "-"))

  defp helpers_own do
    Enum.uniq(row("while it runs") ++ row("at its start") ++ row_of_machine(machine()))
  end

  defp row_of_machine("x86_64"), do: row("on x86_64")
  defp row_of_machine(_generic), do: row("on aarch64 and riscv64")

  describe "the list" do
    @filter File.read!(Path.join(@root, "src/seccomp.rs"))
    @libc File.read!(Path.join(@root, "src/libc_calls.rs"))

    # The constants of src/libc_calls.rs that are compiled for a target, with the calls in each.
    defp of_libc(target) do
      for item <- Regex.scan(~r/^(#\[cfg\([^\]]*\)\]\n)?pub const (\w+)[^;]*;$/m, @libc),
          [whole, cfg, name] = item,
          cfg == "" or holds?(condition(cfg), target),
          into: %{},
          do: {name, names(whole, ~r/libc::SYS_(\w+)/)}
    end

    # The syntax of a condition is that of Elixir, too.
    defp condition(cfg) do
      [_attribute, condition] = Regex.run(~r/#\[cfg\((.*)\)\]/s, cfg)
      Code.string_to_quoted!(String.trim(condition, ","))
    end

    defp holds?({:__block__, _meta, [condition]}, target), do: holds?(condition, target)
    defp holds?({:all, _meta, conditions}, target), do: Enum.all?(conditions, &holds?(&1, target))
    defp holds?({:any, _meta, conditions}, target), do: Enum.any?(conditions, &holds?(&1, target))
    defp holds?({:not, _meta, [condition]}, target), do: not holds?(condition, target)
    defp holds?({:=, _meta, [{key, _, _}, value]}, target), do: target[key] == value

    defp function(name) do
      [code] = Regex.run(~r/^fn #{name}\(.*?^}$/ms, @filter)
      code
    end

    defp called(code, libc) do
      constants = names(code, ~r/libc_calls::(\w+)/)
      calls = names(code, ~r/libc::SYS_(\w+)/) ++ Enum.flat_map(constants, &Map.get(libc, &1, []))
      calls |> Enum.sort() |> Enum.uniq()
    end

    for {machine, libc} <- [
          {"x86_64", "gnu"},
          {"x86_64", "musl"},
          {"aarch64", "gnu"},
          {"aarch64", "musl"},
          {"riscv64", "gnu"},
          {"riscv64", "musl"}
        ] do
      test "has the calls that the filter lets through on #{machine} with #{libc}" do
        libc = of_libc(target_arch: unquote(machine), target_env: unquote(libc))
        running = called(function("plain") <> function("conditional"), libc)
        assert "read" in running and "setns" in running and "fstatfs" in running
        [before, only_children] = String.split(function("rules"), "if needs.user_namespaces")
        children = called(only_children <> function("child"), libc)
        assert "wait4" in children and "clone" in children
        traced = called(before, libc)
        assert traced == ["capget", "capset"]

        machines = row_of_machine(unquote(machine))
        assert running -- (row("while it runs") ++ row("at its start") ++ machines) == []
        assert row("while it runs") -- running == []

        listed = row("while it runs") ++ row("at its start") ++ machines
        assert (children -- listed) -- row("with `user_namespaces: true`") == []
        assert row("with `user_namespaces: true`") -- children == []
        assert traced -- row("at its start") == []
      end
    end

    test "has no call twice for a machine" do
      rows = ["while it runs", "at its start", "with `user_namespaces: true`", "to kill a stuck"]

      for machine <- ["on x86_64", "on aarch64 and riscv64"] do
        calls = Enum.flat_map([machine | rows], &row/1)
        assert calls -- Enum.uniq(calls) == []
      end
    end
  end

  ## Under a profile that lets through these calls alone

  # The kernel's numbers, by the C preprocessor.
  defp numbers(calls) do
    path = tmp_path!("numbers.c")
    File.write!(path, ["#include <asm/unistd.h>\n" | Enum.map(calls, &"#{&1} __NR_#{&1}\n")])
    {output, 0} = System.cmd("cc", ["-E", "-P", path])

    for line <- String.split(output, "\n", trim: true) do
      [call, number] = String.split(line, " ")
      assert number =~ ~r/^\d+$/, "#{call} is no system call of this machine"
      number
    end
  end

  # A command that runs another one, with its arguments.
  defp only(calls), do: "#{fixture!("allow")} #{Enum.join(numbers(calls), ",")}"

  defp start!(calls, opts \\ [], helper \\ helper(), before \\ "") do
    path = script!("exec #{before} #{only(calls)} #{helper} \"$@\"")
    start_server!([executable: path] ++ opts)
  end

  # An ordinary user whom the program `allow` needs CAP_SYS_ADMIN for. A helper with file capabilities does not get it.
  defp as_nobody,
    do: "setpriv #{Enum.join(@nobody, " ")} --inh-caps +sys_admin --ambient-caps +sys_admin"

  # A file with file capabilities, which every user may run.
  defp installed!(capabilities) do
    path = public!(helper())
    {_output, 0} = System.cmd("setcap", [capabilities, path], stderr_to_stdout: true)
    path
  end

  # Opens, sends, receives, watches, looks and closes.
  defp assert_works(server, targets) do
    for target <- targets,
        opts <- [[], [close_on: :namespace_gone]],
        {target, opts} != {:host, []} do
      opts = if target == :host, do: [], else: opts

      assert {:ok, socket} =
               NetlinkPort.open(
                 server,
                 :route,
                 [netns: target, groups: [1], active: false] ++ opts
               )

      assert "lo" in Rtnl.link_names(socket)
      assert {:ok, %{verified: true}} = NetlinkPort.info(socket)
      assert {:ok, [rcvbuf: _bytes]} = NetlinkPort.getopts(socket, [:rcvbuf])
      assert :ok = NetlinkPort.close(socket)
    end

    assert {:ok, %{fds: fds}} = NetlinkPort.info(server)
    assert is_integer(fds)
  end

  describe "under a profile of these calls the helper starts, opens, sends, receives and watches" do
    @describetag root: true, userns: true, init_user_namespace: true

    setup do
      netns = netns!()
      {:ok, netns: netns, pid: sleeper!(netns)}
    end

    test "as root, with and without keep:", c do
      calls = helpers_own()

      for opts <- [[], [keep: [:net_broadcast]]] do
        server = start!(calls, opts)
        assert_works(server, [:host, name: c.netns, pid: c.pid, path: "/proc/#{c.pid}/ns/net"])
      end
    end

    test "with file capabilities, as an ordinary user", c do
      server =
        start!(helpers_own(), [], installed!("cap_sys_admin,cap_net_admin+ep"), as_nobody())

      assert {:ok, %{capabilities: [:net_admin, :sys_admin]}} = NetlinkPort.info(server)
      assert_works(server, name: c.netns)
    end

    test "with user_namespaces: true, and its row", _c do
      container = os_process!("setpriv", @nobody ++ ~w(unshare -Urn sleep 600))
      eventually!(fn -> File.read("/proc/#{container}/comm") == {:ok, "sleep\n"} end)
      helper = installed!("cap_net_admin+ep")
      children = row("with `user_namespaces: true`")
      opts = [user_namespaces: true]
      server = start!(helpers_own() ++ children, opts, helper, as_nobody())
      assert {:ok, %{capabilities: [:net_admin]}} = NetlinkPort.info(server)
      assert_works(server, pid: container)

      # Without the row the child cannot be made.
      server = start!(helpers_own(), opts, helper, as_nobody())
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, container})
      assert {error.stage, error.reason} == {:setns, :eperm}
    end

    test "and another helper kills a stuck one, with its row", _c do
      kill = fn calls ->
        pid = os_process!("sleep", ["600"])
        command = "#{only(calls)} #{helper()} --kill #{pid}"
        {System.cmd("sh", ["-c", command], stderr_to_stdout: true), pid}
      end

      assert {{"", 0}, pid} = kill.(helpers_own() ++ row("to kill a stuck helper"))

      refute File.exists?("/proc/#{pid}/exe") and
               match?({:ok, _}, File.read_link("/proc/#{pid}/exe"))

      assert {{said, 71}, _pid} = kill.(helpers_own())
      assert said =~ "pidfd_send_signal(2): EPERM"
    end
  end

  describe "a call that the profile refuses" do
    @describetag root: true, init_user_namespace: true

    # The call, and what the error of the start says.
    test "is named when the helper does not start" do
      Process.flag(:trap_exit, true)

      for {call, said} <- [
            {"seccomp", "seccomp(2) was refused: the seccomp profile of the container"},
            {"capget", "capget(2) or capset(2); a seccomp profile can be"},
            {"capset", "capget(2) or capset(2); a seccomp profile can be"},
            {"prctl", "prctl(PR_SET_NO_NEW_PRIVS): EPERM"},
            {"prlimit64", "setrlimit(RLIMIT_NOFILE): EPERM"},
            {"fcntl", "fcntl(F_DUPFD_CLOEXEC) of standard input: EPERM"},
            {"epoll_create1", "epoll_create1: EPERM"},
            {"epoll_ctl", "epoll_ctl: EPERM"}
          ] do
        assert {call, refused!(call)} |> inspect() =~ said
      end
    end

    @tag :dynamic
    test "is named by the dynamic loader" do
      Process.flag(:trap_exit, true)
      assert refused!("openat") =~ ~r/error while loading shared libraries: .*not permitted/
    end

    # Its words are read when it is run once more.
    defp refused!(call) do
      run = tmp_path!("run")
      quiet = "[ -e #{run} ] || { : >#{run}; exec 2>/dev/null; }"
      script = script!("#{quiet}\nexec #{only(helpers_own() -- [call])} #{helper()} \"$@\"")
      assert {:error, error} = NetlinkPort.start_link(name: nil, executable: script)
      Exception.message(error)
    end

    test "is named" do
      netns = netns!()
      pid = sleeper!(netns)

      for {call, targets} <- [
            {"setns", name: netns, pid: pid},
            {"fstatfs", name: netns, pid: pid},
            {"readlinkat", pid: pid},
            {"pidfd_open", pid: pid},
            {"socket", host: nil},
            {"setsockopt", host: nil},
            {"bind", host: nil},
            {"connect", host: nil},
            {"getsockname", host: nil}
          ] do
        server = start!(helpers_own() -- [call])

        for {kind, value} <- targets do
          target = if kind == :host, do: :host, else: {kind, value}
          assert {:error, error} = NetlinkPort.open(server, :route, netns: target)
          message = Exception.message(error)
          assert {call, message} |> inspect() =~ "#{call}(2)"
          assert {call, message} |> inspect() =~ "seccomp profile"
          assert {call, error.lacks} == {call, nil}
        end
      end
    end
  end
end
