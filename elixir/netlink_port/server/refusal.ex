defmodule NetlinkPort.Server.Refusal do
  @moduledoc false
  # The error for a failure in the helper, with what depends on where the helper runs: the capability that it lacks,
  # and the sentence that fits. Sentences that are the same everywhere are in `NetlinkPort.Error`.
  #
  # docs/protocol.md lists the details that the helper sends.
  #
  # Invariant: only `in_caller/2` and `request_in_caller/2` may wait for a file.

  alias NetlinkPort.{Errno, Error, Redaction}
  alias NetlinkPort.Helper.{Look, Privileges, Reference}

  # The detail of a bind(2) to a port id alone.
  @no_group "no group"
  # The system call of a stage.
  @calls %{
    open: "open(2)",
    bind: "bind(2)",
    connect: "connect(2)",
    setsockopt: "setsockopt(2)",
    getsockopt: "getsockopt(2)",
    info: "getsockname(2), or another call that looks at the socket,",
    send: "sendto(2)",
    recv: "recvmsg(2)",
    watch: "inotify(7)"
  }
  @memberships ["add_membership", "drop_membership"]

  @type failure :: {Error.stage(), integer(), binary()}
  @type place :: {NetlinkPort.protocol() | nil, NetlinkPort.netns()}

  @doc "The error for a failure on a socket of a protocol in a namespace."
  @spec error(failure(), place(), Privileges.t()) :: Error.t()
  def error({stage, errno, detail}, {protocol, netns}, privileges) do
    reason = Errno.atom(errno)
    found = found(stage, detail)
    wanted = wanted(stage, reason, found, protocol)
    lacks = if(wanted && not Privileges.capable?(privileges, wanted), do: wanted)

    Error.new(stage, errno,
      subject: subject(stage, detail, netns),
      lacks: lacks,
      hint: hint(stage, reason, found, %{wanted: wanted, lacks: lacks, privileges: privileges})
    )
  end

  @doc "The error for an open that failed. Its bind(2) names no group, and needs no capability."
  @spec of_open(failure(), place(), Privileges.t()) :: Error.t()
  def of_open({:bind, errno, ""}, place, privileges),
    do: error({:bind, errno, @no_group}, place, privileges)

  def of_open(failure, place, privileges), do: error(failure, place, privileges)

  @doc """
  The error of a request that the kernel has refused with EPERM. It names the capability `wanted`, if the helper lacks it.

  In a namespace that a child of the helper has entered, the capabilities count that the helper's user has there.
  """
  @spec request(Error.t(), atom(), NetlinkPort.netns(), Privileges.t()) :: Error.t()
  def request(error, wanted, netns, privileges) do
    elsewhere? =
      wanted in [:net_admin, :sys_admin] and netns != :host and privileges.children != false

    if elsewhere? or Privileges.capable?(privileges, wanted),
      do: error,
      else: lacking(error, wanted, privileges)
  end

  defp lacking(error, wanted, privileges),
    do: %{error | lacks: wanted, hint: lacks(%{lacks: wanted, privileges: privileges})}

  @doc """
  The error that `explain` makes of what the helper may do, in the process that gets the error. If a capability is
  missing, this may look at the machine, for a second at most.
  """
  @spec in_caller(Reference.t(), (Privileges.t() -> Error.t())) :: Error.t()
  def in_caller(helper, explain) do
    case explain.(Reference.privileges(helper)) do
      %{lacks: nil} = error -> error
      %{lacks: lacks} -> explain.(Look.privileges(helper, lacks))
    end
  end

  @doc "An error of `request/4` as `in_caller/2` makes it. Any other error passes."
  @spec request_in_caller(Error.t(), Reference.t()) :: Error.t()
  def request_in_caller(%Error{stage: :request, lacks: lacks} = error, helper) when lacks != nil,
    do: lacking(error, lacks, Look.privileges(helper, lacks))

  def request_in_caller(error, _helper), do: error

  @doc "The error of a `send/3` to a peer, with who has got the datagram all the same."
  @spec to_peer(Error.t(), non_neg_integer(), non_neg_integer()) :: Error.t()
  def to_peer(%Error{stage: :send} = error, port_id, groups) do
    case peer(error, port_id, groups) do
      nil -> error
      hint when groups == 0 -> %{error | hint: hint}
      hint -> %{error | hint: "members of group #{lowest(groups)} have got it; #{hint}"}
    end
  end

  def to_peer(error, _port_id, _groups), do: error

  # The kernel itself has refused the datagram.
  defp peer(%{reason: :econnrefused}, 0, groups) when groups != 0,
    do: "the kernel itself has not, since it does not listen to this protocol here"

  defp peer(%{reason: :econnrefused}, port_id, _groups) when port_id != 0 do
    "no socket in this namespace has port id #{port_id}, or it receives from the kernel alone: one of this library " <>
      "needs user_peers: true"
  end

  # Without a hint the helper has not got the datagram.
  defp peer(%{reason: :eagain, hint: hint}, port_id, _groups) when hint != nil,
    do: "port id #{port_id} has not got it: #{hint}"

  defp peer(_error, _port_id, _groups), do: nil

  # The kernel sends to this group alone: netlink_sendmsg(), net/netlink/af_netlink.c.
  defp lowest(groups), do: Enum.find(1..32, &(Bitwise.band(groups, Bitwise.bsl(1, &1 - 1)) != 0))

  # At these stages the detail says what the helper found: a word, or a word and a number. At others it is the
  # subject.
  defp found(stage, detail) when stage in [:open, :setns, :watch] do
    case String.split(detail, " ", parts: 2) do
      [word, number] when number != "kind" -> {word, number}
      _words -> detail
    end
  end

  defp found(stage, detail) when stage in [:setsockopt, :bind], do: detail
  defp found(_stage, _detail), do: ""

  defp subject(stage, _detail, netns) when stage in [:open, :setns, :watch], do: path(netns)
  defp subject(_stage, detail, _netns) when detail in ["", @no_group], do: nil
  defp subject(_stage, detail, _netns), do: detail

  defp path({:path, path}), do: Redaction.plain(path)
  defp path({:name, name}), do: Redaction.plain("/run/netns/" <> name)
  defp path({:pid, pid}), do: "/proc/#{pid}/ns/net"
  defp path(:host), do: nil

  ## The capability that a refusal is about: capabilities(7), netlink(7), namespaces(7)

  defp wanted(stage, :eacces, {word, _id}, _protocol)
       when stage in [:open, :watch] and word in ["process", "hidden"],
       do: :sys_ptrace

  defp wanted(stage, :eacces, "", _protocol) when stage in [:open, :watch], do: :dac_read_search

  defp wanted(:setns, :eperm, found, _protocol) when found in ["own", "below", ""],
    do: :sys_admin

  defp wanted(:setsockopt, :eperm, "listen_all_nsid", _protocol), do: :net_broadcast

  # Of these two the kernel asks for a capability only because of groups, netlink_allowed() in net/netlink/af_netlink.c.
  defp wanted(:setsockopt, :eperm, option, _protocol) when option not in @memberships, do: nil
  defp wanted(:bind, :eperm, @no_group, _protocol), do: nil

  defp wanted(stage, :eperm, _found, protocol)
       when stage in [:setsockopt, :bind] and protocol in [:audit, 9],
       do: :audit_read

  defp wanted(stage, :eperm, _found, _protocol) when stage in [:setsockopt, :bind, :send],
    do: :net_admin

  defp wanted(_stage, _reason, _found, _protocol), do: nil

  ## The sentence

  defp hint(stage, :eacces, {"process", id}, %{lacks: nil} = c) when stage in [:open, :watch] do
    "the namespaces of process #{id} are closed to the helper, though it has CAP_SYS_PTRACE: " <>
      elsewhere(c.privileges)
  end

  defp hint(stage, :eacces, {"process", id}, c) when stage in [:open, :watch] do
    "it leads to process #{id}, and the namespaces of processes of other users, or with more " <>
      "capabilities than the helper, are closed to it: " <>
      lacks(c) <>
      "; the same holds for processes that are not dumpable: PR_SET_DUMPABLE of prctl(2), or a program with file " <>
      "capabilities"
  end

  defp hint(stage, :eacces, {"hidden", id}, %{lacks: nil} = c) when stage in [:open, :watch] do
    "process #{id} is there, and hidden from the helper (hidepid= of the mount of /proc), though it " <>
      "has CAP_SYS_PTRACE: " <> elsewhere(c.privileges)
  end

  defp hint(stage, :eacces, {"hidden", id}, c) when stage in [:open, :watch] do
    "process #{id} is there, and hidden from the helper (hidepid= of the mount of /proc; under " <>
      "hidepid=1 and 2, not under 4, its gid= names a group that sees it): " <> lacks(c)
  end

  defp hint(:open, reason, {"exited", thread}, _c) when reason in [:enoent, :esrch] do
    [id | _task] = String.split(thread, "/")

    "the main thread of process #{id} has exited, and with it /proc/#{id}/ns; other threads of the process run on: " <>
      "name the namespace of a thread, {:path, \"/proc/#{thread}/ns/net\"}"
  end

  defp hint(:open, :enoent, "dangling", _c),
    do: "it is a symbolic link, and the file that it leads to is not there"

  defp hint(:open, :enoent, {"process", id}, _c) do
    "there is no process #{id} in that /proc, or it has no such file"
  end

  defp hint(_stage, :esrch, {"thread", id}, _c) do
    "that is the number of a thread of process #{id}; name the process: {:pid, #{id}}"
  end

  defp hint(:open, :esrch, {"successor", id}, _c) do
    "the process #{id} that was named has ended; another process has its number now"
  end

  defp hint(:open, :eopnotsupp, "foreign", _c) do
    "/proc is that of another pid namespace, where this number is another process or none; mount that of " <>
      "the helper's own (`unshare --mount-proc`, `mount -t proc proc /proc`, --pid=host for a container " <>
      "that has the host's /proc), or name the namespace by a path"
  end

  defp hint(:watch, :eopnotsupp, "foreign", _c) do
    "it leads to a process of another pid namespace, whose end is not told here; run the helper in that " <>
      "pid namespace (--pid=host for a container that has the host's /proc)"
  end

  defp hint(:watch, :eopnotsupp, "unknown", _c) do
    "it leads into a part of /proc, and the helper cannot tell of which process, so that it would not learn of the " <>
      "end; name the process: {:pid, pid}, or /proc/<pid>/ns/net of a /proc that is mounted as a whole"
  end

  defp hint(:watch, :eopnotsupp, "thread", _c) do
    "it leads to a thread, and this kernel tells only of the end of processes (of threads since Linux " <>
      "6.9); name the process: {:pid, pid}"
  end

  defp hint(_stage, :enosys, "pidfd_open", %{privileges: %{seccomp: 0}}) do
    if older?({5, 3}),
      do:
        "there is no pidfd_open(2) in this kernel, it came with Linux 5.3; upgrade to 5.10 or newer, which this " <>
          "library has run on",
      else:
        "pidfd_open(2) is not let through to the kernel, by an emulator (qemu-user) or the like"
  end

  defp hint(_stage, _reason, "pidfd_open", c),
    do: "pidfd_open(2) was refused: " <> Privileges.refuser(c.privileges)

  defp hint(_stage, _reason, call, c) when call in ["readlinkat", "fstatfs"],
    do: "#{call}(2) was refused: " <> Privileges.refuser(c.privileges)

  defp hint(:setns, :einval, "empty", _c) do
    "it is not a network namespace: nothing is mounted on it. `ip netns add` makes the file a moment " <>
      "before it mounts the namespace there: try again. A file that stays so was left behind, or its " <>
      "namespace was mounted in another mount namespace, and {:pid, pid} of a process leads to it"
  end

  defp hint(:setns, :einval, "another kind", _c),
    do: "it is not a network namespace, but a namespace of another kind"

  defp hint(:setns, :eperm, "home", c) do
    "the helper could not come back: its own network namespace belongs to a user namespace above the " <>
      "one it runs in (as inside `unshare -Ur`); start its server with user_namespaces: true, or give " <>
      "it a network namespace of its own (`unshare -Urn`)" <> unless_capable(c)
  end

  defp hint(:setns, :eperm, "elsewhere", _c) do
    "it belongs to another user namespace, which is neither the helper's own nor below it: run the helper " <>
      "in that user namespace, or in one above it"
  end

  # The helper has tried it in a child already. With CAP_SYS_ADMIN a child may join whoever made it.
  defp hint(:setns, :eperm, "below", %{privileges: %{children: true}, lacks: lacks} = c)
       when lacks != nil do
    "it belongs to a user namespace of another user, which a child of the helper may not join" <>
      unless_capable(c)
  end

  defp hint(:setns, :eperm, "below", %{privileges: %{children: children}} = c)
       when children != true do
    "it belongs to another user namespace, below the helper's own, as that of a rootless container; start " <>
      "the helper's server with user_namespaces: true, as the user who made the container" <>
      unless_capable(c)
  end

  defp hint(:setns, reason, _found, %{lacks: nil} = c)
       when reason in [:eperm, :eacces, :enosys] do
    "setns(2) was refused, though the helper has what it takes: " <>
      Privileges.refuser(c.privileges)
  end

  defp hint(:socket, :eafnosupport, _found, _c) do
    "AF_NETLINK is not let through to the kernel: RestrictAddressFamilies= of the systemd unit has to " <>
      "name it, or a seccomp profile of the container to allow it"
  end

  # The kernel itself returns none of these errors for socket(2) of AF_NETLINK.
  defp hint(:socket, reason, _found, c) when reason in [:einval, :eperm, :eacces, :enosys] do
    "socket(2) of this protocol was refused: " <>
      Privileges.refuser(c.privileges) <>
      "; podman's profile refuses NETLINK_AUDIT without --cap-add AUDIT_WRITE"
  end

  # `netlink_attachskb`, net/netlink/af_netlink.c. To the kernel itself sendmsg(2) is never EAGAIN.
  defp hint(:send, :eagain, _found, _c) do
    "the receive queue of the peer is full; send it again when the peer has read, or raise the peer's rcvbuf"
  end

  defp hint(stage, :eperm, _found, %{lacks: nil, wanted: wanted} = c)
       when stage in [:bind, :setsockopt, :send] and wanted != nil do
    if c.privileges.user_namespace == :initial do
      "refused, though the helper has #{cap(wanted)}: " <> Privileges.refuser(c.privileges)
    else
      "refused, though the helper has #{cap(wanted)}: it counts in the helper's user namespace and " <>
        "below, and is asked for in another one: that which owns the network namespace, or for " <>
        "NETLINK_AUDIT the first"
    end
  end

  defp hint(_stage, _reason, _found, %{lacks: lacks} = c) when lacks != nil, do: lacks(c)

  # What remains of these errors the kernel itself does not return for want of a capability.
  defp hint(stage, reason, _found, c)
       when is_map_key(@calls, stage) and reason in [:eperm, :eacces, :enosys],
       do: "#{@calls[stage]} was refused: " <> Privileges.refuser(c.privileges)

  defp hint(_stage, _reason, _found, _c), do: nil

  defp lacks(c),
    do: "the helper lacks #{cap(c.lacks)}; #{Privileges.remedy(c.privileges, c.lacks)}"

  # The second remedy, if the first does not apply.
  defp unless_capable(%{lacks: nil}), do: ""
  defp unless_capable(c), do: ". Otherwise " <> lacks(c)

  defp elsewhere(%{user_namespace: :initial} = privileges) do
    Privileges.refuser(privileges) <> ", or the capability could not be raised"
  end

  defp elsewhere(_other) do
    "the process is in another user namespace, and capabilities count in the helper's own and below; run " <>
      "the helper in the process's user namespace, or in one above it"
  end

  defp cap(name), do: NetlinkPort.Capability.shown(name)

  defp older?(version) do
    {major, minor, _patch} = :os.version()
    {major, minor} < version
  end
end
