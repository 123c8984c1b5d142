defmodule NetlinkPort.Nlctrl do
  @moduledoc false
  # Sends events of nlctrl about families from user space, since a test cannot load and unload modules of the kernel.
  # Only sockets with `user_peers: true` receive them.

  alias NetlinkPort.{Attr, Message}

  @nlctrl 16
  @version 2

  @doc "A socket that sends to the group `notify` of a namespace."
  def peer!(server, netns) do
    opts = [netns: {:name, netns}, user_peers: true, active: false]
    {:ok, socket} = NetlinkPort.open(server, :generic, opts)
    socket
  end

  @doc "Sends CTRL_CMD_NEWFAMILY of a family and its groups, by name."
  def registered(peer, name, id, groups), do: tell(peer, datagram(1, name, id, groups))

  @doc "Sends CTRL_CMD_DELFAMILY."
  def unregistered(peer, name, id), do: tell(peer, datagram(2, name, id, %{}))

  # To the group, as a mask, and to the kernel (0), which ignores it because it is no request.
  defp tell(peer, datagram) do
    :ok = NetlinkPort.send(peer, datagram, to: {0, Bitwise.bsl(1, @nlctrl - 1)})
  end

  @doc "The datagram of such a message."
  def datagram(command, name, id, groups) do
    groups =
      for {{group, number}, n} <- Enum.with_index(groups, 1),
          do: {n, [{1, group <> <<0>>}, {2, Attr.u32(number)}]}

    attrs = [{1, Attr.u16(id)}, {2, name <> <<0>>}, {3, Attr.u32(1)}, {7, groups}]
    payload = IO.iodata_to_binary([<<command, @version, 0::16>>, Attr.encode(attrs)])
    IO.iodata_to_binary(Message.encode(%Message{type: @nlctrl, payload: payload}))
  end
end
