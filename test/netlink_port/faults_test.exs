defmodule NetlinkPort.FaultsTest do
  # System calls of the helper that fail, one at a time: what the user sees, and that everything else goes on. Part of
  # docs/faults.md.
  use NetlinkPort.Case, async: true

  @moduletag :root

  # A fault that is active while this file exists.
  defp switch!, do: tmp_path!("fault")
  defp queue_length(pid), do: pid |> Process.info(:message_queue_len) |> elem(1)

  defp closed!(socket) do
    assert_receive {:netlink_closed, ^socket, reason}, within(5_000)
    reason
  end

  defp works!(socket) do
    assert Rtnl.link_names(socket) == ["lo"]
  end

  describe "an open that the kernel refuses" do
    test "names the call that failed, and leaves nothing behind" do
      netns = netns!()

      for {syscall, errno, stage} <- [
            {"socket", "ENOMEM", :socket},
            {"socket", "ENFILE", :socket},
            {"socket", "EMFILE", :socket},
            {"setns", "ENOMEM", :setns},
            {"openat", "EMFILE", :open},
            {"bind", "ENOMEM", :bind},
            {"connect", "ENOBUFS", :connect},
            {"setsockopt", "ENOMEM", :setsockopt},
            {"getsockname", "ENOBUFS", :info},
            {"ioctl", "ENFILE", :socket},
            {"epoll_ctl", "ENOSPC", :socket}
          ] do
        switch = switch!()
        server = start_injected!("#{syscall} #{errno} file:#{switch}")
        {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
        before = fds(server)

        File.write!(switch, "")
        assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
        reason = errno |> String.downcase() |> String.to_atom()
        assert {syscall, error.stage, error.reason} == {syscall, stage, reason}
        assert Exception.message(error) =~ errno

        File.rm!(switch)
        assert fds(server) == before
        works!(socket)
        assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      end
    end

    test "of a process that is about to end is ESRCH" do
      switch = switch!()
      server = start_injected!("openat ENOENT file:#{switch}")
      pid = os_process!("sleep", ["60"])
      File.write!(switch, "")
      # pidfd_open(2) has still found the process, but its namespaces are gone.
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, pid})
      assert {error.stage, error.reason} == {:open, :esrch}
      File.rm!(switch)
      assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    end

    test "once with EINTR is repeated" do
      netns = netns!()
      switch = switch!()
      server = start_injected!("openat EINTR once:#{switch}")
      File.write!(switch, "")

      assert {:ok, socket} =
               NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)

      refute File.exists?(switch)
      works!(socket)
    end
  end

  describe "CAP_SYS_PTRACE" do
    @tag :trace
    test "that cannot be raised is EACCES for opens that need it; other opens succeed" do
      netns = netns!()
      switch = switch!()
      server = start_injected!("capset EPERM file:#{switch}")
      assert {:ok, %{os_pid: helper}} = NetlinkPort.info(server)
      File.write!(switch, "")
      # A process with more capabilities than the helper.
      netns_of_root = {:pid, os_process!("sleep", ["600"])}
      assert {:error, error} = NetlinkPort.open(server, :route, netns: netns_of_root)
      assert {error.stage, error.reason} == {:open, :eacces}
      assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      File.rm!(switch)
      assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: netns_of_root)
      assert os_pid(server) == helper
    end

    @tag :trace
    test "that cannot be given up again ends the helper with exit code 71" do
      # capset(2) is called five times at start. The sixth call raises CAP_SYS_PTRACE, the seventh lowers it.
      server = start_injected!("capset EPERM 7")
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, os_pid(server)})
      assert {error.stage, error.reason} == {:thread, :epipe}
      assert closed!(socket) == {:helper_exit, 71}
    end
  end

  describe "a proof of the namespace that the kernel refuses" do
    test "leaves the socket usable, with verified: false" do
      netns = netns!()
      server = start_injected!("ioctl EPERM always")
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
      inode = inode(netns_path(netns))
      assert {:ok, %{verified: false, inode: ^inode}} = NetlinkPort.info(socket)
      works!(socket)
    end
  end

  describe "a send" do
    test "that the kernel refuses is an error for a caller that waits, and otherwise a message to the owner" do
      netns = netns!()

      for {errno, reason} <- [{"ENOBUFS", :enobufs}, {"ENOMEM", :enomem}] do
        switch = switch!()
        server = start_injected!("sendto #{errno} file:#{switch}")
        {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
        File.write!(switch, "")
        request = Rtnl.getlink(1, 1)
        assert {:error, error} = NetlinkPort.send(socket, request, wait: true)
        assert {error.stage, error.reason} == {:send, reason}
        assert :ok = NetlinkPort.send(socket, request)
        assert_receive {:netlink_error, ^socket, %Error{stage: :send, reason: ^reason}}
        File.rm!(switch)
        assert :ok = NetlinkPort.send(socket, request)
        assert_receive {:netlink, ^socket, _datagram}
      end
    end

    # A large batch of nftables can take that long. One thread serves all sockets.
    test "that takes the kernel long delays all sockets; nothing is lost, and the helper is not suspected" do
      [netns, other] = [netns!(), netns!()]
      hold = tmp_path!("hold")
      on_exit(fn -> File.rm(hold <> ".held") end)
      opts = [call_timeout: 60_000, ping_interval: 100]
      server = start_injected!("sendto EPERM hold:#{hold}", opts)
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      opts = [netns: {:name, other}, groups: [5], rcvbuf: 1_000_000]
      {:ok, events} = NetlinkPort.open(server, :route, opts)
      helper = os_pid(server)
      File.write!(hold, "")
      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      eventually!(fn -> File.exists?(hold <> ".held") end)

      waiting = spawn_reporting(fn -> NetlinkPort.memberships(events) end)
      ip_batch!(other, for(n <- 1..200, do: "addr add 10.0.0.#{n}/32 dev lo"))
      # Several pings become due meanwhile.
      refute_receive {_kind, _socket, _message}, 500
      File.rm!(hold <> ".held")

      assert_receive {:result, ^waiting, {:ok, [5]}}, within(5_000)
      assert_receive {:netlink, ^socket, _reply}, within(5_000)
      for n <- 1..200, do: assert({n, address(events)} == {n, {10, 0, 0, n}})
      assert os_pid(server) == helper
    end

    defp address(socket) do
      assert_receive {:netlink, ^socket, datagram}, within(5_000)
      [{20, _sequence, payload}] = Rtnl.messages(datagram)
      Rtnl.address(payload)
    end

    test "that a signal interrupts is sent once" do
      netns = netns!()
      server = start_injected!("sendto EINTR 1")
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1), wait: true)
      assert_receive {:netlink, ^socket, _datagram}
      refute_receive {:netlink, ^socket, _datagram}, 100
    end
  end

  describe "a receive" do
    test "that fails is reported, and reading goes on" do
      netns = netns!()
      server = start_injected!("recvmsg EIO 1")
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      assert_receive {:netlink_error, ^socket, %Error{stage: :recv, reason: :eio}}
      assert_receive {:netlink, ^socket, _datagram}
    end

    test "that fails for ever is reported again and again until the socket is closed; other sockets go on" do
      netns = netns!()
      switch = switch!()
      server = start_injected!("recvmsg EIO file:#{switch}")
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      {:ok, other} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
      File.write!(switch, "")
      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))

      for _ <- 1..100 do
        assert_receive {:netlink_error, ^socket, %Error{stage: :recv, reason: :eio}}
      end

      assert {:ok, _info} = NetlinkPort.info(other)
      assert :ok = NetlinkPort.close(socket)
      File.rm!(switch)
      works!(other)
    end

    test "that fails for ever fills no more of the VM than the window allows" do
      netns = netns!()
      switch = switch!()
      server = start_injected!("recvmsg EIO file:#{switch}")
      # A failure costs 300 bytes.
      opts = [netns: {:name, netns}, window: 30_000]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      File.write!(switch, "")
      :sys.suspend(server)
      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      eventually!(fn -> queue_length(server) >= 100 end)
      assert queue_length(server) < 110
      :sys.resume(server)

      # The owner takes them, which opens the window again.
      for _ <- 1..300 do
        assert_receive {:netlink_error, ^socket, %Error{stage: :recv, reason: :eio}}
      end
    end

    test "that a signal interrupts has no effect" do
      netns = netns!()
      server = start_injected!("recvmsg EINTR 1")
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
      assert :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 1))
      assert_receive {:netlink, ^socket, _datagram}
      refute_received {:netlink_error, _socket, _error}
    end
  end

  describe "an option of an open socket" do
    test "that the kernel refuses is named; the socket goes on" do
      netns = netns!()

      for {fault, work, failure} <- [
            {"setsockopt ENOMEM", &NetlinkPort.join(&1, 1),
             {:setsockopt, :enomem, "add_membership"}},
            {"setsockopt ENOBUFS", &NetlinkPort.setopts(&1, rcvbuf: 9_000),
             {:setsockopt, :enobufs, "rcvbuf"}},
            {"getsockopt ENOBUFS", &NetlinkPort.getopts(&1, [:ext_ack]),
             {:getsockopt, :enobufs, "ext_ack"}}
          ] do
        switch = switch!()
        server = start_injected!("#{fault} file:#{switch}")
        {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
        File.write!(switch, "")
        assert {:error, error} = work.(socket)
        assert {error.stage, error.reason, error.subject} == failure
        File.rm!(switch)
        assert {:ok, _value} = with(:ok <- work.(socket), do: {:ok, nil})
        works!(socket)
      end
    end
  end

  describe "the count of dropped datagrams" do
    # Grants are cumulative, so that a later one is enough.
    test "that cannot be read is reported as soon as it can be read, and is exact" do
      netns = netns!()
      switch = switch!()
      server = start_injected!("getsockopt ENOBUFS file:#{switch}")
      opts = [netns: {:name, netns}, active: false, groups: [5], rcvbuf: 4_096, window: 600]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      File.write!(switch, "")
      ip_batch!(netns, for(n <- 1..200, do: "addr add 10.0.0.#{n}/32 dev lo"))
      {seen, 0} = take_all(socket)
      assert seen < 200
      File.rm!(switch)
      ip!(["-n", netns, "addr", "add", "10.0.1.1/32", "dev", "lo"])
      {1, dropped} = take_all(socket)
      assert seen + dropped == 200
    end

    defp take_all(socket, seen \\ 0, dropped \\ 0) do
      case NetlinkPort.recv(socket, within(500)) do
        {:ok, _datagram} -> take_all(socket, seen + 1, dropped)
        {:error, %Error{reason: :enobufs, dropped: n}} -> take_all(socket, seen, dropped + n)
        {:error, %Error{reason: :etimedout}} -> {seen, dropped}
      end
    end
  end

  describe "a helper that was taken over" do
    @tag :dynamic
    test "is ended by its first system call that its work does not need" do
      marker = tmp_path!("marker")
      preload = "LD_PRELOAD=#{fixture!("libtakeover.so")} TAKEOVER=#{marker}"
      server = start_server!(executable: script!("#{preload} exec #{helper()} \"$@\""))
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns!()}, active: false)
      works!(socket)
      assert :ok = NetlinkPort.send(socket, "take over")
      # SIGSYS.
      assert closed!(socket) == {:helper_exit, 159}
      refute File.exists?(marker)
    end
  end

  describe "memory" do
    test "that the system refuses ends the helper and not the VM" do
      script = script!("ulimit -v 16000; exec #{helper()} \"$@\" 2> /dev/null")
      server = start_server!(executable: script)
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      large = :binary.copy(<<0>>, 16_000_000)
      assert {:error, error} = NetlinkPort.send(socket, large, wait: true)
      assert {error.stage, error.reason} == {:thread, :epipe}
      assert closed!(socket) in [{:helper_exit, 71}, {:helper_exit, :epipe}]
    end
  end

  describe "the loop" do
    test "that cannot wait, read or write ends with the exit code for that" do
      for {syscall, errno, code} <- [
            {"epoll_wait", "ENOMEM", 71},
            {"read", "EIO", 71},
            {"write", "EIO", 74},
            {"write", "EPIPE", 74}
          ] do
        switch = switch!()
        netns = netns!()
        server = start_injected!("#{syscall} #{errno} file:#{switch}")
        {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, groups: [1])
        File.write!(switch, "")
        _answer = wake(syscall, socket, netns)
        assert {syscall, closed!(socket)} == {syscall, {:helper_exit, code}}
      end
    end

    # A helper that cannot wait may end at once, and a command would then end its port before its exit status comes.
    # So an event wakes it, and a command wakes the others.
    defp wake("epoll_wait", _socket, netns),
      do: ip!(["-n", netns, "link", "add", "br0", "type", "bridge"])

    defp wake(_syscall, socket, _netns), do: NetlinkPort.info(socket)

    test "goes on after a signal interrupts it" do
      for syscall <- ~w(epoll_wait read write) do
        switch = switch!()
        server = start_injected!("#{syscall} EINTR once:#{switch}")
        {:ok, socket} = NetlinkPort.open(server, :route, active: false, netns: {:name, netns!()})

        for _ <- 1..3 do
          File.write!(switch, "")
          works!(socket)
          works!(socket)
          refute File.exists?(switch)
        end
      end
    end
  end

  describe "a start" do
    test "that the system refuses names the call" do
      for {refusal, sentence} <- [
            {"prlimit64 EPERM", "setrlimit(RLIMIT_NOFILE): EPERM"},
            {"prctl EPERM", "prctl(PR_SET_NO_NEW_PRIVS): EPERM"},
            {"capset EPERM", "capabilities could not be given up, capget(2) or capset(2)"},
            {"seccomp EPERM", "seccomp(2) was refused: the seccomp profile of the container, or"},
            {"epoll_create1 EPERM", "epoll_create1: EPERM"},
            # EPERM would mean a file.
            {"epoll_ctl ENOSPC", "epoll_ctl: ENOSPC"}
          ] do
        stderr = tmp_path!("stderr")

        script = script!("exec #{fixture!("inject")} #{refusal} always #{helper()} 2> #{stderr}")

        assert {:error, {%Error{} = error, _child}} =
                 start_supervised({NetlinkPort, name: nil, executable: script})

        assert {error.stage, error.reason} == {:thread, :eproto}
        assert error.subject =~ "ended with exit status 71"
        assert File.read!(stderr) =~ "netlink_port: #{sentence}"
      end
    end
  end
end
