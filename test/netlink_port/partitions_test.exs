defmodule NetlinkPort.PartitionsTest do
  # Sockets spread over several helpers by a PartitionSupervisor.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Connection, Monitor, Native}

  @moduletag :root

  @partitions 4
  @links 1
  @getlink <<0::32, 1::32-native, 0::64>>

  setup do
    name = :"partitions#{System.unique_integer([:positive])}"
    child = {NetlinkPort, name: nil}

    start_supervised!(
      {PartitionSupervisor, child_spec: child, name: name, partitions: @partitions}
    )

    %{name: name, netns: netns!()}
  end

  defp via(name, key), do: {:via, PartitionSupervisor, {name, key}}

  defp open!(server, netns) do
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, groups: [@links])
    socket
  end

  defp add_bridge!(netns, name), do: ip!(["-n", netns, "link", "add", name, "type", "bridge"])

  test "every function that takes a server takes a partition", %{name: name, netns: netns} do
    server = via(name, netns)
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, groups: [@links])
    assert NetlinkPort.socket(server, Socket.handle(socket)) == socket
    assert {:ok, %{sockets: 1}} = NetlinkPort.info(server)
    assert {:ok, capture} = NetlinkPort.capture(server, tmp_path!("trace.pcapng"))
    assert {:ok, _counts} = NetlinkPort.stop_capture(capture)
    assert {:ok, handle} = Native.open_in_netns(server, netns_path(netns), 0)
    assert Native.bind_netlink(server, handle, 1) == :ok
    assert Native.close_fd(server, handle) == :ok

    monitor =
      start_supervised!({Monitor, server: server, netns: {:name, netns}, groups: [@links]})

    {:ok, ^monitor} = Monitor.subscribe(monitor)
    assert_receive {:netlink_resync, ^monitor, :subscribed}
    opts = [server: server, protocol: :route, netns: {:name, netns}]
    connection = start_supervised!({Connection, opts})
    assert {:ok, [_link]} = Connection.request(connection, 18, @getlink)
    # All of it is in one helper.
    for key <- 0..(@partitions - 1), via(name, key) != server do
      {:ok, %{sockets: sockets}} = NetlinkPort.info(via(name, key))
      assert sockets == if(key == :erlang.phash2(netns, @partitions), do: 3, else: 0)
    end
  end

  test "a killed helper closes its own sockets, and no others", context do
    %{name: name, netns: netns} = context
    servers = for key <- 0..(@partitions - 1), do: via(name, key)
    assert length(Enum.uniq_by(servers, &os_pid/1)) == @partitions
    [{victim, lost} | others] = for server <- servers, do: {server, open!(server, netns)}
    before = for {server, _socket} <- others, do: os_pid(server)
    killed = os_pid(victim)
    signal!(killed, "KILL")
    assert_receive {:netlink_closed, ^lost, {:helper_exit, 137}}
    add_bridge!(netns, "br0")
    for {_server, socket} <- others, do: assert_receive({:netlink, ^socket, _datagram})
    refute_received {:netlink_closed, _socket, _reason}
    assert for({server, _socket} <- others, do: os_pid(server)) == before

    # The partition is back, under its keys, with another helper.
    open? = fn -> match?({:ok, _}, NetlinkPort.open(victim, :route, netns: {:name, netns})) end
    eventually!(open?)
    assert os_pid(victim) not in [killed | before]
  end

  test "a key always leads to the same helper, and many keys to all of them", %{name: name} do
    keys = for n <- 1..64, do: {:name, "ns#{n}"}
    helpers = for key <- keys, do: os_pid(via(name, key))
    assert for(key <- keys, do: os_pid(via(name, key))) == helpers
    assert helpers |> Enum.uniq() |> length() == @partitions
    # However many processes ask.
    elsewhere =
      Task.await(
        Task.async(fn -> for(key <- keys, do: os_pid(via(name, key))) end),
        within(5_000)
      )

    assert elsewhere == helpers
  end

  test "a call is ESRCH if the PartitionSupervisor does not run" do
    for function <- [&NetlinkPort.open(&1, :route, []), &NetlinkPort.info/1] do
      assert {:error, %Error{stage: :thread, reason: :esrch}} = function.(via(:none_such, "key"))
    end
  end
end
