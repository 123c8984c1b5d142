defmodule NetlinkPort.Generic.Cache do
  @moduledoc false
  # The generic families that the calling process has looked up, for each namespace of a server and for each connection.
  # They are in its process dictionary.

  alias NetlinkPort.{Generic, Socket}

  @max_size 256

  @spec fetch(Generic.via(), String.t()) :: {:ok, Generic.t()} | :error
  def fetch(via, name), do: Map.fetch(families(), {place(via), name})

  @spec put(Generic.via(), Generic.t()) :: :ok
  def put(via, %{name: name} = family) do
    families = families()
    # A full cache starts anew. The families in use are soon back.
    families = if map_size(families) < @max_size, do: families, else: %{}
    _old = Process.put(__MODULE__, Map.put(families, {place(via), name}, family))
    :ok
  end

  defp families, do: Process.get(__MODULE__, %{})

  defp place(%Socket{helper: helper, netns: netns}), do: {helper.server, netns}
  defp place(connection), do: connection
end
