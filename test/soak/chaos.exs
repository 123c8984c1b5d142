defmodule Soak.Chaos do
  @moduledoc false
  # Kills, stops and suspends owners, servers and helpers, and makes namespaces again.

  alias Soak.{Ledger, World}

  # Several of them share the namespaces.
  def start(config, share), do: spawn_link(fn -> loop(Map.put(config, :share, share)) end)

  @doc "Pauses a process after its current operation, and waits for that. `go_on/1` continues it."
  def pause(chaos) do
    send(chaos, {:pause, self()})
    receive do: ({:paused, ^chaos} -> :ok)
  end

  def go_on(chaos), do: send(chaos, :go_on)

  defp loop(config) do
    receive do
      {:pause, from} ->
        send(from, {:paused, self()})
        receive do: (:go_on -> :ok)
    after
      200 + :rand.uniform(600) -> :ok
    end

    act =
      Enum.random(
        [:owner, :owner, :owner, :suspend_owner, :server, :suspend_server, :restart] ++
          [:helper_kill, :helper_segv, :helper_term, :helper_stop, :namespace, :namespace]
      )

    act(act, config)
    Ledger.count({:chaos, act})
    loop(config)
  end

  defp act(:owner, config), do: Process.exit(worker(config), :kill)

  defp act(:suspend_owner, config) do
    pid = worker(config)
    :erlang.suspend_process(pid)
    Process.sleep(:rand.uniform(1_000))
    if Process.alive?(pid), do: :erlang.resume_process(pid)
  rescue
    # The process has been killed.
    ArgumentError -> :ok
  end

  defp act(:server, config), do: with_server(config, &Process.exit(&1, :kill))

  defp act(:suspend_server, config) do
    with_server(config, fn server ->
      :sys.suspend(server)
      Process.sleep(:rand.uniform(1_000))
      :sys.resume(server)
    end)
  catch
    :exit, _reason -> :ok
  end

  defp act(:restart, config) do
    name = Enum.random(config.servers)
    _result = Supervisor.terminate_child(config.supervisor, name)
    restart(config, name)
  end

  defp act(:helper_kill, config), do: signal(config, "KILL")
  defp act(:helper_segv, config), do: signal(config, "SEGV")
  defp act(:helper_term, config), do: signal(config, "TERM")

  defp act(:helper_stop, config) do
    pid = signal(config, "STOP")
    Process.sleep(:rand.uniform(6_000))
    if pid, do: kill(pid, "CONT")
  end

  defp act(:namespace, config) do
    index = Enum.random(config.share)
    World.delete(index)
    World.create(index)
  end

  # A supervisor tries again by itself only if it has restarted a child by itself.
  defp restart(config, name) do
    case Supervisor.restart_child(config.supervisor, name) do
      {:ok, _server} ->
        :ok

      # Another process has been faster.
      {:error, reason} when reason in [:running, :restarting] ->
        :ok

      # Killed by another process, while it was starting.
      {:error, :killed} ->
        restart(config, name)

      {:error, reason} ->
        Ledger.wrong({:not_started, name, reason})
        restart(config, name)
    end
  end

  defp worker(config),
    do: config.workers |> :ets.lookup(:rand.uniform(config.count)) |> hd() |> elem(1)

  defp with_server(config, fun) do
    case Process.whereis(Enum.random(config.servers)) do
      nil -> :ok
      server -> fun.(server)
    end
  end

  defp signal(config, signal) do
    case NetlinkPort.info(Enum.random(config.servers)) do
      {:ok, %{os_pid: pid}} -> kill(pid, signal)
      {:error, _gone} -> nil
    end
  end

  defp kill(pid, signal) do
    {_output, _status} = System.cmd("kill", ["-#{signal}", "#{pid}"], stderr_to_stdout: true)
    pid
  end
end
