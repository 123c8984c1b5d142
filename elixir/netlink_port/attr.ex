defmodule NetlinkPort.Attr do
  @moduledoc """
  Netlink attributes: `struct nlattr` and its value, see `include/uapi/linux/netlink.h`.

      0       2       4
      +-------+-------+-----------+---------
      | length| type  | value     | padding to 4 bytes
      +-------+-------+-----------+---------

  Decoded attributes are a list of `{type, value}` in the order of the wire, where `value` is a binary. The protocol
  defines what the bytes mean, so the caller chooses the getter that reads them: `u32/2`, `string/2` and so on. A getter
  returns `:missing` when there is no such attribute, and an error when the value has the wrong length.

  `decode/1` removes the two highest bits of the type, `NLA_F_NESTED` (0x8000) and `NLA_F_NET_BYTEORDER` (0x4000). The
  getters `be16/2`, `be32/2` and `be64/2` read big-endian values.

      iex> alias NetlinkPort.Attr
      iex> bytes = IO.iodata_to_binary(Attr.encode([{3, "lo\\0"}, {4, Attr.u32(65_536)}, {18, [{1, "veth\\0"}]}]))
      iex> {:ok, attrs} = Attr.decode(bytes)
      iex> {Attr.string(attrs, 3), Attr.u32(attrs, 4), Attr.u32(attrs, 5)}
      {{:ok, "lo"}, {:ok, 65_536}, :missing}
      iex> {:ok, info} = Attr.nested(attrs, 18)
      iex> Attr.string(info, 1)
      {:ok, "veth"}
  """

  alias NetlinkPort.{DecodeError, Payload, Pin}

  import Bitwise

  @header 4
  @longest 0xFFFF - @header
  @nested 0x8000
  @net_byteorder 0x4000
  @type_mask 0x3FFF

  @typedoc "The type of an attribute, without the two flags: `NLA_TYPE_MASK`."
  @type type :: 0..0x3FFF

  @typedoc "Decoded attributes."
  @type attrs :: [{type(), binary()}]

  @typedoc """
  An attribute to encode. The value is one of:

    * a binary: the bytes of the value.
    * a list of attributes: nested attributes, with `NLA_F_NESTED`.
    * `{:plain, attributes}`: nested attributes without that flag, as some older families want them.
    * `{:net_byteorder, binary}`: bytes with `NLA_F_NET_BYTEORDER`.
    * `true`: a flag (`NLA_FLAG`), which has no value.
    * a list that begins with a binary, such as `[struct | encode(attributes)]`: these bytes, without a flag. It may
      have pins in it. `VETH_INFO_PEER` is such a value, a `struct ifinfomsg` and the attributes of the peer.
    * a `NetlinkPort.Pin`: the descriptor of a namespace.
  """
  @type input ::
          {type(),
           Pin.payload()
           | [input()]
           | {:plain, [input()]}
           | {:net_byteorder, binary()}
           | true}

  @typedoc "What a getter returns: the decoded value of the first attribute of the type."
  @type got(value) :: {:ok, value} | :missing | {:error, DecodeError.t()}

  ## Encoding

  @doc """
  Encodes attributes for the wire, each padded to 4 bytes. A value longer than 65 531 bytes raises `ArgumentError`: the
  wire has 16 bits for its length.

      iex> bytes = IO.iodata_to_binary(NetlinkPort.Attr.encode([{3, "lo\\0"}, {25, true}]))
      iex> <<7::16-native, 3::16-native, "lo", 0, 0, 4::16-native, 25::16-native>> = bytes
      iex> byte_size(bytes)
      12

      iex> peer = [<<0::128>> | NetlinkPort.Attr.encode([{3, "eth0\\0"}])]
      iex> [{1, value}] = NetlinkPort.Attr.decode(IO.iodata_to_binary(NetlinkPort.Attr.encode([{1, peer}]))) |> elem(1)
      iex> <<0::128, 9::16-native, 3::16-native, "eth0", 0, _::binary>> = value
      iex> byte_size(value)
      28

  When `attrs` contain a pin, so does the result, which is then no iodata. `NetlinkPort.send/3` and the functions that
  make requests replace the pin by its number. Code that needs bytes can encode `s32(pin.descriptor)`. Then nothing
  checks that the pin has not ended, or that it belongs to the helper that sends the message.
  """
  @spec encode([input()]) :: Pin.payload()
  def encode([attr | attrs]), do: [encode_one(attr) | encode(attrs)]
  def encode([]), do: []

  def encode(other),
    do: raise(ArgumentError, "expected a list of attributes, got: #{inspect(other)}")

  defp encode_one({type, true}) when type in 0..@type_mask, do: put(type, <<>>)
  defp encode_one({type, v}) when type in 0..@type_mask and is_binary(v), do: put(type, v)

  defp encode_one({type, %Pin{} = pin}) when type in 0..@type_mask, do: put(type, pin)

  defp encode_one({type, [struct | _] = v}) when type in 0..@type_mask and is_binary(struct),
    do: put(type, v)

  defp encode_one({type, nested}) when type in 0..@type_mask and is_list(nested) do
    put(type ||| @nested, encode(nested))
  end

  defp encode_one({type, {:plain, nested}}) when type in 0..@type_mask and is_list(nested) do
    put(type, encode(nested))
  end

  defp encode_one({type, {:net_byteorder, value}})
       when type in 0..@type_mask and is_binary(value) do
    put(type ||| @net_byteorder, value)
  end

  defp encode_one(other) do
    raise ArgumentError, "expected {type, value}, an attribute to encode, got: #{inspect(other)}"
  end

  defp put(type, value) do
    size = Payload.size(value)

    if size > @longest do
      raise ArgumentError,
            "attribute #{type &&& @type_mask} is #{size} bytes, more than #{@longest}"
    end

    padding = binary_part(<<0, 0, 0>>, 0, -size &&& 3)
    [<<@header + size::16-native, type::16-native>>, value | padding]
  end

  ## Decoding

  @doc """
  Decodes the attributes in a binary, such as the part of a payload that follows the family's own header.

      iex> NetlinkPort.Attr.decode(<<7::16-native, 3::16-native, "lo", 0, 0>>)
      {:ok, [{3, "lo\\0"}]}

  Errors: `NetlinkPort.DecodeError` with the offset of an attribute that is truncated, or whose length is less than that
  of its header.
  """
  @spec decode(binary()) :: {:ok, attrs()} | {:error, DecodeError.t()}
  def decode(binary) when is_binary(binary), do: decode(binary, binary, [])

  def decode(other),
    do: raise(ArgumentError, "expected the bytes of attributes, got: #{inspect(other)}")

  defp decode(<<>>, _binary, attrs), do: {:ok, Enum.reverse(attrs)}

  # A length less than the header's gives a negative size, which matches nothing.
  defp decode(
         <<length::16-native, type::16-native, value::binary-size(length - @header),
           rest::binary>>,
         binary,
         attrs
       ) do
    attr = {type &&& @type_mask, value}
    rest |> skip(-length &&& 3) |> decode(binary, [attr | attrs])
  end

  defp decode(<<length::16-native, _type::16, _rest::binary>> = here, binary, _attrs) do
    reason =
      if length < @header,
        do: "its length is #{length}, less than its header's 4",
        else: "its length is #{length}, and #{byte_size(here)} bytes are left"

    error(:attribute, here, binary, reason)
  end

  defp decode(cut, binary, _attrs) do
    error(:attribute, cut, binary, "#{byte_size(cut)} bytes are left, less than its header's 4")
  end

  # The last attribute may lack its padding.
  defp skip(rest, padding) when byte_size(rest) <= padding, do: <<>>
  defp skip(rest, 0), do: rest
  defp skip(<<_::8, rest::binary>>, 1), do: rest
  defp skip(<<_::16, rest::binary>>, 2), do: rest
  defp skip(<<_::24, rest::binary>>, 3), do: rest

  ## Getters

  @doc """
  Returns the bytes of the first attribute of a type.

      iex> {NetlinkPort.Attr.binary([{3, "lo\\0"}], 3), NetlinkPort.Attr.binary([], 3)}
      {{:ok, "lo\\0"}, :missing}

  Errors: none. Any value is valid.
  """
  @spec binary(attrs(), type()) :: got(binary())
  def binary(attrs, type) do
    case List.keyfind(attrs, type, 0) do
      {^type, value} when is_binary(value) -> {:ok, value}
      nil -> :missing
      _other -> undecoded!(attrs)
    end
  rescue
    # No list, or an improper one.
    _error in [ArgumentError, FunctionClauseError] -> undecoded!(attrs)
  end

  @spec undecoded!(term()) :: no_return()
  defp undecoded!(other) do
    raise ArgumentError,
          "expected decoded attributes, the list of {type, binary} in the {:ok, list} of decode/1, " <>
            "got: #{inspect(other)}"
  end

  @doc """
  Returns the values of all attributes of a type, in their order. Some protocols encode an array by repeating one
  attribute, as with `IFLA_ALT_IFNAME` in `IFLA_PROP_LIST`. For an array whose elements have indices see `array/2`.

      iex> NetlinkPort.Attr.all([{1, "a"}, {2, "b"}, {1, "c"}], 1)
      ["a", "c"]
  """
  @spec all(attrs(), type()) :: [binary()]
  def all(attrs, type) when length(attrs) >= 0, do: for({^type, value} <- attrs, do: value)
  def all(other, _type), do: undecoded!(other)

  @doc """
  Whether there is an attribute of a type. This reads a flag (`NLA_FLAG`).

      iex> {NetlinkPort.Attr.flag?([{25, ""}], 25), NetlinkPort.Attr.flag?([], 25)}
      {true, false}
  """
  @spec flag?(attrs(), type()) :: boolean()
  def flag?(attrs, type) when length(attrs) >= 0, do: List.keymember?(attrs, type, 0)
  def flag?(other, _type), do: undecoded!(other)

  @doc """
  Returns the attributes that are nested in the first attribute of a type.

      iex> {:ok, attrs} = NetlinkPort.Attr.decode(IO.iodata_to_binary(NetlinkPort.Attr.encode([{18, [{1, "veth"}]}])))
      iex> NetlinkPort.Attr.nested(attrs, 18)
      {:ok, [{1, "veth"}]}

  Errors are those of `decode/1`, with offsets in the value of that attribute.
  """
  @spec nested(attrs(), type()) :: got(attrs())
  def nested(attrs, type) do
    with {:ok, value} <- binary(attrs, type), do: decode(value)
  end

  @doc """
  Returns the elements of an array that is nested in the first attribute of a type, in the order of the wire. Each
  element is an attribute whose type is an index, and whose value holds the element's own attributes. A generic family's
  multicast groups are such an array.

      iex> groups = [{7, [{1, [{1, "a"}]}, {2, [{1, "b"}]}]}]
      iex> {:ok, attrs} = NetlinkPort.Attr.decode(IO.iodata_to_binary(NetlinkPort.Attr.encode(groups)))
      iex> NetlinkPort.Attr.array(attrs, 7)
      {:ok, [[{1, "a"}], [{1, "b"}]]}

  Errors are those of `decode/1`, with offsets in the value of that attribute, or in that of the element.
  """
  @spec array(attrs(), type()) :: got([attrs()])
  def array(attrs, type) do
    with {:ok, elements} <- nested(attrs, type) do
      elements
      |> Enum.reduce_while([], fn {_index, value}, read ->
        case decode(value) do
          {:ok, attrs} -> {:cont, [attrs | read]}
          {:error, error} -> {:halt, {:error, error}}
        end
      end)
      |> case do
        read when is_list(read) -> {:ok, Enum.reverse(read)}
        failed -> failed
      end
    end
  end

  @doc """
  Returns a string, up to its first NUL byte (`NLA_NUL_STRING`, `NLA_STRING`). The string may contain any other byte,
  and need not be valid UTF-8.

      iex> NetlinkPort.Attr.string([{3, "lo\\0"}], 3)
      {:ok, "lo"}

  Errors: none.
  """
  @spec string(attrs(), type()) :: got(binary())
  def string(attrs, type) do
    with {:ok, value} <- binary(attrs, type) do
      [string | _after] = :binary.split(value, <<0>>)
      {:ok, string}
    end
  end

  for {name, bits, modifiers, what} <- [
        {:u8, 8, [], "An unsigned integer of 8 bits"},
        {:u16, 16, [:native], "An unsigned integer of 16 bits"},
        {:u32, 32, [:native], "An unsigned integer of 32 bits"},
        {:u64, 64, [:native], "An unsigned integer of 64 bits"},
        {:s8, 8, [:signed], "A signed integer of 8 bits"},
        {:s16, 16, [:signed, :native], "A signed integer of 16 bits"},
        {:s32, 32, [:signed, :native], "A signed integer of 32 bits"},
        {:s64, 64, [:signed, :native], "A signed integer of 64 bits"},
        {:be16, 16, [:big], "An unsigned big-endian integer of 16 bits"},
        {:be32, 32, [:big], "An unsigned big-endian integer of 32 bits"},
        {:be64, 64, [:big], "An unsigned big-endian integer of 64 bits"}
      ] do
    {low, high} =
      if :signed in modifiers,
        do: {-(1 <<< (bits - 1)), (1 <<< (bits - 1)) - 1},
        else: {0, (1 <<< bits) - 1}

    segment =
      Enum.reduce(modifiers, quote(do: size(unquote(bits))), fn modifier, segment ->
        quote(do: unquote(segment) - unquote(Macro.var(modifier, nil)))
      end)

    @doc """
    #{what}, as bytes for the wire. An integer out of range raises `ArgumentError`.

        iex> byte_size(NetlinkPort.Attr.#{name}(1))
        #{div(bits, 8)}
    """
    @spec unquote(name)(integer()) :: binary()
    def unquote(name)(value) when is_integer(value) and value in unquote(low)..unquote(high) do
      <<value::unquote(segment)>>
    end

    def unquote(name)(other) do
      raise ArgumentError,
            "expected #{unquote(low)}..#{unquote(high)}, got: #{inspect(other)}"
    end

    @doc """
    #{what}, decoded from the first attribute of a type.

        iex> NetlinkPort.Attr.#{name}([{4, NetlinkPort.Attr.#{name}(100)}], 4)
        {:ok, 100}

    Errors: `NetlinkPort.DecodeError` for a value of another length.
    """
    @spec unquote(name)(attrs(), type()) :: got(integer())
    def unquote(name)(attrs, type) do
      with {:ok, value} <- binary(attrs, type) do
        case value do
          <<value::unquote(segment)>> -> {:ok, value}
          _other -> wrong_size(type, value, unquote(div(bits, 8)))
        end
      end
    end
  end

  @doc """
  An unsigned integer of 4 or 8 bytes, decoded from the first attribute of a type. The sender chooses the length
  (`NLA_UINT`).

      iex> alias NetlinkPort.Attr
      iex> {Attr.uint([{1, Attr.u32(7)}], 1), Attr.uint([{1, Attr.u64(7)}], 1)}
      {{:ok, 7}, {:ok, 7}}

  Errors: `NetlinkPort.DecodeError` for a value of another length.
  """
  @spec uint(attrs(), type()) :: got(non_neg_integer())
  def uint(attrs, type) do
    with {:ok, value} <- binary(attrs, type) do
      if byte_size(value) == 8, do: u64(attrs, type), else: u32(attrs, type)
    end
  end

  @doc """
  A signed integer of 4 or 8 bytes, decoded from the first attribute of a type. The sender chooses the length
  (`NLA_SINT`).

      iex> alias NetlinkPort.Attr
      iex> {Attr.sint([{1, Attr.s32(-7)}], 1), Attr.sint([{1, Attr.s64(-7)}], 1)}
      {{:ok, -7}, {:ok, -7}}

  Errors: `NetlinkPort.DecodeError` for a value of another length.
  """
  @spec sint(attrs(), type()) :: got(integer())
  def sint(attrs, type) do
    with {:ok, value} <- binary(attrs, type) do
      if byte_size(value) == 8, do: s64(attrs, type), else: s32(attrs, type)
    end
  end

  @doc """
  Returns the value and the mask of `struct nla_bitfield32`.

      iex> NetlinkPort.Attr.bitfield32([{1, <<1::32-native, 3::32-native>>}], 1)
      {:ok, {1, 3}}

  Errors: `NetlinkPort.DecodeError` for a value that is not 8 bytes.
  """
  @spec bitfield32(attrs(), type()) :: got({value :: 0..0xFFFFFFFF, mask :: 0..0xFFFFFFFF})
  def bitfield32(attrs, type) do
    with {:ok, value} <- binary(attrs, type) do
      case value do
        <<value::32-native, mask::32-native>> -> {:ok, {value, mask}}
        _other -> wrong_size(type, value, 8)
      end
    end
  end

  defp wrong_size(type, value, wanted) do
    reason = "attribute #{type} is #{byte_size(value)} bytes, not #{wanted}"
    {:error, %DecodeError{what: :value, offset: 0, reason: reason}}
  end

  defp error(what, here, binary, reason) do
    offset = byte_size(binary) - byte_size(here)
    {:error, %DecodeError{what: what, offset: offset, reason: reason}}
  end
end
