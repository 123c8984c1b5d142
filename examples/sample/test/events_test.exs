defmodule Sample.EventsTest do
  use ExUnit.Case, async: true
  use NetlinkPort.Sandbox

  # The end of a killed helper is logged.
  @moduletag :capture_log

  setup :netlink_sandbox

  setup c do
    test = self()
    opts = [server: c.server, netns: c.netns, report: &send(test, {:line, &1})]
    spec = Supervisor.child_spec({Sample.Events, opts}, restart: :temporary)
    events = start_supervised!(spec)
    assert_receive {:line, "watching the links of " <> _}, 5_000
    %{events: events}
  end

  test "it tells of links that come and go", c do
    run!(c.sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
    assert_receive {:line, "new link br0"}, 5_000
    run!(c.sandbox, "ip", ["link", "del", "br0"])
    assert_receive {:line, "deleted link br0"}, 5_000
  end

  test "it tells what it has missed", c do
    fault(c.sandbox, {:overrun, 3}, of: c.events)
    assert_receive {:line, "missed 3 datagrams"}, 5_000
  end

  test "it ends with its socket, for its supervisor to start it again", c do
    monitor = Process.monitor(c.events)
    fault(c.sandbox, :helper_killed)
    assert_receive {:DOWN, ^monitor, :process, _pid, {:helper_exit, _status}}, 5_000
  end

  @tag netlink_sandbox: [stand_in: true]
  test "it does not start where it may not open the socket", c do
    fault(c.sandbox, {:open_refused, :eperm})
    Process.flag(:trap_exit, true)
    assert {:error, sentence} = Sample.Events.start_link(server: c.server, netns: c.netns)
    assert sentence =~ "EPERM"
  end
end
