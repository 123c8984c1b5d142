defmodule NetlinkPort.Server.PinNumbers do
  @moduledoc false
  # Replaces the pins in a payload by the numbers of their descriptors. A number is valid only in messages that the
  # pin's helper sends, so a pin of another helper is refused before anything is sent.

  alias NetlinkPort.{Error, Payload, Pin, Socket}
  alias NetlinkPort.Helper.Reference

  @doc "Replaces the pins in a payload that is to be sent on `socket`. Refuses a pin of another helper."
  @spec resolve(Pin.payload(), Socket.t()) :: {:ok, iodata()} | {:error, Error.t()}
  def resolve(payload, %Socket{} = socket) do
    if Payload.iodata_size(payload) do
      {:ok, payload}
    else
      resolved = Payload.replace(payload, &number_on!(&1, socket.helper))
      if Payload.iodata_size(resolved), do: {:ok, resolved}, else: Payload.wrong!(payload)
    end
  catch
    {__MODULE__, reason, pin} -> {:error, Error.new(:pin, reason, subject: inspect(pin))}
  end

  @doc "As `resolve/2`, for the payloads of a request, a dump or a batch."
  @spec resolve_question(question, Socket.t()) :: {:ok, question} | {:error, Error.t()}
        when question:
               {:request | :dump, 0..0xFFFF, Pin.payload(), map()}
               | {:batch, [{0..0xFFFF, 0..0xFFFF, Pin.payload()}]}
  def resolve_question({kind, type, payload, opts}, socket) do
    with {:ok, payload} <- resolve(payload, socket), do: {:ok, {kind, type, payload, opts}}
  end

  def resolve_question({:batch, requests} = question, socket) do
    if Enum.all?(requests, &Payload.iodata_size(elem(&1, 2))),
      do: {:ok, question},
      else: resolve_each(requests, socket, [])
  end

  defp resolve_each([], _socket, resolved), do: {:ok, {:batch, Enum.reverse(resolved)}}

  defp resolve_each([{type, flags, payload} | requests], socket, resolved) do
    with {:ok, payload} <- resolve(payload, socket),
         do: resolve_each(requests, socket, [{type, flags, payload} | resolved])
  end

  defp number_on!(%Pin{} = pin, helper) do
    case refusal(pin, helper) do
      nil -> Payload.number(pin)
      reason -> throw({__MODULE__, reason, pin})
    end
  end

  defp refusal(
         %Pin{helper: %Reference{server: server}} = pin,
         %Reference{server: server} = helper
       ) do
    cond do
      # On another node the server sends the datagram, and the kernel refuses the number of a pin that has ended.
      not Reference.local?(helper) -> nil
      Reference.pin?(helper, pin.handle) -> nil
      Process.alive?(server) -> :ebadf
      true -> :epipe
    end
  end

  defp refusal(%Pin{helper: %Reference{server: other} = its}, _link) do
    if Reference.local?(its) and not Process.alive?(other), do: :epipe, else: :exdev
  end
end
