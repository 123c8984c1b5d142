defmodule NetlinkPort.RefusalFaults do
  @moduledoc false
  # Opens in a place (NetlinkPort.Places), and the sentence of each that is refused.

  alias NetlinkPort.Places

  @doc "Opens sockets and returns `:ok` or the sentence of each. `opens` has a protocol and a `netns:` by name."
  def told(places, place, opens, opts) do
    Process.flag(:trap_exit, true)
    Application.ensure_all_started(:logger)
    Logger.configure(level: :none)
    # The installed helper cannot be run there.
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
