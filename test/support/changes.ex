defmodule NetlinkPort.Changes do
  @moduledoc false
  # Random changes to the links and IPv4 routes of a namespace, each of which the kernel carries out:
  # what there is is remembered.

  alias NetlinkPort.Attr

  import ExUnit.Assertions

  # RTM_NEWLINK, RTM_DELLINK, RTM_NEWROUTE and RTM_DELROUTE
  @newlink 16
  @dellink 17
  @newroute 24
  @delroute 25

  @routes 2_000
  @links 20
  @lo 1

  defstruct [:socket, random: nil, routes: MapSet.new(), links: MapSet.new()]

  @doc "Changes over a socket in the namespace, from a seed."
  def new(socket, seed) do
    random = :rand.seed_s(:exsss, seed)
    %__MODULE__{socket: socket, random: random}
  end

  @doc "Makes `count` changes, in one datagram."
  def make(changes, count) do
    {requests, changes} = Enum.map_reduce(1..count, changes, fn _n, changes -> next(changes) end)
    {:ok, outcomes} = NetlinkPort.batch(changes.socket, requests, timeout: 30_000)
    assert [] == for({:error, error} <- outcomes, do: Exception.message(error))
    changes
  end

  @doc "A random number, from 1."
  def random(changes, most) do
    {number, random} = :rand.uniform_s(most, changes.random)
    {number, %{changes | random: random}}
  end

  # Links are slow to make and to delete: most changes are those of routes.
  defp next(changes) do
    case random(changes, 1_000) do
      {n, changes} when n <= 2 -> link(changes)
      {n, changes} when n <= 200 -> mtu(changes)
      {_n, changes} -> route(changes)
    end
  end

  defp link(changes) do
    {n, changes} = random(changes, @links)
    name = "br#{n}"

    if name in changes.links do
      request = {@dellink, [], [<<0::128>>, Attr.encode([{3, name <> <<0>>}])]}
      {request, %{changes | links: MapSet.delete(changes.links, name)}}
    else
      attrs = Attr.encode([{3, name <> <<0>>}, {18, [{1, "bridge" <> <<0>>}]}])
      request = {@newlink, [:create, :excl], [<<0::128>>, attrs]}
      {request, %{changes | links: MapSet.put(changes.links, name)}}
    end
  end

  # Of a bridge, or of the loopback, where there is none.
  defp mtu(changes) do
    names = Enum.sort(changes.links) ++ ["lo"]
    {n, changes} = random(changes, length(names))
    {mtu, changes} = random(changes, 8_000)
    attrs = Attr.encode([{3, Enum.at(names, n - 1) <> <<0>>}, {4, Attr.u32(1_000 + mtu)}])
    {{@newlink, [], [<<0::128>>, attrs]}, changes}
  end

  defp route(changes) do
    {n, changes} = random(changes, @routes)
    {what, changes} = random(changes, 3)

    cond do
      n not in changes.routes ->
        changes = %{changes | routes: MapSet.put(changes.routes, n)}
        {{@newroute, [:create, :excl], rtmsg(n, what)}, changes}

      what == 1 ->
        {protocol, changes} = random(changes, 250)
        {{@newroute, [:replace], rtmsg(n, protocol)}, changes}

      true ->
        changes = %{changes | routes: MapSet.delete(changes.routes, n)}
        {{@delroute, [], rtmsg(n, 0)}, changes}
    end
  end

  # struct rtmsg: table main, scope link, unicast; RTA_DST, RTA_OIF. A protocol of 0 is any.
  defp rtmsg(n, protocol) do
    destination = <<10, 1, div(n, 256), rem(n, 256)>>
    attrs = Attr.encode([{1, destination}, {4, Attr.u32(@lo)}])
    [<<2, 32, 0, 0, 254, protocol, 253, 1, 0::32>>, attrs]
  end
end
