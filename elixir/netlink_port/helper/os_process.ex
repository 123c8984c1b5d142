defmodule NetlinkPort.Helper.OsProcess do
  @moduledoc false
  # The helper as an operating system process: whether it exists, what it uses, and how it is killed.
  #
  # Danger: a process id passes to another process as soon as the parent has waited for the first. docs/decisions.md
  # has the table of what keeps another process from being killed, with /proc and without.

  alias NetlinkPort.{Environment, RawFile}
  alias NetlinkPort.Helper.Kill

  @enforce_keys [:os_pid]
  defstruct [:os_pid, :start_time, :executable]

  @typedoc """
  `start_time` tells the process from a later one with the same id; `nil` if `/proc` did not show it. `executable` is
  the helper's own, once the helper has said hello: it can be run with `--kill`.
  """
  @type t :: %__MODULE__{
          os_pid: pos_integer(),
          start_time: String.t() | nil,
          executable: Path.t() | nil
        }

  @doc "The process of a port; `nil` if it has ended."
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

  ## Whether it exists

  @doc """
  The state of the process. A zombie is `:gone`. `:hidden`: `/proc` does not show the process, or shows those of
  another pid namespace. `:unknown`: there is no free descriptor, or no memory, to look with.
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

  @doc "Whether the process is gone, also if only kill(2) can tell."
  @spec gone?(t()) :: boolean()
  def gone?(process) do
    case state(process) do
      :gone -> true
      :hidden -> Kill.signal(process, 0) == :gone
      _there_or_unknown -> false
    end
  end

  # Field 3 of /proc/<pid>/stat is the state, field 22 the start time. In a foreign /proc the id names another
  # process.
  defp start_time(os_pid) do
    case RawFile.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> if own_proc?(), do: started(fields(stat)), else: :hidden
      {:error, reason} when reason in [:emfile, :enfile, :enomem] -> :unknown
      {:error, _not_shown} -> if sees_all?(), do: :ended, else: :hidden
    end
  end

  defp started([state | _fields]) when state in ["Z", "X"], do: :ended
  defp started([_state | fields]), do: {:ok, Enum.at(fields, 18)}

  defp own_proc?, do: Environment.proc() == :own

  defp sees_all?, do: own_proc?() and not Environment.hidden?()

  # The fields from field 3 on. The name in parentheses before them may hold any character. proc(5).
  defp fields(stat), do: stat |> String.split(")") |> List.last() |> String.split()

  ## Killing it

  # How long to wait for its end after SIGKILL, and the first pause between two checks, in ms.
  @patience 500
  @pause 10

  @doc """
  Sends SIGKILL, which ends a stopped process, too, and waits until the process has ended. A later process with the
  same id is left alone.

  If the port is given, its `exit_status` also proves the end, and is taken from the mailbox.

  Errors: the reason why the process is not known to have ended.
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

  # Each check of a hidden process runs a program, so the pauses grow.
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

  ## What it uses

  # ms in a clock tick of /proc (USER_HZ), which is 100 Hz on every architecture that this library supports.
  @tick 10

  @doc """
  What a process uses: `:rss` in bytes, and `:cpu`, its processor time in ms. `nil` if `/proc` does not show it, as
  with `hidepid`, or shows another pid namespace.
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
    with {:ok, text} <- RawFile.read("/proc/#{os_pid}/#{file}"), do: read.(text), else: (_ -> nil)
  end

  defp rss(status) do
    with [_line, kb] <- Regex.run(~r/^VmRSS:\s+(\d+) kB$/m, status) do
      String.to_integer(kb) * 1024
    end
  end

  # Fields 14 and 15: time in user mode and in kernel mode.
  defp cpu(stat) do
    [user, system] = stat |> fields() |> Enum.slice(11, 2) |> Enum.map(&String.to_integer/1)
    (user + system) * @tick
  end
end
