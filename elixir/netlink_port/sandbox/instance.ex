defmodule NetlinkPort.Sandbox.Instance do
  @moduledoc false
  # The process of a sandbox. It owns the holder of the namespace, and supervises the server; both end with it. If the
  # VM is killed, the holder reads the end of its input, and ends.

  use GenServer, restart: :temporary

  alias NetlinkPort.Arguments
  alias NetlinkPort.Sandbox.{Holder, Refusal, StandIn, TemporaryFolder, UserNamespace}

  # RTM_NEWLINK; a struct ifinfomsg of interface 1, with IFF_UP set. include/uapi/linux/rtnetlink.h
  @newlink 16
  @lo_up <<0::16, 0::16, 1::32-native, 1::32-native, 1::32-native>>
  # A test may kill the helper as often as it likes.
  @restarts [max_restarts: 1_000_000, max_seconds: 1]
  @options [:name, :server, :path, :stand_in]
  @in_server "NetlinkPort.start_link/1, as server: [...] here"
  @elsewhere for name <- [:call_timeout, :ping_interval, :executable], do: {name, @in_server}
  # How long the restart of a server may take, in ms.
  @patience 10_000

  @enforce_keys [:way, :folder, :path?, :server]
  defstruct [
    :way,
    :folder,
    :path?,
    :server,
    :supervisor,
    :holder,
    :helping,
    :stand_in,
    :stopped,
    veths: 0
  ]

  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, @options, @elsewhere)
    path? = Arguments.boolean!(:path, Keyword.get(opts, :path, false))
    stand_in? = Arguments.boolean!(:stand_in, Keyword.get(opts, :stand_in, false))
    server = Keyword.get(opts, :server, [])

    if server == nil do
      raise ArgumentError, "expected server: a keyword list, a pid or a name, got: nil"
    end

    _checked = if is_list(server), do: Arguments.keyword!(server), else: Arguments.server!(server)

    if stand_in? and not is_list(server) do
      raise ArgumentError,
            "stand_in: true needs a server of the sandbox's own, got: #{inspect(server)}"
    end

    _checked = Arguments.name!(opts[:name])
    name = Keyword.take(opts, [:name])
    GenServer.start_link(__MODULE__, {server, path?, stand_in?}, name)
  end

  @doc "Calls a sandbox. Raises ArgumentError for any other process, such as a server."
  @spec call(GenServer.server(), term()) :: term()
  def call(sandbox, message) do
    unless sandbox?(sandbox) do
      raise ArgumentError,
            "expected a sandbox (`sandbox` in the context of a test, or what " <>
              "NetlinkPort.Sandbox.start_link/1 returns), got: #{inspect(sandbox)}"
    end

    GenServer.call(sandbox, message, 120_000)
  end

  defp sandbox?(pid) when is_pid(pid) and node(pid) == node() do
    # GenServer.call/3 says that a process has ended.
    :proc_lib.translate_initial_call(pid) == {__MODULE__, :init, 1} or not Process.alive?(pid)
  end

  defp sandbox?(pid) when is_pid(pid), do: true
  defp sandbox?({:global, _name} = name), do: sandbox?(GenServer.whereis(name))
  defp sandbox?({:via, _module, _name} = name), do: sandbox?(GenServer.whereis(name))
  defp sandbox?({name, node}) when is_atom(name) and is_atom(node), do: true
  defp sandbox?(nil), do: false
  defp sandbox?(name) when is_atom(name), do: sandbox?(GenServer.whereis(name))
  defp sandbox?(_other), do: false

  ## Start

  @impl true
  def init({server, path?, stand_in?}) do
    Process.flag(:trap_exit, true)

    with {:ok, way} <- Refusal.way(),
         {:ok, folder} <- folder(way, path? or stand_in?) do
      state = %__MODULE__{way: way, folder: folder, path?: path?, server: name(server)}

      # The holder and the server start at the same time: open_port/2 waits until the program's process exists.
      with {:ok, state, serving} <- serve(state, server, stand_in?),
           started = Holder.start(way),
           :ok <- served(serving),
           {:ok, state} <- held(state, started),
           :ok <- up(state) do
        {:ok, state}
      else
        {:error, reason} ->
          _ended = terminate(reason, state)
          {:stop, reason}
      end
    else
      {:error, line} -> {:stop, line}
    end
  end

  defp folder(_way, false), do: {:ok, nil}
  defp folder(way, true), do: TemporaryFolder.start(way)

  # A name stays valid when the server is restarted, a pid does not.
  defp name(opts) when is_list(opts),
    do: Keyword.get(opts, :name) || {:global, {__MODULE__, self()}}

  defp name(server), do: server

  defp serve(state, server, _stand_in?) when not is_list(server), do: {:ok, state, nil}

  defp serve(state, opts, stand_in?) do
    opts = Keyword.merge([user_namespaces: true], Keyword.put(opts, :name, state.server))

    with {:ok, supervisor} <- Supervisor.start_link([], [strategy: :one_for_one] ++ @restarts),
         state = %{state | supervisor: supervisor},
         {:ok, state, child} <- child(state, opts, stand_in?) do
      {:ok, state, Task.async(Supervisor, :start_child, [supervisor, child])}
    end
  end

  defp served(nil), do: :ok

  defp served(serving) do
    case Task.await(serving, :infinity) do
      {:ok, _server} -> :ok
      # A wrong option of the server.
      {:error, {{:EXIT, {error, _stack}}, _child}} when is_exception(error) -> {:error, error}
      {:error, {:EXIT, {error, _stack}}} when is_exception(error) -> {:error, error}
      {:error, {reason, _child}} -> {:error, reason}
      {:error, reason} -> {:error, reason}
    end
  end

  defp child(state, opts, false), do: {:ok, state, %{NetlinkPort.child_spec(opts) | id: :server}}

  defp child(state, opts, true) do
    with {:ok, stand_in} <- StandIn.start_link(state.folder.path) do
      start = {StandIn, :start_server, [stand_in, opts]}
      {:ok, %{state | stand_in: stand_in}, %{id: :server, start: start, type: :worker}}
    end
  end

  defp held(_state, {:error, reason}), do: {:error, reason}

  defp held(state, {:ok, port, entered}) do
    case Holder.await(port) do
      {:ok, {_port, os_pid} = holder} ->
        if state.way == :user, do: UserNamespace.joined(os_pid)
        {:ok, link(%{state | holder: holder})}

      {:late, reason} ->
        {:error, reason}

      {:error, printed} ->
        # The sandbox whose user namespace this one was to enter has ended meanwhile.
        if entered && not File.exists?("/proc/#{entered}/ns/user"),
          do: held(state, Holder.start(state.way, entered)),
          else: {:error, Refusal.line(printed)}
    end
  end

  # The link is replaced by rename(2), so that at no moment it is missing.
  defp link(%{path?: false} = state), do: state

  defp link(%{holder: {_port, os_pid}} = state) do
    new = Path.join(state.folder.path, "new")
    File.ln_s!("/proc/#{os_pid}/ns/net", new)
    File.rename!(new, net(state))
    state
  end

  defp net(state), do: Path.join(state.folder.path, "net")

  defp up(state) do
    opts = [netns: pid(state), active: false]

    with {:ok, socket} <- NetlinkPort.open(state.server, :route, opts),
         {:ok, []} <- NetlinkPort.request(socket, @newlink, @lo_up) do
      NetlinkPort.close(socket)
    end
  end

  defp pid(%{holder: {_port, os_pid}}), do: {:pid, os_pid}

  ## Calls

  @impl true
  def handle_call(:info, _from, state), do: {:reply, info(state), state}
  def handle_call(:enter, _from, %{holder: nil} = state), do: {:reply, gone(), state}

  def handle_call(:enter, _from, state) do
    {:reply, {:ok, Holder.enter(state.holder, state.way)}, state}
  end

  def handle_call(:veth, _from, state) do
    {:reply, "veth#{state.veths}", %{state | veths: state.veths + 1}}
  end

  def handle_call({:restarted, server}, _from, state) do
    {:reply, restarted(state, server), state}
  end

  def handle_call(:stopped, _from, state), do: {:reply, state.stopped, state}

  # `{server, os_pid}`: a helper ends with its server.
  def handle_call({:stopped, helper}, _from, state) do
    {:reply, :ok, %{state | stopped: helper}}
  end

  # A second server, which acts while the helper of the first is stopped.
  def handle_call(:helping, _from, %{helping: nil} = state) do
    case NetlinkPort.start_link(name: nil, user_namespaces: true) do
      {:ok, server} -> {:reply, {:ok, server}, %{state | helping: server}}
      {:error, reason} -> {:reply, {:error, reason}, state}
    end
  end

  def handle_call(:helping, _from, state), do: {:reply, {:ok, state.helping}, state}

  def handle_call(:namespace_gone, _from, %{holder: nil} = state), do: {:reply, gone(), state}

  def handle_call(:namespace_gone, _from, state) do
    if state.path?, do: File.rm!(net(state))
    {:reply, :ok, let_go(state)}
  end

  def handle_call(:namespace_back, _from, %{holder: nil} = state) do
    with {:ok, state} <- held(state, Holder.start(state.way)),
         :ok <- up(state) do
      {:reply, :ok, state}
    else
      {:error, reason} -> {:reply, {:error, reason}, state}
    end
  end

  def handle_call(:namespace_back, _from, state) do
    {:reply, {:error, "the namespace is there"}, state}
  end

  defp gone, do: {:error, "the namespace of this sandbox is gone"}

  defp info(%{holder: holder} = state) do
    os_pid = holder && elem(holder, 1)
    netns = if state.path?, do: {:path, net(state)}, else: {:pid, os_pid}
    path = os_pid && "/proc/#{os_pid}/ns/net"

    %{
      netns: netns,
      server: state.server,
      os_pid: os_pid,
      path: path,
      stand_in: state.stand_in,
      own?: state.supervisor != nil
    }
  end

  # The supervisor may receive the server's exit only after this call, so it is asked until it has.
  defp restarted(state, old, deadline \\ System.monotonic_time(:millisecond) + @patience) do
    case Supervisor.which_children(state.supervisor) do
      [{:server, pid, _type, _modules}] when is_pid(pid) and pid != old ->
        :ok

      _not_yet ->
        if System.monotonic_time(:millisecond) < deadline,
          do: restarted(state, old, deadline),
          else: {:error, "the server did not start again within #{@patience} ms"}
    end
  end

  defp let_go(%{holder: nil} = state), do: state

  defp let_go(state) do
    if state.way == :user, do: UserNamespace.leave()
    Holder.stop(state.holder)
    %{state | holder: nil}
  end

  ## The end

  # The holder was ended by another process.
  @impl true
  def handle_info({port, {:exit_status, _status}}, %{holder: {port, _os_pid}} = state) do
    if state.way == :user, do: UserNamespace.leave()
    {:noreply, %{state | holder: nil}}
  end

  # Without its folder the sandbox has neither its path nor its stand-in.
  def handle_info({port, {:exit_status, _status}}, %{folder: %{holder: {port, _os_pid}}} = state) do
    reason = "the process that holds the folder of the sandbox was ended"
    {:stop, reason, %{state | folder: nil}}
  end

  def handle_info({:EXIT, pid, reason}, state) when pid in [state.supervisor, state.stand_in] do
    {:stop, reason, state}
  end

  # GenServer itself calls `terminate/2` when the parent exits.
  def handle_info(_message, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state) do
    # A stopped helper would hold up the end of its server.
    _continued = with {_server, os_pid} <- state.stopped, do: Holder.signal("CONT", os_pid)
    for pid <- [state.supervisor, state.helping, state.stand_in], pid != nil, do: stop(pid)
    _state = let_go(state)
    _removed = state.folder && TemporaryFolder.stop(state.folder)
    :ok
  end

  defp stop(pid) do
    GenServer.stop(pid, :shutdown)
  catch
    :exit, _ended -> :ok
  end
end
