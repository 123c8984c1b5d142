defmodule Sample.LinksTest do
  use ExUnit.Case, async: true
  use NetlinkPort.Sandbox

  # The end of a killed helper is logged.
  @moduletag :capture_log

  setup :netlink_sandbox

  setup c do
    opts = [server: c.server, netns: c.netns, groups: [1], dump: [{18, <<0::128>>}]]
    monitor = start_supervised!({NetlinkPort.Monitor, opts})
    links = start_supervised!({Sample.Links, monitor: monitor, max_queue: 10})
    %{links: links, monitor: monitor}
  end

  # The table is updated by messages, so that the test asks until it is right.
  defp assert_names(links, wanted, tries \\ 500) do
    names = Sample.Links.names(links)

    cond do
      names == wanted ->
        :ok

      tries == 0 ->
        flunk("expected #{inspect(wanted)}, got: #{inspect(names)}")

      true ->
        Process.sleep(10)
        assert_names(links, wanted, tries - 1)
    end
  end

  defp bridge!(c, name), do: run!(c.sandbox, "ip", ["link", "add", name, "type", "bridge"])

  # An addition and a deletion, for a fault in which both are lost.
  defp replace!(c) do
    bridge!(c, "br1")
    run!(c.sandbox, "ip", ["link", "del", "br0"])
  end

  test "it knows what there is, and follows changes", c do
    assert_names(c.links, ["lo"])
    bridge!(c, "br0")
    assert_names(c.links, ["br0", "lo"])
    run!(c.sandbox, "ip", ["link", "del", "br0"])
    assert_names(c.links, ["lo"])
  end

  test "it survives an overrun", c do
    bridge!(c, "br0")
    assert_names(c.links, ["br0", "lo"])
    fault(c.sandbox, {:overrun, 10}, of: c.monitor, lose: fn -> replace!(c) end)
    assert_names(c.links, ["br1", "lo"])
  end

  test "it survives a restart", c do
    bridge!(c, "br0")
    assert_names(c.links, ["br0", "lo"])
    # A stopped helper delivers nothing, and its sockets end with it.
    fault(c.sandbox, :helper_stopped)
    replace!(c)
    fault(c.sandbox, :helper_killed)
    assert_names(c.links, ["br1", "lo"])
  end

  test "it survives that it is behind", c do
    bridge!(c, "br0")
    assert_names(c.links, ["br0", "lo"])
    monitor = c.monitor
    {:ok, ^monitor} = NetlinkPort.Monitor.subscribe(monitor)
    :sys.suspend(c.links)
    for mtu <- 1301..1330, do: run!(c.sandbox, "ip", ["link", "set", "br0", "mtu", "#{mtu}"])
    replace!(c)
    # RTM_DELLINK, of br0: the monitor has sent or held back all that came before.
    assert_receive {:netlink_event, ^monitor, <<_::32, 17::16-native, _::binary>>}, 5_000
    :sys.resume(c.links)
    assert_names(c.links, ["br1", "lo"])
  end

  @tag netlink_sandbox: [path: true]
  test "it survives a deleted namespace, and says that it knows nothing meanwhile", c do
    bridge!(c, "br0")
    assert_names(c.links, ["br0", "lo"])
    fault(c.sandbox, :namespace_gone)
    assert_names(c.links, :unknown)
    fault(c.sandbox, :namespace_back)
    assert_names(c.links, ["lo"])
  end
end
