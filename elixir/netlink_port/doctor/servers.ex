defmodule NetlinkPort.Doctor.Servers do
  @moduledoc false
  # The servers that run on this node.

  alias NetlinkPort.{Doctor, Error, Witness}

  @type told :: {pid(), {:ok, NetlinkPort.server_stats()} | {:error, Error.t()}}

  # How long a server may take to tell, in ms; the others are asked meanwhile.
  @patience 5_000

  @doc "What each server tells, but for the doctor's own."
  @spec stats(pid() | nil) :: [told()]
  def stats(own) do
    servers = Witness.servers() -- [own]

    servers
    |> Task.async_stream(&NetlinkPort.stats/1,
      timeout: @patience,
      on_timeout: :kill_task,
      max_concurrency: max(length(servers), 1)
    )
    |> Enum.zip_with(servers, fn
      {:ok, told}, server -> {server, told}
      {:exit, _late}, server -> {server, {:error, Error.new(:thread, :etimedout)}}
    end)
  end

  @spec checks([told()]) :: [Doctor.check()]
  def checks([]) do
    [
      {:ok, "none on this node; --node looks at a running application, and so does `bin/app rpc`",
       nil}
    ]
  end

  def checks(servers), do: Enum.flat_map(servers, &check/1)

  # It has ended meanwhile.
  defp check({_server, {:error, %Error{reason: :esrch}}}), do: []

  defp check({server, {:error, error}}) do
    [
      {:warn, "#{inspect(server)}: " <> Exception.message(error),
       "wait: a helper that does not answer is killed, and its supervisor starts the next"}
    ]
  end

  defp check({server, {:ok, stats}}) do
    name = inspect(stats.name || server)
    dropped = Enum.sum(for socket <- stats.sockets, do: socket.drops)

    line =
      "#{name}: helper #{stats.os_pid}, up #{div(stats.uptime, 1_000)} s, #{kb(stats.rss)}, " <>
        "sockets: #{length(stats.sockets)}, descriptors: #{stats.fds} of #{stats.max_fds}, " <>
        "restarts: #{stats.restarts}, datagrams dropped: #{dropped}"

    cond do
      stats.outgoing > 0 ->
        [
          {:warn, line <> ", #{stats.outgoing} commands wait",
           "the helper does not keep up: more servers, or fewer requests at once"}
        ]

      stats.restarts > 0 ->
        [{:warn, line, "the log says how its helpers ended (domain: [:elixir, :netlink_port])"}]

      2 * stats.fds > stats.max_fds ->
        [
          {:warn, line,
           "close sockets, or raise the descriptors of the VM: ulimit -n, LimitNOFILE="}
        ]

      dropped > 0 ->
        [
          {:warn, line,
           "read faster, or open with a larger rcvbuf:; `mix netlink_port.top` shows which"}
        ]

      true ->
        [{:ok, line, nil}]
    end
  end

  defp kb(nil), do: "memory not told"
  defp kb(bytes), do: "#{div(bytes, 1024)} kB"
end
