defmodule NetlinkPort.KernelModulesTest do
  # Families of modules that few kernels have built in. ip(8) loads wireguard, in a namespace. mac80211_hwsim and
  # netdevsim make devices in the initial namespace, and so are loaded only on a machine that no other program uses.
  use NetlinkPort.Case

  alias NetlinkPort.{Attr, Connection, Error, Generic, Message}

  @moduletag :root

  setup do
    netns = netns!()
    server = start_server!()
    %{netns: netns, server: server}
  end

  defp open!(context, protocol, netns) do
    {:ok, socket} = NetlinkPort.open(context.server, protocol, netns: netns, active: false)
    socket
  end

  defp attrs(message) do
    {:ok, {command, _version, rest}} = Generic.decode(message)
    {:ok, attrs} = Attr.decode(rest)
    {command, attrs}
  end

  # include/uapi/linux/wireguard.h: WG_CMD_GET_DEVICE 0, WG_CMD_SET_DEVICE 1; WGDEVICE_A_IFNAME 2, LISTEN_PORT 6,
  # PEERS 8; WGPEER_A_PUBLIC_KEY 1
  @tag :wireguard
  test "wireguard: a dump of peers in many datagrams is complete, and a missing device is ENODEV",
       context do
    ip!(["-n", context.netns, "link", "add", "wg0", "type", "wireguard"])
    socket = open!(context, :generic, {:name, context.netns})
    keys = for n <- 1..600, do: <<n::256>>
    peers = {8, for(key <- keys, do: {0, [{1, key}]})}
    device = Attr.encode([{2, "wg0\0"}, {6, Attr.u16(7_000)}, peers])
    assert {:ok, []} = Generic.request(socket, "wireguard", 1, device)

    assert {:ok, messages} = Generic.dump(socket, "wireguard", 0, Attr.encode([{2, "wg0\0"}]))
    assert [_, _ | _] = told = Enum.map(messages, fn message -> message |> attrs() |> elem(1) end)
    assert {:ok, 7_000} = told |> hd() |> Attr.u16(6)

    dumped =
      for device <- told,
          {:ok, peers} = Attr.nested(device, 8),
          {_index, peer} <- peers,
          {:ok, peer} = Attr.decode(peer),
          do: List.keyfind!(peer, 1, 0) |> elem(1)

    assert Enum.sort(dumped) == keys
    missing = Attr.encode([{2, "wg1\0"}])

    assert {:error, %Error{reason: :enodev}} = Generic.dump(socket, "wireguard", 0, missing)
    assert {:error, %Error{reason: :enodev}} = Generic.request(socket, "wireguard", 1, missing)
    assert {:error, %Error{reason: :etimedout}} = NetlinkPort.recv(socket, 0)
  end

  # NETLINK_CRYPTO, NETLINK_RDMA and NETLINK_ISCSI
  @tag :modules
  test "the doctor does not load the module of a protocol" do
    loaded = fn ->
      for line <- String.split(File.read!("/proc/modules"), "\n", trim: true),
          do: line |> String.split() |> hd()
    end

    for module <- ~w(crypto_user ib_core scsi_transport_iscsi),
        do: as_root("modprobe", ["--remove", module])

    before = loaded.()
    assert "crypto_user" not in before
    report = NetlinkPort.Doctor.report(netns: [:host])
    assert loaded.() -- before == []

    assert report |> NetlinkPort.Doctor.format() |> IO.iodata_to_binary() =~
             ~r"not tried: .*crypto"
  end

  describe "mac80211_hwsim" do
    @describetag :mac80211_hwsim

    setup do
      {_output, 0} = as_root("modprobe", ["mac80211_hwsim", "radios=2"])
      on_exit(fn -> as_root("modprobe", ["--remove", "mac80211_hwsim"]) end)

      :ok
    end

    # include/uapi/linux/nl80211.h: NL80211_CMD_GET_WIPHY 1, NL80211_CMD_NEW_WIPHY 3,
    # NL80211_CMD_SET_WIPHY_NETNS 49; NL80211_ATTR_WIPHY 1, WIPHY_NAME 2, SPLIT_WIPHY_DUMP 174, NETNS_FD 219
    defp radios(socket) do
      {:ok, messages} = Generic.dump(socket, "nl80211", 1, Attr.encode([{174, true}]))
      for message <- messages, {3, attrs} = attrs(message), do: attrs
    end

    defp names(radios) do
      for radio <- radios, {:ok, name} <- [Attr.string(radio, 2)], uniq: true, do: name
    end

    test "a radio is dumped in parts, and moved into a namespace by a pin", context do
      host = open!(context, :generic, :host)
      there = open!(context, :generic, {:name, context.netns})
      radios = radios(host)
      assert [one, _two] = names(radios)
      assert length(radios) > 2
      assert radios(there) == []

      {:ok, number} = Attr.u32(hd(radios), 1)
      {:ok, pin} = NetlinkPort.pin(context.server, {:name, context.netns})
      move = Attr.encode([{1, Attr.u32(number)}, {219, pin}])
      assert {:ok, []} = Generic.request(host, "nl80211", 49, move)
      assert [^one] = there |> radios() |> names()
      refute one in names(radios(host))
    end

    # struct rfkill_event: RFKILL_TYPE_WLAN 1, RFKILL_OP_CHANGE_ALL 3
    defp block!(soft) do
      File.open!("/dev/rfkill", [:write, :raw], fn file ->
        :ok = :file.write(file, <<0::32, 1, 3, soft, 0>>)
      end)
    end

    test "an interface of a blocked radio is ERFKILL", context do
      block!(1)
      on_exit(fn -> block!(0) end)
      socket = open!(context, :route, :host)

      index =
        "/sys/class/net/wlan0/ifindex" |> File.read!() |> String.trim() |> String.to_integer()

      # RTM_NEWLINK with IFF_UP in ifi_flags and ifi_change
      up = <<0::32, index::32-native, 1::32-native, 1::32-native>>
      assert {:error, error} = NetlinkPort.request(socket, 16, up)
      assert error.reason == :erfkill
      assert Exception.message(error) =~ "ERFKILL: operation not possible due to rf-kill"
      block!(0)
      assert {:ok, []} = NetlinkPort.request(socket, 16, up)
    end
  end

  # include/uapi/linux/devlink.h: DEVLINK_CMD_GET 1, NEW 3, DEL 4, PORT_GET 5, RESOURCE_DUMP 36, RELOAD 37;
  # DEVLINK_ATTR_BUS_NAME 1, DEV_NAME 2, RESOURCE_LIST 63, NETNS_FD 138
  describe "netdevsim" do
    @describetag :netdevsim

    @device [{1, "netdevsim\0"}, {2, "netdevsim10\0"}]

    setup do
      {_output, 0} = as_root("modprobe", ["netdevsim"])
      on_exit(fn -> as_root("modprobe", ["--remove", "netdevsim"]) end)
      {_output, 0} = as_root("sh", ["-c", "echo '10 2' >/sys/bus/netdevsim/new_device"])

      :ok
    end

    defp devices(via) do
      {:ok, messages} = Generic.dump(via, "devlink", 1)
      for message <- messages, {3, attrs} = attrs(message), do: elem(Attr.string(attrs, 2), 1)
    end

    # The commands of the next events of a member of the group `config`, up to that of a device.
    defp device_event!(socket) do
      {:ok, datagram} = NetlinkPort.recv(socket, within(5_000))
      {:ok, [message]} = Message.decode(datagram)
      {command, attrs} = attrs(message)

      if command in [3, 4],
        do: {command, elem(Attr.string(attrs, 2), 1)},
        else: device_event!(socket)
    end

    test "a reload with a pin moves a device and its interfaces into a namespace; both are told",
         context do
      host = open!(context, :generic, :host)
      there = open!(context, :generic, {:name, context.netns})

      [left, entered] =
        for netns <- [:host, {:name, context.netns}], do: open!(context, :generic, netns)

      for socket <- [left, entered], do: :ok = Generic.join(socket, "devlink", "config")
      assert devices(host) == ["netdevsim10"]
      assert devices(there) == []

      {:ok, pin} = NetlinkPort.pin(context.server, {:name, context.netns})

      assert {:ok, []} =
               Generic.request(host, "devlink", 37, Attr.encode(@device ++ [{138, pin}]))

      assert devices(host) == []
      assert devices(there) == ["netdevsim10"]
      assert device_event!(left) == {4, "netdevsim10"}
      assert device_event!(entered) == {3, "netdevsim10"}
      links = ip!(["-n", context.netns, "-o", "link", "show"])
      assert [_loopback, _port, _other] = String.split(links, "\n", trim: true)
    end

    # devlink_resource_fill: messages with NLM_F_MULTI and NLMSG_DONE, although the request is no dump; then the ack.
    test "messages, their end and an ack answer a request that is no dump; the next request gets its own answer",
         context do
      resources = Attr.encode(@device)
      socket = open!(context, :generic, :host)

      for via <- [
            socket,
            start_supervised!({Connection, protocol: :generic, server: context.server})
          ] do
        for _n <- 1..50 do
          assert {:ok, [_ | _] = messages} = Generic.request(via, "devlink", 36, resources)
          assert Enum.all?(messages, fn message -> match?({36, _attrs}, attrs(message)) end)
          assert {:ok, [device]} = Generic.request(via, "devlink", 1, resources)
          assert {3, _attrs} = attrs(device)
          assert {:ok, ports} = Generic.dump(via, "devlink", 5)
          assert length(ports) == 2
        end
      end

      assert {:error, %Error{reason: :etimedout}} = NetlinkPort.recv(socket, 0)
      refute_received _stray
    end
  end
end
