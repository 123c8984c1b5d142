defmodule NetlinkPort.SocketTest do
  # The struct of a socket: how it is printed, and when two are equal.
  use NetlinkPort.Case, async: true

  doctest NetlinkPort

  # A socket that was never opened, for inspect/1 alone.
  defp closed(protocol, netns, handle) do
    %Socket{handle: handle, protocol: protocol, netns: netns, helper: nil}
  end

  describe "inspect" do
    test "shows protocol, namespace and handle" do
      for {socket, shown} <- [
            {closed(:route, {:name, "blue"}, 7), "#NetlinkPort.Socket<route in blue, handle 7>"},
            {closed(:generic, :host, 0), "#NetlinkPort.Socket<generic in host, handle 0>"},
            {closed(16, {:path, "/proc/1/ns/net"}, 0x7FFFFFFF),
             "#NetlinkPort.Socket<16 in /proc/1/ns/net, handle 2147483647>"},
            {closed(:sock_diag, {:pid, 42}, 1),
             "#NetlinkPort.Socket<sock_diag in the namespace of process 42, handle 1>"},
            {closed(:route, {:name, "blå"}, 7), "#NetlinkPort.Socket<route in blå, handle 7>"}
          ] do
        assert inspect(socket) == shown
        # Inside another term, and in the terms of a crash report.
        assert inspect({:netlink, socket, ""}) == ~s({:netlink, #{shown}, ""})
      end
    end

    test "is one printable line, whatever the path" do
      for path <- [
            "/tmp/a\nb",
            "/tmp/a\r\nb",
            "\n",
            "/tmp/\e[31mred",
            ~s(/tmp/"quoted"),
            ~s("),
            ~s(/tmp/a"b),
            "/tmp/back\\slash",
            "/tmp/tab\tand\0nul",
            <<"/tmp/", 255, 254>>,
            <<0xC3>>,
            <<"/tmp/", 0xED, 0xA0, 0x80>>,
            "",
            "/tmp/\u200Bzero",
            String.duplicate("/long", 819),
            String.duplicate(<<255>>, 4_095)
          ] do
        for netns <- [{:path, path}, {:name, path}] do
          shown = inspect(closed(:route, netns, 7))
          assert shown =~ ~r/\A#NetlinkPort\.Socket<route in [^\n]*, handle 7>\z/u
          assert String.printable?(shown)
          refute shown =~ ~r/[\x00-\x1F\x7F]/
          # In a line of limited width, too.
          refute inspect([closed(:route, netns, 7)], width: 20) =~ "\n"
        end
      end
    end

    test "differs for different namespaces" do
      paths = ["/a", "/a\n", "/a\\n", ~s(/a"b), "/a b", <<"/a", 255>>, "", "/A"]
      shown = for path <- paths, do: inspect(closed(:route, {:path, path}, 7))
      assert Enum.uniq(shown) == shown
    end
  end

  describe "an open socket" do
    @describetag :root

    setup do
      %{server: start_server!(), netns: netns!()}
    end

    test "is inspected with its protocol and namespace", context do
      {:ok, socket} = NetlinkPort.open(context.server, :route, netns: {:name, context.netns})
      handle = Socket.handle(socket)

      assert inspect(socket) ==
               "#NetlinkPort.Socket<route in #{context.netns}, handle #{handle}>"

      {:ok, host} = NetlinkPort.open(context.server, 16, [])
      assert inspect(host) =~ ~r/\A#NetlinkPort\.Socket<16 in host, handle \d+>\z/
    end

    test "opens at a path of any bytes, and stays on one line", context do
      directory = tmp_path!("sockets")
      File.mkdir!(directory)

      for name <- ["a\nb", ~s(a"b'c), "a\\b", "a b", <<"a", 255, "b">>, "-", "*", "blå"] do
        path = Path.join(directory, name)
        File.ln_s!(netns_path(context.netns), path)

        {:ok, socket} =
          NetlinkPort.open(context.server, :route, netns: {:path, path}, active: false)

        assert Rtnl.link_names(socket) == ["lo"]
        assert inspect(socket) =~ ~r/\A#NetlinkPort\.Socket<route in [^\n]*, handle \d+>\z/u
        NetlinkPort.close(socket)
      end
    end

    test "equals each struct of the same socket, and of no other", context do
      opts = [netns: {:name, context.netns}]
      {:ok, socket} = NetlinkPort.open(context.server, :route, opts)
      {:ok, other} = NetlinkPort.open(context.server, :route, opts)
      assert NetlinkPort.socket(context.server, Socket.handle(socket)) == socket
      assert :erlang.binary_to_term(:erlang.term_to_binary(socket)) == socket
      assert Task.await(Task.async(fn -> socket end), within(5_000)) == socket
      assert other != socket
      assert Socket.handle(other) > Socket.handle(socket)

      # It can be pinned (`^`) in a pattern, also after its options were changed.
      :ok = NetlinkPort.setopts(socket, active: 5, pktinfo: true)
      :ok = NetlinkPort.join(socket, 1)
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      assert_receive {:netlink, ^socket, _datagram, _metadata}
      refute_received {:netlink, ^other, _datagram}
    end

    test "is 21 words of each message: no message holds the names of its fields", context do
      owner = hoarder()
      {:ok, socket} = NetlinkPort.open(context.server, :route, owner: owner)
      ack = Rtnl.message(1, 5, 1, "")
      ask = fn -> :ok = NetlinkPort.send(socket, ack) end

      {:messages, [{:netlink, ^socket, <<_::binary-36>> = datagram} | _]} =
        taken(owner, ask, :messages)

      alone = words(owner, fn -> send(owner, {:netlink, nil, datagram}) end)
      # A word more for a reference, and two for the capabilities, on a machine of 32 bits.
      largest = if :erlang.system_info(:wordsize) == 8, do: 21, else: 26
      assert (words(owner, ask) - alone) in 1..largest

      # The metadata: a word of the tuple, and a map of two values.
      :ok = NetlinkPort.setopts(socket, pktinfo: true)
      assert (words(owner, ask) - alone) in 1..(largest + 6)
      {:messages, messages} = Process.info(owner, :messages)
      assert {:netlink, ^socket, ^datagram, %{group: _, nsid: _}} = List.last(messages)
    end

    # Takes no message. Off the heap, each has a fragment of exactly its size.
    defp hoarder do
      idle = fn -> Process.sleep(:infinity) end
      :erlang.spawn_opt(idle, [:link, message_queue_data: :off_heap])
    end

    defp words(owner, send) do
      {:memory, before} = taken(owner, send, :memory)
      {:memory, grown} = taken(owner, send, :memory)
      round((grown - before) / 100 / :erlang.system_info(:wordsize))
    end

    defp taken(owner, send, item) do
      {:message_queue_len, length} = Process.info(owner, :message_queue_len)
      for _ <- 1..100, do: send.()

      eventually!(fn ->
        Process.info(owner, :message_queue_len) == {:message_queue_len, length + 100}
      end)

      Process.info(owner, item)
    end

    test "does not equal a socket of another server", context do
      {:ok, socket} = NetlinkPort.open(context.server, :route, [])
      other = start_server!()
      {:ok, theirs} = NetlinkPort.open(other, :route, [])
      assert theirs != socket
      assert Socket.handle(theirs) != Socket.handle(socket)
      # A handle belongs to its own server alone.
      assert {:error, %Error{reason: :ebadf}} = NetlinkPort.socket(other, Socket.handle(socket))
    end
  end
end
