defmodule NetlinkPort.Request.Permission do
  @moduledoc false
  # What the kernel's refusal of a request is about: a capability that the helper lacks, or a namespace that it is in.

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
    error = Refusal.request(error, wanted, socket.netns, Reference.privileges(socket.helper))
    if error.lacks, do: error, else: elsewhere(error, wanted)
  end

  def explain(
        %Error{stage: :request, reason: :econnrefused} = error,
        message,
        %Socket{} = socket
      ),
      do: elsewhere(error, Family.capability(socket.protocol, message.type))

  def explain(error, _message, _socket), do: error

  # audit_netlink_ok, kernel/audit.c
  defp elsewhere(%{reason: :econnrefused} = error, wanted)
       when wanted in [:audit_control, :audit_write] do
    %{
      error
      | hint:
          "NETLINK_AUDIT is there for the first user namespace alone, and the helper is in another"
    }
  end

  defp elsewhere(%{reason: :eperm} = error, :audit_control) do
    hint =
      "refused, though the helper has CAP_AUDIT_CONTROL: NETLINK_AUDIT takes commands from the first pid namespace " <>
        "alone (--pid=host of a container)"

    %{error | hint: hint}
  end

  defp elsewhere(error, _wanted), do: error
end
