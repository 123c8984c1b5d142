defmodule Mix.Tasks.NetlinkPort.Install do
  @shortdoc "Installs the helper with file capabilities, for a group"

  @moduledoc """
  Installs the helper outside the build, with capabilities of its own. A VM without privileges can then reach other
  network namespaces.

      mix netlink_port.install --to /usr/local/lib/netlink_port --group netlink

  The file belongs to root and the group. It has the mode 0750, and the capabilities `CAP_SYS_ADMIN` and
  `CAP_NET_ADMIN`. **It is a privileged proxy for everyone in that group**: its members may enter any network
  namespace that they can name, and configure any network, the host's included. Only the users that such
  VMs run as belong in the group.

  Options:

    * `--to` - the file, as an absolute path. Or a directory that exists; then the file is `netlink_port` in it. Only
      root may be able to replace the file, or a folder above it: any other user who could would choose the program
      that VMs run.
    * `--group` - the group whose members may run it.
    * `--capability` - one more capability. May be given any number of times. `sys_ptrace` opens the namespaces of
      processes of other users, or with more capabilities than the helper. `net_broadcast`, `audit_read`,
      `audit_control`, `audit_write` and `dac_read_search` are for the option `keep:` of `NetlinkPort.start_link/1`.

  The task installs the executable that `NETLINK_PORT_EXECUTABLE` names, or else the one of the build. Run it as root,
  or as a user whom sudo(8) lets run programs without a password. Otherwise the task prints the commands that root has
  to run. Run the task again after them: it then checks the installed file.

  The task makes a temporary file first, which only root can run. It reads back the owner, mode and capabilities, and
  asks the version. Then it renames the file. If anything is wrong before that, it removes the temporary file, and the
  old file stays in place.
  """

  use Mix.Task

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.{FileName, Helper}
  alias NetlinkPort.Helper.{ExecutableAccess, Install}

  @switches [to: :string, group: :string, capability: :keep]

  @impl true
  def run(arguments) do
    if "--help" in arguments or "-h" in arguments,
      do: Mix.Tasks.Help.run(["netlink_port.install"]),
      else: install(options(arguments))
  end

  defp options(arguments) do
    case OptionParser.parse(arguments, strict: @switches) do
      {opts, [], []} ->
        opts

      {_opts, rest, wrong} ->
        usage("unknown: #{Enum.join(rest ++ Enum.map(wrong, &elem(&1, 0)), " ")}")
    end
  end

  defp install(opts) do
    to = FileName.argument(opts[:to] || usage("--to is missing"))
    group = opts[:group] || usage("--group is missing")
    Mix.Task.run("compile")

    with {:ok, plan} <- Install.plan(source(), to, group, Keyword.get_values(opts, :capability)),
         before = File.stat(plan.to),
         {:ok, done} <- Install.run(plan) do
      Mix.shell().info(report(done, plan))
      if gid = another(before, plan), do: Mix.shell().error(taken(gid, plan))
      if user = ExecutableAccess.outsider(plan.gid), do: Mix.shell().error(outside(user, plan))
    else
      {:error, reason} -> Mix.raise(reason)
    end
  end

  @spec usage(String.t()) :: no_return()
  defp usage(reason) do
    Mix.raise(
      "#{reason}; usage: mix netlink_port.install --to PATH --group GROUP [--capability NAME]..., " <>
        "see `mix help netlink_port.install`"
    )
  end

  # Not the path of `config :netlink_port, executable:`: that is where the helper is installed to.
  defp source do
    Helper.Executable.variable() || Helper.Executable.built()
  end

  defp report(done, plan) do
    """
    #{plan.to} #{if done == :installed, do: "has been installed", else: "is as it should be"}: \
    root:#{plan.group}, mode 0750, #{Enum.join(plan.capabilities, ", ")}.
    It is a privileged proxy for everyone in the group #{plan.group}: they may enter any network namespace
    they can name, and configure any network, the host's included.

    To use it, either of:
        config :netlink_port, executable: #{inspect(plan.to)}
        NETLINK_PORT_EXECUTABLE=#{plan.to}
    Set the variable only where the release is started: at build time it names the executable to take in
    place of building one, and after an update that is the old one.\
    """
  end

  # The group of the file that was replaced, if only that group could run it and it is not the new group.
  defp another({:ok, %{gid: gid, mode: mode}}, plan)
       when gid != plan.gid and gid != 0 and (mode &&& 0o011) == 0o010,
       do: gid

  defp another(_none_or_the_same, _plan), do: nil

  defp taken(gid, plan) do
    "Warning: it was for the group #{ExecutableAccess.group(gid)}, whose members cannot run it any more. Give each group " <>
      "a path of its own, or have both in #{plan.group}."
  end

  defp outside(user, plan) do
    "Warning: #{user} is not in the group #{plan.group}, and cannot run it. Where the VM is to be this " <>
      "user's: #{ExecutableAccess.joined(plan.gid, user)}."
  end
end
