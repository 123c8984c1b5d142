defmodule NetlinkPort.AttachTest do
  # The figures of an application on another node, and the Mix tasks that show them.
  use NetlinkPort.Case, async: false

  import ExUnit.CaptureIO

  alias NetlinkPort.Top
  alias NetlinkPort.Operations.Attach

  @moduletag :root

  setup do
    :ok = NetlinkPort.Nodes.distributed!()
    arguments = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    options = %{name: :peer.random_name(), host: ~c"127.0.0.1", args: arguments, longnames: true}
    {:ok, peer, node} = :peer.start(options)
    on_exit(fn -> if Process.alive?(peer), do: :peer.stop(peer) end)
    {:ok, _} = :erpc.call(node, :application, :ensure_all_started, [:elixir])
    %{node: node, peer: peer}
  end

  defp start_there!(node, name) do
    Node.spawn(node, NetlinkPort.Remote, :run_a_server, [self(), name])
    assert_receive {:started, server}, within(10_000)
    server
  end

  test "stats/1 works to another node and on it", %{node: node} do
    name = :"attach_#{System.unique_integer([:positive])}"
    server = start_server!(name: name)
    {:ok, socket} = NetlinkPort.open(name, :route, active: false)
    assert {:ok, [_lo]} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)
    {:ok, here} = NetlinkPort.stats(name)
    {:ok, there} = :erpc.call(node, NetlinkPort, :stats, [{name, node()}])
    assert there.server == server
    assert [%{sent: 1, received: 2}] = there.sockets
    assert there.sockets == here.sockets
    assert there.rss != nil
    assert {:ok, %{sent: 1}} = :erpc.call(node, NetlinkPort, :stats, [socket])
  end

  test "an application's servers and sockets are shown from another node", %{
    node: node,
    peer: peer
  } do
    server = start_there!(node, MyApp.There)
    {:ok, socket} = NetlinkPort.open(server, :route, owner: server)
    assert Attach.node("#{node}", nil) == {:ok, node}
    text = capture_io(fn -> assert Top.run(node: node, once: true, interval: 100) == :ok end)
    assert text =~ "netlink_port on #{node}: servers 1, sockets 1,"
    # Called as on that node.
    assert text =~ ~r/^ +#{socket.handle} route +host +MyApp.There /m

    # The Mix tasks, too.
    text =
      capture_io(fn -> Mix.Tasks.NetlinkPort.Top.run(~w(--once --interval 100 --node #{node})) end)

    assert text =~ "MyApp.There"

    text =
      capture_io(fn ->
        Mix.Tasks.NetlinkPort.Doctor.run(~w(--netns /proc/self/ns/net --node #{node}))
      end)

    assert text =~ "MyApp.There: helper "
    assert text =~ "0 failing"

    # The view of a node that goes away ends, and says so.
    size = fn ->
      if Process.alive?(peer), do: :peer.stop(peer)
      {24, 80}
    end

    capture_io(fn -> send(self(), Top.run(node: node, interval: 100, size: size)) end)
    assert_received {:error, sentence}
    assert sentence =~ "#{node} cannot say"
  end

  test "a node that cannot be reached is reported in a sentence", %{node: node} do
    assert {:error, sentence} = Attach.node("nowhere", nil)
    assert sentence =~ "NAME@HOST"
    assert {:error, sentence} = Attach.node("nowhere@127.0.0.1", nil)
    assert sentence =~ "cannot reach nowhere@127.0.0.1"
    assert {:error, sentence} = Attach.call(node, NetlinkPort.NotThere, :sample, [])
    assert sentence =~ "no netlink_port, or an older one"

    for arguments <- [
          [],
          ["--bogus"],
          ["x"],
          ~w(--interval 5 --node a@b),
          ~w(--node nowhere@127.0.0.1)
        ] do
      text =
        capture_io(:stderr, fn ->
          assert {:shutdown, 2} = catch_exit(Mix.Tasks.NetlinkPort.Top.run(arguments))
        end)

      assert text =~ "netlink_port.top: "
    end
  end

  test "a name or a cookie that no node can have is refused in a sentence", %{node: node} do
    long = String.duplicate("a", 254) <> "@b"

    for name <- [long, "", "a@", "@b", "a@b@c", <<255, "@b">>] do
      assert {:error, sentence} = Attach.node(name, nil)
      assert sentence =~ "expected --node NAME@HOST, of at most 255 characters, got: "
    end

    for cookie <- [String.duplicate("c", 256), "", <<255>>] do
      assert {:error, sentence} = Attach.node("#{node}", cookie)
      assert sentence == "expected --cookie COOKIE, of 1 to 255 characters"
    end

    for task <- [Mix.Tasks.NetlinkPort.Doctor, Mix.Tasks.NetlinkPort.Top],
        arguments <- [["--node", long], ["--node", "#{node}", "--cookie", long]] do
      text =
        capture_io(:stderr, fn -> assert {:shutdown, 2} = catch_exit(task.run(arguments)) end)

      # One line, which is red on a terminal.
      assert text =~ ~r/^(\e\[\d+m)*netlink_port\.(doctor|top): expected --(node|cookie) .*\n$/
    end
  end
end
