defmodule NetlinkPort.PinsTest do
  # Pins: a namespace as the value of an attribute, the process that a pin belongs to, and its end.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Connection, Message, Pin}

  # include/uapi/linux/rtnetlink.h, if_link.h, net_namespace.h
  @rtm_newlink 16
  @rtm_newnsid 88
  @rtm_getnsid 90
  @ifla_net_ns_fd 28
  @netnsa_nsid 1
  @netnsa_fd 3

  setup do
    server = start_server!()
    %{server: server, socket: open!(server)}
  end

  defp open!(server, opts \\ []) do
    {:ok, socket} = NetlinkPort.open(server, :route, [active: false] ++ opts)
    socket
  end

  defp pin!(server, netns, opts \\ []) do
    {:ok, pin} = NetlinkPort.pin(server, netns, opts)
    pin
  end

  defp by(pin), do: [<<0::32>>, Attr.encode([{@netnsa_fd, pin}])]

  # RTM_GETNSID: the id of a namespace in that of the socket, or -1 for none.
  defp nsid(socket, pin) do
    with {:ok, [%Message{payload: <<_::32, attrs::binary>>}]} <-
           NetlinkPort.request(socket, @rtm_getnsid, by(pin)) do
      {:ok, attrs} = Attr.decode(attrs)
      Attr.s32(attrs, @netnsa_nsid)
    end
  end

  defp descriptors(server), do: "/proc/#{os_pid(server)}/fd" |> File.ls!() |> length()

  describe "a pin" do
    test "holds the namespace, for every form of namespace", %{server: server, socket: socket} do
      netns = netns!()
      sleeper = sleeper!(netns)
      link = tmp_path!("link")
      File.ln_s!(netns_path(netns), link)
      relative = Path.relative_to(netns_path(netns), "/")
      up = String.duplicate("../", 40)

      for place <- [
            {:name, netns},
            {:path, netns_path(netns)},
            {:path, link},
            {:path, up <> relative},
            {:pid, sleeper},
            {:path, "/proc/#{sleeper}/ns/net"}
          ] do
        pin = pin!(server, place)
        assert {place, pin.inode} == {place, inode(netns_path(netns))}
        assert {:ok, -1} = nsid(socket, pin)
        {:ok, %{cookie: cookie}} = NetlinkPort.info(open!(server, netns: place))
        assert {pin.cookie, cookie?(cookie)} == {cookie, true}
        assert :ok = NetlinkPort.unpin(pin)
      end

      host = pin!(server, :host)
      {:ok, %{home_inode: inode, home_device: device}} = NetlinkPort.info(server)
      assert {host.inode, host.device} == {inode, device}
      assert {:ok, _nsid} = nsid(socket, host)
    end

    test "of a file that is no namespace is the error of open/3", %{server: server} do
      file = tmp_path!("file")
      File.write!(file, "")

      for {netns, stage, reason} <- [
            {{:path, file}, :setns, :einval},
            {{:path, "/proc/self/ns/mnt"}, :setns, :einval},
            {{:path, "/dev/null"}, :setns, :einval},
            {{:path, ""}, :open, :enoent},
            {{:path, "a\0b"}, :open, :einval},
            {{:path, "/" <> String.duplicate("x", 4096)}, :open, :enametoolong},
            {{:name, "no-such-name"}, :open, :enoent},
            {{:pid, 0x7FFFFFFF}, :open, :esrch}
          ] do
        before = descriptors(server)
        assert {:error, %Error{} = error} = NetlinkPort.pin(server, netns, [])
        assert {netns, error.stage, error.reason} == {netns, stage, reason}

        assert {:error, %Error{stage: ^stage, reason: ^reason}} =
                 NetlinkPort.open(server, 0, netns: netns)

        assert descriptors(server) == before
      end

      for wrong <- [:nowhere, {:pid, 0}, {:name, "a/b"}, {:path, 1}] do
        assert_raise ArgumentError, fn -> NetlinkPort.pin(server, wrong, []) end
      end

      assert_raise ArgumentError, fn -> NetlinkPort.pin(server, :host, owner: 1) end
      assert_raise ArgumentError, fn -> NetlinkPort.pin(server, :host, active: true) end
      assert_raise ArgumentError, fn -> NetlinkPort.unpin(server) end
    end

    test "belongs to the server NetlinkPort by default, and inspect shows its fields", %{
      server: server
    } do
      assert {:error, %Error{stage: :thread, reason: :esrch}} = NetlinkPort.pin(:host)

      assert {:error, %Error{stage: :thread, reason: :esrch}} =
               NetlinkPort.pin(:host, timeout: 100)

      {:ok, pin} = NetlinkPort.pin(server, :host)

      assert inspect(pin) ==
               "#NetlinkPort.Pin<host, descriptor #{pin.descriptor}, handle #{pin.handle}>"
    end

    test "can be of a namespace that the helper may not enter" do
      server = start_injected!("setns EPERM from:1")
      netns = netns!()
      assert {:error, %Error{stage: :setns}} = NetlinkPort.open(server, 0, netns: {:name, netns})
      pin = pin!(server, {:name, netns})
      assert {pin.inode, pin.cookie} == {inode(netns_path(netns)), nil}
      assert {:ok, -1} = nsid(open!(server), pin)
    end

    test "keeps its namespace alive", %{server: server, socket: socket} do
      netns = netns!()
      pin = pin!(server, {:name, netns})
      ip!(["netns", "del", netns])
      assert {:ok, -1} = nsid(socket, pin)
      assert :ok = NetlinkPort.unpin(pin)
    end

    test "has a high descriptor number, which no later pin gets", %{server: server} do
      numbers =
        for _ <- 1..200 do
          pin = pin!(server, :host)
          :ok = NetlinkPort.unpin(pin)
          pin.descriptor
        end

      {:ok, %{max_fds: most}} = NetlinkPort.info(server)
      assert numbers == Enum.uniq(numbers)
      assert Enum.min(numbers) >= min(4096, div(most, 2))
    end
  end

  describe "a pin in a message" do
    test "moves a link, by request, batch and send, nested or not", %{server: server} do
      {here, there} = {netns!(), netns!()}
      socket = open!(server, netns: {:name, here})
      pin = pin!(server, {:name, there})

      move = fn name ->
        ip!(["-n", here, "link", "add", name, "type", "veth", "peer", "name", name <> "p"])
        [_, index] = Regex.run(~r/^(\d+): /, ip!(["-n", here, "-o", "link", "show", name]))
        header = <<0::32, String.to_integer(index)::32-native, 0::64>>
        [header, Attr.encode([{@ifla_net_ns_fd, pin}])]
      end

      assert {:ok, []} = NetlinkPort.request(socket, @rtm_newlink, move.("v0"))
      assert {:ok, [{:ok, []}]} = NetlinkPort.batch(socket, [{@rtm_newlink, [], move.("v1")}])
      message = %Message{type: @rtm_newlink, flags: 5, seq: 1, payload: move.("v2")}
      datagram = Message.encode([message])
      assert_raise ArgumentError, fn -> IO.iodata_to_binary(datagram) end
      assert :ok = NetlinkPort.send(socket, datagram, wait: true)

      assert {:ok, <<_::64, 1::32-native, _::32, 0::32, _::binary>>} =
               NetlinkPort.recv(socket, within(5_000))

      for name <- ["v0", "v1", "v2"] do
        assert ip!(["-n", there, "-j", "link", "show", name]) =~ ~s("ifname":"#{name}")
      end
    end

    test "makes the peer of a veth in its namespace, behind the struct of the attribute",
         context do
      %{server: server} = context
      {here, there} = {netns!(), netns!()}
      socket = open!(server, netns: {:name, here})
      opts = [server: server, protocol: :route, netns: {:name, here}]
      connection = start_supervised!({NetlinkPort.Connection, opts})
      pin = pin!(server, {:name, there})

      # IFLA_IFNAME; IFLA_LINKINFO with IFLA_INFO_KIND and IFLA_INFO_DATA, in it VETH_INFO_PEER
      veth = fn name ->
        peer = [<<0::128>> | Attr.encode([{3, name <> "\0"}, {@ifla_net_ns_fd, pin}])]
        info = [{1, "veth\0"}, {2, [{1, peer}]}]
        [<<0::128>>, Attr.encode([{3, name <> "\0"}, {18, info}])]
      end

      new = [:create, :excl]
      assert {:ok, []} = NetlinkPort.request(socket, @rtm_newlink, veth.("a0"), flags: new)
      requests = for name <- ["a1", "a2"], do: {@rtm_newlink, new, veth.(name)}
      assert {:ok, [{:ok, []}, {:ok, []}]} = NetlinkPort.batch(socket, requests)
      assert {:ok, []} = Connection.request(connection, @rtm_newlink, veth.("a3"), flags: new)

      # Both ends have the same name: no end was here in between.
      for netns <- [here, there], name <- ["a0", "a1", "a2", "a3"] do
        assert ip!(["-n", netns, "-j", "link", "show", name]) =~ ~s("ifname":"#{name}")
      end
    end

    test "may be anywhere in iodata, also at the end of an improper list", %{
      server: server,
      socket: socket
    } do
      pin = pin!(server, {:name, netns!()})

      for payload <- [
            [<<0, 0>>, [0, 0, [[Attr.encode([{@netnsa_fd, pin}])]]]],
            [<<0::32, 8::16-native, 3::16-native>> | pin],
            [<<0::32, 8::16-native, 3::16-native>>, pin | ""]
          ] do
        assert {:ok, [_nsid]} = NetlinkPort.request(socket, @rtm_getnsid, payload)
      end

      nested = Attr.encode([{1, [{2, pin}, {3, {:plain, [{4, pin}]}}]}])
      assert [[<<length::16-native, _::16>> | _]] = nested
      assert length == 4 + 8 + 4 + 8
    end

    test "raises ArgumentError if the rest is not iodata", %{server: server, socket: socket} do
      pin = pin!(server, :host)

      for wrong <- [[pin, :atom], [pin, 256], [pin | :tail], :atom] do
        assert_raise ArgumentError, fn -> NetlinkPort.send(socket, wrong) end
        assert_raise ArgumentError, fn -> NetlinkPort.request(socket, @rtm_getnsid, wrong) end
      end

      assert_raise ArgumentError, fn -> Attr.encode([{1, {:net_byteorder, pin}}]) end
    end

    test "is checked by a connection, for that caller only", %{server: server} do
      other = start_server!()
      {:ok, connection} = Connection.start_link(server: server, protocol: :route)
      pin = pin!(server, {:name, netns!()})
      foreign = pin!(other, :host)
      assert {:ok, [_nsid]} = Connection.request(connection, @rtm_getnsid, by(pin))
      assert {:ok, [{:ok, [_nsid]}]} = Connection.batch(connection, [{@rtm_getnsid, [], by(pin)}])

      for refused <- [
            Connection.request(connection, @rtm_getnsid, by(foreign)),
            Connection.batch(connection, [{18, [], <<0::128>>}, {@rtm_getnsid, [], by(foreign)}]),
            Connection.dump(connection, @rtm_getnsid, by(foreign))
          ] do
        assert {:error, %Error{stage: :pin, reason: :exdev}} = refused
      end

      assert {:ok, [_nsid]} = Connection.request(connection, @rtm_getnsid, by(pin))
    end
  end

  describe "the check before a pin is sent" do
    # Checks that the server sends nothing: `sent` of the socket does not rise.
    defp refused(socket, pin) do
      {:ok, %{sent: before}} = NetlinkPort.stats(socket)
      message = Message.encode(%Message{type: @rtm_getnsid, flags: 5, payload: by(pin)})

      errors =
        for {:error, error} <- [
              NetlinkPort.request(socket, @rtm_getnsid, by(pin)),
              NetlinkPort.batch(socket, [{@rtm_getnsid, [], by(pin)}]),
              NetlinkPort.dump(socket, @rtm_getnsid, by(pin)),
              NetlinkPort.send(socket, message),
              NetlinkPort.send(socket, message, wait: true),
              NetlinkPort.send(socket, message, to: {0, 0})
            ],
            do: {error.stage, error.reason}

      streamed = fn -> socket |> NetlinkPort.stream(@rtm_getnsid, by(pin)) |> Enum.to_list() end
      error = assert_raise Error, streamed
      assert {:ok, %{sent: ^before}} = NetlinkPort.stats(socket)
      assert length(errors) == 6
      [told] = Enum.uniq([{error.stage, error.reason} | errors])
      told
    end

    test "refuses a pin of another server", %{socket: socket} do
      pin = pin!(start_server!(), {:name, netns!()})
      assert refused(socket, pin) == {:pin, :exdev}
    end

    test "refuses a pin from before a restart", %{socket: socket, server: server} do
      other = start_server!()
      pin = pin!(other, {:name, netns!()})
      monitor = Process.monitor(other)
      signal!(os_pid(other), "KILL")
      assert_receive {:DOWN, ^monitor, :process, ^other, _reason}
      assert refused(socket, pin) == {:pin, :epipe}
      assert {:error, %Error{stage: :thread, reason: :epipe}} = NetlinkPort.info(pin)
      assert :ok = NetlinkPort.unpin(pin)
      assert {:ok, %{pins: 0}} = NetlinkPort.info(server)
    end

    test "refuses a pin that has ended", %{server: server, socket: socket} do
      pin = pin!(server, {:name, netns!()})
      :ok = NetlinkPort.unpin(pin)
      assert refused(socket, pin) == {:pin, :ebadf}
      assert {:error, %Error{stage: :pin, reason: :ebadf}} = NetlinkPort.info(pin)
    end

    test "does not see a number written by hand: the kernel refuses that of an ended pin", %{
      server: server,
      socket: socket
    } do
      pin = pin!(server, {:name, netns!()})
      :ok = NetlinkPort.unpin(pin)
      _next = pin!(server, :host)
      payload = [<<0::32>>, Attr.encode([{@netnsa_fd, Attr.s32(pin.descriptor)}])]

      assert {:error, %Error{stage: :request, errno: errno}} =
               NetlinkPort.request(socket, @rtm_newnsid, payload)

      assert errno in [9, 22]
    end
  end

  describe "a pin ends" do
    test "by unpin/1, which may be called again", %{server: server} do
      before = descriptors(server)
      pin = pin!(server, {:name, netns!()})
      assert descriptors(server) == before + 1
      assert {:ok, %{pins: 1}} = NetlinkPort.info(server)
      assert :ok = NetlinkPort.unpin(pin)
      assert :ok = NetlinkPort.unpin(pin)
      assert descriptors(server) == before
      assert {:ok, %{pins: 0}} = NetlinkPort.info(server)
      refute_received {:netlink_closed, _pin, _reason}
    end

    test "with its owner, and not with its caller", %{server: server} do
      before = descriptors(server)
      {owner, caller} = {idle_process(), self()}

      pid =
        spawn_reporting(fn ->
          {pin!(server, :host), pin!(server, :host, owner: owner),
           pin!(server, :host, owner: caller)}
        end)

      assert_receive {:result, ^pid, {own, its, ours}}
      gone = &match?({:error, _ended}, NetlinkPort.info(&1))
      eventually!(fn -> gone.(own) end)
      assert {:ok, %{owner: ^owner}} = NetlinkPort.info(its)
      send(owner, :stop)
      eventually!(fn -> gone.(its) end)
      assert {:ok, %{owner: ^caller}} = NetlinkPort.info(ours)
      eventually!(fn -> descriptors(server) == before + 1 end)
    end

    test "with an owner that had ended before", %{server: server} do
      owner = idle_process()
      send(owner, :stop)
      eventually!(fn -> not Process.alive?(owner) end)
      pin = pin!(server, :host, owner: owner)
      eventually!(fn -> match?({:error, _ended}, NetlinkPort.info(pin)) end)
    end

    test "with its helper, and its owner is notified once", %{server: server} do
      pin = pin!(server, {:name, netns!()})
      :ok = NetlinkPort.unpin(pin!(server, :host))
      signal!(os_pid(server), "KILL")
      assert_receive {:netlink_closed, ^pin, {:helper_exit, 137}}
      refute_receive {:netlink_closed, %Pin{}, _reason}, 100
    end

    test "when its caller has timed out or died before the reply", %{server: server} do
      before = descriptors(server)
      os_pid = os_pid(server)
      signal!(os_pid, "STOP")
      assert {:error, %Error{reason: :etimedout}} = NetlinkPort.pin(server, :host, timeout: 50)
      {caller, monitor} = spawn_monitor(fn -> NetlinkPort.pin(server, :host, owner: server) end)
      eventually!(fn -> awaited?(server) end)
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^caller, :killed}
      signal!(os_pid, "CONT")
      eventually!(fn -> descriptors(server) == before end)
      assert {:ok, %{pins: 0}} = NetlinkPort.info(server)
    end
  end

  test "a pin is EMFILE when the helper has no descriptor left; a later pin works" do
    script = script!("ulimit -n 32; exec #{helper()} \"$@\"")
    server = start_server!(executable: script)
    {pins, error} = fill(server, [])
    assert {error.stage, error.reason} == {:open, :emfile}
    assert Exception.message(error) =~ "end pins"
    assert length(pins) > 8
    assert {:error, %Error{reason: :emfile}} = NetlinkPort.open(server, :route, netns: :host)
    :ok = NetlinkPort.unpin(hd(pins))
    assert %Pin{} = pin!(server, :host)
    Enum.each(pins, &NetlinkPort.unpin/1)
    assert {_pins, _error} = fill(server, [])
  end

  defp fill(server, pins) do
    case NetlinkPort.pin(server, :host, []) do
      {:ok, pin} -> fill(server, [pin | pins])
      {:error, error} -> {pins, error}
    end
  end

  test "stats/1 and info/1 show a pin with its fields", %{server: server} do
    netns = netns!()
    pin = pin!(server, {:name, netns})
    assert {:ok, %{pins: [told]}} = NetlinkPort.stats(server)
    assert {:ok, ^told} = NetlinkPort.info(pin)

    assert %{
             pin: ^pin,
             owner: owner,
             netns: {:name, ^netns},
             handle: handle,
             descriptor: descriptor,
             inode: inode,
             device: device,
             cookie: cookie
           } = told

    assert owner == self()
    assert {handle, descriptor} == {pin.handle, pin.descriptor}
    assert {inode, device, cookie} == {pin.inode, pin.device, pin.cookie}
    assert inspect(:sys.get_status(server)) =~ "pins: 1"
  end
end
