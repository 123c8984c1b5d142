defmodule NetlinkPort.Operations.Survey do
  @moduledoc false
  # Asks all servers of this node for their statistics at once. A server that does not answer delays no other.

  alias NetlinkPort.Error
  alias NetlinkPort.Server.OwnerNotifier

  @type told :: {pid(), {:ok, NetlinkPort.server_stats()} | {:error, Error.t()}}

  @doc "The statistics of each server, within `patience` ms. Servers in `without` are left out; `nil` is ignored."
  @spec stats(timeout(), [pid() | nil]) :: [told()]
  def stats(patience, without \\ []) do
    servers = OwnerNotifier.servers() -- without

    servers
    |> Task.async_stream(&NetlinkPort.stats/1,
      timeout: patience,
      on_timeout: :kill_task,
      max_concurrency: max(length(servers), 1)
    )
    |> Enum.zip_with(servers, fn
      {:ok, told}, server -> {server, told}
      {:exit, _late}, server -> {server, {:error, Error.new(:thread, :etimedout)}}
    end)
  end
end
