defmodule NetlinkPort.Environment do
  @moduledoc false
  # What this machine lets the VM see and do. No other file reads it. Each look reads /proc anew, since mounts and
  # permissions change while a VM runs. It takes a millisecond, and several on a busy machine: so a server whose
  # helper starts and ends as it should asks only `proc/0` and `hidden?/0`.
  #
  # A helper inherits all of it from the VM: the namespaces, the mounts, the bounding set, no_new_privs and the
  # seccomp filter. Only its file capabilities add to it.
  #
  # proc(5), capabilities(7), pid_namespaces(7), user_namespaces(7).

  alias NetlinkPort.{Capability, FileName, RawFile}

  defmodule Mount do
    @moduledoc false
    # A line of /proc/self/mountinfo.
    @enforce_keys [:point, :type, :options, :super_options]
    defstruct @enforce_keys

    @type t :: %__MODULE__{
            point: Path.t(),
            type: String.t(),
            options: [String.t()],
            super_options: [String.t()]
          }
  end

  @typedoc """
  Whose process ids `/proc` shows. `:own`: those of this VM's pid namespace. `:foreign`: those of another, where an id
  names another process or none. `:absent`: there is no `/proc`.
  """
  @type proc :: :own | :foreign | :absent

  @typedoc "Whether a namespace is the kernel's initial one; `nil` if it cannot be told."
  @type namespace :: :initial | :other | nil

  @typedoc """
  `hidepid` is 0, 1, 2 or 4 as in `mount -o hidepid=`. `hidepid_gid` is the group that it hides nothing from.
  `bounding` and `effective` are the VM's own capability sets, `nil` if they cannot be read. `seccomp` is 0 without a
  filter, 2 with one.
  """
  @type t :: %__MODULE__{
          proc: proc(),
          hidepid: 0 | 1 | 2 | 4,
          hidepid_gid: non_neg_integer(),
          user_namespace: namespace(),
          pid_namespace: namespace(),
          bounding: Capability.set() | nil,
          effective: Capability.set() | nil,
          no_new_privs: boolean(),
          seccomp: 0..2,
          uid: non_neg_integer() | nil,
          gids: [non_neg_integer()],
          container: boolean(),
          mounts: [Mount.t()]
        }

  defstruct proc: :absent,
            hidepid: 0,
            hidepid_gid: 0,
            user_namespace: nil,
            pid_namespace: nil,
            bounding: nil,
            effective: nil,
            no_new_privs: false,
            seccomp: 0,
            uid: nil,
            gids: [],
            container: false,
            mounts: []

  @typedoc "The texts as they were read; `nil` for a file that is not there."
  @type texts :: %{
          pid: String.t(),
          self: String.t() | nil,
          procfs: boolean(),
          status: String.t() | nil,
          mountinfo: String.t() | nil,
          uid_map: String.t() | nil,
          user: String.t() | nil,
          pid_namespace: String.t() | nil,
          marked: boolean()
        }

  ## Looking

  @doc "Looks at this machine."
  @spec look() :: t()
  def look, do: parse(texts())

  @doc "Whose process ids `/proc` shows, as `look/0` finds, in two reads: a server looks at each start of its helper."
  @spec proc() :: proc()
  def proc do
    case link("/proc/self") do
      nil -> proc(%{self: nil, procfs: procfs?()}, %{})
      self -> proc(%{self: self, pid: System.pid()}, nspid(read("/proc/self/status") || ""))
    end
  end

  @doc """
  Why the VM can start no program at all, given the error of `open_port/2`, with what to do. `nil` if the error is about
  the program. fork(2), cgroups(7).
  """
  @spec no_program(File.posix()) :: String.t() | nil
  def no_program(:eagain) do
    "the VM can start no more processes: raise the limit of its user's processes (RLIMIT_NPROC, LimitNPROC= of a " <>
      "systemd unit), that of its cgroup (pids.max, TasksMax= of a unit, --pids-limit of a container), or " <>
      "kernel.pid_max and kernel.threads-max"
  end

  def no_program(:enomem), do: "the system has no memory to start a process"

  # OTP's open_port/2 is ENOENT then, whatever the program.
  def no_program(:enoent) do
    if match?({:error, _reason}, FileName.cwd()) do
      "the VM's working directory is not there any more, and without one the VM starts no program; " <>
        "`File.cd!(\"/\")` in the VM, or start the VM in a directory that stays"
    end
  end

  def no_program(_about_the_program), do: nil

  @doc """
  How long a file may become (RLIMIT_FSIZE), in bytes. Danger: a write beyond it ends the VM, which does not handle
  SIGXFSZ. getrlimit(2).
  """
  @spec file_size() :: non_neg_integer() | :infinity
  def file_size do
    case Regex.run(~r/^Max file size +(\d+)/m, read("/proc/self/limits") || "") do
      [_line, bytes] -> String.to_integer(bytes)
      nil -> :infinity
    end
  end

  @doc "The mount that a path lies on, links followed; `nil` if it is unknown, or there is no such file."
  @spec mount(t(), Path.t()) :: Mount.t() | nil
  def mount(environment, path) do
    with {:ok, path} <- real_path(path), do: mount_of(environment, path), else: (_ -> nil)
  end

  @doc "A path without symbolic links, `.` and `..`, as realpath(3)."
  @spec real_path(Path.t()) :: {:ok, Path.t()} | {:error, File.posix()}
  def real_path(path), do: path |> FileName.absolute() |> Path.split() |> tl() |> walk("/", 0)

  # The kernel follows as many links, path_resolution(7).
  @links 40

  defp walk([], path, _links), do: {:ok, path}
  defp walk(["." | rest], path, links), do: walk(rest, path, links)
  defp walk([".." | rest], path, links), do: walk(rest, Path.dirname(path), links)

  defp walk([name | rest], path, links) do
    next = Path.join(path, name)

    case RawFile.read_link(next) do
      {:ok, _target} when links == @links -> {:error, :eloop}
      {:ok, target} -> follow(target, rest, path, links + 1)
      # The file is not a link.
      {:error, :einval} -> walk(rest, next, links)
      {:error, reason} -> {:error, reason}
    end
  end

  defp follow("/" <> _ = target, rest, _path, links),
    do: walk(tl(Path.split(target)) ++ rest, "/", links)

  defp follow(target, rest, path, links), do: walk(Path.split(target) ++ rest, path, links)

  # If the VM is not dumpable, /proc/self/status can be read, but the links in /proc/self cannot.
  defp texts do
    %{
      pid: System.pid(),
      self: link("/proc/self"),
      procfs: procfs?(),
      status: read("/proc/self/status"),
      mountinfo: read("/proc/self/mountinfo"),
      uid_map: read("/proc/self/uid_map"),
      user: link("/proc/self/ns/user"),
      pid_namespace: link("/proc/self/ns/pid"),
      marked: marked?()
    }
  end

  # Every procfs has it, except one mounted with subset=pid, which has /proc/self.
  defp procfs?, do: RawFile.exists?("/proc/filesystems")

  defp read(path), do: with({:ok, text} <- RawFile.read(path), do: text, else: (_ -> nil))

  defp link(path),
    do: with({:ok, link} <- RawFile.read_link(path), do: link, else: (_ -> nil))

  # The marks that Docker, podman, systemd-nspawn, LXC and Kubernetes leave. An unpacked image may hold the first
  # file, so a mark alone does not prove a container.
  defp marked? do
    System.get_env("container", "") != "" or System.get_env("KUBERNETES_SERVICE_HOST") != nil or
      Enum.any?(
        ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"],
        &RawFile.exists?/1
      )
  end

  ## Reading

  # include/linux/proc_ns.h
  @initial %{user: "user:[4026531837]", pid: "pid:[4026531836]"}

  @doc "The environment that the texts describe."
  @spec parse(texts()) :: t()
  def parse(texts) do
    mounts = mounts(texts.mountinfo || "")
    status = status(texts.status || "")
    {hidepid, gid} = hidepid(mounts)
    pid_namespace = namespace(texts.pid_namespace, @initial.pid)
    user_namespace = namespace(texts.user, @initial.user) || mapped(texts.uid_map)

    %__MODULE__{
      proc: proc(texts, status),
      hidepid: hidepid,
      hidepid_gid: gid,
      user_namespace: user_namespace,
      pid_namespace: pid_namespace,
      bounding: set(status["CapBnd"]),
      effective: set(status["CapEff"]),
      no_new_privs: status["NoNewPrivs"] == "1",
      seccomp: seccomp(status["Seccomp"]),
      uid: status["Uid"] |> numbers() |> Enum.at(1),
      gids:
        Enum.drop(numbers(status["Gid"]), 1)
        |> Enum.take(1)
        |> Enum.concat(numbers(status["Groups"])),
      container: container?(texts, mounts, pid_namespace, user_namespace),
      mounts: mounts
    }
  end

  # NSpid lists one id if the pid namespace of /proc is this process's own, and more if it is an outer one. In the
  # /proc of a pid namespace that this process is not in, /proc/self leads nowhere.
  defp proc(%{self: nil, procfs: true}, _status), do: :foreign
  defp proc(%{self: nil}, _status), do: :absent

  defp proc(%{self: self, pid: pid}, status) do
    if self == pid and length(numbers(status["NSpid"])) <= 1, do: :own, else: :foreign
  end

  defp namespace(nil, _initial), do: nil
  defp namespace(initial, initial), do: :initial
  defp namespace(_link, _initial), do: :other

  # Only the initial user namespace maps all ids to themselves.
  defp mapped(nil), do: nil

  defp mapped(uid_map) do
    if String.split(uid_map) == ["0", "0", "4294967295"], do: :initial, else: :other
  end

  defp status(text) do
    for line <- String.split(text, "\n"),
        [name, value] <- [String.split(line, ":", parts: 2)],
        into: %{},
        do: {name, String.trim(value)}
  end

  # The one line that `proc/0` needs: a server reads it at each start of its helper.
  defp nspid(text) do
    case :binary.split(text, "\nNSpid:") do
      [_before, rest] -> %{"NSpid" => hd(:binary.split(rest, "\n"))}
      [_without] -> %{}
    end
  end

  defp set(nil), do: nil
  defp set(hexadecimal), do: String.to_integer(hexadecimal, 16)

  defp seccomp(mode) when mode in ["1", "2"], do: String.to_integer(mode)
  defp seccomp(_none), do: 0

  defp numbers(nil), do: []
  defp numbers(text), do: text |> String.split() |> Enum.map(&String.to_integer/1)

  # `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELD]... - TYPE SOURCE SUPER_OPTIONS`. Spaces, tabs, newlines and
  # backslashes in names are octal escapes.
  defp mounts(text) do
    for line <- String.split(text, "\n", trim: true),
        [_id, _parent, _device, _root, point, options | rest] <- [String.split(line, " ")],
        ["-", type, _source, super_options | _] <- [Enum.drop_while(rest, &(&1 != "-"))] do
      %Mount{
        point: unescape(point),
        type: type,
        options: String.split(options, ","),
        super_options: String.split(super_options, ",")
      }
    end
  end

  defp unescape(point) do
    if String.contains?(point, "\\"),
      do:
        Regex.replace(~r/\\([0-7]{3})/, point, fn _, octal -> <<String.to_integer(octal, 8)>> end),
      else: point
  end

  # Since Linux 5.8 the option is shown as a word.
  @hidepid %{
    "1" => 1,
    "noaccess" => 1,
    "2" => 2,
    "invisible" => 2,
    "4" => 4,
    "ptraceable" => 4
  }

  defp hidepid(mounts) do
    options = for %{point: "/proc", type: "proc"} = mount <- mounts, do: mount.super_options
    options = List.last(options) || []

    {Map.get(@hidepid, option(options, "hidepid"), 0),
     String.to_integer(option(options, "gid") || "0")}
  end

  defp option(options, name) do
    Enum.find_value(
      options,
      &if(String.starts_with?(&1, name <> "="), do: String.replace_prefix(&1, name <> "=", ""))
    )
  end

  defp container?(%{marked: marked}, mounts, pid_namespace, user_namespace) do
    overlay? = match?(%{type: "overlay"}, covering(mounts, "/"))
    inside? = :other in [pid_namespace, user_namespace]
    (marked and (inside? or overlay?)) or (inside? and overlay?)
  end

  ## Conclusions

  @doc "The mount that a path without symbolic links lies on."
  @spec mount_of(t(), Path.t()) :: Mount.t() | nil
  def mount_of(%{mounts: mounts}, path), do: covering(mounts, path)

  # Of several mounts at one point the last is the visible one. In a chroot `/` may be no mount point.
  defp covering(mounts, path) do
    mounts
    |> Enum.filter(&(&1.point in ["/", path] or String.starts_with?(path, &1.point <> "/")))
    |> Enum.reverse()
    |> Enum.max_by(&byte_size(&1.point), fn -> nil end)
  end

  @doc "Whether the process ids in `/proc` are those that this VM and its helper use."
  @spec own_proc?(t()) :: boolean()
  def own_proc?(environment), do: environment.proc == :own

  @doc "As `hidden?/1` of a look, in one read where `/proc` is mounted without hidepid."
  @spec hidden?() :: boolean()
  def hidden? do
    {hidepid, _gid} = hidepid(mounts(read("/proc/self/mountinfo") || ""))
    hidepid != 0 and hidden?(look())
  end

  @doc """
  Whether `/proc` hides processes from this VM by hidepid: those of other users, and those with more privileges than
  the VM, including its own helper. CAP_SYS_PTRACE lifts this only in the initial user namespace.
  """
  @spec hidden?(t()) :: boolean()
  def hidden?(%{hidepid: 0}), do: false

  def hidden?(environment) do
    sees_all? = environment.user_namespace == :initial and capable?(environment, :sys_ptrace)
    # With hidepid=4 the group has no effect.
    group? = environment.hidepid != 4 and environment.hidepid_gid in environment.gids
    not (sees_all? or group?)
  end

  @doc """
  Why this VM does not see all processes of the machine, as a part of a sentence; `nil` if it sees all.
  """
  @spec unseen(t()) :: String.t() | nil
  def unseen(environment) do
    cond do
      environment.proc == :absent ->
        "there is no /proc here"

      environment.proc == :foreign ->
        "/proc is that of another pid namespace"

      hidden?(environment) ->
        "/proc is mounted with hidepid=#{environment.hidepid}"

      environment.pid_namespace != :initial ->
        "processes of other pid namespaces are not seen from here"

      true ->
        nil
    end
  end

  @doc "Whether the VM holds a capability, in its own user namespace."
  @spec capable?(t(), atom()) :: boolean()
  def capable?(%{effective: effective}, name),
    do: effective != nil and Capability.in?(effective, name)

  @doc """
  Whether a helper can get a capability at all: from root, from file capabilities, or from the ambient set. `true` if
  the bounding set is not known.
  """
  @spec bounded?(t(), atom()) :: boolean()
  def bounded?(%{bounding: bounding}, name), do: bounding == nil or Capability.in?(bounding, name)

  @doc "Why root lacks a capability that is in its bounding set, as a part of a sentence."
  @spec noroot() :: String.t()
  def noroot, do: "the VM runs under the securebit SECBIT_NOROOT, see capabilities(7)"

  @doc "Whether a mount has an option such as `nosuid` or `noexec`."
  @spec mounted?(Mount.t() | nil, String.t()) :: boolean()
  def mounted?(nil, _option), do: false
  def mounted?(%Mount{options: options}, option), do: option in options
end
