defmodule NetlinkPort.CapabilitiesTest do
  # Helpers that were started with less than they need: they run, and say what they lack.
  use NetlinkPort.Case, async: true

  @moduletag :root

  defp start_without!(capabilities) do
    drop = Enum.map_join(capabilities, ",", &"-#{&1}")
    helper = NetlinkPort.Helper.executable()
    start_server!(executable: script!("exec setpriv --bounding-set #{drop} #{helper}"))
  end

  test "without CAP_SYS_ADMIN it serves its own namespace and no other" do
    netns = netns!()
    server = start_without!([:sys_admin])
    assert {:ok, %{may_leave: false, capabilities: held}} = NetlinkPort.info(server)
    refute :sys_admin in held
    assert :net_admin in held

    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
    assert {error.stage, error.errno, error.lacks} == {:setns, 1, :sys_admin}

    assert Exception.message(error) ==
             "setns into /run/netns/#{netns}: EPERM: the helper lacks CAP_SYS_ADMIN"

    # What is wrong with the path comes first, as it would with the capability.
    assert {:error, %{stage: :open, errno: 2}} =
             NetlinkPort.open(server, :route, netns: {:path, "/nowhere"})

    assert {:error, %{stage: :setns, errno: 22}} =
             NetlinkPort.open(server, :route, netns: {:path, "/etc"})

    assert {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    assert "lo" in Rtnl.link_names(socket)
  end

  test "without CAP_NET_ADMIN a socket's place is not verified, and changes are refused" do
    netns = netns!()
    server = start_without!([:net_admin])
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
    inode = inode(netns_path(netns))
    assert {:ok, %{verified: false, inode: ^inode, cookie: cookie}} = NetlinkPort.info(socket)
    assert is_integer(cookie)

    :ok = NetlinkPort.send(socket, Rtnl.new_bridge("br0", 1))
    assert {:ok, answer} = NetlinkPort.recv(socket, 1_000)
    # NLMSG_ERROR with -EPERM.
    assert [{2, 1, <<-1::32-signed-native, _::binary>>}] = Rtnl.messages(answer)

    # Without SO_RCVBUFFORCE the limit of the system holds.
    assert :ok = NetlinkPort.setopts(socket, rcvbuf: 1_000_000_000)
    limit = "/proc/sys/net/core/rmem_max" |> File.read!() |> String.trim() |> String.to_integer()
    assert NetlinkPort.getopts(socket, [:rcvbuf]) == {:ok, rcvbuf: 2 * limit}
  end

  test "without CAP_NET_BROADCAST listen_all_nsid names it" do
    server = start_without!([:net_broadcast])
    {:ok, socket} = NetlinkPort.open(server, :route, [])
    assert {:error, error} = NetlinkPort.setopts(socket, listen_all_nsid: true)
    assert {error.stage, error.reason, error.lacks} == {:setsockopt, :eperm, :net_broadcast}
    assert Exception.message(error) =~ "the helper lacks CAP_NET_BROADCAST"
  end

  @tag :userns
  test "inside a user namespace of its own it enters what was made there, and only that" do
    netns = netns!()
    helper = NetlinkPort.Helper.executable()

    # With a network namespace of its own, it may come home to it.
    server = start_server!(executable: script!("exec unshare -Urn #{helper}"))
    {:ok, info} = NetlinkPort.info(server)
    assert info.may_leave
    assert info.home_inode != inode("/proc/self/ns/net")
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
    assert {error.stage, error.errno} == {:setns, 1}
    assert {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    assert Rtnl.link_names(socket) == ["lo"]

    # Without one, home belongs to somebody else: it never leaves.
    server = start_server!(executable: script!("exec unshare -Ur #{helper}"))
    assert {:ok, %{may_leave: false}} = NetlinkPort.info(server)
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
    assert {error.stage, error.errno} == {:setns, 1}
    assert {:ok, _socket} = NetlinkPort.open(server, :route, [])
  end
end
