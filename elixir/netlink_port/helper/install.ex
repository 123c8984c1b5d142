defmodule NetlinkPort.Helper.Install do
  @moduledoc false
  # Installs the helper with file capabilities, for `mix netlink_port.install`. Only a few programs need root, and
  # sudo may run them. Everything else is checked first, as the user.
  #
  # Danger: a user who can write to the folder could put another file under the temporary name before setcap(8) runs,
  # and that file would get the capabilities. So only root may be able to write there. All later steps use the
  # resolved folder, since another user may be able to turn a symbolic link to it.

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.Environment
  alias NetlinkPort.Helper.{ExecutableAccess, Execve}

  @enforce_keys [:source, :to, :group, :gid, :capabilities, :tools, :prefix]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          source: Path.t(),
          to: Path.t(),
          group: String.t(),
          gid: non_neg_integer(),
          capabilities: [String.t()],
          tools: %{String.t() => Path.t()},
          prefix: [String.t()]
        }

  @always ~w(cap_sys_admin cap_net_admin)
  @more ~w(sys_ptrace net_broadcast audit_read audit_control audit_write dac_read_search)
  @version Mix.Project.config()[:version]
  # A user's PATH often lacks the folders of root's programs.
  @tools ~w(setcap getcap getent install chmod mv rm readlink id)
  @root_path ~w(/usr/local/sbin /usr/sbin /sbin)

  ## The plan

  @doc "Makes all checks that are possible before anything is changed."
  @spec plan(Path.t(), Path.t(), String.t(), [String.t()]) :: {:ok, t()} | {:error, String.t()}
  def plan(source, to, group, more) do
    source = Path.expand(source)

    with {:ok, to} <- target(to),
         {:ok, capabilities} <- capabilities(more),
         {:ok, tools} <- tools(),
         {:ok, gid} <- gid(group),
         :ok <- version(source),
         {:ok, directory} <- real_path(Path.dirname(to)),
         :ok <- closed(directory, 0),
         :ok <- replaceable(Path.join(directory, Path.basename(to))),
         :ok <- honours_capabilities(directory) do
      plan = %__MODULE__{
        source: source,
        to: Path.join(directory, Path.basename(to)),
        group: group,
        gid: gid,
        capabilities: capabilities,
        tools: tools,
        prefix: prefix()
      }

      {:ok, plan}
    end
  end

  # A path with a slash at its end names a directory, whether it exists or not.
  defp target(to) do
    path = Path.expand(to)

    case {File.stat(path), String.ends_with?(to, "/")} do
      {_any, _directory?} when path != to and path <> "/" != to -> {:error, relative(to, path)}
      {{:ok, %{type: :directory}}, _directory?} -> {:ok, Path.join(path, "netlink_port")}
      {{:ok, _file}, true} -> {:error, "#{path} is not a directory"}
      {{:error, :eacces}, _directory?} -> {:error, unseen(path)}
      {{:error, _reason}, true} -> {:error, absent(path)}
      {_file_or_none, false} -> {:ok, path}
    end
  end

  defp relative("", _path), do: "--to is empty: name the file, or a directory that is there"

  defp relative(to, path),
    do: "--to #{to}: expected an absolute path without . and ..; from here that is #{path}"

  defp unseen(path) do
    "#{path} cannot be seen: a directory above it is closed to this user, as it would be to a VM of " <>
      "this user; choose another, such as /usr/local/lib, or run the task as root"
  end

  defp absent(path), do: "there is no directory #{path}; `install -d #{path}` as root makes it"

  defp capabilities(more) do
    case Enum.reject(more, &(&1 in @more)) do
      [] -> {:ok, Enum.uniq(@always ++ Enum.map(more, &("cap_" <> &1)))}
      [name | _] -> {:error, "--capability #{name}: expected one of #{Enum.join(@more, ", ")}"}
    end
  end

  defp gid(""), do: {:error, "--group is empty: name the group that may run it"}

  defp gid(group) do
    with {line, 0} <- System.cmd("getent", ["group", "--", group]),
         [^group, _password, gid | _members] <- String.split(line, ":") do
      {:ok, String.to_integer(gid)}
    else
      _none -> {:error, "there is no group #{group}; `groupadd --system #{group}` makes one"}
    end
  end

  defp tools do
    tools = Map.new(@tools, &{&1, find(&1)})

    case for {name, nil} <- tools, do: name do
      [] ->
        {:ok, tools}

      names ->
        {:error,
         "there is no #{Enum.join(names, ", no ")}; Debian's packages are libcap2-bin for setcap and " <>
           "getcap, libc-bin for getent, and coreutils"}
    end
  end

  defp find(name) do
    System.find_executable(name) ||
      Enum.find(Enum.map(@root_path, &Path.join(&1, name)), &File.regular?/1)
  end

  defp version(source) do
    ours = Execve.version()

    case Execve.version(source) do
      {:ok, ^ours} ->
        :ok

      {:ok, other} ->
        {:error, "#{source} is version #{other}, and the library #{ours}"}

      {:error, :eacces} ->
        {:error, unbuilt(source, "EACCES: " <> elem(ExecutableAccess.refused(source), 0))}

      {:error, {:another, said, _}} ->
        {:error, "#{source} is not netlink_port, it says #{inspect(said)}"}

      {:error, {"cannot be run: " <> why, _remedy}} ->
        {:error, unbuilt(source, why)}

      {:error, {found, remedy}} ->
        {:error, Enum.join(["#{source} #{found}" | List.wrap(remedy)], "; ")}
    end
  end

  defp unbuilt(source, why) do
    "#{source} cannot be run: #{why}; build it first, or name one " <>
      "by NETLINK_PORT_EXECUTABLE (with `config :netlink_port, executable:` none is built)"
  end

  defp prefix do
    cond do
      System.cmd("id", ["-u"]) == {"0\n", 0} -> []
      sudo = System.find_executable("sudo") -> [sudo, "-n"]
      true -> :root_has_to
    end
  end

  ## The folder

  # A user who may write to a folder may replace everything in it, including folders. In a sticky folder such as /tmp
  # the user may replace only the user's own files. With an access control list the group bits of the mode are the
  # most that any entry grants, so they count even if the group is root's.
  @doc "Whether only root can put a file into a directory, or another directory in its place."
  @spec closed(Path.t()) :: :ok | {:error, String.t()}
  def closed(directory) do
    with {:ok, path} <- real_path(directory), do: closed(path, 0)
  end

  # `sticky` is the mode bit that makes up for the write permission of others.
  defp closed(path, sticky) do
    %{uid: uid, mode: mode, type: type} = File.stat!(path)

    cond do
      type != :directory ->
        {:error, "#{path} is not a directory"}

      uid != 0 ->
        {:error, open(path, "belongs to user #{uid}")}

      (mode &&& 0o022) != 0 and (mode &&& sticky) == 0 ->
        {:error, open(path, "is not root's alone")}

      path == "/" ->
        :ok

      true ->
        closed(Path.dirname(path), 0o1000)
    end
  end

  defp open(path, why) do
    "#{path} #{why}: others could replace the helper by a program of their own; choose a directory " <>
      "that only root can write to, such as /usr/local/lib"
  end

  # Danger: rename(2) replaces a device or a FIFO as well as a file, and a machine without /dev/null is broken.
  defp replaceable(path) do
    case File.stat(path) do
      {:ok, %{type: :regular}} ->
        :ok

      {:ok, %{mode: mode}} ->
        {:error,
         "#{path} is #{kind(mode)}, and the task replaces nothing but a file; choose another path, or remove it as " <>
           "root if nothing uses it"}

      {:error, _none} ->
        :ok
    end
  end

  # S_IFMT, inode(7)
  defp kind(mode) do
    case mode &&& 0o170000 do
      0o010000 -> "a FIFO"
      0o020000 -> "a character device"
      0o040000 -> "a directory"
      0o060000 -> "a block device"
      0o140000 -> "a socket"
      _another -> "no regular file"
    end
  end

  defp real_path(path) do
    case System.cmd("readlink", ["-e", "--", path]) do
      {output, 0} ->
        {:ok, String.replace_suffix(output, "\n", "")}

      {_output, _status} ->
        {:error, absent(path)}
    end
  end

  defp honours_capabilities(path) do
    mount = Environment.mount(Environment.look(), path)

    case Enum.filter(~w(nosuid noexec ro), &Environment.mounted?(mount, &1)) do
      [] ->
        :ok

      wrong ->
        {:error,
         "#{path} is on #{mount.point}, which is mounted #{Enum.join(wrong, ", ")}: there a helper " <>
           "cannot be installed, or is run without capabilities; choose another directory"}
    end
  end

  ## The steps that need root

  @doc "Installs the helper, unless it is installed already."
  @spec run(t()) :: {:ok, :installed | :there} | {:error, String.t()}
  def run(plan) do
    cond do
      there?(plan) ->
        {:ok, :there}

      plan.prefix == :root_has_to ->
        {:error, by_hand(plan, "this takes root, and there is no sudo")}

      true ->
        install(plan)
    end
  end

  # A file that cannot be read counts as different.
  defp there?(plan) do
    with {:ok, %{type: :regular}} <- File.lstat(plan.to),
         {:ok, bytes} <- File.read(plan.source),
         {:ok, ^bytes} <- File.read(plan.to) do
      check(%{plan | prefix: []}, plan.to, 0o750) == :ok
    else
      _other -> false
    end
  end

  # chown(2) clears file capabilities, so owner and group are set before setcap(8). The group gets its permission
  # at the end.
  defp install(plan) do
    _swept = sweep(plan)
    temporary = "#{plan.to}.tmp#{System.pid()}"
    owned = ["-o", "root", "-g", Integer.to_string(plan.gid), "-m", "0700", "-T", "--"]

    with :ok <- root(plan, "install", owned ++ [plan.source, temporary]),
         :ok <- root(plan, "setcap", [setcap(plan), temporary]),
         :ok <- check(plan, temporary, 0o700),
         :ok <- check_version(plan, temporary),
         :ok <- root(plan, "chmod", ["0750", "--", temporary]),
         :ok <- root(plan, "mv", ["-f", "-T", "--", temporary, plan.to]),
         :ok <- check(plan, plan.to, 0o750) do
      {:ok, :installed}
    else
      {:error, reason} ->
        _result = root(plan, "rm", ["-f", "--", temporary])
        {:error, reason}
    end
  end

  # Removes the temporary files of tasks that were killed.
  defp sweep(plan) do
    directory = Path.dirname(plan.to)
    temporary = Path.basename(plan.to) <> ".tmp"
    # A user with sudo may lack permission to list the folder.
    names = with {:error, _reason} <- File.ls(directory), do: {:ok, []}

    for name <- elem(names, 1),
        pid = String.replace_prefix(name, temporary, ""),
        name == temporary <> pid and pid =~ ~r/^\d+$/ and not File.exists?("/proc/" <> pid) do
      _left = root(plan, "rm", ["-f", "--", Path.join(directory, name)])
    end
  end

  defp setcap(plan), do: Enum.join(plan.capabilities, ",") <> "+ep"

  defp root(plan, tool, arguments) do
    case command(plan, plan.tools[tool], arguments, stderr_to_stdout: true) do
      {_output, 0} -> :ok
      {output, _status} -> {:error, failed(plan, tool, String.trim(output))}
    end
  end

  # Standard error is left out if the output is parsed: sudo(8) may print warnings, for example about a host name.
  defp command(plan, program, arguments, opts \\ []) do
    [program | arguments] = plan.prefix ++ [program | arguments]
    System.cmd(program, arguments, [env: [{"LC_ALL", "C"}]] ++ opts)
  end

  defp failed(plan, tool, output) do
    cond do
      tool == "setcap" and output =~ "not supported" ->
        "the file system of #{Path.dirname(plan.to)} keeps no extended attributes, and so no file " <>
          "capabilities (#{output}); choose another directory"

      # sudo(8) may also have printed a warning before the tool's own output, so only its last line counts.
      plan.prefix != [] and output =~ ~r/^sudo: .*\z/m ->
        by_hand(plan, "this takes root, and #{output}")

      true ->
        "#{tool} has failed: #{output}"
    end
  end

  defp by_hand(plan, why) do
    """
    #{why}. What root has to run:

        #{shell(["install", "-o", "root", "-g", plan.group, "-m", "0750", "-T", plan.source, plan.to])}
        #{shell(["setcap", setcap(plan), plan.to])}

    Then run this task again, as a member of the group: it checks what is there.\
    """
  end

  defp shell(words) do
    Enum.map_join(words, " ", fn word ->
      if word =~ ~r"^[\w/.,+=:@-]+$",
        do: word,
        else: "'" <> String.replace(word, "'", "'\\''") <> "'"
    end)
  end

  ## The final checks

  defp check(plan, path, mode) do
    with {:ok, stat} <- File.lstat(path),
         {:owned, true} <- {:owned, owned?(stat, plan, mode)},
         {:getcap, {output, 0}} <- {:getcap, command(plan, plan.tools["getcap"], [path])},
         {:capable, true} <- {:capable, capable?(output, path, plan)} do
      :ok
    else
      {:error, reason} -> {:error, "#{path}: #{:file.format_error(reason)}"}
      {:owned, false} -> {:error, "#{path} has not got the owner, group or mode it should have"}
      {:capable, false} -> {:error, "#{path} has not got the capabilities it should have"}
      {:getcap, {output, _status}} -> {:error, "getcap has failed: #{output}"}
    end
  end

  defp owned?(stat, plan, mode) do
    {stat.type, stat.uid, stat.gid, stat.mode &&& 0o7777} == {:regular, 0, plan.gid, mode}
  end

  # `PATH cap_a,cap_b=ep`; an older getcap(8) writes `PATH = cap_a,cap_b+ep`.
  defp capable?(output, path, plan) do
    rest = output |> String.trim() |> String.replace_prefix(path, "")

    with [_, names] <- Regex.run(~r/^ (?:= )?([a-z_,]+)[=+]ep$/, rest) do
      Enum.sort(String.split(names, ",")) == Enum.sort(plan.capabilities)
    else
      _other -> false
    end
  end

  # Root runs it, since at this point the mode lets only root run it.
  defp check_version(%{prefix: []} = plan, path) do
    case version(path) do
      {:error, reason} ->
        {:error, if(reason =~ "EPERM", do: by_hand(plan, unbounded(plan, path)), else: reason)}

      :ok ->
        :ok
    end
  end

  # sudo(8) reports a failed execve(2) by the text of strerror(3).
  defp check_version(plan, path) do
    {output, status} = command(plan, path, ["--version"], stderr_to_stdout: true)

    cond do
      output =~ ~r/^netlink_port #{Regex.escape(@version)}$/m and status == 0 ->
        :ok

      output == "" or output =~ ~r/Operation not permitted/ ->
        {:error, by_hand(plan, unbounded(plan, path))}

      true ->
        {:error, "#{path} does not run with its capabilities, it says #{inspect(output)}"}
    end
  end

  defp unbounded(plan, path) do
    case Execve.unrun(path, "", 1) do
      {found, _remedy} ->
        "#{plan.to} #{found}. The bounding set of this build or container (CapBnd of /proc/self/status) does not " <>
          "have it: run the task where it does, and nothing else is to be done. Where that cannot be, as in the " <>
          "build of an image, the file can be made without being run; the container that runs it has to allow " <>
          "these capabilities (--cap-add), or execve(2) refuses it there, too"

      nil ->
        "#{plan.to} was not run, execve(2) says EPERM: a security module, or a filter of system calls, forbids it"
    end
  end
end
