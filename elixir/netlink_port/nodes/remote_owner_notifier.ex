defmodule NetlinkPort.Nodes.RemoteOwnerNotifier do
  @moduledoc false
  # Runs on the node of owners whose server is on another node, one process for all of the server's owners there. It
  # passes on what the server's relay (NetlinkPort.Nodes.Relay) sends. It sends each owner `:netlink_closed` once:
  # when the relay says so, or when the relay is gone, by itself, with its node or with the connection.
  #
  # Invariant: it belongs to one connection and ends with it. Messages that arrive later, over another connection,
  # find no process. So `:netlink_closed` is always the last message of a socket.

  @doc "Starts a remote notifier. A relay calls this from its own node."
  @spec start(pid()) :: pid()
  def start(relay), do: spawn(fn -> loop(relay, Process.monitor(relay), %{}) end)

  defp loop(relay, monitor, watches) do
    receive do
      {:deliver, pid, message} ->
        send(pid, message)
        loop(relay, monitor, watches)

      {:reply, from, answer} ->
        GenServer.reply(from, answer)
        loop(relay, monitor, watches)

      {:watch, from, reference, pid, socket} ->
        send(from, {from, :watching})
        loop(relay, monitor, Map.put(watches, reference, {pid, socket}))

      {:forget, reference} ->
        loop(relay, monitor, Map.delete(watches, reference))

      {:closed, reference, reason} ->
        testify(Map.take(watches, [reference]), reason)
        loop(relay, monitor, Map.delete(watches, reference))

      {:closed, reason} ->
        testify(watches, reason)

      {:DOWN, ^monitor, :process, ^relay, reason} ->
        testify(watches, reason)

      _stray ->
        loop(relay, monitor, watches)
    end
  end

  defp testify(watches, reason) do
    for {_reference, {pid, socket}} <- watches, do: send(pid, {:netlink_closed, socket, reason})
    :ok
  end
end
