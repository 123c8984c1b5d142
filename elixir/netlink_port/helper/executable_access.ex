defmodule NetlinkPort.Helper.ExecutableAccess do
  @moduledoc false
  # Says why this user may not run an executable, and what to do about it: for the error of a start, and for the
  # doctor. Also says whether the user who installs an executable may run it.
  #
  # Danger: an installed helper is a privileged proxy for everyone who may run it. So the remedy is always membership
  # of its group, and no remedy here opens a file to all users.

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.{Environment, RawFile}

  @install "mix netlink_port.install --to"

  @doc "Whether the mode of a file and its mount let this user run it."
  @spec granted?(Path.t()) :: boolean()
  def granted?(path) do
    case RawFile.stat(path) do
      {:ok, %{type: :regular} = stat} ->
        may?(stat.mode, stat.uid, stat.gid, user()) and
          not Environment.mounted?(Environment.mount(Environment.look(), path), "noexec")

      _no_file ->
        false
    end
  end

  @doc "Why execve(2) refuses a file with EACCES, and the remedy."
  @spec refused(Path.t()) :: {found :: String.t(), remedy :: String.t()}
  def refused(path) do
    case RawFile.stat(path) do
      {:ok, %{type: :regular} = stat} ->
        {found, remedy} = refused(path, stat, user())
        {"it is #{owner(stat)} #{octal(stat.mode)}#{found}", remedy}

      {:ok, %{type: type}} ->
        {"it is no file but a #{kind(type)}", "name the file"}

      {:error, :eacces} ->
        {"one of its folders is closed to this user",
         "let the user into its folders, or install it elsewhere: #{elsewhere()}"}

      {:error, _gone} ->
        {"this user may not run it", "look again: it is not there any more"}
    end
  end

  @doc "What a path leads to that open(2) says is ENOENT or ENOTDIR: a symbolic link on the way may be to blame."
  @spec missing(Path.t()) :: String.t()
  def missing(path) do
    case Enum.find(ways(path), &dangling?/1) do
      nil -> "there is no such file"
      ^path -> "it is a symbolic link, and the file that it leads to is not there"
      folder -> "#{folder} is a symbolic link, and the folder that it leads to is not there"
    end
  end

  # The folders on the way to a file, and the file.
  defp ways(path), do: path |> Path.split() |> Enum.scan(&Path.join(&2, &1))

  defp dangling?(path),
    do: match?({:ok, _target}, RawFile.read_link(path)) and not RawFile.exists?(path)

  @doc "What a file that is no regular file is, by its type in `File.Stat`."
  @spec kind(atom()) :: String.t()
  def kind(:other), do: "FIFO or a socket"
  def kind(type), do: Atom.to_string(type)

  defp refused(path, %{uid: uid, gid: gid, mode: mode}, user) do
    cond do
      may?(mode, uid, gid, user) ->
        runnable(path)

      # The user's own file, for example that of a build.
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

  # Nobody logs in to a container: its engine sets the groups of its processes.
  defp again(gid) do
    if Environment.look().container,
      do: "start the container with --group-add #{gid}",
      else: "log in again, or restart the service"
  end

  defp join(gid, user) do
    cond do
      Environment.look().container ->
        again(gid) <> ", or have the image put its user into that group"

      nameless?(user) ->
        "start the VM with that group: " <> with_group(gid)

      true ->
        "usermod -aG #{group(gid)} #{user.name}, and log in again"
    end
  end

  # usermod(8) takes users of passwd(5) alone.
  defp nameless?(user), do: user.name == Integer.to_string(user.uid)

  defp with_group(gid) do
    "user #{user().uid} has no entry in passwd(5), so that no entry of group(5) can name the user; " <>
      "SupplementaryGroups=#{group(gid)} of a systemd unit, or setpriv --groups #{gid}"
  end

  @doc "How a user whom `outsider/2` named gets a group."
  @spec joined(non_neg_integer(), String.t()) :: String.t()
  def joined(gid, name) do
    if name =~ ~r/^\d+$/,
      do: with_group(gid),
      else: "`usermod -aG #{group(gid)} #{name}` as root, and log in again"
  end

  # The mode lets this user run the file.
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

  # Owned as an installed helper is: by root, for a group other than root's.
  defp roots?(uid, gid), do: uid == 0 and gid != 0

  defp elsewhere, do: "#{@install} /usr/local/lib --group GROUP"

  # As the kernel checks: only the first class that fits counts. Root needs any execute bit.
  defp may?(mode, _uid, _gid, %{uid: 0}), do: (mode &&& 0o111) != 0
  defp may?(mode, uid, _gid, %{uid: uid}), do: (mode &&& 0o100) != 0

  defp may?(mode, _uid, gid, user) do
    bit = if gid in user.gids, do: 0o010, else: 0o001
    (mode &&& bit) != 0
  end

  @doc """
  The name of the user who runs a task, directly or by sudo(8), if the user is not in the group. `nil` if the user is
  in the group, or is root. A user who was added to the group but has not logged in since counts as not in it.
  """
  @spec outsider(non_neg_integer(), String.t() | nil) :: String.t() | nil
  def outsider(gid, sudo_user \\ System.get_env("SUDO_USER")) do
    case {user(), sudo_user} do
      {%{uid: 0}, root} when root in [nil, "", "root"] -> nil
      {%{uid: 0}, name} -> if gid not in gids(name), do: name
      {user, _sudo} -> if gid not in user.gids, do: user.name
    end
  end

  # The groups of another user than the one this process runs as.
  defp gids(name) do
    case System.cmd("id", ["-G", "--", name], stderr_to_stdout: true) do
      {gids, 0} -> gids |> String.split() |> Enum.map(&String.to_integer/1)
      _no_such_user -> []
    end
  end

  @doc "Owner and group, for example `root:netlink`. An id without a name is a number."
  @spec owner(File.Stat.t()) :: String.t()
  def owner(stat), do: "#{name("/etc/passwd", stat.uid)}:#{group(stat.gid)}"

  @doc "A group's name, or its number if it has none."
  @spec group(non_neg_integer()) :: String.t()
  def group(gid), do: name("/etc/group", gid)

  @doc "The bits of a mode as chmod(1) takes them."
  @spec octal(non_neg_integer()) :: String.t()
  def octal(mode),
    do: (mode &&& 0o7777) |> Integer.to_string(8) |> String.pad_leading(4, "0")

  # The ids of this process, which may have fewer groups than its user has by now. proc(5).
  defp user do
    status = with {:ok, status} <- RawFile.read("/proc/self/status"), do: status, else: (_ -> "")
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

  # Whether group(5) lists the user, who may have been added after this process began.
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

  # passwd(5) and group(5): the number is the third field. Without the file every id is shown as a number.
  defp line(file, id) do
    with {:ok, text} <- RawFile.read(file) do
      text
      |> String.split("\n")
      |> Enum.map(&String.split(&1, ":"))
      |> Enum.find(&(Enum.at(&1, 2) == Integer.to_string(id)))
    else
      _none -> nil
    end
  end
end
