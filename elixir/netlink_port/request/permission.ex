defmodule NetlinkPort.Request.Permission do
  @moduledoc false
  # Names the missing capability in the error of a request that the kernel has refused with EPERM.

  alias NetlinkPort.{Error, ExtAck, Message, Socket}
  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Request.Family
  alias NetlinkPort.Server.Refusal

  @doc "The error of a message. A text of the kernel is kept: it gives another cause than a missing capability."
  @spec explain(Error.t(), Message.t(), Socket.t() | nil) :: Error.t()
  def explain(%Error{ext_ack: %ExtAck{message: text}} = error, _message, _socket)
      when text != nil,
      do: error

  def explain(%Error{stage: :request, reason: :eperm} = error, message, %Socket{} = socket) do
    wanted = Family.capability(socket.protocol, message.type)
    Refusal.request(error, wanted, socket.netns, Reference.privileges(socket.helper))
  end

  def explain(error, _message, _socket), do: error
end
