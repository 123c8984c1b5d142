defmodule NetlinkPort.Sandbox.Overrun do
  @moduledoc false
  # Has the kernel drop an exact number of datagrams of a socket. While its helper is stopped another fills the
  # socket's receive buffer, and goes on until the kernel has counted so many drops (proc(5),
  # /proc/net/netlink).
  #
  # What fills it is sent to a multicast group that this socket alone is in meanwhile, so that no other is
  # touched, and comes from user space: the helper does not hand it on. The type is NLMSG_NOOP, and there is no
  # NLM_F_REQUEST: the kernel, which gets a copy, does nothing.

  alias NetlinkPort.{Message, Options}

  @noop 1
  # The kernel makes one skb of it: well below the usual sndbuf.
  @filler 60_000
  # Groups that an address can name (`nl_groups`).
  @groups 1..32

  @doc "Drops of each of these sockets, in the namespace that `info` tells of."
  @spec make(map(), pid(), [NetlinkPort.Socket.t()], pos_integer(), (() -> :ok), (() -> :ok)) ::
          :ok | {:error, term()}
  def make(info, helping, sockets, count, stop, continue) do
    with {:ok, joined} <- join(info, sockets) do
      try do
        :ok = stop.()
        fill_all(info, helping, joined, count)
      after
        :ok = continue.()
        for {socket, _port_id, group} <- joined, do: NetlinkPort.leave(socket, group)
      end
    end
  end

  defp join(info, sockets) do
    Enum.reduce_while(sockets, {:ok, []}, fn socket, {:ok, joined} ->
      group = free_group(info, socket)

      with {:ok, %{port_id: port_id}} <- NetlinkPort.info(socket),
           :ok <- NetlinkPort.join(socket, group) do
        {:cont, {:ok, [{socket, port_id, group} | joined]}}
      else
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
  end

  defp free_group(info, socket) do
    taken = for {protocol, _, groups, _} <- table(info), protocol == number(socket), do: groups
    taken = Enum.reduce(taken, 0, &Bitwise.bor/2)
    # The upper ones are the least used.
    Enum.find(Enum.reverse(@groups), &(Bitwise.band(taken, Bitwise.bsl(1, &1 - 1)) == 0)) ||
      raise "all 32 groups of the protocol are taken in the namespace"
  end

  defp number(socket), do: Options.protocol!(socket.protocol)

  defp fill_all(info, helping, joined, count) do
    Enum.reduce_while(joined, :ok, fn {socket, port_id, group}, :ok ->
      case fill(info, helping, socket, port_id, group, count) do
        :ok -> {:cont, :ok}
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
  end

  defp fill(info, helping, socket, port_id, group, count) do
    opts = [netns: {:pid, info.os_pid}, user_peers: true, active: false]

    with {:ok, sender} <- NetlinkPort.open(helping, socket.protocol, opts) do
      key = {number(socket), port_id}
      before = drops(info, key)
      message = Message.encode(%Message{type: @noop, payload: :binary.copy(<<0>>, @filler)})
      send_until(sender, {0, Bitwise.bsl(1, group - 1)}, message, info, key, before + count)
    end
  end

  defp send_until(sender, to, message, info, key, wanted) do
    if drops(info, key) >= wanted do
      NetlinkPort.close(sender)
    else
      # The kernel, where it has no part in the protocol, refuses its copy when the group has had its own.
      case NetlinkPort.send(sender, message, to: to) do
        :ok -> send_until(sender, to, message, info, key, wanted)
        {:error, %{reason: :econnrefused}} -> send_until(sender, to, message, info, key, wanted)
        failed -> failed
      end
    end
  end

  defp drops(info, {protocol, port_id}) do
    case Enum.find(table(info), &match?({^protocol, ^port_id, _groups, _drops}, &1)) do
      {_protocol, _port_id, _groups, drops} -> drops
      nil -> raise ArgumentError, "expected a socket that is open in the namespace of the sandbox"
    end
  end

  # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
  defp table(info) do
    [_head | lines] =
      "/proc/#{info.os_pid}/net/netlink" |> File.read!() |> String.split("\n", trim: true)

    for line <- lines do
      [_sk, protocol, port_id, groups, _rmem, _wmem, _dump, _locks, drops | _] =
        String.split(line)

      {String.to_integer(protocol), String.to_integer(port_id), String.to_integer(groups, 16),
       String.to_integer(drops)}
    end
  end
end
