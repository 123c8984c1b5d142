defmodule Sample.LinksTest do
  use ExUnit.Case, async: true
  use NetlinkPort.Sandbox

  # The end of a killed helper is logged.
  @moduletag :capture_log

  setup :netlink_sandbox

  setup c do
    opts = [server: c.server, netns: c.netns, groups: [1], dump: [{18, <<0::128>>}]]
    monitor = start_supervised!({NetlinkPort.Monitor, opts})
    %{links: start_supervised!({Sample.Links, monitor: monitor}), monitor: monitor}
  end

  # The table is updated by messages, so that the test asks until it is right.
  defp assert_names(links, wanted, tries \\ 500) do
    names = Sample.Links.names(links)

    cond do
      names == wanted -> :ok
      tries == 0 -> flunk("expected #{inspect(wanted)}, got: #{inspect(names)}")
      true -> Process.sleep(10) && assert_names(links, wanted, tries - 1)
    end
  end

  defp bridge!(c, name), do: run!(c.sandbox, "ip", ["link", "add", name, "type", "bridge"])

  test "it knows what there is, and follows changes", c do
    assert_names(c.links, ["lo"])
    bridge!(c, "br0")
    assert_names(c.links, ["br0", "lo"])
    run!(c.sandbox, "ip", ["link", "del", "br0"])
    assert_names(c.links, ["lo"])
  end

  test "it survives an overrun", c do
    assert_names(c.links, ["lo"])
    fault(c.sandbox, {:overrun, 5}, of: c.monitor, lose: fn -> bridge!(c, "br0") end)
    assert_names(c.links, ["br0", "lo"])
  end

  test "it survives a restart", c do
    assert_names(c.links, ["lo"])
    fault(c.sandbox, :helper_killed)
    bridge!(c, "br0")
    assert_names(c.links, ["br0", "lo"])
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
