defmodule NetlinkPort.Nodes.RemoteOwnerNotifier do
  @moduledoc false
  # Runs on the node of owners whose server is on another node, one process for all of the server's owners there. It
  # passes on what the server's relay (NetlinkPort.Nodes.Relay) sends. It sends each owner `:netlink_closed` once:
  # when the relay says so, or when the relay is gone, by itself, with its node or with the connection.
  #
  # Invariant: it belongs to one connection and ends with it. Messages that arrive later, over another connection,
  # find no process. So `:netlink_closed` is always the last message of a socket.

  # How long a notifier whose connection was lost can still be asked, in ms.
  @linger 60_000

  @doc "Starts a remote notifier. A relay calls this from its own node."
  @spec start(pid()) :: pid()
  def start(relay), do: spawn(fn -> loop(relay, Process.monitor(relay), %{}) end)

  @doc """
  As `start/1`. The connection of the notifier `before` was lost before it had confirmed its last watch, which is the
  first of the new one. If it had that watch, it has sent `:netlink_closed`, and the owner is sent no second one.
  """
  @spec start(pid(), pid()) :: pid()
  def start(relay, before) do
    spawn(fn ->
      monitor = Process.monitor(relay)

      receive do
        {:watch, from, reference, pid, socket} ->
          watch = if told?(before, reference), do: :told, else: {pid, socket}
          send(from, {from, :watching})
          loop(relay, monitor, %{reference => watch})

        {:DOWN, ^monitor, :process, ^relay, _reason} ->
          :ok
      end
    end)
  end

  defp told?(before, reference) do
    monitor = Process.monitor(before)
    send(before, {:told?, self(), monitor, reference})

    receive do
      {^monitor, told?} ->
        Process.demonitor(monitor, [:flush])
        told?

      {:DOWN, ^monitor, :process, ^before, _reason} ->
        false
    end
  end

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
        if reason == :noconnection, do: linger(watches)

      _stray ->
        loop(relay, monitor, watches)
    end
  end

  # The news of the lost connection comes before any message of the next one.
  defp linger(told) do
    receive do
      {:told?, from, monitor, reference} -> send(from, {monitor, is_map_key(told, reference)})
      # Over the next connection: the end of this process tells the relay that it belongs to the lost one.
      {:watch, _from, _reference, _pid, _socket} -> :ok
      _of_the_lost_connection -> linger(told)
    after
      @linger -> :ok
    end
  end

  defp testify(watches, reason) do
    for {_reference, {pid, socket}} <- watches, do: send(pid, {:netlink_closed, socket, reason})
    :ok
  end
end
