defmodule NetlinkPort.AttackerTest do
  # Owners receive datagrams of the kernel only. An ordinary user, in its own user and network namespaces, tries to
  # send forged ones to a socket that the helper has there.
  use NetlinkPort.Case, async: true

  @moduletag root: true, userns: true

  # RTNLGRP_LINK, and the index of the interface in the forged message of test/fixtures/attacker.rs.
  @link_group 1
  @forged_index 666

  setup do
    user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"]
    arguments = user ++ ["unshare", "-Urn", public!(fixture!("attacker"))]
    setpriv = System.find_executable("setpriv")
    attacker = Port.open({:spawn_executable, setpriv}, [:binary, line: 80, args: arguments])
    {:os_pid, pid} = Port.info(attacker, :os_pid)
    # Its first answer shows that it is inside: no socket has this port id.
    assert attack(attacker, "unicast 4000000000") == "ECONNREFUSED"
    %{attacker: attacker, pid: pid, server: start_server!()}
  end

  defp attack(attacker, how) do
    Port.command(attacker, how <> "\n")
    assert_receive {^attacker, {:data, {:eol, answer}}}
    answer
  end

  defp open!(context, opts) do
    opts = [netns: {:pid, context.pid}, groups: [@link_group]] ++ opts
    {:ok, socket} = NetlinkPort.open(context.server, :route, opts)
    {:ok, info} = NetlinkPort.info(socket)
    {socket, info}
  end

  defp index(datagram) do
    [{16, _sequence, <<_family, _pad, _type::16, index::32-signed-native, _::binary>>}] =
      Rtnl.messages(datagram)

    index
  end

  @tag :init_user_namespace
  test "the attacker runs as an ordinary user in its own namespaces", %{pid: pid} do
    status = File.read!("/proc/#{pid}/status")
    assert status =~ ~r/^Uid:\t65534\t65534\t65534\t65534$/m

    for ns <- ~w(user net),
        do: assert(inode("/proc/#{pid}/ns/#{ns}") != inode("/proc/self/ns/#{ns}"))
  end

  @tag :init_user_namespace
  test "with user_peers: true forged datagrams are delivered, unicast and multicast", context do
    {socket, info} = open!(context, user_peers: true)

    for attack <- ["unicast #{info.port_id}", "multicast #{@link_group}"] do
      assert attack(context.attacker, attack) == "sent"
      assert_receive {:netlink, ^socket, forged, %{port_id: sender}}
      assert index(forged) == @forged_index
      assert sender != 0
    end

    assert {:ok, %{foreign: 0}} = NetlinkPort.info(socket)
  end

  @tag :init_user_namespace
  test "by default forged datagrams are dropped and counted, and those of the kernel are delivered",
       context do
    for active <- [true, false] do
      {socket, info} = open!(context, active: active)

      for n <- 1..10 do
        assert attack(context.attacker, "unicast #{info.port_id}") == "ECONNREFUSED"
        assert attack(context.attacker, "multicast #{@link_group}") == "sent"
        eventually!(fn -> match?({:ok, %{foreign: ^n}}, NetlinkPort.info(socket)) end)
      end

      # From the kernel: the first datagram that is delivered at all.
      {_output, 0} =
        System.cmd("nsenter", [
          "-t",
          "#{context.pid}",
          "-n",
          "ip",
          "link",
          "set",
          "lo",
          "mtu",
          mtu(active)
        ])

      assert index(first(socket, active)) == 1
      assert NetlinkPort.close(socket) == :ok
    end
  end

  defp mtu(true), do: "4000"
  defp mtu(false), do: "5000"

  defp first(socket, true) do
    assert_receive {:netlink, ^socket, datagram}
    datagram
  end

  defp first(socket, false) do
    assert {:ok, datagram} = NetlinkPort.recv(socket, within(2_000))
    datagram
  end
end
