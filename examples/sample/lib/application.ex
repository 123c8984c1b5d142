defmodule Sample.Application do
  @moduledoc false
  use Application

  # RTNLGRP_LINK; RTM_GETLINK of all links, behind a struct ifinfomsg.
  @links [groups: [1], dump: [{18, <<0::128>>}]]

  # The monitor and the table of links survive the end of the helper. Events has its own socket, so that the helper
  # and Events are restarted together.
  @impl true
  def start(_type, _args) do
    netns = netns()

    children = [
      {NetlinkPort.Monitor,
       [name: Sample.Monitor, server: Sample.Netlink, netns: netns] ++ @links},
      {Sample.Links, name: Sample.Links, monitor: Sample.Monitor},
      {NetlinkPort, name: Sample.Netlink},
      {Sample.Events, server: Sample.Netlink, netns: netns}
    ]

    Supervisor.start_link(children, strategy: :rest_for_one, name: Sample.Supervisor)
  end

  defp netns do
    case System.get_env("SAMPLE_NETNS") do
      nil -> :host
      "/" <> _rest = path -> {:path, path}
      name -> {:name, name}
    end
  end
end
