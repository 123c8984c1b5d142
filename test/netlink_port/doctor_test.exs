defmodule NetlinkPort.DoctorTest do
  # The output of the doctor on a healthy machine, and for each fault, by real causes.
  # Not async: the doctor asks every server of the VM, and wakes servers that must sleep in their own tests.
  use NetlinkPort.Case, async: false

  import ExUnit.{CaptureIO, CaptureLog}

  alias Mix.Tasks.NetlinkPort.Doctor, as: Task
  alias NetlinkPort.Doctor
  alias NetlinkPort.Doctor.{Capabilities, Pinned, Remedy}

  @moduletag :root

  doctest Doctor, except: [run: 1]

  # The report, only on the host's namespace by default.
  defp report(opts), do: Doctor.report(Keyword.put_new(opts, :netns, [:host]))

  defp section(report, title), do: report |> List.keyfind!(title, 0) |> elem(1)

  defp find!(checks, mark, pattern) do
    found = Enum.find(checks, fn {_mark, line, _remedy} -> line =~ pattern end)

    assert {^mark, _line, remedy} = found,
           "#{inspect(pattern)} in #{inspect(checks, pretty: true)}"

    remedy
  end

  defp executable_fails!(path, pattern) do
    report = report(executable: path)
    refute Doctor.well?(report)
    find!(section(report, "executable"), :fail, pattern)
  end

  # Beside them run tests that make their helper's read(2) fail, or count what it does.
  test "no async test asks every server of the VM" do
    asks = [Doctor: :report, Doctor: :run, Top: :run, Survey: :stats]

    asking =
      for file <- Path.wildcard("test/**/*_test.exs"),
          text = File.read!(file),
          Enum.any?(calls(text), &(&1 in asks)),
          do: {file, text =~ ~r/^  use .*async: true/m}

    assert {"test/netlink_port/doctor_test.exs", false} in asking
    assert for({file, true} <- asking, do: file) == []
  end

  # Each as the last name of the module, and the function.
  defp calls(text) do
    for {:., _, [{:__aliases__, _, module}, function]} <-
          Macro.prewalker(Code.string_to_quoted!(text)),
        do: {List.last(module), function}
  end

  test "the executable and namespaces can be chardata" do
    opts = [executable: ["", [to_charlist(helper())]], netns: [{:path, ~c"/proc/self/ns/net"}]]
    assert [{"executable", [{:ok, _line, nil} | _]} | _] = report = Doctor.report(opts)
    assert [{:ok, line, nil}] = section(report, "namespaces")
    assert line =~ "/proc/self/ns/net"
  end

  @tag :init_user_namespace
  test "a machine with all that is needed has no failing check" do
    netns = netns!()
    report = report(netns: [{:name, netns}, {:path, netns_path(netns)}, {:pid, sleeper!(netns)}])
    assert Doctor.well?(report)
    executable = section(report, "executable")
    find!(executable, :ok, "version #{Mix.Project.config()[:version]}")
    helper = section(report, "helper")

    for line <- ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "seccomp filter is on", "no_new_privs is on"],
        do: find!(helper, :ok, line)

    kernel = section(report, "kernel")

    for line <- ["Linux", "SIOCGSKNS", "NETLINK_EXT_ACK", "GET_STRICT_CHK"],
        do: find!(kernel, :ok, line)

    if linux?(5, 14),
      do: find!(kernel, :ok, "SO_NETNS_COOKIE"),
      else: assert(find!(kernel, :warn, "SO_NETNS_COOKIE is not there") =~ "5.14")

    find!(kernel, :ok, ~r/^protocols: route, generic, .*sock_diag.*usersock/)
    # NETLINK_CRYPTO is 21. To open a socket of it would load crypto_user.
    unless File.read!("/proc/net/netlink") =~ ~r/^\S+ +21 +0 /m,
      do: find!(kernel, :ok, ~r/^not tried: .*crypto/)

    assert [{:ok, line, nil}] = section(report, "namespaces")
    assert line =~ "#{netns}, #{netns_path(netns)}, the namespace of process "
    limits = section(report, "limits")

    for line <- [
          "net.core: rmem_max",
          "SO_RCVBUFFORCE",
          ~r"filter: up to [0-9]+ instructions",
          "descriptors",
          "fs.inotify",
          "fs.epoll"
        ],
        do: find!(limits, :ok, line)

    assert [{:ok, line, nil}] = section(report, "round trip")
    assert line =~ ~r/^500 requests, .*median \d+ us, 99th percentile \d+ us$/
  end

  @tag :init_user_namespace
  test "the limits show what a large rcvbuf: becomes, with CAP_NET_ADMIN and without" do
    max = "/proc/sys/net/core/rmem_max" |> File.read!() |> String.trim() |> String.to_integer()
    asked = max(max + 4_096, 8_388_608)
    limits = section(report(executable: helper()), "limits")

    find!(
      limits,
      :ok,
      ~r/may go beyond these \(SO_RCVBUFFORCE\): a socket that asks for #{asked} bytes gets #{asked}$/
    )

    without = script!("exec setpriv --bounding-set -net_admin #{helper()} \"$@\"")
    limits = section(report(executable: without), "limits")

    assert Enum.any?(limits, fn {_, line, _} ->
             line =~ ~r/a socket that asks for #{asked} bytes gets #{max}$/
           end)
  end

  test "the doctor leaves nothing behind" do
    report(executable: helper())
    report(executable: "/nowhere")
    # Servers of other tests come and go. This process has started none.
    assert {:links, []} = Process.info(self(), :links) |> only_servers()
  end

  defp only_servers({:links, links}) do
    {:links,
     for(pid <- links, is_pid(pid), pid in NetlinkPort.Server.OwnerNotifier.servers(), do: pid)}
  end

  describe "an executable that" do
    test "is missing fails, with the path" do
      assert executable_fails!(
               "/nowhere/netlink_port",
               "/nowhere/netlink_port: there is no such file"
             ) =~
               "--executable"
    end

    test "is a folder fails" do
      executable_fails!(System.tmp_dir!(), "no file but a directory")
    end

    test "is not executable fails; the advice lets only its owner run it" do
      path = tmp_path!("netlink_port")
      File.cp!(helper(), path)
      File.chmod!(path, 0o644)

      assert executable_fails!(path, "cannot be run: EACCES: it is root:root 0644") ==
               "chmod u+x #{path}"
    end

    @tag :init_user_namespace
    test "is installed for another group fails; the advice is to join that group" do
      path = public!(helper())
      ebin = public_ebin!()
      {_output, 0} = System.cmd("chown", ["root:games", path])
      {_output, 0} = System.cmd("setcap", ["cap_sys_admin,cap_net_admin+ep", path])
      {_output, 0} = System.cmd("chmod", ["0750", path])
      code = "NetlinkPort.Doctor.run(executable: #{inspect(path)}, netns: [])"
      user = ~w(--reuid 12345 --regid 12345 --clear-groups)
      elixir = [System.find_executable("elixir"), "-pa", ebin, "-e", code]
      opts = [env: [{"HOME", System.tmp_dir!()}], cd: "/", stderr_to_stdout: true]
      {output, 0} = System.cmd("setpriv", user ++ elixir, opts)

      assert output =~
               "cannot be run: EACCES: it is root:games 0750, and 12345 is not in that group"

      assert output =~ "user 12345 has no entry in passwd(5)"
      assert output =~ "setpriv --groups"
      refute output =~ "chmod"
    end

    @tag :init_user_namespace
    test "is of another version fails, with both versions" do
      path = script!(~s([ "$1" = --version ] && echo netlink_port 9.9.9 || exec #{helper()} "$@"))

      assert executable_fails!(
               path,
               "is version 9.9.9, this library #{Mix.Project.config()[:version]}"
             ) =~ "install -m 0755"

      # A folder that only root may write.
      folder = "/usr/local/lib/nlp-#{System.pid()}-#{System.unique_integer([:positive])}"
      installed = Path.join(folder, "netlink_port")
      File.mkdir!(folder)
      on_exit(fn -> File.rm_rf!(folder) end)
      File.cp!(path, installed)
      {_output, 0} = System.cmd("chown", ["root:games", installed])
      {_output, 0} = System.cmd("chmod", ["0750", installed])

      assert executable_fails!(installed, "is version 9.9.9") =~
               "mix netlink_port.install --to #{installed} --group games"
    end

    test "is another program fails, with its output" do
      for {path, said} <- [
            {script!("echo hello; exit 3"), ~s(status 3 and said "hello\\n")},
            {System.find_executable("ls"), "status 0 and said \"ls "}
          ] do
        assert executable_fails!(path, said) =~
                 "it is another program; name the helper by NETLINK_PORT_EXECUTABLE"
      end
    end

    test "anybody may write is a warning; the helper is checked" do
      path = tmp_path!("netlink_port")
      File.cp!(helper(), path)
      File.chmod!(path, 0o757)
      report = report(executable: path)
      assert Doctor.well?(report)

      assert find!(section(report, "executable"), :warn, "anybody may write it") ==
               "chmod o-w #{path}"
    end

    test "has file capabilities and may be run by anybody is a warning" do
      path = tmp_path!("netlink_port")
      File.cp!(helper(), path)
      File.chmod!(path, 0o755)
      {_output, 0} = System.cmd("setcap", ["cap_sys_admin,cap_net_admin+ep", path])
      checks = section(report(executable: path), "executable")

      assert find!(checks, :warn, ~r/cap_net_admin,cap_sys_admin.*anybody may run it/) =~
               "mix netlink_port.install --to /usr/local/lib --group GROUP"

      # File.chmod/2 also calls chown(2), which removes the capabilities.
      {_output, 0} = System.cmd("chmod", ["0750", path])
      find!(section(report(executable: path), "executable"), :ok, "cap_net_admin,cap_sys_admin")
    end
  end

  @tag :userns
  @tag :init_user_namespace
  test "root of a user namespace is not advised to upgrade the kernel, nor to be root" do
    code = "NetlinkPort.Doctor.run(executable: #{inspect(public!(helper()))}, netns: [])"
    elixir = [System.find_executable("elixir"), "-pa", public_ebin!(), "-e", code]
    user = ~w(--reuid 65534 --regid 65534 --clear-groups unshare -Ur)
    opts = [env: [{"HOME", System.tmp_dir!()}], cd: "/", stderr_to_stdout: true]
    {output, _status} = System.cmd("setpriv", user ++ elixir, opts)

    # Since Linux 6.18 a place is proven without CAP_NET_ADMIN.
    unless linux?(6, 18) do
      assert output =~ "SIOCGSKNS is refused"

      assert output =~
               "it takes CAP_NET_ADMIN in the user namespace that owns the network namespace"
    end

    # The cookie alone takes a newer kernel, before Linux 5.14.
    told = if linux?(5, 14), do: output, else: String.replace(output, "Linux 5.14", "")
    refute told =~ "upgrade to Linux"
    refute output =~ "would have to be root"
  end

  describe "a helper" do
    test "without capabilities: warnings say what each is needed for, and namespaces fail" do
      netns = netns!()
      drop = "setpriv --bounding-set -sys_admin,-net_admin,-sys_ptrace"
      path = script!("exec #{drop} #{helper()} \"$@\"")
      report = report(executable: path, netns: [{:name, netns}])
      helper = section(report, "helper")

      assert find!(helper, :warn, "without CAP_SYS_ADMIN no other namespace") =~
               ~r"mix netlink_port.install|--executable"

      assert find!(helper, :warn, "without CAP_NET_ADMIN nothing can be changed") =~
               ~r"mix netlink_port.install|--executable"

      for {:warn, _line, remedy} <- helper, do: refute(remedy =~ "setcap")
      kernel = section(report, "kernel")

      if linux?(6, 18),
        do: find!(kernel, :ok, "NS_GET_ID: the kernel proves where a socket is"),
        else: assert(find!(kernel, :warn, "SIOCGSKNS is refused") =~ "Linux 6.18")

      namespaces = section(report, "namespaces")

      assert find!(namespaces, :fail, "the helper lacks CAP_SYS_ADMIN") ==
               "see CAP_SYS_ADMIN above"

      refute Doctor.well?(report)
      # The other checks are made.
      find!(section(report, "round trip"), :ok, "500 requests")
    end

    test "that does not start fails with the error of the start" do
      path = script!(~s([ "$1" = --version ] && exec #{helper()} --version; exit 71))

      log =
        capture_log(fn ->
          report = report(executable: path)
          find!(section(report, "executable"), :ok, "version")

          find!(
            section(report, "helper"),
            :fail,
            "ended with exit status 71 before its first frame"
          )

          refute Doctor.well?(report)
        end)

      # The report shows it.
      refute log =~ "exit status 71"
    end

    test "whose executable fails is not started: one fault is one line" do
      log =
        capture_log(fn ->
          report = report(executable: "/nowhere")

          assert [{:fail, "/nowhere: there is no such file", _}] = section(report, "executable")

          assert [{:warn, line, _remedy}] = section(report, "helper")
          assert line =~ "kernel, namespaces, limits and round trip are not looked at"
          assert List.keymember?(report, "servers", 0)
        end)

      refute log =~ "/nowhere"
    end

    test "whose path has bytes that a terminal obeys, or of no character, is shown legibly" do
      text = Doctor.format(report(executable: "/nowhere/\xFF\e[31m"))
      assert String.valid?(text)
      assert text =~ "/nowhere/\\xFF\\e[31m: there is no such file"
      refute text =~ "\e"
    end

    @tag :init_user_namespace
    test "without capabilities: the advice is to install it, or to check the installed helper" do
      missing = tmp_path!("missing/netlink_port")

      assert Remedy.capability(helper(), :sys_admin, missing) =~
               "mix netlink_port.install --to #{Path.dirname(missing)} --group GROUP, then " <>
                 "NETLINK_PORT_EXECUTABLE=#{missing}"

      assert Remedy.capability(helper(), :sys_admin, "/bin/true") =~
               "--executable /bin/true looks at the one that is installed there"

      # The helper is already installed there.
      path = Path.expand(System.find_executable("true"))

      assert Remedy.capability(path, :sys_admin, missing) =~
               "mix netlink_port.install --to #{path} --group"
    end

    test "without its sandbox fails" do
      # A process without capabilities: this VM.
      info = %{executable: helper(), capabilities: [], may_leave: false, home_inode: 1}
      info = Map.put(info, :os_pid, System.pid())
      checks = Capabilities.checks(info)
      find!(checks, :fail, "seccomp filter is off")
      find!(checks, :fail, "no_new_privs is off")
      find!(checks, :warn, "cannot leave its home")
    end

    test "that ends during the checks fails them, and the other checks are made" do
      # The input of the helper ends after that many bytes of commands, during the timed requests.
      hello = ~s([ "$1" = --version ] && exec #{helper()} --version)
      path = script!(~s(#{hello}; dd bs=1 count=10000 status=none | #{helper()} "$@"))
      report = report(executable: path)
      assert length(report) == 8
      find!(section(report, "limits"), :ok, "descriptors")
      find!(section(report, "round trip"), :fail, ~r/EPIPE|ESRCH/)
      refute Doctor.well?(report)
      path = script!(~s(#{hello}; dd bs=1 count=300 status=none | #{helper()} "$@"))
      report = report(executable: path)
      assert length(report) == 8
      find!(section(report, "limits"), :fail, "could not be looked at")
    end
  end

  describe "namespaces" do
    test "that cannot be entered fail with the sentence of the error" do
      places = [{:name, "nlp-nowhere"}, {:path, "/proc/self/ns/mnt"}]
      checks = section(report(netns: places), "namespaces")
      find!(checks, :fail, "/run/netns/nlp-nowhere: ENOENT: there is no such file")
      find!(checks, :fail, "/proc/self/ns/mnt: EINVAL: it is not a network namespace")
    end

    test "that cannot be entered for the same reason are counted if there are many" do
      places = for n <- 1..50, do: {:name, "nlp-nowhere-#{n}"}
      checks = section(report(netns: [{:path, "/proc/self/ns/mnt"} | places]), "namespaces")
      assert length(checks) == 6
      find!(checks, :fail, "... and 46 more, for the same reason")
      find!(checks, :fail, "/proc/self/ns/mnt")
    end

    test "whose files are left over are a warning" do
      # As after a reboot that has kept the folder.
      name = "nlp-#{System.pid()}-#{System.unique_integer([:positive])}"
      path = netns_path(name)
      _exists = netns!()
      File.touch!(path)
      on_exit(fn -> File.rm(path) end)
      report = report(netns: [{:name, name}])

      # The file is the same, so that the doctor cannot see whether the namespace is alive elsewhere.
      remedy = find!(section(report, "namespaces"), :warn, name)

      assert remedy =~ "alive in another mount namespace" and
               remedy =~ "Do not delete the file here"

      refute remedy =~ ~r/ip netns del|umount|rm /
      assert Doctor.well?(report)
    end

    test "with control characters in their names are shown without these" do
      path = tmp_path!("odd\e[31m\nname")
      File.ln_s!("/proc/self/ns/net", path)
      lines = for {_, line, _} <- section(report(netns: [{:path, path}]), "namespaces"), do: line
      assert lines != []
      for line <- lines, do: assert(String.printable?(line) and not (line =~ "\n"))
    end

    test "of a wrong form raise in the caller" do
      for wrong <- [:blue, [:blue], [{:name, "a/b"} | :x]] do
        assert_raise ArgumentError, fn -> Doctor.report(netns: wrong) end
      end
    end

    test "of /run/netns are checked by default" do
      netns = netns!()
      checks = section(Doctor.report(), "namespaces")
      [{:ok, line, nil}] = for {:ok, _, _} = check <- checks, do: check
      assert line =~ netns or line =~ ~r/and \d+ more$/
    end
  end

  describe "a namespace" do
    # What the doctor says about the namespace with this inode.
    defp said(inode) do
      for {mark, line, remedy} <- section(report([]), "namespaces kept alive"),
          line =~ "#{inode}",
          do: {mark, line, remedy}
    end

    defp doomed! do
      netns = netns!()
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      {netns, inode(netns_path(netns)), socket}
    end

    @tag :init_user_namespace
    test "that only sockets of the library keep alive is named, with its sockets and their owners" do
      {netns, inode, socket} = doomed!()
      assert said(inode) == []
      ip!(["netns", "del", netns])
      assert [{:warn, line, remedy}] = said(inode)

      assert line =~
               "#{inode} is alive by our sockets alone: #{inspect(socket)} of #{inspect(self())}"

      assert remedy =~ "close_on: :namespace_gone"
      NetlinkPort.close(socket)
      assert said(inode) == []
    end

    @tag :init_user_namespace
    test "that a pin keeps alive, with sockets or alone, is named with the pin and its owner" do
      {netns, inode, socket} = doomed!()
      {:ok, pin} = NetlinkPort.pin(socket.helper.server, {:name, netns}, [])
      ip!(["netns", "del", netns])
      assert [{:warn, line, remedy}] = said(inode)
      assert line =~ "#{inode} is alive by our sockets and pins alone: "
      assert line =~ "#{inspect(pin)} of #{inspect(self())}"
      assert remedy =~ "unpin"
      NetlinkPort.close(socket)
      assert [{:warn, line, _remedy}] = said(inode)
      assert line =~ "#{inode} is alive by our pins alone: #{inspect(pin)} of #{inspect(self())}"
      NetlinkPort.unpin(pin)
      assert said(inode) == []
    end

    # The process that held it has ended.
    defp alone_without!(pid, inode) do
      signal!(pid, :KILL)
      eventually!(fn -> not running?(pid) end)
      assert [{:warn, _line, _remedy}] = said(inode)
    end

    test "with a process in it is held until that ends" do
      {netns, inode, _socket} = doomed!()
      pid = sleeper!(netns)
      ip!(["netns", "del", netns])
      assert said(inode) == []
      alone_without!(pid, inode)
    end

    test "that another process has a descriptor of is held" do
      {netns, inode, _socket} = doomed!()
      marker = tmp_path!("marker")
      command = "exec 9< #{netns_path(netns)}; touch #{marker}; exec sleep 600"
      pid = os_process!("sh", ["-c", command])
      eventually!(fn -> File.exists?(marker) end)
      ip!(["netns", "del", netns])

      if linux?(5, 14) do
        assert said(inode) == []
      else
        assert [{:warn, line, _remedy}] = said(inode)

        assert line =~
                 ~r/unless (process #{pid}|\d+ processes) hold it open, which cannot be seen/
      end

      alone_without!(pid, inode)
    end

    test "that is mounted in the mount namespace of a container is held" do
      {netns, inode, _socket} = doomed!()
      marker = tmp_path!("marker")
      # Under another path: when a file is deleted, the mounts on it go, whatever path they have.
      other = tmp_path!("elsewhere")
      mount = "touch #{other}; mount --bind #{netns_path(netns)} #{other}"

      command = [
        "-m",
        "--propagation",
        "private",
        "sh",
        "-c",
        "#{mount}; touch #{marker}; exec sleep 600"
      ]

      pid = os_process!("unshare", command)
      eventually!(fn -> File.exists?(marker) end)
      ip!(["netns", "del", netns])
      assert said(inode) == []
      alone_without!(pid, inode)
    end

    test "may be held if the kernel does not show the inode of a descriptor, as before Linux 5.14" do
      assert Pinned.holds("net:[4026532179]", "pos:\t0\n") == {:link, "net:[4026532179]"}

      assert Pinned.holds("/run/netns/blue", "pos:\t0\nmnt_id:\t9\nino:\t4026532179\n") ==
               {:stat, "4026532179"}

      assert Pinned.holds("/", "pos:\t0\nmnt_id:\t9\nino:\t4026532179\n") == {:stat, "4026532179"}
      assert Pinned.holds("/", "pos:\t0\nino:\t2\n") == nil
      assert Pinned.holds("/", "pos:\t0\nflags:\t02100000\nmnt_id:\t9\n") == :untold
      assert Pinned.holds("/dev/null", "pos:\t0\nmnt_id:\t9\n") == nil
    end

    @tag :init_user_namespace
    test "may be held if the user cannot look at the processes of others" do
      netns = netns!()
      # In a namespace of its own, where no other process that this user may look at is.
      pid = sleeper!(netns)
      home = tmp_path!("nobody")
      ebin = Path.join(home, "ebin")
      File.mkdir_p!(home)
      File.cp_r!(Path.join(:code.lib_dir(:netlink_port), "ebin"), ebin)
      {_output, 0} = System.cmd("chown", ["-R", "65534:65534", home])

      code =
        "#{inspect(Pinned)}.unheld([1], MapSet.new()) |> elem(1) |> Map.get(:places) |> IO.inspect(limit: :infinity)"

      nobody = ~w(--reuid 65534 --regid 65534 --clear-groups)
      elixir = [System.find_executable("elixir"), "-pa", ebin, "-e", code]
      {output, 0} = System.cmd("setpriv", nobody ++ elixir, cd: home, env: [{"HOME", home}])
      assert output =~ ~s("#{pid}")
      # Sockets in the VM's own namespace are known to be there, whatever process has them.
      refute output =~ ~s("#{System.pid()}")
      refute output =~ ~s("1",)
    end
  end

  test "a server whose helper does not answer is a warning, and delays nothing" do
    server = start_server!(call_timeout: within(15_000), ping_interval: :infinity)
    helper = os_pid(server)
    signal!(helper, :STOP)
    report = report([])
    signal!(helper, :CONT)
    find!(section(report, "servers"), :warn, "#{inspect(server)}: ")
    assert Doctor.well?(report)
  end

  test "servers of this node are listed, with restarts and drops as warnings" do
    name = :"doctor_#{System.unique_integer([:positive])}"
    limits = [strategy: :one_for_one, max_restarts: 10]
    start = {Supervisor, :start_link, [[{NetlinkPort, name: name}], limits]}
    start_supervised!(%{id: :doctored, start: start})
    find!(section(report([]), "servers"), :ok, inspect(name))
    server = Process.whereis(name)
    signal!(os_pid(name), :KILL)
    eventually!(fn -> Process.whereis(name) not in [nil, server] end)
    assert find!(section(report([]), "servers"), :warn, ~r/#{name}.*restarts: 1/) =~ "the log"
  end

  describe "the report" do
    @report [
      {"one", [{:ok, "well", nil}, {:warn, "look", "do this"}]},
      {"two", [{:fail, "bad", nil}]}
    ]

    test "has a line for each check, with marks that the terminal can show" do
      assert Doctor.format(@report, unicode?: true) ==
               "one\n  ✓ well\n  ! look\n      → do this\ntwo\n  ✗ bad\n1 well, 1 to look at, 1 failing"

      assert Doctor.format(@report) ==
               "one\n  ok well\n  !! look\n      -> do this\ntwo\n  XX bad\n1 well, 1 to look at, 1 failing"
    end

    test "fails if a check fails, and not for warnings" do
      refute Doctor.well?(@report)
      refute Doctor.well?(tl(@report))
      assert Doctor.well?(Enum.take(@report, 1))
    end

    test "is printed by run/1, for releases" do
      assert capture_io(fn -> send(self(), Doctor.run(netns: [:host])) end) =~ "500 requests"
      assert_received :ok
    end
  end

  describe "mix netlink_port.doctor" do
    # The text of the doctor, and its exit code.
    defp task(arguments) do
      test = self()

      text =
        capture_io(:stderr, fn ->
          text = capture_io(fn -> send(test, {:code, code(fn -> Task.run(arguments) end)}) end)
          send(test, {:text, text})
        end)

      assert_received {:code, code}
      assert_received {:text, stdout}
      {stdout <> text, code}
    end

    defp code(fun) do
      fun.()
      0
    catch
      :exit, {:shutdown, code} -> code
    end

    test "ends with 0 if no check fails, and with 1 otherwise" do
      netns = netns!()
      assert {text, 0} = task(["--netns", netns])
      assert text =~ "0 failing"
      assert {text, 0} = task(["--netns", netns_path(netns), "--executable", helper()])
      assert text =~ "confirmed by the kernel: #{netns_path(netns)}"
      assert {text, 1} = task(["--netns", "nlp-nowhere"])
      assert text =~ "1 failing"
      assert {text, 1} = task(["--executable", "/nowhere"])
      assert text =~ "/nowhere: there is no such file"
    end

    test "ends with 2 for unknown arguments" do
      for arguments <- [["--bogus"], ["--netns"], ["blue"], ["--node", "nowhere"]] do
        assert {text, 2} = task(arguments)
        assert text =~ "netlink_port.doctor: "
      end

      assert {text, 2} = task(["--bogus"])
      assert text =~ "--bogus; see `mix help netlink_port.doctor`"
    end

    test "ends with 2 for values that no name or path can have, and says of which option" do
      for place <- ["", ".", ".."] do
        assert {text, 2} = task(["--netns", place])

        # Red on a terminal.
        assert [line] = String.split(text, "\n", trim: true)

        assert line =~
                 "netlink_port.doctor: --netns: expected the name of a namespace, a single file name in " <>
                   "/run/netns, got: #{inspect(place)}"
      end

      assert {text, 2} = task(["--executable", ""])
      assert text =~ "netlink_port.doctor: --executable: expected executable: a path, got: \"\""

      before = Application.fetch_env(:netlink_port, :executable)
      Application.put_env(:netlink_port, :executable, 5)

      on_exit(fn ->
        with {:ok, path} <- before,
             do: Application.put_env(:netlink_port, :executable, path),
             else: (:error -> Application.delete_env(:netlink_port, :executable))
      end)

      assert {text, 2} = task([])
      assert text =~ "config :netlink_port: expected executable: a path, got: 5"
    end

    test "ends with 0 for --help, and prints its documentation" do
      for help <- ["--help", "-h"] do
        assert {text, 0} = task([help])
        assert text =~ "mix netlink_port.doctor" and text =~ "--executable"
      end
    end
  end
end
