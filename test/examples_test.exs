defmodule NetlinkPort.ExamplesTest do
  # Each example, run as a user runs it.
  use NetlinkPort.Case, async: true

  @examples Path.expand("../examples", __DIR__)

  # In another VM, with this build.
  defp run(example, arguments) do
    {program, arguments} = command(example, arguments)
    System.cmd(program, arguments, stderr_to_stdout: true, env: [{"LC_ALL", "C.UTF-8"}])
  end

  defp command(example, arguments) do
    paths = for path <- :code.get_path(), do: ["-pa", List.to_string(path)]
    {"elixir", List.flatten(paths) ++ [Path.join(@examples, example) | arguments]}
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

  test "monitor.exs shows the changes, until it is ended" do
    netns = netns!()
    {program, arguments} = command("monitor.exs", ["--netns", netns])
    opts = [:binary, :stderr_to_stdout, args: arguments, env: [{~c"LC_ALL", ~c"C.UTF-8"}]]
    port = Port.open({:spawn_executable, System.find_executable(program)}, opts)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> as_root("kill", ["-KILL", "#{os_pid}"]) end)
    assert change_until_shown(port, netns, 1, "") =~ ~r/^-- \d+ links; what follows are changes$/m
  end

  test "monitor.exs ends when its time is over" do
    assert {_output, 0} = run("monitor.exs", ["--netns", netns!(), "--for", "0"])
  end

  # The example sees only the changes that are made after it has subscribed.
  defp change_until_shown(port, netns, n, output) do
    ip!(["-n", netns, "addr", "add", "10.9.0.#{n}/32", "dev", "lo"])
    output = output <> read(port)

    if output =~ ~r/^address 10\.9\.0\.\d+/m,
      do: output,
      else: change_until_shown(port, netns, n + 1, output)
  end

  defp read(port) do
    receive do
      {^port, {:data, data}} -> data
    after
      100 -> ""
    end
  end

  test "ext_ack.exs shows the kernel's extended ack" do
    assert {output, 0} = run("ext_ack.exs", ["--netns", netns!()])
    assert output =~ "it objects to attribute 13 at byte 32"
    assert output =~ "policy: %{"
    # Before Linux 6.3 the kernel says nothing of it.
    assert output =~
             ~r/an address without an address\n.*EINVAL: .*(Local address is not supplied|invalid argument)/

    assert output =~ "Invalid route type"
    refute output =~ "taken"
  end

  @tag :nftables
  test "container.exs gives a namespace an interface, a route and masquerading" do
    {host, blue, red} = {netns!(), netns!(), netns!()}
    add = &run("container.exs", ["--netns", host, "--container", &1, "--address", &2])
    assert {output, 0} = add.(blue, "10.88.0.5")
    assert output =~ "eth0 of #{blue} has the address 10.88.0.5"
    assert {_output, 0} = add.(red, "10.88.0.6")

    assert shown(["-n", blue, "route", "show", "default"]) =~
             ~s("gateway":"10.88.0.1","dev":"eth0")

    # The gateway and the other container answer, although nobody listens.
    for address <- ["10.88.0.1", "10.88.0.6"] do
      connect = ["bash", "-c", "echo >/dev/tcp/#{address}/1"]
      assert {refused, _status} = as_root("ip", ["netns", "exec", blue | connect])
      assert refused =~ "refused"
    end

    assert {rules, 0} = as_root("ip", ["netns", "exec", host, "nft", "list", "ruleset"])
    assert [_once] = Regex.scan(~r/oifname != "cni0" masquerade/, rules)

    # The interface is there.
    assert {output, 1} = add.(blue, "10.88.0.5")
    assert output =~ "EEXIST"
  end

  # A rule that queues datagrams to port 5353, by the tool that this kernel has the target for.
  defp queue!(netns) do
    rule = ~w(OUTPUT -p udp --dport 5353 -j NFQUEUE --queue-num 7)
    output = "add table ip t; add chain ip t o { type filter hook output priority 0; };"
    nft = ["nft", output <> "add rule ip t o udp dport 5353 queue num 7"]
    tools = [nft, ["iptables-nft", "-A" | rule], ["iptables-legacy", "-A" | rule]]

    Enum.any?(tools, fn tool -> match?({_, 0}, as_root("ip", ["netns", "exec", netns | tool])) end)
  end

  # How many datagrams came to a port that no process listens to.
  defp arrived(netns) do
    {snmp, 0} = as_root("ip", ["netns", "exec", netns, "cat", "/proc/net/snmp"])
    [_, no_ports] = Regex.run(~r/^Udp: \d+ (\d+)/m, snmp)
    String.to_integer(no_ports)
  end

  test "nfqueue.exs accepts packets, and drops those with a text" do
    netns = netns!()

    if queue!(netns) do
      {program, arguments} =
        command("nfqueue.exs", ["--netns", netns, "--queue", "7", "--drop", "secret"])

      opts = [:binary, :stderr_to_stdout, args: arguments, env: [{~c"LC_ALL", ~c"C.UTF-8"}]]
      port = Port.open({:spawn_executable, System.find_executable(program)}, opts)
      {:os_pid, os_pid} = Port.info(port, :os_pid)
      on_exit(fn -> as_root("kill", ["-KILL", "#{os_pid}"]) end)
      shown!(port, "waiting")

      say =
        &as_root("ip", [
          "netns",
          "exec",
          netns,
          "bash",
          "-c",
          "echo #{&1} >/dev/udp/127.0.0.1/5353"
        ])

      {_output, _status} = say.("secret")
      shown!(port, "dropped: 35 bytes")
      {_output, _status} = say.("hello")
      shown!(port, "accepted: 34 bytes")
      # The verdict may be on its way.
      eventually!(fn -> arrived(netns) == 1 end)

      # The queue is taken.
      assert {output, 1} = run("nfqueue.exs", ["--netns", netns, "--queue", "7"])
      assert output =~ "EPERM"
    else
      IO.puts("No target NFQUEUE in this kernel: nfqueue.exs is not tried.")
    end
  end

  defp shown!(port, text) do
    deadline = System.monotonic_time(:millisecond) + within(30_000)
    shown!(port, text, "", deadline)
  end

  defp shown!(port, text, output, deadline) do
    output = output <> read(port)

    cond do
      output =~ text -> :ok
      System.monotonic_time(:millisecond) > deadline -> flunk("no #{inspect(text)} in #{output}")
      true -> shown!(port, text, output, deadline)
    end
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
