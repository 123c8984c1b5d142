defmodule NetlinkPort.ExtAck do
  @moduledoc """
  What the kernel says of a request beyond an errno: `NLMSG_ERROR`, `NLMSG_DONE`, and the extended
  acknowledgement in them. `include/uapi/linux/netlink.h`.

      NLMSG_ERROR   errno:32 | header of the request | its payload, unless NLM_F_CAPPED | attributes
      NLMSG_DONE    errno:32 | attributes

  Attributes are there with `NLM_F_ACK_TLVS`, on sockets with `ext_ack`, which all have unless told
  otherwise. They come with errors, as `:ext_ack` of `NetlinkPort.Error`, and with successes: warnings and
  cookies, which `ext_ack: true` of `NetlinkPort.request/4` returns, and
  `[:netlink_port, :request, :warning]` of `NetlinkPort.Telemetry` tells of.

  ## Fields

    * `:message` - a sentence of the kernel's.
    * `:offset` - the byte of the request, its header included, that the kernel objects to.
    * `:attribute` - the `{type, value}` at that byte; `value` is `nil` where it is not whole.
    * `:cookie` - bytes whose meaning is the subsystem's.
    * `:policy` - what would have been taken, by the names of `NL_POLICY_TYPE_ATTR_*`: `:type`,
      `:min_value_s`, `:max_value_s`, `:min_value_u`, `:max_value_u`, `:min_length`, `:max_length`,
      `:policy_idx`, `:policy_maxtype`, `:bitfield32_mask`, `:mask`.
    * `:missing_type` - the type of an attribute that is missing.
    * `:missing_nest` - the byte of the nested attribute it is missing in; `nil` at the top.
  """

  alias NetlinkPort.{Attr, Message}

  @type t :: %__MODULE__{
          message: String.t() | nil,
          offset: non_neg_integer() | nil,
          attribute: {Attr.type(), binary() | nil} | nil,
          cookie: binary() | nil,
          policy: %{optional(atom()) => integer()} | nil,
          missing_type: non_neg_integer() | nil,
          missing_nest: non_neg_integer() | nil
        }

  defstruct [:message, :offset, :attribute, :cookie, :policy, :missing_type, :missing_nest]

  @message 1
  @offset 2
  @cookie 3
  @policy 4
  @missing_type 5
  @missing_nest 6

  @doc """
  The errno, 0 or positive, and the extended acknowledgement of an `NLMSG_ERROR` or `NLMSG_DONE`;
  `request` is the message that was sent, as bytes, to find the attribute in.

  What the kernel left out, or what cannot be read, is `nil`.

      iex> answer = %NetlinkPort.Message{type: 2, payload: <<-17::signed-32-native, 0::128>>}
      iex> NetlinkPort.ExtAck.read(answer, <<>>)
      {17, nil}
  """
  @spec read(Message.t(), binary()) :: {non_neg_integer(), t() | nil}
  def read(%Message{payload: <<errno::signed-32-native, rest::binary>>} = message, request) do
    {-errno, message |> attributes(rest) |> extended(request)}
  end

  # An empty NLMSG_DONE.
  def read(%Message{}, _request), do: {0, nil}

  defp attributes(message, rest) do
    cond do
      not Message.flag?(message, :ack_tlvs) -> <<>>
      Message.control(message.type) == :done -> rest
      Message.flag?(message, :capped) -> behind(rest, 16)
      true -> behind(rest, echoed(rest))
    end
  end

  # The request's own length, padded.
  defp echoed(<<length::32-native, _rest::binary>>), do: length + rem(4 - rem(length, 4), 4)
  defp echoed(_cut), do: 0

  defp behind(binary, length) when length <= byte_size(binary),
    do: binary_part(binary, length, byte_size(binary) - length)

  defp behind(_cut, _length), do: <<>>

  defp extended(<<>>, _request), do: nil

  defp extended(bytes, request) do
    case Attr.decode(bytes) do
      {:ok, attrs} -> of_attrs(attrs, request)
      {:error, _unreadable} -> nil
    end
  end

  defp of_attrs(attrs, request) do
    offset = value(Attr.u32(attrs, @offset))

    %__MODULE__{
      message: value(Attr.string(attrs, @message)),
      offset: offset,
      attribute: offset && attribute(request, offset),
      cookie: value(Attr.binary(attrs, @cookie)),
      policy: policy(value(Attr.nested(attrs, @policy))),
      missing_type: value(Attr.u32(attrs, @missing_type)),
      missing_nest: value(Attr.u32(attrs, @missing_nest))
    }
  end

  defp value({:ok, value}), do: value
  defp value(_missing_or_malformed), do: nil

  defp attribute(request, offset) do
    case behind(request, offset) do
      <<length::16-native, type::16-native, rest::binary>> ->
        {Bitwise.band(type, 0x3FFF), whole(rest, length - 4)}

      _beyond ->
        nil
    end
  end

  defp whole(rest, size) when size >= 0 and size <= byte_size(rest),
    do: binary_part(rest, 0, size)

  defp whole(_rest, _size), do: nil

  @policy_attrs [
    {:type, 1, :u32},
    {:min_value_s, 2, :s64},
    {:max_value_s, 3, :s64},
    {:min_value_u, 4, :u64},
    {:max_value_u, 5, :u64},
    {:min_length, 6, :u32},
    {:max_length, 7, :u32},
    {:policy_idx, 8, :u32},
    {:policy_maxtype, 9, :u32},
    {:bitfield32_mask, 10, :u32},
    {:mask, 12, :u64}
  ]

  defp policy(nil), do: nil

  defp policy(attrs) do
    for {name, type, getter} <- @policy_attrs,
        {:ok, value} <- [apply(Attr, getter, [attrs, type])],
        into: %{},
        do: {name, value}
  end
end
