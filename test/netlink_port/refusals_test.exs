defmodule NetlinkPort.RefusalsTest do
  # Each open that can be refused, in each place: the sentence has to be true there.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{PlaceFaults, Places, RefusalFaults}
  alias NetlinkPort.Helper.Privileges
  alias NetlinkPort.Server.Refusal

  @moduletag root: true, userns: true, init_user_namespace: true

  @nobody ["--reuid", "65534", "--regid", "65534", "--clear-groups"]

  # The arguments of setpriv(1) for the user of the places.
  defp user(places), do: tl(Places.command(:user, places, []))

  # Processes of root, of the user of the places in a rootless container, and of another user in one.
  setup_all do
    places = Places.setup!()
    netns = netns!()
    root = os_process!("nsenter", ["--net=#{netns_path(netns)}", "sleep", "600"])

    [own, other] =
      for user <- [user(places), @nobody],
          do: os_process!("setpriv", user ++ ~w(unshare -Urn sleep 600))

    for pid <- [root, own, other],
        do: eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)

    link = Path.join(places.folder, "link")
    File.ln_s!("/proc/#{root}/ns/net", link)

    opens = [
      host: {:route, :host},
      name: {:route, {:name, netns}},
      root: {:route, {:pid, root}},
      link: {:route, {:path, link}},
      own: {:route, {:pid, own}},
      other: {:route, {:pid, other}}
    ]

    told = fn opts ->
      Places.places()
      |> Task.async_stream(
        fn place ->
          {told, _output} = Places.call(places, place, RefusalFaults, :told, [place, opens, opts])
          {place, told}
        end,
        timeout: within(120_000),
        max_concurrency: 2
      )
      |> Map.new(fn {:ok, told} -> told end)
    end

    %{
      places: places,
      opens: opens,
      told: told.([]),
      children: told.(user_namespaces: true),
      root_process: root,
      own: own,
      other: other
    }
  end

  # The sentence of an open in each place. In a place that is not named the open succeeds.
  defp assert_said(told, open, patterns) do
    for {place, told} <- told do
      case {patterns[place], told[open]} do
        {nil, said} ->
          assert {open, place, said} == {open, place, :ok}

        {pattern, said} ->
          assert is_binary(said) and said =~ pattern, "#{open}, #{place}: #{inspect(said)}"
      end
    end
  end

  @install "install it with capabilities by `mix netlink_port.install`"
  @bounding "CAP_SYS_ADMIN; its bounding set does not hold it, so that neither root nor the capabilities of"
  @no_new_privs "it was started under no_new_privs, so that the capabilities of its file do not count"
  @nosuid "its file lies on a file system mounted nosuid, where the capabilities of a file do not count"
  @elsewhere "it belongs to another user namespace, which is neither the helper's own nor below it"
  @none "ESRCH: there is no such process"
  @foreign "/proc is that of another pid namespace, where this number is another process or none"

  test "the helper's own namespace opens in each place", c do
    for told <- [c.told, c.children], do: assert_said(told, :host, %{})
  end

  test "an open of a named namespace says why CAP_SYS_ADMIN is missing, and whose the namespace is",
       c do
    for told <- [c.told, c.children] do
      assert_said(told, :name, %{
        unbounded_root: @bounding,
        unbounded_user: @bounding,
        no_new_privs: @no_new_privs,
        nosuid: @nosuid,
        user_namespace: @elsewhere
      })

      # The namespace belongs to no rootless container.
      for {_place, %{name: said}} <- told, do: refute(inspect(said) =~ "user_namespaces: true")
    end
  end

  test "an open of a process of root says that it is closed to the helper, hidden, or of another user namespace",
       c do
    closed =
      "it leads to process #{c.root_process}, and the namespaces of processes of other users, or with more"

    hidden = "EACCES: process #{c.root_process} is there, and hidden from the helper (hidepid="

    told = %{
      user: ~r"#{closed}.*lacks CAP_SYS_PTRACE; start it as root, or #{@install} with --cap",
      hidepid1: hidden,
      hidepid2: hidden,
      unbounded_root: @bounding,
      unbounded_user: closed,
      no_new_privs: ~r"#{closed}.*lacks CAP_SYS_PTRACE; #{@no_new_privs}",
      nosuid: ~r"#{closed}.*lacks CAP_SYS_PTRACE; #{@nosuid}",
      user_namespace:
        "the namespaces of process #{c.root_process} are closed to the helper, though it has CAP_SYS_PTRACE: the " <>
          "process is in another user namespace"
    }

    for place <- [c.told, c.children] do
      assert_said(place, :root, Map.merge(told, %{foreign_proc: @foreign, pid_namespace: @none}))
      # For a path the target of the path decides.
      assert_said(
        place,
        :link,
        Map.put(told, :pid_namespace, "there is no process #{c.root_process} in that")
      )
    end
  end

  test "a rootless container of the same user opens with user_namespaces: true, which the error advises without it",
       c do
    advised =
      "below the helper's own, as that of a rootless container; start the helper's server with user_names"

    sibling =
      "the namespaces of process #{c.own} are closed to the helper, though it has CAP_SYS_PTRACE: the"

    assert_said(c.told, :own, %{
      foreign_proc: @foreign,
      pid_namespace: @none,
      unbounded_root: ~r"#{advised}.*Otherwise the helper lacks #{@bounding}",
      unbounded_user: ~r"#{advised}.*Otherwise the helper lacks #{@bounding}",
      no_new_privs: ~r"#{advised}.*Otherwise the helper lacks CAP_SYS_ADMIN; #{@no_new_privs}",
      nosuid: ~r"#{advised}.*Otherwise the helper lacks CAP_SYS_ADMIN; #{@nosuid}",
      user_namespace: sibling
    })

    assert_said(c.children, :own, %{
      foreign_proc: @foreign,
      pid_namespace: @none,
      unbounded_root: ~r"of another user, which a child of the helper may not join.*#{@bounding}",
      user_namespace: sibling
    })

    for {_place, told} <- c.children,
        {_open, said} <- told,
        do: refute(inspect(said) =~ "user_namespaces: true")
  end

  test "no error advises root to be root, or to install a helper whose capabilities have no effect",
       c do
    for told <- [c.told, c.children],
        place <- [:root, :unbounded_root, :foreign_proc, :no_new_privs, :nosuid],
        {open, said} <- told[place] do
      refute {place, open, said} |> inspect() =~ "start it as root, or install"
    end
  end

  test "root that securebits give no capabilities is told so, and is not advised to be root", c do
    noroot = ["setpriv", "--securebits", "+noroot"]
    opts = [:root, c.opens, []]
    {told, _output} = Places.call(c.places, :root, RefusalFaults, :told, opts, noroot)

    for {open, capability} <- [name: "CAP_SYS_ADMIN", root: "CAP_SYS_PTRACE"] do
      assert told[open] =~
               "the helper lacks #{capability}; root does not get it here: the VM runs under the securebit " <>
                 "SECBIT_NOROOT, see capabilities(7); install the helper with capabilities by `mix"
    end

    opts = [:root, [:doctor]]
    {%{doctor: checks}, _output} = Places.call(c.places, :root, PlaceFaults, :told, opts, noroot)
    remedies = for {_mark, "without CAP_SYS_ADMIN" <> _line, remedy} <- checks, do: remedy
    assert [remedy] = remedies
    assert remedy =~ "SECBIT_NOROOT"

    for said <- [remedy | Enum.filter(Map.values(told), &is_binary/1)],
        do: refute(said =~ ~r/as root/)
  end

  describe "the error of a system call that a seccomp profile refuses" do
    # The filter of the fault stands in for the profile of a container.
    test "names the profile if nothing else is missing", _c do
      netns = netns!()
      pid = sleeper!(netns)

      for {fault, protocol, netns, stage, reason, told} <- [
            {"setns EPERM", :route, {:name, netns}, :setns, :eperm,
             "setns(2) was refused, though"},
            {"pidfd_open EPERM", :route, {:pid, pid}, :open, :eperm,
             "pidfd_open(2) was refused: "},
            {"pidfd_open ENOSYS", :route, {:pid, pid}, :open, :enosys,
             "pidfd_open(2) was refused: "},
            {"socket EINVAL", :audit, :host, :socket, :einval, "--cap-add AUDIT_WRITE"},
            {"socket EPERM", :route, {:name, netns}, :socket, :eperm,
             "socket(2) of this protocol was"},
            {"socket EAFNOSUPPORT", :route, :host, :socket, :eafnosupport,
             "RestrictAddressFamilies="}
          ] do
        switch = tmp_path!("fault")
        server = start_injected!("#{fault} file:#{switch}")
        File.write!(switch, "")
        assert {:error, error} = NetlinkPort.open(server, protocol, netns: netns)
        assert {fault, error.stage, error.reason} == {fault, stage, reason}
        assert error.lacks == nil
        message = Exception.message(error)
        assert message =~ told
        assert message =~ "seccomp profile"
        File.rm!(switch)
        assert {:ok, _socket} = NetlinkPort.open(server, protocol, netns: netns)
      end
    end

    test "names the system call and the profile in every step of an open, and no capability",
         _c do
      # The helper has no capabilities: none is what these steps need.
      none = "setpriv --bounding-set -all --inh-caps -all"

      for {call, errno, stage} <- [
            {"bind", "EPERM", :bind},
            {"bind", "ENOSYS", :bind},
            {"connect", "EPERM", :connect},
            {"connect", "EACCES", :connect},
            {"getsockname", "ENOSYS", :info},
            {"getsockname", "EPERM", :info},
            {"setsockopt", "EPERM", :setsockopt},
            {"setsockopt", "ENOSYS", :setsockopt}
          ],
          dropped <- [none, ""] do
        script =
          script!(
            "exec #{fixture!("inject")} #{call} #{errno} always #{dropped} #{helper()} \"$@\""
          )

        server = start_server!(executable: script)
        assert {:error, error} = NetlinkPort.open(server, :route, [])
        assert {call, errno, error.stage, error.lacks} == {call, errno, stage, nil}
        assert Exception.message(error) =~ ~r/#{call}\(2\).* was refused: a seccomp profile can/
      end
    end

    test "names open(2) and the profile when the namespace's file is refused", _c do
      switch = tmp_path!("fault")
      netns = netns!()
      server = start_injected!("openat EPERM file:#{switch}")
      File.write!(switch, "")
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
      assert {error.stage, error.reason, error.lacks} == {:open, :eperm, nil}
      assert Exception.message(error) =~ "open(2) was refused: a seccomp profile can be what"
    end

    test "names readlinkat(2), and does not blame another pid namespace", _c do
      switch = tmp_path!("fault")
      netns = netns!()
      pid = sleeper!(netns)
      server = start_injected!("readlinkat EPERM file:#{switch}")
      File.write!(switch, "")

      for {target, opts, stage} <- [
            {{:pid, pid}, [], :open},
            {{:pid, pid}, [close_on: :namespace_gone], :open},
            {{:path, "/proc/#{pid}/ns/net"}, [close_on: :namespace_gone], :watch},
            {{:name, netns}, [close_on: :namespace_gone], :open}
          ] do
        assert {:error, error} = NetlinkPort.open(server, :route, [netns: target] ++ opts)
        assert {target, error.stage, error.reason} == {target, stage, :eperm}
        assert Exception.message(error) =~ "readlinkat(2) was refused: a seccomp profile can be"
      end

      File.rm!(switch)
      assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    end

    test "names inotify(7) when a file cannot be watched", _c do
      for call <- ["inotify_init1", "inotify_add_watch"] do
        switch = tmp_path!("fault")
        server = start_injected!("#{call} EPERM file:#{switch}")
        File.write!(switch, "")
        opts = [netns: {:name, netns!()}, close_on: :namespace_gone]
        assert {:error, error} = NetlinkPort.open(server, :route, opts)
        assert {error.stage, error.reason, error.lacks} == {:watch, :eperm, nil}
        assert Exception.message(error) =~ "inotify(7) was refused: a seccomp profile can be"
      end
    end

    test "names the profile when a child of a helper with CAP_SYS_ADMIN may not join a user namespace",
         c do
      switch = tmp_path!("fault")
      server = start_injected!("setns EPERM file:#{switch}", user_namespaces: true)
      assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:pid, c.other})
      File.write!(switch, "")
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, c.other})
      assert {error.stage, error.reason, error.lacks} == {:setns, :eperm, nil}
      message = Exception.message(error)
      assert message =~ "setns(2) was refused, though the helper has what it takes: a seccomp"
      refute message =~ "another user"
    end

    test "names the profile with close_on:, and does not blame it without a filter", _c do
      switch = tmp_path!("fault")
      pid = sleeper!(netns!())
      server = start_injected!("pidfd_open EPERM file:#{switch}")
      File.write!(switch, "")

      for netns <- [{:pid, pid}, {:path, "/proc/#{pid}/ns/net"}] do
        opts = [netns: netns, close_on: :namespace_gone]
        assert {:error, error} = NetlinkPort.open(server, :route, opts)
        assert {error.stage, error.reason} == {:watch, :eperm}
        assert Exception.message(error) =~ "pidfd_open(2) was refused: a seccomp profile"
      end

      # A path needs no pidfd without the option.
      opts = [netns: {:path, "/proc/#{pid}/ns/net"}]
      assert {:ok, _socket} = NetlinkPort.open(server, :route, opts)

      unfiltered = %Privileges{capabilities: 0x1FFFFFFFFFF, seccomp: 0, user_namespace: :initial}

      for failure <- [{:setns, 1, "own"}, {:socket, 13, ""}, {:open, 13, "process 1"}] do
        message = Exception.message(Refusal.error(failure, {:route, {:pid, 1}}, unfiltered))
        refute message =~ "seccomp"
        assert message =~ "a security module (AppArmor, SELinux)"
      end

      missing = Refusal.error({:open, 38, "pidfd_open"}, {:route, {:pid, 1}}, unfiltered)
      refute Exception.message(missing) =~ "upgrade"
    end

    test "names the system call at the helper's start", _c do
      profile = "the seccomp profile of the container, or SystemCallFilter="

      for {fault, said} <- [
            {"seccomp EPERM from:1", "seccomp(2) was refused: " <> profile},
            {"seccomp EINVAL from:1", "seccomp(2) was refused: " <> profile},
            {"epoll_ctl EPERM always",
             "epoll_ctl: EPERM: Operation not permitted; a seccomp profile can be what refuses it"},
            {"epoll_create1 ENOSYS always",
             "epoll_create1: ENOSYS: Function not implemented; a seccomp profile can be what refuses it"},
            {"capset EPERM always",
             "capabilities could not be given up, capget(2) or capset(2); a seccomp profile can be what refuses it"}
          ] do
        command = ": | #{fixture!("inject")} #{fault} #{helper()} | cat"
        {output, 0} = System.cmd("sh", ["-c", command], stderr_to_stdout: true)
        assert output =~ "netlink_port: " <> said
      end
    end
  end

  test "a capability that the helper has, but that counts elsewhere, is not called missing", _c do
    # The kernel requires CAP_AUDIT_READ in the initial user namespace.
    helper = script!("exec unshare -Urn #{helper()} \"$@\"")
    server = start_server!(executable: helper, keep: [:audit_read])

    with {:error, error} <- NetlinkPort.open(server, :audit, groups: [1]) do
      assert error.lacks == nil
      message = Exception.message(error)

      assert message =~
               "refused, though the helper has CAP_AUDIT_READ: it counts in the helper's user names"
    end
  end

  test "inside `unshare -Ur` the error says that the helper could not return", c do
    pidfile = tmp_path!("pid")

    script =
      script!("""
      exec setpriv #{Enum.join(@nobody, " ")} unshare -Ur sh -c '
        unshare -n sleep 600 </dev/null >/dev/null 2>&1 &
        echo $! >&3
        exec #{public!(helper())} "$@"' sh "$@" 3> #{pidfile}
      """)

    server = start_server!(executable: script)
    pid = pidfile |> File.read!() |> String.trim() |> String.to_integer()
    on_exit(fn -> System.cmd("kill", ["-KILL", "#{pid}"], stderr_to_stdout: true) end)
    eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    assert {error.stage, error.reason, error.lacks} == {:setns, :eperm, nil}

    assert Exception.message(error) =~
             "the helper could not come back: its own network namespace belongs to"

    assert is_integer(c.other)
  end
end
