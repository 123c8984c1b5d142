defmodule NetlinkPort.Nlctrl do
  @moduledoc false
  # What nlctrl tells of families, said by a process in user space: this kernel cannot unload a module.
  # Only sockets with `user_peers: true` hear it.

  alias NetlinkPort.{Attr, Message}

  @nlctrl 16
  @version 2

  @doc "A socket that speaks in the group `notify` of a namespace."
  def peer!(server, netns) do
    opts = [netns: {:name, netns}, user_peers: true, active: false]
    {:ok, socket} = NetlinkPort.open(server, :generic, opts)
    socket
  end

  @doc "CTRL_CMD_NEWFAMILY of a family and its groups, by name."
  def registered(peer, name, id, groups), do: tell(peer, datagram(1, name, id, groups))

  @doc "CTRL_CMD_DELFAMILY."
  def unregistered(peer, name, id), do: tell(peer, datagram(2, name, id, %{}))

  # To the group of that number, as a mask, and to the kernel, which takes it for no request.
  defp tell(peer, datagram) do
    :ok = NetlinkPort.send(peer, datagram, to: {0, Bitwise.bsl(1, @nlctrl - 1)})
  end

  @doc "Such a message, as a datagram."
  def datagram(command, name, id, groups) do
    groups =
      for {{group, number}, n} <- Enum.with_index(groups, 1),
          do: {n, [{1, group <> <<0>>}, {2, Attr.u32(number)}]}

    attrs = [{1, Attr.u16(id)}, {2, name <> <<0>>}, {3, Attr.u32(1)}, {7, groups}]
    payload = IO.iodata_to_binary([<<command, @version, 0::16>>, Attr.encode(attrs)])
    IO.iodata_to_binary(Message.encode(%Message{type: @nlctrl, payload: payload}))
  end
end
