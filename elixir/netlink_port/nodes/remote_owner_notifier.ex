defmodule NetlinkPort.Nodes.RemoteOwnerNotifier do
  @moduledoc false
  # Runs on the node of owners whose server is on another node, one process for all of the server's owners there. It
  # passes on what the server's relay (NetlinkPort.Nodes.Relay) sends. It sends each owner `:netlink_closed` once:
  # when the relay says so, or when the relay is gone, by itself, with its node or with the connection.
  #
  # Invariant: it belongs to one connection and ends with it. Messages that arrive later, over another connection,
  # find no process. So `:netlink_closed` is always the last message of a socket.
  #
  # It waits in the code of gen_server. Waiting in its own, it would be killed when that code is loaded twice.

  use GenServer

  alias NetlinkPort.Redaction

  # How long a notifier whose connection was lost can still be asked, in ms.
  @linger 60_000

  @doc "Starts a remote notifier. A relay calls this from its own node."
  @spec start(pid()) :: pid()
  def start(relay), do: start(relay, nil)

  @doc """
  As `start/1`. The connection of the notifier `before` was lost before it had confirmed its last watch, which is the
  first of the new one. If it had that watch, it has sent `:netlink_closed`, and the owner is sent no second one.
  """
  @spec start(pid(), pid() | nil) :: pid()
  def start(relay, before) do
    {:ok, notifier} = GenServer.start(__MODULE__, {relay, before})
    notifier
  end

  # `watches` maps the reference of a watch to its owner and socket, or to `:told`. `lost?`: the connection was lost, the
  # owners have been told, and only later notifiers ask.
  @enforce_keys [:monitor, :before]
  defstruct [:monitor, :before, watches: %{}, lost?: false]

  @impl true
  def init({relay, before}),
    do: {:ok, %__MODULE__{monitor: Process.monitor(relay), before: before}}

  @impl true
  def handle_info({:told?, from, monitor, reference}, %{lost?: true} = state) do
    send(from, {monitor, is_map_key(state.watches, reference)})
    {:stop, :normal, state}
  end

  # Over the next connection: the end of this process tells the relay that it belongs to the lost one.
  def handle_info({:watch, _from, _reference, _pid, _socket}, %{lost?: true} = state),
    do: {:stop, :normal, state}

  def handle_info(:lingered, state), do: {:stop, :normal, state}
  def handle_info(_of_the_lost_connection, %{lost?: true} = state), do: {:noreply, state}

  def handle_info({:deliver, pid, message}, state) do
    send(pid, message)
    {:noreply, state}
  end

  def handle_info({:reply, from, answer}, state) do
    GenServer.reply(from, answer)
    {:noreply, state}
  end

  def handle_info({:watch, from, reference, pid, socket}, %{before: before} = state) do
    told? = before != nil and told?(before, reference)
    send(from, {from, :watching})
    watch = if told?, do: :told, else: {pid, socket}
    {:noreply, %{state | before: nil, watches: Map.put(state.watches, reference, watch)}}
  end

  def handle_info({:forget, reference}, state),
    do: {:noreply, %{state | watches: Map.delete(state.watches, reference)}}

  def handle_info({:closed, reference, reason}, state) do
    testify(Map.take(state.watches, [reference]), reason)
    {:noreply, %{state | watches: Map.delete(state.watches, reference)}}
  end

  def handle_info({:closed, reason}, state) do
    testify(state.watches, reason)
    {:stop, :normal, state}
  end

  # The news of the lost connection comes before any message of the next one.
  def handle_info({:DOWN, monitor, :process, _relay, reason}, %{monitor: monitor} = state) do
    testify(state.watches, reason)

    if reason == :noconnection do
      _timer = Process.send_after(self(), :lingered, @linger)
      {:noreply, %{state | lost?: true}}
    else
      {:stop, :normal, state}
    end
  end

  def handle_info(_stray, state), do: {:noreply, state}

  @impl true
  def handle_call(_stray, _from, state), do: {:noreply, state}

  @impl true
  def handle_cast(_stray, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, _state), do: Redaction.forget_mailbox()

  # For crash reports and :sys.get_status/1. A callback of GenServer since Elixir 1.17.
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %__MODULE__{} = state} = status),
    do: Redaction.status(status, watches: map_size(state.watches), lost?: state.lost?)

  def format_status(status), do: Redaction.status(status)

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

  defp testify(watches, reason) do
    for {_reference, {pid, socket}} <- watches, do: send(pid, {:netlink_closed, socket, reason})
    :ok
  end
end
