defmodule Sample.Links do
  @moduledoc false
  # Keeps the names of the links of a namespace, as a subscriber of a monitor: first those of a snapshot, then each
  # change. While the monitor is down the names are `:unknown`.
  use GenServer

  alias NetlinkPort.{Attr, Message, Monitor}

  # RTM_NEWLINK, RTM_DELLINK, IFLA_IFNAME: include/uapi/linux/rtnetlink.h, if_link.h
  @newlink 16
  @dellink 17
  @ifname 3

  def start_link(opts) do
    GenServer.start_link(__MODULE__, opts, Keyword.take(opts, [:name]))
  end

  @doc "The names, sorted, or `:unknown` while the tables are not known."
  def names(links), do: GenServer.call(links, :names)

  @impl true
  def init(opts) do
    monitor = Keyword.fetch!(opts, :monitor)
    {:ok, pid} = Monitor.subscribe(monitor, Keyword.take(opts, [:max_queue]))
    # A monitor sends no message when it ends. This process ends with it, and is restarted.
    Process.monitor(pid)
    {:ok, :unknown}
  end

  @impl true
  def handle_call(:names, _from, links) when is_map(links) do
    {:reply, links |> Map.values() |> Enum.sort(), links}
  end

  def handle_call(:names, _from, links), do: {:reply, :unknown, links}

  @impl true
  def handle_info({:netlink_snapshot, _monitor, :begin}, _links), do: {:noreply, {:reading, %{}}}

  def handle_info({:netlink_snapshot, _monitor, :end}, {:reading, links}), do: {:noreply, links}

  def handle_info({:netlink_snapshot, _monitor, messages}, {:reading, links}) do
    {:noreply, {:reading, Enum.reduce(messages, links, &change/2)}}
  end

  def handle_info({:netlink_event, _monitor, datagram}, links) when is_map(links) do
    {:ok, messages} = Message.decode(datagram)
    {:noreply, Enum.reduce(messages, links, &change/2)}
  end

  # Something was missed, and a snapshot follows, or the monitor is down.
  def handle_info({tag, _monitor, _reason}, _links)
      when tag in [:netlink_resync, :netlink_down] do
    {:noreply, :unknown}
  end

  def handle_info({:DOWN, _ref, :process, _monitor, reason}, links), do: {:stop, reason, links}

  # An event before the first snapshot, or a dump that has failed and is tried again.
  def handle_info(_message, links), do: {:noreply, links}

  defp change(%{type: @newlink, payload: payload}, links) do
    <<0, _::24, index::32-native, _::64, attributes::binary>> = payload
    {:ok, attributes} = Attr.decode(attributes)
    {:ok, name} = Attr.string(attributes, @ifname)
    Map.put(links, index, name)
  end

  defp change(%{type: @dellink, payload: <<0, _::24, index::32-native, _::binary>>}, links) do
    Map.delete(links, index)
  end

  defp change(_other, links), do: links
end
