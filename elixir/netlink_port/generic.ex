defmodule NetlinkPort.Generic do
  @moduledoc """
  Generic netlink: families by name, their operations and multicast groups, and messages with their
  header. `include/uapi/linux/genetlink.h`, Documentation/userspace-api/netlink/intro.rst.

      0       1       2               4
      +-------+-------+---------------+----------------------------
      |command|version| reserved      | the family's own header, attributes
      +-------+-------+---------------+----------------------------

  A family's number is chosen by the kernel when its module is loaded, and `nlctrl`, which always has
  the same, tells it. Its functions take a socket of the protocol `:generic` that the calling process
  owns, or a `NetlinkPort.Connection` with one:

      {:ok, socket} = NetlinkPort.open(MyApp.Netlink, :generic, netns: {:name, "blue"}, active: false)
      {:ok, family} = NetlinkPort.Generic.family(socket, "nlctrl")
      %{id: 16, groups: %{"notify" => 16}} = family

      # CTRL_CMD_GETFAMILY of all
      {:ok, messages} = NetlinkPort.Generic.dump(socket, "nlctrl", 3)

      # Events, on a socket for them
      {:ok, events} = NetlinkPort.open(MyApp.Netlink, :generic, netns: {:name, "blue"}, active: false)
      :ok = NetlinkPort.Generic.join(events, "nlctrl", "notify")
      :ok = NetlinkPort.setopts(events, active: true)

  ## The cache

  `request/5` and `dump/5` take a family by its name or as `family/3` has returned it. One by name is asked
  for once by each process, for each namespace of a server and each connection, and is kept in the
  process's dictionary: it goes with the process, and at most 256 are kept. A process that lives for one
  request is best given the family by who starts it.

  A module that is loaded again has another number. Where the kernel answers `ENOENT`, which it does to a
  number that is nobody's, a name is asked for again, and if its number is another one now the request is
  sent to that: no family has seen it before. A family that the caller keeps is the caller's to ask for
  again. The kernel counts numbers up to 1023 before it gives one out again, so that a number stands for
  another family only after a thousand have been registered.
  """

  alias NetlinkPort.{Attr, Connection, DecodeError, Error, ExtAck, Message, Socket}
  alias NetlinkPort.Generic.Follow

  @nlctrl 0x10
  @getfamily 3
  # CTRL_ATTR_*
  @family_id 1
  @family_name 2
  @version 3
  @header_size 4
  @max_attribute 5
  @operations 6
  @groups 7
  # CTRL_ATTR_OP_*, CTRL_ATTR_MCAST_GRP_*
  @operation_id 1
  @operation_flags 2
  @group_name 1
  @group_id 2
  # GENL_NAMSIZ, with the NUL byte.
  @name_size 16

  @cached 256

  # GENL_ADMIN_PERM and the following
  @flags [admin: 1, do: 2, dump: 4, policy: 8, user_namespace_admin: 16]

  @typedoc "A socket that the calling process owns, or a connection; of the protocol `:generic`."
  @type via :: Socket.t() | Connection.t()

  @typedoc """
  What may be done by a command, and who may: `:do` (`GENL_CMD_CAP_DO`) and `:dump`
  (`GENL_CMD_CAP_DUMP`), with a policy for its attributes (`:policy`, `GENL_CMD_CAP_HASPOL`), by who has
  CAP_NET_ADMIN in the first user namespace (`:admin`, `GENL_ADMIN_PERM`) or in that of the network
  namespace (`:user_namespace_admin`, `GENL_UNS_ADMIN_PERM`).
  """
  @type flag :: :admin | :do | :dump | :policy | :user_namespace_admin

  @typedoc """
  A family: its number, which is the type of its messages; its name and version; the bytes of its own
  header; the highest type of its attributes, 0 where each command has its own; its commands, with
  what they are able to; its multicast groups, by name.
  """
  @type t :: %__MODULE__{
          id: 0..0xFFFF,
          name: String.t(),
          version: non_neg_integer(),
          header_size: non_neg_integer(),
          max_attribute: non_neg_integer(),
          operations: %{non_neg_integer() => [flag()]},
          groups: %{String.t() => pos_integer()}
        }

  @enforce_keys [:id, :name]
  defstruct [
    :id,
    :name,
    version: 0,
    header_size: 0,
    max_attribute: 0,
    operations: %{},
    groups: %{}
  ]

  ## Families

  @doc """
  Asks the kernel for a family by its name (`CTRL_CMD_GETFAMILY`). It may load the family's module.

      {:ok, %{id: 16}} = NetlinkPort.Generic.family(generic, "nlctrl")

  Errors: `ENOENT` of the stage `:request` where there is none, or none in this namespace; otherwise as with
  `NetlinkPort.request/4`. Options: `:timeout`, as there.
  """
  @spec family(via(), String.t(), timeout: timeout()) :: {:ok, t()} | NetlinkPort.error()
  def family(via, name, opts \\ []) do
    payload = [header(@getfamily, 1), Attr.encode([{@family_name, name!(name) <> <<0>>}])]

    with {:ok, messages} <- carry_out(:request, via, @nlctrl, payload, opts) do
      case messages do
        [message | _] -> read(message)
        [] -> {:error, malformed("no answer but an ack")}
      end
    end
  end

  @doc """
  All families of the socket's namespace, in the order of the kernel. Options: `:timeout`.

      {:ok, families} = NetlinkPort.Generic.families(generic)
      true = "nlctrl" in Enum.map(families, & &1.name)

  Errors are those of `NetlinkPort.dump/4`, and `EBADMSG` for a family that cannot be read.
  """
  @spec families(via(), timeout: timeout()) :: {:ok, [t()]} | NetlinkPort.error()
  def families(via, opts \\ []) do
    with {:ok, messages} <- carry_out(:dump, via, @nlctrl, header(@getfamily, 1), opts) do
      messages
      |> Enum.reduce_while([], fn message, families ->
        case read(message) do
          {:ok, family} -> {:cont, [family | families]}
          failed -> {:halt, failed}
        end
      end)
      |> case do
        families when is_list(families) -> {:ok, Enum.reverse(families)}
        failed -> failed
      end
    end
  end

  @doc false
  # The family in a message of nlctrl.
  @spec read(Message.t()) :: {:ok, t()} | NetlinkPort.error()
  def read(message) do
    with {:ok, {_command, _version, rest}} <- decode(message),
         {:ok, attrs} <- Attr.decode(rest),
         {:ok, id} <- Attr.u16(attrs, @family_id),
         {:ok, name} <- Attr.string(attrs, @family_name),
         {:ok, version} <- or_else(Attr.u32(attrs, @version), 0),
         {:ok, header_size} <- or_else(Attr.u32(attrs, @header_size), 0),
         {:ok, max_attribute} <- or_else(Attr.u32(attrs, @max_attribute), 0),
         {:ok, operations} <- or_else(Attr.array(attrs, @operations), []),
         {:ok, groups} <- or_else(Attr.array(attrs, @groups), []) do
      {:ok,
       %__MODULE__{
         id: id,
         name: name,
         version: version,
         header_size: header_size,
         max_attribute: max_attribute,
         operations: operations(operations),
         groups: groups(groups)
       }}
    else
      :missing -> {:error, malformed("a family without its number or its name")}
      {:error, error} -> {:error, malformed(Exception.message(error))}
    end
  end

  defp or_else(:missing, default), do: {:ok, default}
  defp or_else(got, _default), do: got

  defp operations(operations) do
    for attrs <- operations, {:ok, id} <- [Attr.u32(attrs, @operation_id)], into: %{} do
      {:ok, flags} = or_else(Attr.u32(attrs, @operation_flags), 0)
      {id, for({name, bit} <- @flags, Bitwise.band(flags, bit) != 0, do: name)}
    end
  end

  defp groups(groups) do
    for attrs <- groups,
        {:ok, name} <- [Attr.string(attrs, @group_name)],
        {:ok, id} <- [Attr.u32(attrs, @group_id)],
        into: %{},
        do: {name, id}
  end

  defp malformed(what), do: Error.new(:recv, :ebadmsg, subject: what)

  ## Requests

  @doc """
  Sends a request of a family: `command` and what follows `struct genlmsghdr`, the family's own header and
  attributes. Returns messages whose payload `decode/1` reads.

      # CTRL_CMD_GETFAMILY with CTRL_ATTR_FAMILY_NAME
      name = NetlinkPort.Attr.encode([{2, "nlctrl\\0"}])
      {:ok, [message]} = NetlinkPort.Generic.request(generic, "nlctrl", 3, name)
      {:ok, {1, _version, attributes}} = NetlinkPort.Generic.decode(message)

  Options: those of `NetlinkPort.request/4`, and `:version`, 1 unless told otherwise.

  Errors are those of `NetlinkPort.request/4`, and of `family/3` for a name.
  """
  @spec request(via(), String.t() | t(), 0..255, iodata(), keyword()) ::
          {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def request(via, family, command, payload \\ "", opts \\ []) do
    ask(:request, via, family, command, payload, opts)
  end

  @doc """
  A dump of a family, as `request/5` is a request. Options: those of `NetlinkPort.dump/4`, and `:version`.

      # CTRL_CMD_GETFAMILY of all
      {:ok, messages} = NetlinkPort.Generic.dump(generic, "nlctrl", 3)

  Errors are those of `NetlinkPort.dump/4`, and of `family/3` for a name.
  """
  @spec dump(via(), String.t() | t(), 0..255, iodata(), keyword()) ::
          {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def dump(via, family, command, payload \\ "", opts \\ []) do
    ask(:dump, via, family, command, payload, opts)
  end

  defp ask(how, via, family, command, payload, opts) do
    {version, opts} = Keyword.pop(opts, :version, 1)
    payload = [header(command, version) | payload]

    with {:ok, %{id: id}} <- known(via, family, opts) do
      case carry_out(how, via, id, payload, opts) do
        {:error, %{stage: :request, reason: :enoent}} = failed when is_binary(family) ->
          with {:ok, %{id: other}} when other != id <- learn(via, family, opts),
               do: carry_out(how, via, other, payload, opts),
               else: (_the_same_or_gone -> failed)

        outcome ->
          outcome
      end
    end
  end

  @doc """
  The command, the version and the rest of a message's payload.

      iex> NetlinkPort.Generic.decode(%NetlinkPort.Message{type: 16, payload: <<1, 2, 0, 0, 5>>})
      {:ok, {1, 2, <<5>>}}

  Errors: `NetlinkPort.DecodeError` for less than the four bytes of that header.
  """
  @spec decode(Message.t()) ::
          {:ok, {command :: 0..255, version :: 0..255, binary()}} | {:error, DecodeError.t()}
  def decode(%Message{payload: <<command, version, _reserved::16, rest::binary>>}) do
    {:ok, {command, version, rest}}
  end

  def decode(%Message{payload: payload}) do
    reason = "#{IO.iodata_length(payload)} bytes, less than the 4 of struct genlmsghdr"
    {:error, %DecodeError{what: :message, offset: 0, reason: reason}}
  end

  @doc """
  Joins a multicast group of a family by its name, with `NetlinkPort.join/2`.

  The family is asked for on the same socket, which the calling process is to own; an event that comes
  meanwhile is kept, as with `NetlinkPort.request/4`.

      :ok = NetlinkPort.Generic.join(generic, "nlctrl", "notify")

  Errors: `ENOENT` for a group the family does not have, and those of `family/3` and `NetlinkPort.join/2`.
  """
  @spec join(Socket.t(), String.t() | t(), String.t()) :: :ok | NetlinkPort.error()
  def join(%Socket{} = socket, family, group) when is_binary(group) do
    # Not one from the cache: joining does not tell whether the number is still the group's.
    with {:ok, %{name: name, groups: groups}} <- fresh(socket, family) do
      case groups do
        %{^group => number} -> NetlinkPort.join(socket, number)
        _none -> {:error, Error.new(:request, :enoent, subject: "group #{group} of #{name}")}
      end
    end
  end

  @typedoc "Groups that a socket follows by name: what `follow/2` returns and `rejoin/2` takes."
  @type follow :: Follow.t()

  @doc """
  Joins multicast groups by the names of family and group, and follows them: `rejoin/2` joins them again
  after a family has been registered anew.

  When a family is unregistered (its module is unloaded) the kernel ends the memberships of its groups and
  tells the members nothing; registered again, the family and its groups have other numbers. Both are told
  in the group `notify` of `nlctrl`, which the socket joins here, too. A family or a group that is not there
  yet is no error: it is joined when it is registered. No module is loaded for it.

      {:ok, events} = NetlinkPort.open(MyApp.Netlink, :generic, netns: {:name, "blue"}, active: false)
      {:ok, follow} = NetlinkPort.Generic.follow(events, [{"ethtool", "monitor"}])

      # of each datagram that comes
      {:ok, message} = NetlinkPort.Generic.request(generic, "nlctrl", 3, NetlinkPort.Attr.encode([{2, "ethtool\0"}]))
      datagram = message |> hd() |> NetlinkPort.Message.encode() |> IO.iodata_to_binary()
      {:ok, [], _follow} = NetlinkPort.Generic.rejoin(follow, datagram)

  The socket belongs to the calling process and is for events alone. `NetlinkPort.Monitor` does all of this by
  itself, with `groups: [{"ethtool", "monitor"}]`.

  Errors are those of `families/2` and `NetlinkPort.join/2`.
  """
  @spec follow(Socket.t(), [{String.t(), String.t()}]) :: {:ok, follow()} | NetlinkPort.error()
  def follow(%Socket{} = socket, groups) do
    wanted = Enum.map(list!(groups), &named_group!/1)
    follow_families(socket, wanted)
  end

  @doc false
  # Also of families without a group of theirs, {name, nil}.
  @spec follow_families(Socket.t(), Follow.wanted()) :: {:ok, follow()} | NetlinkPort.error()
  def follow_families(socket, wanted) do
    {notify, _type} = Follow.notify()

    with :ok <- NetlinkPort.join(generic!(socket), notify),
         {:ok, families} <- families(socket) do
      follow = Follow.new(socket, wanted, families)
      with :ok <- join_all(socket, Follow.numbers(follow)), do: {:ok, follow}
    end
  end

  @doc false
  @spec told(Follow.t(), binary()) :: {[String.t()], Follow.t()}
  def told(follow, datagram), do: Follow.told(follow, datagram, &announced/1)

  defp announced(message) do
    with {:ok, {command, _version, _attrs}} <- decode(message),
         {:ok, family} <- read(message),
         do: {:ok, {command, family}}
  end

  @doc """
  Reads a datagram of a socket that follows groups, see `follow/2`: when `nlctrl` tells in it that a family of
  theirs was registered, their groups are joined.

  Returns the names of the families that have changed, also of those that were unregistered: up to
  now events of these may be missing. Any other datagram changes nothing, and costs next to nothing:
  hand in each that comes. After `:netlink_overrun`, which may have dropped such a datagram, call `follow/2` again.

      {:ok, follow} = NetlinkPort.Generic.follow(generic, [{"ethtool", "monitor"}])
      {:ok, [], ^follow} = NetlinkPort.Generic.rejoin(follow, "")

  Errors are those of `NetlinkPort.join/2`.
  """
  @spec rejoin(follow(), binary()) ::
          {:ok, changed :: [String.t()], follow()} | NetlinkPort.error()
  def rejoin(%Follow{socket: socket} = follow, datagram) when is_binary(datagram) do
    {names, follow} = told(follow, datagram)

    with :ok <- join_all(socket, Follow.numbers(follow, names)) do
      {:ok, Enum.uniq(names), follow}
    end
  end

  defp join_all(socket, numbers) do
    Enum.reduce_while(numbers, :ok, fn number, :ok ->
      case NetlinkPort.join(socket, number) do
        :ok -> {:cont, :ok}
        failed -> {:halt, failed}
      end
    end)
  end

  defp list!(groups) when is_list(groups), do: groups
  defp list!(other), do: named_group!(other)

  @doc false
  @spec named_group!(term()) :: {String.t(), String.t()}
  def named_group!({family, group}) when is_binary(group), do: {name!(family), group}

  def named_group!(other) do
    raise ArgumentError,
          "expected a group by name, {family, group}, such as {\"nlctrl\", \"notify\"}, " <>
            "got: #{inspect(other)}"
  end

  defp fresh(_socket, %__MODULE__{} = family), do: {:ok, family}
  defp fresh(socket, name), do: learn(socket, name, [])

  defp header(command, version) when command in 0..255 and version in 0..255 do
    <<command, version, 0::16>>
  end

  defp header(command, version) do
    raise ArgumentError,
          "expected a command and a version, 0 to 255, got: #{inspect({command, version})}"
  end

  defp carry_out(:request, %Socket{} = socket, type, payload, opts) do
    NetlinkPort.request(generic!(socket), type, payload, opts)
  end

  defp carry_out(:dump, %Socket{} = socket, type, payload, opts) do
    NetlinkPort.dump(generic!(socket), type, payload, opts)
  end

  defp carry_out(:request, connection, type, payload, opts) do
    Connection.request(connection, type, payload, opts)
  end

  defp carry_out(:dump, connection, type, payload, opts) do
    Connection.dump(connection, type, payload, opts)
  end

  defp generic!(%Socket{protocol: protocol} = socket) when protocol in [:generic, 16], do: socket

  defp generic!(other) do
    raise ArgumentError, "expected a socket of the protocol :generic, got: #{inspect(other)}"
  end

  @doc false
  @spec name!(term()) :: String.t()
  def name!(name) when is_binary(name) and byte_size(name) in 1..(@name_size - 1)//1 do
    if String.contains?(name, <<0>>), do: wrong_name!(name), else: name
  end

  def name!(other), do: wrong_name!(other)

  defp wrong_name!(name) do
    raise ArgumentError,
          "expected the name of a family, at most #{@name_size - 1} bytes, got: #{inspect(name)}"
  end

  ## The cache

  defp known(_via, %__MODULE__{} = family, _opts), do: {:ok, family}

  defp known(via, name, opts) do
    key = {place(via), name}

    case cache() do
      %{^key => family} -> {:ok, family}
      _unknown -> learn(via, name, opts)
    end
  end

  defp learn(via, name, opts) do
    with {:ok, family} <- family(via, name, Keyword.take(opts, [:timeout])) do
      remember(via, family)
      {:ok, family}
    end
  end

  @doc false
  @spec remember(via(), t()) :: :ok
  def remember(via, %__MODULE__{name: name} = family) do
    cache = cache()
    # Full, it starts anew: what is in use is soon back.
    cache = if map_size(cache) < @cached, do: cache, else: %{}
    _old = Process.put(__MODULE__, Map.put(cache, {place(via), name}, family))
    :ok
  end

  defp cache, do: Process.get(__MODULE__, %{})

  defp place(%Socket{link: link, netns: netns}), do: {link.server, netns}
  defp place(connection), do: connection
end
