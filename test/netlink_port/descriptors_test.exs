defmodule NetlinkPort.DescriptorsTest do
  # The kernel looks a number that stands for a descriptor in a message up in the table of the sender, the helper.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Attr

  @moduletag :root

  # RTM_NEWLINK, and IFLA_NET_NS_FD of include/uapi/linux/if_link.h
  @newlink 16
  @netns_fd 28

  defp move(socket, index, fd) do
    link = <<0::32, index::32-native, 0::64>>
    NetlinkPort.request(socket, @newlink, [link, Attr.encode([{@netns_fd, <<fd::32-native>>}])])
  end

  defp bridge!(socket) do
    :ok = NetlinkPort.send(socket, Rtnl.new_bridge("br0", 1), wait: true)
    {:ok, links} = NetlinkPort.dump(socket, 18, <<0::128>>)

    Enum.find_value(links, fn %{payload: <<_::32, index::32-native, _::binary>> = payload} ->
      if Rtnl.link_name(payload) == "br0", do: index
    end)
  end

  test "the helper has no descriptor from 3 to 1023: a link cannot be moved by such a number" do
    server = start_server!()
    assert {:ok, %{lowest_fd: 1024}} = NetlinkPort.info(server)
    [one, other] = [netns!(), netns!()]
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, one}, active: false)
    # Every kind of descriptor that the helper keeps: sockets, a pidfd, an inotify.
    for netns <- [{:name, other}, {:pid, sleeper!(other)}],
        do: {:ok, _} = NetlinkPort.open(server, :route, netns: netns, close_on: :namespace_gone)

    index = bridge!(socket)

    for fd <- 3..1023 do
      assert {:error, error} = move(socket, index, fd)
      assert {fd, error.reason} == {fd, :ebadf}
    end

    assert Enum.sort(Rtnl.link_names(socket)) == ["br0", "lo"]
    numbers = "/proc/#{os_pid(server)}/fd" |> File.ls!() |> Enum.map(&String.to_integer/1)
    assert Enum.filter(numbers, &(&1 in 3..1023)) == []
  end

  test "with a descriptor limit below 1024 info/1 and the doctor say so" do
    server = start_server!(executable: script!("ulimit -n 256; exec #{helper()} \"$@\""))
    assert {:ok, %{lowest_fd: lowest, max_fds: 256} = info} = NetlinkPort.info(server)
    assert lowest in 3..255
    assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:name, netns!()})

    assert {:warn, line, "raise those of the VM: ulimit -n 65536" <> _} =
             server
             |> NetlinkPort.Doctor.Limits.checks(info)
             |> Enum.find(&(elem(&1, 1) =~ "IFLA_NET"))

    assert line =~ "its descriptors lie from #{lowest} on"
  end

  test "with a limit just above 1024 descriptors lie above 1023 first, and then below" do
    server = start_server!(executable: script!("ulimit -n 1030; exec #{helper()} \"$@\""))
    assert {:ok, %{lowest_fd: 1024}} = NetlinkPort.info(server)
    netns = netns!()

    for _ <- 1..20,
        do: assert({:ok, _} = NetlinkPort.open(server, :route, netns: {:name, netns}))
  end
end
