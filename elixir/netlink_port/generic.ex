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

  alias NetlinkPort.{
    Arguments,
    Connection,
    DecodeError,
    ExtAck,
    Message,
    Pin,
    Socket
  }

  alias NetlinkPort.Generic.{Cache, Follow, Header, Nlctrl}

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
    with {:ok, messages} <- carry_out(:request, via, Nlctrl.id(), Nlctrl.get_family(name), opts),
         {:ok, fields} <- Nlctrl.family(messages) do
      {:ok, struct!(__MODULE__, fields)}
    else
      {:error, %{stage: :request, reason: :enoent}} -> {:error, Nlctrl.unknown(name)}
      failed -> failed
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
    with {:ok, messages} <- carry_out(:dump, via, Nlctrl.id(), Nlctrl.get_families(), opts),
         {:ok, families} <- Nlctrl.families(messages),
         do: {:ok, Enum.map(families, &struct!(__MODULE__, &1))}
  end

  ## Requests

  @doc """
  Sends a request to a family. `payload` is what follows `struct genlmsghdr`: the family's own header, if it has one,
  and attributes, with pins where they name namespaces (`NetlinkPort.Pin`). Returns the messages of the answer.
  `decode/1` reads their payload.

      # CTRL_CMD_GETFAMILY with CTRL_ATTR_FAMILY_NAME
      name = NetlinkPort.Attr.encode([{2, "nlctrl\\0"}])
      {:ok, [message]} = NetlinkPort.Generic.request(generic, "nlctrl", 3, name)
      {:ok, {1, _version, attributes}} = NetlinkPort.Generic.decode(message)

  Options: those of `NetlinkPort.request/4`, and `:version`, the version in the header. Defaults to `1`.

  Errors are those of `NetlinkPort.request/4`, and those of `family/3` when `family` is a name.
  """
  @spec request(via(), String.t() | t(), 0..255, Pin.payload(), keyword()) ::
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
  @spec dump(via(), String.t() | t(), 0..255, Pin.payload(), keyword()) ::
          {:ok, [Message.t()]} | {:ok, [Message.t()], ExtAck.t() | nil} | NetlinkPort.error()
  def dump(via, family, command, payload \\ "", opts \\ []) do
    ask(:dump, via, family, command, payload, opts)
  end

  defp ask(how, via, family, command, payload, opts) do
    Arguments.keyword!(opts)
    {version, opts} = Keyword.pop(opts, :version, 1)
    payload = [Header.encode(command, version) | payload]

    with {:ok, %{id: id}} <- cached(via, family, opts) do
      case carry_out(how, via, id, payload, opts) do
        {:error, %{stage: :request, reason: :enoent}} = failed when is_binary(family) ->
          case look_up(via, family, opts) do
            {:ok, %{id: other}} when other != id -> carry_out(how, via, other, payload, opts)
            {:error, %{reason: :enoent}} = gone -> gone
            _the_same_or_failed -> failed
          end

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
  def decode(%Message{} = message), do: Header.decode(message)

  def decode(other),
    do: raise(ArgumentError, "expected a NetlinkPort.Message, got: #{inspect(other)}")

  @doc """
  Joins a multicast group of a family by its name, with `NetlinkPort.join/2`.

  The lookup of the family uses the same socket, and the calling process must own it. An event that arrives during the
  lookup is not lost, as with `NetlinkPort.request/4`.

      :ok = NetlinkPort.Generic.join(generic, "nlctrl", "notify")

  Errors: `ENOENT` for a group that the family does not have, and those of `family/3` and `NetlinkPort.join/2`.
  """
  @spec join(Socket.t(), String.t() | t(), String.t()) :: :ok | NetlinkPort.error()
  def join(socket, family, group) do
    socket = generic!(socket)

    if not is_binary(group) do
      raise ArgumentError, "expected the name of a group, got: #{inspect(group)}"
    end

    # A family from the cache will not do: a stale number may be another family's group by now.
    with {:ok, %{name: name, groups: groups}} <- uncached(socket, family) do
      case groups do
        %{^group => number} ->
          NetlinkPort.join(socket, number)

        _none ->
          {:error, Nlctrl.unknown(name, group)}
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
  def follow(socket, groups) do
    follow_families(socket, Follow.groups!(groups))
  end

  @doc false
  # {name, nil} follows a family without joining a group of it.
  @spec follow_families(Socket.t(), Follow.wanted()) :: {:ok, follow()} | NetlinkPort.error()
  def follow_families(socket, wanted) do
    with :ok <- NetlinkPort.join(generic!(socket), Nlctrl.notify()),
         {:ok, families} <- families(socket) do
      follow = Follow.new(socket, wanted, families)
      with :ok <- join_all(socket, Follow.numbers(follow)), do: {:ok, follow}
    end
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
    {names, follow} = Follow.update(follow, datagram)

    with :ok <- join_all(socket, Follow.numbers(follow, names)) do
      {:ok, Enum.uniq(names), follow}
    end
  end

  def rejoin(follow, datagram) do
    raise ArgumentError,
          "expected what follow/2 returned, and a datagram, got: #{inspect(follow)} and #{inspect(datagram)}"
  end

  defp join_all(socket, numbers) do
    Enum.reduce_while(numbers, :ok, fn number, :ok ->
      case NetlinkPort.join(socket, number) do
        :ok -> {:cont, :ok}
        failed -> {:halt, failed}
      end
    end)
  end

  defp uncached(_socket, %__MODULE__{} = family), do: {:ok, family}
  defp uncached(socket, name), do: look_up(socket, name, [])

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

  defp cached(_via, %__MODULE__{} = family, _opts), do: {:ok, family}

  defp cached(via, name, opts) do
    case Cache.fetch(via, name) do
      {:ok, family} -> {:ok, family}
      :error -> look_up(via, name, opts)
    end
  end

  defp look_up(via, name, opts) do
    with {:ok, family} <- family(via, name, Keyword.take(opts, [:timeout])) do
      Cache.put(via, family)
      {:ok, family}
    end
  end
end
