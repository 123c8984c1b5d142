defmodule NetlinkPort.Options do
  @moduledoc false
  # The options of each function, checked in the calling process, with their defaults. A wrong one raises ArgumentError
  # before anything is sent. NetlinkPort.Arguments has the checks of single values.

  alias NetlinkPort.{Arguments, Error, FileName, Message, Redaction}

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
  # So that a capture has room for at least some blocks.
  @least_capture 4096
  # BPF_MAXINSNS, include/uapi/linux/bpf_common.h
  @max_instructions 4096
  # Grants are cumulative, and must never exceed 64 bits.
  @max_window 0x100_0000_0000
  @default_window 1_048_576
  @max_queue 1_000_000_000
  @max_uint32 0xFFFFFFFF
  # The most bytes that a dump may have, and how many times its `timeout` its `total_timeout` is, by default.
  @default_max_bytes 268_435_456
  @total_timeout_factor 20

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
    Arguments.keyword!(opts)
    Arguments.known!(opts, @open_only ++ names())
    netns = Keyword.get(opts, :netns, :host)
    active = active!(Keyword.get(opts, :active, true))
    close_on = close_on!(Keyword.get(opts, :close_on))

    with {:ok, netns} <- from_here(netns),
         {:ok, target} <- target(netns) do
      {:ok,
       %{
         kind: :socket,
         protocol: protocol,
         number: Arguments.protocol!(protocol),
         netns: netns,
         target: watched(target, close_on),
         active: active,
         closed_message: closed_message!(Keyword.get(opts, :closed_message, true), active),
         bind: bind!(Keyword.get(opts, :bind, 0)),
         user_peers: Arguments.boolean!(:user_peers, Keyword.get(opts, :user_peers, false)),
         owner: Arguments.pid!(:owner, Keyword.get(opts, :owner, self())),
         window: window!(Keyword.get(opts, :window, @default_window)),
         max_queue: max_queue!(Keyword.get(opts, :max_queue, :infinity)),
         timeout: Arguments.timeout!(Keyword.get(opts, :timeout, 15_000)),
         options: socket_options(opts) ++ memberships(Keyword.get(opts, :groups, []))
       }}
    end
  end

  @doc "The options of `pin/3`, checked, with their defaults."
  @spec pin(NetlinkPort.netns(), keyword()) :: {:ok, pin()} | {:error, Error.t()}
  def pin(netns, opts) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:owner, :timeout])
    owner = Arguments.pid!(:owner, Keyword.get(opts, :owner, self()))
    timeout = Arguments.timeout!(Keyword.get(opts, :timeout, 15_000))

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

  defp memberships(groups),
    do: for(group <- Arguments.groups!(groups), do: {:add_membership, group})

  @doc """
  Makes the path of a namespace absolute, since the helper's working directory is not the caller's. `..` is not
  resolved: behind a symbolic link it leads elsewhere than the text suggests.
  """
  @spec from_here(NetlinkPort.netns()) :: {:ok, NetlinkPort.netns()} | {:error, Error.t()}
  def from_here({:path, <<first, _rest::binary>> = path}) when first != ?/ do
    case FileName.cwd() do
      {:ok, folder} -> {:ok, {:path, folder <> "/" <> path}}
      {:error, reason} -> {:error, homeless(path, reason)}
    end
  end

  def from_here({:path, path}) when is_list(path) do
    # If it is none, `target/1` raises.
    with {:ok, path} <- FileName.chardata(path),
         do: from_here({:path, path}),
         else: (_ -> {:ok, {:path, path}})
  end

  def from_here(netns), do: {:ok, netns}

  defp homeless(path, reason) do
    Error.new(:open, reason,
      subject: Redaction.plain(path),
      hint:
        "the path is relative, and the VM's working directory cannot be told, as when it was deleted; " <>
          "name an absolute path"
    )
  end

  @doc "The target of a namespace, as the helper takes it."
  @spec target(NetlinkPort.netns()) ::
          {:ok, NetlinkPort.Helper.Protocol.target()} | {:error, Error.t()}
  def target(:host), do: {:ok, :host}

  def target({:path, path}) when is_binary(path) do
    cond do
      String.contains?(path, <<0>>) -> {:error, unterminated(path)}
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

  defp unterminated(path) do
    hint = "a path ends at its first NUL byte, so that no file has such a name"
    Error.new(:open, :einval, subject: Redaction.plain(path), hint: hint)
  end

  # The helper's own namespace lasts as long as the helper, so it need not be watched.
  defp watched(target, close_on) when close_on == nil or target == :host, do: target
  defp watched(target, :namespace_gone), do: {:watched, target}

  @doc "The options of `setopts/2`, checked, in their order, as the helper or the server takes them."
  @spec set(keyword()) :: [{atom(), term()}]
  def set(opts) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, names())

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
    Arguments.known!(Enum.map(names, &{&1, nil}), names())
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

  @doc "The options of a request as a map, with their defaults. `known` are those that this kind of request has."
  @spec request!(term(), [atom()]) :: map()
  def request!(opts, known) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, known)
    timeout = Arguments.timeout!(Keyword.get(opts, :timeout, 5_000))

    # Without :total_timeout among the options, the timeout is for the whole already.
    total =
      if :total_timeout in known,
        do: Keyword.get(opts, :total_timeout, total(timeout)),
        else: :infinity

    %{
      flags: Message.flags(Keyword.get(opts, :flags, 0)),
      ack: Arguments.boolean!(:ack, Keyword.get(opts, :ack, true)),
      ext_ack: Arguments.boolean!(:ext_ack, Keyword.get(opts, :ext_ack, false)),
      timeout: timeout,
      total_timeout: Arguments.timeout!(total),
      max_bytes: max_bytes!(Keyword.get(opts, :max_bytes, @default_max_bytes))
    }
  end

  defp total(:infinity), do: :infinity
  defp total(timeout), do: @total_timeout_factor * timeout

  defp max_bytes!(:infinity), do: :infinity
  defp max_bytes!(bytes) when is_integer(bytes) and bytes > 0, do: bytes

  defp max_bytes!(other) do
    raise ArgumentError,
          "expected max_bytes: a positive number of bytes or :infinity, got: #{inspect(other)}"
  end

  @doc "The path and the options of `NetlinkPort.capture/3`, checked, with their defaults."
  @spec capture!(term(), term()) :: %{path: Path.t(), max_bytes: pos_integer()}
  def capture!(path, opts) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:max_bytes])
    max_bytes = Keyword.get(opts, :max_bytes, 67_108_864)

    path = Arguments.path!("a file", path)

    unless is_integer(max_bytes) and max_bytes >= @least_capture do
      raise ArgumentError,
            "expected max_bytes: a number of bytes, at least #{@least_capture}, " <>
              "got: #{inspect(max_bytes)}"
    end

    %{path: path, max_bytes: max_bytes}
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

  defp closed_message!(other, _active), do: Arguments.boolean!(:closed_message, other)

  defp bind!(false), do: false
  defp bind!(port_id), do: Arguments.uint32!(:bind, port_id)

  defp value!(name, value) when name in @flags, do: Arguments.boolean!(name, value)
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
