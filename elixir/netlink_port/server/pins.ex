defmodule NetlinkPort.Server.Pins do
  @moduledoc false
  # The server's table of pins and their owners. Pins are also on the board, beside the sockets. There a sender sees
  # whether a pin still exists, and the notifier finds the owners to notify when the server ends.

  alias NetlinkPort.{Errno, Pin, Socket, Telemetry}
  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Nodes.Relay

  @type t :: %__MODULE__{
          helper: Reference.t(),
          entries: %{Socket.handle() => {Pin.t(), owner :: pid(), monitor :: reference()}},
          monitors: %{reference() => Socket.handle()}
        }

  @enforce_keys [:helper]
  defstruct [:helper, entries: %{}, monitors: %{}]

  @spec new(Reference.t()) :: t()
  def new(helper), do: %__MODULE__{helper: helper}

  @doc "The pin, from the reply of the helper."
  @spec pin(Socket.handle(), NetlinkPort.netns(), keyword(), Reference.t()) :: Pin.t()
  def pin(handle, netns, info, helper) do
    {device, inode} = info[:namespace]
    descriptor = info[:descriptor]

    place = %Pin{
      handle: handle,
      descriptor: descriptor,
      inode: inode,
      device: device,
      netns: netns,
      helper: helper
    }

    %{place | cookie: info[:cookie]}
  end

  @doc "Adds a pin that the helper holds."
  @spec add(t(), Pin.t(), pid()) :: t()
  def add(pins, %Pin{handle: handle} = pin, owner) do
    Reference.put_pin(pins.helper, pin, owner)
    monitor = Relay.monitor(owner, pin)

    %{
      pins
      | entries: Map.put(pins.entries, handle, {pin, owner, monitor}),
        monitors: Map.put(pins.monitors, monitor, handle)
    }
  end

  @doc "Forgets a pin."
  @spec remove(t(), Socket.handle(), :unpinned | :owner_down) :: t()
  def remove(pins, handle, reason) do
    {{pin, owner, monitor}, entries} = Map.pop!(pins.entries, handle)
    Reference.delete_pin(pins.helper, handle)
    Relay.demonitor(monitor, owner)
    metadata = %{server: self(), pin: pin, owner: owner, reason: reason}
    Telemetry.execute([:pin, :close], %{count: 1}, metadata)
    %{pins | entries: entries, monitors: Map.delete(pins.monitors, monitor)}
  end

  @doc "Whether a handle is that of a pin."
  @spec known?(t(), Socket.handle()) :: boolean()
  def known?(%__MODULE__{entries: entries}, handle), do: is_map_key(entries, handle)

  @doc "The pin whose owner a monitor watches."
  @spec watched(t(), reference()) :: Socket.handle() | nil
  def watched(%__MODULE__{monitors: monitors}, monitor), do: Map.get(monitors, monitor)

  @doc "How many pins there are."
  @spec count(t()) :: non_neg_integer()
  def count(%__MODULE__{entries: entries}), do: map_size(entries)

  @doc "The error for a handle that no pin has."
  @spec ended() :: {:error, {:pin, pos_integer(), binary()}}
  def ended, do: {:error, {:pin, Errno.number(:ebadf), ""}}

  @doc "The `t:NetlinkPort.pin_info/0` of a pin."
  @spec info(t(), Socket.handle()) :: map() | nil
  def info(%__MODULE__{entries: entries}, handle) do
    with {pin, owner, _monitor} <- Map.get(entries, handle), do: info_of(pin, owner)
  end

  @doc "As `info/2`, for all pins, by handle."
  @spec list(t()) :: [NetlinkPort.pin_info()]
  def list(%__MODULE__{entries: entries}) do
    for {_handle, {pin, owner, _monitor}} <- Enum.sort(entries), do: info_of(pin, owner)
  end

  defp info_of(pin, owner) do
    pin
    |> Map.take([:handle, :netns, :descriptor, :inode, :device, :cookie])
    |> Map.merge(%{pin: pin, owner: owner})
  end
end
