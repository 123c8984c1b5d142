defmodule NetlinkPort do
  @moduledoc """
  AF_NETLINK sockets in other network namespaces, out of the VM.

  A `NetlinkPort` is a supervised process that owns a helper, a small Rust program. The helper enters
  namespaces, holds the sockets and forwards datagrams; the VM needs no privileges, runs no native
  code, and never has a thread in the wrong namespace. Add one to a supervision tree:

      children = [{NetlinkPort, name: MyApp.Netlink}]

  and open sockets, as many as are needed, in any namespace:

      {:ok, socket} = NetlinkPort.open(MyApp.Netlink, :route, netns: {:name, "blue"}, groups: [1])

      receive do
        {:netlink, ^socket, datagram} -> datagram
      end

  Datagrams are binaries as the kernel writes them, one or more messages each (netlink(7)); this
  module moves them and does not look inside.

  ## Messages to the owner

  The process that opens a socket owns it, unless `owner:` names another. While the socket is active
  (see `setopts/2`) its owner is sent:

    * `{:netlink, socket, datagram}`, and with `pktinfo`, `listen_all_nsid` or `user_peers` on
      `{:netlink, socket, datagram, metadata}`, see `t:metadata/0`;
    * `{:netlink_passive, socket}` when a count of `active` has run out;
    * `{:netlink_overrun, socket, dropped}` when the kernel has dropped that many datagrams, after
      everything older than the gap;
    * `{:netlink_error, socket, error}` when a `send/3` has failed after it returned, or the kernel
      has reported an error on the socket;
    * `{:netlink_closed, socket, reason}` once, active or not, when the helper or its server has
      ended, the connection to its node is lost, or the socket's namespace is gone (see below). See
      `t:closed_reason/0`.

  Errors and overruns use up neither `:once` nor a count. On a passive socket `recv/2` returns them, in
  the same order.

  ## Memory

  A socket's datagrams cost at most its `window:` in the VM as long as it is passive, `:once` or
  counted: when that is used up the helper stops reading this socket, and no other. With
  `active: true` whatever arrives is sent to the owner at once, as with `:gen_udp`: an owner that falls
  behind has a mailbox without bound, unless `max_queue:` says how many messages it may hold before
  this socket waits.

  ## When a namespace goes

  An open socket keeps its network namespace alive, also one that has been deleted: it goes on there,
  and nothing tells. With `close_on: :namespace_gone` the helper watches what the namespace was named
  by, and closes the socket when that is gone:

    * `{:name, name}` and `{:path, path}`: when the file, a symbolic link that leads to it, or the
      folder of either is deleted, moved or replaced, and the path does not stand for the same
      namespace any more (device and inode). What cannot be looked at any more counts as gone, too.
      Not noticed are a umount(8) that leaves the file, a mount over it, and changes to folders
      further up.
    * `{:pid, pid}`, and a path that leads to or through `/proc/<pid>`, however it is spelt: when that
      process has ended, with all its threads, whether or not its namespace lives on through others. That
      it goes to another namespace by setns(2) does not count. Of a process in another pid namespace than
      the helper's the end is not told: `EOPNOTSUPP` of `:watch`.
    * `:host`: never. The helper's own namespace lasts as long as the helper.

  Whatever the kernel had queued on the socket by then comes first, as far as the socket's window
  lets it through; what comes later is not taken in, the rest of a dump included. Then the socket is
  closed, every use of it but the following is `EBADF`, and its owner is sent
  `{:netlink_closed, socket, :namespace_gone}`, once. Datagrams that a passive, `:once` or counted
  socket, or `max_queue:`, holds back stay there to be taken, by `recv/2` or by `setopts/2` with
  `active:`; the message comes behind the last of them.

  ## Namespaces in requests

  Some requests name a namespace by a descriptor, as IFLA_NET_NS_FD does, and the kernel looks that up in the
  helper. `pin/3` has the helper open it, and what it returns is the value of the attribute: see
  `NetlinkPort.Pin`.

  ## What passes

  `capture/3` writes all datagrams of a server into a file for Wireshark.

  ## More than one helper

  A helper is one thread. Several share the work where there are processors for them, and what ends one
  leaves the sockets of the others alone. A `PartitionSupervisor` starts them, unnamed:

      children = [
        {PartitionSupervisor, child_spec: {NetlinkPort, name: nil}, name: MyApp.Netlinks, partitions: 2}
      ]

  and every function that takes a server takes one of them by a key. The same key always leads to the
  same helper; with the namespace as the key, all sockets of a namespace are together:

      server = {:via, PartitionSupervisor, {MyApp.Netlinks, "blue"}}
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, "blue"}, groups: [1])

  What that gains is in `docs/benchmarks.md`, "Over several helpers". Sockets of another node's helpers are
  opened by name, `{MyApp.Netlink, :"agent@host"}`: see `docs/distribution.md`.

  ## When the helper ends

  The server ends with it and is restarted by its supervisor. Every owner is told
  `:netlink_closed`, every pending call is answered with an error, and the sockets are gone: open
  them again. A handle is never given twice, so nothing that is left over reaches a new socket.
  `NetlinkPort.Monitor` does that for those who follow groups.
  """

  alias NetlinkPort.{Deadline, Error, ExtAck, Message, Options, Pin, Request, Server}
  alias NetlinkPort.{Socket, Telemetry}
  alias NetlinkPort.Request.Exchange
  alias NetlinkPort.Server.{Client, Opening, PinNumbers, Stats}

  @typedoc "A netlink protocol (family): a number of `include/uapi/linux/netlink.h` or its name."
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
  A network namespace: the helper's own, the one a file stands for, the one `ip netns` calls by a
  name (`/run/netns/name`), or that of a process, by its number in the helper's pid namespace.

  A path is judged by where it leads: one that leads to `/proc/<pid>/ns/net` takes `CAP_SYS_PTRACE` where
  `{:pid, pid}` does, for processes of other users and those with more capabilities than the helper.
  """
  @type netns :: :host | {:path, Path.t()} | {:name, String.t()} | {:pid, pos_integer()}

  @typedoc "The meaning of `:inet.setopts/2`: messages for ever, one, so many, or none."
  @type active :: boolean() | :once | 1..32_767

  @typedoc """
  What is known of a datagram: the multicast group it was sent to, 0 for none (with `pktinfo`), the
  namespace id it comes from, where that is not the socket's own (with `listen_all_nsid`), and the
  port id of its sender, where that is not the kernel (with `user_peers`). `nil` is not told.
  """
  @type metadata :: %{
          required(:group) => non_neg_integer() | nil,
          required(:nsid) => integer() | nil,
          optional(:port_id) => non_neg_integer()
        }

  @typedoc """
  Why sockets were closed: the exit status of the helper (128 and the signal's number, if one killed
  it; 159 is SIGSYS, a system call its filter does not let through) or what its port told, a helper
  that did not answer, the end of the namespace for one opened with `close_on: :namespace_gone`,
  the loss of the connection to the server's node, or of that node (`:noconnection`), a dump that was left
  and does not end (`:endless_dump`, see `dump/4`), or the exit reason of the server.
  """
  @type closed_reason ::
          {:helper_exit, non_neg_integer() | term()}
          | :stuck
          | :namespace_gone
          | :noconnection
          | :endless_dump
          | term()

  @typedoc "What `setopts/2` and `getopts/2` know."
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

  @typedoc "What `open/3` takes beside `t:option/0`."
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
  What a capture has written: `:datagrams`, the `:bytes` of its file, and how many datagrams it has
  `:dropped` since the disk did not keep up.
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
    Options.keyword!(opts)

    %{
      id: Keyword.get(opts, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [opts]},
      type: :worker
    }
  end

  @doc """
  Starts a helper and its server, linked to the caller. Usually a supervisor does this.

  Options:

    * `:name` - what to register the server as, `NetlinkPort` unless told otherwise; `nil` for no
      name, under a `PartitionSupervisor` for one.
    * `:executable` - the path of the helper. Unless told otherwise it is what the environment variable
      `NETLINK_PORT_EXECUTABLE` names, else what `config :netlink_port, executable: path` says, else the
      one the build has installed. All are read when the server starts; docs/deployment.md says when
      to use which.
    * `:call_timeout` - ms a command may take before its caller gets `ETIMEDOUT` and the helper is
      suspected to be stuck; 15 000. A suspected helper that does not answer one last ping within a
      second is killed, and the server ends with `:stuck`.
    * `:hello_timeout` - ms the helper may take to start; 5 000.
    * `:ping_interval` - ms of silence after which the helper is asked whether it lives; 30 000, and
      `:infinity` for never.
    * `:spin` - microseconds helper and server look for more before they sleep, right after traffic,
      while that pays; 50, and 0 for never. It makes the next request two to four times as fast, and
      costs up to as much of a processor's time after each.
    * `:keep` - capabilities the helper does not give up at start beside `CAP_SYS_ADMIN`,
      `CAP_NET_ADMIN` and, in reserve, `CAP_SYS_PTRACE`: `:net_broadcast` for `listen_all_nsid`,
      `:audit_read` and `:audit_control` for `NETLINK_AUDIT`, `:dac_read_search` for namespace
      files in directories closed to the helper's user. None unless told otherwise.
    * `:user_namespaces` - whether a namespace that belongs to another user namespace, such as that
      of a rootless container, may be entered by a child of the helper that joins the user
      namespace first (user_namespaces(7)); `false`. With it the user of such containers needs no
      privileges at all. The helper may then call fork(2), which it otherwise may not.

  For example:

      {:ok, server} = NetlinkPort.start_link(name: nil, call_timeout: 5_000)
      {:ok, %{os_pid: _}} = NetlinkPort.info(server)

  Errors, where the helper cannot be started, say why: it is missing (`ENOENT`), not executable
  (`EACCES`), of another version or another program altogether (`EPROTO`), or it does not answer
  (`ETIMEDOUT`).
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts \\ []) do
    Options.keyword!(opts)
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

  It comes bound, with a port id the kernel picks, connected to the kernel, and with extended acks on.

      {:ok, socket} = NetlinkPort.open(MyApp.Netlink, :route, netns: {:name, "blue"}, groups: [1])

  Options, beside those of `setopts/2`:

    * `:netns` - the namespace. Defaults to `:host`. See `t:netns/0`. A path that is not absolute begins at the
      working directory of the caller's node at the time of the call.
    * `:active` - `true` unless told otherwise. See `setopts/2`.
    * `:groups` - numbers of multicast groups to join, those above 32 too.
    * `:bind` - the port id to bind to, 0 for one the kernel picks; `false` makes no call of bind(2)
      (a socket that is connected to the kernel is still given a port id).
    * `:owner` - the process that gets the messages, and whose end closes the socket; the caller
      unless told otherwise.
    * `:window` - bytes, 1 048 576 unless told otherwise: how much the VM keeps of what the owner has
      not taken. A datagram counts its length and 300.
    * `:max_queue` - with `active: true`: how many messages, of whatever sender, the owner's mailbox
      may hold before this socket's are kept back, up to its window; beyond that the kernel
      drops, and `:netlink_overrun` tells how many. `:infinity` unless told otherwise.
    * `:user_peers` - `true` to speak with processes in user space, too (`:usersock`). Otherwise
      only the kernel is heard: what others send is dropped and counted, see `info/1`.
    * `:close_on` - `:namespace_gone` closes the socket when its namespace is gone by the name it was
      opened by, and tells its owner; see "When a namespace goes" above. It costs an inotify(7) watch
      of the helper's user for each folder that holds such a file, or a descriptor for each socket of a
      process. `nil` unless told otherwise: the socket keeps its namespace.
    * `:closed_message` - whether the owner is sent `:netlink_closed`. Defaults to `true`. With `false` the owner of
      a passive socket gets no message at all, and the next call tells of the end: `EPIPE`, or `EBADF` where the
      namespace is gone. `false` together with `active:` other than `false` raises `ArgumentError`.
    * `:timeout` - ms to wait for server and helper, 15 000 unless told otherwise.

  Errors tell the stage and the errno: `ENOENT` of `:open` for a namespace that is not there, `ESRCH` of `:open` for a
  process that has ended or the number of a thread, `EOPNOTSUPP` of `:open` for `{:pid, pid}` where `/proc` is that
  of another pid namespace, `EACCES` of `:open` for a process that is closed to the helper or hidden from it
  (hidepid), `EINVAL` of `:setns` for a file that is none, as is one of `ip netns add` for a moment before the
  namespace is mounted on it, `EPERM` of `:setns` for one the helper may not enter, `EPROTONOSUPPORT`
  of `:socket`, those of each option as with `setopts/2`, and `ESRCH`, `EPIPE` or `ETIMEDOUT` of `:thread`
  without a server or a helper that answers. `Exception.message/1` says what to do about it.
  """
  @spec open(GenServer.server(), protocol(), [open_option()]) :: {:ok, Socket.t()} | error()
  def open(server, protocol, opts), do: Opening.once(server, protocol, opts)

  ## Pins

  @doc """
  Has the helper of a server hold a network namespace, for requests that name one by a descriptor. See
  `NetlinkPort.Pin`.

      {:ok, pin} = NetlinkPort.pin(MyApp.Netlink, {:name, "blue"})
      # RTM_NEWNSID (88) with NETNSA_FD (3) and NETNSA_NSID (1): the namespace is number 5 to the socket's
      attrs = NetlinkPort.Attr.encode([{3, pin}, {1, NetlinkPort.Attr.s32(5)}])
      {:ok, []} = NetlinkPort.request(socket, 88, [<<0::32>>, attrs])
      :ok = NetlinkPort.unpin(pin)

  The namespace is named and checked as in `open/3`; `:host` is the helper's own. It need not be one that the helper
  may enter. As long as it is pinned it lives, also without a socket or a process in it. A pin is right in requests
  to this server, with a `PartitionSupervisor` to the server of the same key.

  It ends with `unpin/1`, with its owner, and with the helper: then its owner is sent
  `{:netlink_closed, pin, reason}`, as for a socket.

  Options:

    * `:owner` - the process whose end ends it. Defaults to the caller.
    * `:timeout` - ms to wait for server and helper. Defaults to 15_000.

  Errors are those of the stages `:open`, `:setns` (`EINVAL`, for a file that is no network namespace) and `:thread` as
  with `open/3`; `EMFILE` of `:open` where the helper has no descriptor left, of which a pin takes one.
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
      {:error, %Error{} = error} -> {:error, error}
      {:error, {stage, errno, _detail}} -> {:error, Error.new(stage, errno)}
    end
  end

  @doc """
  As `pin/3`: `pin(server, netns)`, or `pin(netns, options)` of the server `NetlinkPort`.

      {:ok, pin} = NetlinkPort.pin({:name, "blue"}, owner: self())

  Errors are those of `pin/3`.
  """
  @spec pin(GenServer.server() | netns(), netns() | [owner: pid(), timeout: timeout()]) ::
          {:ok, Pin.t()} | error()
  def pin(netns, opts) when is_list(opts), do: pin(__MODULE__, netns, opts)
  def pin(server, netns), do: pin(server, netns, [])

  @doc """
  As `pin/3`, of the server `NetlinkPort`.

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
  Ends a pin. Always `:ok`, also for one that has ended already; no message is sent. It returns when the helper has
  closed the descriptor, so that the namespace is free of it. What the kernel has done by it stays done.

      {:ok, pin} = NetlinkPort.pin(MyApp.Netlink, :host)
      :ok = NetlinkPort.unpin(pin)
      :ok = NetlinkPort.unpin(pin)
  """
  @spec unpin(Pin.t()) :: :ok
  def unpin(pin) do
    %Pin{handle: handle, link: link} = Options.pin!(pin)
    _answer = Client.ask(link, {:unpin, handle}, link.call_timeout)
    :ok
  end

  ## Sockets that are open

  @doc """
  The socket of a handle that `NetlinkPort.Native.open_in_netns/3` has given.

      {:ok, handle} = NetlinkPort.Native.open_in_netns(MyApp.Netlink, "/run/netns/blue", 0)
      %NetlinkPort.Socket{} = NetlinkPort.socket(MyApp.Netlink, handle)

  Errors: `EBADF` for one that is not open, and those of `:thread`.
  """
  @spec socket(GenServer.server(), Socket.handle()) :: Socket.t() | error()
  def socket(server \\ __MODULE__, handle) do
    case Client.call(server, {:vm_info, handle}, 15_000) do
      {:ok, %{socket: socket}} -> socket
      {:error, reason} -> Client.failed(reason)
    end
  end

  @doc """
  Closes a socket. Always `:ok`, also for one that is closed already; no message is sent. It returns
  when the helper has closed the descriptor, so that the namespace is free of it.

      :ok = NetlinkPort.close(socket)
      :ok = NetlinkPort.close(socket)
  """
  @spec close(Socket.t()) :: :ok
  def close(socket) do
    Client.close(Options.socket!(socket))
    Request.forget(socket)
  end

  @doc """
  Sends one datagram, as iodata, to the kernel. It may have pins in it, see `NetlinkPort.Pin`.

      # RTM_GETLINK of interface 1, rtnetlink(7)
      request = %NetlinkPort.Message{type: 18, flags: 1, seq: 1, payload: <<0::32, 1::32-native, 0::64>>}
      :ok = NetlinkPort.send(socket, NetlinkPort.Message.encode(request))

  It does not wait for the helper.

  Errors that can be known at once are returned: `EBADF` for a closed socket, `EMSGSIZE` for a datagram
  beyond 16 MiB, `EPIPE` for a dead helper, and `EAGAIN` where the helper is so far behind that `:timeout` ms
  (5 000) were not enough to hand it over. A sendmsg(2) that fails later is told as `:netlink_error` or by
  the next `recv/2`.

  Options:

    * `:wait` - `true` to wait until sendmsg(2) is done, and get its error here.
    * `:timeout` - ms.
    * `:to` - `{port_id, groups}` of a peer in user space, for a socket with `user_peers: true`; it
      waits as with `:wait`.
  """
  @spec send(Socket.t(), Pin.payload(),
          wait: boolean(),
          timeout: timeout(),
          to: {non_neg_integer(), non_neg_integer()}
        ) :: :ok | error()
  def send(socket, datagram, opts \\ [])
  def send(%Socket{} = socket, datagram, []), do: Client.send(socket, datagram, false, 5_000)

  def send(socket, datagram, opts) do
    socket = Options.socket!(socket)
    Options.keyword!(opts)
    Options.known!(opts, [:wait, :timeout, :to])
    timeout = Options.timeout!(Keyword.get(opts, :timeout, 5_000))
    wait? = Options.boolean!(:wait, Keyword.get(opts, :wait, false))

    case Keyword.get(opts, :to) do
      nil -> Client.send(socket, datagram, wait?, timeout)
      peer -> send_to(socket, Options.peer!(peer), datagram, timeout)
    end
  end

  defp send_to(socket, peer, payload, timeout) do
    with {:ok, datagram} <- PinNumbers.resolve(payload, socket) do
      send_binary_to(socket, peer, IO.iodata_to_binary(datagram), timeout)
    end
  end

  defp send_binary_to(socket, {port_id, groups}, datagram, timeout) do
    if byte_size(datagram) + 64 > socket.link.max_frame do
      {:error, Error.new(:send, :emsgsize)}
    else
      command = {:send_to, socket.handle, port_id, groups, datagram}
      done(Client.request(socket, command, timeout))
    end
  end

  @doc """
  Receives one datagram from a passive socket, within `timeout` ms. Any process may call it; those who
  wait are served in the order they came, with whatever comes next. So of two that send requests and receive on
  one socket at once each may get the other's answer: let one process ask on a socket, or
  `NetlinkPort.Connection` for all.

  Returns `{:ok, datagram}`, or `{:ok, datagram, metadata}` where metadata was asked for.

      {:error, %NetlinkPort.Error{reason: :etimedout}} = NetlinkPort.recv(socket, 100)

  Errors: `ETIMEDOUT` when nothing came in time, `EINVAL` on an active socket, `EBADF` when it is closed,
  `ENOBUFS` with `:dropped` where the kernel has dropped datagrams since the last one, and those that
  would be `:netlink_error` on an active socket.
  """
  @spec recv(Socket.t(), timeout()) :: {:ok, binary()} | {:ok, binary(), metadata()} | error()
  def recv(socket, timeout \\ :infinity) do
    Client.recv(Options.socket!(socket), Options.timeout!(timeout))
  end

  ## Requests

  @doc """
  Sends one request and returns its whole answer: the messages the kernel replied with, in their order;
  none where an ack was all.

  `type` is that of the message, `payload` what follows `struct nlmsghdr`, as iodata, with pins where it names
  namespaces (`NetlinkPort.Pin`); the number of the request is chosen here. `NLM_F_REQUEST` and `NLM_F_ACK` are set.

      # RTM_GETLINK of interface 1, rtnetlink(7)
      {:ok, [link]} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)

  The calling process is to own the socket, passive or active, and it is best to have one for requests
  alone. What comes meanwhile and is not of the answer is the owner's, unread: on an active socket it
  stays in the mailbox, on a passive one it is sent there, as `{:netlink, socket, datagram}` or with its
  metadata. That holds for the event of the request itself, which the kernel sends to a member of
  the group with the request's own number; with `NLM_F_ECHO` (`:echo`) it sends the echo in its place, and that
  is the answer. A family of `:generic` may send events with the number of the request (openvswitch,
  l2tp): a socket that is in their groups needs `pktinfo: true` to tell them from answers. Answers that
  come after their request was given up are dropped. What ends the answers of which family is in
  docs/concepts.md. For many callers on one socket there is `NetlinkPort.Connection`.

  Options:

    * `:flags` - more flags, by name or as a number, see `t:NetlinkPort.Message.flag/0`. None by default.
    * `:timeout` - ms for the whole of it. Defaults to 5_000.
    * `:ack` - `false` asks for no ack: the answer ends with its first message, or with `NLMSG_DONE` where
      there are many. A command (RTM_NEWLINK, say) is answered by its ack alone, so that without one its
      success is never told and the call ends with `ETIMEDOUT`, although the command was carried out: for
      commands whose success need not be known there is `send/3`. Defaults to `true`; queries of audit,
      and fib_lookup, are asked without one in any case.
    * `:ext_ack` - `true` returns `{:ok, messages, ext_ack}`, with what the kernel said with its success,
      `t:NetlinkPort.ExtAck.t/0`: a warning in `:message` ("quantum of class 10001 is big"), or a `:cookie`;
      `nil` where it said nothing. Defaults to `false`; `[:netlink_port, :request, :warning]` of
      `NetlinkPort.Telemetry` tells it either way.

  Errors: the kernel's own have the stage `:request`, its errno, and all it said in `:ext_ack`;
  `EINVAL` for a payload that is too short for the family's header, which the kernel ignores without a word,
  and for a `type` below 16 (control messages, which the kernel skips) with `ack: false`; with an ack such a
  type is `{:ok, []}`. `ETIMEDOUT`; `ENOBUFS` where the kernel dropped datagrams meanwhile, for the answer may
  not be whole; `EBADMSG` where an answer cannot be read; and those of `send/3` and `recv/2`.
  """
  @spec request(Socket.t(), 0..0xFFFF, Pin.payload(),
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          ack: boolean(),
          ext_ack: boolean()
        ) :: {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | error()
  def request(socket, type, payload \\ "", opts \\ []) do
    opts = Options.request!(opts, [:flags, :timeout, :ack, :ext_ack])
    {socket, type} = {Options.socket!(socket), Options.type!(type)}
    ask(:request, type, socket, {:request, type, payload, opts}, opts)
  end

  @doc """
  Sends many requests in one datagram: `{type, flags, payload}` each, flags as with `request/4`.

  Returns a list with the outcome of each, in their order: `{:ok, messages}` or `{:error, error}`. Only
  the last is acked: the kernel reports errors of the others without being asked, so that a batch
  costs little more than the changes it makes.

  A batch of nf_tables begins with NFNL_MSG_BATCH_BEGIN (16) and ends with NFNL_MSG_BATCH_END (17), messages of
  its own, and is all or nothing. Where the kernel refuses a message, its outcome is the kernel's error, and
  that of every other is `ECANCELED`: nothing was made. `ERESTART` of the first says that the rules are of
  another generation than its NFTA_BATCH_GENID: read them and try again. The kernel throws away without a word,
  acknowledged or not, what has no end, what is behind an end, and what is not as long as struct nfgenmsg, so
  that those raise `ArgumentError`; make two calls for two batches.

  Without CAP_NET_ADMIN nfnetlink looks at the first message of a datagram alone: all of the batch is `EPERM`
  then. To know that, a batch of several messages of `:netfilter` that is none of nf_tables' own is followed by
  a datagram with an `NLMSG_NOOP`, which is always answered.

  Requests that are answered by dumps have no place here. A batch longer than the socket's `sndbuf` is
  `EMSGSIZE`, and where many fail the `rcvbuf` is to hold their errors: else it is `ENOBUFS`, and which
  failed is not known. `:timeout` and `:ext_ack` are as with `request/4`: with `ext_ack: true` each success is
  `{:ok, messages, ext_ack}`, which says something of those messages only that ask for an ack (`:ack` in
  their flags), and of the last.

      # RTM_NEWROUTE (24) of 10.0.0.0/24 and 10.0.1.0/24 to interface 1, both new (NLM_F_CREATE and NLM_F_EXCL)
      route = fn n ->
        attrs = [{1, <<10, 0, n, 0>>}, {4, NetlinkPort.Attr.u32(1)}]
        {24, [:create, :excl], [<<2, 24, 0, 0, 254, 4, 253, 1, 0::32>>, NetlinkPort.Attr.encode(attrs)]}
      end

      {:ok, [{:ok, []}, {:ok, []}]} = NetlinkPort.batch(socket, [route.(0), route.(1)])

  Errors of the whole: `EMSGSIZE` and `ENOBUFS` as above, `ETIMEDOUT`, and those of `send/3` and `recv/2`.
  """
  @spec batch(Socket.t(), [{0..0xFFFF, [Message.flag()] | 0..0xFFFF, Pin.payload()}],
          timeout: timeout(),
          ext_ack: boolean()
        ) ::
          {:ok, [{:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | error()]}
          | error()
  def batch(socket, requests, opts \\ []) do
    opts = Options.request!(opts, [:timeout, :ext_ack])
    requests = Options.batch!(requests)
    socket = Options.socket!(socket)
    ask(:batch, nil, socket, {:batch, requests}, opts)
  end

  @doc """
  Reads all of a dump: `NLM_F_DUMP` is set, and the messages up to `NLMSG_DONE` are returned.

  A dump that the kernel marks as interrupted by changes (`NLM_F_DUMP_INTR`), or in which datagrams were
  lost, is read to its end and tried again, five times in all; then it is `EINTR` or `ENOBUFS`, with
  what was read last in `:messages` of the error.

  `NLM_F_ACK` is set, too. A dump that the kernel begins is not acked; what it ignores, or carries out as a
  command, is acked at once, so that silence does not have to be waited for. A type that has no dump but is
  answered by one message returns that message.

      # RTM_GETLINK of all
      {:ok, links} = NetlinkPort.dump(socket, 18, <<0::128>>)

  Options, beside `:flags` and `:ext_ack` of `request/4`:

    * `:timeout` - ms the next datagram of the dump may take. Events that come meanwhile do not count.
      Defaults to 5_000.
    * `:total_timeout` - ms for the whole, all its tries and what an earlier dump has left included. Defaults
      to 20 times `:timeout`.
    * `:max_bytes` - how much is gathered at most, each datagram counted as its length and 300. Defaults to
      268_435_456 (256 MiB): some millions of routes. `stream/4` is for larger ones.

  The kernel runs one dump a socket: what an earlier one has left is read first, so that it never says
  `EBUSY`. Where that does not end within `:max_bytes` and `:total_timeout` the socket is closed, and its owner
  is sent `{:netlink_closed, socket, :endless_dump}`.

  Errors are those of `request/4`, and `EINTR` and `ENOBUFS` as above; `EINVAL` for a payload that is too
  short for the family's header; `EOPNOTSUPP` where the kernel has acked it and sent nothing, as it does
  with a command; `EMSGSIZE` beyond `:max_bytes`; `ETIMEDOUT` where nothing came in time, or beyond
  `:total_timeout`. What was read until then is in `:messages`.
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
    {socket, type} = {Options.socket!(socket), Options.type!(type)}
    ask(:dump, type, socket, {:dump, type, payload, opts}, opts)
  end

  defp ask(kind, type, socket, question, opts) do
    run = fn -> Request.run(socket, question, opts) end
    Exchange.face(Telemetry.request(kind, type, {:socket, socket}, run), opts)
  end

  @doc """
  The messages of a dump as a lazy `Stream`, of any size: it holds one datagram at a time. On a passive
  socket the kernel makes no more of the dump than its window and what is taken; on an active one the
  datagrams go to the mailbox as fast as they come.

  Each run of it asks anew, in the process that runs it, which is to own the socket. A failure raises
  `NetlinkPort.Error`; so does, at the end and after all messages, a dump that was interrupted by changes
  (`EINTR`) or not whole (`ENOBUFS`), since what was given out cannot be taken back. Where the rest is not
  wanted it is read to its end all the same, at once, up to `:max_bytes` and for `:total_timeout` at most; beyond
  that the socket is closed, and its owner is sent `{:netlink_closed, socket, :endless_dump}`. Another request on the socket ends a stream that is still
  being read, which then raises `EBUSY`: use a socket for each.

      socket
      |> NetlinkPort.stream(26, <<2, 0::88>>)
      |> Stream.filter(&NetlinkPort.Message.flag?(&1, :multi))
      |> Enum.count()

  Options as with `dump/4`, but for `:ext_ack`. `:total_timeout` and `:max_bytes` are for what is read and not
  given out: the stream itself is bounded by who takes it.
  """
  @spec stream(Socket.t(), 0..0xFFFF, Pin.payload(),
          flags: [Message.flag()] | 0..0xFFFF,
          timeout: timeout(),
          total_timeout: timeout(),
          max_bytes: pos_integer() | :infinity
        ) :: Enumerable.t()
  def stream(socket, type, payload \\ "", opts \\ []) do
    opts = Options.request!(opts, [:flags, :timeout, :total_timeout, :max_bytes])
    Request.stream(Options.socket!(socket), Options.type!(type), payload, opts)
  end

  ## Options

  @doc """
  Sets options, in their order; the first that fails ends it.

    * `:active` - as with `:inet.setopts/2`: `true` sends every datagram to the owner, `:once` the
      next one, a count the next so many, `false` none. A count, of -32 768 to 32 767, is added to what is
      left of the last one; a sum beyond 32 767 is `EINVAL`, and at 0 the socket becomes
      passive and its owner gets `:netlink_passive`. Given more than once it is one change, at the place of
      the last: nothing is delivered between them. docs/concepts.md has a table, "Differences from `:gen_udp`".
    * `:pktinfo` (`NETLINK_PKTINFO`), `:no_enobufs` (`NETLINK_NO_ENOBUFS`), `:listen_all_nsid`
      (`NETLINK_LISTEN_ALL_NSID`, needs CAP_NET_BROADCAST), `:ext_ack` (`NETLINK_EXT_ACK`), `:cap_ack`
      (`NETLINK_CAP_ACK`) and `:get_strict_chk` (`NETLINK_GET_STRICT_CHK`) - booleans, netlink(7).
    * `:broadcast_error` (`NETLINK_BROADCAST_ERROR`) - boolean: who in the kernel sends to a group of this
      socket is told when its queue is full. What that leads to depends on the family. Conntrack keeps the
      entry of a flow whose end could not be told, and tries again until it can; what else could not be
      told is told with the next event of that flow. Nothing is lost, and in exchange **a slow owner fills
      the host's conntrack table**: beyond `net.netfilter.nf_conntrack_max` new flows are dropped. The
      slowest of all sockets with the option counts. Xfrm: an acquire that could not be told fails at
      once, and does not wait for a state. Route, nf_tables, generic, audit and uevents do nothing about
      it. The overrun is told as without the option. `:broadcast_error` and `:queued_bytes` of `stats/1` show a
      slow owner with it, and `mix netlink_port.doctor` warns of one.
    * `:rcvbuf`, `:sndbuf` - bytes. Set beyond the limit of the system where the helper may
      (`SO_RCVBUFFORCE`: CAP_NET_ADMIN in the first user namespace), and silently no further than that limit
      otherwise: `net.core.rmem_max` is 212992 by default before Linux 6.18, 4194304 since. `getopts/2` tells the
      size in force, which the kernel counts double, socket(7); the doctor shows what a helper gets.
    * `:filter` - a classic BPF program (`SO_ATTACH_FILTER`), a list of at most 4,096
      `{code, jt, jf, k}`; `nil` detaches it. One beyond what `net.core.optmem_max` has room for is
      `ENOMEM`: before Linux 6.8, by default, one of more than some 2,540 instructions.

  For example:

      :ok = NetlinkPort.setopts(socket, rcvbuf: 1_000_000, active: :once)

  Errors: `ENOPROTOOPT` for what the kernel does not have, `EPERM` for what the helper may not
  (`:listen_all_nsid`), `EINVAL` for a value it does not take, `EBADF` for a closed socket, and those of
  `:thread`. An option that is not known raises `ArgumentError`.
  """
  @spec setopts(Socket.t(), [option()]) :: :ok | error()
  def setopts(socket, opts) do
    socket = Options.socket!(socket)

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
  Reads options: a list of names, a keyword list in their order.

      {:ok, [active: false, ext_ack: true]} = NetlinkPort.getopts(socket, [:active, :ext_ack])

  Errors: `ENOPROTOOPT` for what the kernel does not have, `EBADF` for a closed socket, and those of
  `:thread`.
  """
  @spec getopts(Socket.t(), [atom()]) :: {:ok, keyword()} | error()
  def getopts(socket, names) do
    socket = Options.socket!(socket)

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

  Errors: `EINVAL` for a group the protocol does not have, where the kernel sees that: it rounds the number of
  groups up to 32 for every protocol but `:route`, and for `:generic` to a multiple of the bits of a long, so
  that a group of `:xfrm` or `:netfilter` up to 32 that nothing is ever sent to is joined, and is `:ok`. `EPERM`
  for one the helper may not join, `EBADF` for
  a closed socket, and those of `:thread`.
  """
  @spec join(Socket.t(), pos_integer()) :: :ok | error()
  def join(socket, group), do: membership(socket, :add_membership, group)

  @doc """
  Leaves a multicast group (`NETLINK_DROP_MEMBERSHIP`); also one that it is not in.

      :ok = NetlinkPort.leave(socket, 1)

  Errors are those of `join/2`.
  """
  @spec leave(Socket.t(), pos_integer()) :: :ok | error()
  def leave(socket, group), do: membership(socket, :drop_membership, group)

  defp membership(socket, name, group) do
    %Socket{handle: handle} = Options.socket!(socket)
    done(Client.request(socket, {:set, handle, name, Options.group!(group)}))
  end

  @doc """
  The multicast groups a socket is in (`NETLINK_LIST_MEMBERSHIPS`), in ascending order.

      :ok = NetlinkPort.join(socket, 1)
      {:ok, [1]} = NetlinkPort.memberships(socket)

  Errors: `EBADF` for a closed socket, and those of `:thread`.
  """
  @spec memberships(Socket.t()) :: {:ok, [pos_integer()]} | error()
  def memberships(socket) do
    %Socket{handle: handle} = Options.socket!(socket)
    Client.request(socket, {:get, handle, :memberships})
  end

  @doc false
  # bind(2) with a mask of groups, for NetlinkPort.Native.
  @spec bind(Socket.t(), non_neg_integer(), non_neg_integer()) :: :ok | error()
  def bind(%Socket{handle: handle} = socket, port_id, groups) do
    done(Client.request(socket, {:bind, handle, port_id, groups}))
  end

  ## Ownership and information

  @doc """
  Makes another process the owner of a socket.

  Messages that are in the owner's mailbox already go to the new owner, before any that arrive later.

      task = Task.async(fn -> receive do: ({:netlink, _socket, datagram} -> datagram) end)
      :ok = NetlinkPort.controlling_process(socket, task.pid)

  Errors: `EPERM` for who does not own it, `ESRCH` for a new owner that has ended, `EBADF` for a closed socket,
  and those of `:thread`.
  """
  @spec controlling_process(Socket.t(), pid()) :: :ok | error()
  def controlling_process(socket, pid) do
    %Socket{handle: handle} = Options.socket!(socket)
    pid = Options.pid!(:owner, pid)

    if node(pid) == node() and not Process.alive?(pid) do
      {:error, Error.new(:info, :esrch)}
    else
      with {:ok, _value} <- ask_server(socket, {:pause, handle}) do
        if pid != self(), do: pass_on(socket, pid)
        done(ask_server(socket, {:give, handle, pid}))
      end
    end
  end

  # The server has stopped sending: what is in the mailbox now is all there is.
  defp pass_on(socket, pid) do
    receive do
      {:netlink, ^socket, _} = message -> pass_on(socket, pid, message)
      {:netlink, ^socket, _, _} = message -> pass_on(socket, pid, message)
      {:netlink_passive, ^socket} = message -> pass_on(socket, pid, message)
      {:netlink_overrun, ^socket, _} = message -> pass_on(socket, pid, message)
      {:netlink_error, ^socket, _} = message -> pass_on(socket, pid, message)
    after
      0 -> :ok
    end
  end

  defp pass_on(socket, pid, message) do
    Kernel.send(pid, message)
    pass_on(socket, pid)
  end

  @doc """
  What is known of a socket, or of a helper.

  Of a socket: `:handle`, `:protocol`, `:netns`, `:owner`, `:active`, `:port_id`; the namespace it is
  really in, as `:inode` and `:device` of its file and as `:cookie` (`SO_NETNS_COOKIE`, or `nil`);
  `:verified`, whether the kernel has confirmed that (it tells only those with CAP_NET_ADMIN there);
  `:drops`, datagrams the kernel has dropped and that were told; `:foreign`, datagrams from user
  space that were refused; `:kept`, items that wait in the VM; `:window`.

  Of a pin: `:handle`, `:netns`, `:owner`, `:descriptor`, `:inode`, `:device`, `:cookie` and `:pin` itself.

  Of a server: `:os_pid`, `:executable`, `:program` (its version), `:protocol` (the version of the
  wire), `:capabilities`, `:may_leave` (whether it can enter other namespaces), `:home_inode` and
  `:home_device`, `:sockets`, `:pins`, `:fds` (its open descriptors), `:max_fds` and `:lowest_fd`, the number from
  which on its descriptors lie: 1024 where its limit has room for that, so that a smaller number in a
  message, as of `IFLA_NET_NS_FD`, names none of them.

  What changes with every datagram is told by `stats/1`.

      {:ok, %{verified: true, drops: 0}} = NetlinkPort.info(socket)
      {:ok, %{may_leave: true}} = NetlinkPort.info(MyApp.Netlink)

  Errors: `EBADF` for a closed socket, or a pin that has ended, and those of `:thread`.
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
       |> Map.merge(Map.delete(known, :socket))
       |> Map.merge(%{device: device, inode: inode, handle: handle})
       |> Map.merge(Map.take(socket, [:protocol, :netns]))}
    end
  end

  def info(%Pin{handle: handle, link: link} = pin) do
    case Client.ask(link, {:pin_info, handle}, link.call_timeout) do
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
        Client.failed(reason)
    end
  end

  @typedoc """
  What has passed through a socket since it was opened, and what waits.

    * `:socket`, `:handle`, `:protocol`, `:netns`, `:owner`, `:active` - as in `info/1`, and `:inode`, that
      of its namespace.
    * `:received`, `:received_bytes` - datagrams that were handed on to the VM.
    * `:sent`, `:sent_bytes` - datagrams the kernel has taken; not those it has refused.
    * `:drops` - datagrams the kernel has dropped, as far as that was told.
    * `:foreign` - datagrams from user space that were refused.
    * `:queued_bytes`, `:queue_limit` - what waits in the kernel's receive queue, and what may before it
      drops (`SO_MEMINFO`); the kernel counts more than a datagram's length. Both 0 where it does not
      tell.
    * `:window`, `:window_left` - bytes the VM keeps at most of what the owner has not taken, and how many
      the helper may still hand on; a datagram counts its length and 300, and 0 left stops the reading.
    * `:kept` - items that wait in the VM for the owner.
    * `:broadcast_error` - that option, see `setopts/2`: with it what waits here can keep entries in the
      conntrack table.
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
  What a helper takes, and its sockets.

    * `:server`, `:name` - its server, and what that was registered as, or `nil`.
    * `:os_pid`, `:uptime` (ms), `:rss` (bytes), `:cpu` (ms of a processor's time), `:fds`, `:max_fds` -
      of its process; `:rss` and `:cpu` are `nil` where `/proc` does not tell.
    * `:restarts` - how often its supervisor has started that server again. Of servers without a name,
      one that is started counts as the successor of any that has ended under the same supervisor.
    * `:frames` - what the server has read from it, `:outgoing` - commands of the server that wait until it
      reads, `:malformed` - commands it could not read (0, or there is a bug).
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

  @typedoc "What is known of a pin: its fields, see `NetlinkPort.Pin`, its owner, and the pin itself."
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
  What has passed through a socket, or through all sockets of a server and what its helper takes:
  `t:socket_stats/0` or `t:server_stats/0`. Works from any node.

      {:ok, %{received: _, drops: 0}} = NetlinkPort.stats(socket)
      {:ok, %{restarts: 0, sockets: [_ | _]}} = NetlinkPort.stats(MyApp.Netlink)

  The helper counts what it receives and sends anyway. Of a server its sockets are asked in turn, so that
  their figures are of slightly different moments; one that is closed meanwhile is left out.

  Errors: `EBADF` of a socket that is closed; `ESRCH`, `EPIPE` or `ETIMEDOUT` of `:thread` without a server
  or a helper that answers.
  """
  @spec stats(Socket.t()) :: {:ok, socket_stats()} | error()
  @spec stats(GenServer.server()) :: {:ok, server_stats()} | error()
  def stats(%Socket{handle: handle} = socket) do
    with {:ok, known} <- ask_server(socket, {:vm_info, handle}), do: Stats.of(socket, known)
  end

  def stats(server) do
    case Client.call(server, :stats, 15_000) do
      {:ok, told} -> {:ok, %{told | sockets: Stats.all(told.sockets)}}
      {:error, reason} -> Client.failed(reason)
    end
  end

  ## Captures

  @doc """
  Writes every datagram that passes through a server, both ways and of all its sockets, into a file that
  Wireshark and `tshark` read: pcapng, with the link type `LINKTYPE_NETLINK` (253,
  <https://www.tcpdump.org/linktypes/LINKTYPE_NETLINK.html>).

      {:ok, capture} = NetlinkPort.capture(MyApp.Netlink, "trace.pcapng")
      # …
      {:ok, %{datagrams: _, dropped: 0}} = NetlinkPort.stop_capture(capture)

  A socket is an interface, from its first datagram on, named as `inspect/1` shows it: `route in blue,
  handle 7`. Stamps are in ns, of the wall clock at the start and the monotonic clock since; a
  datagram is stamped when `send/3` is called, or when the server gets it. Both directions are told
  (`epb_flags`). A datagram beyond 262 128 bytes is cut, since readers refuse longer ones. One
  that `send/3` then refuses with `EAGAIN` or `EPIPE` is in the file all the same; one that the helper has
  not let through, or that the kernel has dropped, is not. Those of different senders may stand a few
  microseconds out of the order of their stamps.

  Option:

    * `:max_bytes` - the bound of the file, 67 108 864 unless told otherwise, at least 4096. A
      datagram that would go beyond it ends the capture.

  It disturbs no socket: nobody waits for the disk. Up to 8 MiB are kept for a slow one; what comes
  beyond that is missing, is counted, and the next datagram has a comment that says so (`frame.comment`
  in Wireshark). While there is none it costs some nanoseconds a datagram.

  It ends with `stop_capture/1`, with the process that called this, and otherwise tells that process why:
  `{:netlink_capture_end, capture, reason, counts}`, where `reason` is `:max_bytes`, `:server_down` or an error
  of the file such as `ENOSPC`, and `counts` is `t:capture_counts/0`. However it ends, the file is whole;
  when the VM is killed, up to what was written by then, a moment ago.

  A file that is there is overwritten; a new one only its owner may read, since datagrams can hold
  keys (xfrm). The path is one of the server's node, and relative to its directory.

  Errors: of the file, with the stage `:capture`: `EACCES`, `ENOENT`, `EISDIR`, `ENOSPC` and so on, `EINVAL` for what
  is not a regular file; `EBUSY` where the server has a capture already.
  """
  @spec capture(GenServer.server(), Path.t(), max_bytes: pos_integer()) :: {:ok, pid()} | error()
  def capture(server, path, opts \\ []) do
    options = Options.capture!(path, opts)
    options = Map.merge(options, %{owner: self(), deadline: Deadline.new(15_000)})

    case Client.call(server, {:capture, options}, 15_000) do
      {:error, {stage, errno, _detail}} -> {:error, Error.new(stage, errno)}
      answer -> answer
    end
  end

  @doc """
  Ends a capture. When it returns, all that had passed when it was called is in the file, and that is
  closed. No message is sent.

      {:ok, capture} = NetlinkPort.capture(MyApp.Netlink, "trace.pcapng")
      {:ok, %{bytes: _, datagrams: 0, dropped: 0}} = NetlinkPort.stop_capture(capture)

  Errors: `ESRCH` when it has ended already, and those of the file.
  """
  @spec stop_capture(pid()) :: {:ok, capture_counts()} | error()
  def stop_capture(capture) do
    case Client.call(Options.pid!(:capture, capture), :stop, 15_000) do
      {:ok, counts} -> {:ok, counts}
      {:error, %Error{} = error} -> {:error, error}
      {:error, {_stage, 110, _detail}} -> {:error, Error.new(:capture, :etimedout)}
      {:error, _ended} -> {:error, Error.new(:capture, :esrch)}
    end
  end

  defp ask_server(%Socket{link: link} = socket, message) do
    Client.explain(Client.ask(link, message, link.call_timeout), socket)
  end

  defp done({:ok, _value}), do: :ok
  defp done({:error, error}), do: {:error, error}
end
