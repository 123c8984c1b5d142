defmodule NetlinkPort.Changes do
  @moduledoc false
  # Random changes to the links and IPv4 routes of a namespace. The kernel refuses none of them, since this module
  # keeps track of the links and routes that exist.

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
  # Link n has the interface index @lo + n. Links are no bridges, since the kernel holds RTNL for 16 ms to delete one.
  @up 1

  # `routes` has the interface index of each route, `links` whether the link with an index is up.
  defstruct [:socket, :random, routes: %{}, links: %{@lo => true}]

  @doc "Starts the changes of a seed, made over a socket in the namespace."
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

  # It takes long to make or delete a link, so that most changes are to routes.
  defp next(changes) do
    case random(changes, 1_000) do
      {n, changes} when n <= 2 -> link(changes)
      {n, changes} when n <= 5 -> up_or_down(changes)
      {n, changes} when n <= 200 -> mtu(changes)
      {_n, changes} -> route(changes)
    end
  end

  defp link(changes) do
    {n, changes} = random(changes, @links)
    index = @lo + n

    if is_map_key(changes.links, index) do
      changes = without_routes(changes, index)
      {{@dellink, [], ifinfomsg(index)}, %{changes | links: Map.delete(changes.links, index)}}
    else
      attrs =
        Attr.encode([
          {3, "x#{n}" <> <<0>>},
          {18, [{1, "vxlan" <> <<0>>}, {2, [{1, Attr.u32(n)}]}]}
        ])

      request = {@newlink, [:create, :excl], [ifinfomsg(index, @up) | attrs]}
      {request, %{changes | links: Map.put(changes.links, index, true)}}
    end
  end

  # The loopback stays up.
  defp up_or_down(changes) do
    case one_of(changes, Map.keys(changes.links)) do
      {@lo, changes} ->
        mtu(changes)

      {index, changes} ->
        up? = not changes.links[index]
        changes = if up?, do: changes, else: without_routes(changes, index)
        request = {@newlink, [], ifinfomsg(index, if(up?, do: @up, else: 0))}
        {request, %{changes | links: Map.put(changes.links, index, up?)}}
    end
  end

  defp mtu(changes) do
    {index, changes} = one_of(changes, Map.keys(changes.links))
    {mtu, changes} = random(changes, 8_000)
    {{@newlink, [], [ifinfomsg(index) | Attr.encode([{4, Attr.u32(1_000 + mtu)}])]}, changes}
  end

  defp route(changes) do
    {n, changes} = random(changes, @routes)
    {what, changes} = random(changes, 3)
    {protocol, changes} = random(changes, 250)
    {index, changes} = one_of(changes, for({index, true} <- changes.links, do: index))

    case changes.routes do
      %{^n => present} when what > 1 ->
        changes = %{changes | routes: Map.delete(changes.routes, n)}
        # The protocol 0 stands for any.
        {{@delroute, [], rtmsg(n, 0, present)}, changes}

      routes ->
        flag = if is_map_key(routes, n), do: :replace, else: :excl
        changes = %{changes | routes: Map.put(routes, n, index)}
        {{@newroute, [:create, flag], rtmsg(n, protocol, index)}, changes}
    end
  end

  defp one_of(changes, list) do
    {n, changes} = random(changes, length(list))
    {list |> Enum.sort() |> Enum.at(n - 1), changes}
  end

  # The kernel deletes the routes of an interface when the interface is deleted or goes down.
  defp without_routes(changes, index) do
    %{changes | routes: changes.routes |> Enum.reject(&(elem(&1, 1) == index)) |> Map.new()}
  end

  defp ifinfomsg(index), do: <<0::32, index::32-native, 0::64>>
  defp ifinfomsg(index, up), do: <<0::32, index::32-native, up::32-native, @up::32-native>>

  # struct rtmsg: table main, scope link, unicast; RTA_DST, RTA_OIF.
  defp rtmsg(n, protocol, index) do
    destination = <<10, 1, div(n, 256), rem(n, 256)>>
    attrs = Attr.encode([{1, destination}, {4, Attr.u32(index)}])
    [<<2, 32, 0, 0, 254, protocol, 253, 1, 0::32>> | attrs]
  end
end
