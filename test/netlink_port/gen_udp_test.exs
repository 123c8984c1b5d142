defmodule NetlinkPort.GenUdpTest do
  # Compares with :gen_udp: random sequences of an owner's calls, the same on both, and what both return and deliver.
  use NetlinkPort.Case, async: true

  @moduletag :root

  @sequences 2_000
  @longest 8
  @modes [true, false, :once, 0, 1, 2, 3, -1, -2, -32_768]

  setup do
    server = start_server!()
    {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    {:ok, udp} = :gen_udp.open(0, [:binary, ip: {127, 0, 0, 1}, active: false])
    {:ok, port} = :inet.port(udp)
    {:ok, sender} = :gen_udp.open(0, [:binary, ip: {127, 0, 0, 1}, active: false])
    on_exit(fn -> for socket <- [udp, sender], do: :gen_udp.close(socket) end)
    {:ok, ours: {:ours, socket}, theirs: {:theirs, udp, sender, port}, server: server}
  end

  ## The same calls on both

  defp set({:ours, socket}, opts), do: said(NetlinkPort.setopts(socket, opts))

  # `:inet` applies the last option first.
  defp set({:theirs, udp, _, _}, opts),
    do: :inet.setopts(udp, opts |> Enum.reverse() |> Enum.map(&theirs/1))

  defp theirs({:rcvbuf, bytes}), do: {:recbuf, bytes}
  defp theirs(option), do: option

  defp get({:ours, socket}), do: NetlinkPort.getopts(socket, [:active])
  defp get({:theirs, udp, _, _}), do: :inet.getopts(udp, [:active])

  # Makes a numbered datagram come: on a netlink socket the ack of a message without effect.
  defp come({:ours, socket}, number),
    do: :ok = NetlinkPort.send(socket, Rtnl.noop(number), wait: true)

  # On loopback too a datagram can arrive later than send/4 returns. The sender's own, sent after it, arrives after it.
  defp come({:theirs, _udp, sender, port}, number) do
    {:ok, own} = :inet.port(sender)
    for port <- [port, own], do: :ok = :gen_udp.send(sender, {127, 0, 0, 1}, port, <<number::32>>)
    {:ok, _datagram} = :gen_udp.recv(sender, 0, within(2_000))
  end

  defp take({:ours, socket}) do
    case NetlinkPort.recv(socket, 0) do
      {:ok, <<_::64, number::32-native, _::binary>>} -> {:ok, number}
      {:error, %{reason: :etimedout}} -> {:error, :timeout}
      {:error, %{reason: reason}} -> {:error, reason}
    end
  end

  defp take({:theirs, udp, _, _}) do
    with {:ok, {_address, _port, <<number::32>>}} <- :gen_udp.recv(udp, 0, 0), do: {:ok, number}
  end

  defp said(:ok), do: :ok
  defp said({:error, error}), do: {:error, error.reason}

  # The messages delivered so far. A netlink socket has delivered all when the helper has answered.
  defp delivered({:ours, socket}) do
    {:ok, _info} = NetlinkPort.info(socket)
    ours(socket)
  end

  defp ours(socket) do
    receive do
      {:netlink, ^socket, <<_::64, number::32-native, _::binary>>} -> [number | ours(socket)]
      {:netlink_passive, ^socket} -> [:passive | ours(socket)]
    after
      0 -> []
    end
  end

  # Takes the expected number. More messages are found after the next step, or at the end.
  defp delivered({:theirs, _udp, _, _}, 0), do: []

  defp delivered({:theirs, udp, _, _} = socket, count) do
    receive do
      {:udp, ^udp, _address, _port, <<number::32>>} -> [number | delivered(socket, count - 1)]
      {:udp_passive, ^udp} -> [:passive | delivered(socket, count - 1)]
    after
      within(2_000) -> []
    end
  end

  ## Sequences

  # A count that is refused is tried alone, since `:inet` carries out a part of a refused list.
  @beyond for count <- [32_767, 32_767, -32_768], do: {:set, active: count}

  defp sequence do
    for _n <- 1..:rand.uniform(@longest) do
      case :rand.uniform(20) do
        1 -> @beyond
        n when n <= 8 -> [{:set, for(_n <- 1..:rand.uniform(3), do: option())}]
        n when n <= 16 -> [{:come, :rand.uniform(3)}]
        _n -> [:take]
      end
    end
    |> Enum.concat()
  end

  defp option do
    if :rand.uniform(8) == 1,
      do: {:rcvbuf, 200_000},
      else: {:active, Enum.random(@modes)}
  end

  defp step({:set, opts}, socket, _from), do: set(socket, opts)
  defp step({:come, count}, socket, from), do: Enum.each(1..count, &come(socket, from + &1))
  defp step(:take, socket, _from), do: take(socket)

  test "#{@sequences} random sequences of setopts, recv and datagrams are as with :gen_udp",
       %{ours: ours, theirs: theirs} do
    # Seeded by ExUnit.
    for n <- 1..@sequences, reduce: 0 do
      from ->
        sequence = sequence()

        from =
          for {what, index} <- Enum.with_index(sequence), reduce: from do
            from ->
              context = {n, Enum.take(sequence, index + 1)}
              assert {context, step(what, ours, from)} == {context, step(what, theirs, from)}
              messages = delivered(ours)
              assert {context, messages} == {context, delivered(theirs, length(messages))}
              assert {context, get(ours)} == {context, get(theirs)}
              from + if(is_tuple(what) and elem(what, 0) == :come, do: elem(what, 1), else: 0)
          end

        emptied!(sequence, ours, theirs)
        from
    end
  end

  # The rest is the same, and both are passive again.
  defp emptied!(sequence, ours, theirs) do
    assert set(ours, active: false) == set(theirs, active: false)
    assert {sequence, rest(ours)} == {sequence, rest(theirs)}
    refute_received _any
  end

  defp rest(socket) do
    case take(socket) do
      {:ok, number} -> [number | rest(socket)]
      {:error, :timeout} -> []
    end
  end
end
