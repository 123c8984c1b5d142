defmodule NetlinkPort.CaptureTest do
  # Captures, read by Wireshark's own programs.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Tshark

  @moduletag :root
  @moduletag :tshark

  setup do
    %{server: start_server!(), path: tmp_path!("trace.pcapng")}
  end

  defp capture!(server, path, opts \\ []) do
    {:ok, capture} = NetlinkPort.capture(server, path, opts)
    capture
  end

  defp open!(server, protocol, netns, opts \\ []) do
    {:ok, socket} =
      NetlinkPort.open(server, protocol, [netns: {:name, netns}, active: false] ++ opts)

    socket
  end

  defp ask!(socket, request) do
    :ok = NetlinkPort.send(socket, request)
    {:ok, answer} = NetlinkPort.recv(socket, within(5_000))
    answer
  end

  defp tap(server), do: :sys.get_state(server).sockets.tap

  # Reads the packets. tshark fails, and so does the test, if the file ends with half a block.
  defp packets!(path), do: Tshark.fields(path, ["frame.interface_name"])

  defp name(socket) do
    "#{socket.protocol} in #{Socket.place(socket.netns)}, handle #{socket.handle}"
  end

  describe "a capture" do
    test "has the datagrams of both directions, of sockets from before and after its start",
         context do
      %{server: server, path: path} = context
      [blue, red] = [netns!(), netns!()]
      before = open!(server, :route, blue)
      _unseen = ask!(before, Rtnl.getlink(1, 1))
      capture = capture!(server, path)
      later = open!(server, :route, red, groups: [1])
      generic = open!(server, :generic, blue)
      netfilter = open!(server, :netfilter, red)

      asked = Rtnl.getlink(1, 2)
      answered = ask!(before, asked)
      ip!(["-n", red, "link", "add", "br0", "type", "bridge"])
      {:ok, event} = NetlinkPort.recv(later, within(5_000))
      # CTRL_CMD_GETFAMILY (3) of "nlctrl", attribute CTRL_ATTR_FAMILY_NAME (2).
      attribute = <<11::16-native, 2::16-native, "nlctrl", 0, 0>>
      _family = ask!(generic, Rtnl.message(16, 1, 5, <<3, 1, 0, 0, attribute::binary>>))
      # NFT_MSG_GETGEN (16) of NFNL_SUBSYS_NFTABLES (10).
      _generation = ask!(netfilter, Rtnl.message(0xA10, 1, 6, <<0::32>>))

      assert {:ok, counts} = NetlinkPort.stop_capture(capture)
      _unseen = ask!(before, Rtnl.getlink(1, 7))
      assert %{dropped: 0, datagrams: datagrams, bytes: bytes} = counts
      assert File.stat!(path).size == bytes

      wanted = ~w(frame.interface_name frame.packet_flags_direction netlink.family frame.len)
      packets = Tshark.fields(path, wanted)
      assert length(packets) == datagrams

      seen =
        for {[name, direction, family, length], types} <-
              Enum.zip(packets, Tshark.message_types(path)),
            do: {name, direction, family, String.to_integer(length), types}

      {received, sent} = {"0x00000001", "0x00000002"}
      getlink = "Get network interface info"
      newlink = "Create network interface"
      {route, generic_family, netfilter_family} = {"0x0000", "0x0010", "0x000c"}

      assert [{^sent, ^route, length, [^getlink]}, {^received, ^route, back, [^newlink]}] =
               of(seen, before)

      assert {length, back} == {16 + byte_size(asked), 16 + byte_size(answered)}
      assert [{^received, ^route, length, [^newlink]} | _more] = of(seen, later)
      assert length == 16 + byte_size(event)

      assert [{^sent, ^generic_family, _, asked}, {^received, ^generic_family, _, answered}] =
               of(seen, generic)

      assert {asked, answered} ==
               {["0x0010", "CTRL_CMD_GETFAMILY"], ["0x0010", "CTRL_CMD_NEWFAMILY"]}

      assert [
               {^sent, ^netfilter_family, _, ["0x0a10"]},
               {^received, ^netfilter_family, _, ["0x0a0f"]}
             ] = of(seen, netfilter)

      assert %{
               "File type" => "pcapng",
               "File encapsulation" => "netlink",
               "File timestamp precision" => "nanoseconds (9)",
               "Strict time order" => "True",
               "Number of interfaces in file" => "4",
               "Number of packets" => number
             } = Tshark.capinfos(path)

      assert number == "#{datagrams}"
    end

    defp of(seen, socket) do
      name = name(socket)

      for {^name, direction, family, length, types} <- seen,
          do: {direction, family, length, types}
    end

    test "has each datagram once, however it is sent", %{server: server, path: path} do
      opts = [user_peers: true, active: false]
      {:ok, peer} = NetlinkPort.open(server, :usersock, opts)
      {:ok, socket} = NetlinkPort.open(server, :usersock, opts)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(peer)
      capture = capture!(server, path)
      message = fn n -> Rtnl.message(17, 0, n, "x") end
      assert {:error, _refused} = NetlinkPort.send(socket, message.(1), wait: true)
      assert NetlinkPort.send(socket, [message.(2) | [""]]) == :ok
      assert NetlinkPort.send(socket, message.(3), to: {port_id, 0}) == :ok
      assert {:ok, _message, %{}} = NetlinkPort.recv(peer, within(5_000))
      # As from another node.
      handle = socket.handle
      assert {:ok, nil} = GenServer.call(server, {:send, handle, message.(4), false})
      assert {:error, _refused} = GenServer.call(server, {:send, handle, message.(5), true})
      command = {:send_to, handle, port_id, 0, message.(6)}
      assert {:ok, nil} = GenServer.call(server, {:request, command})
      assert {:ok, _message, %{}} = NetlinkPort.recv(peer, within(5_000))
      assert {:ok, %{datagrams: 8}} = NetlinkPort.stop_capture(capture)
      {mine, theirs} = {name(socket), name(peer)}

      assert [[mine, "1"], [mine, "2"], [mine, "3"], [theirs, "3"]] ++
               [[mine, "4"], [mine, "5"], [mine, "6"], [theirs, "6"]] ==
               Tshark.fields(path, ~w(frame.interface_name netlink.hdr_seq))
    end

    test "goes on with a socket that gets a new owner", %{server: server, path: path} do
      socket = open!(server, :route, netns!())
      capture = capture!(server, path)
      :ok = NetlinkPort.controlling_process(socket, idle_process())
      _answer = ask!(socket, Rtnl.getlink(1, 1))
      assert {:ok, %{datagrams: 2}} = NetlinkPort.stop_capture(capture)
    end

    test "cuts datagrams that are longer than readers accept", %{server: server, path: path} do
      socket = open!(server, :route, netns!())
      capture = capture!(server, path)
      :ok = NetlinkPort.send(socket, [<<0::32>> | List.duplicate("0123456789", 100_000)])
      assert {:ok, %{datagrams: 1}} = NetlinkPort.stop_capture(capture)
      assert Tshark.fields(path, ~w(frame.cap_len frame.len)) == [["262144", "1000020"]]
    end

    test "delays nothing when it starts and ends during traffic: no send fails, all is delivered",
         context do
      %{server: server, path: path} = context
      socket = open!(server, :route, netns!())
      test = self()

      asker =
        spawn_link(fn ->
          send(test, {:ready, self()})

          for n <- 1..3_000,
              do: <<_::64, ^n::32-native, _::binary>> = ask!(socket, Rtnl.getlink(1, n))

          send(test, :asked)
        end)

      assert_receive {:ready, ^asker}
      assert toggle(server, path, 0) > 1
      packets!(path)
    end

    defp toggle(server, path, times) do
      receive do
        :asked -> times
      after
        0 ->
          assert {:ok, _counts} = server |> capture!(path) |> NetlinkPort.stop_capture()
          toggle(server, path, times + 1)
      end
    end
  end

  describe "a slow disk" do
    test "delays no socket: datagrams that do not fit are left out, counted, and noted in the file",
         context do
      %{server: server, path: path} = context
      socket = open!(server, :route, netns!())
      capture = capture!(server, path)
      # The effect on senders of a write(2) that does not return.
      :erlang.suspend_process(capture)
      large = :binary.copy(<<0>>, 100_000)
      for _n <- 1..200, do: assert(NetlinkPort.send(socket, large) == :ok)
      {:message_queue_len, waiting} = Process.info(capture, :message_queue_len)
      assert waiting == div(8_388_608, 100_300)
      assert is_binary(ask!(socket, Rtnl.noop(1)))
      :erlang.resume_process(capture)
      eventually!(fn -> Process.info(capture, :message_queue_len) == {:message_queue_len, 0} end)
      # All room is free again.
      :erlang.suspend_process(capture)
      for _n <- 1..waiting, do: assert(NetlinkPort.send(socket, large) == :ok)
      :erlang.resume_process(capture)

      assert {:ok, %{dropped: dropped, datagrams: datagrams}} = NetlinkPort.stop_capture(capture)

      comments =
        for [comment] <- Tshark.fields(path, ["frame.comment"]), comment != "", do: comment

      counted = for comment <- comments, do: comment |> Integer.parse() |> elem(0)
      assert Enum.sum(counted) == dropped
      assert dropped >= 200 - waiting
      # Errors are received, too: the noop and its answer are two datagrams.
      assert datagrams + dropped >= 200 + waiting + 2
    end
  end

  describe "a capture ends" do
    test "at max_bytes: the file is whole and within it, and the sockets go on", context do
      %{server: server, path: path} = context
      socket = open!(server, :route, netns!())
      capture = capture!(server, path, max_bytes: 20_000)
      for n <- 1..100, do: ask!(socket, Rtnl.getlink(1, n))
      assert_receive {:netlink_capture_end, ^capture, :max_bytes, counts}
      assert counts.bytes == File.stat!(path).size
      assert counts.bytes in 15_000..20_000
      assert length(packets!(path)) == counts.datagrams
      eventually!(fn -> tap(server) == nil end)
      assert is_binary(ask!(socket, Rtnl.getlink(1, 101)))
      assert {:error, %Error{stage: :capture, reason: :esrch}} = NetlinkPort.stop_capture(capture)
    end

    @tag timeout: within(20_000)
    test "on a full disk: the file is whole, and the sockets go on", context do
      %{server: server, path: path} = context
      folder = path <> ".d"
      File.mkdir_p!(folder)
      {_output, 0} = as_root("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", folder])

      on_exit(fn ->
        as_root("umount", [folder])
        File.rm_rf!(folder)
      end)

      path = Path.join(folder, "trace.pcapng")
      socket = open!(server, :route, netns!())
      capture = capture!(server, path)
      for n <- 1..200, do: ask!(socket, Rtnl.getlink(1, n))
      assert_receive {:netlink_capture_end, ^capture, %Error{reason: :enospc} = error, counts}
      assert Exception.message(error) == "capture of #{path}: ENOSPC: no space left on device"
      assert counts.bytes == File.stat!(path).size
      assert length(packets!(path)) > 0
      eventually!(fn -> tap(server) == nil end)
      assert is_binary(ask!(socket, Rtnl.getlink(1, 201)))
      # Not even the first block fits.
      File.write(Path.join(folder, "rest"), :binary.copy(<<0>>, 65_536))
      other = Path.join(folder, "other.pcapng")
      assert {:error, %Error{reason: :enospc}} = NetlinkPort.capture(server, other)
    end

    test "with its owner", %{server: server, path: path} do
      socket = open!(server, :route, netns!())

      owner =
        spawn_reporting(fn ->
          capture = capture!(server, path)
          _answer = ask!(socket, Rtnl.getlink(1, 1))
          capture
        end)

      assert_receive {:result, ^owner, capture}
      eventually!(fn -> not Process.alive?(capture) and tap(server) == nil end)
      assert length(packets!(path)) == 2
    end

    test "with its server, however that ends", %{path: path} do
      for way <- [&GenServer.stop/1, &Process.exit(&1, :kill)] do
        server = start_server!()
        socket = open!(server, :route, netns!())
        capture = capture!(server, path)
        _answer = ask!(socket, Rtnl.getlink(1, 1))
        way.(server)
        assert_receive {:netlink_capture_end, ^capture, :server_down, %{datagrams: 2}}
        assert length(packets!(path)) == 2
      end
    end

    test "when it is killed: sockets and server go on, and another can start",
         context do
      %{server: server, path: path} = context
      socket = open!(server, :route, netns!())
      capture = capture!(server, path)
      _answer = ask!(socket, Rtnl.getlink(1, 1))
      # The file is written when no more datagrams come.
      eventually!(fn -> length(packets!(path)) == 2 end)
      Process.exit(capture, :kill)
      eventually!(fn -> tap(server) == nil end)
      assert is_binary(ask!(socket, Rtnl.getlink(1, 2)))
      assert length(packets!(path)) == 2
      again = capture!(server, path)
      _answer = ask!(socket, Rtnl.getlink(1, 3))
      assert {:ok, %{datagrams: 2}} = NetlinkPort.stop_capture(again)
    end

    test "with a VM that is killed: the file is whole up to the last write", %{path: path} do
      script = tmp_path!("vm.exs")

      File.write!(script, """
      {:ok, server} = NetlinkPort.start_link(name: nil)
      {:ok, _capture} = NetlinkPort.capture(server, #{inspect(path)})
      {:ok, socket} = NetlinkPort.open(server, :route, active: false)
      for _ <- Stream.cycle([1]), do: {:ok, _} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)
      """)

      ebin = Path.join(Mix.Project.app_path(), "ebin")
      vm = os_process!("sh", ["-c", "exec elixir -pa #{ebin} #{script}"])

      eventually!(
        fn -> match?({:ok, %{size: size}} when size > 200_000, File.stat(path)) end,
        20_000
      )

      signal!(vm, :KILL)
      eventually!(fn -> not running?(vm) end)
      # The signal may end write(2) within a block, of which the last is then a part.
      bytes = File.read!(path)
      whole = whole(bytes)
      assert byte_size(bytes) - whole < 10_000
      File.write!(path, binary_part(bytes, 0, whole))
      assert length(packets!(path)) > 100
    end

    # The size of all whole blocks: each has its type and its size at its beginning.
    defp whole(bytes, from \\ 0) do
      left = byte_size(bytes) - from

      case binary_part(bytes, from, left) do
        <<_type::32, size::32-native, _rest::binary>> when size <= left ->
          whole(bytes, from + size)

        _part ->
          from
      end
    end
  end

  describe "the file of a capture" do
    test "that cannot be written is an error at once, and nothing is captured", context do
      %{server: server, path: path} = context
      fifo = path <> ".fifo"
      on_exit(fn -> File.rm(fifo) end)
      {_output, 0} = System.cmd("mkfifo", [fifo])
      missing = path <> "/trace.pcapng"

      for {path, reason, sentence} <- [
            {"/sys/trace.pcapng", :eacces, "permission denied"},
            {"/tmp", :eisdir, "is a directory"},
            {missing, :enoent, "no such file or directory"},
            {fifo, :einval, "it is not a regular file"},
            {"/dev/null", :einval, "it is not a regular file"}
          ] do
        assert {:error, %Error{stage: :capture, reason: ^reason} = error} =
                 NetlinkPort.capture(server, path)

        name = reason |> Atom.to_string() |> String.upcase()
        assert Exception.message(error) == "capture of #{path}: #{name}: #{sentence}"
        eventually!(fn -> tap(server) == nil end)
      end
    end

    test "is readable by its owner only if it is new, and keeps its mode otherwise", context do
      %{server: server, path: path} = context
      {:ok, _counts} = server |> capture!(path) |> NetlinkPort.stop_capture()
      assert Bitwise.band(File.stat!(path).mode, 0o777) == 0o600
      File.write!(path, String.duplicate("older", 1_000))
      File.chmod!(path, 0o640)
      {:ok, %{bytes: bytes}} = server |> capture!(path) |> NetlinkPort.stop_capture()
      assert %{size: ^bytes, mode: mode} = File.stat!(path)
      assert Bitwise.band(mode, 0o777) == 0o640
      assert packets!(path) == []
    end

    test "is the only one of its server: a second capture is EBUSY until the first has ended",
         context do
      %{server: server, path: path} = context
      first = capture!(server, path)
      assert {:error, error} = NetlinkPort.capture(server, path <> "2")
      assert Exception.message(error) == "capture: EBUSY: the server has a capture already"
      {:ok, _counts} = NetlinkPort.stop_capture(first)
      {:ok, _counts} = server |> capture!(path) |> NetlinkPort.stop_capture()
    end
  end

  test "wrong arguments raise in the caller; without a server it is ESRCH", context do
    %{server: server, path: path} = context
    assert_raise ArgumentError, fn -> NetlinkPort.capture(server, "") end
    assert_raise ArgumentError, fn -> NetlinkPort.capture(server, <<"a", 0>>) end
    assert_raise ArgumentError, fn -> NetlinkPort.capture(server, path, max_bytes: 4_095) end
    assert_raise ArgumentError, fn -> NetlinkPort.capture(server, path, snaplen: 1) end
    assert_raise ArgumentError, fn -> NetlinkPort.stop_capture(:none) end
    assert {:error, %Error{reason: :esrch}} = NetlinkPort.capture(:no_such_server, path)
    refute File.exists?(path)
  end
end
