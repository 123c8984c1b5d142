defmodule NetlinkPort.Helper.OsProcess do
  @moduledoc false
  # The helper as a process of the operating system: whether it is there, what it takes, and its end.
  #
  # Danger: a number is another process's as soon as its parent has waited for it. docs/decisions.md
  # has the table of what keeps a successor from being killed, where /proc shows it and where it does not.

  alias NetlinkPort.Environment
  alias NetlinkPort.Helper.Kill

  @enforce_keys [:os_pid]
  defstruct [:os_pid, :start_time, :executable]

  @typedoc """
  `start_time` tells it from a successor with its number; `nil` where `/proc` did not tell. `executable` is the
  helper's own once it has said hello: that can kill, too.
  """
  @type t :: %__MODULE__{
          os_pid: pos_integer(),
          start_time: String.t() | nil,
          executable: Path.t() | nil
        }

  @doc "The process of a port; `nil` where it has ended."
  @spec of_port(port()) :: t() | nil
  def of_port(port) do
    with {:os_pid, os_pid} <- Port.info(port, :os_pid) do
      case start_time(os_pid) do
        {:ok, start_time} -> %__MODULE__{os_pid: os_pid, start_time: start_time}
        :ended -> nil
        _hidden -> %__MODULE__{os_pid: os_pid}
      end
    end
  end

  ## Whether it is there

  @doc """
  Whether the process is there. A zombie is `:gone`. `:hidden` is said where `/proc` does not show it, or is that
  of other processes; `:unknown` where there is no descriptor to look with.
  """
  @spec state(t()) :: :alive | :gone | :hidden | :unknown
  def state(%{os_pid: os_pid, start_time: start_time}) do
    case start_time(os_pid) do
      {:ok, _unknown} when start_time == nil -> :hidden
      {:ok, ^start_time} -> :alive
      {:ok, _successor} -> :gone
      :ended -> :gone
      other -> other
    end
  end

  @doc "Whether the process is gone, also where only kill(2) tells."
  @spec gone?(t()) :: boolean()
  def gone?(process) do
    case state(process) do
      :gone -> true
      :hidden -> Kill.signal(process, 0) == :gone
      _there_or_unknown -> false
    end
  end

  # Field 22 of /proc/<pid>/stat, field 3 is the state. Numbers of another pid namespace name others.
  defp start_time(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> if own_proc?(), do: started(fields(stat)), else: :hidden
      {:error, reason} when reason in [:emfile, :enfile, :enomem] -> :unknown
      {:error, _not_shown} -> if sees_all?(), do: :ended, else: :hidden
    end
  end

  defp started([state | _fields]) when state in ["Z", "X"], do: :ended
  defp started([_state | fields]), do: {:ok, Enum.at(fields, 18)}

  defp own_proc?, do: Environment.own_proc?(Environment.look())

  defp sees_all? do
    environment = Environment.look()
    Environment.own_proc?(environment) and not Environment.hidden?(environment)
  end

  # From field 3 on, counted from behind the name in parentheses, which may hold anything. proc(5).
  defp fields(stat), do: stat |> String.split(")") |> List.last() |> String.split()

  ## Its end

  # How long its end is waited for after a signal, in ms; and between two looks.
  @patience 500
  @pause 10

  @doc """
  Ends the process with SIGKILL, which it can neither ignore nor miss while it is stopped, and sees to it that
  it has ended. A successor with its number is left alone.

  With the port of a process its `exit_status` tells, too; it is taken from the mailbox.

  Errors: why it is not known to have ended.
  """
  @spec kill(t() | nil, port() | nil) :: :gone | {:error, String.t()}
  def kill(process, port \\ nil)
  def kill(nil, _port), do: :gone

  def kill(process, port) do
    if state(process) == :gone do
      :gone
    else
      case Kill.signal(process, :kill) do
        :gone -> :gone
        :sent -> await_end(process, port, @pause, System.monotonic_time(:millisecond) + @patience)
        {:error, why} -> {:error, why}
      end
    end
  end

  # Each look at a hidden one is a program that runs, so that they become rarer.
  defp await_end(process, port, pause, deadline) do
    receive do
      {^port, {:exit_status, _status}} when port != nil -> :gone
    after
      pause ->
        cond do
          gone?(process) ->
            :gone

          System.monotonic_time(:millisecond) < deadline ->
            await_end(process, port, 2 * pause, deadline)

          true ->
            {:error, "SIGKILL was sent, and it has not ended yet"}
        end
    end
  end

  ## What it takes

  # Of a clock tick of /proc, USER_HZ, which is 100 on every architecture this is written for.
  @tick 10

  @doc """
  What a process takes: `:rss` in bytes and `:cpu`, its time on a processor, in ms. `nil` where `/proc` does
  not tell, as with `hidepid`, or is that of other processes.
  """
  @spec usage(pos_integer()) :: %{
          rss: non_neg_integer() | nil,
          cpu: non_neg_integer() | nil
        }
  def usage(os_pid) do
    if own_proc?(),
      do: %{rss: proc(os_pid, "status", &rss/1), cpu: proc(os_pid, "stat", &cpu/1)},
      else: %{rss: nil, cpu: nil}
  end

  defp proc(os_pid, file, read) do
    with {:ok, text} <- File.read("/proc/#{os_pid}/#{file}"), do: read.(text), else: (_ -> nil)
  end

  defp rss(status) do
    with [_line, kb] <- Regex.run(~r/^VmRSS:\s+(\d+) kB$/m, status) do
      String.to_integer(kb) * 1024
    end
  end

  # Fields 14 and 15, in user and kernel mode.
  defp cpu(stat) do
    [user, system] = stat |> fields() |> Enum.slice(11, 2) |> Enum.map(&String.to_integer/1)
    (user + system) * @tick
  end
end
