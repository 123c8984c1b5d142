defmodule Sample.Events do
  @moduledoc false
  # Prints what happens to the links of a namespace, a line an event.
  use GenServer

  alias NetlinkPort.{Attr, Message}

  # RTNLGRP_LINK, RTM_NEWLINK, RTM_DELLINK, IFLA_IFNAME: include/uapi/linux/rtnetlink.h, if_link.h
  @links 1
  @events %{16 => "new", 17 => "deleted"}
  @ifname 3

  def start_link(netns), do: GenServer.start_link(__MODULE__, netns)

  @impl true
  def init(netns) do
    case NetlinkPort.open(Sample.Netlink, :route, netns: netns, groups: [@links]) do
      {:ok, socket} ->
        {:ok, %{verified: verified}} = NetlinkPort.info(socket)
        IO.puts("watching the links of #{inspect(netns)}, verified: #{verified}")
        {:ok, socket}

      {:error, error} ->
        {:stop, Exception.message(error)}
    end
  end

  @impl true
  def handle_info({:netlink, socket, datagram}, socket) do
    {:ok, messages} = Message.decode(datagram)

    for %Message{type: type, payload: <<_header::binary-16, attributes::binary>>} <- messages,
        event = @events[type] do
      {:ok, attributes} = Attr.decode(attributes)
      {:ok, name} = Attr.string(attributes, @ifname)
      IO.puts("#{event} link #{name}")
    end

    {:noreply, socket}
  end

  # The supervisor starts this process again, which opens the socket again.
  def handle_info({:netlink_closed, socket, reason}, socket), do: {:stop, reason, socket}
end
