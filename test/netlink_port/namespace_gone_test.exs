defmodule NetlinkPort.NamespaceGoneTest do
  # `close_on: :namespace_gone`: sockets that close when their namespace's name is gone.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # RTNLGRP_IPV4_IFADDR: an event for each address.
  @addresses 5

  setup do
    %{server: start_server!()}
  end

  defp open(server, netns, opts \\ []) do
    NetlinkPort.open(server, :route, [netns: netns, close_on: :namespace_gone] ++ opts)
  end

  defp open!(server, netns, opts \\ []) do
    {:ok, socket} = open(server, netns, opts)
    socket
  end

  defp delete!(netns), do: ip!(["netns", "del", netns])

  defp assert_closed(socket, timeout \\ 5_000) do
    assert_receive {:netlink_closed, ^socket, :namespace_gone}, within(timeout)
  end

  # The helper has reported all that it had noticed when it has answered.
  defp refute_closed(server, socket) do
    {:ok, _info} = NetlinkPort.info(server)
    {:ok, _info} = NetlinkPort.info(server)
    refute_received {:netlink_closed, ^socket, _reason}
    assert {:ok, _info} = NetlinkPort.info(socket)
  end

  defp works?(server, netns),
    do: match?({:ok, _socket}, NetlinkPort.open(server, :route, netns: netns))

  # A file that holds a system call while it exists under the name that inject.rs gives it.
  defp hold! do
    hold = tmp_path!("hold")
    on_exit(fn -> File.rm(hold <> ".held") end)
    hold
  end

  # A folder of this test's own.
  defp folder!(name \\ "folder") do
    folder = tmp_path!(name)
    File.mkdir!(folder)
    # Readable whatever the umask.
    File.chmod!(folder, 0o755)
    folder
  end

  # Gives the namespace another name, as ip(8) does.
  defp mount!(netns, path) do
    File.touch!(path)
    # The test may have unmounted it already.
    on_exit(fn -> as_root("umount", ["--lazy", path]) end)
    {_output, 0} = as_root("mount", ["--bind", netns_path(netns), path])
    path
  end

  defp unmount!(path), do: {_output, 0} = as_root("umount", ["--lazy", path])

  defp remove!(path) do
    unmount!(path)
    File.rm!(path)
  end

  defp add_addresses!(netns, range) do
    ip_batch!(netns, for(n <- range, do: "addr add 10.0.#{div(n, 256)}.#{rem(n, 256)}/32 dev lo"))
  end

  describe "a named namespace" do
    test "that is deleted closes its socket: one message, then EBADF", %{server: server} do
      netns = netns!()
      before = fds(server)
      socket = open!(server, {:name, netns})
      cookie = cookie(socket)
      refute_closed(server, socket)
      delete!(netns)
      assert_closed(socket)

      for {stage, answer} <- [
            info: NetlinkPort.info(socket),
            info: NetlinkPort.getopts(socket, [:rcvbuf]),
            info: NetlinkPort.setopts(socket, active: false),
            info: NetlinkPort.recv(socket, 0),
            info: NetlinkPort.join(socket, 1),
            send: NetlinkPort.send(socket, Rtnl.noop(1)),
            info: NetlinkPort.send(socket, Rtnl.noop(1), wait: true),
            info: NetlinkPort.controlling_process(socket, self())
          ] do
        assert {:error, %Error{stage: ^stage, reason: :ebadf}} = answer
      end

      assert NetlinkPort.close(socket) == :ok
      assert cookie?(cookie)
      refute_received {_tag, ^socket, _message}
      assert fds(server) == before
      # Not even at the end of its server.
      :ok = GenServer.stop(server)
      refute_received {:netlink_closed, ^socket, _reason}
    end

    defp cookie(socket) do
      {:ok, %{cookie: cookie}} = NetlinkPort.info(socket)
      cookie
    end

    test "that is deleted is freed by the kernel with the option, and not without", context do
      %{server: server} = context

      for {opts, freed?} <- [{[close_on: :namespace_gone], true}, {[], false}] do
        netns = netns!()
        name = "nlp#{System.unique_integer([:positive])}"
        peer = name <> "p"
        other = netns!()
        # One end of a veth pair is deleted with the namespace of the other.
        link = ["link", "add", name, "type", "veth", "peer", "name", peer, "netns", netns]
        ip!(["-n", other | link])
        {:ok, socket} = NetlinkPort.open(server, :route, [netns: {:name, netns}] ++ opts)
        {:ok, watcher} = NetlinkPort.open(server, :route, netns: {:name, other}, active: false)
        assert name in Rtnl.link_names(watcher)
        delete!(netns)

        if freed? do
          assert_closed(socket)
          eventually!(fn -> name not in Rtnl.link_names(watcher) end)
        else
          refute_closed(server, socket)
          assert name in Rtnl.link_names(watcher)
        end
      end
    end

    test "that is deleted closes all its sockets, and no others", %{server: server} do
      [netns, other] = [netns!(), netns!()]
      before = fds(server)
      gone = for _ <- 1..300, do: open!(server, {:name, netns})
      kept = for _ <- 1..20, do: open!(server, {:name, other}, groups: [@addresses])
      {:ok, plain} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
      {:ok, host} = NetlinkPort.open(server, :route, close_on: :namespace_gone)
      # One folder and one instance of inotify. The rest are sockets.
      assert fds(server) == before + 1 + 322
      delete!(netns)
      Enum.each(gone, &assert_closed/1)
      Enum.each([plain, host | kept], &refute_closed(server, &1))
      assert fds(server) == before + 1 + 22
      assert "lo" in Rtnl.link_names(plain)
      add_addresses!(other, 1..1)
      for socket <- kept, do: assert_receive({:netlink, ^socket, _datagram})
      Enum.each([plain, host | kept], &NetlinkPort.close/1)
      assert fds(server) == before
      refute_received {:netlink_closed, _socket, _reason}
    end

    test "that is deleted and made again at once is another namespace", %{server: server} do
      netns = netns!()

      for _ <- 1..10 do
        socket = open!(server, {:name, netns})
        {_output, 0} = as_root("sh", ["-c", "ip netns del #{netns}; ip netns add #{netns}"])
        assert_closed(socket)
        again = open!(server, {:name, netns})
        refute_closed(server, again)
        :ok = NetlinkPort.close(again)
      end
    end

    test "is not affected when other names come and go in its folder", %{server: server} do
      socket = open!(server, {:name, netns!()})
      for _ <- 1..5, do: delete!(netns!())
      refute_closed(server, socket)
    end

    test "that is deleted and made again during an open closes the socket", _context do
      netns = netns!()
      hold = hold!()
      server = start_injected!("setns EPERM hold:#{hold}", call_timeout: 60_000)
      before = fds(server)
      File.write!(hold, "")
      opening = spawn_reporting(fn -> open(server, {:name, netns}, owner: self()) |> told() end)
      # The helper has opened the file, but not entered the namespace.
      eventually!(fn -> File.exists?(hold <> ".held") end)
      delete!(netns)
      ip!(["netns", "add", netns])
      File.rm!(hold <> ".held")
      assert_receive {:result, ^opening, {:netlink_closed, :namespace_gone}}
      assert fds(server) == before
    end

    # The next messages to the caller of a successful open.
    defp told({:ok, socket}) do
      receive do
        {:netlink_closed, ^socket, reason} -> {:netlink_closed, reason}
      end
    end
  end

  describe "when the namespace is gone," do
    test "the kernel's queue comes first, with nothing lost, in each mode", %{server: server} do
      netns = netns!()

      sockets =
        for mode <- [true, 1_000, false],
            do: {mode, open!(server, {:name, netns}, active: mode, groups: [@addresses])}

      once = open!(server, {:name, netns}, active: :once, groups: [@addresses])
      helper = os_pid(server)
      # So that all datagrams are in the kernel's queue when the helper notices the end.
      signal!(helper, "STOP")
      add_addresses!(netns, 1..200)
      delete!(netns)
      signal!(helper, "CONT")

      for {mode, socket} <- sockets, mode != false do
        for n <- 1..200, do: assert({mode, n} == {mode, next(socket)})
        assert_receive {:netlink_closed, ^socket, :namespace_gone}
      end

      # A passive owner can still take queued datagrams, and nothing else.
      {false, passive} = List.last(sockets)
      assert {:error, %Error{reason: :ebadf}} = NetlinkPort.send(passive, Rtnl.noop(1))
      assert {:error, %Error{reason: :ebadf}} = NetlinkPort.info(passive)
      refute_received {:netlink_closed, ^passive, _reason}
      for n <- 1..200, do: assert(n == received(passive))
      assert_closed(passive)
      assert {:error, %Error{reason: :ebadf}} = NetlinkPort.recv(passive, 0)

      assert next(once) == 1
      refute_received {_tag, ^once, _message}
      assert NetlinkPort.setopts(once, active: true) == :ok
      for n <- 2..200, do: assert(n == next(once))
      assert_closed(once)
      assert {:error, %Error{reason: :ebadf}} = NetlinkPort.setopts(once, active: true)
    end

    # The next message of any kind: the order counts.
    defp next(socket) do
      assert_receive message when elem(message, 1) == socket
      assert {:netlink, ^socket, datagram} = message
      number(datagram)
    end

    defp received(socket) do
      assert {:ok, datagram} = NetlinkPort.recv(socket, within(1_000))
      number(datagram)
    end

    defp number(datagram) do
      [{20, _sequence, payload}] = Rtnl.messages(datagram)
      {10, 0, high, low} = Rtnl.address(payload)
      high * 256 + low
    end

    test "the kernel's queue waits for room in the mailbox with max_queue, and :netlink_closed after it",
         context do
      netns = netns!()
      opts = [groups: [@addresses], max_queue: 20]
      socket = open!(context.server, {:name, netns}, opts)
      add_addresses!(netns, 1..200)
      delete!(netns)
      eventually!(fn -> match?({:error, _closed}, NetlinkPort.info(socket)) end)
      for n <- 1..200, do: assert(n == next(socket))
      assert_closed(socket)
    end

    test "a queue that cannot be read does not delay :netlink_closed" do
      netns = netns!()
      switch = tmp_path!("fault")
      server = start_injected!("recvmsg EIO file:#{switch}")
      socket = open!(server, {:name, netns})
      File.write!(switch, "")
      delete!(netns)
      assert_receive {:netlink_error, ^socket, %Error{stage: :recv, reason: :eio}}
      assert_closed(socket)
    end

    test "the queue is complete, and a late send adds no error", %{server: server} do
      netns = netns!()
      socket = open!(server, {:name, netns}, active: false, groups: [@addresses])
      add_addresses!(netns, 1..3)
      eventually!(fn -> match?({:ok, %{kept: 3}}, NetlinkPort.info(socket)) end)
      helper = os_pid(server)
      :sys.suspend(server)
      before = length(File.ls!("/proc/#{helper}/fd"))
      delete!(netns)
      # The socket, and inotify.
      eventually!(fn -> length(File.ls!("/proc/#{helper}/fd")) == before - 2 end)
      assert NetlinkPort.send(socket, Rtnl.noop(1)) == :ok
      :sys.resume(server)
      {:ok, _info} = NetlinkPort.info(server)
      for n <- 1..3, do: assert(n == received(socket))
      assert_closed(socket)
    end

    test "datagrams beyond the window are lost, and :netlink_closed is sent", %{server: server} do
      netns = netns!()
      opts = [active: false, groups: [@addresses], window: 1_000]
      socket = open!(server, {:name, netns}, opts)
      add_addresses!(netns, 1..200)
      delete!(netns)
      # The socket is closed without waiting for the owner, which has taken nothing yet.
      eventually!(fn -> match?({:error, _closed}, NetlinkPort.info(socket)) end)
      seen = take_all(socket)
      assert seen in 1..10
      assert_closed(socket)
    end

    defp take_all(socket, seen \\ 0) do
      case NetlinkPort.recv(socket, within(1_000)) do
        {:ok, _datagram} -> take_all(socket, seen + 1)
        {:error, %Error{reason: :ebadf}} -> seen
      end
    end

    # The namespace of a process that has ended can stay alive, and its traffic go on.
    test "datagrams that arrive later are not read, so that the queue ends" do
      netns = netns!()
      pid = sleeper!(netns)
      hold = hold!()
      server = start_injected!("recvmsg EPERM hold:#{hold}")
      socket = open!(server, {:pid, pid}, groups: [@addresses])
      File.write!(hold, "")
      signal!(pid, "KILL")
      # The helper has noticed the end, and is about to read.
      eventually!(fn -> File.exists?(hold <> ".held") end)
      add_addresses!(netns, 1..10)
      File.rm!(hold <> ".held")
      assert_receive message when elem(message, 1) == socket
      assert message == {:netlink_closed, socket, :namespace_gone}
    end

    test "waiting callers of recv get EBADF when the queue is empty", %{server: server} do
      netns = netns!()
      socket = open!(server, {:name, netns}, active: false)
      waiting = for _ <- 1..2, do: spawn_reporting(fn -> NetlinkPort.recv(socket) end)
      eventually!(fn -> waiters(server) == 2 end)
      delete!(netns)

      for pid <- waiting do
        assert_receive {:result, ^pid, {:error, %Error{stage: :info, reason: :ebadf}}}
      end

      assert_closed(socket)
    end

    defp waiters(server),
      do: Enum.count(:sys.get_state(server).sockets.monitors, &match?({_, {:waiter, _}}, &1))

    test "a new owner gets the queue, and :netlink_closed", %{server: server} do
      netns = netns!()
      socket = open!(server, {:name, netns}, active: :once, groups: [@addresses])
      add_addresses!(netns, 1..3)
      assert next(socket) == 1
      eventually!(fn -> match?({:ok, %{kept: 2}}, NetlinkPort.info(socket)) end)
      delete!(netns)
      eventually!(fn -> match?({:error, _closed}, NetlinkPort.info(socket)) end)
      test = self()
      owner = spawn(fn -> forward(test) end)
      assert NetlinkPort.controlling_process(socket, owner) == :ok
      # The remaining count of the mode goes with the socket.
      assert NetlinkPort.send(socket, "") |> elem(1) |> Map.get(:reason) == :ebadf
      assert NetlinkPort.setopts(socket, active: true) == :ok
      assert_receive {^owner, {:netlink, ^socket, _datagram}}
      assert_receive {^owner, {:netlink, ^socket, _datagram}}
      assert_receive {^owner, {:netlink_closed, ^socket, :namespace_gone}}
      refute_received {:netlink_closed, ^socket, _reason}
    end

    defp forward(test) do
      receive do
        message -> send(test, {self(), message})
      end

      forward(test)
    end

    test "a queue that the owner leaves ends with the server, with one message", %{server: server} do
      netns = netns!()
      socket = open!(server, {:name, netns}, active: false, groups: [@addresses])
      add_addresses!(netns, 1..3)
      delete!(netns)
      eventually!(fn -> match?({:error, _closed}, NetlinkPort.info(socket)) end)
      Process.exit(server, :kill)
      assert_receive {:netlink_closed, ^socket, :killed}
      refute_receive {:netlink_closed, ^socket, _reason}, 100
    end

    test "a queue that the owner leaves ends with close/1, or with the owner", %{server: server} do
      netns = netns!()
      test = self()

      owner =
        spawn(fn ->
          send(
            test,
            {:opened, open!(server, {:name, netns}, active: false, groups: [@addresses])}
          )

          receive do: (:stop -> :ok)
        end)

      assert_receive {:opened, others}
      socket = open!(server, {:name, netns}, active: false, groups: [@addresses])
      add_addresses!(netns, 1..3)
      delete!(netns)

      for s <- [socket, others],
          do: eventually!(fn -> match?({:error, _}, NetlinkPort.info(s)) end)

      assert NetlinkPort.close(socket) == :ok
      send(owner, :stop)
      eventually!(fn -> map_size(:sys.get_state(server).sockets.entries) == 0 end)
      # The row of the command goes with its answer.
      eventually!(fn -> :ets.info(:sys.get_state(server).helper.board, :size) == 1 end)
      refute_received {:netlink_closed, _socket, _reason}
    end
  end

  describe "a helper of an ordinary user, with file capabilities," do
    @tag :init_user_namespace
    test "watches the namespaces that it may enter" do
      netns = netns!()
      copy = public!(helper())
      {_output, 0} = as_root("setcap", ["cap_sys_admin,cap_net_admin+ep", copy])
      nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups"
      server = start_server!(executable: script!("exec #{nobody} #{copy} \"$@\""))
      pid = sleeper!(netns)
      # The pidfd of root's process needs no privilege, the way into its namespace does.
      assert {:error, %Error{stage: :open, reason: :eacces}} = open(server, {:pid, pid})
      path = mount!(netns, Path.join(folder!(), "blue"))
      before = fds(server)
      sockets = for place <- [{:name, netns}, {:path, path}], do: open!(server, place)
      Enum.each(sockets, &refute_closed(server, &1))
      remove!(path)
      assert_closed(List.last(sockets))
      refute_closed(server, hd(sockets))
      delete!(netns)
      assert_closed(hd(sockets))
      assert fds(server) == before
    end
  end

  describe "watches" do
    test "of one folder are a single watch, which ends with the last socket", %{server: server} do
      [netns, other, third] = for _ <- 1..3, do: netns!()
      path = mount!(third, Path.join(folder!(), "blue"))
      assert watches(server) == 0
      sockets = for n <- [netns, netns, other], do: open!(server, {:name, n})
      assert watches(server) == 1
      elsewhere = open!(server, {:path, path})
      assert watches(server) == 2
      assert NetlinkPort.close(elsewhere) == :ok
      assert watches(server) == 1
      delete!(netns)
      for socket <- Enum.take(sockets, 2), do: assert_closed(socket)
      assert watches(server) == 1
      owner = spawn_reporting(fn -> open!(server, {:path, path}) end)
      assert_receive {:result, ^owner, _socket}
      assert NetlinkPort.close(List.last(sockets)) == :ok
      eventually!(fn -> watches(server) == 0 end)
    end

    # The watches of inotify, proc_pid_fdinfo(5).
    defp watches(server) do
      for path <- Path.wildcard("/proc/#{os_pid(server)}/fdinfo/*"), reduce: 0 do
        count -> count + (path |> File.read!() |> String.split("inotify wd:") |> length()) - 1
      end
    end
  end

  describe "a path" do
    test "whose file is moved away or replaced closes the socket", %{server: server} do
      [netns, other] = [netns!(), netns!()]
      folder = folder!()
      # Symbolic links, since rename(2) cannot replace a mount.
      [path, aside] = for name <- ~w(blue aside), do: Path.join(folder, name)
      File.ln_s!(netns_path(netns), path)
      socket = open!(server, {:path, path})
      File.rename!(path, aside)
      assert_closed(socket)

      socket = open!(server, {:path, aside})
      File.ln_s!(netns_path(other), path)
      refute_closed(server, socket)
      File.rename!(path, aside)
      assert_closed(socket)

      # The same namespace under the same name again is no end.
      socket = open!(server, {:path, aside})
      File.ln_s!(netns_path(other), path)
      File.rename!(path, aside)
      refute_closed(server, socket)
      # The socket is watched as before.
      File.rm!(aside)
      assert_closed(socket)
    end

    test "that is a link closes the socket when the link or its target is deleted, also through further links",
         context do
      %{server: server} = context
      [one, two] = [folder!("one"), folder!("two")]

      for victim <- [:namespace, :near, :far] do
        netns = netns!()
        far = Path.join(two, "far")
        near = Path.join(one, "near")
        File.ln_s!(netns_path(netns), far)
        # A relative link.
        File.ln_s!("../#{Path.basename(two)}/far", near)
        before = fds(server)
        socket = open!(server, {:path, near})
        refute_closed(server, socket)

        case victim do
          :namespace -> delete!(netns)
          :near -> File.rm!(near)
          :far -> File.rm!(far)
        end

        assert_closed(socket)
        assert fds(server) == before
        for path <- [near, far], do: File.rm(path)
      end
    end

    test "that is a link is watched at its new target when it changes", %{server: server} do
      [netns, other] = [netns!(), netns!()]
      path = mount!(netns, Path.join(folder!("one"), "blue"))
      link = Path.join(folder!("two"), "link")
      File.ln_s!(netns_path(netns), link)
      socket = open!(server, {:path, link})
      # The same namespace, by another file.
      {_output, 0} = as_root("ln", ["-sfn", path, link])
      refute_closed(server, socket)
      delete!(netns)
      refute_closed(server, socket)
      remove!(path)
      assert_closed(socket)
      refute works?(server, {:path, link})
      delete!(other)
    end

    test "whose folder is deleted or moved closes the socket", %{server: server} do
      netns = netns!()

      for change <- [:deleted, :moved] do
        folder = folder!("#{change}")
        path = Path.join(folder, "blue")
        File.ln_s!(netns_path(netns), path)
        sockets = for _ <- 1..3, do: open!(server, {:path, path})

        case change do
          :deleted -> File.rm_rf!(folder)
          :moved -> File.rename!(folder, tmp_path!("elsewhere"))
        end

        Enum.each(sockets, &assert_closed/1)
      end
    end

    test "whose folder is replaced keeps the socket open if it leads to the same namespace there",
         context do
      %{server: server} = context
      netns = netns!()
      [folder, other] = [folder!(), folder!("other")]
      path = Path.join(folder, "blue")
      File.ln_s!(netns_path(netns), path)
      File.ln_s!(netns_path(netns), Path.join(other, "blue"))
      socket = open!(server, {:path, path})
      helper = os_pid(server)
      signal!(helper, "STOP")
      File.rename!(folder, tmp_path!("elsewhere"))
      File.rename!(other, folder)
      signal!(helper, "CONT")
      refute_closed(server, socket)
      # The new folder is the watched one.
      File.rm!(path)
      assert_closed(socket)
    end

    test "that is deleted closes the socket even if inotify lost events of its folder" do
      # On a slow machine the files take longer than a ping waits.
      server = start_server!(ping_interval: :infinity)
      netns = netns!()
      folder = folder!()
      path = Path.join(folder, "blue")
      File.ln_s!(netns_path(netns), path)
      {:ok, kept} = open(server, {:name, netns})
      socket = open!(server, {:path, path})
      limit = "/proc/sys/fs/inotify/max_queued_events" |> File.read!() |> String.trim()
      helper = os_pid(server)
      signal!(helper, "STOP")
      script = "cd #{folder} && seq 0 #{limit} | xargs touch && seq 0 #{limit} | xargs rm"
      {_output, 0} = System.cmd("sh", ["-c", script])
      # inotify reports only that events were lost.
      File.rm!(path)
      signal!(helper, "CONT")
      assert_closed(socket, 10_000)
      refute_closed(server, kept)
      delete!(netns)
      assert_closed(kept)
    end

    test "of a process is watched as the process", %{server: server} do
      # A link to a process with more capabilities than the helper needs CAP_SYS_PTRACE.
      modest = "exec setpriv --bounding-set=-all sleep 600"
      pid = os_process!("nsenter", ["--net=#{netns_path(netns!())}", "sh", "-c", modest])
      eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
      # Containers are often named in this way.
      link = Path.join(folder!(), "blue")
      File.ln_s!("/proc/#{pid}/ns/net", link)
      sockets = for path <- ["/proc/#{pid}/ns/net", link], do: open!(server, {:path, path})
      removed = open!(server, {:path, link})
      Enum.each(sockets, &refute_closed(server, &1))
      File.rm!(link)
      assert_closed(removed)
      assert_closed(List.last(sockets))
      refute_closed(server, hd(sockets))
      signal!(pid, "KILL")
      assert_closed(hd(sockets))
    end

    test "that inotify cannot watch is refused", %{server: server} do
      # A descriptor of a process with fewer capabilities than the helper.
      modest = "exec setpriv --bounding-set=-all sleep 600 7< #{netns_path(netns!())}"
      pid = os_process!("sh", ["-c", modest])
      eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
      before = fds(server)

      for path <- ["/proc/#{pid}/fd/7", "/proc/#{pid}/task/#{pid}/fd/7"] do
        assert works?(server, {:path, path})
        assert {:error, error} = open(server, {:path, path})
        assert {path, error.stage, error.reason} == {path, :watch, :eopnotsupp}
        assert Exception.message(error) =~ "{:pid, pid}"
      end

      assert fds(server) == before + 2
    end

    test "that cannot be opened fails as it does without the option", %{server: server} do
      folder = folder!()
      loop = Path.join(folder, "loop")
      File.ln_s!(loop, loop)
      dangling = Path.join(folder, "dangling")
      File.ln_s!("nowhere", dangling)
      before = fds(server)

      for path <-
            [
              "",
              "/nowhere",
              "/nowhere/blue",
              "/etc/hostname",
              "/etc/hostname/x",
              "/",
              "/dev/null"
            ] ++
              ["nowhere", loop, dangling, folder, folder <> "/", "/run/netns/.."] do
        assert {:error, expected} = NetlinkPort.open(server, :route, netns: {:path, path})
        assert {:error, error} = open(server, {:path, path})
        assert {path, error} == {path, expected}
      end

      assert fds(server) == before
    end
  end

  describe "a process" do
    test "that ends closes its sockets, even if other processes keep the namespace", %{
      server: server
    } do
      netns = netns!()
      [pid, other] = [sleeper!(netns), sleeper!(netns)]
      before = fds(server)
      sockets = for _ <- 1..10, do: open!(server, {:pid, pid})
      kept = open!(server, {:pid, other})
      named = open!(server, {:name, netns})
      signal!(pid, "KILL")
      Enum.each(sockets, &assert_closed/1)
      Enum.each([kept, named], &refute_closed(server, &1))
      # The kept namespace has a pidfd, the named one inotify.
      assert fds(server) == before + 4
      Enum.each([kept, named], &NetlinkPort.close/1)
      assert fds(server) == before
    end

    test "that moves to another namespace keeps its sockets open until it ends", %{server: server} do
      pid =
        os_process!("unshare", ["-n", "sh", "-c", "sleep 1000 & wait; exec unshare -n sleep 600"])

      eventually!(fn -> inode("/proc/#{pid}/ns/net") != inode("/proc/self/ns/net") end)
      eventually!(fn -> File.read("/proc/#{pid}/task/#{pid}/children") not in [{:ok, ""}] end)
      socket = open!(server, {:pid, pid})
      [child] = "/proc/#{pid}/task/#{pid}/children" |> File.read!() |> String.split()
      first = inode("/proc/#{pid}/ns/net")
      signal!(child, "KILL")
      eventually!(fn -> inode("/proc/#{pid}/ns/net") != first end)
      refute_closed(server, socket)
      signal!(pid, "KILL")
      assert_closed(socket)
    end

    test "that does not exist is ESRCH, and so is a zombie", %{server: server} do
      pid = os_process!("sh", ["-c", "sleep 0 & exec sleep 600"])
      eventually!(fn -> File.read!("/proc/#{pid}/task/#{pid}/children") != "" end)
      [zombie] = "/proc/#{pid}/task/#{pid}/children" |> File.read!() |> String.split()
      eventually!(fn -> not running?(zombie) end)
      before = fds(server)

      for pid <- [0x7FFFFFFF, String.to_integer(zombie)] do
        assert {:error, error} = open(server, {:pid, pid})
        assert {pid, error.reason} == {pid, :esrch}
      end

      assert fds(server) == before
    end

    @tag :userns
    @tag :init_user_namespace
    test "in a user namespace, entered by a child of the helper", %{server: _server} do
      nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"]
      script = script!("exec setpriv #{Enum.join(nobody, " ")} #{public!(helper())} \"$@\"")
      server = start_server!(executable: script, user_namespaces: true)
      pid = os_process!("setpriv", nobody ++ ["unshare", "-Urn", "sleep", "600"])
      eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
      before = fds(server)
      places = [{:pid, pid}, {:path, "/proc/#{pid}/ns/net"}]
      sockets = for place <- places, do: open!(server, place)
      Enum.each(sockets, &refute_closed(server, &1))
      signal!(pid, "KILL")
      Enum.each(sockets, &assert_closed/1)
      assert fds(server) == before
    end
  end

  describe "a refused watch" do
    test "fails the open, says what to do, and leaves nothing behind" do
      netns = netns!()
      pid = sleeper!(netns)

      for {syscall, errno, target, remedy} <- [
            {"inotify_add_watch", "ENOSPC", {:name, netns}, "fs.inotify.max_user_watches"},
            {"inotify_add_watch", "ENOMEM", {:name, netns}, "memory"},
            {"inotify_init1", "EMFILE", {:name, netns}, "fs.inotify.max_user_instances"},
            {"pidfd_open", "EMFILE", {:pid, pid}, "RLIMIT_NOFILE"},
            {"pidfd_open", "ESRCH", {:pid, pid}, "no such process"},
            {"epoll_ctl", "ENOSPC", {:pid, pid}, "fs.epoll.max_user_watches"},
            {"epoll_ctl", "ENOSPC", {:name, netns}, "fs.epoll.max_user_watches"}
          ] do
        switch = tmp_path!("fault")
        server = start_injected!("#{syscall} #{errno} file:#{switch}")
        {:ok, plain} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
        before = fds(server)
        File.write!(switch, "")
        assert {:error, error} = open(server, target)
        reason = errno |> String.downcase() |> String.to_atom()
        assert {syscall, error.stage, error.reason} == {syscall, :watch, reason}
        assert Exception.message(error) =~ remedy
        File.rm!(switch)
        assert fds(server) == before
        assert Rtnl.link_names(plain) == ["lo"]
        socket = open!(server, target)
        assert NetlinkPort.close(socket) == :ok
        assert fds(server) == before
      end
    end

    @tag :init_user_namespace
    test "of a folder that the helper may not read names the capability" do
      netns = netns!()
      folder = folder!()
      File.chown!(folder, 65534)
      File.chmod!(folder, 0o711)
      path = mount!(netns, Path.join(folder, "blue"))
      server = start_server!()
      assert works?(server, {:path, path})
      assert {:error, error} = open(server, {:path, path})
      assert {error.stage, error.reason, error.lacks} == {:watch, :eacces, :dac_read_search}
      assert {:ok, _socket} = open(start_server!(keep: [:dac_read_search]), {:path, path})
    end

    test "closes the socket when the helper renews the watch" do
      netns = netns!()
      link = Path.join(folder!(), "blue")
      File.ln_s!(netns_path(netns), link)
      switch = tmp_path!("fault")
      server = start_injected!("inotify_add_watch ENOSPC file:#{switch}")
      socket = open!(server, {:path, link})
      File.write!(switch, "")
      {_output, 0} = as_root("ln", ["-sfn", netns_path(netns), link])
      assert_closed(socket)
    end

    test "is replaced when inotify cannot be read" do
      netns = netns!()
      folder = folder!()
      [path, other] = for name <- ~w(blue other), do: Path.join(folder, name)
      for path <- [path, other], do: File.ln_s!(netns_path(netns), path)
      switch = tmp_path!("fault")
      # The helper must not read its input meanwhile: no ping comes, and it does not spin.
      opts = [spin: 0, ping_interval: :infinity]
      server = start_injected!("read EIO file:#{switch}", opts)
      [socket, kept] = for path <- [path, other], do: open!(server, {:path, path})
      File.write!(switch, "")
      File.rm!(path)
      assert_closed(socket)
      File.rm!(switch)
      refute_closed(server, kept)
      File.rm!(other)
      assert_closed(kept)
    end
  end

  describe "the option" do
    test "raises for other values", %{server: server} do
      for value <- [:namespace, true, "namespace_gone"] do
        assert_raise ArgumentError, ~r/close_on: to be :namespace_gone or nil/, fn ->
          NetlinkPort.open(server, :route, close_on: value)
        end
      end

      assert {:ok, _socket} = NetlinkPort.open(server, :route, close_on: nil)
    end

    test "has no effect for the helper's own namespace", %{server: server} do
      before = fds(server)
      socket = open!(server, :host)
      assert fds(server) == before + 1
      refute_closed(server, socket)
    end

    test "costs nothing while nothing happens: the helper sleeps", %{server: server} do
      # In a folder of its own: every namespace that another test makes in /run/netns wakes the helpers that watch it.
      folder = folder!()
      netns = netns!()
      path = &mount!(netns, Path.join(folder, &1))
      _named = open!(server, {:path, path.("kept")})
      _process = open!(server, {:pid, sleeper!(netns)})
      helper = os_pid(server)
      # An inotify that has been read, and a namespace that has gone.
      for _ <- 1..2, do: remove!(path.("other"))
      gone = path.("gone")
      socket = open!(server, {:path, gone})
      remove!(gone)
      assert_closed(socket)

      # At some time nothing moves any more. A helper that woke up again and again would never get there.
      eventually!(fn -> still?(helper) end)
    end

    defp still?(helper) do
      before = switches(helper)
      Process.sleep(300)
      asleep?(helper) and switches(helper) == before
    end

    defp asleep?(pid), do: File.read!("/proc/#{pid}/stat") =~ ") S "

    defp switches(pid) do
      [_all, count] =
        Regex.run(~r/^voluntary_ctxt_switches:\t(\d+)$/m, File.read!("/proc/#{pid}/status"))

      count
    end
  end
end
