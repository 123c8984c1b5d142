defmodule NetlinkPort.Generic do
  @moduledoc """
  Generic netlink: families by name, their commands and multicast groups, and the header of their messages. See
  `include/uapi/linux/genetlink.h` and Documentation/userspace-api/netlink/intro.rst.

      0       1       2               4
      +-------+-------+---------------+----------------------------
      |command|version| reserved      | the family's own header, attributes
      +-------+-------+---------------+----------------------------

  The kernel chooses a family's number when the family is registered, as when its module is loaded. The family
  `nlctrl`, whose own number is always 16, looks other families up by name. The functions of this module take a socket
  of the protocol `:generic` that the calling process owns, or a `NetlinkPort.Connection` of that protocol:

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

  `request/5` and `dump/5` take a family by its name, or as a struct that `family/3` has returned.

  The first request by name costs a second round trip, the lookup. The calling process keeps the family in its
  process dictionary, for each namespace of a server and for each connection, so that later requests need no lookup.
  It keeps at most 256 families, and they go when the process ends. A process that lives for one request should be
  given the struct by the process that starts it.

  When the module of a family is loaded again, the family has another number. The kernel answers `ENOENT` to a number
  without a family. `request/5` and `dump/5` then look the name up again. If the number has changed, they send the
  request to the new number. No family has seen the first request, so nothing is carried out twice. A struct is not
  looked up again: a caller that keeps one has to call `family/3` itself. The kernel counts numbers up to 1023 before it
  uses one again, so that a number stands for another family only after a thousand have been registered.
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

  @typedoc "A socket that the calling process owns, or a connection. Its protocol is `:generic`."
  @type via :: Socket.t() | Connection.t()

  @typedoc """
  What a command supports, and which capability it requires:

    * `:do` (`GENL_CMD_CAP_DO`): requests.
    * `:dump` (`GENL_CMD_CAP_DUMP`): dumps.
    * `:policy` (`GENL_CMD_CAP_HASPOL`): the kernel has a policy for the command's attributes.
    * `:admin` (`GENL_ADMIN_PERM`): the command requires CAP_NET_ADMIN in the initial user namespace.
    * `:user_namespace_admin` (`GENL_UNS_ADMIN_PERM`): the command requires CAP_NET_ADMIN in the user namespace that
      owns the network namespace.
  """
  @type flag :: :admin | :do | :dump | :policy | :user_namespace_admin

  @typedoc """
  A family:

    * `:id` - its number, which is the type of its messages.
    * `:name`, `:version`.
    * `:header_size` - the length of its own header, in bytes.
    * `:max_attribute` - the highest type of its attributes. It is 0 when each command has its own attributes.
    * `:operations` - its commands, and the flags of each.
    * `:groups` - the numbers of its multicast groups, by name.
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
  Looks a family up by its name (`CTRL_CMD_GETFAMILY`). The kernel may load the family's module.

      {:ok, %{id: 16}} = NetlinkPort.Generic.family(generic, "nlctrl")

  Options: `:timeout`, as for `NetlinkPort.request/4`.

  Errors: `ENOENT` of the stage `:request` when no such family exists, or none in this namespace. Other errors are those
  of `NetlinkPort.request/4`.
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
  Returns all families of the socket's namespace, in the order of the kernel. Options: `:timeout`.

      {:ok, families} = NetlinkPort.Generic.families(generic)
      true = "nlctrl" in Enum.map(families, & &1.name)

  Errors are those of `NetlinkPort.dump/4`, and `EBADMSG` for a family that cannot be decoded.
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
  # Decodes the family in a message of nlctrl.
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
  Sends a request to a family. `payload` is what follows `struct genlmsghdr`: the family's own header, if it has one,
  and attributes. Returns the messages of the answer. `decode/1` reads their payload.

      # CTRL_CMD_GETFAMILY with CTRL_ATTR_FAMILY_NAME
      name = NetlinkPort.Attr.encode([{2, "nlctrl\\0"}])
      {:ok, [message]} = NetlinkPort.Generic.request(generic, "nlctrl", 3, name)
      {:ok, {1, _version, attributes}} = NetlinkPort.Generic.decode(message)

  Options: those of `NetlinkPort.request/4`, and `:version`, the version in the header. Defaults to `1`.

  Errors are those of `NetlinkPort.request/4`, and those of `family/3` when `family` is a name.
  """
  @spec request(via(), String.t() | t(), 0..255, iodata(), keyword()) ::
          {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def request(via, family, command, payload \\ "", opts \\ []) do
    ask(:request, via, family, command, payload, opts)
  end

  @doc """
  Sends a dump request to a family, and returns all messages of the dump. Arguments are those of `request/5`.

  Options: those of `NetlinkPort.dump/4`, and `:version`, as for `request/5`.

      # CTRL_CMD_GETFAMILY of all
      {:ok, messages} = NetlinkPort.Generic.dump(generic, "nlctrl", 3)

  Errors are those of `NetlinkPort.dump/4`, and those of `family/3` when `family` is a name.
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
  Returns the command, the version and the rest of a message's payload.

      iex> NetlinkPort.Generic.decode(%NetlinkPort.Message{type: 16, payload: <<1, 2, 0, 0, 5>>})
      {:ok, {1, 2, <<5>>}}

  Errors: `NetlinkPort.DecodeError` for a payload shorter than the four bytes of `struct genlmsghdr`.
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

  The lookup of the family uses the same socket, and the calling process must own it. An event that arrives during the
  lookup is not lost, as with `NetlinkPort.request/4`.

      :ok = NetlinkPort.Generic.join(generic, "nlctrl", "notify")

  Errors: `ENOENT` for a group that the family does not have, and those of `family/3` and `NetlinkPort.join/2`.
  """
  @spec join(Socket.t(), String.t() | t(), String.t()) :: :ok | NetlinkPort.error()
  def join(%Socket{} = socket, family, group) when is_binary(group) do
    # A family from the cache will not do: a stale number may be another family's group by now.
    with {:ok, %{name: name, groups: groups}} <- fresh(socket, family) do
      case groups do
        %{^group => number} -> NetlinkPort.join(socket, number)
        _none -> {:error, Error.new(:request, :enoent, subject: "group #{group} of #{name}")}
      end
    end
  end

  @typedoc "The groups that a socket follows by name. `follow/2` returns it, and `rejoin/2` takes it."
  @type follow :: Follow.t()

  @doc """
  Joins multicast groups by the names of family and group, and follows them: `rejoin/2` joins them again after a family
  has been registered again.

  When a family is unregistered, as when its module is unloaded, the kernel ends the memberships of its groups and sends
  the members nothing. When the family is registered again, it and its groups have other numbers. The kernel announces
  both in the group `notify` of `nlctrl`, so `follow/2` joins that group, too. A family or a group that does not exist
  yet is no error: `rejoin/2` joins the group when it is registered. `follow/2` loads no module.

      {:ok, events} = NetlinkPort.open(MyApp.Netlink, :generic, netns: {:name, "blue"}, active: false)
      {:ok, follow} = NetlinkPort.Generic.follow(events, [{"ethtool", "monitor"}])

      # of each datagram that comes
      {:ok, message} = NetlinkPort.Generic.request(generic, "nlctrl", 3, NetlinkPort.Attr.encode([{2, "ethtool\0"}]))
      datagram = message |> hd() |> NetlinkPort.Message.encode() |> IO.iodata_to_binary()
      {:ok, [], _follow} = NetlinkPort.Generic.rejoin(follow, datagram)

  The calling process must own the socket, and should use it for events only. `NetlinkPort.Monitor` does all of this by
  itself, with `groups: [{"ethtool", "monitor"}]`.

  Errors are those of `families/2` and `NetlinkPort.join/2`.
  """
  @spec follow(Socket.t(), [{String.t(), String.t()}]) :: {:ok, follow()} | NetlinkPort.error()
  def follow(%Socket{} = socket, groups) do
    wanted = Enum.map(list!(groups), &named_group!/1)
    follow_families(socket, wanted)
  end

  @doc false
  # {name, nil} follows a family without joining a group of it.
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
  Reads a datagram of a socket that follows groups, see `follow/2`. When the datagram is a notice of `nlctrl` that a
  followed family was registered, the socket joins the groups of that family.

  Returns the names of the families that were registered or unregistered. Events of these families may be missing up to
  now. Pass every datagram of the socket to this function: one that is no notice changes nothing and costs very little.
  After `:netlink_overrun` call `follow/2` again, since the kernel may have dropped a notice.

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

  defp list!(groups) do
    if is_list(groups) and not List.improper?(groups), do: groups, else: wrong_group!(groups)
  end

  @doc false
  @spec named_group!(term()) :: {String.t(), String.t()}
  def named_group!({family, group}) when is_binary(group), do: {name!(family), group}

  def named_group!(other), do: wrong_group!(other)

  @spec wrong_group!(term()) :: no_return()
  defp wrong_group!(other) do
    raise ArgumentError,
          "expected groups by name, a list of {family, group}, such as {\"nlctrl\", \"notify\"}, " <>
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
    Connection.request_of(:generic, connection, type, payload, opts)
  end

  defp carry_out(:dump, connection, type, payload, opts) do
    Connection.dump_of(:generic, connection, type, payload, opts)
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
    # A full cache starts anew. The families in use are soon back.
    cache = if map_size(cache) < @cached, do: cache, else: %{}
    _old = Process.put(__MODULE__, Map.put(cache, {place(via), name}, family))
    :ok
  end

  defp cache, do: Process.get(__MODULE__, %{})

  defp place(%Socket{helper: helper, netns: netns}), do: {helper.server, netns}
  defp place(connection), do: connection
end
