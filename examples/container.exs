# Gives a container's namespace an interface `eth0`, as a runtime of containers does: a veth into the namespace, whose
# other end is a port of a bridge, an address, a default route through the bridge, and masquerading by nftables.
#
#     mix run examples/container.exs --netns NAME --container NAME --address 10.88.0.5
#
# To try it. A second run says that the interface is there:
#
#     ip netns add host; ip netns add blue
#     mix run examples/container.exs --netns host --container blue --address 10.88.0.5
#     ip netns exec blue ping -c 1 10.88.0.1

defmodule Examples.Container do
  alias NetlinkPort.{Attr, Message}

  # include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, veth.h
  @newlink 16
  @getlink 18
  @newaddr 20
  @newroute 24
  @ifname 3
  @master 10
  @linkinfo 18
  @net_ns_fd 28
  @info_kind 1
  @info_data 2
  @peer 1
  # include/uapi/linux/netfilter/nf_tables.h. The types of NFNL_SUBSYS_NFTABLES (10) begin at 0xA00.
  @batch_begin 16
  @batch_end 17
  @newtable 0xA00
  @deltable 0xA02
  @newchain 0xA03
  @newrule 0xA06

  @bridge "cni0"
  @gateway {10, 88, 0, 1}
  @new [:create, :excl]

  @switches [netns: :string, container: :string, address: :string]

  def main(arguments) do
    {:ok, _supervisor} = Supervisor.start_link([NetlinkPort], strategy: :one_for_one)
    {opts, []} = OptionParser.parse!(arguments, strict: @switches)
    {:ok, address} = opts[:address] |> String.to_charlist() |> :inet.parse_ipv4_address()

    case add({:name, opts[:netns]}, {:name, opts[:container]}, address) do
      :ok ->
        IO.puts("eth0 of #{opts[:container]} has the address #{opts[:address]}")

      {:error, error} ->
        IO.puts(:stderr, Exception.message(error))
        System.halt(1)
    end
  end

  defp add(netns, container, address) do
    with {:ok, host} <- NetlinkPort.open(:route, netns: netns, active: false),
         {:ok, inside} <- NetlinkPort.open(:route, netns: container, active: false),
         {:ok, netfilter} <- NetlinkPort.open(:netfilter, netns: netns, active: false),
         {:ok, pin} <- NetlinkPort.pin(container),
         {:ok, bridge} <- bridge(host),
         # The ends have names of their own: that of the container's end is free in its namespace.
         :ok <- new_link(host, veth("veth#{elem(address, 3)}", bridge, pin)),
         {:ok, eth0} <- index(inside, "eth0"),
         :ok <- all(inside, [up(1), up(eth0), address(eth0, address), default(eth0)]),
         do: masquerade(netfilter)
  end

  ## Links

  defp bridge(host) do
    case new_link(host, [{@ifname, name(@bridge)}, {@linkinfo, [{@info_kind, name("bridge")}]}]) do
      :ok ->
        with {:ok, bridge} <- index(host, @bridge),
             :ok <- all(host, [up(bridge), address(bridge, @gateway)]),
             do: {:ok, bridge}

      {:error, %{reason: :eexist}} ->
        index(host, @bridge)

      failed ->
        failed
    end
  end

  # VETH_INFO_PEER is a struct ifinfomsg with attributes behind it. With the pin the kernel makes this end there.
  defp veth(here, bridge, pin) do
    peer = [about(0) | Attr.encode([{@ifname, name("eth0")}, {@net_ns_fd, pin}])]
    info = [{@info_kind, name("veth")}, {@info_data, [{@peer, peer}]}]
    [{@ifname, name(here)}, {@master, Attr.u32(bridge)}, {@linkinfo, info}]
  end

  defp new_link(socket, attrs) do
    # IFF_UP
    payload = [<<0::64, 1::32-native, 1::32-native>> | Attr.encode(attrs)]
    with {:ok, []} <- NetlinkPort.request(socket, @newlink, payload, flags: @new), do: :ok
  end

  defp index(socket, link) do
    payload = [about(0) | Attr.encode([{@ifname, name(link)}])]

    with {:ok, [%Message{payload: <<_::32, index::32-native, _::binary>>}]} <-
           NetlinkPort.request(socket, @getlink, payload),
         do: {:ok, index}
  end

  # struct ifinfomsg
  defp about(index), do: <<0::32, index::32-native, 0::64>>

  defp name(name), do: name <> <<0>>

  ## Requests of a batch: type, flags, payload

  defp up(index), do: {@newlink, [], <<0::32, index::32-native, 1::32-native, 1::32-native>>}

  # struct ifaddrmsg of AF_INET and /24, with IFA_ADDRESS and IFA_LOCAL
  defp address(index, address) do
    attrs = Attr.encode([{1, bytes(address)}, {2, bytes(address)}])
    {@newaddr, @new, [<<2, 24, 0, 0, index::32-native>> | attrs]}
  end

  # struct rtmsg of RT_TABLE_MAIN, RTPROT_STATIC and RTN_UNICAST, with RTA_GATEWAY and RTA_OIF
  defp default(index) do
    attrs = Attr.encode([{5, bytes(@gateway)}, {4, Attr.u32(index)}])
    {@newroute, @new, [<<2, 0, 0, 0, 254, 4, 0, 1, 0::32>> | attrs]}
  end

  defp bytes(address), do: address |> Tuple.to_list() |> :binary.list_to_bin()

  # The first error of a batch.
  defp all(socket, requests) do
    with {:ok, outcomes} <- NetlinkPort.batch(socket, requests) do
      Enum.find(outcomes, :ok, &match?({:error, _error}, &1))
    end
  end

  ## nftables: all or nothing. The table is made anew, whether or not it was there.

  defp masquerade(netfilter) do
    table = [{1, name("example_container")}]
    hook = [{1, <<4::32>>}, {2, <<100::32>>}]
    chain = [{1, name("example_container")}, {3, name("post")}, {4, hook}, {7, name("nat")}]
    rule = [{1, name("example_container")}, {2, name("post")}, {4, expressions()}]

    transaction = [
      {@batch_begin, [], <<0, 0, 10::16>>},
      {@newtable, [:create], nft(table)},
      {@deltable, [], nft(table)},
      {@newtable, @new, nft(table)},
      {@newchain, @new, nft(chain)},
      {@newrule, [:create, :append], nft(rule)},
      {@batch_end, [], <<0, 0, 10::16>>}
    ]

    with {:ok, outcomes} <- NetlinkPort.batch(netfilter, transaction) do
      # What was undone because of another message is ECANCELED.
      refused? = &match?({:error, %{reason: reason}} when reason != :ecanceled, &1)
      Enum.find(outcomes, :ok, refused?)
    end
  end

  # struct nfgenmsg of NFPROTO_IPV4
  defp nft(attrs), do: [<<2, 0, 0::16>> | Attr.encode(attrs)]

  # meta oifname != @bridge masquerade; each an NFTA_LIST_ELEM with a name and data
  defp expressions do
    value = String.pad_trailing(@bridge, 16, <<0>>)

    for {kind, data} <- [
          {"meta", [{1, <<1::32>>}, {2, <<7::32>>}]},
          {"cmp", [{1, <<1::32>>}, {2, <<1::32>>}, {3, [{1, value}]}]},
          {"masq", []}
        ],
        do: {1, [{1, name(kind)}, {2, data}]}
  end
end

Examples.Container.main(System.argv())
