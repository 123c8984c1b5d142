defmodule NetlinkPort.MovingTest do
  # Situations of code that was written for sockets in the VM and uses this library now: a long mailbox, a server that
  # is gone, relative paths, owners that want no messages, timeouts of any length, descriptors that must not leak.
  use NetlinkPort.Case, async: false

  @moduletag :capture_log

  import Bitwise, only: [<<<: 2]

  alias NetlinkPort.{Connection, Cost, Monitor, Native}

  # RTM_GETLINK of interface 1
  @getlink {18, <<0::32, 1::32-native, 0::64>>}

  defp open!(server, opts \\ []) do
    {:ok, socket} = NetlinkPort.open(server, :route, [active: false] ++ opts)
    socket
  end

  # A server that has ended, with its former socket and pin, and the server that has its name now.
  defp of_before!(opts \\ []) do
    name = :"moving_#{System.unique_integer([:positive])}"
    server = start_server!([name: name] ++ opts)
    socket = open!(server)
    monitor = Process.monitor(server)
    signal!(os_pid(server), "KILL")
    assert_receive {:DOWN, ^monitor, :process, ^server, _reason}
    {name, socket}
  end

  describe "a call that waits" do
    # The VM counts a reduction for each message that a receive skips.
    defp reductions(fun), do: Enum.min(for _ <- 1..5, do: Cost.reductions(fun))

    test "does not look through the caller's mailbox" do
      server = start_server!()
      socket = open!(server)
      {:ok, connection} = Connection.start_link(server: server, protocol: :route)
      {type, payload} = @getlink

      calls = [
        recv: fn -> NetlinkPort.recv(socket, 0) end,
        recv_wait: fn -> NetlinkPort.recv(socket, 1) end,
        info: fn -> NetlinkPort.info(socket) end,
        info_server: fn -> NetlinkPort.info(server) end,
        stats: fn -> NetlinkPort.stats(socket) end,
        stats_server: fn -> NetlinkPort.stats(server) end,
        set_active: fn -> NetlinkPort.setopts(socket, active: false) end,
        set: fn -> NetlinkPort.setopts(socket, ext_ack: true) end,
        get: fn -> NetlinkPort.getopts(socket, [:active, :rcvbuf]) end,
        groups: fn -> NetlinkPort.memberships(socket) end,
        owner: fn -> NetlinkPort.controlling_process(socket, self()) end,
        open: fn -> NetlinkPort.close(open!(server)) end,
        send: fn -> NetlinkPort.send(socket, "", wait: true) end,
        request: fn -> {:ok, [_link]} = NetlinkPort.request(socket, type, payload) end,
        dump: fn -> {:ok, [_link | _]} = NetlinkPort.dump(socket, type, payload) end,
        connection: fn -> {:ok, [_link]} = Connection.request(connection, type, payload) end
      ]

      for {_name, call} <- calls, do: call.()
      for n <- 1..50_000, do: send(self(), {:other, n})
      costs = for {name, call} <- calls, do: {name, reductions(call)}
      assert Enum.filter(costs, fn {_name, cost} -> cost > 10_000 end) == []
    end

    test "and has timed out leaves no message behind when the answer comes" do
      server = start_server!(call_timeout: 100)
      socket = open!(server)
      :sys.suspend(server)
      late = NetlinkPort.setopts(socket, active: false)
      :sys.resume(server)
      assert {:error, %Error{stage: :thread, reason: :etimedout}} = late
      # After the late answer.
      assert {:ok, [active: false]} = NetlinkPort.getopts(socket, [:active])
      refute_received _anything
    end
  end

  describe "a socket whose server has ended" do
    test "is EPIPE for every use, with or without a new server" do
      for again? <- [false, true] do
        {name, socket} = of_before!()
        if again?, do: start_server!(name: name)

        uses = [
          send: fn -> NetlinkPort.send(socket, "x") end,
          send_wait: fn -> NetlinkPort.send(socket, "x", wait: true) end,
          send_to: fn -> NetlinkPort.send(socket, "x", to: {0, 0}) end,
          recv: fn -> NetlinkPort.recv(socket, 10) end,
          recv_now: fn -> NetlinkPort.recv(socket, 0) end,
          recv_forever: fn -> NetlinkPort.recv(socket) end,
          active: fn -> NetlinkPort.setopts(socket, active: :once) end,
          rcvbuf: fn -> NetlinkPort.setopts(socket, rcvbuf: 1) end,
          get_active: fn -> NetlinkPort.getopts(socket, [:active]) end,
          get: fn -> NetlinkPort.getopts(socket, [:rcvbuf]) end,
          join: fn -> NetlinkPort.join(socket, 1) end,
          leave: fn -> NetlinkPort.leave(socket, 1) end,
          memberships: fn -> NetlinkPort.memberships(socket) end,
          bind: fn -> NetlinkPort.bind(socket, 0, 1) end,
          info: fn -> NetlinkPort.info(socket) end,
          stats: fn -> NetlinkPort.stats(socket) end,
          give: fn -> NetlinkPort.controlling_process(socket, idle_process()) end,
          request: fn -> NetlinkPort.request(socket, 18, <<0::128>>) end,
          batch: fn -> NetlinkPort.batch(socket, [{18, [], <<0::128>>}]) end,
          dump: fn -> NetlinkPort.dump(socket, 18, <<0::128>>) end,
          stream: fn ->
            {:error, assert_raise(Error, fn -> Enum.to_list(NetlinkPort.stream(socket, 18)) end)}
          end
        ]

        for {use, fun} <- uses do
          assert {^use, {:error, %Error{stage: :thread, reason: :epipe} = error}} = {use, fun.()}
          assert Exception.message(error) =~ "open them again"
        end

        assert NetlinkPort.close(socket) == :ok
      end
    end

    test "is EPIPE on another node, if that node can be reached" do
      NetlinkPort.Nodes.distributed!()
      {peer, _node} = NetlinkPort.Nodes.peer!()
      {_name, socket} = of_before!()
      call = fn function, arguments -> :peer.call(peer, NetlinkPort, function, arguments) end

      for {function, arguments} <- [
            send: [socket, "x"],
            recv: [socket, 10],
            setopts: [socket, [active: false]],
            join: [socket, 1],
            info: [socket],
            stats: [socket],
            request: [socket, 18, <<0::128>>]
          ] do
        answer = call.(function, arguments)
        assert {^function, {:error, %Error{stage: :thread, reason: :epipe}}} = {function, answer}
      end
    end
  end

  describe "a path that is not absolute" do
    # Relative to the caller's folder now, not to the VM's at the start of the helper.
    setup do
      server = start_server!()
      {here, there} = {netns!(), netns!()}
      folder = tmp_path!("folder")
      File.mkdir_p!(Path.join(folder, "deeper"))
      # Not relative to the apparent folder: its `..` leads to /run.
      File.ln_s!("/run/netns", Path.join(folder, "link"))
      File.ln_s!(netns_path(here), Path.join(folder, "file"))
      before = File.cwd!()
      on_exit(fn -> File.cd!(before) end)
      %{server: server, here: here, there: there, folder: folder}
    end

    test "begins at the caller's working directory, however it is used", context do
      %{server: server, here: here, folder: folder} = context
      inode = inode(netns_path(here))
      File.cd!(folder)

      for path <- ["file", "./file", "deeper/../file", "link/../netns/" <> here, "link/" <> here] do
        for opts <- [[], [close_on: :namespace_gone]] do
          assert {:ok, %{inode: ^inode, netns: netns}} =
                   NetlinkPort.info(open!(server, [netns: {:path, path}] ++ opts))

          assert netns == {:path, folder <> "/" <> path}
        end

        assert {:ok, %{inode: ^inode}} = NetlinkPort.pin(server, {:path, path}, [])
        assert {:ok, handle} = Native.open_in_netns(server, path, 0)
        assert {:ok, %{inode: ^inode}} = NetlinkPort.info(NetlinkPort.socket(server, handle))
      end

      for missing <- ["", "no-such-file", "~/file"] do
        assert {:error, %Error{stage: :open, reason: :enoent}} =
                 NetlinkPort.open(server, :route, netns: {:path, missing})

        assert {:error, {:open, 2}} = Native.open_in_netns(server, missing, 0)
      end
    end

    test "stays that of the start for a connection and a monitor, which open it again", context do
      %{here: here, there: there, folder: folder} = context
      server = :"moving_#{System.unique_integer([:positive])}"
      start_server!(name: server, restart: :permanent)
      File.cd!(folder)
      opts = [server: server, protocol: :route, netns: {:path, "file"}]
      {:ok, _connection} = Connection.start_link(opts)
      {:ok, _monitor} = Monitor.start_link(Keyword.put(opts, :groups, [1]))
      File.cd!("deeper")
      File.ln_s!(netns_path(there), "file")
      first = handles(server, here)
      signal!(os_pid(server), "KILL")
      eventually!(fn -> Enum.all?(handles(server, here), &(&1 > Enum.max(first))) end)
    end

    # Wait until both of them have opened again.
    defp handles(server, netns) do
      inode = inode(netns_path(netns))

      eventually!(fn ->
        match?({:ok, %{sockets: [_, _]}}, NetlinkPort.stats(server))
      end)

      {:ok, %{sockets: sockets}} = NetlinkPort.stats(server)
      assert Enum.map(sockets, & &1.inode) == [inode, inode]
      Enum.map(sockets, & &1.handle)
    end

    test "is ENOENT if the working directory is deleted", %{server: server, folder: folder} do
      gone = Path.join(folder, "gone")
      File.mkdir!(gone)
      File.cd!(gone)
      File.rmdir!(gone)

      assert {:error, %Error{stage: :open, reason: :enoent}} =
               NetlinkPort.open(server, :route, netns: {:path, "file"})
    end
  end

  describe "closed_message: false" do
    # A relay sends every message of a socket's owner to the test.
    defp owner do
      test = self()
      spawn_link(fn -> tell(test) end)
    end

    defp tell(test) do
      receive do
        message -> send(test, {:owner, message})
      end

      tell(test)
    end

    test "sends the owner of a passive socket no message when the socket ends, in any way" do
      for ending <- [:helper, :server, :notifier] do
        server = start_server!()
        {silent, told} = {owner(), owner()}
        silent_socket = open!(server, owner: silent, closed_message: false)
        socket = open!(server, owner: told)
        monitor = Process.monitor(server)

        case ending do
          :helper -> signal!(os_pid(server), "KILL")
          :server -> Process.exit(server, :kill)
          :notifier -> GenServer.stop(server)
        end

        assert_receive {:DOWN, ^monitor, :process, ^server, _reason}
        assert_receive {:owner, {:netlink_closed, ^socket, _reason}}
        assert {:error, %Error{reason: :epipe}} = NetlinkPort.recv(silent_socket, 10)
        refute_received {:owner, _message}
      end
    end

    test "sends no message when the namespace goes, and the socket is EBADF then" do
      server = start_server!()
      netns = netns!()
      opts = [netns: {:name, netns}, close_on: :namespace_gone]
      silent = open!(server, [owner: owner(), closed_message: false] ++ opts)
      told = open!(server, [owner: owner()] ++ opts)
      ip!(["netns", "del", netns])
      assert_receive {:owner, {:netlink_closed, ^told, :namespace_gone}}
      eventually!(fn -> match?({:error, %Error{reason: :ebadf}}, NetlinkPort.recv(silent, 0)) end)
      refute_received {:owner, _message}
    end

    test "stays in effect when the socket gets a new owner, or a capture begins" do
      server = start_server!()
      socket = open!(server, closed_message: false)
      {:ok, _capture} = NetlinkPort.capture(server, tmp_path!("capture"))
      :ok = NetlinkPort.controlling_process(socket, owner())
      signal!(os_pid(server), "KILL")
      assert_receive {:netlink_capture_end, _capture, :server_down, _counts}
      eventually!(fn -> not Process.alive?(server) end)
      assert {:error, %Error{reason: :epipe}} = NetlinkPort.recv(socket, 10)
      refute_received {:owner, _message}
    end

    test "still closes the socket with its owner" do
      server = start_server!()
      owner = idle_process()
      socket = open!(server, owner: owner, closed_message: false)
      send(owner, :stop)
      eventually!(fn -> match?({:error, %Error{reason: :ebadf}}, NetlinkPort.recv(socket, 0)) end)
    end

    test "raises for active sockets" do
      for active <- [true, :once, 5] do
        opts = [active: active, closed_message: false]
        error = assert_raise ArgumentError, fn -> NetlinkPort.open(:none, :route, opts) end
        assert error.message =~ "passive"
      end

      assert_raise ArgumentError, fn -> NetlinkPort.open(:none, 0, closed_message: nil) end

      assert_raise ArgumentError, fn ->
        Connection.start_link(server: :none, protocol: :route, closed_message: false)
      end
    end
  end

  describe "a timeout longer than timers allow" do
    test "is cut to the longest timer, in every call" do
      server = start_server!()
      socket = open!(server)
      {type, payload} = @getlink

      for timeout <- [0xFFFFFFFF - 10_001, 0xFFFFFFFF - 9_999, 0xFFFFFFFF, 1 <<< 64, 10 ** 30] do
        opts = [timeout: timeout]
        :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
        assert {:ok, _datagram} = NetlinkPort.recv(socket, timeout)
        assert {:ok, pin} = NetlinkPort.pin(server, :host, opts)
        assert :ok = NetlinkPort.unpin(pin)
        assert {:ok, other} = NetlinkPort.open(server, :route, [active: false] ++ opts)
        assert :ok = NetlinkPort.close(other)
        assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1), [wait: true] ++ opts)
        assert {:ok, _datagram} = NetlinkPort.recv(socket, timeout)
        assert {:ok, [_link]} = NetlinkPort.request(socket, type, payload, opts)
        assert {:ok, [{:ok, [_link]}]} = NetlinkPort.batch(socket, [{type, [], payload}], opts)
        assert {:ok, [_link | _]} = NetlinkPort.dump(socket, type, <<0::128>>, opts)

        assert [_link | _] =
                 socket |> NetlinkPort.stream(type, <<0::128>>, opts) |> Enum.to_list()

        times = [call_timeout: timeout, hello_timeout: timeout, ping_interval: timeout]
        patient = start_server!(times)
        {:ok, connection} = Connection.start_link([server: patient, protocol: :route] ++ opts)
        assert {:ok, [_link]} = Connection.request(connection, type, payload, opts)
        assert {:ok, [_link | _]} = Connection.dump(connection, type, <<0::128>>, opts)
        assert {:ok, _info} = NetlinkPort.info(open!(patient))
      end

      for wrong <- [-1, 1.5, nil, "5"] do
        assert_raise ArgumentError, fn -> NetlinkPort.recv(socket, wrong) end
      end
    end
  end

  # A NIF hands over descriptors, and OTP adopts a duplicate of each. Closing the socket closes the duplicate only.
  @tag timeout: within(600_000)
  test "ten thousand opens, closes and pins leave no descriptor in VM and helper" do
    server = start_server!()
    netns = {:name, netns!()}
    helper = "/proc/#{os_pid(server)}/fd"
    count = fn folder -> folder |> File.ls!() |> length() end

    once = fn ->
      [socket: NetlinkPort.close(open!(server, netns: netns)), pin: pinned(server, netns)]
    end

    once.()
    before = {count.("/proc/self/fd"), count.(helper)}
    ports = length(Port.list())
    # Many at once, since on a busy machine each waits.
    tasks = for _ <- 1..50, do: Task.async(fn -> for _ <- 1..200, do: once.() end)
    Task.await_many(tasks, :infinity)
    assert {count.("/proc/self/fd"), count.(helper)} == before
    assert length(Port.list()) == ports
    assert {:ok, %{sockets: 0, pins: 0}} = NetlinkPort.info(server)
  end

  defp pinned(server, netns) do
    {:ok, pin} = NetlinkPort.pin(server, netns, [])
    NetlinkPort.unpin(pin)
  end
end
