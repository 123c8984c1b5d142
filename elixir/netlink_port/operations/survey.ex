defmodule NetlinkPort.Operations.Survey do
  @moduledoc false
  # What all servers of this node tell, asked at once: one that does not answer holds up no other.

  alias NetlinkPort.Error
  alias NetlinkPort.Server.Witness

  @type told :: {pid(), {:ok, NetlinkPort.server_stats()} | {:error, Error.t()}}

  @doc "The statistics of each server but those in `without`, where nil is none, within `patience` ms."
  @spec stats(timeout(), [pid() | nil]) :: [told()]
  def stats(patience, without \\ []) do
    servers = Witness.servers() -- without

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
