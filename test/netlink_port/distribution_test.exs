defmodule NetlinkPort.DistributionTest do
  # Calls and owners on another node: they go through the server.
  use NetlinkPort.Case, async: false

  @moduletag :root

  setup do
    System.cmd("epmd", ["-daemon"])
    name = :"nlp#{System.pid()}@127.0.0.1"
    unless Node.alive?(), do: {:ok, _} = Node.start(name, :longnames)
    arguments = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    options = %{name: :peer.random_name(), host: ~c"127.0.0.1", args: arguments, longnames: true}
    {:ok, peer, node} = :peer.start(options)
    on_exit(fn -> if Process.alive?(peer), do: :peer.stop(peer) end)
    {:ok, _} = :erpc.call(node, :application, :ensure_all_started, [:elixir])
    %{node: node, peer: peer}
  end

  test "a process of another node opens, sends, receives and sets options", %{node: node} do
    netns = netns!()
    name = :"distributed_#{System.unique_integer([:positive])}"
    start_server!(name: name)
    server = {name, node()}

    assert {["lo"], {:ok, [rcvbuf: 200_000]}, {:ok, [1]}, {:ok, %{verified: true}}, :ok} =
             :erpc.call(node, NetlinkPort.Remote, :use_a_socket, [server, netns])
  end

  test "an owner elsewhere gets its messages; its end and its node's close the socket", context do
    %{node: node, peer: peer} = context
    netns = netns!()
    server = start_server!()
    before = fds(server)
    opts = [netns: {:name, netns}, groups: [1]]
    owner = Node.spawn(node, NetlinkPort.Remote, :own_a_socket, [self(), server, opts])
    assert_receive {:open, socket}, 5_000
    ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
    assert_receive {:got, {:netlink, ^socket, _datagram}}
    assert {:ok, %{owner: ^owner}} = NetlinkPort.info(socket)
    Process.exit(owner, :kill)
    eventually!(fn -> fds(server) == before end)

    Node.spawn(node, NetlinkPort.Remote, :own_a_socket, [self(), server, []])
    assert_receive {:open, _socket}, 5_000
    assert fds(server) == before + 1
    :peer.stop(peer)
    eventually!(fn -> fds(server) == before end, 5_000)
  end

  test "without a server there, or without the node, a call is ESRCH", %{node: node} do
    for server <- [{:no_such_server, node}, {NetlinkPort, :"nowhere@127.0.0.1"}] do
      assert {:error, %Error{stage: :thread, reason: :esrch}} =
               NetlinkPort.open(server, :route, [])
    end
  end
end
