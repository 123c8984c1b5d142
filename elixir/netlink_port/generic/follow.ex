defmodule NetlinkPort.Generic.Follow do
  @moduledoc false
  # The generic families that a socket follows by name, as nlctrl described them last. Pure.
  #
  # When a family is unregistered, the kernel ends the memberships of its groups, and announces that only in nlctrl's
  # group `notify`. When the family is registered again, it and its groups have other numbers.

  alias NetlinkPort.Message

  # GENL_ID_CTRL; CTRL_CMD_NEWFAMILY and CTRL_CMD_DELFAMILY, include/uapi/linux/genetlink.h
  @nlctrl 0x10
  @newfamily 1
  @delfamily 2

  # The group is `nil` for a family that is followed without joining a group.
  @type wanted :: [{family :: String.t(), group :: String.t() | nil}]
  @type t :: %__MODULE__{
          socket: NetlinkPort.Socket.t(),
          wanted: wanted(),
          families: %{String.t() => NetlinkPort.Generic.t()}
        }

  @enforce_keys [:socket, :wanted, :families]
  defstruct [:socket, :wanted, :families]

  @spec new(NetlinkPort.Socket.t(), wanted(), [NetlinkPort.Generic.t()]) :: t()
  def new(socket, wanted, families) do
    families = for family <- families, followed?(wanted, family), do: {family.name, family}
    %__MODULE__{socket: socket, wanted: wanted, families: Map.new(families)}
  end

  @doc "Returns the group `notify` of nlctrl, and the type of its messages."
  @spec notify() :: {group :: pos_integer(), type :: pos_integer()}
  def notify, do: {16, @nlctrl}

  @doc "Whether a datagram is from nlctrl."
  @spec notice?(binary()) :: boolean()
  def notice?(<<_length::32, @nlctrl::16-native, _::binary>>), do: true
  def notice?(_datagram), do: false

  @typedoc "Decodes a message of nlctrl into its command and the family that it is about."
  @type read :: (Message.t() -> {:ok, {command :: byte(), NetlinkPort.Generic.t()}} | term())

  @doc "Returns the names of the followed families that a datagram of nlctrl has changed."
  @spec told(t(), binary(), read()) :: {[String.t()], t()}
  def told(follow, <<_length::32, @nlctrl::16-native, _::binary>> = datagram, read) do
    case Message.decode(datagram) do
      {:ok, messages} -> Enum.reduce(messages, {[], follow}, &note(&1, &2, read))
      {:error, _malformed} -> {[], follow}
    end
  end

  def told(follow, _datagram, _read), do: {[], follow}

  defp note(message, {names, %{families: families} = follow}, read) do
    with {:ok, {command, %{name: name} = family}} <- read.(message),
         true <- followed?(follow.wanted, family) do
      case {command, families} do
        {@newfamily, families} ->
          if same?(families[name], family),
            do: {names, follow},
            else: {[name | names], %{follow | families: Map.put(families, name, family)}}

        # A notice with another number is about an earlier registration.
        {@delfamily, %{^name => %{id: id}}} when id == family.id ->
          {[name | names], %{follow | families: Map.delete(families, name)}}

        _old_or_other ->
          {names, follow}
      end
    else
      _not_followed -> {names, follow}
    end
  end

  defp same?(nil, _family), do: false
  defp same?(known, family), do: {known.id, known.groups} == {family.id, family.groups}

  defp followed?(wanted, %{name: name}), do: List.keymember?(wanted, name, 0)

  @doc "Returns the numbers of the followed groups that exist, of all families or of some."
  @spec numbers(t()) :: [pos_integer()]
  def numbers(follow), do: numbers(follow, Map.keys(follow.families))

  @spec numbers(t(), [String.t()]) :: [pos_integer()]
  def numbers(%{families: families, wanted: wanted}, names) do
    for {name, group} <- wanted,
        name in names,
        %{groups: %{^group => number}} <- [families[name]],
        do: number
  end

  @doc "Returns the followed families and groups that do not exist."
  @spec missing(t()) :: wanted()
  def missing(%{families: families, wanted: wanted}) do
    Enum.reject(wanted, fn {name, group} ->
      family = families[name]
      family != nil and (group == nil or is_map_key(family.groups, group))
    end)
  end

  @doc "Returns the number of a family, given by name or as a number."
  @spec number(t() | nil, String.t() | non_neg_integer()) :: non_neg_integer()
  def number(_follow, number) when is_integer(number), do: number
  def number(%{families: families}, name), do: Map.fetch!(families, name).id
end
