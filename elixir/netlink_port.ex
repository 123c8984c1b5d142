defmodule NetlinkPort do
  @moduledoc """
  AF_NETLINK sockets in other network namespaces, out of the VM.

  A `NetlinkPort` is a supervised process, the server. It owns a helper, a small Rust program. The helper enters
  namespaces, holds the sockets and forwards datagrams. The VM needs no privileges and runs no native code, and
  none of its threads is ever in the wrong namespace. Add a server to a supervision tree:

      children = [{NetlinkPort, name: MyApp.Netlink}]

  Then open as many sockets as you need, in any namespace:

      {:ok, socket} = NetlinkPort.open(MyApp.Netlink, :route, netns: {:name, "blue"}, groups: [1])

      receive do
        {:netlink, ^socket, datagram} -> datagram
      end

  A datagram is a binary as the kernel writes it, with one or more messages in it (netlink(7)). Opening, sending and
  receiving move datagrams and do not look inside. `request/4`, `batch/3`, `dump/4` and `stream/4` read the messages.

  ## Messages to the owner

  The process that opens a socket is its owner, unless `owner:` names another process. While the socket is active
  (see `setopts/2`), the owner is sent:

    * `{:netlink, socket, datagram}` for each datagram. With `pktinfo`, `listen_all_nsid` or `user_peers` on, it is
      `{:netlink, socket, datagram, metadata}`, see `t:metadata/0`.
    * `{:netlink_passive, socket}` when a count of `active` has run out.
    * `{:netlink_overrun, socket, dropped}` when the kernel has dropped that many datagrams. It comes after
      everything that is older than the gap.
    * `{:netlink_error, socket, error}` when a `send/3` has failed after it returned, or when the kernel has reported
      an error on the socket.
    * `{:netlink_closed, socket, reason}` when the socket has ended without `close/1`: the helper or its server has
      ended, the connection to the server's node is lost, the socket's namespace is gone (see below), or an abandoned
      dump did not end (see `dump/4`). It is sent once, to the owner of a passive socket too. The option
      `closed_message: false` turns it off. See `t:closed_reason/0`.

  Only datagrams use up `:once` or a count: errors and overruns do not. On a passive socket `recv/2` returns errors
  and overruns, in the same order.

  ## Memory

  The VM keeps at most `window:` bytes of a socket's datagrams while the socket is passive, `:once` or counted. When
  the window is used up, the helper stops reading this socket. It goes on reading the others.

  With `active: true` each datagram is sent to the owner at once, as with `:gen_udp`. The mailbox of an owner that
  falls behind then grows without bound. `max_queue:` bounds it: when the mailbox holds that many messages, the
  socket waits.

  ## When a namespace goes

  An open socket keeps its network namespace alive, even after `ip netns del`: the namespace goes on there, and no
  event says that it was deleted. With `close_on: :namespace_gone` the helper watches the name that the namespace
  was opened by, and closes the socket when that name is gone:

    * `{:name, name}` and `{:path, path}`: the file, a symbolic link that leads to it, or the folder of either was
      deleted, moved or replaced, and the path no longer leads to the same namespace (by device and inode). A path
      that cannot be looked up any more counts as gone. The helper does not notice a umount(8) that leaves the file,
      a mount over the file, or changes to folders further up.
    * `{:pid, pid}`, and a path that leads to or through `/proc/<pid>`, however it is spelt, and also by a bind mount
      or a descriptor of another process: the process has ended, with all its threads. This holds even if other processes keep the namespace alive. A setns(2) by which the
      process moves to another namespace does not count. For a process in another pid namespace than the helper's
      the helper cannot learn of the end: the open fails with `EOPNOTSUPP` of the stage `:watch`. So it does for a bind
      mount of a part of a `/proc` that is mounted nowhere as a whole, since the helper cannot tell whose part it is.
    * `:host`: never. The helper's own namespace lasts as long as the helper.

  The datagrams that the kernel had queued on the socket by then are delivered first, as far as the socket's window
  has room for them. Later datagrams are not read, the rest of a dump included. Then the socket is closed, and its
  owner is sent `{:netlink_closed, socket, :namespace_gone}`, once.

  Datagrams that the VM still keeps for the owner of a passive, `:once` or counted socket, or because of
  `max_queue:`, stay there. The owner takes them with `recv/2`, or by setting `active:` with `setopts/2`. The
  `:netlink_closed` message comes behind the last of them. Every other use of the socket is `EBADF`.

  ## Namespaces in requests

  Some requests name a namespace by a descriptor, as IFLA_NET_NS_FD does. The kernel looks that descriptor up in the
  helper. `pin/3` has the helper open the namespace, and returns the value for such an attribute: see
  `NetlinkPort.Pin`.

  ## Captures

  `capture/3` writes all datagrams of a server into a file for Wireshark.

  ## More than one helper

  A helper has one thread. Several helpers share the work where there are processors for them, and when one helper
  ends, the sockets of the others go on. A `PartitionSupervisor` starts them, unnamed:

      children = [
        {PartitionSupervisor, child_spec: {NetlinkPort, name: nil}, name: MyApp.Netlinks, partitions: 2}
      ]

  Every function that takes a server also takes such a partition, by a key. The same key always leads to the
  same helper. With the namespace as the key, all sockets of a namespace are in one helper:

      server = {:via, PartitionSupervisor, {MyApp.Netlinks, "blue"}}
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, "blue"}, groups: [1])

  `docs/benchmarks.md`, "Over several helpers", has the gain. Sockets of a helper on another node are opened by the
  server's name and node, `{MyApp.Netlink, :"agent@host"}`: see `docs/distribution.md`.

  ## When the helper ends

  The server ends with its helper, and its supervisor starts both again. Every owner is sent `:netlink_closed`, every
  pending call returns an error, and the sockets are gone: open them again. A handle is never used twice, so a
  command or an answer that is left over never reaches a new socket.

  `NetlinkPort.Monitor` does all this for processes that follow multicast groups.
  """

  alias NetlinkPort.{Arguments, Deadline, Error, ExtAck, Message, Options, Pin, Request, Server}
  alias NetlinkPort.{Socket, Telemetry}
  alias NetlinkPort.Request.Exchange
  alias NetlinkPort.Server.{Client, LateAnswers, Opening, PinNumbers, Refusal, Stats}

  @typedoc "A netlink protocol (family): a number of `include/uapi/linux/netlink.h`, or its name."
  @type protocol ::
          integer()
          | :route
          | :unused
          | :usersock
          | :firewall
          | :sock_diag
          | :nflog
          | :xfrm
          | :selinux
          | :iscsi
          | :audit
          | :fib_lookup
          | :connector
          | :netfilter
          | :ip6_fw
          | :dnrtmsg
          | :kobject_uevent
          | :generic
          | :scsitransport
          | :ecryptfs
          | :rdma
          | :crypto
          | :smc

  @typedoc """
  A network namespace:

    * `:host` - the helper's own.
    * `{:path, path}` - the namespace that a file stands for.
    * `{:name, name}` - the namespace that `ip netns` calls by this name, `/run/netns/name`.
    * `{:pid, pid}` - the namespace of a process, by its number in the helper's pid namespace.

  What counts is where a path leads, and not how it is spelt. A path that leads to `/proc/<pid>/ns/net` needs
  `CAP_SYS_PTRACE` where `{:pid, pid}` needs it: for processes of other users, and for those with more capabilities
  than the helper.
  """
  @type netns :: :host | {:path, Path.t()} | {:name, String.t()} | {:pid, pos_integer()}

  @typedoc "As in `:inet.setopts/2`: all datagrams as messages (`true`), one, a count of them, or none (`false`)."
  @type active :: boolean() | :once | 1..32_767

  @typedoc """
  What came with a datagram. A value that was not asked for is `nil`.

    * `:group` - the multicast group that the datagram was sent to, 0 for none. With `pktinfo`.
    * `:nsid` - the id of the namespace that it comes from, if that is not the socket's own. With `listen_all_nsid`.
    * `:port_id` - the port id of its sender, if that is not the kernel. With `user_peers`.
  """
  @type metadata :: %{
          required(:group) => non_neg_integer() | nil,
          required(:nsid) => integer() | nil,
          optional(:port_id) => non_neg_integer()
        }

  @typedoc """
  Why sockets were closed:

    * `{:helper_exit, status}` - the helper ended with this exit status. If a signal killed it, the status is 128 plus
      the signal's number: 159 is SIGSYS, a system call that the helper's seccomp filter refuses. Instead of a number
      it is the reason with which the port to the helper ended, such as `:epipe`.
    * `:stuck` - the helper did not answer, and was killed.
    * `:namespace_gone` - the namespace of a socket with `close_on: :namespace_gone` is gone.
    * `:noconnection` - the connection to the server's node, or that node, was lost.
    * `:endless_dump` - a dump that was abandoned did not end, see `dump/4`.
    * `:closed` - another process has called `close/1`. Of this only `NetlinkPort.Monitor` and `NetlinkPort.Connection`
      are told, which own sockets for others.
    * any other term - the exit reason of the server.
  """
  @type closed_reason ::
          {:helper_exit, non_neg_integer() | term()}
          | :stuck
          | :namespace_gone
          | :noconnection
          | :endless_dump
          | :closed
          | term()

  @typedoc "The options of `setopts/2` and `getopts/2`."
  @type option ::
          {:active, active() | integer()}
          | {:pktinfo, boolean()}
          | {:broadcast_error, boolean()}
          | {:no_enobufs, boolean()}
          | {:listen_all_nsid, boolean()}
          | {:ext_ack, boolean()}
          | {:cap_ack, boolean()}
          | {:get_strict_chk, boolean()}
          | {:rcvbuf, non_neg_integer()}
          | {:sndbuf, non_neg_integer()}
          | {:filter, [{0..0xFFFF, 0..0xFF, 0..0xFF, 0..0xFFFFFFFF}] | nil}

  @typedoc "The options of `open/3`: those of `t:option/0`, and more."
  @type open_option ::
          option()
          | {:netns, netns()}
          | {:groups, [pos_integer()]}
          | {:bind, non_neg_integer() | false}
          | {:owner, pid()}
          | {:window, pos_integer()}
          | {:max_queue, pos_integer() | :infinity}
          | {:user_peers, boolean()}
          | {:close_on, :namespace_gone | nil}
          | {:closed_message, boolean()}
          | {:timeout, timeout()}

  @typedoc """
  What a capture has written: `:datagrams`, the `:bytes` of its file, and how many datagrams it has `:dropped`
  because the disk did not keep up.
  """
  @type capture_counts :: %{
          datagrams: non_neg_integer(),
          dropped: non_neg_integer(),
          bytes: non_neg_integer()
        }

  @type error :: {:error, Error.t()}

  ## The server

  @doc """
  The specification of a child for a supervisor: `{NetlinkPort, options}`, see `start_link/1`.

      iex> NetlinkPort.child_spec(name: MyApp.Netlink).id
      MyApp.Netlink
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts) do
    Arguments.keyword!(opts)

    %{
      id: Keyword.get(opts, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [opts]},
      type: :worker
    }
  end

  @doc """
  Starts a helper and its server, linked to the caller. Usually a supervisor calls this.

  Options:

    * `:name` - the name to register the server under, or `nil` for none, as under a `PartitionSupervisor`. Defaults
      to `NetlinkPort`.
    * `:executable` - the path of the helper. Defaults to the environment variable `NETLINK_PORT_EXECUTABLE`, then
      `config :netlink_port, executable: path`, then the helper that the build has installed. All are read when the
      server starts. docs/deployment.md says when to use which.
    * `:call_timeout` - how long a command may take, in ms. After that its caller gets `ETIMEDOUT`, and the server
      suspects that the helper is stuck and sends it one last ping. If the helper does not answer within a second,
      the server kills it and ends with `:stuck`. Defaults to 15_000.
    * `:hello_timeout` - how long the helper may take to start, in ms. Defaults to 5_000.
    * `:ping_interval` - after how many ms of silence the server pings the helper, or `:infinity` for never. Defaults
      to 30_000.
    * `:spin` - for how many microseconds the helper and the server look for more work, right after traffic and while
      that pays, before they sleep. 0 is never. It makes the next request two to four times as fast, and costs up to
      that much processor time after each. Defaults to 100.
    * `:keep` - capabilities that the helper does not give up at its start. It always keeps `CAP_SYS_ADMIN`,
      `CAP_NET_ADMIN` and, in reserve, `CAP_SYS_PTRACE`. Add `:net_broadcast` for `listen_all_nsid`; for
      `NETLINK_AUDIT` `:audit_read` (its group), `:audit_control` (its commands) and `:audit_write` (`AUDIT_USER` and
      other records of user space); `:dac_read_search` for namespace files in directories that are closed to
      the helper's user. Defaults to `[]`.
    * `:user_namespaces` - whether the helper may enter a namespace that belongs to another user namespace, such as
      that of a rootless container. A child of the helper joins the user namespace first (user_namespaces(7)), so the
      user of such containers needs no privileges. The helper may then call fork(2), which it otherwise may
      not. Defaults to `false`.

  For example:

      {:ok, server} = NetlinkPort.start_link(name: nil, call_timeout: 5_000)
      {:ok, %{os_pid: _}} = NetlinkPort.info(server)

  Errors say why the helper cannot be started: it is missing (`ENOENT`), it is not executable (`EACCES`), it is of
  another version or another program altogether (`EPROTO`), or it does not answer (`ETIMEDOUT`).
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts \\ []) do
    Arguments.keyword!(opts)
    Server.start_link(Keyword.put_new(opts, :name, __MODULE__))
  end

  ## Sockets

  @doc """
  Opens a socket of the server `NetlinkPort`. See `open/3`.

      {:ok, socket} = NetlinkPort.open(:route, netns: {:name, "blue"})

  Errors are those of `open/3`.
  """
  @spec open(protocol(), [open_option()]) :: {:ok, Socket.t()} | error()
  def open(protocol, opts \\ [])

  def open(protocol, opts) when is_list(opts), do: open(__MODULE__, protocol, opts)

  def open(server, protocol) do
    raise ArgumentError,
          "expected open(protocol, options) or open(server, protocol, options), " <>
            "got: open(#{inspect(server)}, #{inspect(protocol)})"
  end

  @doc """
  Opens a netlink socket: `socket(AF_NETLINK, SOCK_RAW, protocol)` in a namespace.

  The socket is bound to a port id that the kernel picks, connected to the kernel, and has extended acks on.

      {:ok, socket} = NetlinkPort.open(MyApp.Netlink, :route, netns: {:name, "blue"}, groups: [1])

  Options, besides those of `setopts/2`:

    * `:netns` - the namespace, see `t:netns/0`. A path that is not absolute begins at the working directory of the
      caller's node at the time of the call. Defaults to `:host`.
    * `:active` - see `setopts/2`. Defaults to `true`.
    * `:groups` - the numbers of multicast groups to join, those above 32 too. Defaults to `[]`.
    * `:bind` - the port id to bind to. 0 lets the kernel pick one. `false` makes no call of bind(2), but a socket
      that is connected to the kernel is given a port id all the same. Defaults to 0.
    * `:owner` - the process that is sent the messages, and with whose end the socket closes. Defaults to the caller.
    * `:window` - how many bytes of datagrams the VM keeps before the owner has taken them. A datagram counts its
      length and 300. Defaults to 1_048_576.
    * `:max_queue` - with `active: true`: how many messages, from any sender, the owner's mailbox may hold. Beyond
      that the server keeps this socket's datagrams back, up to its window. Beyond the window the kernel drops, and
      `:netlink_overrun` says how many. Defaults to `:infinity`.
    * `:user_peers` - `true` lets the socket talk to processes in user space too (`:usersock`). With `false` only
      datagrams of the kernel arrive: those of other senders are dropped and counted, see `info/1`. Defaults to
      `false`.
    * `:close_on` - `:namespace_gone` closes the socket when its namespace is gone under the name that it was opened
      by, and tells the owner: see "When a namespace goes" above. It costs an inotify(7) watch of the helper's user
      for each folder of such a file, or a descriptor for each socket of a process. With `nil` the socket keeps its
      namespace alive. Defaults to `nil`.
    * `:closed_message` - whether the owner is sent `:netlink_closed`. With `false` the owner of a passive socket gets
      no such message, and its next call fails: with `EPIPE`, or with `EBADF` if the namespace is gone or a dump did
      not end. `false` together with `active:` other than `false` raises `ArgumentError`. Defaults to `true`.
    * `:timeout` - how long to wait for server and helper, in ms. Defaults to 15_000.

  Errors have a stage and an errno, and `Exception.message/1` says what to do:

    * `:open`, `ENOENT` - there is no such name or path.
    * `:open`, `ESRCH` - the process has ended, its main thread has exited, or the number is that of a thread.
    * `:open`, `EACCES` - the process is closed to the helper, or hidden from it (hidepid).
    * `:open`, `EOPNOTSUPP` - `{:pid, pid}` where `/proc` is that of another pid namespace.
    * `:setns`, `EINVAL` - the file is no network namespace. A file of `ip netns add` is none for a moment, until the
      namespace is mounted on it.
    * `:setns`, `EPERM` - the helper may not enter the namespace.
    * `:socket`, `EPROTONOSUPPORT` - the kernel does not have the protocol.
    * `:socket`, `EOVERFLOW` - the VM has opened 2^31 sockets and pins since its start, and has no handle left. Restart
      the VM.
    * `:watch` - the namespace cannot be watched for `close_on:`.
    * `:thread`, `ESRCH`, `EPIPE` or `ETIMEDOUT` - there is no server, its helper has ended, or it does not answer.
    * those of each option, as with `setopts/2`.
  """
  @spec open(GenServer.server(), protocol(), [open_option()]) :: {:ok, Socket.t()} | error()
  def open(server, protocol, opts), do: Opening.once(server, protocol, opts)

  ## Pins

  @doc """
  Has the helper of a server hold a network namespace open, for requests that name a namespace by a descriptor. See
  `NetlinkPort.Pin`.

      {:ok, pin} = NetlinkPort.pin(MyApp.Netlink, {:name, "blue"})
      # RTM_NEWNSID (88) with NETNSA_FD (3) and NETNSA_NSID (1): the namespace is number 5 to the socket's
      attrs = NetlinkPort.Attr.encode([{3, pin}, {1, NetlinkPort.Attr.s32(5)}])
      {:ok, []} = NetlinkPort.request(socket, 88, [<<0::32>>, attrs])
      :ok = NetlinkPort.unpin(pin)

  The namespace is named and checked as in `open/3`; `:host` is the helper's own. The helper can also pin a namespace
  that it may not enter. A pin keeps its namespace alive, even without a socket or a process in it. Use a pin only
  in requests to its own server, with a `PartitionSupervisor` in those to the server of the same key.

  A pin ends with `unpin/1` and with its owner. It also ends with the helper: then the owner is sent
  `{:netlink_closed, pin, reason}`, as for a socket.

  Options:

    * `:owner` - the process with whose end the pin ends. Defaults to the caller.
    * `:timeout` - how long to wait for server and helper, in ms. Defaults to 15_000.

  Errors of the stages `:open`, `:setns` (`EINVAL`, for a file that is no network namespace) and `:thread` are those of
  `open/3`. A pin takes one descriptor of the helper: `EMFILE` of `:open` means that none is left. `EOVERFLOW` of
  `:open` means that the VM has no handle left, as `EOVERFLOW` of `:socket` does there.
  """
  @spec pin(GenServer.server(), netns(), owner: pid(), timeout: timeout()) ::
          {:ok, Pin.t()} | error()
  def pin(server, netns, opts) do
    with {:ok, options} <- Options.pin(netns, opts) do
      Telemetry.timed(fn -> pin_by(server, options) end, &pinned(server, options, &1))
    end
  end

  defp pin_by(server, options) do
    deadline = Deadline.new(options.timeout)

    case Client.call(server, {:open, options, deadline}, options.timeout) do
      {:ok, %Pin{} = pin} -> {:ok, pin}
      {:error, reason} -> Client.failed(reason, {:server, server})
    end
  end

  @doc """
  Pins a namespace, as `pin/3` does: `pin(server, netns)`, or `pin(netns, options)` with the server `NetlinkPort`.

      {:ok, pin} = NetlinkPort.pin({:name, "blue"}, owner: self())

  Errors are those of `pin/3`.
  """
  @spec pin(GenServer.server() | netns(), netns() | [owner: pid(), timeout: timeout()]) ::
          {:ok, Pin.t()} | error()
  def pin(netns, opts) when is_list(opts), do: pin(__MODULE__, netns, opts)
  def pin(server, netns), do: pin(server, netns, [])

  @doc """
  Pins a namespace, as `pin/3` does, with the server `NetlinkPort`.

      {:ok, pin} = NetlinkPort.pin({:name, "blue"})

  Errors are those of `pin/3`.
  """
  @spec pin(netns()) :: {:ok, Pin.t()} | error()
  def pin(netns), do: pin(__MODULE__, netns, [])

  defp pinned(server, %{netns: netns}, result) do
    metadata = %{server: server, netns: netns}

    case result do
      {:ok, pin} ->
        {[:pin, :stop], %{}, Map.put(metadata, :pin, pin)}

      {:error, error} ->
        {[:pin, :exception], %{}, Map.merge(metadata, %{kind: :error, reason: error})}
    end
  end

  @doc """
  Ends a pin. Returns `:ok`, also for a pin that has ended already. The owner is sent no message. When the function
  returns, the helper has closed the descriptor and no longer holds the namespace. What the kernel has done with the
  pin in earlier requests stays done.

      {:ok, pin} = NetlinkPort.pin(MyApp.Netlink, :host)
      :ok = NetlinkPort.unpin(pin)
      :ok = NetlinkPort.unpin(pin)
  """
  @spec unpin(Pin.t()) :: :ok
  def unpin(pin) do
    %Pin{handle: handle, helper: helper} = Arguments.pin!(pin)
    _answer = Client.ask(helper, {:unpin, handle}, helper.call_timeout)
    :ok
  end

  ## Sockets that are open

  @doc """
  Returns the socket of a handle, as `NetlinkPort.Native.open_in_netns/3` has returned it.

      {:ok, handle} = NetlinkPort.Native.open_in_netns(MyApp.Netlink, "/run/netns/blue", 0)
      %NetlinkPort.Socket{} = NetlinkPort.socket(MyApp.Netlink, handle)

  Errors: `EBADF` if no socket with this handle is open, and those of the stage `:thread`.
  """
  @spec socket(GenServer.server(), Socket.handle()) :: Socket.t() | error()
  def socket(server \\ __MODULE__, handle) do
    case Client.call(server, {:vm_info, Arguments.handle!(handle)}, 15_000) do
      {:ok, %{socket: socket}} -> socket
      {:error, reason} -> Client.failed(reason, {:server, server})
    end
  end

  @doc """
  Closes a socket. Returns `:ok`, also for a socket that is closed already. When the function returns, the helper has
  closed the descriptor and no longer holds the namespace.

  Any process may close a socket. The owner is sent no message, and its next use of the socket is `EBADF`. If the socket
  is that of a `NetlinkPort.Monitor` or a `NetlinkPort.Connection`, as `stats/1` shows them, the monitor or connection
  opens another: end the process instead, and its socket closes with it.

      :ok = NetlinkPort.close(socket)
      :ok = NetlinkPort.close(socket)
  """
  @spec close(Socket.t()) :: :ok
  def close(socket) do
    Client.close(Arguments.socket!(socket))
    Request.forget(socket)
  end

  @doc """
  Sends one datagram, as iodata, to the kernel. It may have pins in it, see `NetlinkPort.Pin`.

      # RTM_GETLINK of interface 1, rtnetlink(7)
      request = %NetlinkPort.Message{type: 18, flags: 1, seq: 1, payload: <<0::32, 1::32-native, 0::64>>}
      :ok = NetlinkPort.send(socket, NetlinkPort.Message.encode(request))

  The function returns before the helper has called sendmsg(2). If that call fails, the owner of an active socket is
  sent `:netlink_error`, and on a passive socket the next `recv/2` returns the error.

  Errors that are known at once are returned: `EBADF` for a closed socket, `EMSGSIZE` for a datagram of more than
  16 MiB, `EPIPE` for a helper that has ended, and `EAGAIN` when the helper is so far behind that the datagram could
  not be handed over within `:timeout`. With `:to`, see below, `EAGAIN` can also mean that the receive queue of the peer
  is full; the sentence says which of the two it is.

  Options:

    * `:wait` - `true` waits until sendmsg(2) is done, and returns its error. Defaults to `false`.
    * `:timeout` - ms. Defaults to 5_000.
    * `:to` - `{port_id, groups}` of a peer in user space, for a socket with `user_peers: true`. Without that option
      the result is `EISCONN`. `groups` is a mask with one bit: bit 0 is group 1. Of several bits the kernel takes the
      lowest. The call then waits as with `:wait`. The kernel sends the datagram to the members of the group, then to
      the port id. If the receive queue of that port id is full, the result is `EAGAIN`: send the datagram again when
      the peer has read. A member whose queue is full misses the datagram, and has an overrun. `{0, groups}` is for the
      group, and the kernel gets it, too. Where no part of the kernel listens, as with `:usersock`, the result is
      `ECONNREFUSED`, and the members have got the datagram all the same.
  """
  @spec send(Socket.t(), Pin.payload(),
          wait: boolean(),
          timeout: timeout(),
          to: {non_neg_integer(), non_neg_integer()}
        ) :: :ok | error()
  def send(socket, datagram, opts \\ [])
  def send(%Socket{} = socket, datagram, []), do: Client.send(socket, datagram, false, 5_000)

  def send(socket, datagram, opts) do
    socket = Arguments.socket!(socket)
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:wait, :timeout, :to])
    timeout = Arguments.timeout!(Keyword.get(opts, :timeout, 5_000))
    wait? = Arguments.boolean!(:wait, Keyword.get(opts, :wait, false))

    case Keyword.get(opts, :to) do
      nil -> Client.send(socket, datagram, wait?, timeout)
      peer -> send_to(socket, Arguments.peer!(peer), datagram, timeout)
    end
  end

  defp send_to(socket, peer, payload, timeout) do
    with {:ok, datagram} <- PinNumbers.resolve(payload, socket) do
      send_binary_to(socket, peer, IO.iodata_to_binary(datagram), timeout)
    end
  end

  defp send_binary_to(socket, {port_id, groups}, datagram, timeout) do
    if byte_size(datagram) + 64 > socket.helper.max_frame do
      {:error, Error.new(:send, :emsgsize)}
    else
      command = {:send_to, socket.handle, port_id, groups, datagram}

      with {:error, error} <- done(Client.request(socket, command, timeout)),
           do: {:error, Refusal.to_peer(error, port_id, groups)}
    end
  end

  @doc """
  Receives one datagram from a passive socket, within `timeout` ms.

  Returns `{:ok, datagram}`, or `{:ok, datagram, metadata}` if the socket was asked for metadata.

      {:error, %NetlinkPort.Error{reason: :etimedout}} = NetlinkPort.recv(socket, 100)

  Any process may call it. Several callers that wait are served in the order in which they called, each with the next
  datagram. So if two processes send requests and receive on one socket at the same time, each may get the other's
  answer. Let one process make the requests on a socket, or use a `NetlinkPort.Connection` for all.

  Errors: `ETIMEDOUT` when nothing came in time; `EINVAL` on an active socket; `EBADF` when the socket is closed;
  `ENOBUFS` with `:dropped` when the kernel has dropped datagrams since the last one; those of the stage `:thread`; and
  those that an active socket reports as `:netlink_error`.
  """
  @spec recv(Socket.t(), timeout()) :: {:ok, binary()} | {:ok, binary(), metadata()} | error()
  def recv(socket, timeout \\ :infinity) do
    Client.recv(Arguments.socket!(socket), Arguments.timeout!(timeout))
  end

  ## Requests

  @doc """
  Sends one request and returns its whole answer: the messages of the kernel, in their order. If the kernel answers
  with an ack alone, the list is empty.

  `type` is the type of the message. `payload` is what follows `struct nlmsghdr`, as iodata, with pins where it names
  namespaces (`NetlinkPort.Pin`). The function chooses the sequence number, and sets `NLM_F_REQUEST` and `NLM_F_ACK`.

      # RTM_GETLINK of interface 1, rtnetlink(7)
      {:ok, [link]} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)

  The caller should own the socket. On a passive socket the call also works in another local process. On an active socket
  it does not: the owner is sent the answer, and the call ends with `ETIMEDOUT`, whose sentence says so. A socket for
  requests alone is best. For many callers on one socket there is `NetlinkPort.Connection`.

  A datagram that comes meanwhile and is not part of the answer goes to the owner, unread. On an active socket it
  stays in the mailbox. On a passive socket it is sent there, as `{:netlink, socket, datagram}` or with its metadata. So is
  what `max_queue:` keeps back, up to the answer, and beyond that bound.
  The event of the request itself is such a datagram: the kernel sends it to a socket that is a member of the group,
  with the request's own number. With `NLM_F_ECHO` (`:echo`) the kernel sends the echo in place of that event, and the
  echo is the answer; only conntrack's echo has no number and goes to the owner. Some families of `:generic` (openvswitch, l2tp) send events with the number of the request: a
  socket that is in their groups needs `pktinfo: true` to tell such events from answers.

  Answers that come after their request has timed out are dropped: the owner is not sent them, and `recv/2` does not
  return them. `dump/4` says what holds for dumps. docs/concepts.md, "What ends an answer", has the rules for each
  family.

  Options:

    * `:flags` - more flags, by name or as a number, see `t:NetlinkPort.Message.flag/0`. Defaults to none.
    * `:timeout` - ms for the whole request. Defaults to 5_000.
    * `:ack` - `false` asks for no ack: the answer then ends with its first message, or with `NLMSG_DONE` if there are
      many. A command (RTM_NEWLINK, say) is answered by its ack alone. Without one the kernel carries the command out
      and says nothing, and the call ends with `ETIMEDOUT`. Use `send/3` for commands whose success need not be
      known. Queries of audit, and fib_lookup, are sent without `NLM_F_ACK` in any case. Defaults to `true`.
    * `:ext_ack` - `true` returns `{:ok, messages, ext_ack}`. The third is what the kernel said with its success,
      `t:NetlinkPort.ExtAck.t/0`: a warning in `:message` ("quantum of class 10001 is big"), or a `:cookie`. It is `nil`
      if the kernel said nothing. The event `[:netlink_port, :request, :warning]` of `NetlinkPort.Telemetry` has such
      a warning either way. Defaults to `false`.

  Errors of the kernel have the stage `:request`, the kernel's errno, and all that it said in `:ext_ack`. Others are
  `ETIMEDOUT`; `ENOBUFS` when the kernel dropped datagrams meanwhile, so that the answer may not be whole; `EBADMSG`
  when an answer cannot be read; and those of `send/3` and `recv/2`.

  The kernel ignores some requests without a word, and the library returns `EINVAL` for them: a payload that is
  too short for the family's header, and, with `ack: false`, a `type` below 16 (control messages, which the kernel
  skips). With an ack such a type is `{:ok, []}`. The connector answers no request, so that each is `EINVAL`. The begin
  or the end of a batch of nf_tables, alone, raises `ArgumentError`.
  """
  @spec request(Socket.t(), 0..0xFFFF, Pin.payload(),
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          ack: boolean(),
          ext_ack: boolean()
        ) :: {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | error()
  def request(socket, type, payload \\ "", opts \\ []) do
    opts = Options.request!(opts, [:flags, :timeout, :ack, :ext_ack])
    {socket, type} = {Arguments.socket!(socket), Arguments.type!(type)}
    ask(:request, type, socket, {:request, type, payload, opts}, opts)
  end

  @doc """
  Sends many requests in one datagram. Each is `{type, flags, payload}`, with flags as in `request/4`.

  Returns a list with the outcome of each request, in their order: `{:ok, messages}` or `{:error, error}`. Only the
  last request asks for an ack, since the kernel reports errors of the others without being asked. So a batch costs
  little more than the changes that it makes.

      # RTM_NEWROUTE (24) of 10.0.0.0/24 and 10.0.1.0/24 to interface 1, both new (NLM_F_CREATE and NLM_F_EXCL)
      route = fn n ->
        attrs = [{1, <<10, 0, n, 0>>}, {4, NetlinkPort.Attr.u32(1)}]
        {24, [:create, :excl], [<<2, 24, 0, 0, 254, 4, 253, 1, 0::32>>, NetlinkPort.Attr.encode(attrs)]}
      end

      {:ok, [{:ok, []}, {:ok, []}]} = NetlinkPort.batch(socket, [route.(0), route.(1)])

  A request that is answered by a dump must not be in a batch: it raises `ArgumentError`. So do queries of audit, which
  are acked before they are answered, and lookups of fib_lookup, which are never acked.

  ## nf_tables and nfnetlink

  A batch of nf_tables begins with the message NFNL_MSG_BATCH_BEGIN (16) and ends with the message NFNL_MSG_BATCH_END
  (17). It is all or nothing: when the kernel refuses one message, the outcome of that message is the kernel's error,
  the outcome of every other is `ECANCELED`, and nothing was changed. `ERESTART` of the first message says that the rules
  are of another generation than the batch's NFTA_BATCH_GENID: read the rules and try again.

  The kernel throws three things away without a word, even if it acks them: a batch without an end, messages behind
  the end, and a message that is shorter than struct nfgenmsg. They raise `ArgumentError`. Make two calls for two
  batches.

  Without CAP_NET_ADMIN nfnetlink looks only at the first message of a datagram. Then every request of the batch is
  `EPERM`. To find that out, the library sends a second datagram with an `NLMSG_NOOP`, which is always answered, behind a
  batch of several messages of `:netfilter` that is none of nf_tables.

  ## Options and errors

  `:timeout` and `:ext_ack` are as in `request/4`. With `ext_ack: true` each success is `{:ok, messages, ext_ack}`. The
  kernel says something only for requests that ask for an ack (`:ack` in their flags), and for the last one.

  Errors of the whole batch: `EMSGSIZE` if it is longer than the socket's `sndbuf`; `ENOBUFS` if many requests fail and
  the socket's `rcvbuf` has no room for their errors, so that it is not known which have failed; `ETIMEDOUT`; and those
  of `send/3` and `recv/2`.
  """
  @spec batch(Socket.t(), [{0..0xFFFF, [Message.flag()] | 0..0xFFFF, Pin.payload()}],
          timeout: timeout(),
          ext_ack: boolean()
        ) ::
          {:ok, [{:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | error()]}
          | error()
  def batch(socket, requests, opts \\ []) do
    opts = Options.request!(opts, [:timeout, :ext_ack])
    requests = Arguments.batch!(requests)
    socket = Arguments.socket!(socket)
    ask(:batch, nil, socket, {:batch, requests}, opts)
  end

  @doc """
  Reads all of a dump: sets `NLM_F_DUMP` and returns the messages up to `NLMSG_DONE`.

      # RTM_GETLINK of all
      {:ok, links} = NetlinkPort.dump(socket, 18, <<0::128>>)

  Two things make a dump incomplete: the kernel marks it as interrupted by changes (`NLM_F_DUMP_INTR`), or datagrams of
  it were lost. The function then reads the dump to its end and tries again, five times in all. After that it returns
  `EINTR` or `ENOBUFS`, with the messages of the last try in `:messages` of the error.

  `NLM_F_ACK` is set too. The kernel does not ack a dump that it begins. It acks at once what it ignores or carries out
  as a command, so the caller need not wait for a timeout. A type that has no dump, but is answered by one message,
  returns that message.

  The kernel runs one dump for each socket. The function first reads what an earlier dump has left, so the kernel
  never answers `EBUSY`. If that rest does not end within `:max_bytes` and `:total_timeout`, the socket is closed, and
  its owner is sent `{:netlink_closed, socket, :endless_dump}`.

  The rest of a dump that has ended with `ETIMEDOUT` or `EMSGSIZE` is not dropped, since the next dump has to see its
  end. Until the owner makes its next request, that rest comes like any other datagram of the socket: as messages, or
  from `recv/2`. An owner that reads events on the same socket closes it after such an error and opens another, or
  leaves the dumps to a `NetlinkPort.Connection`.

  Options, besides `:flags` and `:ext_ack` of `request/4`:

    * `:timeout` - how long the next datagram of the dump may take, in ms. Events that come meanwhile do not count.
      Defaults to 5_000.
    * `:total_timeout` - how long the whole may take, in ms, with all tries and with the rest of an earlier dump.
      Defaults to 20 times `:timeout`.
    * `:max_bytes` - how much is gathered at most, each datagram counted as its length and 300. Use `stream/4` for
      larger dumps. Defaults to 268_435_456 (256 MiB), which is some millions of routes.

  Errors are those of `request/4`, and:

    * `EINTR`, `ENOBUFS` - no try was complete, see above.
    * `EINVAL` - the payload is too short for the family's header.
    * `EOPNOTSUPP` - the kernel acked the request and sent nothing, not even `NLMSG_DONE`, as it does with a command.
    * `EMSGSIZE` - the dump is larger than `:max_bytes`.
    * `ETIMEDOUT` - nothing came within `:timeout`, or the whole took longer than `:total_timeout`.

  The error has the messages that were read until then in `:messages`.
  """
  @spec dump(Socket.t(), 0..0xFFFF, Pin.payload(),
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          total_timeout: timeout(),
          max_bytes: pos_integer() | :infinity,
          ext_ack: boolean()
        ) :: {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | error()
  def dump(socket, type, payload \\ "", opts \\ []) do
    opts = Options.request!(opts, [:flags, :timeout, :total_timeout, :max_bytes, :ext_ack])
    {socket, type} = {Arguments.socket!(socket), Arguments.type!(type)}
    ask(:dump, type, socket, {:dump, type, payload, opts}, opts)
  end

  defp ask(kind, type, socket, question, opts) do
    run = fn -> Request.run(socket, question, opts) end
    Exchange.face(Telemetry.request(kind, type, {:socket, socket}, run), opts)
  end

  @doc """
  Returns the messages of a dump of any size as a lazy `Stream`, which holds one datagram at a time.

      socket
      |> NetlinkPort.stream(26, <<2, 0::88>>)
      |> Stream.filter(&NetlinkPort.Message.flag?(&1, :multi))
      |> Enum.count()

  On a passive socket the kernel makes no more of the dump than the consumer takes and the socket's window holds. On
  an active socket the datagrams go to the mailbox as fast as they come.

  Each run of the stream sends the request anew, in the process that runs it. That process must own the socket.

  A failure raises `NetlinkPort.Error`. A dump that was interrupted by changes (`EINTR`) or that is not whole (`ENOBUFS`)
  raises too, but only at the end, behind all messages: the stream cannot take back what it has already given out.

  When the consumer stops early, the stream reads the rest of the dump at once, up to `:max_bytes` and for
  `:total_timeout` at most. If the dump does not end by then, the socket is closed, and its owner is sent
  `{:netlink_closed, socket, :endless_dump}`.

  Another request on the socket ends a stream that is still being read. The stream then raises `EBUSY`: use a socket
  for each.

  The options are those of `dump/4`, except `:ext_ack`. `:total_timeout` and `:max_bytes` bound how the stream reads the
  rest of an earlier dump, or its own rest. They do not bound the messages that the consumer takes.
  """
  @spec stream(Socket.t(), 0..0xFFFF, Pin.payload(),
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          total_timeout: timeout(),
          max_bytes: pos_integer() | :infinity
        ) :: Enumerable.t()
  def stream(socket, type, payload \\ "", opts \\ []) do
    opts = Options.request!(opts, [:flags, :timeout, :total_timeout, :max_bytes])
    Request.stream(Arguments.socket!(socket), Arguments.type!(type), payload, opts)
  end

  ## Options

  @doc """
  Sets options, in the order of the list. The first option that fails ends the call.

    * `:active` - as with `:inet.setopts/2`: `true` sends every datagram to the owner, `:once` the next one, a count
      that many, `false` none. A count, from -32_768 to 32_767, is added to what is left of the last one. A sum beyond
      32_767 is `EINVAL`. At 0 the socket becomes passive, and its owner is sent `:netlink_passive`. If the list has
      `:active` more than once, it is one change at the place of the last: nothing is delivered in between.
      docs/concepts.md, "Differences from `:gen_udp`", has a table.
    * `:pktinfo` (`NETLINK_PKTINFO`), `:no_enobufs` (`NETLINK_NO_ENOBUFS`), `:listen_all_nsid`
      (`NETLINK_LISTEN_ALL_NSID`, needs CAP_NET_BROADCAST), `:ext_ack` (`NETLINK_EXT_ACK`), `:cap_ack`
      (`NETLINK_CAP_ACK`) and `:get_strict_chk` (`NETLINK_GET_STRICT_CHK`) - booleans, netlink(7).
    * `:broadcast_error` (`NETLINK_BROADCAST_ERROR`) - boolean. When the socket's queue is full, the part of the kernel
      that sends to one of its groups gets an error. What follows depends on the family. Conntrack keeps the entry of
      a flow whose end it could not report, and tries again until it can; any other event that it could not report
      goes out with the next event of that flow. So no end of a flow is lost, but **a slow owner fills the host's
      conntrack table**: beyond `net.netfilter.nf_conntrack_max` new flows are dropped. The slowest of all sockets with
      the option counts. In xfrm an acquire that could not be sent fails at once, and does not wait for a state. Route,
      nf_tables, generic, audit and uevents ignore the error. The overrun is reported as without the option.
      `:broadcast_error` and `:queued_bytes` of `stats/1` show a slow owner of such a socket, and
      `mix netlink_port.doctor` warns of it.
    * `:rcvbuf`, `:sndbuf` - bytes. With CAP_NET_ADMIN in the first user namespace the helper can set them beyond the
      limit of the system (`SO_RCVBUFFORCE`). Without it the kernel silently cuts them to that limit:
      `net.core.rmem_max` defaults to 212992 before Linux 6.18, and to 4194304 since. `getopts/2` returns the size in
      force, which the kernel counts double, socket(7). The doctor shows what a helper gets.
    * `:filter` - a classic BPF program (`SO_ATTACH_FILTER`), a list of at most 4,096 `{code, jt, jf, k}`. `nil` detaches
      it. The program returns how many bytes of a datagram to let through: 0 drops it, and `0xFFFFFFFF` keeps all of it. A
      number below its length cuts it, and its last message may then be malformed. A program for which
      `net.core.optmem_max` has no room is `ENOMEM`: before Linux 6.8, by default, a program of more than some 2,540
      instructions.

  For example:

      :ok = NetlinkPort.setopts(socket, rcvbuf: 1_000_000, active: :once)

  Errors: `ENOPROTOOPT` if the kernel does not have the option, `EPERM` if the helper may not set it
  (`:listen_all_nsid`), `EINVAL` if the kernel does not accept the value, `EBADF` for a closed socket, and those of the
  stage `:thread`. An option with an unknown name raises `ArgumentError`.
  """
  @spec setopts(Socket.t(), [option()]) :: :ok | error()
  def setopts(socket, opts) do
    socket = Arguments.socket!(socket)

    opts
    |> Options.set()
    |> as_one()
    |> Enum.reduce_while(:ok, fn option, :ok ->
      case set(socket, option) do
        {:ok, _value} -> {:cont, :ok}
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
  end

  # All of `active` are one change, at the place of the last: nothing is delivered between them.
  defp as_one(options) do
    case Keyword.get_values(options, :active) do
      [] ->
        options

      changes ->
        {behind, up_to_last} =
          options |> Enum.reverse() |> Enum.split_while(&(elem(&1, 0) != :active))

        before = up_to_last |> Keyword.delete(:active) |> Enum.reverse()
        before ++ [{:active, changes} | Enum.reverse(behind)]
    end
  end

  defp set(socket, {:active, changes}),
    do: ask_server(socket, {:set_active, socket.handle, changes})

  defp set(socket, {name, value}), do: Client.request(socket, {:set, socket.handle, name, value})

  @doc """
  Reads options: takes a list of names and returns a keyword list in the same order.

      {:ok, [active: false, ext_ack: true]} = NetlinkPort.getopts(socket, [:active, :ext_ack])

  Errors: `ENOPROTOOPT` if the kernel does not have the option, `EBADF` for a closed socket, and those of the stage
  `:thread`.
  """
  @spec getopts(Socket.t(), [atom()]) :: {:ok, keyword()} | error()
  def getopts(socket, names) do
    socket = Arguments.socket!(socket)

    names
    |> Options.get()
    |> Enum.reduce_while({:ok, []}, fn name, {:ok, read} ->
      case get(socket, name) do
        {:ok, value} -> {:cont, {:ok, [{name, value} | read]}}
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
    |> case do
      {:ok, read} -> {:ok, Enum.reverse(read)}
      failed -> failed
    end
  end

  defp get(socket, :active) do
    with {:ok, told} <- ask_server(socket, {:vm_info, socket.handle}), do: {:ok, told.active}
  end

  defp get(socket, name) do
    with {:ok, value} <- Client.request(socket, {:get, socket.handle, name}) do
      {:ok, Options.read(name, value)}
    end
  end

  @doc """
  Joins a multicast group, by number (`NETLINK_ADD_MEMBERSHIP`).

      # RTNLGRP_LINK
      :ok = NetlinkPort.join(socket, 1)

  Errors: `EPERM` for a group that the helper may not join, `EINVAL` for a group that the protocol does not have,
  `EBADF` for a closed socket, and those of the stage `:thread`.

  The kernel does not notice every wrong number. It rounds the number of groups up to 32 for every protocol except
  `:route`, and for `:generic` up to a multiple of the bits of a long. So joining a group of `:xfrm` or `:netfilter` that
  does not exist, with a number up to 32, returns `:ok`, and nothing is ever sent to it.
  """
  @spec join(Socket.t(), pos_integer()) :: :ok | error()
  def join(socket, group), do: membership(socket, :add_membership, group)

  @doc """
  Leaves a multicast group (`NETLINK_DROP_MEMBERSHIP`). Leaving a group that the socket has not joined is `:ok` too.

      :ok = NetlinkPort.leave(socket, 1)

  Errors are those of `join/2`.
  """
  @spec leave(Socket.t(), pos_integer()) :: :ok | error()
  def leave(socket, group), do: membership(socket, :drop_membership, group)

  defp membership(socket, name, group) do
    %Socket{handle: handle} = Arguments.socket!(socket)
    done(Client.request(socket, {:set, handle, name, Arguments.group!(group)}))
  end

  @doc """
  Returns the multicast groups that a socket has joined (`NETLINK_LIST_MEMBERSHIPS`), in ascending order.

      :ok = NetlinkPort.join(socket, 1)
      {:ok, [1]} = NetlinkPort.memberships(socket)

  Errors: `EBADF` for a closed socket, and those of the stage `:thread`.
  """
  @spec memberships(Socket.t()) :: {:ok, [pos_integer()]} | error()
  def memberships(socket) do
    %Socket{handle: handle} = Arguments.socket!(socket)
    Client.request(socket, {:get, handle, :memberships})
  end

  @doc false
  # bind(2) with a mask of groups, for NetlinkPort.Native.
  @spec bind(Socket.t(), non_neg_integer(), non_neg_integer()) :: :ok | error()
  def bind(socket, port_id, groups) do
    %Socket{handle: handle} = Arguments.socket!(socket)
    {port_id, groups} = {Arguments.uint32!(:port_id, port_id), Arguments.uint32!(:groups, groups)}
    done(Client.request(socket, {:bind, handle, port_id, groups}))
  end

  ## Ownership and information

  @doc """
  Makes another process the owner of a socket. The caller must be the present owner.

  The socket's messages that are in the caller's mailbox already go to the new owner, before any that arrive later. The
  rest of a dump that was not read to its end is read first, as the next dump would do, and a stream that is not done
  ends. An answer to a request that has timed out is not waited for: it is dropped, whether it has come or comes later.

      task = Task.async(fn -> receive do: ({:netlink, _socket, datagram} -> datagram) end)
      :ok = NetlinkPort.controlling_process(socket, task.pid)

  Errors: `EPERM` if the caller does not own the socket, `ESRCH` if the new owner has ended, `EBADF` for a closed socket,
  and those of the stage `:thread`.
  """
  @spec controlling_process(Socket.t(), pid()) :: :ok | error()
  def controlling_process(socket, pid) do
    %Socket{handle: handle} = Arguments.socket!(socket)
    pid = Arguments.pid!(:owner, pid)

    if node(pid) == node() and not Process.alive?(pid) do
      {:error, Error.new(:info, :esrch)}
    else
      late = if pid == self(), do: %{}, else: Request.release(socket)

      with {:ok, _value} <- ask_server(socket, {:pause, handle}) do
        if pid != self(), do: pass_on(socket, pid, late)

        with :ok <- done(ask_server(socket, {:give, handle, pid, late})) do
          if pid != self(), do: Request.forget(socket), else: :ok
        end
      end
    end
  end

  # The server has stopped sending: what is in the mailbox now is all there is. Late answers to the old owner end here.
  defp pass_on(socket, pid, late) do
    receive do
      {:netlink, ^socket, datagram} = message ->
        pass_on(socket, pid, late, message, datagram, nil)

      {:netlink, ^socket, datagram, meta} = msg ->
        pass_on(socket, pid, late, msg, datagram, meta)

      {:netlink_passive, ^socket} = message ->
        pass_on(socket, pid, late, message)

      {:netlink_overrun, ^socket, _} = message ->
        pass_on(socket, pid, late, message)

      {:netlink_error, ^socket, _} = message ->
        pass_on(socket, pid, late, message)
    after
      0 -> :ok
    end
  end

  defp pass_on(socket, pid, late, message) do
    Kernel.send(pid, message)
    pass_on(socket, pid, late)
  end

  defp pass_on(socket, pid, late, message, datagram, metadata) do
    if LateAnswers.only?(late, datagram, metadata),
      do: pass_on(socket, pid, late),
      else: pass_on(socket, pid, late, message)
  end

  @doc """
  Describes a socket, a pin, or a server and its helper.

      {:ok, %{verified: true, drops: 0}} = NetlinkPort.info(socket)
      {:ok, %{may_leave: true}} = NetlinkPort.info(MyApp.Netlink)

  Of a socket:

    * `:handle`, `:protocol`, `:netns`, `:owner`, `:active`, `:port_id`, `:window`.
    * `:inode`, `:device`, `:cookie` - the namespace that the socket is really in: inode and device of its file, and
      its cookie (`SO_NETNS_COOKIE`, or `nil`).
    * `:verified` - whether the kernel has confirmed that namespace. Before Linux 6.18 it does so only for a helper with
      CAP_NET_ADMIN there.
    * `:drops` - datagrams that the kernel has dropped, as far as the helper has reported them.
    * `:foreign` - datagrams from user space that were refused.
    * `:kept` - items that wait in the VM for the owner.

  Of a pin: `:handle`, `:netns`, `:owner`, `:descriptor`, `:inode`, `:device`, `:cookie` and `:pin` itself.

  Of a server:

    * `:os_pid`, `:executable`, `:program` - the helper's process, its file and its version.
    * `:protocol` - the version of the wire protocol.
    * `:capabilities`, and `:may_leave` - whether the helper can enter other namespaces.
    * `:home_inode`, `:home_device` - the helper's own namespace.
    * `:sockets`, `:pins`, `:fds` - how many are open: sockets, pins, descriptors.
    * `:max_fds`, `:lowest_fd` - the limit of descriptors, and the lowest number of the helper's own. That is 1024 if
      the limit has room for it. A smaller number in a message, as in `IFLA_NET_NS_FD`, then names none of them.

  Figures that change with every datagram are in `stats/1`.

  Errors: `EBADF` for a closed socket or a pin that has ended, and those of the stage `:thread`.
  """
  @spec info(Socket.t() | Pin.t() | GenServer.server()) :: {:ok, map()} | error()
  def info(%Socket{handle: handle} = socket) do
    with {:ok, told} <- Client.request(socket, {:info, handle}),
         {:ok, known} <- ask_server(socket, {:vm_info, handle}) do
      told = Map.new(told)
      {device, inode} = told.namespace

      {:ok,
       told
       |> Map.take([:cookie, :verified, :port_id, :drops, :foreign])
       |> Map.merge(Map.drop(known, [:socket, :closed_message]))
       |> Map.merge(%{device: device, inode: inode, handle: handle})
       |> Map.merge(Map.take(socket, [:protocol, :netns]))}
    end
  end

  def info(%Pin{handle: handle, helper: helper} = pin) do
    case Client.ask(helper, {:pin_info, handle}, helper.call_timeout) do
      {:ok, told} ->
        {:ok, told}

      {:error, {stage, errno, _detail}} ->
        {:error, Error.new(stage, errno, subject: inspect(pin))}
    end
  end

  def info(server) do
    case Client.call(server, :info, 15_000) do
      {:ok, told} ->
        {{device, inode}, told} = Map.pop!(told, :home)
        told = Map.drop(told, [:granted, :charged])
        {:ok, Map.merge(told, %{home_device: device, home_inode: inode})}

      {:error, reason} ->
        Client.failed(reason, {:server, server})
    end
  end

  @typedoc """
  What has passed through a socket since it was opened, and what waits.

    * `:socket`, `:handle`, `:protocol`, `:netns`, `:owner`, `:active` - as in `info/1`, and `:inode`, that
      of its namespace.
    * `:received`, `:received_bytes` - datagrams that the helper has handed on to the VM.
    * `:sent`, `:sent_bytes` - datagrams that the kernel has accepted, without those that it has refused.
    * `:drops` - datagrams that the kernel has dropped, as far as the helper has reported them.
    * `:foreign` - datagrams from user space that were refused.
    * `:queued_bytes`, `:queue_limit` - what waits in the kernel's receive queue, and how much may wait there before
      the kernel drops (`SO_MEMINFO`). The kernel counts more than a datagram's length. Both are 0 if the kernel does
      not report them.
    * `:window`, `:window_left` - how many bytes the VM keeps at most before the owner has taken them, and how many the
      helper may still hand on. A datagram counts its length and 300. At 0 the helper does not read the socket.
    * `:kept` - items that wait in the VM for the owner.
    * `:broadcast_error` - whether this option is on, see `setopts/2`. If it is, datagrams that wait here can keep
      entries in the conntrack table.
  """
  @type socket_stats :: %{
          socket: Socket.t(),
          handle: Socket.handle(),
          protocol: protocol(),
          netns: netns(),
          inode: pos_integer(),
          owner: pid(),
          active: active(),
          received: non_neg_integer(),
          received_bytes: non_neg_integer(),
          sent: non_neg_integer(),
          sent_bytes: non_neg_integer(),
          drops: non_neg_integer(),
          foreign: non_neg_integer(),
          queued_bytes: non_neg_integer(),
          queue_limit: non_neg_integer(),
          window: pos_integer(),
          window_left: non_neg_integer(),
          kept: non_neg_integer(),
          broadcast_error: boolean()
        }

  @typedoc """
  What a helper uses, and its sockets.

    * `:server`, `:name` - its server, and the name that the server is registered under, or `nil`.
    * `:os_pid`, `:uptime` (ms), `:rss` (bytes), `:cpu` (ms of processor time), `:fds`, `:max_fds` - of the helper's
      process. `:rss` and `:cpu` are `nil` where `/proc` does not show them.
    * `:restarts` - how often its supervisor has started that server again. A server without a name that is started
      counts as the successor of any such server that has ended under the same supervisor.
    * `:frames` - frames that the server has read from the helper. `:outgoing` - commands of the server that wait until
      the helper reads. `:malformed` - commands that the helper could not read (if it is not 0, there is a bug).
    * `:sockets` - `t:socket_stats/0` of each.
    * `:pins` - `t:pin_info/0` of each.
  """
  @type server_stats :: %{
          server: pid(),
          name: GenServer.name() | nil,
          os_pid: pos_integer(),
          uptime: non_neg_integer(),
          rss: non_neg_integer() | nil,
          cpu: non_neg_integer() | nil,
          fds: non_neg_integer(),
          max_fds: pos_integer(),
          restarts: non_neg_integer(),
          frames: non_neg_integer(),
          outgoing: non_neg_integer(),
          malformed: non_neg_integer(),
          sockets: [socket_stats()],
          pins: [pin_info()]
        }

  @typedoc "A pin, its fields (see `NetlinkPort.Pin`) and its owner."
  @type pin_info :: %{
          pin: Pin.t(),
          handle: Socket.handle(),
          netns: netns(),
          descriptor: non_neg_integer(),
          inode: pos_integer(),
          device: non_neg_integer(),
          cookie: non_neg_integer() | nil,
          owner: pid()
        }

  @doc """
  Returns the counts of a socket, `t:socket_stats/0`, or those of a server, its helper and all its sockets,
  `t:server_stats/0`. Works from any node.

      {:ok, %{received: _, drops: 0}} = NetlinkPort.stats(socket)
      {:ok, %{restarts: 0, sockets: [_ | _]}} = NetlinkPort.stats(MyApp.Netlink)

  The helper counts what it receives and sends in any case, so a call costs the traffic nothing. The sockets of a
  server are asked one after the other: their figures are of slightly different moments, and a socket that is closed
  meanwhile is left out.

  Errors: `EBADF` for a closed socket; `ESRCH`, `EPIPE` or `ETIMEDOUT` of the stage `:thread` when there is no server,
  its helper has ended, or it does not answer.
  """
  @spec stats(Socket.t()) :: {:ok, socket_stats()} | error()
  @spec stats(GenServer.server()) :: {:ok, server_stats()} | error()
  def stats(%Socket{handle: handle} = socket) do
    with {:ok, known} <- ask_server(socket, {:vm_info, handle}), do: Stats.of(socket, known)
  end

  def stats(server) do
    case Client.call(server, :stats, 15_000) do
      {:ok, told} -> {:ok, %{told | sockets: Stats.all(told.sockets)}}
      {:error, reason} -> Client.failed(reason, {:server, server})
    end
  end

  ## Captures

  @doc """
  Writes every datagram that passes through a server, in both directions and of all its sockets, into a file for
  Wireshark and `tshark`. The format is pcapng, with the link type `LINKTYPE_NETLINK` (253,
  <https://www.tcpdump.org/linktypes/LINKTYPE_NETLINK.html>).

      {:ok, capture} = NetlinkPort.capture(MyApp.Netlink, "trace.pcapng")
      # …
      {:ok, %{datagrams: _, dropped: 0}} = NetlinkPort.stop_capture(capture)

  Option:

    * `:max_bytes` - the largest size of the file, at least 4096. A datagram that would exceed it ends the capture.
      Defaults to 67_108_864.

  ## What is in the file

  Each socket is an interface, from its first datagram on, with the name that `inspect/1` shows: `route in blue,
  handle 7`. Each datagram has its direction (`epb_flags`) and a timestamp in ns: the wall clock at the start, and the
  monotonic clock since. The timestamp is taken when `send/3` is called, or when the server gets the datagram.
  Datagrams of different senders may stand a few microseconds out of order. A datagram of more than 262_128 bytes is
  cut, since readers refuse longer ones.

  A datagram that `send/3` then refuses with `EAGAIN` or `EPIPE` is in the file all the same. A datagram that the helper
  has refused, or that the kernel has dropped, is not.

  If the file exists, it is overwritten. Only its owner may read a new one, since datagrams can hold keys (xfrm). The
  path is one of the server's node, and relative to that node's working directory.

  ## What it costs

  No socket waits for the disk. Up to 8 MiB are kept for a slow disk. Datagrams beyond that are not written, but
  counted, and the next datagram has a comment that says so (`frame.comment` in Wireshark). Without a capture the cost
  is some nanoseconds for each datagram.

  ## How it ends

  A capture ends with `stop_capture/1`, and with the process that called this function. If it ends otherwise, that
  process is sent `{:netlink_capture_end, capture, reason, counts}`. `reason` is `:max_bytes`, `:server_down` or an error
  of the file such as `ENOSPC`, and `counts` is `t:capture_counts/0`. The file always ends with a whole block. If the VM is
  killed, only the datagrams of the last moment are missing, which were not written yet.

  Errors of the file have the stage `:capture`: `EACCES`, `ENOENT`, `EISDIR`, `ENOSPC` and so on, and `EINVAL` for a file
  that is not a regular one. `EBUSY` means that the server has a capture already.
  """
  @spec capture(GenServer.server(), Path.t(), max_bytes: pos_integer()) :: {:ok, pid()} | error()
  def capture(server, path, opts \\ []) do
    options = Options.capture!(path, opts)
    options = Map.merge(options, %{owner: self(), deadline: Deadline.new(15_000)})

    case Client.call(server, {:capture, options}, 15_000) do
      {:error, reason} -> Client.failed(reason, {:server, server})
      {:ok, capture} -> {:ok, capture}
    end
  end

  @doc """
  Ends a capture. When the function returns, the file holds every datagram that had passed before the call, and is
  closed. No message is sent.

      {:ok, capture} = NetlinkPort.capture(MyApp.Netlink, "trace.pcapng")
      {:ok, %{bytes: _, datagrams: 0, dropped: 0}} = NetlinkPort.stop_capture(capture)

  Errors: `ESRCH` when the capture has ended already, and those of the file.
  """
  @spec stop_capture(pid()) :: {:ok, capture_counts()} | error()
  def stop_capture(capture) do
    case Client.call(Arguments.pid!(:capture, capture), :stop, 15_000) do
      {:ok, counts} -> {:ok, counts}
      {:error, %Error{} = error} -> Client.failed(error, {:capture, capture})
      {:error, {:protocol, _errno, _detail} = raw} -> Client.failed(raw, {:capture, capture})
      {:error, {_stage, 110, _detail}} -> {:error, Error.new(:capture, :etimedout)}
      {:error, _ended} -> {:error, Error.new(:capture, :esrch)}
    end
  end

  defp ask_server(%Socket{helper: helper} = socket, message) do
    Client.explain(Client.ask(helper, message, helper.call_timeout), socket)
  end

  defp done({:ok, _value}), do: :ok
  defp done({:error, error}), do: {:error, error}
end
