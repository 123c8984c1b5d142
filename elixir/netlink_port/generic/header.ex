defmodule NetlinkPort.Generic.Header do
  @moduledoc false
  # The header of the messages of generic netlink: struct genlmsghdr, include/uapi/linux/genetlink.h.

  alias NetlinkPort.{DecodeError, Message}

  @spec encode(0..255, 0..255) :: binary()
  def encode(command, version) when command in 0..255 and version in 0..255 do
    <<command, version, 0::16>>
  end

  def encode(command, version) do
    raise ArgumentError,
          "expected a command and a version, 0 to 255, got: #{inspect({command, version})}"
  end

  @doc "Returns the command, the version and the rest of a message's payload."
  @spec decode(Message.t()) ::
          {:ok, {command :: 0..255, version :: 0..255, binary()}} | {:error, DecodeError.t()}
  def decode(%Message{payload: <<command, version, _reserved::16, rest::binary>>}) do
    {:ok, {command, version, rest}}
  end

  def decode(%Message{payload: payload}) do
    reason = "#{IO.iodata_length(payload)} bytes, less than the 4 of struct genlmsghdr"
    {:error, %DecodeError{what: :message, offset: 0, reason: reason}}
  end
end
