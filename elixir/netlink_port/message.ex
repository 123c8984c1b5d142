defmodule NetlinkPort.Message do
  @moduledoc """
  Netlink messages: `struct nlmsghdr` and its payload, see netlink(7) and `include/uapi/linux/netlink.h`.

      0               4       6       8              12              16
      +---------------+-------+-------+---------------+---------------+---------
      | length        | type  | flags | sequence      | port id       | payload
      +---------------+-------+-------+---------------+---------------+---------

  Numbers are in the byte order of the machine. A datagram contains one message or several. Each begins at a multiple of
  4 bytes.

      iex> alias NetlinkPort.Message
      iex> request = %Message{type: 18, flags: Message.flags([:request, :dump]), seq: 7}
      iex> datagram = IO.iodata_to_binary(Message.encode(request))
      iex> {:ok, [^request]} = Message.decode(datagram)
      iex> Message.flag?(request, :dump)
      true

  ## Datagrams that are no messages

  Three kinds of datagrams have another form. `decode/1` returns an error for them, or messages that make no sense:

    * uevents of `:kobject_uevent`: strings, each with a NUL byte at its end.

          iex> uevent = "add@/devices/virtual/net/br0\0ACTION=add\0INTERFACE=br0\0SEQNUM=7\0"
          iex> String.split(uevent, "\0", trim: true)
          ["add@/devices/virtual/net/br0", "ACTION=add", "INTERFACE=br0", "SEQNUM=7"]

    * records of `:audit` to the socket that `AUDIT_SET` has registered: the length in their header is that of the text
      alone, 16 bytes too short. Those to the members of group 1 have the true length.

          iex> record = <<4::32-native, 1112::16-native, 0::80, "text">>
          iex> <<_length::32, type::16-native, _::80, text::binary>> = record
          iex> {type, text}
          {1112, "text"}

    * what processes send to each other, over `:usersock` for example, which may be any bytes.
  """

  alias NetlinkPort.{DecodeError, Payload, Pin}

  import Bitwise

  @header 16

  @typedoc """
  A message:

    * `:type` - defined by the protocol. Types below 16 are control messages, see `t:control/0`.
    * `:flags` - `NLM_F_*`, see `flags/1`.
    * `:seq` - `nlmsg_seq`, the number of the request. An answer has the number of its request.
    * `:pid` - `nlmsg_pid`, the port id of the socket that sent the request.
    * `:payload` - what follows the header.
  """
  @type t :: %__MODULE__{
          type: 0..0xFFFF,
          flags: 0..0xFFFF,
          seq: 0..0xFFFFFFFF,
          pid: 0..0xFFFFFFFF,
          payload: Pin.payload()
        }

  @typedoc "`NLMSG_NOOP` (1), `NLMSG_ERROR` (2, also an ack), `NLMSG_DONE` (3), `NLMSG_OVERRUN` (4)."
  @type control :: :noop | :error | :done | :overrun

  @typedoc """
  `NLM_F_*` by name. The kind of message decides what some bits mean, so that several names stand for one bit:

    * `0x100` - `:root`, `:replace`, `:nonrec` and `:capped`.
    * `0x200` - `:match`, `:excl`, `:bulk` and `:ack_tlvs`.
    * `0x400` - `:atomic` and `:create`.

  `:dump` is `:root` and `:match` together.
  """
  @type flag ::
          :request
          | :multi
          | :ack
          | :echo
          | :dump_intr
          | :dump_filtered
          | :root
          | :match
          | :atomic
          | :dump
          | :replace
          | :excl
          | :create
          | :append
          | :nonrec
          | :bulk
          | :capped
          | :ack_tlvs

  @enforce_keys [:type]
  defstruct [:type, flags: 0, seq: 0, pid: 0, payload: ""]

  @flags [
    request: 0x1,
    multi: 0x2,
    ack: 0x4,
    echo: 0x8,
    dump_intr: 0x10,
    dump_filtered: 0x20,
    root: 0x100,
    match: 0x200,
    atomic: 0x400,
    dump: 0x300,
    replace: 0x100,
    excl: 0x200,
    create: 0x400,
    append: 0x800,
    nonrec: 0x100,
    bulk: 0x200,
    capped: 0x100,
    ack_tlvs: 0x200
  ]

  @doc """
  Returns the number of a list of flags. A number is returned as it is.

      iex> NetlinkPort.Message.flags([:request, :ack, :create, :excl])
      0x605
  """
  @spec flags([flag()] | 0..0xFFFF) :: 0..0xFFFF
  def flags(number) when number in 0..0xFFFF, do: number

  def flags(names) do
    if not is_list(names) or List.improper?(names) do
      raise ArgumentError, "expected flags, a list of names or a number, got: #{inspect(names)}"
    end

    Enum.reduce(names, 0, &(&2 ||| bits(&1)))
  end

  for {name, bits} <- @flags do
    defp bits(unquote(name)), do: unquote(bits)
  end

  defp bits(other) do
    names = Enum.map_join(@flags, ", ", fn {name, _bits} -> inspect(name) end)
    raise ArgumentError, "expected a flag of #{names}, got: #{inspect(other)}"
  end

  @doc """
  Whether all bits of a flag are set.

      iex> message = %NetlinkPort.Message{type: 18, flags: 0x105}
      iex> {NetlinkPort.Message.flag?(message, :ack), NetlinkPort.Message.flag?(message, :dump)}
      {true, false}
  """
  @spec flag?(t(), flag()) :: boolean()
  def flag?(%__MODULE__{flags: flags}, flag) do
    bits = bits(flag)
    (flags &&& bits) == bits
  end

  def flag?(other, _flag),
    do: raise(ArgumentError, "expected a NetlinkPort.Message, got: #{inspect(other)}")

  @doc """
  Returns the name of a control message, given its type. Returns `nil` for any other type.

      iex> {NetlinkPort.Message.control(3), NetlinkPort.Message.control(16)}
      {:done, nil}
  """
  @spec control(0..0xFFFF) :: control() | nil
  def control(1), do: :noop
  def control(2), do: :error
  def control(3), do: :done
  def control(4), do: :overrun
  def control(_type), do: nil

  @doc false
  # Types below NLMSG_MIN_TYPE are neither events nor answers that a protocol defines.
  defguard is_control(type) when type < 16

  @doc """
  Encodes a message, or a list of messages in their order, as one datagram. Each message is padded to 4 bytes, and its
  length is written into its header. Raises `ArgumentError` when a payload is no iodata, or a number has no room in the
  header.

      iex> datagram = NetlinkPort.Message.encode(%NetlinkPort.Message{type: 18, flags: 1, payload: "abcde"})
      iex> <<21::32-native, 18::16-native, 1::16-native, 0::64, "abcde", 0::24>> = IO.iodata_to_binary(datagram)
      iex> IO.iodata_length(datagram)
      24
  """
  @spec encode(t() | [t()]) :: Pin.payload()
  def encode([message | messages]), do: [encode(message) | encode(messages)]
  def encode([]), do: []

  def encode(%__MODULE__{type: type, flags: flags, seq: seq, pid: pid, payload: payload})
      when type in 0..0xFFFF and flags in 0..0xFFFF and seq in 0..0xFFFFFFFF and
             pid in 0..0xFFFFFFFF do
    length = @header + Payload.size(payload)

    header =
      <<length::32-native, type::16-native, flags::16-native, seq::32-native, pid::32-native>>

    [header, payload | padding(length)]
  end

  def encode(other) do
    raise ArgumentError,
          "expected a NetlinkPort.Message with a type and flags of 16 bits, and a seq and a pid of 32, or a list " <>
            "of such, got: #{inspect(other)}"
  end

  defp padding(length), do: binary_part(<<0, 0, 0>>, 0, -length &&& 3)

  @doc """
  Decodes the messages of a datagram, in their order. Payloads are sub-binaries of the datagram, not copies.

      iex> message = %NetlinkPort.Message{type: 3, seq: 7}
      iex> {:ok, [^message]} = NetlinkPort.Message.decode(IO.iodata_to_binary(NetlinkPort.Message.encode(message)))
      iex> {:error, error} = NetlinkPort.Message.decode(<<0::96>>)
      iex> {error.what, error.offset, error.reason}
      {:message, 0, "12 bytes are left, less than its header's 16"}

  The last message may lack its padding.

  Errors: `NetlinkPort.DecodeError` with the offset of the malformed message.
  """
  @spec decode(binary()) :: {:ok, [t()]} | {:error, DecodeError.t()}
  def decode(datagram) when is_binary(datagram) do
    with {:error, _readable, _number, error} <- decode(datagram, datagram, []),
         do: {:error, error}
  end

  def decode(other), do: raise(ArgumentError, "expected a datagram, got: #{inspect(other)}")

  @doc false
  # Like decode/1. For a malformed datagram, also returns the messages before the malformed one, and the sequence number
  # of the malformed one, if it has one.
  @spec read(binary()) ::
          {:ok, [t()]} | {:error, [t()], 0..0xFFFFFFFF | nil, DecodeError.t()}
  def read(datagram), do: decode(datagram, datagram, [])

  # A length less than the header's gives a negative size, which matches nothing.
  defp decode(
         <<length::32-native, type::16-native, flags::16-native, seq::32-native, pid::32-native,
           payload::binary-size(length - @header), rest::binary>> = here,
         datagram,
         messages
       ) do
    message = %__MODULE__{type: type, flags: flags, seq: seq, pid: pid, payload: payload}

    case rest do
      <<>> ->
        {:ok, Enum.reverse([message | messages])}

      _more ->
        case skip(rest, -length &&& 3) do
          <<>> -> {:ok, Enum.reverse([message | messages])}
          :cut -> error(here, datagram, messages, "its padding is cut")
          next -> decode(next, datagram, [message | messages])
        end
    end
  end

  defp decode(<<length::32-native, _::96, rest::binary>> = here, datagram, messages) do
    reason =
      if length < @header,
        do: "its length is #{length}, less than its header's 16",
        else: "its length is #{length}, and #{@header + byte_size(rest)} bytes are left"

    error(here, datagram, messages, reason)
  end

  defp decode(cut, datagram, messages) do
    error(cut, datagram, messages, "#{byte_size(cut)} bytes are left, less than its header's 16")
  end

  defp skip(rest, 0), do: rest
  defp skip(<<_::8, rest::binary>>, 1), do: rest
  defp skip(<<_::16, rest::binary>>, 2), do: rest
  defp skip(<<_::24, rest::binary>>, 3), do: rest
  defp skip(_cut, _padding), do: :cut

  defp error(here, datagram, messages, reason) do
    offset = byte_size(datagram) - byte_size(here)
    error = %DecodeError{what: :message, offset: offset, reason: reason}
    {:error, Enum.reverse(messages), number(here), error}
  end

  defp number(<<_::64, seq::32-native, _::32, _::binary>>), do: seq
  defp number(_cut), do: nil
end
