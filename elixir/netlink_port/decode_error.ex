defmodule NetlinkPort.DecodeError do
  @moduledoc """
  The error of bytes that cannot be decoded, as a value and as an exception.

      iex> {:error, error} = NetlinkPort.Attr.decode(<<9, 0, 1, 0, 5>>)
      iex> Exception.message(error)
      "attribute at byte 0: its length is 9, and 5 bytes are left"

  ## Fields

    * `:what` - what was being decoded: a `:message`, an `:attribute`, the `:value` of an attribute, or the file of a
      `:capture`.
    * `:offset` - where it begins, in bytes from the start of the binary that was given to the function.
    * `:reason` - a description for a person.
  """

  @type t :: %__MODULE__{
          what: :message | :attribute | :value | :capture,
          offset: non_neg_integer(),
          reason: String.t()
        }

  @enforce_keys [:what, :offset, :reason]
  defexception [:what, :offset, :reason]

  @impl true
  def message(%__MODULE__{what: what, offset: offset, reason: reason}) do
    "#{what} at byte #{offset}: #{reason}"
  end
end
