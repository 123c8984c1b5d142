defmodule NetlinkPort.Server.Waiters do
  @moduledoc false
  # The callers that wait for an item of one socket, first come first served. There may be thousands, and any of them may
  # end at any time. Pure.

  alias NetlinkPort.Queue

  @typedoc "Tells the waiters of one socket apart, such as the reference that monitors the caller."
  @type key :: Queue.key()
  @type waiter :: term()
  # `keys` are the waiters of each process: one, or more if it has given up and asked again before the server noticed.
  @type t :: %__MODULE__{queue: Queue.t(), keys: %{pid() => [key()]}}

  defstruct queue: Queue.new(), keys: %{}

  @spec new() :: t()
  def new, do: %__MODULE__{}

  @doc "Whether a process waits."
  @spec waits?(t(), pid()) :: boolean()
  def waits?(%{keys: keys}, pid), do: is_map_key(keys, pid)

  @doc "Adds a waiter of `pid` at the end. No other waiter has its key."
  @spec add(t(), key(), pid(), waiter()) :: t()
  def add(%{queue: queue, keys: keys} = waiters, key, pid, waiter) do
    keys = Map.update(keys, pid, [key], &[key | &1])
    %{waiters | queue: Queue.add(queue, key, {pid, waiter}), keys: keys}
  end

  @doc "Returns the first waiter."
  @spec first(t()) :: {:ok, key(), waiter()} | :empty
  def first(%{queue: queue}) do
    with {:ok, key, {_pid, waiter}} <- Queue.first(queue), do: {:ok, key, waiter}
  end

  @doc "Removes the waiter with a key, and returns it."
  @spec remove(t(), key()) :: {:ok, waiter(), t()} | :none
  def remove(%{queue: queue, keys: keys} = waiters, key) do
    with {:ok, {pid, waiter}, queue} <- Queue.remove(queue, key),
         do: {:ok, waiter, %{waiters | queue: queue, keys: without(keys, pid, key)}}
  end

  defp without(keys, pid, key) do
    case List.delete(Map.fetch!(keys, pid), key) do
      [] -> Map.delete(keys, pid)
      others -> %{keys | pid => others}
    end
  end

  @doc "Removes the waiters of a process, and returns them in their order."
  @spec remove_of(t(), pid()) :: {[waiter()], t()}
  def remove_of(%{keys: keys} = waiters, pid) do
    keys
    |> Map.get(pid, [])
    |> Enum.reduce({[], waiters}, fn key, {removed, waiters} ->
      {:ok, waiter, waiters} = remove(waiters, key)
      {[waiter | removed], waiters}
    end)
  end

  @doc "Returns all waiters, in their order."
  @spec to_list(t()) :: [waiter()]
  def to_list(%{queue: queue}), do: for({_pid, waiter} <- Queue.values(queue), do: waiter)
end
