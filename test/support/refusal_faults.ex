defmodule NetlinkPort.RefusalFaults do
  @moduledoc false
  # Opens that are refused in a place (NetlinkPort.Places), or are not: what each of them says.

  alias NetlinkPort.Places

  @doc "What is said of each open: `opens` are options of `NetlinkPort.open/3` by name."
  def told(places, place, opens, opts) do
    Process.flag(:trap_exit, true)
    Application.ensure_all_started(:logger)
    Logger.configure(level: :none)
    # An installed helper cannot be run there at all.
    helper = if place == :unbounded_user, do: places.built, else: Places.helper(places, place)
    {:ok, server} = NetlinkPort.start_link([name: nil, executable: helper] ++ opts)
    Map.new(opens, fn {name, {protocol, netns}} -> {name, open(server, protocol, netns)} end)
  end

  defp open(server, protocol, netns) do
    case NetlinkPort.open(server, protocol, netns: netns) do
      {:ok, socket} ->
        NetlinkPort.close(socket)
        :ok

      {:error, error} ->
        Exception.message(error)
    end
  end
end
