defmodule NetlinkPort.Server.OwnerNotifier do
  @moduledoc false
  # Outlives its server by a moment. However the server ends, also if it is killed, the notifier sends each owner on
  # its node `:netlink_closed` once, and makes sure that the helper has ended. Owners get nothing only if server and
  # notifier are killed at the same time.
  #
  # The notifier is the heir of the server's board of sockets. For the end of the server only the notifier sends
  # `:netlink_closed`, so no owner gets it twice. When the namespace of one socket is gone, the server itself notifies
  # the owner, and takes the socket off the board. Owners on other nodes are notified by the server's relay, after
  # everything that the relay still holds for them.
  #
  # It waits in the code of gen_server. Waiting in its own, it would be killed when that code is loaded twice.

  use GenServer

  alias NetlinkPort.Helper.{OsProcess, Reference}

  require Logger

  # How long the helper has to notice the end of its standard input before it is killed, in ms.
  @patience 500

  # How long a server may take to stop in order, in ms, and how long the VM waits for all of it.
  @orderly 3_000
  @shutdown 5_000

  @doc """
  Starts a notifier of the calling server.

  It runs under a supervisor of the kernel application, which the VM stops after every other application. So a
  server that no application supervises is stopped in order too. Otherwise System.stop/1 would kill server and
  notifier at once, and then wait for ever for a port that cannot be drained.
  """
  @spec start() :: {:ok, pid()} | :system_limit
  def start do
    child = %{
      id: {__MODULE__, self(), make_ref()},
      start: {__MODULE__, :start_link, [self()]},
      restart: :temporary,
      shutdown: @shutdown
    }

    case Supervisor.start_child(:kernel_safe_sup, child) do
      {:ok, notifier} -> {:ok, notifier}
      # What the supervisor makes of a spawn that failed depends on the version of OTP.
      {:error, _system_limit} -> :system_limit
    end
  end

  @doc """
  The servers of a node, found by their notifiers under that supervisor. Exits if the node cannot be reached.
  """
  @spec servers(node()) :: [pid()]
  def servers(node \\ node()) do
    for {{__MODULE__, server, _ref}, _pid, _type, _modules} <-
          Supervisor.which_children({:kernel_safe_sup, node}),
        uniq: true,
        do: server
  end

  @doc false
  @spec start_link(pid()) :: GenServer.on_start()
  def start_link(server), do: GenServer.start_link(__MODULE__, server)

  @doc "Tells the notifier which process the helper is."
  @spec helper(pid(), OsProcess.t() | nil) :: :ok
  def helper(notifier, process) do
    Kernel.send(notifier, {:helper, process})
    :ok
  end

  ## The process

  # `monitor` is `nil` once the server has ended, `process` once the helper has. `board` is that of the ended server.
  # `logged?`: the log says that the helper lives on.
  @enforce_keys [:server, :monitor]
  defstruct [:server, :monitor, :process, :board, logged?: false]

  @impl true
  def init(server) do
    Process.flag(:trap_exit, true)
    {:ok, %__MODULE__{server: server, monitor: Process.monitor(server)}}
  end

  @impl true
  def handle_info({:helper, process}, state), do: {:noreply, %{state | process: process}}

  # The heir of a board is sent it before the news of the server's end.
  def handle_info({:"ETS-TRANSFER", board, _server, :board}, state),
    do: {:noreply, %{state | board: board}}

  def handle_info({:DOWN, monitor, :process, _server, reason}, %{monitor: monitor} = state),
    do: insist(testify(state, reason))

  def handle_info(:insist, state), do: insist(state)
  def handle_info(_stray, state), do: {:noreply, state}

  @impl true
  def handle_call(_stray, _from, state), do: {:noreply, state}

  @impl true
  def handle_cast(_stray, state), do: {:noreply, state}

  # The VM stops. It ends a helper that could not be killed, too: PR_SET_PDEATHSIG.
  @impl true
  def terminate(_reason, %{monitor: nil}), do: :ok

  def terminate(_reason, state) do
    Process.exit(state.server, :shutdown)
    state |> last_word() |> insist()
  end

  # Waits for the end of the server. A server that does not end in time is killed.
  defp last_word(%{monitor: monitor} = state) do
    receive do
      {:helper, process} -> last_word(%{state | process: process})
      {:"ETS-TRANSFER", board, _server, :board} -> last_word(%{state | board: board})
      {:DOWN, ^monitor, :process, _server, reason} -> testify(state, reason)
    after
      @orderly ->
        Process.exit(state.server, :kill)
        last_word(state)
    end
  end

  # A server that ended before it made a board has no owners.
  defp testify(%{board: board, process: process} = state, reason) do
    if board, do: tell_owners(board, reason)
    gone? = process == nil or ends?(process, System.monotonic_time(:millisecond) + @patience)
    %{state | monitor: nil, process: if(gone?, do: nil, else: process)}
  end

  defp tell_owners(board, reason) do
    for {owner, socket} <- Reference.to_notify(board), node(owner) == node() do
      Kernel.send(owner, {:netlink_closed, socket, plain(reason)})
    end

    :ets.delete(board)
  end

  defp plain({:shutdown, reason}), do: reason
  defp plain(reason), do: reason

  # Whether the helper ends by itself until the deadline. If only kill(2) can tell, each check runs a program, so the
  # pauses grow.
  defp ends?(process, deadline, pause \\ 10) do
    cond do
      OsProcess.gone?(process) ->
        true

      System.monotonic_time(:millisecond) >= deadline ->
        false

      true ->
        Process.sleep(pause)
        pause = if OsProcess.state(process) == :hidden, do: 2 * pause, else: pause
        ends?(process, deadline, pause)
    end
  end

  # Kills the helper, and tries again until the helper is seen to have ended. A try can fail, for example, when no
  # descriptor is free: then neither /proc nor a shell can be opened.
  defp insist(state) do
    with {:error, why} <- OsProcess.kill(state.process) do
      if not state.logged?, do: log(state.process.os_pid, why)
      _timer = Process.send_after(self(), :insist, @patience)
      {:noreply, %{state | logged?: true}}
    else
      :gone -> {:stop, :normal, state}
    end
  end

  defp log(os_pid, why) do
    Logger.error(
      "netlink_port: helper #{os_pid} lives on without its server, and could not be killed: #{why}; " <>
        "this is tried again until it has ended",
      os_pid: os_pid,
      domain: [:netlink_port]
    )
  end
end
