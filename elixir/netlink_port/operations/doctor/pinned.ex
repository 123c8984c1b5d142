defmodule NetlinkPort.Doctor.Pinned do
  @moduledoc false
  # Namespaces that are there only because sockets or pins of ours are: no process is in them, no mount and no
  # descriptor of anybody stands for them. proc(5), namespaces(7).
  #
  # Two things hold a namespace that /proc does not show: sockets that somebody else has there and has
  # left it, and the kernel's own. So such a namespace may live on when ours are closed.

  alias NetlinkPort.{Doctor, Environment, Redaction}
  alias NetlinkPort.Server.Witness
  alias NetlinkPort.Operations.Survey

  @spec checks([Survey.told()], pid() | nil) :: [Doctor.check()]
  def checks(servers, own) do
    told = for {_server, {:ok, stats}} <- servers, do: stats
    held = for stats <- told, held <- stats.sockets ++ stats.pins, do: held
    spaces = Enum.group_by(held, & &1.inode)

    if spaces == %{} do
      [{:ok, "no server of this node has a socket or a pin", nil}]
    else
      # All helpers, of which some may not have answered.
      helpers = MapSet.new(for stats <- told, do: "#{stats.os_pid}")
      environment = Environment.look()

      # Numbers of another pid namespace would take the helpers for others, and others for helpers.
      {left, unseen} =
        if Environment.own_proc?(environment),
          do: unheld(Map.keys(spaces), helpers),
          else: {Map.keys(spaces), %{places: [], descriptors: []}}

      unseen = Map.put(unseen, :why, Environment.unseen(environment))
      verdict(spaces, left, unseen, length(Witness.servers() -- [own]) - length(told))
    end
  end

  @typedoc """
  Processes of which it cannot be told where they are, and those of whose descriptors it cannot be told what they
  stand for.
  """
  @type unseen :: %{places: [String.t()], descriptors: [String.t()]}

  @doc "Which of these namespaces (inodes) nothing holds that `/proc` shows, these processes aside."
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

  # Each namespace with one of its processes.
  defp process(pid, {links, closed}) do
    case File.read_link("/proc/#{pid}/ns/net") do
      {:ok, link} -> {Map.put_new(links, link, pid), closed}
      # Ended; a zombie has none.
      {:error, reason} when reason in [:enoent, :esrch, :einval] -> {links, closed}
      {:error, _not_ours} -> {links, [pid | closed]}
    end
  end

  # Of those, who is where another is that can be looked at. A file below /proc/<pid>/net anybody may
  # look at, and its inode is another in each namespace.
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

  # What nobody holds, and the processes of which a descriptor cannot be told.
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
  What a descriptor holds, by its link and its fdinfo: a namespace that the link names, or what may be one, by its
  inode. One that was opened by a path is shown as that, and as `/` once that is unmounted: so its inode is
  looked at, and not by stat(2), which can hang on what is none of ours (NFS), before it can be one. Before
  Linux 5.14 fdinfo has no inode: what is shown as `/` cannot be told then, and other paths are seen as mounts.
  """
  @spec holds(String.t(), String.t()) :: {:link, String.t()} | {:stat, String.t()} | :untold | nil
  def holds("/" <> _ = path, fdinfo) do
    case Regex.run(~r/^ino:\s+(\d+)$/m, fdinfo) do
      # Those of the kernel's namespaces are beyond 0xF0000000.
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
    for(inode <- left, do: alone(inode, users(spaces[inode]), unseen)) ++ silent(silent)
  end

  # Whoever else is there would not be seen.
  defp alone(inode, {_kinds, users}, %{why: why}) when why != nil do
    {:warn,
     "#{inode}, where #{users} is open: #{why}; so it cannot tell whether anything else keeps it alive",
     "look from the first pid namespace of the machine, as root: there all who may hold it are seen"}
  end

  defp alone(inode, {_kinds, users}, %{places: [_ | _] = pids}) do
    {:warn,
     "#{inode}, where #{users} is open: #{processes(pids)} may be there, which this VM may not look at; " <>
       "so it cannot tell whether anything else keeps it alive",
     "the user of the VM that looks would have to be root, or have CAP_SYS_PTRACE; with --node and rpc " <>
       "that is the application's"}
  end

  defp alone(inode, {kinds, users}, %{descriptors: pids}) do
    unless_held =
      if pids == [],
        do: "",
        else: "; unless #{processes(pids)} hold it open, which cannot be seen"

    {:warn, "#{inode} is alive by our #{kinds} alone: #{users}#{unless_held}",
     "close sockets, or open them with close_on: :namespace_gone, which does it; end pins by unpin"}
  end

  defp processes([pid]), do: "process #{pid}"
  defp processes(pids), do: "#{length(pids)} processes"

  defp silent(0), do: []

  defp silent(count) do
    [{:warn, "#{count} servers did not tell of their sockets", "see the servers above"}]
  end

  @shown 4

  defp users(all) do
    names = Redaction.names(for held <- all, do: held.owner)

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
