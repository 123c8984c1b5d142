defmodule NetlinkPort.PlaceFaults do
  @moduledoc false
  # Faults that depend on the place: a VM in the place (NetlinkPort.Places) causes each, and returns the sentence that
  # the library says about it.

  alias NetlinkPort.{Doctor, Environment}

  @doc "Causes these faults in one VM, and returns the sentence of each."
  def told(places, place, faults) do
    Process.flag(:trap_exit, true)
    Application.ensure_all_started(:logger)
    Logger.configure(level: :none)
    Map.new(faults, &{&1, apply(__MODULE__, &1, [places, place])})
  end

  @doc "What the VM finds out about its place."
  def environment(_places, _place) do
    environment = Environment.look()

    {environment.proc, environment.hidepid, environment.user_namespace, environment.no_new_privs,
     Environment.bounded?(environment, :sys_admin)}
  end

  @doc "Whose process ids /proc shows, and whether it hides some, looked up alone."
  def proc(_places, _place), do: {Environment.proc(), Environment.hidden?()}

  @doc "Starts a server with the helper that is right in the place."
  def start(places, place), do: started(NetlinkPort.Places.helper(places, place))

  @doc "Starts a server with the helper of the build."
  def start_built(places, _place), do: started(places.built)

  defp started(executable) do
    case NetlinkPort.start_link(name: nil, executable: executable) do
      {:ok, server} ->
        {:ok, %{capabilities: capabilities}} = NetlinkPort.info(server)
        GenServer.stop(server)
        {:ok, capabilities}

      {:error, error} ->
        Exception.message(error)
    end
  end

  @doc "Whether the server kills a helper that does not answer, here because it is stopped."
  def stuck(places, place) do
    with {os_pid, server} <- stopped(NetlinkPort.Places.helper(places, place)) do
      end_of(server)
      if there?(os_pid), do: :alive, else: :gone
    end
  end

  defp stopped(executable) do
    options = [name: nil, executable: executable, call_timeout: 200]

    with {:ok, server} <- NetlinkPort.start_link(options) do
      {:ok, %{os_pid: os_pid}} = NetlinkPort.info(server)
      {_output, 0} = System.cmd("kill", ["-STOP", "#{os_pid}"])
      {os_pid, server}
    else
      {:error, error} -> Exception.message(error)
    end
  end

  defp end_of(server) do
    {:error, %{reason: :etimedout}} = NetlinkPort.open(server, :route, timeout: 5_000)
    receive do: ({:EXIT, ^server, :stuck} -> :ok)
  end

  @doc "Ends the VM by System.stop/1 while the helper is stopped and the server's queue is full."
  def stop_full(places, place) do
    Process.flag(:trap_exit, true)
    executable = NetlinkPort.Places.helper(places, place)

    {:ok, server} =
      NetlinkPort.start_link(name: nil, executable: executable, call_timeout: 60_000)

    {:ok, %{os_pid: os_pid}} = NetlinkPort.info(server)
    {:ok, socket} = NetlinkPort.open(server, :route, [])
    {_output, 0} = System.cmd("kill", ["-STOP", "#{os_pid}"])
    fill(socket, :binary.copy(<<0>>, 1_000_000))
    IO.puts("helper #{os_pid}")
    System.stop(3)
    Process.sleep(:infinity)
  end

  defp fill(socket, datagram) do
    if NetlinkPort.send(socket, datagram, timeout: 50) == :ok, do: fill(socket, datagram)
  end

  # By kill -0, since /proc may not show the process.
  defp there?(os_pid) do
    {_output, status} =
      System.cmd(System.get_env("NLP_KILL", "kill"), ["-0", "#{os_pid}"], stderr_to_stdout: true)

    status == 0
  end

  @shell "/bin/sh"

  @doc """
  Like `stuck/2`, on a system whose only shell is `shell`, with kill(1) only if `kill?`, and with the file of the
  executable only if `helper?`. A VM needs a shell to start, so that /bin/sh is replaced after the start, in a mount
  namespace.
  """
  def stuck_without_shell(places, shell, kill?: kill?, helper?: helper?) do
    Process.flag(:trap_exit, true)
    Application.ensure_all_started(:logger)
    executable = Path.join(places.folder, "copy-#{System.pid()}")
    File.cp!(places.built, executable)
    {os_pid, server} = stopped(executable)
    programs = for name <- ["umount", "kill"], into: %{}, do: {name, System.find_executable(name)}
    System.put_env("NLP_KILL", programs["kill"])
    {_output, 0} = System.cmd("mount", ["--bind", shell, @shell])
    if not kill?, do: System.put_env("PATH", "/nonexistent")
    if not helper?, do: File.rm!(executable)
    :ok = :logger.add_handler(:told, __MODULE__, %{config: self()})
    end_of(server)
    seen = there?(os_pid)
    # The notifier has logged that it could not kill the helper.
    if seen, do: receive(do: ({:logged, "netlink_port: helper" <> _lives_on} -> :ok))
    {_output, 0} = System.cmd(programs["umount"], [@shell])
    {seen, eventually_gone?(os_pid, 500)}
  end

  @doc false
  def log(event, %{config: test}) do
    case event.msg do
      {:string, line} -> send(test, {:logged, IO.chardata_to_string(line)})
      _report -> :ok
    end
  end

  defp eventually_gone?(_os_pid, 0), do: false

  defp eventually_gone?(os_pid, tries) do
    if there?(os_pid) do
      Process.sleep(10)
      eventually_gone?(os_pid, tries - 1)
    else
      true
    end
  end

  @doc "What the doctor finds wrong with the helper that is right in the place."
  def doctor(places, place) do
    for {title, checks} <-
          Doctor.report(executable: NetlinkPort.Places.helper(places, place), netns: []),
        title in ["executable", "helper"],
        {mark, line, remedy} <- checks,
        mark != :ok,
        do: {mark, line, remedy}
  end

  @doc """
  What the doctor says about a namespace that only a socket of this server is known to be in. The helper is started
  in a network namespace of its own for that.
  """
  def kept(places, place) do
    script =
      Path.join(System.tmp_dir!(), "nlp-kept-#{place}-#{System.unique_integer([:positive])}")

    File.write!(script, "#!/bin/sh\nexec unshare -Urn #{places.built} \"$@\"\n")
    File.chmod!(script, 0o755)
    {:ok, server} = NetlinkPort.start_link(name: nil, executable: script)
    File.rm!(script)
    {:ok, socket} = NetlinkPort.open(server, :route, [])
    {:ok, %{inode: inode}} = NetlinkPort.info(socket)
    report = Doctor.report(executable: places.built, netns: [])
    GenServer.stop(server)
    checks = report |> List.keyfind!("namespaces kept alive", 0) |> elem(1)
    Enum.find_value(checks, fn {_mark, line, _remedy} -> if line =~ "#{inode}", do: line end)
  end

  # F_GETPIPE_SZ of fcntl(2), of a new pipe.
  @new "pipe(my $r, my $w); print fcntl($w, 1032, 0)"

  @doc "The size of a new pipe of this user beside that many servers, and the largest size of the servers' pipes."
  def pipe_size(places, servers) do
    largest =
      for _ <- 1..servers do
        {:ok, _server} = NetlinkPort.start_link(name: nil, executable: places.installed)
        largest_pipe()
      end
      |> Enum.max()

    {size, 0} = System.cmd("perl", ["-e", @new])
    {String.to_integer(size), largest}
  end

  # The VM's end of the pipe that the helper writes to.
  defp largest_pipe do
    code =
      "for (glob \"/proc/$ARGV[0]/fd/*\") { next unless (readlink($_) // '') =~ /^pipe:/; " <>
        "open(my $f, '<', $_) or next; my $s = fcntl($f, 1032, 0); $m = $s if $s && $s > ($m // 0) } print $m"

    {size, 0} = System.cmd("perl", ["-e", code, System.pid()])
    String.to_integer(size)
  end
end
