defmodule NetlinkPort.Doctor.Servers do
  @moduledoc false
  # Checks the servers that run on this node.

  alias NetlinkPort.{Doctor, Error}
  alias NetlinkPort.Operations.Survey

  # How long a server may take to answer, in ms.
  @patience 5_000

  @doc "The answer of each server, except the doctor's own."
  @spec stats(pid() | nil) :: [Survey.told()]
  def stats(own), do: Survey.stats(@patience, [own])

  @spec checks([Survey.told()]) :: [Doctor.check()]
  def checks([]) do
    [
      {:ok, "none on this node; --node looks at a running application, and so does `bin/app rpc`",
       nil}
    ]
  end

  def checks(servers), do: Enum.flat_map(servers, &check/1)

  # The server has ended meanwhile.
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
    backed_up = Enum.filter(stats.sockets, &backed_up?/1)

    line =
      "#{name}: helper #{stats.os_pid}, up #{div(stats.uptime, 1_000)} s, #{kb(stats.rss)}, " <>
        "sockets: #{length(stats.sockets)}, pins: #{length(stats.pins)}, descriptors: #{stats.fds} of #{stats.max_fds}, " <>
        "restarts: #{stats.restarts}, datagrams dropped: #{dropped}"

    cond do
      backed_up != [] ->
        [{:warn, line <> ", " <> waits(backed_up), backed_up_remedy()}]

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
           "close sockets, end pins, or raise the descriptors of the VM: ulimit -n, LimitNOFILE="}
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

  # With broadcast_error conntrack keeps the entry of a flow until its end could be delivered: NetlinkPort.setopts/2.
  defp backed_up?(%{broadcast_error: true} = socket) do
    socket.window_left == 0 or 2 * socket.queued_bytes > socket.queue_limit
  end

  defp backed_up?(_socket), do: false

  defp waits([%{socket: socket, owner: owner} | more]) do
    others = if more == [], do: "", else: ", and #{length(more)} more"
    "#{inspect(socket)} of #{inspect(owner)} has broadcast_error, and is not read#{others}"
  end

  defp backed_up_remedy do
    "it can fill the conntrack table of its namespace: take its datagrams, or set broadcast_error: false; " <>
      "nf_conntrack_count in /proc/sys/net/netfilter there shows how full that is"
  end

  defp kb(nil), do: "memory not told"
  defp kb(bytes), do: "#{div(bytes, 1024)} kB"
end
