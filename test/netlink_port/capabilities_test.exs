defmodule NetlinkPort.CapabilitiesTest do
  # The capabilities that a helper gives up at start, seen from outside, and helpers that start with fewer than they
  # need: these run, and say what they lack.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2, |||: 2]

  @moduletag :root

  # include/uapi/linux/capability.h
  @audit_read 1 <<< 37
  @net_broadcast 1 <<< 11
  @needed 1 <<< 21 ||| 1 <<< 12
  @ptrace 1 <<< 19

  # A field of /proc/<pid>/status, proc_pid_status(5).
  defp status(server, field) do
    status = File.read!("/proc/#{os_pid(server)}/status")
    [_, value] = Regex.run(~r/^#{field}:\s+(\w+)$/m, status)
    String.to_integer(value, 16)
  end

  defp sets(server),
    do: for(set <- ~w(CapEff CapPrm CapInh CapAmb CapBnd), do: status(server, set))

  test "a helper keeps two effective capabilities, and CAP_SYS_PTRACE permitted" do
    server = start_server!()
    assert sets(server) == [@needed, @needed ||| @ptrace, 0, 0, 0]
    assert status(server, "NoNewPrivs") == 1
    # SECCOMP_MODE_FILTER.
    assert status(server, "Seccomp") == 2
    # Not dumpable: its memory belongs to root, whatever user it runs as.
    assert File.stat!("/proc/#{os_pid(server)}/mem").uid == 0

    # CAP_SYS_PTRACE is raised for the namespace of a process with more capabilities, and lowered again.
    assert {:ok, %{capabilities: capabilities}} = NetlinkPort.info(server)
    assert :sys_ptrace in capabilities
    pid = os_process!("sleep", ["60"])
    {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:path, "/proc/#{pid}/ns/net"})
    assert sets(server) == [@needed, @needed ||| @ptrace, 0, 0, 0]
  end

  test "keep: names further capabilities" do
    server = start_server!(keep: [:net_broadcast, :audit_read])
    kept = @needed ||| @net_broadcast ||| @audit_read
    assert sets(server) == [kept, kept ||| @ptrace, 0, 0, 0]

    for wrong <- [[:sys_boot], [:net_admin, :chown], :net_broadcast, "net_broadcast", nil] do
      assert_raise ArgumentError, ~r/expected keep: a list of/, fn ->
        NetlinkPort.start_link(name: nil, keep: wrong)
      end
    end
  end

  test "inherited capabilities are given up, also if the bounding set has to stay" do
    helper = helper()
    ambient = "setpriv --inh-caps +net_raw,+chown --ambient-caps +net_raw,+chown"
    server = start_server!(executable: script!("exec #{ambient} #{helper}"))
    assert sets(server) == [@needed, @needed ||| @ptrace, 0, 0, 0]

    server = start_without!([:setpcap])
    assert [@needed, _permitted, 0, 0, bounding] = sets(server)
    assert bounding > @needed
    assert status(server, "NoNewPrivs") == 1
  end

  test "without CAP_SYS_PTRACE the namespaces of more privileged processes are EACCES" do
    server = start_without!([:sys_ptrace])
    pid = os_process!("sleep", ["60"])
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:pid, pid})
    assert {error.stage, error.reason, error.lacks} == {:open, :eacces, :sys_ptrace}

    assert Exception.message(error) =~
             "open of /proc/#{pid}/ns/net: EACCES: it leads to process #{pid}, and the namespaces " <>
               "of processes of other users, or with more capabilities than the helper, are closed to " <>
               "it: the helper lacks CAP_SYS_PTRACE; its bounding set does not hold it"
  end

  @tag :init_user_namespace
  test "the group of NETLINK_AUDIT needs CAP_AUDIT_READ" do
    server = start_server!()
    assert {:error, error} = NetlinkPort.open(server, :audit, groups: [1])
    assert {error.reason, error.lacks} == {:eperm, :audit_read}
    assert Exception.message(error) =~ "keep: [:audit_read]"

    server = start_server!(keep: [:audit_read, :audit_control])
    assert {:ok, _socket} = NetlinkPort.open(server, :audit, groups: [1])
  end

  defp start_without!(capabilities) do
    drop = Enum.map_join(capabilities, ",", &"-#{&1}")
    helper = helper()
    start_server!(executable: script!("exec setpriv --bounding-set #{drop} #{helper}"))
  end

  # AUDIT_GET (1000) of include/uapi/linux/audit.h is answered by AUDIT_GET; a refusal by NLMSG_ERROR (2).
  @tag :init_user_namespace
  test "the commands of NETLINK_AUDIT need CAP_AUDIT_CONTROL" do
    for {keep, type} <- [{[], 2}, {[:audit_control], 1000}] do
      server = start_server!(keep: keep)
      {:ok, socket} = NetlinkPort.open(server, :audit, active: false)
      :ok = NetlinkPort.send(socket, Rtnl.message(1000, 1, 1, <<>>))
      assert {:ok, datagram} = NetlinkPort.recv(socket, within(2_000))
      assert [{^type, 1, _payload}] = Rtnl.messages(datagram)
    end
  end

  @tag :init_user_namespace
  test "a namespace file in a folder of another user needs CAP_DAC_READ_SEARCH" do
    folder = tmp_path!("folder")
    File.mkdir_p!(folder)
    File.touch!(Path.join(folder, "netns"))
    path = Path.join(folder, "netns")
    {_output, 0} = as_root("mount", ["--bind", netns_path(netns!()), path])
    on_exit(fn -> as_root("umount", [path]) end)
    File.chmod!(folder, 0o700)
    {_output, 0} = as_root("chown", ["65534", folder])

    assert {:error, error} = NetlinkPort.open(start_server!(), :route, netns: {:path, path})
    assert {error.stage, error.reason, error.lacks} == {:open, :eacces, :dac_read_search}
    assert Exception.message(error) =~ "keep: [:dac_read_search]"

    server = start_server!(keep: [:dac_read_search])
    assert {:ok, _socket} = NetlinkPort.open(server, :route, netns: {:path, path})
  end

  test "without CAP_SYS_ADMIN the helper serves its own namespace and no other" do
    netns = netns!()
    server = start_without!([:sys_admin])
    assert {:ok, %{may_leave: false, capabilities: held}} = NetlinkPort.info(server)
    refute :sys_admin in held
    assert :net_admin in held

    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
    assert {error.stage, error.errno, error.lacks} == {:setns, 1, :sys_admin}

    assert Exception.message(error) =~
             "setns into /run/netns/#{netns}: EPERM: the helper lacks CAP_SYS_ADMIN; its bounding " <>
               "set does not hold it, so that neither root nor the capabilities of a file give it: the " <>
               "container (--cap-add SYS_ADMIN) or the systemd unit (CapabilityBoundingSet=) has to " <>
               "allow it; sockets in its own namespace (netns: :host) need no capability"

    # An error of the path comes first, as it does with the capability.
    assert {:error, %{stage: :open, errno: 2}} =
             NetlinkPort.open(server, :route, netns: {:path, "/nowhere"})

    assert {:error, %{stage: :setns, errno: 22}} =
             NetlinkPort.open(server, :route, netns: {:path, "/etc"})

    assert {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    assert "lo" in Rtnl.link_names(socket)
  end

  test "without CAP_NET_ADMIN a socket's place is confirmed since Linux 6.18, by NS_GET_ID" do
    netns = netns!()
    server = start_without!([:net_admin])

    for {place, file} <- [{:host, "/proc/self/ns/net"}, {{:name, netns}, netns_path(netns)}] do
      {:ok, socket} = NetlinkPort.open(server, :route, netns: place, active: false)
      assert {:ok, %{verified: verified, cookie: cookie} = told} = NetlinkPort.info(socket)
      assert verified == linux?(6, 18)
      assert told.inode == inode(file)
      assert cookie?(cookie)
    end
  end

  test "without CAP_NET_ADMIN and NS_GET_ID, as before Linux 6.18, a socket's place is not verified" do
    netns = netns!()
    inject = "#{fixture!("inject")} NS_GET_ID ENOTTY always #{helper()}"

    server =
      start_server!(executable: script!("exec setpriv --bounding-set -net_admin #{inject}"))

    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
    inode = inode(netns_path(netns))
    assert {:ok, %{verified: false, inode: ^inode}} = NetlinkPort.info(socket)
    assert "lo" in Rtnl.link_names(socket)
  end

  test "with CAP_NET_ADMIN a socket's place is confirmed without NS_GET_ID" do
    netns = netns!()
    server = start_injected!("NS_GET_ID ENOTTY always")
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
    assert {:ok, %{verified: true}} = NetlinkPort.info(socket)
  end

  test "without CAP_NET_ADMIN changes are refused" do
    netns = netns!()
    server = start_without!([:net_admin])
    {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)

    :ok = NetlinkPort.send(socket, Rtnl.new_bridge("br0", 1))
    assert {:ok, answer} = NetlinkPort.recv(socket, within(1_000))
    # NLMSG_ERROR with -EPERM.
    assert [{2, 1, <<-1::32-signed-native, _::binary>>}] = Rtnl.messages(answer)

    # Without SO_RCVBUFFORCE the limit of the system applies.
    assert :ok = NetlinkPort.setopts(socket, rcvbuf: 1_000_000_000)
    limit = "/proc/sys/net/core/rmem_max" |> File.read!() |> String.trim() |> String.to_integer()
    assert NetlinkPort.getopts(socket, [:rcvbuf]) == {:ok, rcvbuf: 2 * limit}
  end

  test "without CAP_NET_ADMIN the error of a request names it, on sockets and connections" do
    netns = {:name, netns!()}
    server = start_without!([:net_admin])
    opts = [server: server, protocol: :xfrm, netns: netns]
    connection = start_supervised!({NetlinkPort.Connection, opts})

    for active <- [false, true] do
      {:ok, route} = NetlinkPort.open(server, :route, netns: netns, active: active)
      {:ok, xfrm} = NetlinkPort.open(server, :xfrm, netns: netns, active: active)
      {:ok, netfilter} = NetlinkPort.open(server, :netfilter, netns: netns, active: active)
      # RTM_NEWLINK; XFRM_MSG_GETSA; IPCTNL_MSG_CT_GET
      bridge = [<<0::128>>, NetlinkPort.Attr.encode([{18, [{1, "bridge\0"}]}])]
      flow = {0x101, [], <<2, 0, 0, 0>>}
      table = [{16, [], <<0, 0, 0, 10>>}, {0xA00, [], <<2, 0, 0, 0>>}, {17, [], <<0, 0, 0, 10>>}]

      for refused <- [
            NetlinkPort.request(route, 16, bridge, flags: [:create]),
            NetlinkPort.request(route, 16, bridge, flags: [:create], ack: false),
            route |> NetlinkPort.batch([{16, [:create], bridge}]) |> elem(1) |> hd(),
            netfilter |> NetlinkPort.batch([flow, flow]) |> elem(1) |> List.last(),
            netfilter |> NetlinkPort.batch(table) |> elem(1) |> hd(),
            NetlinkPort.dump(xfrm, 0x12),
            raised(fn -> xfrm |> NetlinkPort.stream(0x12) |> Enum.to_list() end),
            NetlinkPort.Connection.dump(connection, 0x12),
            NetlinkPort.Connection.request(connection, 0x12, "", flags: [:dump]),
            connection |> NetlinkPort.Connection.batch([{0x1C, [], <<0>>}]) |> elem(1) |> hd()
          ] do
        assert {:error, %{stage: :request, reason: :eperm, lacks: :net_admin} = error} = refused

        assert Exception.message(error) =~
                 "request: EPERM: the helper lacks CAP_NET_ADMIN; its bounding"
      end

      # Another errno has another cause.
      assert {:error, %{reason: :enodev, lacks: nil}} =
               NetlinkPort.request(route, 18, <<0::32, 1_000_000::32-native, 0::64>>)
    end
  end

  defp raised(fun) do
    fun.()
  rescue
    error in NetlinkPort.Error -> {:error, error}
  end

  @tag :init_user_namespace
  test "the error of a request to NETLINK_AUDIT names the capability; keep: [:audit_write] lets records be sent" do
    # AUDIT_GET (1000) and AUDIT_USER_LOGIN (1112) of include/uapi/linux/audit.h
    for {type, payload, lacks} <- [
          {1000, "", :audit_control},
          {1112, "op=netlink_port\0", :audit_write}
        ],
        keep <- [[], [lacks]] do
      {:ok, socket} = NetlinkPort.open(start_server!(keep: keep), :audit, active: false)

      case {keep, NetlinkPort.request(socket, type, payload)} do
        {[], outcome} ->
          assert {:error, %{reason: :eperm, lacks: ^lacks} = error} = outcome
          assert Exception.message(error) =~ "start its server with keep: [#{inspect(lacks)}]"

        {_kept, outcome} ->
          assert {:ok, _messages} = outcome
      end
    end
  end

  @tag :init_user_namespace
  test "a command to NETLINK_AUDIT from another pid or user namespace is refused, and the error says why" do
    for {namespaces, reason, why} <- [
          {"--pid --fork --kill-child", :eperm,
           "though the helper has CAP_AUDIT_CONTROL: NETLINK_AUDIT takes commands from the first pid namespace"},
          {"-Ur", :econnrefused, "NETLINK_AUDIT is there for the first user namespace alone"}
        ] do
      script = script!("exec unshare #{namespaces} #{helper()} \"$@\"")
      server = start_server!(executable: script, keep: [:audit_control])
      {:ok, socket} = NetlinkPort.open(server, :audit, active: false)
      assert {:error, error} = NetlinkPort.request(socket, 1000)
      assert {error.stage, error.reason, error.lacks} == {:request, reason, nil}
      assert Exception.message(error) =~ why
    end
  end

  test "without CAP_NET_BROADCAST the error of listen_all_nsid names it" do
    server = start_without!([:net_broadcast])
    {:ok, socket} = NetlinkPort.open(server, :route, [])
    assert {:error, error} = NetlinkPort.setopts(socket, listen_all_nsid: true)
    assert {error.stage, error.reason, error.lacks} == {:setsockopt, :eperm, :net_broadcast}
    assert Exception.message(error) =~ "the helper lacks CAP_NET_BROADCAST"
  end

  @tag :userns
  test "inside its own user namespace the helper enters the namespaces that were made there, and no others" do
    netns = netns!()
    helper = helper()

    # The helper has a network namespace of its own, and may come home to it.
    server = start_server!(executable: script!("exec unshare -Urn #{helper}"))
    {:ok, info} = NetlinkPort.info(server)
    assert info.may_leave
    assert info.home_inode != inode("/proc/self/ns/net")
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
    assert {error.stage, error.errno} == {:setns, 1}
    assert {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    assert Rtnl.link_names(socket) == ["lo"]

    # Home belongs to another user namespace, so that the helper never leaves it.
    server = start_server!(executable: script!("exec unshare -Ur #{helper}"))
    assert {:ok, %{may_leave: false}} = NetlinkPort.info(server)
    assert {:error, error} = NetlinkPort.open(server, :route, netns: {:name, netns})
    assert {error.stage, error.errno} == {:setns, 1}
    assert {:ok, _socket} = NetlinkPort.open(server, :route, [])
  end
end
