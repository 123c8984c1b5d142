defmodule NetlinkPort.ExamplesTest do
  # Each example, run as a user runs it.
  use NetlinkPort.Case, async: true

  @examples Path.expand("../examples", __DIR__)

  # In another VM, with this build.
  defp run(example, arguments) do
    paths = for path <- :code.get_path(), do: ["-pa", List.to_string(path)]
    script = Path.join(@examples, example)
    arguments = List.flatten(paths) ++ [script | arguments]
    System.cmd("elixir", arguments, stderr_to_stdout: true, env: [{"LC_ALL", "C.UTF-8"}])
  end

  test "links.exs lists the links of the namespace" do
    netns = netns!()
    ip!(["-n", netns, "addr", "add", "10.1.2.3/24", "dev", "lo"])
    assert {output, 0} = run("links.exs", ["--netns", netns])
    assert output =~ "lo"
    assert output =~ "10.1.2.3/24"
    assert {output, 1} = run("links.exs", ["--netns", "no-such-namespace"])
    assert output =~ "there is no such file"
  end

  test "monitor.exs shows the changes" do
    netns = netns!()
    task = Task.async(fn -> run("monitor.exs", ["--netns", netns, "--for", "3"]) end)
    {output, 0} = change_until_done(task, netns, 1)
    assert output =~ ~r/^address 10\.9\.0\.\d+/m
  end

  defp change_until_done(task, netns, n) do
    ip!(["-n", netns, "addr", "add", "10.9.0.#{n}/32", "dev", "lo"])
    Task.yield(task, 100) |> done(task, netns, n)
  end

  defp done({:ok, outcome}, _task, _netns, _n), do: outcome
  defp done(nil, task, netns, n), do: change_until_done(task, netns, n + 1)

  test "ext_ack.exs shows the kernel's extended ack" do
    assert {output, 0} = run("ext_ack.exs", ["--netns", netns!()])
    assert output =~ "it objects to attribute 13 at byte 32"
    assert output =~ "policy: %{"
    assert output =~ "Local address is not supplied"
    refute output =~ "taken"
  end

  # Fields of a link, from the JSON of ip(8), which this Elixir has no decoder for.
  defp shown(arguments) do
    {output, 0} = as_root("ip", ["-j" | arguments])
    output
  end

  for {how, options} <- [{"a socket", []}, {"a connection", ["--connection"]}] do
    test "move_link.exs moves the peer of a veth by a pin, and back, over #{how}" do
      {blue, red} = {netns!(), netns!()}
      ip!(["-n", blue, "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
      move = &run("move_link.exs", &1 ++ unquote(options) ++ ["v1"])
      assert {output, 0} = move.(["--netns", blue, "--to", red, "--nsid", "7"])
      assert output =~ "v1 is in #{red}, which is nsid 7 in #{blue}"
      assert shown(["-n", red, "link", "show", "v1"]) =~ ~s("ifname":"v1")
      assert shown(["-n", blue, "link", "show", "v0"]) =~ ~s("link_netnsid":7)
      assert shown(["-n", blue, "link", "show"]) =~ ~r/"ifname":"v0"/
      refute shown(["-n", blue, "link", "show"]) =~ ~r/"ifname":"v1"/
      assert shown(["-n", blue, "netns", "list-id"]) =~ ~r/"nsid":7,"name":"#{red}"/

      # The link has left this namespace.
      assert {output, 1} = move.(["--netns", blue, "--to", red, "--nsid", "8"])
      assert output =~ "ENODEV"

      assert {output, 0} = move.(["--netns", red, "--to", blue])
      assert output =~ ~r/v1 is in #{blue}, which is nsid \d+ in #{red}/
      assert shown(["-n", blue, "link", "show", "v1"]) =~ ~s("ifname":"v1")
      refute shown(["-n", red, "link", "show"]) =~ ~s("ifname":"v1")
      refute shown(["-n", blue, "link", "show", "v0"]) =~ "link_netnsid"
    end
  end
end
