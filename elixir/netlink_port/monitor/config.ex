defmodule NetlinkPort.Monitor.Config do
  @moduledoc false
  # The options of a monitor, checked in the caller.

  alias NetlinkPort.{Arguments, Error, Options, Payload}
  alias NetlinkPort.Generic.{Follow, Nlctrl}
  alias NetlinkPort.Monitor.Subscription
  alias NetlinkPort.Request.Exchange

  # The bound of the monitor's own mailbox. Beyond it the socket's window fills, and then the kernel's queue.
  @max_queue 1_000
  @largest 1_000_000_000
  @own [:name, :server, :protocol, :dump, :subscription]
  @of_sockets [:netns, :groups, :user_peers]

  @type t :: %__MODULE__{
          server: GenServer.server(),
          protocol: NetlinkPort.protocol(),
          open: keyword(),
          dump_open: keyword(),
          dumps: [{String.t() | 0..0xFFFF, binary()}],
          subscription: Subscription.t(),
          follow: Follow.wanted(),
          notify?: boolean()
        }

  # `follow` are the families and groups by name. `notify?` is whether the options name the group `notify` of nlctrl, so
  # that subscribers get its events, too.
  @enforce_keys [
    :server,
    :protocol,
    :open,
    :dump_open,
    :dumps,
    :subscription,
    :follow,
    :notify?
  ]
  defstruct @enforce_keys

  @spec new(term()) :: {:ok, t()} | {:error, Error.t()}
  def new(opts) do
    Arguments.keyword!(opts)
    known = @own ++ @of_sockets ++ (Options.names() -- [:active])
    Arguments.known!(opts, known, max_queue: "NetlinkPort.Monitor.subscribe/2")
    protocol = Keyword.get(opts, :protocol, :route)
    generic? = protocol in [:generic, 16]
    {named, groups} = opts |> Keyword.get(:groups, []) |> split()
    named = Enum.map(named, &named!(&1, generic?))
    dumps = dumps!(Keyword.get(opts, :dump, []), generic?)
    subscription = Subscription.new!(Keyword.get(opts, :subscription, []), generic?)
    families = for {family, _payload} <- dumps, is_binary(family), do: {family, nil}
    asked = for {family, _flags, _payload} <- subscription, is_binary(family), do: {family, nil}

    open =
      opts
      |> Keyword.drop(@own)
      |> Keyword.put(:groups, groups)
      |> Keyword.merge(close_on: :namespace_gone, max_queue: @max_queue)

    with {:ok, %{netns: netns}} <- Options.open(protocol, open) do
      # An absolute path: the working directory may be another when the socket is opened again.
      opts = Keyword.put(opts, :netns, netns)

      dumped = for {type, payload} <- dumps, is_integer(type), do: {:dump, type, payload}

      requested =
        for {type, _flags, payload} <- subscription,
            is_integer(type),
            do: {:request, type, payload}

      Enum.each(dumped ++ requested, fn {kind, type, payload} ->
        sendable!(kind, protocol, type, payload)
      end)

      {:ok,
       %__MODULE__{
         server: Arguments.server!(Keyword.get(opts, :server, NetlinkPort)),
         protocol: protocol,
         open: Keyword.put(open, :netns, netns),
         dump_open: Keyword.take(opts, [:netns, :get_strict_chk]),
         dumps: dumps,
         subscription: subscription,
         follow: Enum.uniq(named ++ families ++ asked),
         notify?: generic? and (Nlctrl.notify() in groups or {"nlctrl", "notify"} in named)
       }}
    end
  end

  @doc "The options that belong to a monitor, not to a subscription."
  @spec elsewhere() :: [{atom(), String.t()}]
  def elsewhere do
    for name <- @own ++ @of_sockets, do: {name, "NetlinkPort.Monitor.start_link/1"}
  end

  # Separates groups by name from the others. Options.open/2 checks the others.
  defp split(groups) when is_list(groups) do
    if List.improper?(groups), do: {[], groups}, else: Enum.split_with(groups, &is_tuple/1)
  end

  defp split(other), do: {[], other}

  defp named!(group, true), do: Follow.group!(group)

  defp named!(group, false) do
    raise ArgumentError,
          "expected groups: numbers, and names for the protocol :generic alone, " <>
            "got: #{inspect(group)}"
  end

  @doc "Checks a bound on a mailbox."
  @spec max_queue!(term()) :: pos_integer()
  def max_queue!(count) when is_integer(count) and count in 1..@largest, do: count

  def max_queue!(other) do
    raise ArgumentError,
          "expected max_queue: a number of messages up to #{@largest}, got: #{inspect(other)}"
  end

  # Raises for what NetlinkPort.dump/4 and NetlinkPort.request/4 would raise for, later and in the monitor.
  defp sendable!(kind, protocol, type, payload) do
    with {:wrong, sentence} <-
           Exchange.new(protocol, {kind, type, payload, Options.request!([], [])}) do
      option = if kind == :dump, do: :dump, else: :subscription

      raise ArgumentError,
            "expected #{option}: messages that can be sent by themselves; #{sentence}"
    end
  end

  defp dumps!(dumps, generic?) do
    if not is_list(dumps) or List.improper?(dumps), do: wrong(dumps)

    for dump <- dumps do
      case dump do
        {name, payload} when is_binary(name) and generic? ->
          {Nlctrl.name!(name), Payload.binary!(:dump, payload)}

        {type, payload} ->
          {Arguments.type!(type), Payload.binary!(:dump, payload)}

        _other ->
          wrong(dumps)
      end
    end
  end

  @spec wrong(term()) :: no_return()
  defp wrong(other) do
    raise ArgumentError, "expected dump: a list of {type, payload}, got: #{inspect(other)}"
  end
end
