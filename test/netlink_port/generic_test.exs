defmodule NetlinkPort.GenericTest do
  # Families of the running kernel, compared with the output of genl(8).
  use NetlinkPort.Case, async: true

  doctest NetlinkPort.Generic

  alias NetlinkPort.{Attr, Connection, DecodeError, Generic, Message}

  @moduletag :root

  @getfamily 3
  @newfamily 1
  @family_id 1
  @family_name 2

  setup do
    netns = netns!()
    server = start_server!()
    opts = [netns: {:name, netns}]
    {:ok, socket} = NetlinkPort.open(server, :generic, [active: false] ++ opts)
    start = {Connection, [server: server, protocol: :generic] ++ opts}
    connection = start_supervised!(Supervisor.child_spec(start, id: make_ref()))
    %{netns: netns, server: server, socket: socket, connection: connection}
  end

  defp name_of(%Message{} = message) do
    {:ok, {@newfamily, _version, rest}} = Generic.decode(message)
    {:ok, attrs} = Attr.decode(rest)
    {:ok, name} = Attr.string(attrs, @family_name)
    name
  end

  defp genl(netns) do
    if System.find_executable("genl"),
      do: ip!(["netns", "exec", netns, "genl", "ctrl", "list"]),
      else: nil
  end

  # The families as genl(8) prints them: name, number, version, header, attributes, commands, groups.
  defp printed(text) do
    for ["Name: " <> name | lines] <- sections(text) do
      text = Enum.join(lines, "\n")

      [[_, id, version, header, attributes]] =
        Regex.scan(~r/ID: (\S+)\s+Version: (\S+)\s+header size: (\d+)\s+max attribs: (\d+)/, text)

      operations =
        for [_, id | flags] <-
              Regex.scan(~r/#\d+:\s+ID-0x(\w+) \n(?:\s+Capabilities \(0x(\w+)\))?/, text) do
          {hex(id), for(flags <- flags, do: hex(flags))}
        end

      groups =
        for [_, id, group] <- Regex.scan(~r/#\d+:\s+ID-0x(\w+)\s+name: (\S+)/, text),
            do: {group, hex(id)}

      numbers = for text <- [id, version], do: text |> String.trim_leading("0x") |> hex()
      sizes = for text <- [header, attributes], do: String.to_integer(text)
      {String.trim(name), numbers ++ sizes, Map.new(operations), Map.new(groups)}
    end
  end

  defp hex(text), do: String.to_integer(text, 16)

  defp sections(text) do
    text
    |> String.split(~r/^(?=Name: )/m, trim: true)
    |> Enum.map(&String.split(&1, "\n"))
    |> Enum.filter(&match?(["Name: " <> _ | _], &1))
  end

  @flags %{admin: 1, do: 2, dump: 4, policy: 8, user_namespace_admin: 16}

  # genl(8) prints flags of families of version 2 or later; newer ones print those of all.
  defp old_with_flags?({_name, [_id, version | _sizes], operations, _groups}) do
    version < 2 and Enum.any?(operations, fn {_id, flags} -> flags != [] end)
  end

  defp told(family, all?) do
    operations =
      for {id, flags} <- family.operations, into: %{} do
        flags = flags |> Enum.map(&Map.fetch!(@flags, &1)) |> Enum.sum()
        {id, if(all? or family.version >= 2, do: [flags], else: [])}
      end

    numbers = [family.id, family.version, family.header_size, family.max_attribute]
    {family.name, numbers, operations, family.groups}
  end

  test "the list of families matches genl(8)", %{socket: socket, netns: netns} do
    assert {:ok, families} = Generic.families(socket)
    assert "nlctrl" in Enum.map(families, & &1.name)

    if text = genl(netns) do
      printed = printed(text)
      all? = Enum.any?(printed, &old_with_flags?/1)
      assert Enum.sort(Enum.map(families, &told(&1, all?))) == Enum.sort(printed)
    end
  end

  test "a family by its name is that of the list, on a socket and on a connection", context do
    %{socket: socket, connection: connection} = context
    assert {:ok, families} = Generic.families(connection)

    for family <- families do
      assert Generic.family(socket, family.name) == {:ok, family}
      assert Generic.family(connection, family.name) == {:ok, family}
    end

    assert {:ok, %{id: 16, groups: %{"notify" => 16}, operations: operations}} =
             Generic.family(socket, "nlctrl")

    assert :dump in operations[@getfamily]
  end

  test "an unknown family is ENOENT", %{socket: socket, connection: connection} do
    for via <- [socket, connection] do
      assert {:error, error} = Generic.family(via, "no-such-family")
      assert {error.stage, error.reason} == {:request, :enoent}
      assert {:error, ^error} = Generic.request(via, "no-such-family", 1)
      assert {:error, ^error} = Generic.dump(via, "no-such-family", 1)

      assert Exception.message(error) =~
               "request of family no-such-family: ENOENT: there is no such family in this namespace"

      # As if its module had been unloaded.
      Generic.Cache.put(via, %Generic{id: 1_021, name: "no-such-family"})
      assert {:error, ^error} = Generic.request(via, "no-such-family", 1)
    end
  end

  test "requests and dumps take the name of a family, or the family", context do
    for via <- [context.socket, context.connection] do
      {:ok, nlctrl} = Generic.family(via, "nlctrl")

      for family <- ["nlctrl", nlctrl] do
        payload = Attr.encode([{@family_name, "ethtool\0"}])
        assert {:ok, [message]} = Generic.request(via, family, @getfamily, payload)
        assert name_of(message) == "ethtool"
        assert {:ok, messages} = Generic.dump(via, family, @getfamily, "", timeout: within(5_000))
        assert "nlctrl" in Enum.map(messages, &name_of/1)
        assert {:error, %Error{reason: :eopnotsupp}} = Generic.request(via, family, 200)
      end
    end
  end

  describe "the cache" do
    # The number of requests sent: each takes a sequence number of the connection.
    defp asked(connection, fun) do
      before = :sys.get_state(connection).calls.next
      fun.()
      :sys.get_state(connection).calls.next - before
    end

    test "asks the kernel for a name once in each process", %{connection: connection} do
      get = fn -> {:error, _} = Generic.request(connection, "ethtool", 200) end
      assert asked(connection, get) == 2
      assert asked(connection, get) == 1
      task = Task.async(fn -> {asked(connection, get), asked(connection, get)} end)
      assert Task.await(task, within(5_000)) == {2, 1}
    end

    test "asks again for a number that no longer exists", context do
      for via <- [context.connection, context.socket] do
        {:ok, nlctrl} = Generic.family(via, "nlctrl")
        # As if its module had been loaded again.
        stale = %{nlctrl | id: 1_022}
        assert {:error, %Error{reason: :enoent}} = Generic.dump(via, stale, @getfamily)
        Generic.Cache.put(via, stale)
        assert {:ok, [_ | _]} = Generic.dump(via, "nlctrl", @getfamily)
        payload = Attr.encode([{@family_id, Attr.u16(16)}])
        Generic.Cache.put(via, stale)
        assert {:ok, [message]} = Generic.request(via, "nlctrl", @getfamily, payload)
        assert name_of(message) == "nlctrl"
      end
    end

    test "returns an ENOENT of the family itself, and does not repeat the request", %{
      connection: connection
    } do
      payload = Attr.encode([{@family_name, "no-such-family\0"}])
      get = fn -> Generic.request(connection, "nlctrl", @getfamily, payload) end
      assert {:error, %Error{reason: :enoent}} = get.()
      # The request, and the family again.
      assert asked(connection, get) == 2
    end

    test "is bounded", %{socket: socket} do
      for n <- 1..1_000, do: Generic.Cache.put(socket, %Generic{id: n, name: "family-#{n}"})
      assert map_size(Process.get(Generic.Cache)) <= 256
      assert {:ok, [_ | _]} = Generic.dump(socket, "nlctrl", @getfamily)
    end
  end

  describe "join/3" do
    test "joins a group by its name", %{socket: socket} do
      {:ok, families} = Generic.families(socket)
      groups = for family <- families, {group, id} <- family.groups, do: {family, group, id}
      # Some groups need CAP_NET_ADMIN of another namespace.
      assert Generic.join(socket, "nlctrl", "notify") == :ok
      assert NetlinkPort.memberships(socket) == {:ok, [16]}
      {family, group, id} = Enum.find(groups, fn {family, _, _} -> family.name == "ethtool" end)
      assert Generic.join(socket, family, group) == :ok
      assert NetlinkPort.memberships(socket) == {:ok, Enum.sort([16, id])}
    end

    test "delivers events of the group, with their command", %{socket: socket, netns: netns} do
      # ETHTOOL_MSG_FEATURES_NTF and the like; include/uapi/linux/ethtool_netlink.h
      assert Generic.join(socket, "ethtool", "monitor") == :ok
      {:ok, %{id: id}} = Generic.family(socket, "ethtool")
      ip!(["-n", netns, "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
      # ETHTOOL_MSG_FEATURES_SET (12) of v0: tx-checksumming off, in a bitset of names.
      bits = [{3, [{1, [{2, "tx-checksum-ip-generic\0"}]}]}]
      payload = Attr.encode([{1, [{2, "v0\0"}]}, {3, bits}])
      assert {:ok, [_changed]} = Generic.request(socket, "ethtool", 12, payload)
      assert {:ok, datagram} = event(socket)
      assert {:ok, [%Message{type: ^id} = message]} = Message.decode(datagram)
      assert {:ok, {_command, 1, _attributes}} = Generic.decode(message)
    end

    defp event(socket) do
      receive do
        {:netlink, ^socket, datagram} -> {:ok, datagram}
      after
        0 -> NetlinkPort.recv(socket, within(5_000))
      end
    end

    test "is ENOENT for an unknown group or family", %{socket: socket} do
      assert {:error, error} = Generic.join(socket, "nlctrl", "no-such-group")
      assert {error.stage, error.reason} == {:request, :enoent}

      assert Exception.message(error) ==
               "request of group no-such-group of nlctrl: ENOENT: the family has no such group"

      assert {:error, %Error{reason: :enoent} = error} =
               Generic.join(socket, "no-such-family", "notify")

      assert Exception.message(error) =~ "there is no such family"
    end
  end

  test "wrong arguments raise", %{server: server, socket: socket} do
    {:ok, route} = NetlinkPort.open(server, :route, active: false)
    assert_raise ArgumentError, ~r/:generic/, fn -> Generic.family(route, "nlctrl") end
    opts = [server: server, protocol: :route]
    connection = start_supervised!({NetlinkPort.Connection, opts})

    for ask <- [
          fn -> Generic.family(connection, "nlctrl") end,
          fn -> Generic.families(connection) end,
          fn -> Generic.request(connection, "nlctrl", 3) end,
          fn -> Generic.dump(connection, "nlctrl", 3) end
        ] do
      assert_raise ArgumentError,
                   ~r/a connection of the protocol :generic, got one of :route/,
                   ask
    end

    assert_raise ArgumentError, fn -> Generic.family(socket, "a name of seventeen") end
    assert_raise ArgumentError, fn -> Generic.family(socket, "nul\0") end
    assert_raise ArgumentError, fn -> Generic.request(socket, "nlctrl", 256) end
    assert_raise ArgumentError, fn -> Generic.request(socket, "nlctrl", 3, "", color: 1) end
  end

  test "wrong arguments of any type raise ArgumentError, which names the argument", context do
    %{socket: socket} = context
    {:ok, follow} = Generic.follow(socket, [{"nlctrl", "notify"}])

    for wrong <- [nil, :foo, 1.5, "x", %{}, [1 | 2], self(), [{"version", 1}]] do
      for how <- [&Generic.request/5, &Generic.dump/5] do
        assert_raise ArgumentError, ~r/keyword list/, fn ->
          how.(socket, "nlctrl", 3, "", wrong)
        end
      end

      assert_raise ArgumentError, ~r/socket/, fn -> Generic.join(wrong, "nlctrl", "notify") end
      assert_raise ArgumentError, ~r/socket/, fn -> Generic.follow(wrong, [{"a", "b"}]) end
      assert_raise ArgumentError, ~r/follow/, fn -> Generic.rejoin(wrong, "") end
      assert_raise ArgumentError, ~r/Message/, fn -> Generic.decode(wrong) end

      if wrong != "x" do
        assert_raise ArgumentError, ~r/group/, fn -> Generic.join(socket, "nlctrl", wrong) end
        assert_raise ArgumentError, ~r/datagram/, fn -> Generic.rejoin(follow, wrong) end
      end
    end
  end

  test "the error of a group that does not exist is printable, whatever its name", context do
    for name <- [<<255, 0, 1>>, "a\e[2J", ""] do
      assert {:error, %Error{reason: :enoent} = error} =
               Generic.join(context.socket, "nlctrl", name)

      assert String.printable?(Exception.message(error))
      assert Exception.message(error) =~ "of nlctrl"
    end
  end

  test "an operation whose flags are malformed is left out of its family" do
    family = fn flags ->
      operation = [{1, NetlinkPort.Attr.u32(3)}, {2, flags}]
      attrs = [{1, NetlinkPort.Attr.u16(16)}, {2, "nlctrl\0"}, {6, [{1, operation}]}]
      payload = [<<1, 2, 0::16>>, NetlinkPort.Attr.encode(attrs)]
      message = %Message{type: 16, payload: IO.iodata_to_binary(payload)}
      {:ok, %{operations: operations}} = NetlinkPort.Generic.Nlctrl.family([message])
      operations
    end

    assert Map.keys(family.(NetlinkPort.Attr.u32(0))) == [3]
    assert family.(<<1>>) == %{}
  end

  test "a payload that is shorter than the header is an error" do
    assert {:error, %DecodeError{}} = Generic.decode(%Message{type: 16, payload: <<1, 2, 3>>})
  end
end
