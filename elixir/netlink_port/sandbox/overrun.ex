defmodule NetlinkPort.Sandbox.Overrun do
  @moduledoc false
  # Makes the kernel drop an exact number of datagrams of a socket. While the helper of the socket is stopped, another
  # helper fills the socket's receive buffer, until the drop counter of /proc/net/netlink has reached the number.
  #
  # The filling datagrams are sent to a multicast group that only this socket has joined, so no other socket gets
  # them. They come from user space, so the helper does not pass them to the owner. The kernel gets a copy and ignores
  # it: the type is NLMSG_NOOP, without NLM_F_REQUEST.

  alias NetlinkPort.{Arguments, Message}

  @noop 1
  # One skb, well below the usual sndbuf.
  @filler 60_000
  # The groups that an address can name (`nl_groups`).
  @groups 1..32

  @doc """
  Drops `count` datagrams of each of `sockets`, in the namespace of `info`. `stop` stops the helper of the sockets,
  and `continue` continues it. `lose` runs when all receive buffers are full.
  """
  @spec make(map(), GenServer.server(), [NetlinkPort.Socket.t()], pos_integer(), map()) ::
          :ok | {:error, term()}
  def make(info, helping, sockets, count, %{stop: stop, continue: continue, lose: lose}) do
    with {:ok, victims} <- join(info, sockets) do
      try do
        with :ok <- stop.(), {:ok, victims} <- senders(info, helping, victims) do
          result = lose(info, victims, count, lose)
          for victim <- victims, do: NetlinkPort.close(victim.sender)
          result
        end
      after
        :ok = continue.()
        for victim <- victims, do: NetlinkPort.leave(victim.socket, victim.group)
      end
    end
  end

  defp lose(info, victims, count, lose) do
    with :ok <- each(victims, &fill(info, &1, &1.before + 1)) do
      _result = lose.()
      each(victims, &fill(info, &1, &1.before + count))
    end
  end

  defp join(info, sockets) do
    collect(sockets, fn socket ->
      group = free_group(info, socket)

      with {:ok, %{port_id: port_id}} <- NetlinkPort.info(socket),
           :ok <- NetlinkPort.join(socket, group) do
        {:ok, %{socket: socket, key: {number(socket), port_id}, group: group}}
      end
    end)
  end

  defp senders(info, helping, victims) do
    opts = [netns: {:pid, info.os_pid}, user_peers: true, active: false]

    collect(victims, fn victim ->
      with {:ok, sender} <- NetlinkPort.open(helping, victim.socket.protocol, opts) do
        {:ok, Map.merge(victim, %{sender: sender, before: drops(info, victim.key)})}
      end
    end)
  end

  defp collect(list, fun) do
    Enum.reduce_while(list, {:ok, []}, fn one, {:ok, done} ->
      case fun.(one) do
        {:ok, result} -> {:cont, {:ok, [result | done]}}
        failed -> {:halt, failed}
      end
    end)
  end

  defp each(victims, fun) do
    Enum.find_value(victims, :ok, fn victim -> with :ok <- fun.(victim), do: nil end)
  end

  defp free_group(info, socket) do
    taken = for {protocol, _, groups, _} <- table(info), protocol == number(socket), do: groups
    taken = Enum.reduce(taken, 0, &Bitwise.bor/2)
    # The upper groups are the least used.
    Enum.find(Enum.reverse(@groups), &(Bitwise.band(taken, Bitwise.bsl(1, &1 - 1)) == 0)) ||
      raise "all 32 groups of the protocol are taken in the namespace"
  end

  defp number(socket), do: Arguments.protocol!(socket.protocol)

  defp fill(info, victim, wanted) do
    case drops(info, victim.key) do
      drops when drops < wanted ->
        with :ok <- send_one(victim), do: fill(info, victim, wanted)

      ^wanted ->
        :ok

      drops ->
        {:error, "#{drops - victim.before} datagrams were lost: `lose:` makes more of them"}
    end
  end

  defp send_one(victim) do
    message = Message.encode(%Message{type: @noop, payload: :binary.copy(<<0>>, @filler)})
    to = {0, Bitwise.bsl(1, victim.group - 1)}

    # For a protocol without a kernel socket the copy for the kernel is refused, after the group got its own.
    case NetlinkPort.send(victim.sender, message, to: to) do
      {:error, %{reason: :econnrefused}} -> :ok
      sent -> sent
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
