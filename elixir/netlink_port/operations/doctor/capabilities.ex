defmodule NetlinkPort.Doctor.Capabilities do
  @moduledoc false
  # Checks the capabilities of the helper as it runs, what does not work without a missing one, and whether its
  # seccomp filter and no_new_privs are on.

  alias NetlinkPort.{Capability, Doctor, Environment}
  alias NetlinkPort.Helper.Execve
  alias NetlinkPort.Doctor.Remedy

  # What does not work without each capability.
  @needed [
    sys_admin: "no other namespace can be entered",
    net_admin: "nothing can be changed, and before Linux 6.18 no place is verified",
    sys_ptrace:
      "namespaces of processes of other users, or with more capabilities, cannot be entered by {:pid, pid}"
  ]

  @optional [
    net_broadcast: "listen_all_nsid",
    audit_read: "the audit log",
    audit_control: "the audit rules",
    audit_write: "records of user space in the audit log",
    dac_read_search: "namespace files in directories of other users"
  ]

  @spec checks(map()) :: [Doctor.check()]
  def checks(info) do
    needed = for {name, lost} <- @needed, do: needed(name, lost, info)
    needed ++ [optional(info.capabilities), home(info)] ++ sandbox(info.os_pid)
  end

  defp needed(name, lost, %{capabilities: held, executable: path}) do
    if name in held,
      do: {:ok, cap(name), nil},
      else: {:warn, "without #{cap(name)} #{lost}", remedy(name, path)}
  end

  defp remedy(:sys_ptrace, path) do
    case Execve.powerless(path, :sys_ptrace) do
      {found, remedy} ->
        "#{found}: #{remedy}"

      nil ->
        "name them by a path, or install the helper with `--capability sys_ptrace`, see " <>
          "`mix help netlink_port.install`"
    end
  end

  defp remedy(:sys_admin, path) do
    Remedy.capability(path, :sys_admin) <>
      "; for namespaces of rootless containers: user_namespaces: true"
  end

  defp remedy(:net_admin, path), do: Remedy.capability(path, :net_admin)

  # The helper gives these up at its start, unless `keep:` names them.
  defp optional(held) do
    kept = for {name, _what} <- @optional, name in held, do: cap(name)
    given_up = for {name, what} <- @optional, name not in held, do: "#{name} (#{what})"

    case {kept, given_up} do
      {[], _all} ->
        {:ok, "given up as usual, kept by keep: [...]: " <> Enum.join(given_up, ", "), nil}

      {kept, _rest} ->
        {:ok, "kept: " <> Enum.join(kept, ", "), nil}
    end
  end

  defp home(%{may_leave: true, home_inode: inode}) do
    {:ok, "its home is network namespace #{inode}, and it can come back there", nil}
  end

  defp home(%{home_inode: inode}) do
    remedy =
      if Environment.look().user_namespace == :other,
        do:
          "this VM runs in a user namespace of its own, and that network namespace belongs to another: " <>
            "make one with it, as `unshare -Urn` does",
        else: "as for CAP_SYS_ADMIN; `netns: :host` works as it is"

    {:warn, "it cannot leave its home, network namespace #{inode}: setns(2) back is refused",
     remedy}
  end

  # /proc/<pid>/status is the helper's only if /proc shows the pid namespace of this VM.
  defp sandbox(os_pid) do
    with true <- Environment.own_proc?(Environment.look()),
         {:ok, status} <- File.read("/proc/#{os_pid}/status") do
      [
        field(status, "Seccomp", "2", "its seccomp filter"),
        field(status, "NoNewPrivs", "1", "no_new_privs")
      ]
    else
      false ->
        [unseen(Environment.unseen(Environment.look()), "with a /proc of this pid namespace")]

      {:error, _hidden} ->
        [
          unseen(
            "/proc/#{os_pid}/status cannot be read",
            "as root, or mount /proc without hidepid"
          )
        ]
    end
  end

  defp unseen(why, how),
    do: {:warn, "its seccomp filter cannot be looked at: #{why}", "look " <> how}

  defp field(status, name, wanted, what) do
    case Regex.run(~r/^#{name}:\s+(\d+)$/m, status) do
      [_line, ^wanted] ->
        {:ok, "#{what} is on", nil}

      found ->
        {:fail, "#{what} is off (#{name}: #{found && List.last(found)})",
         "this is not the program that this library builds; install that one"}
    end
  end

  defp cap(name), do: Capability.shown(name)
end
