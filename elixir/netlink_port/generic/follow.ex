defmodule NetlinkPort.Generic.Follow do
  @moduledoc false
  # The generic families that a socket follows by name, as nlctrl described them last. Pure.
  #
  # When a family is unregistered, the kernel ends the memberships of its groups, and announces that only in nlctrl's
  # group `notify`. When the family is registered again, it and its groups have other numbers.

  alias NetlinkPort.Message
  alias NetlinkPort.Generic.Nlctrl

  # The group is `nil` for a family that is followed without joining a group.
  @type wanted :: [{family :: String.t(), group :: String.t() | nil}]
  @type t :: %__MODULE__{
          socket: NetlinkPort.Socket.t(),
          wanted: wanted(),
          families: %{String.t() => Nlctrl.family() | NetlinkPort.Generic.t()}
        }

  @enforce_keys [:socket, :wanted, :families]
  defstruct [:socket, :wanted, :families]

  @spec new(NetlinkPort.Socket.t(), wanted(), [NetlinkPort.Generic.t()]) :: t()
  def new(socket, wanted, families) do
    families = for family <- families, followed?(wanted, family), do: {family.name, family}
    %__MODULE__{socket: socket, wanted: wanted, families: Map.new(families)}
  end

  @doc "Takes a datagram. Returns the names of the followed families that were registered or unregistered."
  @spec update(t(), binary()) :: {[String.t()], t()}
  def update(follow, datagram) do
    with true <- Nlctrl.notice?(datagram), {:ok, messages} <- Message.decode(datagram) do
      Enum.reduce(messages, {[], follow}, &take(Nlctrl.announcement(&1), &2))
    else
      _event_or_malformed -> {[], follow}
    end
  end

  defp take(:other, changes), do: changes

  defp take({change, %{name: name} = family}, {names, %{families: families} = follow} = changes) do
    known = families[name]

    cond do
      not followed?(follow.wanted, family) ->
        changes

      change == :registered and not same?(known, family) ->
        {[name | names], %{follow | families: Map.put(families, name, family)}}

      # A notice with another number is about an earlier registration.
      change == :unregistered and known != nil and known.id == family.id ->
        {[name | names], %{follow | families: Map.delete(families, name)}}

      true ->
        changes
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

  @doc "Checks a list of groups by name."
  @spec groups!(term()) :: [{String.t(), String.t()}]
  def groups!(groups) do
    if not is_list(groups) or List.improper?(groups), do: invalid_group!(groups)
    Enum.map(groups, &group!/1)
  end

  @spec group!(term()) :: {String.t(), String.t()}
  def group!({family, group}) when is_binary(group), do: {Nlctrl.name!(family), group}

  def group!(other), do: invalid_group!(other)

  @spec invalid_group!(term()) :: no_return()
  defp invalid_group!(other) do
    raise ArgumentError,
          "expected groups by name, a list of {family, group}, such as {\"nlctrl\", \"notify\"}, " <>
            "got: #{inspect(other)}"
  end
end
