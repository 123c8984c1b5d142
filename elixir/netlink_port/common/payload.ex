defmodule NetlinkPort.Payload do
  @moduledoc false
  # What is to be sent: iodata, and pins (NetlinkPort.Pin) where it names a namespace by a descriptor. A pin stays in
  # it until it is known which helper sends it, since the number is right there alone; without
  # one nothing is looked at but the length.

  alias NetlinkPort.{Error, Pin, Socket}
  alias NetlinkPort.Helper.Reference

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

  @doc "With the numbers of its pins, to be sent on a socket. Refuses a pin that is not of its helper."
  @spec resolve(Pin.payload(), Socket.t()) :: {:ok, iodata()} | {:error, Error.t()}
  def resolve(payload, %Socket{} = socket) do
    if iodata_size(payload) do
      {:ok, payload}
    else
      {:ok, replace(payload, &number_on!(&1, socket.link))}
    end
  catch
    {__MODULE__, reason, pin} -> {:error, Error.new(:pin, reason, subject: inspect(pin))}
  end

  @doc "The same of the payloads of a request, a dump or a batch."
  @spec resolve_question(question, Socket.t()) :: {:ok, question} | {:error, Error.t()}
        when question:
               {:request | :dump, 0..0xFFFF, Pin.payload(), map()}
               | {:batch, [{0..0xFFFF, 0..0xFFFF, Pin.payload()}]}
  def resolve_question({kind, type, payload, opts}, socket) do
    with {:ok, payload} <- resolve(payload, socket), do: {:ok, {kind, type, payload, opts}}
  end

  def resolve_question({:batch, requests} = question, socket) do
    if Enum.all?(requests, &iodata_size(elem(&1, 2))),
      do: {:ok, question},
      else: resolve_each(requests, socket, [])
  end

  defp resolve_each([], _socket, resolved), do: {:ok, {:batch, Enum.reverse(resolved)}}

  defp resolve_each([{type, flags, payload} | requests], socket, resolved) do
    with {:ok, payload} <- resolve(payload, socket),
         do: resolve_each(requests, socket, [{type, flags, payload} | resolved])
  end

  # What else is in it is left as it is, for whoever encodes it to refuse.
  defp replace([head | tail], fun), do: [replace(head, fun) | replace(tail, fun)]
  defp replace(%Pin{} = pin, fun), do: fun.(pin)
  defp replace(other, _fun), do: other

  defp number(%Pin{descriptor: descriptor}), do: <<descriptor::32-native>>

  defp number_on!(%Pin{} = pin, link) do
    case refusal(pin, link) do
      nil -> number(pin)
      reason -> throw({__MODULE__, reason, pin})
    end
  end

  defp refusal(%Pin{link: %Reference{server: server}} = pin, %Reference{server: server} = link) do
    cond do
      # A socket elsewhere is sent on by its server. The kernel refuses the number of a pin that has ended.
      not Reference.local?(link) -> nil
      Reference.pin?(link, pin.handle) -> nil
      Process.alive?(server) -> :ebadf
      true -> :epipe
    end
  end

  defp refusal(%Pin{link: %Reference{server: other} = its}, _link) do
    if Reference.local?(its) and not Process.alive?(other), do: :epipe, else: :exdev
  end
end
