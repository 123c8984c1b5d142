defmodule NetlinkPort.Sandbox.Refusal do
  @moduledoc false
  # How this machine allows namespaces to be made. If it allows none, a line that says what refuses them, and how to
  # allow them. user_namespaces(7).

  # Sysctls that refuse namespaces to an ordinary user: the file, the value that refuses, the remedy.
  @sysctls [
    {"kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
    {"kernel/apparmor_restrict_unprivileged_userns", "1",
     "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
    {"user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"},
    {"user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=15000"},
    {"user/max_pid_namespaces", "0", "sysctl -w user.max_pid_namespaces=15000"}
  ]

  alias NetlinkPort.{Capability, Environment}
  alias NetlinkPort.Sandbox.Holder

  @type way :: :user | :root

  @doc """
  The way to make a namespace, which is remembered, or the line that says why there is none. What refuses them may end
  while the VM runs.
  """
  @spec way() :: {:ok, way()} | {:error, String.t()}
  def way do
    with nil <- :persistent_term.get(__MODULE__, nil),
         {:ok, _way} = found <- find() do
      :persistent_term.put(__MODULE__, found)
      found
    end
  end

  # The ids of the processes that hold the namespaces are looked up in /proc.
  defp find do
    case Environment.look().proc do
      :own -> with {:ok, way} <- tried(), do: entered(way)
      proc -> {:error, without(proc)}
    end
  end

  defp tried do
    case Holder.attempt(:user) do
      :ok ->
        {:ok, :user}

      {:refused, printed} ->
        if Holder.attempt(:root) == :ok, do: {:ok, :root}, else: {:error, line(printed)}

      {:not_run, why} ->
        {:error, sentence(why)}
    end
  end

  # The programs that a test runs in its sandbox enter it by nsenter(1).
  defp entered(way) do
    if System.find_executable("nsenter"),
      do: {:ok, way},
      else: {:error, sentence("nsenter(1) is missing", "install util-linux")}
  end

  @doc "The line for what the holder has printed."
  @spec line(String.t(), (String.t() -> String.t() | nil)) :: String.t()
  def line(printed, read \\ &read/1) do
    {what, remedy} = cause(printed, read)
    sentence("#{what} (#{printed})", remedy)
  end

  @doc "The line for a VM whose processes /proc does not show."
  @spec without(:foreign | :absent) :: String.t()
  def without(:foreign) do
    sentence(
      "/proc is that of another pid namespace, where a process id is another process or none",
      "mount that of this one (`unshare --pid --fork --mount-proc`, `mount -t proc proc /proc`)"
    )
  end

  def without(:absent),
    do: sentence("there is no /proc here", "mount it (`mount -t proc proc /proc`)")

  @doc "The line for what unshare(1) or mount(8) has printed, where a namespace can be made and a tmpfs cannot."
  @spec mount(String.t()) :: String.t()
  def mount(printed) do
    "no folder for the path: or stand_in: of NetlinkPort.Sandbox: a tmpfs cannot be mounted in a mount namespace " <>
      "(#{printed}); allow mounts there, in a container by `--security-opt apparmor=unconfined`, " <>
      "or use the sandbox without these options"
  end

  defp sentence(what, remedy), do: sentence("#{what}; #{remedy}")
  defp sentence(why), do: "no network namespaces for NetlinkPort.Sandbox: #{why}"

  defp cause(printed, read) do
    sysctl =
      Enum.find(@sysctls, fn {file, value, _remedy} -> read.("/proc/sys/" <> file) == value end)

    cond do
      # The words of its loader, or of another version of it.
      not String.starts_with?(printed, "netlink_port: ") or printed =~ "unknown argument" ->
        {"the helper does not run", "`mix netlink_port.doctor` says why"}

      sysctl ->
        sysctl_cause(sysctl, read)

      printed =~ "No space left" ->
        {"the limit on namespaces is reached",
         "raise user.max_user_namespaces and user.max_net_namespaces by sysctl(8)"}

      filtered?(read) ->
        {"a seccomp filter, that of a container most likely, refuses unshare(2)",
         "start the container with `--security-opt seccomp=unconfined`, or with a profile that allows unshare, clone and setns"}

      true ->
        {"the kernel or a security module refuses user namespaces",
         "allow them for this user" <> or_root(read)}
    end
  end

  defp sysctl_cause({file, value, remedy}, read) do
    {"sysctl #{String.replace(file, "/", ".")} is #{value}",
     "`#{remedy}` as root allows them" <> or_root(read)}
  end

  # Root with CAP_SYS_ADMIN needs no user namespaces, and root without it needs them as any user does.
  defp or_root(read) do
    status = read.("/proc/self/status") || ""
    root? = status =~ ~r/^Uid:\s+\d+\s+0\s/m

    cond do
      not root? -> ", or run the tests as root"
      lacks_admin?(status) -> ", or start the VM with CAP_SYS_ADMIN, which its root lacks here"
      true -> ""
    end
  end

  defp lacks_admin?(status) do
    case Regex.run(~r/^CapEff:\s+([0-9a-f]+)/m, status) do
      [_line, set] -> not Capability.in?(String.to_integer(set, 16), :sys_admin)
      nil -> false
    end
  end

  # Mode 2 is SECCOMP_MODE_FILTER. A child inherits the filter of this process.
  defp filtered?(read), do: (read.("/proc/self/status") || "") =~ ~r/^Seccomp:\s+2$/m

  defp read(path) do
    case File.read(path) do
      {:ok, text} -> String.trim(text)
      {:error, _reason} -> nil
    end
  end
end
