defmodule NetlinkPort.ExamplesTest do
  # Each example as a user runs it.
  use NetlinkPort.Case, async: true

  @examples Path.expand("../examples", __DIR__)

  # In a VM of its own, in this build.
  defp run(example, arguments) do
    paths = for path <- :code.get_path(), do: ["-pa", List.to_string(path)]
    script = Path.join(@examples, example)
    arguments = List.flatten(paths) ++ [script | arguments]
    System.cmd("elixir", arguments, stderr_to_stdout: true, env: [{"LC_ALL", "C.UTF-8"}])
  end

  test "links.exs lists what the namespace has" do
    netns = netns!()
    ip!(["-n", netns, "addr", "add", "10.1.2.3/24", "dev", "lo"])
    assert {output, 0} = run("links.exs", ["--netns", netns])
    assert output =~ "lo"
    assert output =~ "10.1.2.3/24"
    assert {output, 1} = run("links.exs", ["--netns", "no-such-namespace"])
    assert output =~ "there is no such file"
  end

  test "monitor.exs follows what happens" do
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

  test "ext_ack.exs shows what the kernel says" do
    assert {output, 0} = run("ext_ack.exs", ["--netns", netns!()])
    assert output =~ "it objects to attribute 13 at byte 32"
    assert output =~ "policy: %{"
    assert output =~ "Local address is not supplied"
    refute output =~ "taken"
  end
end
