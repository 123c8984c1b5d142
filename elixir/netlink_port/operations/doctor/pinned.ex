defmodule NetlinkPort.Doctor.Pinned do
  @moduledoc false
  # Finds namespaces that only sockets or pins of this node's servers keep alive: no process is in them, and no mount
  # and no descriptor of another process stands for them. proc(5), namespaces(7).
  #
  # /proc does not show all holders. Another process may have sockets in a namespace that it has left, and the kernel
  # has sockets of its own. So such a namespace may live on when our sockets and pins are closed.

  alias NetlinkPort.{Doctor, Environment, Redaction}
  alias NetlinkPort.Server.OwnerNotifier
  alias NetlinkPort.Operations.Survey

  @spec checks([Survey.told()], pid() | nil) :: [Doctor.check()]
  def checks(servers, own) do
    told = for {_server, {:ok, stats}} <- servers, do: stats
    held = for stats <- told, held <- stats.sockets ++ stats.pins, do: held
    spaces = Enum.group_by(held, & &1.inode)

    if spaces == %{} do
      [{:ok, "no server of this node has a socket or a pin", nil}]
    else
      # The helpers of the servers that have answered.
      helpers = MapSet.new(for stats <- told, do: "#{stats.os_pid}")
      environment = Environment.look()

      # In a foreign /proc the ids of helpers would name other processes.
      {left, unseen} =
        if Environment.own_proc?(environment),
          do: unheld(Map.keys(spaces), helpers),
          else: {Map.keys(spaces), %{places: [], descriptors: []}}

      why = Environment.unseen(environment)
      unseen = Map.merge(unseen, %{why: why, look_from: look_from(environment)})
      verdict(spaces, left, unseen, length(OwnerNotifier.servers() -- [own]) - length(told))
    end
  end

  @typedoc """
  `places`: processes whose network namespace cannot be read. `descriptors`: processes with descriptors that cannot be
  examined.
  """
  @type unseen :: %{places: [String.t()], descriptors: [String.t()]}

  @doc "The namespaces (inodes) that nothing visible in `/proc` holds, except the processes `helpers`."
  @spec unheld([pos_integer()], MapSet.t(String.t())) :: {[pos_integer()], unseen()}
  def unheld(inodes, helpers) do
    pids = for pid <- ls("/proc"), pid =~ ~r/^\d+$/, pid not in helpers, do: pid
    {links, closed} = pids |> Enum.reduce({%{}, []}, &process/2)
    left = inodes |> MapSet.new(&"net:[#{&1}]") |> MapSet.difference(MapSet.new(Map.keys(links)))
    left = if MapSet.size(left) > 0, do: mounts(left, pids), else: left
    {left, untold} = if MapSet.size(left) > 0, do: threads_and_files(left, pids), else: {left, []}
    descriptors = Enum.uniq(unreadable(left, pids) ++ untold)
    unseen = %{places: closed -- beside(closed, links), descriptors: descriptors}
    {Enum.filter(inodes, &("net:[#{&1}]" in left)), unseen}
  end

  # Collects each namespace with one of its processes, and the processes whose namespace cannot be read.
  defp process(pid, {links, closed}) do
    case File.read_link("/proc/#{pid}/ns/net") do
      # On Linux 5.10.262 a link that is closed to this process is empty.
      {:ok, ""} -> {links, [pid | closed]}
      {:ok, link} -> {Map.put_new(links, link, pid), closed}
      # It has ended, or is a zombie, which has no namespace.
      {:error, reason} when reason in [:enoent, :esrch, :einval] -> {links, closed}
      {:error, _not_ours} -> {links, [pid | closed]}
    end
  end

  # Of the unreadable processes, those that share a namespace with a readable one. /proc/<pid>/net can be read by
  # every user, and the inodes of its files differ in each namespace.
  defp beside(closed, links) do
    known = MapSet.new(Map.values(links), &place/1)
    Enum.filter(closed, &(place(&1) in known))
  end

  defp place(pid) do
    with {:ok, %{inode: inode}} <- File.stat("/proc/#{pid}/net/netlink"), do: inode
  end

  defp unreadable(left, pids) do
    if MapSet.size(left) > 0,
      do: Enum.filter(pids, &match?({:error, :eacces}, File.ls("/proc/#{&1}/fd"))),
      else: []
  end

  # A container has its own mounts, so one process of each mount namespace is read.
  defp mounts(left, pids) do
    pids
    |> Enum.uniq_by(
      &with {:ok, link} when link != "" <- File.read_link("/proc/#{&1}/ns/mnt"),
            do: link,
            else: (_ -> &1)
    )
    |> Enum.reduce(left, fn pid, left ->
      with {:ok, text} <- File.read("/proc/#{pid}/mountinfo") do
        # The fourth field of an nsfs mount is the namespace.
        for [link] <- Regex.scan(~r/net:\[\d+\]/, text), reduce: left do
          left -> MapSet.delete(left, link)
        end
      else
        _not_readable -> left
      end
    end)
  end

  # The namespaces that no thread or descriptor holds, and the processes with a descriptor that cannot be examined.
  defp threads_and_files(left, pids) do
    Enum.reduce(pids, {left, []}, fn pid, {left, untold} ->
      threads = for thread <- ls("/proc/#{pid}/task"), do: link(pid, "task/#{thread}/ns/net")
      files = for fd <- ls("/proc/#{pid}/fd"), do: file(pid, fd)
      untold = if :untold in files, do: [pid | untold], else: untold
      {MapSet.difference(left, MapSet.new(threads ++ files)), untold}
    end)
  end

  defp link(pid, path) do
    with {:ok, link} <- File.read_link("/proc/#{pid}/#{path}"), do: link
  end

  defp file(pid, fd) do
    with {:ok, link} <- File.read_link("/proc/#{pid}/fd/#{fd}"),
         {:ok, text} <- File.read("/proc/#{pid}/fdinfo/#{fd}"),
         {:stat, inode} <- holds(link, text),
         {:ok, %{major_device: device}} <- File.stat("/proc/#{pid}/fd/#{fd}"),
         {:ok, %{major_device: ^device}} <- File.stat("/proc/self/ns/net") do
      "net:[#{inode}]"
    else
      {:link, link} -> link
      :untold -> :untold
      _no_namespace -> nil
    end
  end

  @doc """
  What a descriptor holds, from its link and its fdinfo: the namespace that the link names, or the inode of what may
  be a namespace.

  The link of a descriptor that was opened by a path shows the path, and `/` once the path is unmounted. So the inode
  in fdinfo decides whether it may be a namespace. stat(2) is called only then, since on a foreign file system (NFS)
  it can hang. Before Linux 5.14 fdinfo has no inode: then `/` is `:untold`, and other paths are found as mounts.
  """
  @spec holds(String.t(), String.t()) :: {:link, String.t()} | {:stat, String.t()} | :untold | nil
  def holds("/" <> _ = path, fdinfo) do
    case Regex.run(~r/^ino:\s+(\d+)$/m, fdinfo) do
      # The kernel's namespaces have inodes from 0xF0000000 on.
      [_line, "4" <> <<_::binary-size(9)>> = inode] -> {:stat, inode}
      [_line, _another] -> nil
      nil -> if path == "/", do: :untold
    end
  end

  def holds(link, _fdinfo), do: {:link, link}

  defp ls(path) do
    case File.ls(path) do
      {:ok, names} -> names
      {:error, _reason} -> []
    end
  end

  defp verdict(spaces, [], _unseen, silent) do
    line =
      "none: each of the #{map_size(spaces)} that our sockets are in, or that we have pinned, is held by others, too"

    [{:ok, line, nil} | silent(silent)]
  end

  defp verdict(spaces, left, unseen, silent) do
    names = Redaction.names(for inode <- left, held <- spaces[inode], do: held.owner)
    for(inode <- left, do: alone(inode, users(spaces[inode], names), unseen)) ++ silent(silent)
  end

  # Other holders of the namespace would not be visible.
  defp alone(inode, {_kinds, users}, %{why: why}) when why != nil do
    {:warn,
     "#{inode}, where #{users} is open: #{why}; so it cannot tell whether anything else keeps it alive",
     "look from the first pid namespace of the machine, as root: there all who may hold it are seen"}
  end

  defp alone(inode, {_kinds, users}, %{places: [_ | _] = pids, look_from: look_from}) do
    {:warn,
     "#{inode}, where #{users} is open: #{processes(pids)} may be there, which this VM may not look at; " <>
       "so it cannot tell whether anything else keeps it alive", look_from}
  end

  defp alone(inode, {kinds, users}, %{descriptors: pids}) do
    unless_held =
      if pids == [],
        do: "",
        else: "; unless #{processes(pids)} hold it open, which cannot be seen"

    {:warn, "#{inode} is alive by our #{kinds} alone: #{users}#{unless_held}",
     "close sockets, or open them with close_on: :namespace_gone, which does it; end pins by unpin"}
  end

  # In a user namespace root is no root of the machine's, and CAP_SYS_PTRACE counts for its own processes.
  defp look_from(%{user_namespace: :other}) do
    "look from the first user namespace of the machine, as root: root of another one (`unshare -Ur`, a rootless " <>
      "container) may not look at processes outside of it"
  end

  defp look_from(_environment) do
    "the user of the VM that looks would have to be root, or have CAP_SYS_PTRACE; with --node and rpc " <>
      "that is the application's"
  end

  defp processes([pid]), do: "process #{pid}"
  defp processes(pids), do: "#{length(pids)} processes"

  defp silent(0), do: []

  defp silent(count) do
    [{:warn, "#{count} servers did not tell of their sockets", "see the servers above"}]
  end

  @shown 4

  defp users(all, names) do
    shown =
      for held <- Enum.take(all, @shown), do: "#{inspect(what(held))} of #{names[held.owner]}"

    more = if length(all) > @shown, do: ["#{length(all) - @shown} more"], else: []
    {kinds(all), Enum.join(shown ++ more, ", ")}
  end

  defp kinds(all) do
    case Enum.split_with(all, &is_map_key(&1, :pin)) do
      {[], _sockets} -> "sockets"
      {_pins, []} -> "pins"
      _both -> "sockets and pins"
    end
  end

  defp what(%{pin: pin}), do: pin
  defp what(%{socket: socket}), do: socket
end
