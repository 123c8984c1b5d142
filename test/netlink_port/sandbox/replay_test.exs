defmodule NetlinkPort.Sandbox.ReplayTest do
  # Captures of this library, of Wireshark and of tcpdump, played to an owner.
  use ExUnit.Case, async: true
  use NetlinkPort.Sandbox

  import NetlinkPort.Case, only: [eventually!: 1, tmp_path!: 1]
  import NetlinkPort.Cost

  alias NetlinkPort.{DecodeError, Error, Message, Rtnl, Sandbox}
  alias NetlinkPort.Capture.Pcapng
  alias NetlinkPort.Sandbox.CaptureFile

  @getlink 18
  @kernel 7
  @user 6
  # PACKET_OUTGOING, which AF_PACKET gives for packets of nlmon in both directions.
  @outgoing 4

  defp message(type, flags, payload) do
    IO.iodata_to_binary(
      Message.encode(%Message{type: type, flags: flags, seq: 7, payload: payload})
    )
  end

  defp question, do: message(@getlink, 0x301, <<0::128>>)
  defp event(n), do: message(16, 0, <<0::128, n::32>>)

  defp cooked(type, protocol, datagram),
    do: <<type::16, 824::16, 0::80, protocol::16, datagram::binary>>

  defp n(order, size, value) do
    case order do
      :big -> <<value::size(size)-big>>
      :little -> <<value::size(size)-little>>
    end
  end

  # A pcap file of packets `{seconds, fraction, bytes, length}`.
  defp pcap(order, magic, link, packets) do
    head = [n(order, 32, magic), n(order, 16, 2), n(order, 16, 4), <<0::64>>]
    head = [head, n(order, 32, 262_144), n(order, 32, link)]

    packets =
      for {seconds, fraction, bytes, length} <- packets do
        numbers = [seconds, fraction, byte_size(bytes), length]
        [Enum.map(numbers, &n(order, 32, &1)), bytes]
      end

    file!([head | packets])
  end

  defp packet(seconds, fraction, bytes), do: {seconds, fraction, bytes, byte_size(bytes)}

  # A pcapng file of blocks `{type, body}`, in a byte order.
  defp pcapng(order, blocks) do
    section = [n(order, 32, 0x1A2B3C4D), n(order, 16, 1), n(order, 16, 0), <<-1::64>>]

    file!(
      for {type, body} <- [{0x0A0D0D0A, section} | blocks] do
        body = IO.iodata_to_binary(body)
        padding = Integer.mod(-byte_size(body), 4)
        length = n(order, 32, byte_size(body) + padding + 12)
        [n(order, 32, type), length, body, <<0::size(8 * padding)>>, length]
      end
    )
  end

  defp file!(bytes) do
    path = tmp_path!("capture")
    File.write!(path, bytes)
    path
  end

  defp received do
    receive do
      {:netlink, :replay, datagram} -> [datagram | received()]
      {:netlink_error, :replay, error} -> [error | received()]
    after
      0 -> []
    end
  end

  describe "a capture of this library" do
    setup :netlink_sandbox

    test "is played to an owner as it was received, without the sent datagrams", c do
      path = tmp_path!("trace.pcapng")
      {:ok, capture} = NetlinkPort.capture(c.server, path)
      {:ok, socket} = NetlinkPort.open(c.server, :route, netns: c.netns, groups: [1])
      {:ok, other} = NetlinkPort.open(c.server, :generic, netns: c.netns, active: false)
      {:ok, _} = NetlinkPort.Generic.family(other, "nlctrl")
      run!(c.sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
      run!(c.sandbox, "ip", ["link", "del", "br0"])
      assert_receive {:netlink, ^socket, first}
      seen = [first | until_deleted(socket)]
      {:ok, _counts} = NetlinkPort.stop_capture(capture)

      {:ok, told} = replay(path, to: self(), socket: socket, protocol: :route)
      assert told == %{datagrams: length(seen), cut: 0, truncated: false}
      for datagram <- seen, do: assert_received({:netlink, ^socket, ^datagram})

      interface = "route in #{NetlinkPort.Socket.place(c.netns)}, handle #{socket.handle}"
      assert {:ok, %{datagrams: n}} = replay(path, to: self(), interface: interface)
      assert n == length(seen)
      assert received() == seen

      assert {:ok, %{datagrams: all}} =
               replay(path, to: self(), tag: :netlink_event, socket: :monitor)

      assert all > n
      assert_received {:netlink_event, :monitor, ^first}
    end

    defp until_deleted(socket) do
      assert_receive {:netlink, ^socket, datagram}
      deleted? = Enum.any?(Rtnl.messages(datagram), fn {type, _, _} -> type == 17 end)
      if deleted?, do: [datagram], else: [datagram | until_deleted(socket)]
    end
  end

  test "a cut datagram in a capture of this library is EMSGSIZE with its length" do
    blocks = [
      Pcapng.section_header(),
      Pcapng.interface("a"),
      Pcapng.datagram(0, 5, :in, 0, {event(1), byte_size(event(1))}),
      Pcapng.datagram(0, 6, :in, 0, {event(2), 400_000}),
      Pcapng.datagram(0, 7, :out, 0, {question(), byte_size(question())})
    ]

    assert {:ok, %{datagrams: 1, cut: 1, truncated: false}} = replay(file!(blocks), to: self())
    assert [event, %Error{stage: :recv, reason: :emsgsize, length: 400_000}] = received()
    assert event == event(1)
  end

  # tcpdump -s 8 and the like. LINKTYPE_NETLINK has a header of 16 bytes, and the protocol is its end.
  test "a datagram that was cut within the header of its packet counts as cut" do
    size = byte_size(event(1))

    for kept <- 0..15 do
      packet = fn type, datagram ->
        bytes = cooked(type, 0, datagram)
        {1, 0, binary_part(bytes, 0, kept), byte_size(bytes)}
      end

      packets = [packet.(@user, event(1)), packet.(@user, ""), packet.(@kernel, question())]
      # The type, which tells the direction, is in the first two bytes.
      cut = if kept < 2, do: 3, else: 2
      told = {:ok, %{datagrams: 0, cut: cut, truncated: false}}

      for protocol <- [nil, :route, :generic] do
        path = pcap(:little, 0xA1B2C3D4, 253, packets)
        assert {kept, told} == {kept, replay(path, to: self(), protocol: protocol)}
        assert [%Error{reason: :emsgsize, length: ^size}, %Error{length: 0} | rest] = received()
        assert length(rest) == cut - 2
      end

      word = &n(:little, 32, &1)

      blocks =
        for {1, 0, bytes, length} <- packets do
          padding = <<0::size(8 * Integer.mod(-kept, 4))>>
          # The direction is in the flags: inbound.
          flags = [n(:little, 16, 2), n(:little, 16, 4), word.(1), word.(0)]
          numbers = for number <- [0, 0, 0, kept, length], do: word.(number)
          {6, [numbers, bytes, padding, flags]}
        end

      interface = {1, [n(:little, 16, 253), <<0::16>>, word.(0)]}
      assert {kept, told} == {kept, replay(pcapng(:little, [interface | blocks]), to: self())}
      assert length(received()) == cut
    end
  end

  test "pcap, as tcpdump writes it, of both byte orders, us and ns" do
    for order <- [:big, :little], {magic, unit} <- [{0xA1B2C3D4, 1_000}, {0xA1B23C4D, 1}] do
      fraction = div(20_000_000, unit)

      path =
        pcap(order, magic, 253, [
          packet(100, 0, cooked(@kernel, 0, question())),
          packet(100, 0, cooked(@user, 0, event(1))),
          packet(100, fraction, cooked(@user, 0, event(2))),
          packet(100, fraction, cooked(@user, 15, "add@/devices"))
        ])

      assert {:ok, %{datagrams: 3}} = replay(path, to: self())
      assert received() == [event(1), event(2), "add@/devices"]
      assert {:ok, %{datagrams: 1}} = replay(path, to: self(), protocol: :kobject_uevent)
      assert received() == ["add@/devices"]

      {us, {:ok, %{datagrams: 3}}} = :timer.tc(fn -> replay(path, to: self(), timed: true) end)
      assert us >= 20_000
      assert received() == [event(1), event(2), "add@/devices"]
    end
  end

  test "requests are left out if the file has no directions" do
    packets = for bytes <- [question(), event(1)], do: packet(1, 0, cooked(@outgoing, 0, bytes))
    assert {:ok, %{datagrams: 1}} = replay(pcap(:little, 0xA1B2C3D4, 253, packets), to: self())
    assert received() == [event(1)]
  end

  test "pcapng of both byte orders, with units, offsets, other interfaces and old blocks" do
    for order <- [:big, :little] do
      u = &n(order, &1, &2)

      option = fn code, value ->
        [
          u.(16, code),
          u.(16, byte_size(value)),
          value,
          <<0::size(8 * Integer.mod(-byte_size(value), 4))>>
        ]
      end

      interface = fn link, options ->
        {1, [u.(16, link), <<0::16>>, u.(32, 0), options, <<0::32>>]}
      end

      enhanced = fn number, time, bytes, options ->
        <<high::32, low::32>> = <<time::64>>
        padding = <<0::size(8 * Integer.mod(-byte_size(bytes), 4))>>

        {6,
         [
           u.(32, number),
           u.(32, high),
           u.(32, low),
           u.(32, byte_size(bytes)),
           u.(32, byte_size(bytes)),
           bytes,
           padding,
           options
         ]}
      end

      odd = event(3) <> <<1>>

      path =
        pcapng(order, [
          interface.(1, option.(2, "eth0")),
          # A unit of 2^-10 s, and an offset of 7 s.
          interface.(253, [
            option.(2, "nlmon0"),
            option.(9, <<0x8A>>),
            option.(14, IO.iodata_to_binary(u.(64, 7)))
          ]),
          enhanced.(0, 0, "ethernet", []),
          enhanced.(1, 1024, cooked(@user, 0, event(1)), []),
          # The direction is in the flags alone: outbound, then inbound.
          enhanced.(1, 1024, cooked(@outgoing, 0, event(9)), [
            option.(2, IO.iodata_to_binary(u.(32, 2))),
            <<0::32>>
          ]),
          enhanced.(1, 1024 + 20, cooked(@outgoing, 0, question()), [
            option.(2, IO.iodata_to_binary(u.(32, 1))),
            <<0::32>>
          ]),
          {2,
           [
             u.(16, 1),
             u.(16, 0),
             u.(32, 0),
             u.(32, 1044),
             u.(32, byte_size(odd) + 16),
             u.(32, byte_size(odd) + 16),
             cooked(@user, 0, odd)
           ]},
          {0x0BAD, "whatever"}
        ])

      {us, told} = :timer.tc(fn -> replay(path, to: self(), timed: true) end)
      assert told == {:ok, %{datagrams: 3, cut: 0, truncated: false}}
      assert us >= 19_000
      assert received() == [event(1), question(), odd]
      assert {:ok, %{datagrams: 0}} = replay(path, to: self(), interface: "eth0")
    end
  end

  test "a simple packet has no time, and at most the snap length of its interface" do
    bytes = cooked(@user, 0, event(1))

    blocks = fn snaplen ->
      [
        {1, [n(:little, 16, 253), <<0::16>>, n(:little, 32, snaplen)]},
        {3,
         [n(:little, 32, byte_size(bytes)), binary_part(bytes, 0, min(snaplen, byte_size(bytes)))]}
      ]
    end

    assert {:ok, %{datagrams: 1, cut: 0}} =
             replay(pcapng(:little, blocks.(262_144)), to: self(), timed: true)

    assert {:ok, %{datagrams: 0, cut: 1}} = replay(pcapng(:little, blocks.(32)), to: self())
    size = byte_size(event(1))
    assert [_event, %Error{reason: :emsgsize, length: ^size}] = received()
  end

  # Blocks of a little-endian file: an interface with options `{code, value}`, and packets with and without a time.
  defp interface(options) do
    options =
      for {code, value} <- options,
          do: [n(:little, 16, code), n(:little, 16, byte_size(value)), value]

    {1, [n(:little, 16, 253), <<0::48>>, options, <<0::32>>]}
  end

  defp timed(number, time, bytes) do
    <<high::32, low::32>> = <<time::64>>
    numbers = [number, high, low, byte_size(bytes), byte_size(bytes)]
    {6, [Enum.map(numbers, &n(:little, 32, &1)), bytes]}
  end

  defp timeless(bytes), do: {3, [n(:little, 32, byte_size(bytes)), bytes]}

  test "a capture of very many sockets, each an interface, costs in proportion to their number" do
    assert_in_proportion(fn count ->
      blocks =
        for number <- 0..(count - 1),
            block <- [
              Pcapng.interface("route in host, handle #{number}"),
              Pcapng.datagram(number, 1, :in, 0, {event(1), byte_size(event(1))})
            ],
            do: block

      file = IO.iodata_to_binary([Pcapng.section_header() | blocks])

      reductions(fn ->
        assert {:ok, packets, false} = CaptureFile.read(file)
        assert List.last(packets).interface == "route in host, handle #{count - 1}"
      end)
    end)
  end

  test "packets without a time are played at once, in their place between others" do
    [first, second, third] = for n <- 1..3, do: cooked(@user, 0, event(n))
    blocks = [timeless(first), timed(0, 7_000_000, second), timeless(third)]
    path = pcapng(:little, [interface([]) | blocks])
    assert {:ok, %{datagrams: 3}} = replay(path, to: self(), timed: true)
    assert received() == [event(1), event(2), event(3)]
  end

  test "the offset of an interface's times can be negative" do
    # Both are 5 s after the epoch.
    offset = <<-2::64-little>>
    [first, second] = for n <- 1..2, do: cooked(@user, 0, event(n))
    interfaces = [interface([]), interface([{14, offset}])]
    blocks = [timed(0, 5_000_000, first), timed(1, 7_000_000, second)]
    path = pcapng(:little, interfaces ++ blocks)
    assert {:ok, %{datagrams: 2}} = replay(path, to: self(), timed: true)
    assert received() == [event(1), event(2)]
  end

  test "a gap of years, as when a clock is set, is waited for, and raises nothing" do
    [first, second] = for n <- 1..2, do: cooked(@user, 0, event(n))
    year = 31_536_000 * 1_000_000
    path = pcapng(:little, [interface([]), timed(0, 0, first), timed(0, 50 * year, second)])
    test = self()
    {player, monitor} = spawn_monitor(fn -> replay(path, to: test, timed: true) end)
    assert_receive {:netlink, :replay, _first}
    sleeps = {:current_function, {Process, :sleep, 1}}
    eventually!(fn -> Process.info(player, :current_function) == sleeps end)
    Process.exit(player, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^player, :killed}
  end

  test "a file that ends within its first block is played up to there" do
    for bytes <- 4..27 do
      whole = File.read!(pcapng(:little, []))
      path = file!(binary_part(whole, 0, bytes))
      assert {:ok, %{datagrams: 0, truncated: true}} = replay(path, to: self())
    end
  end

  test "a file that ends in the middle of a packet is played up to there" do
    whole =
      File.read!(
        pcap(
          :little,
          0xA1B2C3D4,
          253,
          for(n <- 1..2, do: packet(n, 0, cooked(@user, 0, event(n))))
        )
      )

    ng =
      IO.iodata_to_binary([
        Pcapng.section_header(),
        Pcapng.interface("a"),
        for(n <- 1..2, do: Pcapng.datagram(0, n, :in, 0, {event(n), byte_size(event(n))}))
      ])

    for bytes <- [whole, ng], cut <- [1, 5, 40] do
      path = file!(binary_part(bytes, 0, byte_size(bytes) - cut))
      assert {:ok, %{datagrams: 1, truncated: true}} = replay(path, to: self())
      assert received() == [event(1)]
    end
  end

  test "a file that is no capture of netlink is refused with its kind, and not played" do
    for {bytes, said} <- [
          {"", "it is empty"},
          {"PK\x03\x04", "neither pcapng nor pcap"},
          {:zlib.gzip("x"), "gzip"},
          {<<0x28, 0xB5, 0x2F, 0xFD, 0>>, "zstd"},
          {<<"snoop", 0, 0, 0>>, "snoop"},
          {<<0xA1B2C3D4::32>>, "header is cut"},
          {File.read!(pcap(:big, 0xA1B2C3D4, 1, [])), "link type is 1 (Ethernet)"},
          {File.read!(pcap(:little, 0xA1B2C3D4, 276, [])), "link type is 276 (Linux cooked v2)"},
          {File.read!(pcap(:little, 0xA1B2C3D4, 12_345, [])), "link type is 12345"},
          {File.read!(pcapng(:big, [{1, [n(:big, 16, 113), <<0::48>>]}])),
           "link type is 113 (Linux cooked v1)"},
          {<<0x0A0D0D0A::32, 28::32, 7::32>>, "byte order"},
          {[File.read!(pcapng(:little, [])), <<1::32-little, 3::32-little, 0::32>>],
           "a block says that it has 3 bytes"},
          {File.read!(pcap(:big, 0xA1B2C3D4, 253, [packet(1, 0, "fifteen bytes..")])),
           "a packet has 15 bytes, fewer than the 16 of the header of LINKTYPE_NETLINK"},
          {[Pcapng.section_header(), Pcapng.datagram(0, 1, :in, 0, {"x", 1})],
           "interface 0, which is not described"}
        ] do
      assert {:error, %DecodeError{what: :capture} = error} = replay(file!(bytes), to: self())
      assert Exception.message(error) =~ said
    end

    assert {:error, %Error{stage: :capture, reason: :enoent} = error} =
             replay("/no/such.pcap", to: self())

    assert Exception.message(error) =~ "/no/such.pcap"
    assert {:error, %Error{reason: :eisdir}} = replay("/tmp", to: self())
    assert received() == []
  end

  test "messages from a machine of the other byte order are refused" do
    <<length::binary-4, rest::binary>> = event(1)
    swapped = length |> :binary.bin_to_list() |> Enum.reverse() |> :binary.list_to_bin()
    path = pcap(:big, 0xA1B2C3D4, 253, [packet(1, 0, cooked(@user, 0, swapped <> rest))])
    assert {:error, %DecodeError{} = error} = replay(path, to: self())
    assert Exception.message(error) =~ "other byte order"
  end

  test "wrong options raise in the caller" do
    path = file!("")

    for opts <- [
          [],
          [to: :me],
          [to: self(), timed: 1],
          [to: self(), speed: 2],
          [to: self(), protocol: :no],
          [to: self(), interface: :eth0]
        ] do
      assert_raise ArgumentError, fn -> Sandbox.replay(path, opts) end
    end

    for path <- [:path, "", "a\0b"],
        do: assert_raise(ArgumentError, fn -> Sandbox.replay(path, to: self()) end)
  end

  @tag :tshark
  test "files that Wireshark wrote, pcap and pcapng, are played" do
    blocks = [
      Pcapng.section_header(),
      Pcapng.interface("a"),
      for(n <- 1..3, do: Pcapng.datagram(0, n * 1_000, :in, 0, {event(n), byte_size(event(n))}))
    ]

    ours = file!(blocks)

    for format <- ["pcap", "nsecpcap", "pcapng"] do
      theirs = tmp_path!(format)
      {_output, 0} = System.cmd("editcap", ["-F", format, ours, theirs], stderr_to_stdout: true)
      assert {:ok, %{datagrams: 3}} = replay(theirs, to: self())
      assert received() == for(n <- 1..3, do: event(n))
    end
  end
end
