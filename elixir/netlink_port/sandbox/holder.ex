defmodule NetlinkPort.Sandbox.Holder do
  @moduledoc false
  # The operating system process that holds a namespace: unshare(1) of util-linux. Its child is a shell, the init
  # process of a process namespace, so every program in the sandbox ends with the shell.
  #
  # Invariant: the shell reads its standard input, a pipe from the VM, and ends at the end of file. So the namespace
  # ends with the VM, however the VM ends.

  alias NetlinkPort.Environment
  alias NetlinkPort.Sandbox.UserNamespace

  # How long a start or an end may take, in ms. If many namespaces start and end at once, the kernel makes them wait
  # for each other.
  @patience 60_000

  @init "echo ready; read -r _"

  @type t :: {port(), os_pid :: pos_integer()}

  @doc """
  Starts a holder; `await/2` follows. With `:user` it enters the user namespace of the other sandboxes, or makes it
  for the first of them. With `:root` there is no user namespace.
  """
  @spec start(:user | :root, pos_integer() | nil) ::
          {:ok, port(), pos_integer() | nil} | {:error, String.t()}
  def start(mode, gone \\ nil) do
    init = ["sh", "-c", @init]
    space = ["--net", "--pid", "--fork", "--kill-child"]

    case mode == :user && UserNamespace.join(gone) do
      {:enter, os_pid} ->
        unshare = ["unshare" | space] ++ init
        enter = ["--target", "#{os_pid}", "--user", "--preserve-credentials"]
        entered("nsenter", enter ++ unshare, os_pid)

      :make ->
        entered("unshare", ["--user", "--map-root-user" | space] ++ init, nil)

      false ->
        entered("unshare", space ++ init, nil)
    end
  end

  defp entered(program, arguments, entered) do
    with {:ok, port} <- spawn_program(program, arguments), do: {:ok, port, entered}
  end

  @doc "Starts a program whose standard input is a pipe from the VM."
  @spec spawn_program(String.t(), [String.t()]) :: {:ok, port()} | {:error, String.t()}
  def spawn_program(program, arguments) do
    opts = [:binary, :exit_status, :stderr_to_stdout, args: arguments, env: [{~c"LC_ALL", ~c"C"}]]

    case executable(program) do
      nil -> {:error, "there is no #{program}(1)"}
      path -> {:ok, Port.open({:spawn_executable, path}, opts)}
    end
  rescue
    error in ErlangError ->
      reason = error.original
      {:error, Environment.no_program(reason) || "#{program}(1) cannot be run (#{reason})"}
  end

  # The path is kept, since the search reads every folder of PATH.
  defp executable(program) do
    with nil <- :persistent_term.get({__MODULE__, program}, nil),
         path when path != nil <- System.find_executable(program) do
      :persistent_term.put({__MODULE__, program}, path)
      path
    end
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
        {:late, "unshare(1) made no namespace within #{@patience} ms, and did not say why not"}
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
    # The shell ends after it has read a line.
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
    # unshare(1) itself is not in the process namespace; its child is.
    processes = "--pid=/proc/#{os_pid}/ns/pid_for_children"
    ["--target", "#{os_pid}"] ++ user ++ ["--net", processes]
  end
end
