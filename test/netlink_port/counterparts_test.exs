defmodule NetlinkPort.CounterpartsTest do
  # Compares with the usual tools: the engine reads what they print, and they see what it writes. For each family of
  # netlink(7) that this kernel has and allows.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Message}

  import Bitwise, only: [<<<: 2]

  @inet 2

  setup do
    server = start_server!(keep: [:audit_read, :audit_control])
    netns = netns!()
    open = fn protocol -> open!(server, protocol, netns) end
    %{server: server, netns: netns, open: open}
  end

  defp open!(server, protocol, netns) do
    {:ok, socket} = NetlinkPort.open(server, protocol, netns: {:name, netns}, active: false)
    socket
  end

  # The family's header of that many bytes, and the attributes.
  defp read(%Message{payload: payload}, size) do
    {header, rest} = :erlang.split_binary(payload, size)
    {:ok, attrs} = Attr.decode(rest)
    {header, attrs}
  end

  defp dump!(socket, type, payload, header) do
    {:ok, messages} = NetlinkPort.dump(socket, type, payload)
    for message <- messages, do: {message.type, read(message, header)}
  end

  defp tool!(netns, [program | arguments]) do
    case System.find_executable(program) do
      nil -> nil
      _path -> as_root("ip", ["netns", "exec", netns, program | arguments])
    end
  end

  # `ip -j` prints JSON. This project has no JSON decoder, and needs only a few of its fields.
  defp fields(json, name) do
    for [_, value] <- Regex.scan(~r/"#{name}":\s*(?:"([^"]*)"|\d+)/, json, capture: :all),
        do: value
  end

  defp numbers(json, name) do
    for [_, value] <- Regex.scan(~r/"#{name}":\s*(\d+)/, json), do: String.to_integer(value)
  end

  defp ip_json!(netns, arguments) do
    {output, 0} = as_root("ip", ["-n", netns, "-j" | arguments])
    output
  end

  defp string!(attrs, type) do
    {:ok, string} = Attr.string(attrs, type)
    string
  end

  defp ipv4(<<a, b, c, d>>), do: "#{a}.#{b}.#{c}.#{d}"

  describe "route" do
    test "links and addresses match ip -j", %{netns: netns, open: open} do
      for n <- 1..5, do: ip!(["-n", netns, "link", "add", "br#{n}", "type", "bridge"])
      for n <- 1..9, do: ip!(["-n", netns, "addr", "add", "10.0.#{n}.1/24", "dev", "br1"])
      socket = open.(:route)
      links = for {16, {_header, attrs}} <- dump!(socket, 18, <<0::128>>, 16), do: attrs
      json = ip_json!(netns, ["link"])
      assert Enum.map(links, &string!(&1, 3)) == fields(json, "ifname")
      assert for(attrs <- links, do: elem(Attr.u32(attrs, 4), 1)) == numbers(json, "mtu")

      addresses =
        for {20, {_header, attrs}} <- dump!(socket, 22, <<@inet, 0::56>>, 8) do
          {:ok, address} = Attr.binary(attrs, 2)
          ipv4(address)
        end

      assert Enum.sort(addresses) == Enum.sort(fields(ip_json!(netns, ["-4", "addr"]), "local"))
    end

    test "routes, neighbours and rules match ip -j", %{netns: netns, open: open} do
      ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])
      ip!(["-n", netns, "addr", "add", "10.0.0.1/24", "dev", "br0"])
      ip!(["-n", netns, "link", "set", "br0", "up"])

      for n <- 1..20,
          do: ip!(["-n", netns, "route", "add", "10.1.#{n}.0/24", "via", "10.0.0.#{n + 1}"])

      mac = "02:00:00:00:00:0"
      for n <- 1..5, do: ip!(~w(-n #{netns} neigh add 10.0.0.#{n + 10} lladdr #{mac}#{n} dev br0))

      for n <- 1..4,
          do: ip!(~w(-n #{netns} rule add from 10.9.#{n}.0/24 table main pref #{n * 10}))

      socket = open.(:route)

      routes =
        for {24, {<<2, 24, _, _, 254, _::binary>>, attrs}} <-
              dump!(socket, 26, <<@inet, 0::88>>, 12),
            {:ok, gateway} <- [Attr.binary(attrs, 5)],
            do: ipv4(gateway)

      assert Enum.sort(routes) == Enum.sort(fields(ip_json!(netns, ["route"]), "gateway"))

      # ip(8) leaves out neighbours in the state NUD_NOARP.
      neighbours =
        for {28, {<<_::64, state::16-native, _::16>>, attrs}} <-
              dump!(socket, 30, <<@inet, 0::88>>, 12),
            state != 0x40,
            {:ok, <<_::48>> = mac} <- [Attr.binary(attrs, 2)],
            do: Base.encode16(mac, case: :lower)

      printed =
        for mac <- fields(ip_json!(netns, ["-4", "neigh"]), "lladdr"),
            do: String.replace(mac, ":", "")

      assert Enum.sort(neighbours) == Enum.sort(printed)

      priorities =
        for {32, {_header, attrs}} <- dump!(socket, 34, <<@inet, 0::88>>, 12) do
          case Attr.u32(attrs, 6) do
            {:ok, priority} -> priority
            :missing -> 0
          end
        end

      assert priorities == numbers(ip_json!(netns, ["rule"]), "priority")
    end

    test "changes are shown by ip", %{netns: netns, open: open} do
      socket = open.(:route)
      kind = Attr.encode([{3, "made0\0"}, {4, Attr.u32(1_400)}, {18, [{1, "bridge\0"}]}])
      flags = [:create, :excl]
      assert {:ok, []} = NetlinkPort.request(socket, 16, [<<0::128>> | kind], flags: flags)
      json = ip_json!(netns, ["link", "show", "made0"])
      assert {fields(json, "ifname"), numbers(json, "mtu")} == {["made0"], [1_400]}

      {:ok, [link]} =
        NetlinkPort.request(socket, 18, [<<0::128>> | Attr.encode([{3, "made0\0"}])])

      {<<_::32, index::32-native, _::64>>, _attrs} = read(link, 16)
      address = [<<@inet, 24, 0, 0, index::32-native>> | Attr.encode([{2, <<10, 5, 0, 1>>}])]
      assert {:ok, []} = NetlinkPort.request(socket, 20, address, flags: flags)
      assert fields(ip_json!(netns, ["-4", "addr", "show", "made0"]), "local") == ["10.5.0.1"]
    end
  end

  describe "sock_diag" do
    test "listening TCP sockets match ss", %{netns: netns, open: open} do
      # The VM of these tests is root's, so that OTP's own option can make some sockets.
      for _ <- 1..3 do
        opts = [ip: {127, 0, 0, 1}, netns: String.to_charlist(netns_path(netns))]
        {:ok, _listening} = :gen_tcp.listen(0, opts)
      end

      # struct inet_diag_req_v2: family, protocol TCP, no extensions, TCP_LISTEN alone.
      request = <<@inet, 6, 0, 0, 1 <<< 10::32-native, 0::384>>
      {:ok, sockets} = NetlinkPort.dump(open.(:sock_diag), 20, request)
      # struct inet_diag_msg: four bytes, then the source port.
      found = for %{payload: <<_::32, port::16, _::binary>>} <- sockets, do: port
      assert length(found) == 3
      assert Enum.sort(found) == Enum.sort(ports(tool!(netns, ~w(ss -Htln))))
    end

    defp ports({output, 0}) do
      for [_, port] <- Regex.scan(~r/127\.0\.0\.1:(\d+)/, output), do: String.to_integer(port)
    end
  end

  describe "netfilter" do
    @describetag :nftables

    test "a table and its chain from a batch are listed by nft", %{
      netns: netns,
      open: open
    } do
      socket = open.(:netfilter)
      nfgenmsg = fn family, id -> <<family, 0, id::16>> end
      table = Attr.encode([{1, "made\0"}])
      chain = Attr.encode([{1, "made\0"}, {3, "first\0"}])
      flags = [:create, :excl]

      batch = [
        {16, [], nfgenmsg.(0, 10)},
        {0xA00, flags, [nfgenmsg.(@inet, 0) | table]},
        {0xA03, flags, [nfgenmsg.(@inet, 0) | chain]},
        {17, [], nfgenmsg.(0, 10)}
      ]

      assert {:ok, outcomes} = NetlinkPort.batch(socket, batch)
      assert Enum.all?(outcomes, &(&1 == {:ok, []}))
      {:ok, tables} = NetlinkPort.dump(socket, 0xA01, nfgenmsg.(0, 0))
      names = for message <- tables, do: message |> read(4) |> elem(1) |> string!(1)
      {:ok, chains} = NetlinkPort.dump(socket, 0xA04, nfgenmsg.(0, 0))
      chain_names = for message <- chains, do: message |> read(4) |> elem(1) |> string!(3)
      assert {names, chain_names} == {["made"], ["first"]}

      case tool!(netns, ~w(nft -j list ruleset)) do
        {json, 0} ->
          assert json =~ ~s("table": {"family": "ip", "name": "made")
          assert json =~ ~s("table": "made", "name": "first")

        nil ->
          IO.puts("nft is missing: what it lists was not compared")
      end
    end

    test "connections match conntrack -L", %{netns: netns, open: open} do
      # A rule that matches connections makes the kernel track them.
      nft =
        ~w(nft add table t; add chain t c { type filter hook output priority 0; }; add rule t c ct state new accept)

      with {_output, 0} <- tool!(netns, nft),
           {_output, 0} <- tool!(netns, ~w(ping -c 1 -W 1 127.0.0.1)),
           {listed, 0} <- tool!(netns, ~w(conntrack -L)) do
        {:ok, flows} = NetlinkPort.dump(open.(:netfilter), 0x101, <<@inet, 0, 0::16>>)
        lines = for line <- String.split(listed, "\n"), line =~ "src=", do: line
        assert length(flows) == length(lines)
      else
        other -> IO.puts("connections were not compared: #{inspect(other)}")
      end
    end
  end

  test "xfrm: a dump has no policy, then the policy that ip xfrm added", %{
    netns: netns,
    open: open
  } do
    socket = open.(:xfrm)
    assert {:ok, []} = NetlinkPort.dump(socket, 21, "")

    case as_root("ip", ~w(-n #{netns} xfrm policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out)) do
      {_output, 0} -> assert {:ok, [%Message{type: 19}]} = NetlinkPort.dump(socket, 21, "")
      {output, _refused} -> IO.puts("xfrm has no policies here: #{String.trim(output)}")
    end
  end

  test "uevents of an interface are strings, and no messages", %{open: open, netns: netns} do
    socket = open.(:kobject_uevent)
    :ok = NetlinkPort.join(socket, 1)
    as_root("ip", ["-n", netns | ~w(link add br0 type bridge)])
    [datagram, variables] = uevent(socket, "add@/devices/virtual/net/br0")
    assert "INTERFACE=br0" in variables
    assert {:error, _not_a_message} = Message.decode(datagram)
  end

  # Those of the interface's queues (add@/devices/virtual/net/br0/queues/tx-0) come after it, on Linux 7.2 before it.
  defp uevent(socket, title) do
    assert {:ok, datagram} = NetlinkPort.recv(socket, within(5_000))

    case String.split(datagram, "\0", trim: true) do
      [^title | variables] -> [datagram, variables]
      ["add@/devices/virtual/net/br0/" <> _queue | _variables] -> uevent(socket, title)
    end
  end

  test "audit: its status, if the kernel allows it", %{server: server} do
    with {:ok, socket} <- NetlinkPort.open(server, :audit, active: false),
         # AUDIT_GET, which is acked before it is answered.
         {:ok, messages} <- NetlinkPort.request(socket, 1_000, "", ack: false) do
      assert [%Message{type: 1_000, payload: <<_mask::32, _enabled::32, _::binary>>} | _] =
               messages
    else
      {:error, error} -> IO.puts("audit is not to be had here: #{Exception.message(error)}")
    end
  end
end
