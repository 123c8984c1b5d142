defmodule NetlinkPort.Error do
  @moduledoc """
  The error of a failed operation, as a value and as an exception.

  Every function of `NetlinkPort` that can fail at run time returns `{:error, %NetlinkPort.Error{}}`. Programs match on
  `:stage` and `:reason`. People read `Exception.message/1`:

      iex> error = NetlinkPort.Error.new(:setns, :eperm, subject: "/run/netns/blue", lacks: :sys_admin)
      iex> {error.stage, error.errno, error.reason}
      {:setns, 1, :eperm}
      iex> Exception.message(error)
      "setns into /run/netns/blue: EPERM: the helper lacks CAP_SYS_ADMIN; start it as root, or install it with capabilities by `mix netlink_port.install`"

  ## Fields

    * `:stage` - the step that failed, see `t:stage/0`.
    * `:errno` - the errno of Linux, errno(3), a positive integer.
    * `:reason` - the POSIX atom of the errno, as in `t::file.posix/0`: `:eperm` for `EPERM`. Every errno of
      `include/uapi/asm-generic/errno-base.h` and `errno.h` has one. Some subsystems also answer with numbers outside of
      these files. Their `:reason` is `:unknown`, and `Exception.message/1` names them:
        * 512 to 531, of `include/linux/errno.h`. For example, drivers answer 524, `ENOTSUPP`, when they do not support
          a request.
        * 4097 (`IPSET_ERR_PROTOCOL`) and higher, of ipset, `include/uapi/linux/netfilter/ipset/ip_set.h`. The numbers
          from 4352 on have another meaning for each type of set.
    * `:subject` - what the step failed on, such as a path or the name of an option.
    * `:lacks` - the capability whose lack explains the failure, such as `:sys_admin`.
    * `:dropped` - with `ENOBUFS`, the number of datagrams that the kernel dropped.
    * `:length` - with `EMSGSIZE` on receive, the real length of the datagram, in bytes.
    * `:ext_ack` - of the stage `:request`, what the kernel says beyond the errno, `t:NetlinkPort.ExtAck.t/0`.
    * `:messages` - of a dump that is incomplete, the messages that were read of it.
    * `:hint` - what is wrong and what to do, when the errno alone does not say it. That is the case when the cause
      depends on the place in which the helper runs, or when this library, not the kernel, refused the request.
      `Exception.message/1` contains it.

  The fields from `:subject` on are `nil` when they do not apply. `inspect/1` leaves out fields that are `nil`.
  """

  alias NetlinkPort.{Errno, Redaction}

  @typedoc """
  The step that failed.

    * `:open`, `:setns`, `:socket`, `:bind`, `:connect`, `:setsockopt`, `:getsockopt`, `:send` and `:recv` - the system
      calls of that name, made by the helper.
    * `:thread` - the helper itself. There is no server (`ESRCH`), the helper is dead (`EPIPE`), the helper does not
      answer (`ETIMEDOUT`), or it cannot be started (`ENOENT`, `EACCES`, `EPROTO`, `EMFILE`). `EDEADLK`: code that runs
      in the server has called the server.
    * `:request` - the kernel's answer to a request, or the lack of an answer (`ETIMEDOUT`).
    * `:info` - a question about a socket, such as a closed one (`EBADF`).
    * `:watch` - the inotify(7) or pidfd_open(2) of `close_on: :namespace_gone`.
    * `:pin` - a pin that cannot be sent.
    * `:protocol` - a command that the helper did not understand.
    * `:capture` - the file of a capture.
  """
  @type stage ::
          :open
          | :setns
          | :socket
          | :bind
          | :connect
          | :setsockopt
          | :getsockopt
          | :send
          | :recv
          | :info
          | :watch
          | :pin
          | :thread
          | :protocol
          | :request
          | :capture

  @type t :: %__MODULE__{
          stage: stage(),
          errno: pos_integer(),
          reason: atom(),
          subject: String.t() | nil,
          lacks: atom() | nil,
          dropped: non_neg_integer() | nil,
          length: non_neg_integer() | nil,
          ext_ack: NetlinkPort.ExtAck.t() | nil,
          messages: [NetlinkPort.Message.t()] | nil,
          hint: String.t() | nil
        }

  @enforce_keys [:stage, :errno, :reason]
  @optional [:subject, :lacks, :dropped, :length, :ext_ack, :messages, :hint]
  @derive {Inspect, optional: @optional}
  defexception @enforce_keys ++ @optional

  @doc """
  Returns an error of a stage, given an errno or its POSIX atom.

      iex> NetlinkPort.Error.new(:send, 90).reason
      :emsgsize
      iex> NetlinkPort.Error.new(:thread, :esrch).errno
      3
  """
  @spec new(stage(), atom() | pos_integer(), keyword()) :: t()
  def new(stage, errno, fields \\ [])

  def new(stage, errno, fields) when is_integer(errno) do
    struct!(%__MODULE__{stage: stage, errno: errno, reason: Errno.atom(errno)}, fields)
  end

  def new(stage, reason, fields) when is_atom(reason) do
    struct!(%__MODULE__{stage: stage, errno: Errno.number(reason), reason: reason}, fields)
  end

  @impl true
  def message(%__MODULE__{} = error) do
    # Paths, and what programs and the kernel say, may hold any bytes.
    Redaction.legible("#{action(error)}: #{name(error)}: #{explanation(error)}")
  end

  defp action(%{stage: :open, subject: nil}), do: "open"
  defp action(%{stage: :open, subject: subject}), do: "open of #{subject}"
  defp action(%{stage: :setns, subject: nil}), do: "setns"
  defp action(%{stage: :setns, subject: subject}), do: "setns into #{subject}"
  defp action(%{stage: :thread, subject: nil}), do: "helper"
  # Not a helper's executable.
  defp action(%{stage: :thread, subject: "#NetlinkPort.Pin" <> _ = pin}), do: pin

  defp action(%{stage: :thread, subject: other}) when other in ["connection", "monitor"],
    do: other

  defp action(%{stage: :thread, subject: executable}), do: "helper #{executable}"
  defp action(%{stage: stage, subject: nil}), do: Atom.to_string(stage)
  defp action(%{stage: stage, subject: subject}), do: "#{stage} of #{subject}"

  defp name(%{reason: :unknown, errno: errno}), do: "errno #{errno}"
  defp name(%{reason: reason}), do: reason |> Atom.to_string() |> String.upcase()

  # A hint of `NetlinkPort.Server.Refusal`, about the place in which the helper runs, or of the helper's file.
  defp explanation(%{hint: hint}) when hint != nil, do: hint

  defp explanation(%{lacks: lacks}) when lacks != nil do
    "the helper lacks CAP_#{lacks |> Atom.to_string() |> String.upcase()}; #{remedy(lacks)}"
  end

  defp explanation(%{ext_ack: %{} = ext_ack, errno: errno}) do
    Enum.join([ext_ack.message || Errno.text(errno) | objections(ext_ack)], "; ")
  end

  # A hint comes from this library. Without a hint the kernel refused the request, and the subsystem defines what the
  # errno means.
  defp explanation(%{stage: :request, reason: :ebusy, subject: subject}) when subject != nil do
    "the kernel runs one dump a socket; use a socket for each"
  end

  defp explanation(%{stage: :request, reason: :ebadf}) do
    "the request names a descriptor that is not open in the helper, whose descriptors they are"
  end

  defp explanation(%{stage: :request, errno: errno}) do
    case Errno.beyond(errno) do
      {name, text} -> "#{name}: #{text}"
      nil -> Errno.text(errno)
    end
  end

  defp explanation(%{stage: :open, reason: :enoent}) do
    "there is no such file; `ip netns list` shows the namespaces that have a name"
  end

  defp explanation(%{stage: :open, reason: :esrch}), do: "there is no such process"

  defp explanation(%{stage: :open, reason: :eacces}) do
    "the helper may not open it; for a process of another user, or with more capabilities, it needs " <>
      "CAP_SYS_PTRACE"
  end

  defp explanation(%{stage: :setns, reason: :einval, subject: "/run/netns/" <> _name}) do
    "it is not a network namespace, or not yet: `ip netns add` makes the file before it mounts the " <>
      "namespace on it; try again"
  end

  defp explanation(%{stage: :setns, reason: :einval}), do: "it is not a network namespace"

  defp explanation(%{stage: :setns, reason: :eperm}) do
    "the helper needs CAP_SYS_ADMIN in its own user namespace and in the one that owns the target"
  end

  defp explanation(%{stage: stage, reason: :emfile}) when stage in [:open, :socket] do
    "the helper has no descriptor left; close sockets, end pins or raise its RLIMIT_NOFILE"
  end

  defp explanation(%{stage: :socket, reason: :enospc}) do
    "the helper's user has no epoll watch left; raise fs.epoll.max_user_watches"
  end

  defp explanation(%{stage: :socket, reason: :eprotonosupport}) do
    "this kernel does not have the protocol"
  end

  defp explanation(%{stage: :watch, reason: :enospc}) do
    "the helper's user has no watch left; raise fs.inotify.max_user_watches " <>
      "or fs.epoll.max_user_watches"
  end

  defp explanation(%{stage: :watch, reason: :emfile}) do
    "the helper has no descriptor left, or its user no instance of inotify; close sockets, or " <>
      "raise its RLIMIT_NOFILE or fs.inotify.max_user_instances"
  end

  defp explanation(%{stage: :watch, reason: :esrch}), do: "there is no such process"

  defp explanation(%{stage: :watch, reason: :eacces}) do
    "the helper may not read the folder"
  end

  defp explanation(%{stage: :watch, reason: :eopnotsupp}) do
    "of files in /proc nothing is told but the end of a process; " <>
      "name it by {:pid, pid} or a path to /proc/<pid>/ns/net"
  end

  defp explanation(%{stage: :pin, reason: :exdev}) do
    "its descriptor is right in messages of its own helper alone; pin the namespace by the socket's server"
  end

  defp explanation(%{stage: :pin, reason: :epipe}) do
    "the helper that held it has ended; pin the namespace again"
  end

  defp explanation(%{stage: :pin, reason: :ebadf}), do: "it has ended, by unpin or with its owner"

  defp explanation(%{stage: :capture, reason: :ebusy}), do: "the server has a capture already"
  defp explanation(%{stage: :capture, reason: :esrch}), do: "it has ended"

  defp explanation(%{stage: :capture, reason: :efbig}) do
    "the VM may write no longer file; raise its RLIMIT_FSIZE (LimitFSIZE= of a systemd unit)"
  end

  defp explanation(%{stage: :capture, reason: :einval}), do: "it is not a regular file"

  defp explanation(%{stage: :thread, reason: :enoent}) do
    "there is no such file; the build makes priv/netlink_port, `mix netlink_port.install` installs it " <>
      "elsewhere"
  end

  defp explanation(%{stage: :thread, reason: :eacces}) do
    "this user may not run it; an installed one is for its group: `ls -l` shows which"
  end

  defp explanation(%{stage: :thread, reason: :emfile}) do
    "the VM has no port or descriptor left; raise +Q of erl, or its RLIMIT_NOFILE"
  end

  defp explanation(%{stage: :thread, reason: :esrch}) do
    "no such server is running, or its node cannot be reached; start one under a supervisor: " <>
      "{NetlinkPort, name: NetlinkPort}"
  end

  defp explanation(%{stage: :thread, reason: :epipe, subject: "#NetlinkPort.Pin" <> _}) do
    "the helper that held it has ended; pin the namespace again"
  end

  defp explanation(%{stage: :thread, reason: :epipe}) do
    "it has ended, and with it all its sockets; open them again once it is restarted"
  end

  defp explanation(%{stage: :thread, reason: :edeadlk}) do
    "a server cannot wait for itself; what runs in it, as handlers of telemetry do, sends a message instead"
  end

  defp explanation(%{stage: :thread, reason: :etimedout}), do: "it did not answer in time"
  defp explanation(%{stage: :recv, reason: :etimedout}), do: "nothing arrived in time"

  defp explanation(%{stage: :setsockopt, reason: :einval, subject: subject})
       when subject in ["add_membership", "drop_membership"] do
    "the protocol has no group of that number in this kernel; RTNLGRP_LINK (1) is the number of a group, and " <>
      "RTMGRP_LINK a bit of a mask"
  end

  defp explanation(%{stage: :setsockopt, reason: :enomem, subject: "filter" <> _}) do
    "longer than net.core.optmem_max has room for, at 8 bytes an instruction (20480 by default before " <>
      "Linux 6.8); raise it"
  end

  defp explanation(%{stage: :recv, reason: :einval}) do
    "the socket is active: its datagrams come as messages; set active: false to use recv"
  end

  defp explanation(%{stage: :recv, reason: :emsgsize, length: length}) when length != nil do
    "a datagram of #{length} bytes was cut and dropped; the next of its size fits"
  end

  defp explanation(%{reason: :enobufs, dropped: dropped}) when dropped != nil do
    "the kernel dropped #{dropped} datagrams; read faster, or raise rcvbuf"
  end

  # The datagram was not handed over. An EAGAIN of sendmsg(2) has a hint.
  defp explanation(%{stage: :send, reason: :eagain}) do
    "the helper is not keeping up; try again later"
  end

  defp explanation(%{stage: :send, reason: :emsgsize}) do
    "longer than the socket's sndbuf or the helper's frame limit"
  end

  defp explanation(%{stage: :send, reason: :eisconn}) do
    "the socket is connected to the kernel, and sends to no peer; open it with user_peers: true"
  end

  defp explanation(%{stage: :send, reason: :econnrefused}) do
    "no part of the kernel listens to this protocol in this namespace: to the connector and SELinux it listens in " <>
      "the first namespace alone, and to usersock nowhere"
  end

  defp explanation(%{stage: stage, reason: :ebadf}) when stage not in [:open, :setns, :capture] do
    "the socket is closed"
  end

  defp explanation(%{stage: :bind, reason: :eaddrinuse}), do: "another socket has this port id"
  defp explanation(%{errno: errno}), do: Errno.text(errno)

  # The position that the kernel objects to, from `NetlinkPort.ExtAck`.
  defp objections(ext_ack) do
    attribute = ext_ack.attribute && "attribute #{elem(ext_ack.attribute, 0)} at "

    [
      ext_ack.offset && "it objects to #{attribute}byte #{ext_ack.offset}",
      ext_ack.missing_type && "attribute #{ext_ack.missing_type} is missing",
      ext_ack.missing_nest && "in the one at byte #{ext_ack.missing_nest}"
    ]
    |> Enum.filter(& &1)
  end

  defp remedy(capability) when capability in [:sys_admin, :net_admin] do
    "start it as root, or install it with capabilities by `mix netlink_port.install`"
  end

  # Every helper that has CAP_SYS_PTRACE keeps it. The installer grants it only on request.
  defp remedy(:sys_ptrace), do: remedy(:net_admin) <> " with --capability sys_ptrace"

  defp remedy(capability) do
    "start its server with keep: [#{inspect(capability)}], and the helper with that capability"
  end
end
