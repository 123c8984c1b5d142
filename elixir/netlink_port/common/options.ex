defmodule NetlinkPort.Options do
  @moduledoc false
  # Checks arguments in the calling process. A wrong one raises ArgumentError before anything is sent.

  alias NetlinkPort.{Error, FileName, Message, Pin, Redaction, Socket}

  # include/uapi/linux/netlink.h
  @protocols %{
    route: 0,
    unused: 1,
    usersock: 2,
    firewall: 3,
    sock_diag: 4,
    nflog: 5,
    xfrm: 6,
    selinux: 7,
    iscsi: 8,
    audit: 9,
    fib_lookup: 10,
    connector: 11,
    netfilter: 12,
    ip6_fw: 13,
    dnrtmsg: 14,
    kobject_uevent: 15,
    generic: 16,
    scsitransport: 18,
    ecryptfs: 19,
    rdma: 20,
    crypto: 21,
    smc: 22
  }

  @flags [
    :pktinfo,
    :broadcast_error,
    :no_enobufs,
    :listen_all_nsid,
    :ext_ack,
    :cap_ack,
    :get_strict_chk
  ]
  @sizes [:rcvbuf, :sndbuf]
  @server_side [:active]
  @settable @flags ++ @sizes ++ [:filter]
  @open_only [
    :netns,
    :groups,
    :bind,
    :owner,
    :window,
    :max_queue,
    :user_peers,
    :timeout,
    :close_on,
    :closed_message
  ]
  @max_path 4096
  # The helper refuses a command of more than 16 384 terms. A group takes three.
  @max_groups 4096
  # So that a capture has room for at least some blocks.
  @least_capture 4096
  # BPF_MAXINSNS, include/uapi/linux/bpf_common.h
  @max_instructions 4096
  # Grants are cumulative, and must never exceed 64 bits.
  @max_window 0x100_0000_0000
  # The longest timeout of `receive`, less the time that callers add to it.
  @max_timeout 0xFFFFFFFF - 10_000
  @default_window 1_048_576
  @max_queue 1_000_000_000
  @keepable [:net_broadcast, :audit_read, :audit_control, :dac_read_search]
  @max_uint32 0xFFFFFFFF
  # The most bytes that a dump gathers, and how many times its `timeout` its default `total_timeout` is.
  @max_gathered 268_435_456
  @total 20

  @type pin :: %{
          kind: :pin,
          netns: NetlinkPort.netns(),
          target: NetlinkPort.Helper.Protocol.target(),
          owner: pid(),
          timeout: timeout()
        }
  @type open :: %{
          kind: :socket,
          protocol: NetlinkPort.protocol(),
          number: integer(),
          netns: NetlinkPort.netns(),
          target: NetlinkPort.Helper.Protocol.target(),
          active: NetlinkPort.active(),
          bind: non_neg_integer() | false,
          user_peers: boolean(),
          owner: pid(),
          window: pos_integer(),
          max_queue: pos_integer() | :infinity,
          timeout: timeout(),
          closed_message: boolean(),
          options: [{atom(), term()}]
        }

  @doc "The options that `setopts/2` and `getopts/2` know."
  @spec names() :: [atom()]
  def names, do: @server_side ++ @settable

  @doc "The options of `open/3`, checked, with their defaults."
  @spec open(NetlinkPort.protocol(), keyword()) :: {:ok, open()} | {:error, Error.t()}
  def open(protocol, opts) do
    keyword!(opts)
    known!(opts, @open_only ++ names())
    netns = Keyword.get(opts, :netns, :host)
    active = active!(Keyword.get(opts, :active, true))
    close_on = close_on!(Keyword.get(opts, :close_on))

    with {:ok, netns} <- from_here(netns),
         {:ok, target} <- target(netns) do
      {:ok,
       %{
         kind: :socket,
         protocol: protocol,
         number: protocol!(protocol),
         netns: netns,
         target: watched(target, close_on),
         active: active,
         closed_message: closed_message!(Keyword.get(opts, :closed_message, true), active),
         bind: bind!(Keyword.get(opts, :bind, 0)),
         user_peers: boolean!(:user_peers, Keyword.get(opts, :user_peers, false)),
         owner: pid!(:owner, Keyword.get(opts, :owner, self())),
         window: window!(Keyword.get(opts, :window, @default_window)),
         max_queue: max_queue!(Keyword.get(opts, :max_queue, :infinity)),
         timeout: timeout!(Keyword.get(opts, :timeout, 15_000)),
         options: socket_options(opts) ++ memberships(Keyword.get(opts, :groups, []))
       }}
    end
  end

  @doc "The options of `pin/3`, checked, with their defaults."
  @spec pin(NetlinkPort.netns(), keyword()) :: {:ok, pin()} | {:error, Error.t()}
  def pin(netns, opts) do
    keyword!(opts)
    known!(opts, [:owner, :timeout])
    owner = pid!(:owner, Keyword.get(opts, :owner, self()))
    timeout = timeout!(Keyword.get(opts, :timeout, 15_000))

    with {:ok, netns} <- from_here(netns),
         {:ok, target} <- target(netns) do
      {:ok, %{kind: :pin, netns: netns, target: target, owner: owner, timeout: timeout}}
    end
  end

  # `ext_ack` defaults to true. Of an option given twice the first counts, so that no list makes a command too long
  # for the helper.
  defp socket_options(opts) do
    opts = opts |> Keyword.put_new(:ext_ack, true) |> Enum.uniq_by(&elem(&1, 0))
    for {name, value} <- opts, name in @settable, do: {name, value!(name, value)}
  end

  defp memberships(groups), do: for(group <- groups!(groups), do: {:add_membership, group})

  @doc "The number of a protocol."
  @spec protocol!(NetlinkPort.protocol()) :: integer()
  def protocol!(number) when is_integer(number) and number in -0x80000000..0x7FFFFFFF, do: number
  # Stands for every number beyond an int: the kernel refuses it as it does any unknown protocol.
  def protocol!(number) when is_integer(number), do: -1

  def protocol!(name) when is_map_key(@protocols, name), do: Map.fetch!(@protocols, name)

  def protocol!(other) do
    raise ArgumentError,
          "expected a netlink protocol, an integer or one of " <>
            "#{inspect(Map.keys(@protocols))}, got: #{inspect(other)}"
  end

  @doc """
  Makes the path of a namespace absolute, since the helper's working directory is not the caller's. `..` is not
  resolved: behind a symbolic link it leads elsewhere than the text suggests.
  """
  @spec from_here(NetlinkPort.netns()) :: {:ok, NetlinkPort.netns()} | {:error, Error.t()}
  def from_here({:path, <<first, _rest::binary>> = path}) when first != ?/ do
    case File.cwd() do
      {:ok, folder} -> {:ok, {:path, folder <> "/" <> path}}
      {:error, reason} -> {:error, Error.new(:open, reason, subject: Redaction.plain(path))}
    end
  end

  def from_here({:path, path}) when is_list(path) do
    # If it is none, `target/1` raises.
    with {:ok, path} <- FileName.chardata(path),
         do: from_here({:path, path}),
         else: (_ -> {:ok, {:path, path}})
  end

  def from_here(netns), do: {:ok, netns}

  @doc "The target of a namespace, as the helper takes it."
  @spec target(NetlinkPort.netns()) ::
          {:ok, NetlinkPort.Helper.Protocol.target()} | {:error, Error.t()}
  def target(:host), do: {:ok, :host}

  def target({:path, path}) when is_binary(path) do
    cond do
      String.contains?(path, <<0>>) -> {:error, Error.new(:open, :einval, subject: inspect(path))}
      byte_size(path) >= @max_path -> {:error, Error.new(:open, :enametoolong)}
      true -> {:ok, {:path, path}}
    end
  end

  def target({:name, name}) when is_binary(name) do
    if name in ["", ".", ".."] or String.contains?(name, ["/", <<0>>]) do
      raise ArgumentError,
            "expected the name of a namespace, a single file name in /run/netns, " <>
              "got: #{inspect(name)}"
    end

    target({:path, "/run/netns/" <> name})
  end

  def target({:pid, pid}) when is_integer(pid) and pid in 1..0x7FFFFFFF, do: {:ok, {:pid, pid}}

  def target(other) do
    raise ArgumentError,
          "expected netns: to be :host, {:path, path}, {:name, name} or {:pid, os_pid}, " <>
            "got: #{inspect(other)}"
  end

  # The helper's own namespace lasts as long as the helper, so it need not be watched.
  defp watched(target, close_on) when close_on == nil or target == :host, do: target
  defp watched(target, :namespace_gone), do: {:watched, target}

  @doc "The options of `setopts/2`, checked, in their order, as the helper or the server takes them."
  @spec set(keyword()) :: [{atom(), term()}]
  def set(opts) do
    keyword!(opts)
    known!(opts, names())

    for {name, value} <- opts do
      case name do
        :active -> {:active, active_change!(value)}
        _other -> {name, value!(name, value)}
      end
    end
  end

  @doc "The names of `getopts/2`, checked."
  @spec get([atom()]) :: [atom()]
  def get(names) when is_list(names) and length(names) >= 0 do
    known!(Enum.map(names, &{&1, nil}), names())
    names
  end

  def get(other) do
    raise ArgumentError, "expected a list of option names, got: #{inspect(other)}"
  end

  @doc "The value of an option as getopts/2 returns it, from the helper's value."
  @spec read(atom(), term()) :: term()
  def read(name, value) when name in @flags, do: value != 0

  def read(:filter, program) when is_binary(program) do
    for <<code::16, jt::8, jf::8, k::32 <- program>>, do: {code, jt, jf, k}
  end

  def read(_name, value), do: value

  @doc "A list of group numbers."
  @spec groups!(term()) :: [pos_integer()]
  def groups!(groups) when is_list(groups) and length(groups) <= @max_groups do
    Enum.map(groups, &group!/1)
  end

  def groups!(other) do
    raise ArgumentError,
          "expected groups: a list of at most #{@max_groups} group numbers, got: #{inspect(other)}"
  end

  @doc "A multicast group's number."
  @spec group!(term()) :: pos_integer()
  def group!(group) when is_integer(group) and group in 1..@max_uint32, do: group

  def group!(other) do
    raise ArgumentError,
          "expected the number of a multicast group, from 1, got: #{inspect(other)}"
  end

  @doc "An unsigned integer of 32 bits."
  @spec uint32!(atom(), term()) :: non_neg_integer()
  def uint32!(_name, value) when is_integer(value) and value in 0..@max_uint32, do: value

  def uint32!(name, other) do
    raise ArgumentError, "expected #{name} to be an integer of 32 bits, got: #{inspect(other)}"
  end

  @doc "The address of a peer in user space."
  @spec peer!(term()) :: {non_neg_integer(), non_neg_integer()}
  def peer!({port_id, groups}), do: {uint32!(:port_id, port_id), uint32!(:groups, groups)}

  def peer!(other) do
    raise ArgumentError, "expected to: {port_id, groups}, got: #{inspect(other)}"
  end

  @doc "A timeout in milliseconds. A timeout longer than a timer takes, 49 days, is cut to that."
  @spec timeout!(term()) :: timeout()
  def timeout!(:infinity), do: :infinity
  def timeout!(timeout) when is_integer(timeout) and timeout >= 0, do: min(timeout, @max_timeout)

  def timeout!(other) do
    raise ArgumentError, "expected a timeout in ms or :infinity, got: #{inspect(other)}"
  end

  @doc "The options of a request as a map, with their defaults. `known` are those that this kind of request has."
  @spec request!(term(), [atom()]) :: map()
  def request!(opts, known) do
    keyword!(opts)
    known!(opts, known)
    timeout = timeout!(Keyword.get(opts, :timeout, 5_000))

    # Without :total_timeout among the options, the timeout is for the whole already.
    total =
      if :total_timeout in known,
        do: Keyword.get(opts, :total_timeout, total(timeout)),
        else: :infinity

    %{
      flags: Message.flags(Keyword.get(opts, :flags, 0)),
      ack: boolean!(:ack, Keyword.get(opts, :ack, true)),
      ext_ack: boolean!(:ext_ack, Keyword.get(opts, :ext_ack, false)),
      timeout: timeout,
      total_timeout: timeout!(total),
      max_bytes: max_bytes!(Keyword.get(opts, :max_bytes, @max_gathered))
    }
  end

  defp total(:infinity), do: :infinity
  defp total(timeout), do: min(@total * timeout, @max_timeout)

  defp max_bytes!(:infinity), do: :infinity
  defp max_bytes!(bytes) when is_integer(bytes) and bytes > 0, do: bytes

  defp max_bytes!(other) do
    raise ArgumentError,
          "expected max_bytes: a positive number of bytes or :infinity, got: #{inspect(other)}"
  end

  @doc "The requests of a batch."
  @spec batch!(term()) :: [{0..0xFFFF, 0..0xFFFF, Pin.payload()}]
  def batch!(requests) do
    if not is_list(requests) or List.improper?(requests) do
      raise ArgumentError,
            "expected a list of {type, flags, payload}, got: #{inspect(requests)}"
    end

    Enum.map(requests, &batched!/1)
  end

  @doc "One request of a batch."
  @spec batched!(term()) :: {0..0xFFFF, 0..0xFFFF, Pin.payload()}
  def batched!({type, flags, payload}), do: {type!(type), Message.flags(flags), payload}

  def batched!(other) do
    raise ArgumentError, "expected {type, flags, payload}, got: #{inspect(other)}"
  end

  @doc "The type of a message."
  @spec type!(term()) :: 0..0xFFFF
  def type!(type) when is_integer(type) and type in 0..0xFFFF, do: type

  def type!(other) do
    raise ArgumentError, "expected the type of a message, 0 to 65535, got: #{inspect(other)}"
  end

  @doc "The path of an executable, or nil for the default one."
  @spec executable!(term()) :: binary() | nil
  def executable!(nil), do: nil

  def executable!(path) do
    with :error <- FileName.chardata(path),
         do: raise(ArgumentError, "expected executable: a path, got: #{inspect(path)}"),
         else: ({:ok, path} -> path)
  end

  @doc "How long a helper may spin before it sleeps, in microseconds."
  @spec spin!(term()) :: non_neg_integer()
  def spin!(microseconds) when is_integer(microseconds) and microseconds in 0..1_000_000,
    do: microseconds

  def spin!(other) do
    raise ArgumentError, "expected spin: microseconds, 0 to 1000000, got: #{inspect(other)}"
  end

  @doc "The capabilities of `keep:`, beyond those that a helper always keeps."
  @spec keep!(term()) :: [atom()]
  def keep!(list) do
    if is_list(list) and not List.improper?(list) and Enum.all?(list, &(&1 in @keepable)) do
      list
    else
      raise ArgumentError,
            "expected keep: a list of #{inspect(@keepable)}, got: #{inspect(list)}"
    end
  end

  @doc "Raises for an unknown option."
  @spec known!(keyword(), [atom()]) :: :ok
  def known!(opts, known) do
    case Enum.find(opts, fn {name, _value} -> name not in known end) do
      nil ->
        :ok

      {name, _value} ->
        raise ArgumentError, "unknown option #{inspect(name)}, expected one of #{inspect(known)}"
    end
  end

  @doc "A boolean option."
  @spec boolean!(atom(), term()) :: boolean()
  def boolean!(_name, value) when is_boolean(value), do: value

  def boolean!(name, other) do
    raise ArgumentError, "expected #{name}: true or false, got: #{inspect(other)}"
  end

  @doc "A process."
  @spec pid!(atom(), term()) :: pid()
  def pid!(_name, pid) when is_pid(pid), do: pid

  def pid!(name, other),
    do: raise(ArgumentError, "expected #{name} to be a pid, got: #{inspect(other)}")

  @doc "A socket."
  @spec socket!(term()) :: Socket.t()
  def socket!(%Socket{} = socket), do: socket

  def socket!(other) do
    raise ArgumentError, "expected a NetlinkPort.Socket, got: #{inspect(other)}"
  end

  @doc "A pin."
  @spec pin!(term()) :: Pin.t()
  def pin!(%Pin{} = pin), do: pin

  def pin!(other) do
    raise ArgumentError, "expected a NetlinkPort.Pin, got: #{inspect(other)}"
  end

  @doc "A pid or a name by which a GenServer can be called."
  @spec server!(term()) :: GenServer.server()
  def server!(server) when is_pid(server) or is_atom(server), do: server
  def server!({:global, _name} = server), do: server

  def server!({:via, module, _name} = server) when is_atom(module) do
    if Code.ensure_loaded?(module) and function_exported?(module, :whereis_name, 1) do
      server
    else
      raise ArgumentError, "expected a registry that is there, got: #{inspect(server)}"
    end
  end

  def server!({name, node} = server) when is_atom(name) and is_atom(node), do: server

  def server!(other) do
    raise ArgumentError, "expected a server: a pid or a name, got: #{inspect(other)}"
  end

  @doc "The path and the options of `NetlinkPort.capture/3`, checked, with their defaults."
  @spec capture!(term(), term()) :: %{path: Path.t(), max_bytes: pos_integer()}
  def capture!(path, opts) do
    keyword!(opts)
    known!(opts, [:max_bytes])
    max_bytes = Keyword.get(opts, :max_bytes, 67_108_864)

    bytes = with :error <- FileName.chardata(path), do: "", else: ({:ok, bytes} -> bytes)

    if bytes == "" or String.contains?(bytes, <<0>>) do
      raise ArgumentError, "expected the path of a file, got: #{inspect(path)}"
    end

    unless is_integer(max_bytes) and max_bytes >= @least_capture do
      raise ArgumentError,
            "expected max_bytes: a number of bytes, at least #{@least_capture}, " <>
              "got: #{inspect(max_bytes)}"
    end

    %{path: bytes, max_bytes: max_bytes}
  end

  @doc "Raises unless the term is a keyword list."
  @spec keyword!(term()) :: :ok
  def keyword!(opts) do
    if Keyword.keyword?(opts) do
      :ok
    else
      raise ArgumentError, "expected a keyword list, got: #{inspect(opts)}"
    end
  end

  defp active!(active) when active in [true, false, :once], do: active
  defp active!(count) when is_integer(count) and count in 1..32_767, do: count

  defp active!(other) do
    raise ArgumentError,
          "expected active: to be true, false, :once or 1..32767, got: #{inspect(other)}"
  end

  # As in inet:setopts/2 a count is added to the present count, and may be negative.
  defp active_change!(count) when is_integer(count) and count in -32_768..32_767, do: count
  defp active_change!(active) when active in [true, false, :once], do: active

  defp active_change!(other) do
    raise ArgumentError,
          "expected active: to be true, false, :once or a count of -32768..32767, which is added to " <>
            "what is left of the last one, got: #{inspect(other)}"
  end

  defp window!(bytes) when is_integer(bytes) and bytes in 1..@max_window, do: bytes

  defp window!(other) do
    raise ArgumentError,
          "expected window: a positive number of bytes up to #{@max_window}, got: #{inspect(other)}"
  end

  defp max_queue!(:infinity), do: :infinity
  defp max_queue!(count) when is_integer(count) and count in 1..@max_queue, do: count

  defp max_queue!(other) do
    raise ArgumentError,
          "expected max_queue: a number of messages up to #{@max_queue} or :infinity, " <>
            "got: #{inspect(other)}"
  end

  defp close_on!(close_on) when close_on in [nil, :namespace_gone], do: close_on

  defp close_on!(other) do
    raise ArgumentError,
          "expected close_on: to be :namespace_gone or nil, got: #{inspect(other)}"
  end

  defp closed_message!(true, _active), do: true
  defp closed_message!(false, false), do: false

  defp closed_message!(false, active) do
    raise ArgumentError,
          "closed_message: false is for passive sockets, and this is active: #{inspect(active)}; " <>
            "nothing else tells the owner of an active socket that it is closed"
  end

  defp closed_message!(other, _active), do: boolean!(:closed_message, other)

  defp bind!(false), do: false
  defp bind!(port_id), do: uint32!(:bind, port_id)

  defp value!(name, value) when name in @flags, do: boolean!(name, value)
  defp value!(name, value) when name in @sizes, do: size!(name, value)
  defp value!(:filter, nil), do: <<>>

  defp value!(:filter, program) when is_list(program) and length(program) <= @max_instructions do
    for instruction <- program, into: <<>> do
      case instruction do
        {code, jt, jf, k}
        when code in 0..0xFFFF and jt in 0..0xFF and jf in 0..0xFF and k in 0..@max_uint32 ->
          <<code::16, jt::8, jf::8, k::32>>

        other ->
          raise ArgumentError,
                "expected filter: to hold classic BPF instructions {code, jt, jf, k}, " <>
                  "got: #{inspect(other)}"
      end
    end
  end

  defp value!(:filter, other) do
    raise ArgumentError,
          "expected filter: a list of at most #{@max_instructions} instructions or nil, got: #{inspect(other)}"
  end

  # setsockopt(2) takes an int.
  defp size!(_name, value) when is_integer(value) and value in 0..0x7FFFFFFF, do: value

  defp size!(name, other) do
    raise ArgumentError, "expected #{name}: a number of bytes, got: #{inspect(other)}"
  end
end
