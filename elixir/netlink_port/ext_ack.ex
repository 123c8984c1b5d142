defmodule NetlinkPort.ExtAck do
  @moduledoc """
  The extended acknowledgement of a request: what the kernel says beyond an errno. It is in `NLMSG_ERROR` and
  `NLMSG_DONE`, see `include/uapi/linux/netlink.h`.

      NLMSG_ERROR   errno:32 | header of the request | its payload, unless NLM_F_CAPPED | attributes
      NLMSG_DONE    errno:32 | attributes

  A message has attributes when its flag `NLM_F_ACK_TLVS` is set. The kernel sends them on sockets with the option
  `ext_ack`, which defaults to `true`.

  An error has its extended acknowledgement in `:ext_ack` of `NetlinkPort.Error`. A success can have one, too: a warning
  or a cookie. `NetlinkPort.request/4` returns it with `ext_ack: true`, and the event
  `[:netlink_port, :request, :warning]` of `NetlinkPort.Telemetry` contains it.

  ## Fields

    * `:message` - the kernel's text.
    * `:offset` - the position in the request that the kernel objects to, in bytes from the start of its header.
    * `:attribute` - the attribute at that position, `{type, value}`. `value` is `nil` when the attribute is truncated.
    * `:cookie` - bytes whose meaning the subsystem defines.
    * `:policy` - the values that the kernel would have accepted, by the names of `NL_POLICY_TYPE_ATTR_*`: `:type`,
      `:min_value_s`, `:max_value_s`, `:min_value_u`, `:max_value_u`, `:min_length`, `:max_length`,
      `:policy_idx`, `:policy_maxtype`, `:bitfield32_mask`, `:mask`.
    * `:missing_type` - the type of an attribute that the request lacks.
    * `:missing_nest` - the position of the nested attribute that lacks it; `nil` when it is missing at the top level.

  A field that the kernel did not send, or that cannot be decoded, is `nil`.
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
  Returns the errno, 0 or positive, and the extended acknowledgement of an `NLMSG_ERROR` or `NLMSG_DONE`. The
  acknowledgement is `nil` when the message has none, or when it cannot be decoded.

  `request` is the message that was sent, as bytes. `:attribute` is taken from it.

      iex> answer = %NetlinkPort.Message{type: 2, payload: <<-17::signed-32-native, 0::128>>}
      iex> NetlinkPort.ExtAck.read(answer, <<>>)
      {17, nil}
  """
  @spec read(Message.t(), binary()) :: {non_neg_integer(), t() | nil}
  def read(%Message{payload: <<errno::signed-32-native, rest::binary>>} = message, request)
      when is_binary(request) do
    {-errno, message |> attributes(rest) |> extended(request)}
  end

  # An NLMSG_DONE without an errno.
  def read(%Message{}, request) when is_binary(request), do: {0, nil}

  def read(message, request) do
    raise ArgumentError,
          "expected a NetlinkPort.Message and the bytes of its request, " <>
            "got: #{inspect(message)} and #{inspect(request)}"
  end

  defp attributes(message, rest) do
    cond do
      not Message.flag?(message, :ack_tlvs) -> <<>>
      Message.control(message.type) == :done -> rest
      Message.flag?(message, :capped) -> behind(rest, 16)
      true -> behind(rest, echoed(rest))
    end
  end

  # The padded length of the request that the message repeats.
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
