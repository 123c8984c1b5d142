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
  @spec start() :: pid()
  def start do
    child = %{
      id: {__MODULE__, self(), make_ref()},
      start: {__MODULE__, :start_link, [self()]},
      restart: :temporary,
      shutdown: @shutdown
    }

    {:ok, notifier} = Supervisor.start_child(:kernel_safe_sup, child)
    notifier
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
  @spec start_link(pid()) :: {:ok, pid()}
  def start_link(server) do
    supervisor = self()
    {:ok, :proc_lib.spawn_link(fn -> init(server, supervisor) end)}
  end

  @doc "Tells the notifier which process the helper is."
  @spec helper(pid(), OsProcess.t() | nil) :: :ok
  def helper(notifier, process) do
    Kernel.send(notifier, {:helper, process})
    :ok
  end

  defp init(server, supervisor) do
    Process.flag(:trap_exit, true)
    monitor = Process.monitor(server)
    watch(server, monitor, supervisor, nil)
  end

  defp watch(server, monitor, supervisor, process) do
    receive do
      {:helper, process} ->
        watch(server, monitor, supervisor, process)

      {:DOWN, ^monitor, :process, _server, reason} ->
        testify(reason, process)

      {:EXIT, ^supervisor, _reason} ->
        Process.exit(server, :shutdown)
        testify(last_word(server, monitor), process)
    end
  end

  # The exit reason of the server. A server that does not end in time is killed.
  defp last_word(server, monitor) do
    receive do
      {:DOWN, ^monitor, :process, _server, reason} -> reason
    after
      @orderly ->
        Process.exit(server, :kill)
        receive do: ({:DOWN, ^monitor, :process, _server, reason} -> reason)
    end
  end

  defp testify(reason, process) do
    # A server that ended before it made a board has no owners.
    receive do
      {:"ETS-TRANSFER", board, _server, :board} -> tell_owners(board, reason)
    after
      0 -> :ok
    end

    if process, do: see_to_it(process, System.monotonic_time(:millisecond) + @patience)
  end

  defp tell_owners(board, reason) do
    for {owner, socket} <- Reference.to_notify(board), node(owner) == node() do
      Kernel.send(owner, {:netlink_closed, socket, plain(reason)})
    end

    :ets.delete(board)
  end

  defp plain({:shutdown, reason}), do: reason
  defp plain(reason), do: reason

  # Waits until the helper is gone, and kills it at the deadline. If only kill(2) can tell, each check runs a program,
  # so the pauses grow.
  defp see_to_it(process, deadline, pause \\ 10) do
    cond do
      OsProcess.gone?(process) ->
        :ok

      System.monotonic_time(:millisecond) >= deadline ->
        insist(process, false)

      true ->
        Process.sleep(pause)
        pause = if OsProcess.state(process) == :hidden, do: 2 * pause, else: pause
        see_to_it(process, deadline, pause)
    end
  end

  # Tries again until the helper is seen to have ended, or the VM stops: PR_SET_PDEATHSIG then ends the helper. A try
  # can fail, for example, when no descriptor is free: then neither /proc nor a shell can be opened.
  defp insist(process, logged?) do
    with {:error, why} <- OsProcess.kill(process) do
      if not logged?, do: log(process.os_pid, why)

      receive do
        {:EXIT, _supervisor, _reason} -> :ok
      after
        @patience -> insist(process, true)
      end
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
