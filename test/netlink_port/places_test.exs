defmodule NetlinkPort.PlacesTest do
  # A sentence about a fault has to be true in the place of the fault. VMs in each place cause each fault, and
  # return the sentences.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{PlaceFaults, Places}

  @moduletag root: true, userns: true, init_user_namespace: true

  @faults [:environment, :proc, :start, :start_built, :stuck, :doctor, :kept]

  # One VM for each place. It causes all faults, and the tests check the sentences.
  setup_all do
    places = Places.setup!()
    stranger!()

    told =
      Places.places()
      |> Task.async_stream(
        fn place ->
          {told, _output} = Places.call(places, place, PlaceFaults, :told, [place, @faults])
          {place, told}
        end,
        timeout: within(120_000),
        max_concurrency: 2
      )
      |> Map.new(fn {:ok, told} -> told end)

    %{places: places, told: told}
  end

  # A process of root in a network namespace of its own, which an ordinary user cannot examine. The sentences about
  # processes that cannot be examined must not depend on what else runs on this machine. It ends with its port.
  defp stranger! do
    unshare = System.find_executable("unshare")
    port = Port.open({:spawn_executable, unshare}, [:binary, args: ["--net", "cat"]])
    Port.command(port, "there")
    assert_receive {^port, {:data, "there"}}, within(10_000)
  end

  # The sentence of a fault in each place.
  defp said(c, fault), do: for({place, told} <- c.told, into: %{}, do: {place, told[fault]})

  test "the VM recognises each place", c do
    assert said(c, :environment) == %{
             root: {:own, 0, :initial, false, true},
             user: {:own, 0, :initial, false, true},
             user_namespace: {:own, 0, :other, false, true},
             hidepid1: {:own, 1, :initial, false, true},
             hidepid2: {:own, 2, :initial, false, true},
             foreign_proc: {:foreign, 0, :initial, false, true},
             pid_namespace: {:own, 0, :initial, false, true},
             unbounded_root: {:own, 0, :initial, false, false},
             unbounded_user: {:own, 0, :initial, false, false},
             no_new_privs: {:own, 0, :initial, true, true},
             nosuid: {:own, 0, :initial, false, true}
           }
  end

  test "the VM knows which processes /proc shows, also without reading the rest of the environment",
       c do
    for {place, environment} <- said(c, :environment) do
      found = {elem(environment, 0), place in [:hidepid1, :hidepid2]}
      assert {place, said(c, :proc)[place]} == {place, found}
    end
  end

  test "a stuck helper is killed, whatever /proc shows of it", c do
    for {place, said} <- said(c, :stuck),
        place != :unbounded_user,
        do: assert({place, said} == {place, :gone})
  end

  test "System.stop returns with a stopped helper that /proc hides, and a full queue", c do
    for place <- [:hidepid1, :hidepid2] do
      {output, status} = Places.run(c.places, place, PlaceFaults, :stop_full, [place])
      assert {place, status} == {place, 3}, output
      [_, os_pid] = Regex.run(~r/^helper (\d+)$/m, output)
      refute running?(os_pid)
    end
  end

  # A pattern for each place. A place without a pattern has no sentence.
  defp assert_said(told, patterns) do
    for {place, said} <- told do
      said = inspect(said, limit: :infinity, printable_limit: :infinity)

      case patterns[place] do
        nil -> assert {place, said} == {place, "nil"}
        pattern -> assert said =~ pattern, "#{place}: #{said}"
      end
    end
  end

  test "a helper starts in each place, with the capabilities that it has there; the error says where it cannot run",
       c do
    all = [:net_admin, :sys_ptrace, :sys_admin]

    for {place, capabilities} <- [
          root: all,
          foreign_proc: all,
          pid_namespace: all,
          user_namespace: all,
          user: [:net_admin, :sys_admin],
          hidepid1: [:net_admin, :sys_admin],
          hidepid2: [:net_admin, :sys_admin],
          unbounded_root: [:net_admin, :sys_ptrace],
          no_new_privs: [],
          nosuid: []
        ],
        do: assert({place, said(c, :start)[place]} == {place, {:ok, capabilities}})

    said = said(c, :start).unbounded_user

    assert said =~
             "installed was not run, execve(2) says EPERM: a capability of the file is not in the bounding set"

    assert said =~
             "of this VM: CAP_SYS_ADMIN: EPROTO: the container has to allow it (--cap-add SYS_ADMIN)"

    assert said =~
             "`netns: :host` needs no capability, and works with the helper of the build, #{c.places.built}"

    # The helper of the build starts there.
    for {place, said} <- said(c, :start_built), do: assert({place, elem(said, 0)} == {place, :ok})
  end

  # The doctor's line about one thing, with its remedy.
  defp doctor(c, about) do
    for {place, checks} <- said(c, :doctor), into: %{} do
      {place,
       Enum.find_value(checks, fn {_mark, line, remedy} ->
         if line =~ about, do: "#{line} -> #{remedy}"
       end)}
    end
  end

  test "the doctor names the true cause of a missing CAP_SYS_ADMIN in each place", c do
    bounding =
      "CAP_SYS_ADMIN is not in the bounding set of this VM (CapBnd of /proc/self/status): the container"

    no_new_privs =
      "-> this VM runs under no_new_privs, so that file capabilities do not count: start it without"

    nosuid =
      "-> it lies on #{c.places.folder}, which is mounted nosuid, so that file capabilities do not count"

    assert_said(doctor(c, "without CAP_SYS_ADMIN"), %{
      unbounded_root: bounding,
      no_new_privs: no_new_privs,
      nosuid: nosuid
    })

    # The remedy never is to install a helper that is installed, or to become root for root.
    for {_place, said} <- doctor(c, "without CAP_SYS_ADMIN"),
        said != nil,
        do: refute(said =~ ~r/mix netlink_port.install|as root/)

    assert_said(doctor(c, "do not count"), %{
      no_new_privs: "these capabilities do not count: this VM runs under no_new_privs",
      nosuid:
        "these capabilities do not count: it lies on #{c.places.folder}, which is mounted nosuid"
    })

    assert_said(doctor(c, "was not run"), %{
      unbounded_user:
        "execve(2) says EPERM: a capability of the file is not in the bounding set of this VM: CAP_SYS"
    })
  end

  test "the doctor says why a helper may not leave its namespace, and when its filter cannot be seen",
       c do
    assert_said(doctor(c, "cannot leave its home"), %{
      unbounded_root: "`netns: :host` works as it is",
      no_new_privs: "`netns: :host` works as it is",
      nosuid: "`netns: :host` works as it is",
      user_namespace:
        "this VM runs in a user namespace of its own, and that network namespace belongs to another"
    })

    assert_said(doctor(c, "seccomp filter"), %{
      hidepid1:
        ~r"/proc/\d+/status cannot be read -> look as root, or mount /proc without hidepid",
      hidepid2:
        ~r"/proc/\d+/status cannot be read -> look as root, or mount /proc without hidepid",
      foreign_proc:
        "/proc is that of another pid namespace -> look with a /proc of this pid namespace"
    })
  end

  test "the doctor says that only our sockets hold a namespace only where it sees all other processes",
       c do
    cannot_tell = fn why -> ~r/#{why}; so it cannot tell whether anything else keeps it alive/ end

    assert_said(said(c, :kept), %{
      root: "is alive by our sockets alone",
      unbounded_root: "is alive by our sockets alone",
      hidepid1: cannot_tell.("/proc is mounted with hidepid=1"),
      hidepid2: cannot_tell.("/proc is mounted with hidepid=2"),
      foreign_proc: cannot_tell.("/proc is that of another pid namespace"),
      pid_namespace: cannot_tell.("processes of other pid namespaces are not seen from here"),
      user: "cannot tell",
      unbounded_user: "cannot tell",
      user_namespace: "cannot tell",
      no_new_privs: "cannot tell",
      nosuid: "cannot tell"
    })
  end

  # 60 pipes of 1 MiB leave 1,024 pages of pipe-user-pages-soft, which is 16,384 by default.
  @spend "for (1..60) { pipe(my $r, my $w) or die; fcntl($w, 1031, 1 << 20) or die; push @kept, $r, $w }"

  @tag :pipes
  test "new pipes keep the usual size while helpers run", c do
    prefix = ["perl", "-e", @spend <> " exit(system(@ARGV) >> 8)"]
    {sizes, _output} = Places.call(c.places, :user, PlaceFaults, :pipe_size, [8], prefix)
    assert sizes == {65_536, 524_288}
  end

  describe "without a shell" do
    defp stuck!(c, shell, options) do
      prefix = ~w(unshare -m --propagation private)
      Places.call(c.places, :root, PlaceFaults, :stuck_without_shell, [shell, options], prefix)
    end

    test "kill(1) or the helper's own executable kills a stuck helper", c do
      # A program that is no shell, a shell that fails, a file that cannot be run.
      for {shell, kill?} <- [{"/bin/true", true}, {"/bin/cat", false}, {"/dev/null", false}] do
        {said, output} = stuck!(c, shell, kill?: kill?, helper?: true)
        assert {shell, kill?, said} == {shell, kill?, {false, true}}
        assert output =~ "did not answer and was killed"
      end
    end

    test "and without another way to kill the log does not say that the helper was killed; the server tries again",
         c do
      {said, output} = stuck!(c, "/bin/true", kill?: false, helper?: false)
      assert said == {true, true}

      assert output =~
               ~r/helper \d+ did not answer, and could not be killed yet: neither a shell, kill\(1\) nor /

      assert output =~ ~r/helper \d+ lives on without its server, and could not be killed: /
      refute output =~ "was killed"
    end
  end
end
