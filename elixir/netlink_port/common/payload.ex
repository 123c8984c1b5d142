defmodule NetlinkPort.Payload do
  @moduledoc false
  # What is to be sent: iodata, and pins (NetlinkPort.Pin) where it names a namespace by a descriptor. A pin stays in
  # it until it is known which helper sends it, since the number is right there alone; without
  # one nothing is looked at but the length.

  alias NetlinkPort.Pin

  @doc "Its length in bytes; a pin is four. Raises `ArgumentError` for what is no iodata."
  @spec size(Pin.payload()) :: non_neg_integer()
  def size(payload), do: iodata_size(payload) || IO.iodata_length(replace(payload, &number/1))

  @doc "Its length in bytes, if there are no pins in it."
  @spec iodata_size(Pin.payload()) :: non_neg_integer() | nil
  def iodata_size(payload) do
    IO.iodata_length(payload)
  rescue
    ArgumentError -> nil
  end

  @doc "A binary, so that nothing is kept for a part of it; with pins the same, checked to be iodata beside them."
  @spec compact(Pin.payload()) :: Pin.payload()
  def compact(payload) do
    if iodata_size(payload) do
      IO.iodata_to_binary(payload)
    else
      _checked = size(payload)
      payload
    end
  end

  @doc "Replaces each pin by what `fun` makes of it. What is no iodata stays, for the encoder to refuse."
  @spec replace(Pin.payload(), (Pin.t() -> iodata())) :: iodata()
  def replace([head | tail], fun), do: [replace(head, fun) | replace(tail, fun)]
  def replace(%Pin{} = pin, fun), do: fun.(pin)
  def replace(other, _fun), do: other

  @doc "The descriptor of a pin, as the value of an attribute."
  @spec number(Pin.t()) :: binary()
  def number(%Pin{descriptor: descriptor}), do: <<descriptor::32-native>>
end
