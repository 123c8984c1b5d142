defmodule NetlinkPort.Payload do
  @moduledoc false
  # A payload to send: iodata that may hold pins (NetlinkPort.Pin), where a message names a namespace by a descriptor.
  # A pin is replaced by its number only when the sending helper is known, since the number means something only
  # there. Of a payload without pins only the length is computed.

  alias NetlinkPort.Pin

  @doc "The length in bytes. A pin takes four. Raises `ArgumentError` if the payload is not iodata with pins."
  @spec size(Pin.payload()) :: non_neg_integer()
  def size(payload) do
    iodata_size(payload) || iodata_size(replace(payload, &number/1)) || wrong!(payload)
  end

  @doc "Raises for a payload that is not iodata, also when its pins are replaced."
  @spec wrong!(term()) :: no_return()
  def wrong!(payload) do
    raise ArgumentError,
          "expected a payload of bytes, iodata that may hold pins, got: #{inspect(payload)}"
  end

  @doc "The length in bytes, or `nil` if the payload holds pins or is not iodata."
  @spec iodata_size(Pin.payload()) :: non_neg_integer() | nil
  def iodata_size(payload) do
    IO.iodata_length(payload)
  rescue
    ArgumentError -> nil
  end

  @doc "A binary, which refers to nothing larger than itself. A payload with pins is checked and returned unchanged."
  @spec compact(Pin.payload()) :: Pin.payload()
  def compact(payload) do
    if iodata_size(payload) do
      IO.iodata_to_binary(payload)
    else
      _checked = size(payload)
      payload
    end
  end

  @doc "The binary of a payload that is kept for any helper, so that it holds no pins. `option` names it in the error."
  @spec binary!(atom(), term()) :: binary()
  def binary!(option, payload) do
    if iodata_size(payload) do
      IO.iodata_to_binary(payload)
    else
      raise ArgumentError,
            "expected #{option}: payloads of iodata, without pins, which end with their helper, " <>
              "got: #{inspect(payload)}"
    end
  end

  @doc "Replaces each pin by the result of `fun`. Terms that are not iodata stay."
  @spec replace(Pin.payload(), (Pin.t() -> iodata())) :: iodata()
  def replace([head | tail], fun), do: [replace(head, fun) | replace(tail, fun)]
  def replace(%Pin{} = pin, fun), do: fun.(pin)
  def replace(other, _fun), do: other

  @doc "The descriptor of a pin, as the value of an attribute."
  @spec number(Pin.t()) :: binary()
  def number(%Pin{descriptor: descriptor}), do: <<descriptor::32-native>>
end
