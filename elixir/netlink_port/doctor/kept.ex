defmodule NetlinkPort.Doctor.Kept do
  @moduledoc false
  # Namespaces that are there only because sockets of ours are: no process is in them, no mount and no
  # descriptor of anybody stands for them. proc(5), namespaces(7).
  #
  # Two things hold a namespace that /proc does not show: sockets that somebody else has there and has
  # left it, and the kernel's own. So such a namespace may live on when ours are closed.

  alias NetlinkPort.{Doctor, Witness}
  alias NetlinkPort.Doctor.Servers

  @spec checks([Servers.told()], pid() | nil) :: [Doctor.check()]
  def checks(servers, own) do
    told = for {_server, {:ok, stats}} <- servers, do: stats
    sockets = for stats <- told, socket <- stats.sockets, do: socket
    spaces = Enum.group_by(sockets, & &1.inode)

    if spaces == %{} do
      [{:ok, "no server of this node has a socket", nil}]
    else
      # All helpers, of which some may not have answered.
      helpers = MapSet.new(for stats <- told, do: "#{stats.os_pid}")
      {left, unread} = unheld(Map.keys(spaces), helpers)
      verdict(spaces, left, unread, length(Witness.servers() -- [own]) - length(told))
    end
  end

  @doc """
  Which of these namespaces (inodes) nothing holds that `/proc` shows, these processes aside, and of how
  many processes it does not show.
  """
  @spec unheld([pos_integer()], MapSet.t(String.t())) :: {[pos_integer()], non_neg_integer()}
  def unheld(inodes, helpers) do
    links = MapSet.new(inodes, &"net:[#{&1}]")
    pids = for pid <- ls("/proc"), pid =~ ~r/^\d+$/, pid not in helpers, do: pid
    {left, unread} = Enum.reduce(pids, {links, 0}, &process/2)
    left = if MapSet.size(left) > 0, do: mounts(left, pids), else: left
    left = if MapSet.size(left) > 0, do: Enum.reduce(pids, left, &threads_and_files/2), else: left
    {Enum.filter(inodes, &("net:[#{&1}]" in left)), unread}
  end

  defp process(pid, {left, unread}) do
    case File.read_link("/proc/#{pid}/ns/net") do
      {:ok, link} -> {MapSet.delete(left, link), unread}
      # Ended; a zombie has none.
      {:error, reason} when reason in [:enoent, :esrch, :einval] -> {left, unread}
      {:error, _not_ours} -> {left, unread + 1}
    end
  end

  # A container has mounts of its own: one process of each mount namespace is asked.
  defp mounts(left, pids) do
    pids
    |> Enum.uniq_by(
      &with {:ok, link} <- File.read_link("/proc/#{&1}/ns/mnt"), do: link, else: (_ -> &1)
    )
    |> Enum.reduce(left, fn pid, left ->
      with {:ok, text} <- File.read("/proc/#{pid}/mountinfo") do
        # The fourth field of an nsfs is the namespace.
        for [link] <- Regex.scan(~r/net:\[\d+\]/, text), reduce: left do
          left -> MapSet.delete(left, link)
        end
      else
        _not_readable -> left
      end
    end)
  end

  defp threads_and_files(pid, left) do
    files = for fd <- ls("/proc/#{pid}/fd"), do: "/proc/#{pid}/fd/#{fd}"
    threads = for thread <- ls("/proc/#{pid}/task"), do: "/proc/#{pid}/task/#{thread}/ns/net"

    Enum.reduce(files ++ threads, left, fn path, left ->
      case File.read_link(path) do
        {:ok, link} -> MapSet.delete(left, link)
        {:error, _gone_or_not_ours} -> left
      end
    end)
  end

  defp ls(path) do
    case File.ls(path) do
      {:ok, names} -> names
      {:error, _reason} -> []
    end
  end

  defp verdict(spaces, [], _unread, silent) do
    [
      {:ok, "none: each of the #{map_size(spaces)} that our sockets are in is held by others",
       nil}
    ] ++
      silent(silent)
  end

  defp verdict(spaces, left, 0, silent) do
    for(inode <- left, do: alone(inode, spaces[inode])) ++ silent(silent)
  end

  defp verdict(spaces, left, unread, silent) do
    lines =
      for inode <- left do
        {:warn,
         "cannot tell of #{inode}, which #{users(spaces[inode])}: the namespaces of " <>
           "#{unread} processes cannot be read", "run it as root, or with CAP_SYS_PTRACE"}
      end

    lines ++ silent(silent)
  end

  defp silent(0), do: []

  defp silent(count) do
    [{:warn, "#{count} servers did not tell of their sockets", "see the servers above"}]
  end

  defp alone(inode, sockets) do
    {:warn, "#{inode} is alive by our sockets alone: #{users(sockets)}",
     "close them, or open them with close_on: :namespace_gone, which does it"}
  end

  @shown 4

  defp users(sockets) do
    shown =
      for socket <- Enum.take(sockets, @shown) do
        "#{inspect(socket.socket)} of #{owner(socket.owner)}"
      end

    more = if length(sockets) > @shown, do: ["#{length(sockets) - @shown} more"], else: []
    Enum.join(shown ++ more, ", ")
  end

  defp owner(pid) do
    case node(pid) == node() && Process.info(pid, :registered_name) do
      {:registered_name, name} -> "#{inspect(name)} #{inspect(pid)}"
      _unnamed -> inspect(pid)
    end
  end
end
