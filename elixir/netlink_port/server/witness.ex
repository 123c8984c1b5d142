defmodule NetlinkPort.Server.Witness do
  @moduledoc false
  # Outlives the server by a moment. Whatever ends the server, a brutal kill too, the witness tells
  # each owner of its node once that its sockets are closed, and sees to it that the helper is gone. Only who
  # kills both at once keeps owners from hearing of it.
  #
  # It is the heir of the server's board of sockets, and the only process that says `:netlink_closed` of
  # the server's end, so that nobody hears it twice. Of one socket whose namespace is gone the server
  # itself says it, and takes it off the board. Owners on other nodes hear it from the server's relay, in
  # order with what that still has for them.

  alias NetlinkPort.Helper.{OsProcess, Reference}

  require Logger

  # How long a helper may take to notice the end of its standard input before it is killed.
  @patience 500

  # How long a server may take to stop in order, in ms, and how long the VM waits for all of it.
  @orderly 3_000
  @shutdown 5_000

  @doc """
  Starts a witness of the calling server.

  Under a supervisor of the kernel application, which the VM stops after every other application: so
  a server that no application supervises is stopped in order, too. Otherwise System.stop/1 would
  kill it and its witness at once, and then wait for ever for a port that cannot be drained.
  """
  @spec start() :: pid()
  def start do
    child = %{
      id: {__MODULE__, self(), make_ref()},
      start: {__MODULE__, :start_link, [self()]},
      restart: :temporary,
      shutdown: @shutdown
    }

    {:ok, witness} = Supervisor.start_child(:kernel_safe_sup, child)
    witness
  end

  @doc """
  The servers of a node: each has a witness under that supervisor, so that nobody else need keep a
  list of them. Exits where the node cannot be reached.
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

  @doc "Tells the witness which process the helper is."
  @spec helper(pid(), OsProcess.t() | nil) :: :ok
  def helper(witness, process) do
    Kernel.send(witness, {:helper, process})
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

  # The reason of the server's end, which is forced where it does not come by itself.
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
    # A server that has not got as far as its board has no owners to tell.
    receive do
      {:"ETS-TRANSFER", board, _server, :board} -> tell_owners(board, reason)
    after
      0 -> :ok
    end

    if process, do: see_to_it(process, System.monotonic_time(:millisecond) + @patience)
  end

  defp tell_owners(board, reason) do
    for {owner, socket} <- Reference.to_tell(board), node(owner) == node() do
      Kernel.send(owner, {:netlink_closed, socket, plain(reason)})
    end

    :ets.delete(board)
  end

  defp plain({:shutdown, reason}), do: reason
  defp plain(reason), do: reason

  # Where only kill(2) tells, each look is a program that runs, so that they become rarer.
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

  # It is tried again until the helper is seen to have ended, or until the VM stops: what is left then ends
  # with it (PR_SET_PDEATHSIG). Without a descriptor, for one, there is neither /proc nor a shell.
  defp insist(process, told?) do
    with {:error, why} <- OsProcess.kill(process) do
      if not told?, do: tell(process.os_pid, why)

      receive do
        {:EXIT, _supervisor, _reason} -> :ok
      after
        @patience -> insist(process, true)
      end
    end
  end

  defp tell(os_pid, why) do
    Logger.error(
      "netlink_port: helper #{os_pid} lives on without its server, and could not be killed: #{why}; " <>
        "this is tried again until it has ended",
      os_pid: os_pid,
      domain: [:netlink_port]
    )
  end
end
