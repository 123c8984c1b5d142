defmodule NetlinkPort.RestartTest do
  # Helpers that end repeatedly, and executables that change or cannot start.
  use NetlinkPort.Case, async: true

  @moduletag :root

  defp supervisor!(opts) do
    child = {NetlinkPort, opts}
    limits = [strategy: :one_for_one, max_restarts: 3, max_seconds: 60]

    start_supervised!(%{
      id: make_ref(),
      start: {Supervisor, :start_link, [[child], limits]},
      restart: :temporary
    })
  end

  defp kill!(name) do
    server = Process.whereis(name)
    signal!(os_pid(name), :KILL)
    eventually!(fn -> Process.whereis(name) != server end)
  end

  test "restarts end at the supervisor's limit: callers get ESRCH, and nothing stays behind" do
    supervisor = supervisor!(name: :stormy)
    monitor = Process.monitor(supervisor)

    helpers =
      for _ <- 1..3 do
        helper = os_pid(:stormy)
        {:ok, socket} = NetlinkPort.open(:stormy, :route, [])
        kill!(:stormy)
        assert_receive {:netlink_closed, ^socket, {:helper_exit, 137}}, within(5_000)
        eventually!(fn -> Process.whereis(:stormy) != nil end)
        helper
      end

    last = os_pid(:stormy)
    kill!(:stormy)
    assert_receive {:DOWN, ^monitor, :process, ^supervisor, :shutdown}, within(5_000)
    assert {:error, error} = NetlinkPort.open(:stormy, :route, [])
    assert {error.stage, error.reason} == {:thread, :esrch}
    for helper <- [last | helpers], do: eventually!(fn -> not running?(helper) end)
  end

  test "the executable is replaced: the helper runs on, and the next start uses the new file" do
    executable = tmp_path!("netlink_port")
    File.cp!(helper(), executable)
    supervisor!(name: :replaced, executable: executable)
    {:ok, socket} = NetlinkPort.open(:replaced, :route, active: false)

    marker = tmp_path!("marker")
    new = script!("touch #{marker}; exec #{helper()} \"$@\"")
    File.rename!(new, executable)
    assert "lo" in Rtnl.link_names(socket)
    refute File.exists?(marker)

    kill!(:replaced)
    eventually!(fn -> Process.whereis(:replaced) != nil end)
    assert {:ok, _socket} = NetlinkPort.open(:replaced, :route, [])
    assert File.exists?(marker)
  end

  test "the executable is removed: the helper runs on, and the next start is ENOENT" do
    executable = tmp_path!("netlink_port")
    File.cp!(helper(), executable)
    supervisor = supervisor!(name: :removed, executable: executable)
    {:ok, socket} = NetlinkPort.open(:removed, :route, active: false)
    File.rm!(executable)
    assert "lo" in Rtnl.link_names(socket)

    monitor = Process.monitor(supervisor)
    signal!(os_pid(:removed), :KILL)
    assert_receive {:netlink_closed, ^socket, {:helper_exit, 137}}, within(5_000)
    # Tried as often as the supervisor allows, and not for ever.
    assert_receive {:DOWN, ^monitor, :process, ^supervisor, :shutdown}, within(5_000)
    start = {NetlinkPort, name: nil, executable: executable}
    assert {:error, {%Error{} = error, _child}} = start_supervised(start)
    assert {error.stage, error.reason, error.subject} == {:thread, :enoent, executable}
  end

  test "without /proc the helper does not start, and says so" do
    script =
      script!("exec unshare -m sh -c 'mount -t tmpfs none /proc; exec #{helper()}' 2> $0.err")

    start = {NetlinkPort, name: nil, executable: script}
    assert {:error, {%Error{} = error, _child}} = start_supervised(start)
    assert error.subject =~ "ended with exit status 71"
    on_exit(fn -> File.rm(script <> ".err") end)
    assert File.read!(script <> ".err") =~ "cannot open /proc/self/ns/net: ENOENT"
  end

  test "with a full standard error the helper runs, and ends in order" do
    fifo = tmp_path!("fifo")
    {_output, 0} = System.cmd("mkfifo", [fifo])
    fill = "dd if=/dev/zero of=#{fifo} oflag=nonblock bs=4096 count=64 2> /dev/null"

    server =
      start_server!(executable: script!("exec 3<> #{fifo}; #{fill}; exec #{helper()} 2>&3"))

    pid = os_pid(server)
    {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    assert "lo" in Rtnl.link_names(socket)
    assert GenServer.stop(server) == :ok
    eventually!(fn -> not running?(pid) end)
  end

  # Deadlines use the monotonic clock, and the helper has no deadlines, so that a jump of the wall clock changes
  # nothing. A capture reads the wall clock once, and its time stamps count from there.
  test "no code reads the wall clock, except a capture, once" do
    root = Path.expand("../..", __DIR__)
    clock = ~r/system_time|os_time|utc_now|SystemTime|CLOCK_REALTIME|gettimeofday/

    looks =
      for file <- Path.wildcard(root <> "/{elixir,src}/**/*.{ex,rs}"),
          [look] <- Regex.scan(clock, File.read!(file)),
          do: {Path.basename(file), look}

    assert looks == [{"capture.ex", "os_time"}]
  end
end
