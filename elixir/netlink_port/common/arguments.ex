defmodule NetlinkPort.Arguments do
  @moduledoc false
  # Checks of single arguments, in the calling process. A wrong one raises ArgumentError before anything is sent.
  # NetlinkPort.Options checks options.

  alias NetlinkPort.{FileName, Message, Pin, Socket}

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

  # The helper refuses a command of more than 16 384 terms. A group takes three.
  @max_groups 4096
  # The longest timeout of `receive`, less the time that callers add to it.
  @max_timeout 0xFFFFFFFF - 10_000
  @keepable [:net_broadcast, :audit_read, :audit_control, :audit_write, :dac_read_search]
  @max_uint32 0xFFFFFFFF

  @doc "Raises unless the term is a keyword list."
  @spec keyword!(term()) :: :ok
  def keyword!(opts) do
    if Keyword.keyword?(opts) do
      :ok
    else
      raise ArgumentError, "expected a keyword list, got: #{inspect(opts)}#{alone(opts)}"
    end
  end

  # In a proplist of Erlang an atom may stand for {atom, true}.
  defp alone(opts) when is_list(opts) do
    with false <- List.improper?(opts), name when name != nil <- Enum.find(opts, &is_atom/1) do
      "; an option is a pair, such as {#{inspect(name)}, true}"
    else
      _no_atom -> ""
    end
  end

  defp alone(_other), do: ""

  @doc "Raises for an unknown option. `elsewhere` says of some options which function takes them."
  @spec known!(keyword(), [atom()], [{atom(), String.t()}]) :: :ok
  def known!(opts, known, elsewhere \\ []) do
    case Enum.find(opts, fn {name, _value} -> name not in known end) do
      nil ->
        :ok

      {name, _value} ->
        # The name in a list of names may be any term.
        hint =
          with {_name, taker} <- List.keyfind(elsewhere, name, 0, ""),
               do: "; #{name}: is an option of #{taker}"

        raise ArgumentError,
              "unknown option #{inspect(name)}, expected one of #{inspect(known)}#{hint}"
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

  @doc "The number of a socket. No socket has a negative one, which is EBADF."
  @spec handle!(term()) :: integer()
  def handle!(handle) when is_integer(handle), do: handle

  def handle!(other) do
    raise ArgumentError, "expected the handle of a socket, an integer, got: #{inspect(other)}"
  end

  @doc "A pin."
  @spec pin!(term()) :: Pin.t()
  def pin!(%Pin{} = pin), do: pin

  def pin!(other) do
    raise ArgumentError, "expected a NetlinkPort.Pin, got: #{inspect(other)}"
  end

  @doc "A pid or a name by which a GenServer can be called."
  @spec server!(term()) :: GenServer.server()
  def server!(server) when is_pid(server) or (is_atom(server) and server != nil), do: server
  def server!({:global, _name} = server), do: server

  def server!({:via, module, name} = server) when is_atom(module) do
    cond do
      not (Code.ensure_loaded?(module) and function_exported?(module, :whereis_name, 1)) ->
        raise ArgumentError, "expected a registry that is there, got: #{inspect(server)}"

      not takes?(module, name) ->
        raise ArgumentError,
              "expected a name that #{inspect(module)} takes, as Registry takes {registry, key}, " <>
                "got: #{inspect(server)}"

      true ->
        server
    end
  end

  def server!({name, node} = server)
      when is_atom(name) and name != nil and is_atom(node) and node != nil,
      do: server

  def server!(other) do
    raise ArgumentError, "expected a server: a pid or a name, got: #{inspect(other)}"
  end

  # Whether a registry knows names of this form. One that is not running may.
  defp takes?(module, name) do
    _pid = module.whereis_name(name)
    true
  rescue
    error in FunctionClauseError -> {error.module, error.function} != {module, :whereis_name}
    _not_running in ArgumentError -> true
  catch
    :exit, _noproc -> true
  end

  @doc "The name of a process to start, or nil for none."
  @spec name!(term()) :: GenServer.name() | nil
  def name!(nil), do: nil

  def name!(name) do
    if is_atom(name) or match?({:global, _name}, name) or match?({:via, _module, _name}, name) do
      server!(name)
    else
      raise ArgumentError,
            "expected name: an atom, {:global, name} or {:via, module, name}, got: #{inspect(name)}"
    end
  end

  @doc "A timeout in milliseconds. A timeout longer than a timer takes, 49 days, is cut to that."
  @spec timeout!(term()) :: timeout()
  def timeout!(:infinity), do: :infinity
  def timeout!(timeout) when is_integer(timeout) and timeout >= 0, do: min(timeout, @max_timeout)

  def timeout!(other) do
    raise ArgumentError, "expected a timeout in ms or :infinity, got: #{inspect(other)}"
  end

  @doc """
  An option that is a time of at least 1 ms. With 0 a server would ping its helper without pause, or give every call up
  at once.
  """
  @spec time!(atom(), term()) :: pos_integer() | :infinity
  def time!(_name, :infinity), do: :infinity
  def time!(_name, ms) when is_integer(ms) and ms > 0, do: min(ms, @max_timeout)

  def time!(name, other) do
    raise ArgumentError,
          "expected #{name}: a positive number of ms or :infinity, got: #{inspect(other)}"
  end

  @doc "An unsigned integer of 32 bits."
  @spec uint32!(atom(), term()) :: non_neg_integer()
  def uint32!(_name, value) when is_integer(value) and value in 0..@max_uint32, do: value

  def uint32!(name, other) do
    raise ArgumentError, "expected #{name} to be an integer of 32 bits, got: #{inspect(other)}"
  end

  @doc "A multicast group's number."
  @spec group!(term()) :: pos_integer()
  def group!(group) when is_integer(group) and group in 1..@max_uint32, do: group

  def group!(other) do
    raise ArgumentError,
          "expected the number of a multicast group, from 1, got: #{inspect(other)}"
  end

  @doc "A list of group numbers."
  @spec groups!(term()) :: [pos_integer()]
  def groups!(groups) when is_list(groups) and length(groups) <= @max_groups do
    Enum.map(groups, &group!/1)
  end

  def groups!(other) do
    raise ArgumentError,
          "expected groups: a list of at most #{@max_groups} group numbers, got: #{inspect(other)}"
  end

  @doc "The address of a peer in user space."
  @spec peer!(term()) :: {non_neg_integer(), non_neg_integer()}
  def peer!({port_id, groups}), do: {uint32!(:port_id, port_id), uint32!(:groups, groups)}

  def peer!(other) do
    raise ArgumentError, "expected to: {port_id, groups}, got: #{inspect(other)}"
  end

  @doc "The type of a message."
  @spec type!(term()) :: 0..0xFFFF
  def type!(type) when is_integer(type) and type in 0..0xFFFF, do: type

  def type!(other) do
    raise ArgumentError, "expected the type of a message, 0 to 65535, got: #{inspect(other)}"
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

  defp batched!({type, flags, payload}), do: {type!(type), Message.flags(flags), payload}

  defp batched!(other) do
    raise ArgumentError, "expected {type, flags, payload}, got: #{inspect(other)}"
  end

  @doc "The path of an executable, or nil for the default one."
  @spec executable!(term()) :: binary() | nil
  def executable!(nil), do: nil

  def executable!(path) do
    with {:ok, bytes} when bytes != "" <- FileName.chardata(path),
         false <- String.contains?(bytes, <<0>>) do
      bytes
    else
      _no_path -> raise ArgumentError, "expected executable: a path, got: #{inspect(path)}"
    end
  end

  @doc "The bytes of a path, which `what` names in the error."
  @spec path!(String.t(), term()) :: binary()
  def path!(what, path) do
    with {:ok, bytes} when bytes != "" <- FileName.chardata(path),
         false <- String.contains?(bytes, <<0>>) do
      bytes
    else
      _no_path -> raise ArgumentError, "expected the path of #{what}, got: #{inspect(path)}"
    end
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
end
