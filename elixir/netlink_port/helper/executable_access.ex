defmodule NetlinkPort.Helper.ExecutableAccess do
  @moduledoc false
  # Who may run an executable. Why this user may not, and what to do about it: for the error of a start, and
  # for the doctor. And whether whoever installs one may.
  #
  # An installed helper is a privileged proxy for everyone who may run it. So the way to it is the group, and
  # nothing that is said here opens a file to all users.

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.Environment

  @install "mix netlink_port.install --to"

  @doc "What is found of a file that execve(2) refuses with EACCES, and the remedy."
  @spec refused(Path.t()) :: {found :: String.t(), remedy :: String.t()}
  def refused(path) do
    case File.stat(path) do
      {:ok, %{type: :regular} = stat} ->
        {found, remedy} = refused(path, stat, user())
        {"it is #{owner(stat)} #{octal(stat.mode)}#{found}", remedy}

      {:ok, %{type: type}} ->
        {"it is no file but a #{type}", "name the file"}

      {:error, :eacces} ->
        {"one of its folders is closed to this user",
         "let the user into its folders, or install it elsewhere: #{elsewhere()}"}

      {:error, _gone} ->
        {"this user may not run it", "look again: it is not there any more"}
    end
  end

  defp refused(path, %{uid: uid, gid: gid, mode: mode}, user) do
    cond do
      may?(mode, uid, gid, user) ->
        runnable(path)

      # The user's own, as what a build makes.
      uid == user.uid and not roots?(uid, gid) ->
        {", which does not let its owner run it", "chmod u+x #{path}"}

      roots?(uid, gid) and (mode &&& 0o010) != 0 and member?(gid, user) ->
        {", and #{user.name} has not got that group yet", again(gid)}

      roots?(uid, gid) and (mode &&& 0o010) != 0 ->
        {", and #{user.name} is not in that group",
         "#{join(gid, user)}; or install it for another group: #{@install} #{path} --group GROUP"}

      roots?(uid, gid) ->
        {", so that its group may not run it",
         "install it again: #{@install} #{path} --group #{group(gid)}"}

      true ->
        {", and not for this user", "install one for a group that the user is in: #{elsewhere()}"}
    end
  end

  # In a container nobody logs in: its engine says which groups a process has.
  defp again(gid) do
    if Environment.look().container,
      do: "start the container with --group-add #{gid}",
      else: "log in again, or restart the service"
  end

  defp join(gid, user) do
    if Environment.look().container,
      do: again(gid) <> ", or have the image put its user into that group",
      else: "usermod -aG #{group(gid)} #{user.name}, and log in again"
  end

  # By its mode this user may run it.
  defp runnable(path) do
    mount = Environment.mount(Environment.look(), path)

    if Environment.mounted?(mount, "noexec"),
      do:
        {", on #{mount.point}, which is mounted noexec",
         "install it on another file system: #{elsewhere()}"},
      else:
        {"",
         "its file system is not mounted noexec; see that its interpreter, if any, may be run"}
  end

  # As an installed one is: root's, for a group that is not root's own.
  defp roots?(uid, gid), do: uid == 0 and gid != 0

  defp elsewhere, do: "#{@install} /usr/local/lib --group GROUP"

  # As the kernel looks at it: the first class that fits counts. Root may if anybody may.
  defp may?(mode, _uid, _gid, %{uid: 0}), do: (mode &&& 0o111) != 0
  defp may?(mode, uid, _gid, %{uid: uid}), do: (mode &&& 0o100) != 0

  defp may?(mode, _uid, gid, user) do
    bit = if gid in user.gids, do: 0o010, else: 0o001
    (mode &&& bit) != 0
  end

  @doc """
  Whoever runs a task, or has sudo(8) run it, if not in the group; `nil` otherwise, and of root. A member who
  has not logged in since is none yet.
  """
  @spec outsider(non_neg_integer(), String.t() | nil) :: String.t() | nil
  def outsider(gid, sudo_user \\ System.get_env("SUDO_USER")) do
    case {user(), sudo_user} do
      {%{uid: 0}, root} when root in [nil, "", "root"] -> nil
      {%{uid: 0}, name} -> if gid not in gids(name), do: name
      {user, _sudo} -> if gid not in user.gids, do: user.name
    end
  end

  # Of another user than this process's.
  defp gids(name) do
    case System.cmd("id", ["-G", "--", name], stderr_to_stdout: true) do
      {gids, 0} -> gids |> String.split() |> Enum.map(&String.to_integer/1)
      _no_such_user -> []
    end
  end

  @doc "Owner and group as `root:netlink`, by number where they have no name."
  @spec owner(File.Stat.t()) :: String.t()
  def owner(stat), do: "#{name("/etc/passwd", stat.uid)}:#{group(stat.gid)}"

  @doc "A group's name, or its number."
  @spec group(non_neg_integer()) :: String.t()
  def group(gid), do: name("/etc/group", gid)

  @doc "The bits of a mode as chmod(1) takes them."
  @spec octal(non_neg_integer()) :: String.t()
  def octal(mode),
    do: (mode &&& 0o7777) |> Integer.to_string(8) |> String.pad_leading(4, "0")

  # Those of this process, which may be fewer than the user has by now. proc(5).
  defp user do
    status = with {:ok, status} <- File.read("/proc/self/status"), do: status, else: (_ -> "")
    [uid | _] = numbers(status, "Uid") ++ [-1]
    [gid | _] = numbers(status, "Gid") ++ [-1]
    %{uid: uid, gids: [gid | numbers(status, "Groups")], name: name("/etc/passwd", uid)}
  end

  defp numbers(status, field) do
    case Regex.run(~r/^#{field}:([^\n]*)$/m, status) do
      [_, numbers] -> numbers |> String.split() |> Enum.map(&String.to_integer/1)
      nil -> []
    end
  end

  # Whether the group's line has the user, who may have been put there after this process began.
  defp member?(gid, user) do
    case line("/etc/group", gid) do
      [_name, _password, _gid, members] -> user.name in String.split(members, ",")
      _none -> false
    end
  end

  defp name(file, id) do
    case line(file, id) do
      [name | _] -> name
      nil -> Integer.to_string(id)
    end
  end

  # passwd(5) and group(5): the number is the third field. Without the file everybody is a number.
  defp line(file, id) do
    with {:ok, text} <- File.read(file) do
      text
      |> String.split("\n")
      |> Enum.map(&String.split(&1, ":"))
      |> Enum.find(&(Enum.at(&1, 2) == Integer.to_string(id)))
    else
      _none -> nil
    end
  end
end
