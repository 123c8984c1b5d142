defmodule Sample.Application do
  @moduledoc false
  use Application

  # The events need a helper: where that ends, both start again.
  @impl true
  def start(_type, _args) do
    children = [{NetlinkPort, name: Sample.Netlink}, {Sample.Events, netns()}]
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
