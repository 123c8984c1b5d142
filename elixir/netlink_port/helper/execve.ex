defmodule NetlinkPort.Helper.Execve do
  @moduledoc false
  # Explains execve(2) of an executable: why it was not run, why it ended before its first frame, and why its file
  # capabilities do not count.
  #
  # The VM reports a failed execve(2) as an exit status that equals the errno. A program that did run can end with the
  # same status. So the file itself is examined to tell the two apart.

  alias NetlinkPort.{Capability, Deadline, Environment, Errno, Helper, ProcessLimit, RawFile}
  alias NetlinkPort.Helper.{Elf, ExecutableAccess, OsProcess}

  @version Mix.Project.config()[:version]

  # How long a program may take to print its version, or the reason of its end, in ms; and how much of it is shown.
  @patience 5_000
  @words 2_000
  # The status of a program that was ended by SIGKILL.
  @killed 137

  @typedoc "What was found, and what to do about it."
  @type told :: {found :: String.t(), remedy :: String.t() | nil}

  @doc "The version of this library."
  @spec version() :: String.t()
  def version, do: @version

  @doc "Runs an executable with `--version`. Returns the helper's version, or what is wrong with the file."
  @spec version(Path.t()) ::
          {:ok, String.t()}
          | {:error,
             told() | :eacces | {:another, output :: String.t(), status :: non_neg_integer()}}
  def version(path) do
    case run(path, ["--version"]) do
      {"netlink_port " <> version, 0} -> {:ok, String.trim(version)}
      {:error, :eacces} -> {:error, :eacces}
      {:error, reason} -> {:error, {"cannot be run: #{Errno.text(Errno.number(reason))}", nil}}
      :silent -> {:error, {"did not answer to --version within #{@patience} ms", nil}}
      {output, status} -> {:error, answered(path, output, status)}
    end
  end

  defp answered(path, output, status),
    do: unrun(path, output, status) || {:another, String.slice(output, 0, 80), status}

  @doc """
  Why a helper ended with a status before its first frame: the reason that it could not be run, or what it prints when
  it is run once more. (The first time it printed to standard error, which perhaps nobody reads.) `nil` if neither
  tells.
  """
  @spec ended(Path.t(), [String.t()], non_neg_integer()) :: told() | nil
  def ended(_path, _arguments, 0), do: nil
  # Whoever has killed it is not asked to do so again.
  def ended(_path, _arguments, @killed), do: signalled(@killed)

  def ended(path, arguments, status) do
    output = with {output, ^status} <- run(path, arguments), do: output, else: (_another -> "")

    if status > 128,
      do: with_words(signalled(status), output),
      else: unrun(path, output, status) || words(output) || silent(status)
  end

  defp words(output) do
    case shown(output) do
      "" -> nil
      words -> {"it says: #{words}", shortage(output)}
    end
  end

  defp with_words({found, remedy}, output) do
    case words(output) do
      nil -> {found, remedy}
      {words, shortage} -> {"#{found}; #{words}", shortage || remedy}
    end
  end

  # The helper's allocator ends it without a word.
  defp silent(71), do: {"a helper that ends so without a word had no memory left", more_memory()}
  defp silent(_status), do: nil

  # The VM reports the end by a signal as 128 and its number. signal(7).
  defp signalled(@killed) do
    {"was ended by SIGKILL: by another process, or by the OOM killer, of the system or of its cgroup",
     "see the kernel's log; the memory of a cgroup is memory.max, MemoryMax= of a systemd unit, --memory of a container"}
  end

  defp signalled(159) do
    {"was ended by SIGSYS: a seccomp profile ends programs for a system call that it makes at its start",
     "the profile of the container, or SystemCallFilter= of the systemd unit, has to allow it; the kernel's log has " <>
       "its number"}
  end

  defp signalled(139) do
    {"was ended by SIGSEGV: its stack may be too small, or a seccomp profile refuses a system call of its start",
     "raise RLIMIT_STACK (LimitSTACK= of a systemd unit), compare the profile with docs/deployment.md, or install it " <>
       "again"}
  end

  defp signalled(152), do: {"was ended by SIGXCPU: its processor time was up", "raise RLIMIT_CPU"}
  defp signalled(134), do: {"was ended by SIGABRT", nil}
  defp signalled(status), do: {"was ended by signal #{status - 128}", nil}

  # What to do if a limit is named as the reason. glibc's loader has no text for EMFILE.
  defp shortage(output) do
    cond do
      output =~ ~r/EMFILE|: Error 24$|Too many open files|No file descriptors available/m ->
        "raise the limit of its descriptors: RLIMIT_NOFILE, LimitNOFILE= of a systemd unit"

      output =~ ~r/shared object.*: (Operation not permitted|Permission denied)$/m ->
        "let this user read and map that library; a seccomp profile, a security module or a mount with noexec can be " <>
          "what refuses it"

      output =~ ~r/ENOMEM|annot allocate|Out of memory|failed to map segment from shared object$/m ->
        more_memory()

      true ->
        nil
    end
  end

  defp more_memory do
    "raise the limits of its memory: RLIMIT_AS and RLIMIT_DATA, LimitAS= and LimitDATA= of a systemd unit"
  end

  # Joins printed lines into one.
  defp shown(output) do
    output
    |> String.split(~r/[\r\n]+/, trim: true)
    |> Enum.map_join("; ", &String.trim/1)
    |> legible()
    |> String.slice(0, @words)
  end

  # Bytes of no character make a regular expression with `u` raise. A program in another locale may write such.
  defp legible(text) do
    for character <- String.codepoints(text), into: "" do
      if String.valid?(character) and character =~ ~r/^[[:print:]]$/u, do: character, else: "?"
    end
  end

  ## Why it was not run

  @doc """
  Why a file was not run, or not linked, from its exit status and output. `nil` if it ran.
  """
  @spec unrun(Path.t(), String.t(), non_neg_integer()) :: told() | nil
  def unrun(path, output, status) do
    cond do
      output == "" and status in [1, 2, 8, 13] -> refused(path, status)
      linked?(output) -> nil
      true -> {"its dynamic loader says: #{shown(output)}", shortage(output) || built_elsewhere()}
    end
  end

  # The messages of the dynamic loaders of glibc and musl.
  @unlinked ~r/error while loading shared libraries|: version `.*' not found|symbol lookup error|Error loading shared library|Error relocating/

  defp linked?(output), do: not (output =~ @unlinked)

  defp refused(path, 1) do
    case {interpreter(path), unbounded(path)} do
      {nil, []} ->
        nil

      # The capabilities of a script have no effect, so that it ran.
      {"/" <> _, _names} ->
        nil

      {_none, names} ->
        {"was not run, execve(2) says EPERM: a capability of the file is not in the bounding set " <>
           "of this VM: #{names}", allow(names)}
    end
  end

  defp refused(path, 2) do
    with :error <- missing_loader(path), :error <- missing_interpreter(path), do: nil
  end

  defp refused(path, 8) do
    case {Elf.read(path), Elf.read("/proc/self/exe")} do
      {{:ok, %{machine: machine}}, {:ok, %{machine: machine}}} ->
        {"was not run, execve(2) says ENOEXEC: the file is damaged", "install or build it again"}

      {{:ok, %{machine: theirs}}, ours} ->
        here = with {:ok, %{machine: machine}} <- ours, do: machine, else: (_ -> "another")

        {"was not run, execve(2) says ENOEXEC: it is built for #{theirs}, and this machine is #{here}",
         built_elsewhere()}

      # A script that ran ends with a status of its own.
      _no_elf ->
        unless interpreter(path) do
          {"was not run, execve(2) says ENOEXEC: it is no program that a kernel runs",
           "name the helper's own file"}
        end
    end
  end

  defp refused(path, 13) do
    interpreter = interpreter(path)

    # A script that ran ends with a status of its own.
    unless interpreter && Enum.all?([path, interpreter], &ExecutableAccess.granted?/1) do
      {found, remedy} = ExecutableAccess.refused(path)
      {"was not run, execve(2) says EACCES: #{found}", remedy}
    end
  end

  defp missing_loader(path) do
    with {:ok, %{loader: "/" <> _ = loader}} <- Elf.read(path),
         false <- RawFile.exists?(loader) do
      {"was not run, execve(2) says ENOENT: its dynamic loader #{loader} is not on this machine: it is built " <>
         "for another C library, or machine", built_elsewhere()}
    else
      _there -> :error
    end
  end

  defp missing_interpreter(path) do
    with interpreter when interpreter != nil <- interpreter(path),
         false <- RawFile.exists?(interpreter) do
      if String.ends_with?(interpreter, "\r"),
        do: carriage_return(path),
        else:
          {"was not run, execve(2) says ENOENT: it is a script for #{interpreter}, which is not on this machine",
           "name the helper's own file"}
    else
      _there -> :error
    end
  end

  defp carriage_return(path) do
    {"was not run, execve(2) says ENOENT: it is a script with lines that end in CR LF, and the kernel takes the " <>
       "carriage return of the first line for a part of the interpreter's name",
     "save it with lines that end in LF: sed -i 's/\\r$//' #{path}"}
  end

  # The interpreter of a script as the kernel reads it: up to a space, a tab or the end of the line. A carriage return
  # is a part of its name.
  defp interpreter(path) do
    with {:ok, "#!" <> line} <- first_line(path),
         [interpreter | _] <- String.split(line, [" ", "\t"], trim: true) do
      interpreter
    else
      _none -> nil
    end
  end

  defp first_line(path) do
    # As many bytes as the kernel reads. `:file.read_line/1` would take a carriage return away.
    with {:ok, bytes} <- Elf.beginning(path, 256),
         do: {:ok, bytes |> String.split("\n", parts: 2) |> hd()}
  end

  defp built_elsewhere do
    "build it on this machine or one like it, or take the static executable that `make dist` makes, " <>
      "see docs/deployment.md"
  end

  ## File capabilities

  @doc """
  Why a capability of an executable does not count if this VM starts the executable, and what to do. `nil` if no
  reason is known.
  """
  @spec powerless(Path.t(), atom(), Environment.t()) :: told() | nil
  def powerless(path, capability, environment \\ Environment.look()) do
    cond do
      not Environment.bounded?(environment, capability) ->
        name = Capability.shown(capability)

        {"#{name} is not in the bounding set of this VM (CapBnd of /proc/self/status)",
         allow(name)}

      Environment.capable?(environment, capability) ->
        nil

      environment.no_new_privs ->
        {"this VM runs under no_new_privs, so that file capabilities do not count",
         "start it without: NoNewPrivileges=no and nothing that implies it in a systemd unit, no " <>
           "--security-opt no-new-privileges for a container; or have the VM hold the capabilities itself " <>
           "(AmbientCapabilities=)"}

      true ->
        unheeded(path, capability, environment)
    end
  end

  # Reasons that lie in the file. They matter if the file has the capability, or if its capabilities cannot be read.
  defp unheeded(path, capability, environment) do
    mount = Environment.mount(environment, path)

    case file_capabilities(path) do
      {:ok, %{names: names, rootid: rootid}} ->
        cond do
          capability not in names -> nil
          Environment.mounted?(mount, "nosuid") -> nosuid(mount)
          rootid != nil -> foreign(rootid)
          true -> nil
        end

      :unknown ->
        if Environment.mounted?(mount, "nosuid"), do: nosuid(mount)
    end
  end

  defp nosuid(mount) do
    {"it lies on #{mount.point}, which is mounted nosuid, so that file capabilities do not count",
     "install it on another file system, or mount that one without nosuid"}
  end

  @doc "The finding and remedy for file capabilities that belong to another user namespace."
  @spec foreign(String.t()) :: told()
  def foreign(rootid) do
    {"its file capabilities were made inside a user namespace, and count only where user #{rootid} is root",
     "install it from outside, as root of the machine"}
  end

  defp allow(names) do
    words = names |> String.split(", ") |> Enum.map(&String.replace_prefix(&1, "CAP_", ""))

    "the container has to allow it (#{Enum.map_join(words, " ", &"--cap-add #{&1}")}), or the systemd unit " <>
      "(CapabilityBoundingSet=); `netns: :host` needs no capability, and works with the helper of the build#{build()}"
  end

  defp build, do: if(path = Helper.Executable.built(), do: ", #{path}", else: "")

  # The capabilities of the file that are not in the bounding set. Without getcap(8), those of an installed helper.
  defp unbounded(path) do
    environment = Environment.look()

    names =
      case file_capabilities(path) do
        {:ok, %{names: names}} -> names
        :unknown -> [:sys_admin, :net_admin]
      end

    names
    |> Enum.reject(&Environment.bounded?(environment, &1))
    |> Enum.map_join(", ", &Capability.shown/1)
    |> case do
      "" -> []
      shown -> shown
    end
  end

  @doc """
  The capabilities of a file: `text` as getcap(8) prints them, and their names. A file without any gives
  `%{text: "", names: []}`. `:unknown` if there is no getcap(8).
  """
  @spec file_capabilities(Path.t()) ::
          {:ok, %{text: String.t(), names: [atom()], rootid: String.t() | nil}} | :unknown
  def file_capabilities(path) do
    # getcap(8) is in a directory that is often not in a user's PATH.
    getcap =
      RawFile.find_executable("getcap") ||
        Enum.find(["/usr/sbin/getcap", "/sbin/getcap"], &RawFile.exists?/1)

    with true <- getcap != nil,
         # An older getcap(8) does not know -n.
         {output, 0} <- getcap(getcap, ["-n", path]) || getcap(getcap, [path]) do
      {:ok, capabilities(told_of(path, output))}
    else
      _not_told -> :unknown
    end
  end

  # The line of the file, "" without one: others are of the dynamic loader, about LD_PRELOAD for example.
  defp told_of(path, output) do
    lines = String.split(output, "\n")
    line = Enum.find(lines, path, &String.starts_with?(&1, path))
    line |> String.replace_prefix(path, "") |> String.trim()
  end

  defp getcap(getcap, arguments) do
    with {_output, status} when status != 0 <-
           System.cmd(getcap, arguments, stderr_to_stdout: true),
         do: nil
  end

  # `cap_a,cap_b=ep [rootid=1000]`; an older getcap(8) begins with `= ` and writes `+ep`.
  defp capabilities(text) do
    text = String.replace_prefix(text, "= ", "")
    names = for [_, name] <- Regex.scan(~r/cap_([a-z_]+)/, text), do: Capability.named(name)

    rootid =
      with [_, id] <- Regex.run(~r/\[rootid=(\d+)\]/, text),
           do: if(id != "0", do: id),
           else: (_ -> nil)

    %{text: text, names: Enum.reject(names, &is_nil/1), rootid: rootid}
  end

  ## Running it

  # Runs in a process of its own, so that the mailbox holds only the port's messages. A program that does not end is
  # killed.
  defp run(path, arguments) do
    look = fn -> path |> open(arguments) |> collect("", Deadline.at(@patience)) end

    case ProcessLimit.task(look) do
      {:ok, task} -> Task.await(task, :infinity)
      :system_limit -> {:error, :eagain}
    end
  end

  defp open(path, arguments) do
    Port.open({:spawn_executable, path}, [
      :binary,
      :exit_status,
      :stderr_to_stdout,
      args: arguments,
      env: Helper.Executable.environment()
    ])
  rescue
    error in ErlangError -> error.original
    _error in ArgumentError -> :einval
  end

  defp collect(reason, _output, _deadline) when is_atom(reason), do: {:error, reason}

  defp collect(port, output, deadline) do
    receive do
      {^port, {:data, data}} -> collect(port, cut(output <> data), deadline)
      {^port, {:exit_status, status}} -> {output, status}
    after
      Deadline.left(deadline) ->
        _as_far_as_can_be = port |> OsProcess.of_port() |> OsProcess.kill(port)
        :silent
    end
  end

  defp cut(output), do: binary_part(output, 0, min(byte_size(output), 2 * @words))
end
