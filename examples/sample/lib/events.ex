defmodule Sample.Events do
  @moduledoc false
  # Prints the events of the links of a namespace, a line for each.
  use GenServer

  alias NetlinkPort.{Attr, Message}

  # RTNLGRP_LINK, RTM_NEWLINK, RTM_DELLINK, IFLA_IFNAME: include/uapi/linux/rtnetlink.h, if_link.h
  @links 1
  @events %{16 => "new", 17 => "deleted"}
  @ifname 3

  # `report:` is the function that is called with each line.
  def start_link(opts), do: GenServer.start_link(__MODULE__, Map.new(opts))

  @impl true
  def init(%{server: server, netns: netns} = opts) do
    report = Map.get(opts, :report, &IO.puts/1)

    case NetlinkPort.open(server, :route, netns: netns, groups: [@links]) do
      {:ok, socket} ->
        {:ok, %{verified: verified}} = NetlinkPort.info(socket)
        report.("watching the links of #{inspect(netns)}, verified: #{verified}")
        {:ok, %{socket: socket, report: report}}

      {:error, error} ->
        {:stop, Exception.message(error)}
    end
  end

  @impl true
  def handle_info({:netlink, socket, datagram}, %{socket: socket} = state) do
    {:ok, messages} = Message.decode(datagram)

    for %Message{type: type, payload: <<_header::binary-16, attributes::binary>>} <- messages,
        event = @events[type] do
      {:ok, attributes} = Attr.decode(attributes)
      {:ok, name} = Attr.string(attributes, @ifname)
      state.report.("#{event} link #{name}")
    end

    {:noreply, state}
  end

  def handle_info({:netlink_overrun, socket, dropped}, %{socket: socket} = state) do
    state.report.("missed #{dropped} datagrams")
    {:noreply, state}
  end

  # The contents of a datagram that could not be received.
  def handle_info({:netlink_error, socket, error}, %{socket: socket} = state) do
    state.report.("missed one: " <> Exception.message(error))
    {:noreply, state}
  end

  # The supervisor starts this process again, which opens the socket again.
  def handle_info({:netlink_closed, socket, reason}, %{socket: socket} = state) do
    {:stop, reason, state}
  end
end
