defmodule NetlinkPort.Helper do
  @moduledoc false
  # Starts the helper, and waits for its first frame.

  alias NetlinkPort.{Capability, Environment, Error, FileName, RawFile}
  alias NetlinkPort.Helper.{Executable, ExecutableAccess, Execve, OsProcess, Protocol}

  # By default 73 kB in its queue make a port busy. A batch of routes is larger.
  @busy_limits {1_048_576, 4_194_304}

  @type hello :: %{
          program: String.t(),
          os_pid: pos_integer(),
          home: {non_neg_integer(), pos_integer()},
          may_leave: boolean(),
          capabilities: non_neg_integer(),
          max_frame: pos_integer(),
          max_fds: pos_integer(),
          lowest_fd: pos_integer(),
          user_namespace: non_neg_integer(),
          bounding: Capability.set(),
          no_new_privs: boolean(),
          seccomp: 0..2
        }

  @doc "Starts the helper."
  @spec start(Path.t() | nil, [String.t()], {atom(), atom()}) ::
          {:ok, port(), OsProcess.t() | nil} | {:error, Error.t()}
  def start(executable, arguments, os \\ :os.type())

  def start(executable, _arguments, os) when os != {:unix, :linux} do
    hint =
      "netlink(7) is Linux's: the library can be compiled on #{elem(os, 1)}, and the helper runs on Linux alone"

    {:error, Error.new(:thread, :eopnotsupp, subject: executable, hint: hint)}
  end

  def start(nil, _arguments, _linux) do
    hint =
      "this code lies in no folder of an application (an escript has none), and so there is no priv/netlink_port: " <>
        "`executable:`, `config :netlink_port, executable:` or NETLINK_PORT_EXECUTABLE has to name the helper; " <>
        "`mix netlink_port.install` installs one"

    {:error, Error.new(:thread, :enoent, hint: hint)}
  end

  def start(executable, arguments, _linux) do
    # execve(2) of a directory would fail in the child, where the reason is lost.
    if RawFile.dir?(executable) do
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
        env: Executable.environment(),
        busy_limits_port: @busy_limits,
        busy_limits_msgq: @busy_limits
      ])

    {:ok, port, OsProcess.of_port(port)}
  rescue
    # The VM has reached its limit of ports (+Q of erl).
    _error in SystemLimitError -> {:error, refused(:emfile, executable)}
    error in ErlangError -> {:error, refused(posix(error), executable)}
    _error in ArgumentError -> {:error, refused(:einval, executable)}
  end

  defp refused(reason, executable) do
    hint = Environment.no_program(reason) || hint(reason, executable)
    Error.new(:thread, reason, subject: executable, hint: hint)
  end

  defp hint(reason, executable) when reason in [:enoent, :enotdir] do
    cond do
      executable == Executable.built() ->
        "the build has not made it; run `mix compile`, and see that a release holds priv/netlink_port"

      true ->
        "#{ExecutableAccess.missing(executable)}; #{named_by(executable)} names it, and " <>
          "`mix netlink_port.install` installs one"
    end
  end

  defp hint(:eacces, executable) do
    {found, remedy} = ExecutableAccess.refused(executable)

    named_by =
      if executable == Executable.built(), do: "", else: ", which #{named_by(executable)} names"

    "this user may not run it#{named_by}: #{found}; #{remedy}"
  end

  defp hint(:einval, executable), do: "that is no path; #{named_by(executable)} has to name one"
  defp hint(_reason, _executable), do: nil

  # In the order of `Executable.path/0`. If the option names the same path, it does not matter which is shown.
  defp named_by(executable) do
    cond do
      same?(Executable.variable(), executable) -> "NETLINK_PORT_EXECUTABLE"
      same?(Executable.configured(), executable) -> "`config :netlink_port, executable:`"
      true -> "`executable:`"
    end
  end

  defp same?(path, executable) do
    case FileName.chardata(path) do
      {:ok, path} -> path != "" and FileName.expand(path) == executable
      :error -> false
    end
  end

  defp posix(%ErlangError{original: reason}) when is_atom(reason) do
    _number = NetlinkPort.Errno.number(reason)
    reason
  rescue
    FunctionClauseError -> :eio
  end

  defp posix(_error), do: :eio

  @doc """
  Waits for the helper's first frame. An error is a term that `format_error/1` turns into words.
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
    # The properties are not a list of pairs.
    ArgumentError -> {:error, no_greeting(frame)}
  end

  defp complete(hello, frame) do
    case hello do
      %{
        program: _,
        os_pid: _,
        home: _,
        may_leave: _,
        lowest_fd: _,
        user_namespace: _,
        bounding: _,
        no_new_privs: _,
        seccomp: _,
        capabilities: capabilities
      }
      when is_integer(hello.max_frame) and is_integer(hello.max_fds) and is_list(capabilities) ->
        mask = Enum.reduce(capabilities, 0, &Bitwise.bor(&2, Bitwise.bsl(1, &1)))
        {:ok, %{hello | capabilities: mask}}

      _other ->
        {:error, no_greeting(frame)}
    end
  end

  defp no_greeting(frame), do: {:no_greeting, binary_part(frame, 0, min(byte_size(frame), 64))}

  @doc """
  The error of a start whose helper is not usable, from the error of `await_hello/2`. A helper that has ended is run
  once more, to find out why.
  """
  @spec unusable(Path.t(), [String.t()], term()) :: Error.t()
  def unusable(executable, arguments, {:helper_exit, status} = reason) when is_integer(status) do
    case Execve.ended(executable, arguments, status) do
      nil ->
        Error.new(:thread, :eproto, subject: "#{executable} #{format_error(reason)}")

      # The status is the errno of execve(2), not that of a program, so it is not shown.
      {"was not run, execve(2) says EPERM" <> _ = found, remedy} ->
        Error.new(:thread, :eproto, subject: "#{executable} #{found}", hint: remedy)

      {found, remedy} ->
        found = if String.starts_with?(found, "was "), do: "it " <> found, else: found
        hint = Enum.join([found | List.wrap(remedy)], "; ")
        Error.new(:thread, :eproto, subject: "#{executable} #{format_error(reason)}", hint: hint)
    end
  end

  def unusable(executable, _arguments, reason) do
    errno = if match?({:no_hello, _timeout}, reason), do: :etimedout, else: :eproto
    Error.new(:thread, errno, subject: "#{executable} #{format_error(reason)}")
  end

  @doc "Why a helper is not usable, in words."
  @spec format_error(term()) :: String.t()
  def format_error({:helper_exit, status}) do
    "ended with exit status #{inspect(status)} before its first frame"
  end

  def format_error({:no_hello, timeout}), do: "sent no first frame within #{timeout} ms"

  def format_error({:protocol_version, theirs, ours}) do
    "speaks protocol version #{theirs}, this library speaks #{ours}: build both from one source"
  end

  def format_error({:no_greeting, bytes}),
    do: "is not netlink_port: it began with #{inspect(bytes)}"
end
