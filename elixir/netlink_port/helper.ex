defmodule NetlinkPort.Helper do
  @moduledoc false
  # The helper as an operating system process: starting it, hearing its first word, and making sure
  # that it is gone.

  alias NetlinkPort.{Access, Error, Protocol}

  # 73 kB in the port's queue make it busy by default; a batch of routes is more than that.
  @busy_limits {1_048_576, 4_194_304}

  @typedoc "Process id and start time, which together are never reused."
  @type process :: {os_pid :: pos_integer(), start_time :: String.t()}

  @type hello :: %{
          program: String.t(),
          os_pid: pos_integer(),
          home: {non_neg_integer(), pos_integer()},
          may_leave: boolean(),
          capabilities: non_neg_integer(),
          max_frame: pos_integer(),
          max_fds: pos_integer()
        }

  @doc """
  The executable of a server that is told of none, see `NetlinkPort.start_link/1`. An empty variable is
  none. What the configuration says is not checked here.
  """
  @spec executable() :: Path.t()
  def executable do
    with variable when variable in [nil, ""] <- System.get_env("NETLINK_PORT_EXECUTABLE"),
         nil <- configured() do
      built()
    end
  end

  @doc "Where the build puts it, whatever servers are told to take."
  @spec built() :: Path.t()
  def built, do: Path.expand(Application.app_dir(:netlink_port, "priv/netlink_port"))

  @doc "Starts the helper."
  @spec start(Path.t(), [String.t()]) :: {:ok, port(), process() | nil} | {:error, Error.t()}
  def start(executable, arguments) do
    # execve(2) of a directory would fail in the child, where nobody can see why.
    if File.dir?(executable) do
      {:error, refused(:eacces, executable)}
    else
      spawn_executable(executable, arguments)
    end
  end

  @doc "The arguments of the helper, from the options of its server."
  @spec arguments(keyword()) :: [String.t()]
  def arguments(opts) do
    keep = Enum.flat_map(opts[:keep], &["--keep", Atom.to_string(&1)])
    rootless = if opts[:user_namespaces], do: ["--user-namespaces"], else: []
    ["--spin", Integer.to_string(opts[:spin])] ++ keep ++ rootless
  end

  defp spawn_executable(executable, arguments) do
    port =
      Port.open({:spawn_executable, executable}, [
        :binary,
        :exit_status,
        :use_stdio,
        packet: 4,
        args: arguments,
        busy_limits_port: @busy_limits,
        busy_limits_msgq: @busy_limits
      ])

    {:ok, port, process(port)}
  rescue
    # The VM has as many ports as it may have (+Q of erl).
    _error in SystemLimitError -> {:error, refused(:emfile, executable)}
    error in ErlangError -> {:error, refused(posix(error), executable)}
    _error in ArgumentError -> {:error, refused(:einval, executable)}
  end

  defp refused(reason, executable) do
    Error.new(:thread, reason, subject: executable, hint: hint(reason, executable))
  end

  defp hint(reason, executable) when reason in [:enoent, :enotdir] do
    if executable == built() do
      "the build has not made it; run `mix compile`, and see that a release holds priv/netlink_port"
    else
      "there is no such file, which #{named_by(executable)} names; `mix netlink_port.install` installs one"
    end
  end

  defp hint(:eacces, executable) do
    {found, remedy} = Access.refused(executable)
    named_by = if executable == built(), do: "", else: ", which #{named_by(executable)} names"
    "this user may not run it#{named_by}: #{found}; #{remedy}"
  end

  defp hint(:einval, executable), do: "that is no path; #{named_by(executable)} has to name one"
  defp hint(_reason, _executable), do: nil

  # In the order of `executable/0`. An option that says the same as one of these is no matter.
  defp named_by(executable) do
    cond do
      same?(System.get_env("NETLINK_PORT_EXECUTABLE"), executable) -> "NETLINK_PORT_EXECUTABLE"
      same?(configured(), executable) -> "`config :netlink_port, executable:`"
      true -> "`executable:`"
    end
  end

  defp same?(path, executable),
    do: is_binary(path) and path != "" and Path.expand(path) == executable

  defp configured, do: Application.get_env(:netlink_port, :executable)

  defp posix(%ErlangError{original: reason}) when is_atom(reason) do
    _number = NetlinkPort.Errno.number(reason)
    reason
  rescue
    FunctionClauseError -> :eio
  end

  defp posix(_error), do: :eio

  defp process(port) do
    with {:os_pid, os_pid} <- Port.info(port, :os_pid),
         {:ok, start_time} <- start_time(os_pid) do
      {os_pid, start_time}
    else
      _gone -> nil
    end
  end

  @doc """
  Waits for the first frame. What is wrong is told as a term that `format_error/1` puts in words.
  """
  @spec await_hello(port(), timeout()) :: {:ok, hello()} | {:error, term()}
  def await_hello(port, timeout) do
    receive do
      {^port, {:data, frame}} -> greeting(frame)
      {^port, {:exit_status, status}} -> {:error, {:helper_exit, status}}
      {:EXIT, ^port, reason} -> {:error, {:helper_exit, reason}}
    after
      timeout -> {:error, {:no_hello, timeout}}
    end
  end

  defp greeting(frame) do
    case Protocol.decode(frame) do
      {:hello, version, properties} ->
        if version == Protocol.version() do
          complete(Map.new(properties), frame)
        else
          {:error, {:protocol_version, version, Protocol.version()}}
        end

      _other ->
        {:error, no_greeting(frame)}
    end
  rescue
    # Properties that are no pairs.
    ArgumentError -> {:error, no_greeting(frame)}
  end

  defp complete(hello, frame) do
    case hello do
      %{program: _, os_pid: _, home: _, may_leave: _, capabilities: capabilities}
      when is_integer(hello.max_frame) and is_integer(hello.max_fds) and is_list(capabilities) ->
        mask = Enum.reduce(capabilities, 0, &Bitwise.bor(&2, Bitwise.bsl(1, &1)))
        {:ok, %{hello | capabilities: mask}}

      _other ->
        {:error, no_greeting(frame)}
    end
  end

  defp no_greeting(frame), do: {:no_greeting, binary_part(frame, 0, min(byte_size(frame), 64))}

  @doc "In words, why a helper is not usable."
  @spec format_error(term()) :: String.t()
  # No exit code of the program's: the errno of execve(2), capabilities(7). Other programs have it, too.
  def format_error({:helper_exit, 1}) do
    "was not run, execve(2) says EPERM: a capability of the file is not in the bounding set " <>
      "(CapabilityBoundingSet= of a systemd unit, --cap-add of a container); or it is another " <>
      "program, which ended with exit status 1"
  end

  def format_error({:helper_exit, status}) do
    "ended with exit status #{inspect(status)} before its first frame"
  end

  def format_error({:no_hello, timeout}), do: "sent no first frame within #{timeout} ms"

  def format_error({:protocol_version, theirs, ours}) do
    "speaks protocol version #{theirs}, this library speaks #{ours}: build both from one source"
  end

  def format_error({:no_greeting, bytes}),
    do: "is not netlink_port: it began with #{inspect(bytes)}"

  @doc """
  Whether the process is still there; a zombie is not. One that nothing can be known of, for want of a
  descriptor say, may be.
  """
  @spec alive?(process()) :: boolean()
  def alive?(process), do: state(process) != :gone

  @doc """
  Ends the process with SIGKILL, which it can neither ignore nor miss while it is stopped. OTP has no
  kill(2), so that a shell does it. Nothing happens where the process is not that one any more.

  An error where it could not be done: without a descriptor there is neither `/proc` nor a shell.
  """
  @spec kill(process() | nil) :: :ok | :error
  def kill(nil), do: :ok

  def kill({os_pid, _start_time} = process) do
    case state(process) do
      :alive ->
        _output = :os.cmd(~c"kill -KILL #{os_pid} 2>&1")
        :ok

      :gone ->
        :ok

      :unknown ->
        :error
    end
  catch
    _kind, _reason -> :error
  end

  # Of a clock tick of /proc, USER_HZ, which is 100 on every architecture this is written for.
  @tick 10

  @doc """
  What a helper takes: `:rss` in bytes and `:cpu`, its time on a processor, in ms. `nil` where `/proc` does
  not tell, as with `hidepid`.
  """
  @spec usage(pos_integer()) :: %{
          rss: non_neg_integer() | nil,
          cpu: non_neg_integer() | nil
        }
  def usage(os_pid) do
    %{rss: proc(os_pid, "status", &rss/1), cpu: proc(os_pid, "stat", &cpu/1)}
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

  # From field 3 on, counted from behind the name in parentheses, which may hold anything. proc(5).
  defp fields(stat), do: stat |> String.split(")") |> List.last() |> String.split()

  defp state({os_pid, start_time}) do
    case start_time(os_pid) do
      {:ok, ^start_time} -> :alive
      {:error, reason} when reason not in [:enoent, :esrch] -> :unknown
      _gone_or_another -> :gone
    end
  end

  # Field 22 of /proc/<pid>/stat. Field 3 is the state.
  defp start_time(os_pid) do
    with {:ok, stat} <- File.read("/proc/#{os_pid}/stat") do
      case fields(stat) do
        [state | fields] when state not in ["Z", "X"] -> {:ok, Enum.at(fields, 18)}
        _ended -> :gone
      end
    end
  end
end
