defmodule NetlinkPort.Sandbox.Holder do
  @moduledoc false
  # The operating system process that holds a namespace: the helper's executable with `--sandbox`. Its child is the
  # init process of a pid namespace, so every program in the sandbox ends with the child.
  #
  # Invariant: the child reads its standard input, a pipe from the VM, and ends at the end of file. So the namespace
  # ends with the VM, however the VM ends.

  alias NetlinkPort.Environment
  alias NetlinkPort.Helper.Executable
  alias NetlinkPort.Sandbox.UserNamespace

  # How long a start or an end may take, in ms. If many namespaces start and end at once, the kernel makes them wait
  # for each other.
  @patience 60_000

  @type t :: {port(), os_pid :: pos_integer()}

  @doc """
  Starts a holder; `await/2` follows. With `:user` it enters the user namespace of the other sandboxes, or makes it
  for the first of them. With `:root` there is no user namespace.
  """
  @spec start(:user | :root, pos_integer() | nil) ::
          {:ok, port(), pos_integer() | nil} | {:error, String.t()}
  def start(mode, gone \\ nil) do
    {owner, entered} =
      case mode == :user && UserNamespace.join(gone) do
        {:enter, os_pid} -> {"#{os_pid}", os_pid}
        :make -> {"new", nil}
        false -> {"own", nil}
      end

    with {:ok, port} <- spawn_holder(owner), do: {:ok, port, entered}
  end

  @doc "Starts a holder and ends it. `:refused` comes with what it printed, `:not_run` with a sentence."
  @spec attempt(:user | :root) :: :ok | {:refused, String.t()} | {:not_run, String.t()}
  def attempt(mode) do
    owner = if mode == :user, do: "new", else: "own"

    # In a process of its own, since stop/1 needs one that traps exits.
    fn ->
      Process.flag(:trap_exit, true)

      case spawn_holder(owner) do
        {:ok, port} -> port |> await() |> finish()
        {:error, why} -> {:not_run, why}
      end
    end
    |> Task.async()
    |> Task.await(:infinity)
  end

  defp finish({:ok, holder}), do: stop(holder)
  defp finish({:error, printed}), do: {:refused, printed}
  defp finish({:late, why}), do: {:not_run, why}

  defp spawn_holder(owner), do: spawn_program(helper(), ["--sandbox", owner])

  # The one that was built, since it has no capabilities of its own.
  defp helper do
    built = Executable.built()
    if built && File.regular?(built, [:raw]), do: built, else: Executable.path()
  end

  @doc "Starts a program whose standard input is a pipe from the VM."
  @spec spawn_program(Path.t(), [String.t()]) :: {:ok, port()} | {:error, String.t()}
  def spawn_program(program, arguments) do
    opts = [:binary, :exit_status, :stderr_to_stdout, args: arguments, env: [{~c"LC_ALL", ~c"C"}]]
    {:ok, Port.open({:spawn_executable, program}, opts)}
  rescue
    error in ErlangError ->
      reason = error.original
      {:error, Environment.no_program(reason) || unrun(program, reason)}

    # `nil` where no helper is named or built.
    _error in ArgumentError ->
      {:error, "#{inspect(program)} is no helper, which would hold the namespace"}
  end

  defp unrun(program, reason) do
    "#{program} cannot be run (#{reason}): see that it exists, and that this user may run it"
  end

  @doc "Waits until the namespace exists."
  @spec await(port(), binary()) :: {:ok, t()} | {:error, String.t()} | {:late, String.t()}
  def await(port, printed \\ "") do
    receive do
      {^port, {:data, data}} ->
        printed = printed <> data
        if String.ends_with?(printed, "ready\n"), do: ready(port), else: await(port, printed)

      {^port, {:exit_status, _status}} ->
        {:error, printed |> String.trim() |> String.replace("\n", "; ")}
    after
      @patience ->
        Port.close(port)
        {:late, "no namespace was made within #{@patience} ms"}
    end
  end

  defp ready(port) do
    case Port.info(port, :os_pid) do
      {:os_pid, os_pid} -> {:ok, {port, os_pid}}
      nil -> {:error, "it ended at once"}
    end
  end

  @doc "Ends the holder, and with it every program in the sandbox. The caller traps exits."
  @spec stop(t()) :: :ok
  def stop({port, os_pid}) do
    # The holder ends after it has read a byte.
    _sent? = command(port)

    receive do
      {^port, {:exit_status, _status}} -> :ok
      # `:epipe`: no process of the holder was left to read the line. No exit status follows.
      {:EXIT, ^port, _reason} -> :ok
    after
      @patience ->
        _signalled = signal("KILL", os_pid)
        close(port)
    end
  end

  defp command(port) do
    Port.command(port, "\n")
  rescue
    ArgumentError -> false
  end

  defp close(port) do
    Port.close(port)
    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc "Sends a signal by a shell, since OTP has no kill(2)."
  @spec signal(String.t(), pos_integer()) :: :ok | {:error, String.t()}
  def signal(name, os_pid) do
    case System.cmd("sh", ["-c", "kill -#{name} #{os_pid}"], stderr_to_stdout: true) do
      {_output, 0} -> :ok
      {output, _status} -> {:error, String.trim(output)}
    end
  end

  @doc "The arguments with which nsenter(1) enters the namespaces of the holder."
  @spec enter(t(), :user | :root) :: [String.t()]
  def enter({_port, os_pid}, mode) do
    user = if mode == :user, do: ["--user", "--preserve-credentials"], else: []
    # The holder itself is not in the pid namespace; its child is.
    processes = "--pid=/proc/#{os_pid}/ns/pid_for_children"
    ["--target", "#{os_pid}"] ++ user ++ ["--net", processes]
  end
end
