# Moves a link from one namespace into another. The request names the other namespace by a pin, where `ip link set
# LINK netns NAME` uses a descriptor of ip itself. With --nsid the script first gives the other namespace an id in
# the first one, and shows the id. With --connection all requests go over a NetlinkPort.Connection.
#
#     mix run examples/move_link.exs --netns FROM --to NAME [--nsid N] [--connection] LINK
#
# To try it, and to move the link back:
#
#     ip netns add blue; ip netns add red
#     ip -n blue link add v0 type veth peer name v1
#     mix run examples/move_link.exs --netns blue --to red --nsid 7 v1
#     mix run examples/move_link.exs --netns red --to blue v1

defmodule Examples.MoveLink do
  alias NetlinkPort.{Attr, Connection, Message}

  # include/uapi/linux/rtnetlink.h, if_link.h, net_namespace.h
  @rtm_newlink 16
  @rtm_getlink 18
  @rtm_newnsid 88
  @rtm_getnsid 90
  @ifla_ifname 3
  @ifla_net_ns_fd 28
  @netnsa_nsid 1
  @netnsa_fd 3

  @switches [netns: :string, to: :string, nsid: :integer, connection: :boolean]

  def main(arguments) do
    {:ok, _supervisor} = Supervisor.start_link([NetlinkPort], strategy: :one_for_one)
    {opts, [link]} = OptionParser.parse!(arguments, strict: @switches)
    ask = asker({:name, opts[:netns]}, opts[:connection])

    case moved(ask, link, {:name, opts[:to]}, opts[:nsid]) do
      {:ok, nsid} ->
        IO.puts("#{link} is in #{opts[:to]}, which is #{name(nsid)} in #{opts[:netns]}")

      {:error, error} ->
        IO.puts(:stderr, Exception.message(error))
        System.halt(1)
    end
  end

  # Opens a socket or a connection in a namespace, which carries out requests.
  defp asker(netns, true) do
    {:ok, connection} = Connection.start_link(protocol: :route, netns: netns)
    fn type, payload -> Connection.request(connection, type, payload) end
  end

  defp asker(netns, nil) do
    {:ok, socket} = NetlinkPort.open(:route, netns: netns, active: false)
    fn type, payload -> NetlinkPort.request(socket, type, payload) end
  end

  defp moved(ask, link, to, nsid) do
    # The pin keeps the namespace alive, even if nothing else is left in it.
    with {:ok, pin} <- NetlinkPort.pin(to),
         {:ok, index} <- index(ask, link),
         :ok <- give_nsid(ask, pin, nsid),
         {:ok, []} <- ask.(@rtm_newlink, [about(index) | Attr.encode([{@ifla_net_ns_fd, pin}])]),
         {:ok, nsid} <- nsid(ask, pin) do
      :ok = NetlinkPort.unpin(pin)
      {:ok, nsid}
    end
  end

  # struct ifinfomsg
  defp about(index), do: <<0::32, index::32-native, 0::64>>

  defp index(ask, link) do
    payload = [about(0) | Attr.encode([{@ifla_ifname, link <> <<0>>}])]

    with {:ok, [%Message{payload: <<_::32, index::32-native, _::binary>>}]} <-
           ask.(@rtm_getlink, payload),
         do: {:ok, index}
  end

  # struct rtgenmsg, padded, and the attribute that names the namespace.
  defp give_nsid(_ask, _pin, nil), do: :ok

  defp give_nsid(ask, pin, nsid) do
    attrs = [{@netnsa_fd, pin}, {@netnsa_nsid, Attr.s32(nsid)}]
    with {:ok, []} <- ask.(@rtm_newnsid, [<<0::32>> | Attr.encode(attrs)]), do: :ok
  end

  defp nsid(ask, pin) do
    with {:ok, [%Message{payload: <<_::32, attrs::binary>>}]} <-
           ask.(@rtm_getnsid, [<<0::32>> | Attr.encode([{@netnsa_fd, pin}])]) do
      {:ok, attrs} = Attr.decode(attrs)
      Attr.s32(attrs, @netnsa_nsid)
    end
  end

  # NETNSA_NSID_NOT_ASSIGNED
  defp name(-1), do: "without an id"
  defp name(nsid), do: "nsid #{nsid}"
end

Examples.MoveLink.main(System.argv())
