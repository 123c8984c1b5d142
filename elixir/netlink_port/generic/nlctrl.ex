defmodule NetlinkPort.Generic.Nlctrl do
  @moduledoc false
  # The messages of the family nlctrl, which describes and announces the families: include/uapi/linux/genetlink.h.

  alias NetlinkPort.{Attr, Error, Message, Redaction}
  alias NetlinkPort.Generic.Header

  # GENL_ID_CTRL, which is also the number of its group `notify`
  @nlctrl 0x10
  # CTRL_CMD_*
  @newfamily 1
  @delfamily 2
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

  # GENL_ADMIN_PERM and the following
  @flags [admin: 1, do: 2, dump: 4, policy: 8, user_namespace_admin: 16]

  @typedoc "The fields of a NetlinkPort.Generic."
  @type family :: %{
          id: 0..0xFFFF,
          name: String.t(),
          version: non_neg_integer(),
          header_size: non_neg_integer(),
          max_attribute: non_neg_integer(),
          operations: %{non_neg_integer() => [NetlinkPort.Generic.flag()]},
          groups: %{String.t() => pos_integer()}
        }

  @doc "The number of nlctrl, which is the type of its messages."
  @spec id() :: pos_integer()
  def id, do: @nlctrl

  @doc "The number of its group `notify`."
  @spec notify() :: pos_integer()
  def notify, do: @nlctrl

  @doc "The payload of a request for one family."
  @spec get_family(String.t()) :: iodata()
  def get_family(name) do
    [get_families(), Attr.encode([{@family_name, name!(name) <> <<0>>}])]
  end

  @doc "The payload of a dump of all families."
  @spec get_families() :: binary()
  def get_families, do: Header.encode(@getfamily, 1)

  @doc "The error of a family that the kernel does not find by its name."
  @spec unknown(String.t()) :: Error.t()
  def unknown(name) do
    Error.new(:request, :enoent, subject: "family #{Redaction.plain(name)}", hint: no_family())
  end

  @doc "The error of a group that a family does not have."
  @spec unknown(String.t(), String.t()) :: Error.t()
  def unknown(name, group) do
    subject = "group #{Redaction.plain(group)} of #{Redaction.plain(name)}"
    Error.new(:request, :enoent, subject: subject, hint: "the family has no such group")
  end

  @doc "The error of a family, or of a group, or of its family, that does not exist."
  @spec absent({String.t(), String.t() | nil}) :: Error.t()
  def absent({name, nil}), do: unknown(name)

  def absent({name, group}),
    do: %{unknown(name, group) | hint: "the family has no such group, or " <> no_family()}

  defp no_family do
    "there is no such family in this namespace: its module is not loaded, or it is in the first namespace alone"
  end

  @doc "Whether a datagram is from nlctrl."
  @spec notice?(binary()) :: boolean()
  def notice?(<<_length::32, @nlctrl::16-native, _::binary>>), do: true
  def notice?(_datagram), do: false

  @doc "Decodes an announcement of a family. Other messages of nlctrl are `:other`."
  @spec announcement(Message.t()) :: {:registered | :unregistered, family()} | :other
  def announcement(message) do
    with {:ok, {command, _version, _attrs}} when command in [@newfamily, @delfamily] <-
           Header.decode(message),
         {:ok, family} <- read(message) do
      {if(command == @newfamily, do: :registered, else: :unregistered), family}
    else
      _other -> :other
    end
  end

  @doc "Decodes the answer to the request for one family."
  @spec family([Message.t()]) :: {:ok, family()} | NetlinkPort.error()
  def family([message | _]), do: read(message)
  def family([]), do: {:error, malformed("no answer but an ack")}

  @doc "Decodes a dump of families."
  @spec families([Message.t()]) :: {:ok, [family()]} | NetlinkPort.error()
  def families(messages) do
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

  defp read(message) do
    with {:ok, {_command, _version, rest}} <- Header.decode(message),
         {:ok, attrs} <- Attr.decode(rest),
         {:ok, id} <- Attr.u16(attrs, @family_id),
         {:ok, name} <- Attr.string(attrs, @family_name),
         {:ok, version} <- or_else(Attr.u32(attrs, @version), 0),
         {:ok, header_size} <- or_else(Attr.u32(attrs, @header_size), 0),
         {:ok, max_attribute} <- or_else(Attr.u32(attrs, @max_attribute), 0),
         {:ok, operations} <- or_else(Attr.array(attrs, @operations), []),
         {:ok, groups} <- or_else(Attr.array(attrs, @groups), []) do
      {:ok,
       %{
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
    for attrs <- operations,
        {:ok, id} <- [Attr.u32(attrs, @operation_id)],
        {:ok, flags} <- [or_else(Attr.u32(attrs, @operation_flags), 0)],
        into: %{} do
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

  @doc "Checks the name of a family."
  @spec name!(term()) :: String.t()
  def name!(name) when is_binary(name) and byte_size(name) in 1..(@name_size - 1)//1 do
    if String.contains?(name, <<0>>), do: wrong_name!(name), else: name
  end

  def name!(other), do: wrong_name!(other)

  defp wrong_name!(name) do
    raise ArgumentError,
          "expected the name of a family, 1 to #{@name_size - 1} bytes, none of them 0, got: #{inspect(name)}"
  end
end
