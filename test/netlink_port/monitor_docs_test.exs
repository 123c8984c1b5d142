defmodule NetlinkPort.MonitorDocsTest do
  # Runs the examples of the monitor's documentation unchanged.
  use NetlinkPort.Case, async: false

  alias NetlinkPort.{Attr, Message, Monitor}

  @moduletag :root

  {:docs_v1, _, :elixir, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Monitor)
  @moduledoc_text moduledoc

  # IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_WIRELESS
  @name 3
  @mtu 4
  @master 10
  @wireless 11

  # The code between two lines of the moduledoc, with the namespace of the test.
  defp code(from, to, netns) do
    [_, rest] = String.split(@moduledoc_text, from, parts: 2)
    [code, _] = String.split(rest, to, parts: 2)
    String.replace(from <> code, "blue", netns)
  end

  setup do
    netns = netns!()
    children = code("    children = [\n", "\nA subscriber", netns)
    code = String.replace(children, "MyApp.", "NetlinkPort.MonitorDocsTest.MyApp.")
    {children, _binding} = Code.eval_string(code)
    for child <- children, do: start_supervised!(child)
    %{netns: netns}
  end

  # The subscriber of the moduledoc, as a module.
  defp subscriber!(netns) do
    name = Module.concat(__MODULE__, "Links#{System.unique_integer([:positive])}")
    code = code("    def init(_argument)", "## Messages to subscribers", netns)
    code = String.replace(code, "MyApp.", "NetlinkPort.MonitorDocsTest.MyApp.")
    Code.compile_string("defmodule #{inspect(name)} do\nuse GenServer\n#{code}\nend")
    start_supervised!(%{id: name, start: {GenServer, :start_link, [name, nil]}})
  end

  defp links(subscriber), do: :sys.get_state(subscriber)

  defp names(subscriber) do
    for {_index, %{@name => name}} <- links(subscriber), do: String.trim(name, <<0>>)
  end

  defp tell(subscriber, type, family, index, attrs) do
    payload =
      IO.iodata_to_binary([<<family, 0::24, index::32-native, 0::64>>, Attr.encode(attrs)])

    datagram = IO.iodata_to_binary(Message.encode(%Message{type: type, payload: payload}))
    send(subscriber, {:netlink_event, self(), datagram})
  end

  test "the subscriber has the links of the namespace, and follows them", %{netns: netns} do
    subscriber = subscriber!(netns)
    eventually!(fn -> names(subscriber) == ["lo"] end)
    ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
    ip!(["-n", netns, "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
    eventually!(fn -> Enum.sort(names(subscriber)) == ["br0", "lo", "v0", "v1"] end)

    # Events about a port of a bridge (AF_BRIDGE) are not taken for a link that comes or goes.
    ip!(["-n", netns, "link", "set", "v0", "master", "br0"])
    [index] = for {index, %{@name => "v0\0"}} <- links(subscriber), do: index
    eventually!(fn -> is_map_key(links(subscriber)[index], @master) end)
    ip!(["-n", netns, "link", "set", "v0", "nomaster"])
    eventually!(fn -> not is_map_key(links(subscriber)[index], @master) end)
    assert Enum.sort(names(subscriber)) == ["br0", "lo", "v0", "v1"]
    ip!(["-n", netns, "link", "del", "v0"])
    eventually!(fn -> Enum.sort(names(subscriber)) == ["br0", "lo"] end)
  end

  test "a message with a part of a link keeps the other attributes", %{netns: netns} do
    subscriber = subscriber!(netns)
    eventually!(fn -> names(subscriber) == ["lo"] end)
    %{1 => %{@mtu => mtu}} = links(subscriber)
    # As a wireless driver does (net/wireless/wext-core.c).
    tell(subscriber, 16, 0, 1, [{@wireless, <<1, 2, 3, 4>>}])

    assert %{1 => %{@name => "lo\0", @mtu => ^mtu, @wireless => <<1, 2, 3, 4>>}} =
             links(subscriber)

    # A port of a bridge, and a port that leaves it.
    tell(subscriber, 16, 7, 1, [{@name, "other\0"}])
    tell(subscriber, 17, 7, 1, [{@name, "other\0"}])
    assert names(subscriber) == ["lo"]
    tell(subscriber, 17, 0, 1, [{@name, "lo\0"}])
    assert links(subscriber) == %{}
  end

  # The monitors of families with a subscription: they start, and are up.
  for {title, from, to} <- [
        {"process events", "    # struct cn_msg: CN_IDX_PROC", "Packets that a rule logs"},
        {"nflog", "    # NFNL_SUBSYS_ULOG and NFULNL_MSG_CONFIG; struct", "What cannot be sent"}
      ] do
    # The kernel sends process events only in the initial namespaces.
    if title == "process events", do: @tag(init_user_namespace: true, proc_events: true)

    test "the subscription to #{title} is accepted", %{netns: netns} do
      code = code(unquote(from), unquote(to), netns)
      code = String.replace(code, "MyApp.", "NetlinkPort.MonitorDocsTest.MyApp.")
      {{:ok, monitor}, _binding} = Code.eval_string(code)
      assert Monitor.subscribe(monitor) == {:ok, monitor}
      assert_receive {:netlink_resync, ^monitor, :subscribed}
      :ok = GenServer.stop(monitor)
    end
  end
end
