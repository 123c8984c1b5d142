defmodule NetlinkPort.ProcessLimit do
  @moduledoc false
  # The VM has a limit of processes (+P of erl), at which spawn/1 raises, and with it all that starts a process. In a
  # server that would close all its sockets. So this library starts its processes by these functions.

  import Kernel, except: [spawn: 1, spawn_monitor: 1]

  alias NetlinkPort.Error

  @doc "As `Kernel.spawn/1`."
  @spec spawn((() -> term())) :: {:ok, pid()} | :system_limit
  def spawn(fun), do: attempt(fn -> Kernel.spawn(fun) end)

  @doc "As `Kernel.spawn_monitor/1`."
  @spec spawn_monitor((() -> term())) :: {:ok, {pid(), reference()}} | :system_limit
  def spawn_monitor(fun), do: attempt(fn -> Kernel.spawn_monitor(fun) end)

  @doc "As `Task.async/1`."
  @spec task((() -> term())) :: {:ok, Task.t()} | :system_limit
  def task(fun), do: attempt(fn -> Task.async(fun) end)

  @doc "The result of `start`, which starts a GenServer."
  @spec start((() -> GenServer.on_start())) :: GenServer.on_start() | :system_limit
  def start(start) do
    with {:ok, started} <- attempt(start), do: started
  end

  @doc "As `start/1`, with `error/2` at the limit."
  @spec start(String.t() | nil, (() -> GenServer.on_start())) :: GenServer.on_start()
  def start(subject, start) do
    with :system_limit <- start(start), do: {:error, error(:thread, subject)}
  end

  defp attempt(start) do
    {:ok, start.()}
  rescue
    SystemLimitError -> :system_limit
  end

  @doc "The error of what needed another process."
  @spec error(Error.stage(), String.t() | nil) :: Error.t()
  def error(stage, subject \\ nil) do
    hint =
      "the VM has no process left, of #{:erlang.system_info(:process_limit)} at most; raise +P of erl, or find out " <>
        "what starts so many"

    Error.new(stage, :eagain, subject: subject, hint: hint)
  end
end
