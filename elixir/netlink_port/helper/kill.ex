defmodule NetlinkPort.Helper.Kill do
  @moduledoc false
  # kill(2), which OTP lacks, by programs that call it: a shell, kill(1), or the helper's own executable, which exists
  # even in an image without the others. They are tried in this order until one runs. Danger: any program may lie in
  # the place of a shell, so only output that reports success counts.

  alias NetlinkPort.{Environment, Helper, ProcessLimit, RawFile}
  alias NetlinkPort.Helper.OsProcess

  # How long such a program may take, in ms.
  @patience 5_000

  @type outcome :: :sent | :gone | {:error, String.t()}

  @doc """
  Sends SIGKILL, or signal 0, which only tells whether the process exists. `:gone` if it does not. It needs no
  `/proc`, and reaches processes that hidepid hides.
  """
  @spec signal(OsProcess.t(), :kill | 0) :: outcome()
  def signal(process, signal) do
    means = [&shell/2, &kill/2, &helper(process, &1, &2)]

    Enum.reduce_while(means, nil, fn by, _unable ->
      case by.(process.os_pid, signal) do
        {:unable, why} -> {:cont, {:unable, why}}
        outcome -> {:halt, outcome}
      end
    end)
    |> case do
      {:unable, why} -> {:error, Environment.no_program(:enoent) || why}
      outcome -> outcome
    end
  end

  defp shell(os_pid, signal) do
    script = "if kill -#{number(signal)} #{os_pid}; then echo sent; else echo refused; fi"

    case run("/bin/sh", ["-c", script]) do
      {output, 0} -> told(String.trim(output), "/bin/sh")
      _no_shell -> {:unable, "/bin/sh cannot be run"}
    end
  end

  defp told("sent", _program), do: :sent

  defp told(output, program) do
    cond do
      output =~ ~r/No such process/i -> :gone
      String.ends_with?(output, "refused") -> {:error, String.trim_trailing(output, "\nrefused")}
      true -> {:unable, "#{program} is no shell"}
    end
  end

  defp kill(os_pid, signal) do
    program = RawFile.find_executable("kill")

    case program && run(program, ["-#{number(signal)}", "#{os_pid}"]) do
      {"", 0} -> :sent
      {output, status} when status != 0 -> failed(String.trim(output), program)
      _none -> {:unable, "there is no kill(1)"}
    end
  end

  defp failed(output, program) do
    cond do
      output =~ ~r/No such process/i -> :gone
      output =~ ~r/not permitted/i -> {:error, output}
      true -> {:unable, "#{program} does not kill: #{output}"}
    end
  end

  # `--kill` waits for the end itself. Only an executable that has said hello is run, or that of the build: any other
  # program would just be started once more.
  defp helper(_process, _os_pid, 0), do: {:error, "nothing tells whether it is there"}

  defp helper(process, os_pid, :kill) do
    program = process.executable || Helper.Executable.built()

    case run(program, ["--kill", "#{os_pid}"]) do
      {"", 0} -> :gone
      {output, 71} -> {:error, String.trim(output)}
      _other -> {:unable, "neither a shell, kill(1) nor #{program} could be run to do it"}
    end
  rescue
    # OTP does not know the application :netlink_port.
    ArgumentError -> {:unable, "neither a shell nor kill(1) could be run to do it"}
  end

  defp number(:kill), do: 9
  defp number(0), do: 0

  # Runs in a process of its own, so that the mailbox holds only the port's messages. A program that does not end is
  # left.
  defp run(program, arguments) do
    case ProcessLimit.spawn_monitor(fn -> exit({:told, collect(open(program, arguments), "")}) end) do
      {:ok, {pid, monitor}} -> await(pid, monitor)
      :system_limit -> :unable
    end
  end

  defp await(pid, monitor) do
    receive do
      {:DOWN, ^monitor, :process, ^pid, {:told, told}} -> told
      {:DOWN, ^monitor, :process, ^pid, _no_such_program} -> :unable
    after
      @patience ->
        Process.demonitor(monitor, [:flush])
        Process.exit(pid, :kill)
        :unable
    end
  end

  defp open(program, arguments) do
    Port.open({:spawn_executable, program}, [
      :binary,
      :exit_status,
      :stderr_to_stdout,
      args: arguments,
      env: [{~c"LC_ALL", ~c"C"} | Helper.Executable.environment()]
    ])
  rescue
    _cannot_be_run in [ErlangError, ArgumentError] -> exit(:unable)
  end

  defp collect(port, output) do
    receive do
      {^port, {:data, data}} -> collect(port, output <> data)
      {^port, {:exit_status, status}} -> {output, status}
    end
  end
end
