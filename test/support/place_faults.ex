defmodule NetlinkPort.PlaceFaults do
  @moduledoc false
  # What goes wrong in a place: each is done by a VM there (NetlinkPort.Places) and gives its sentence.

  alias NetlinkPort.{Doctor, Environment}

  @doc "What each of these faults says, done by one VM."
  def told(places, place, faults) do
    Process.flag(:trap_exit, true)
    Application.ensure_all_started(:logger)
    Logger.configure(level: :none)
    Map.new(faults, &{&1, apply(__MODULE__, &1, [places, place])})
  end

  @doc "What the VM sees of the place it is in."
  def environment(_places, _place) do
    environment = Environment.look()

    {environment.proc, environment.hidepid, environment.user_namespace, environment.no_new_privs,
     Environment.bounded?(environment, :sys_admin)}
  end

  @doc "A start with the helper that is right there."
  def start(places, place), do: started(NetlinkPort.Places.helper(places, place))

  @doc "A start with the helper of the build."
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

  @doc "Whether a helper that is stopped ends when it does not answer."
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

  # Not by /proc, which may show nothing.
  defp there?(os_pid) do
    {_output, status} =
      System.cmd(System.get_env("NLP_KILL", "kill"), ["-0", "#{os_pid}"], stderr_to_stdout: true)

    status == 0
  end

  @shell "/bin/sh"

  @doc """
  The same where there is no shell but `shell`, and kill(1) only with `kill?: true`. A VM takes a shell to
  start, so that it goes then: in a mount namespace of its own.
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
    # The witness has said that it could not.
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

  @doc "What the doctor finds of the helper that is right there."
  def doctor(places, place) do
    for {title, checks} <-
          Doctor.report(executable: NetlinkPort.Places.helper(places, place), netns: []),
        title in ["executable", "helper"],
        {mark, line, remedy} <- checks,
        mark != :ok,
        do: {mark, line, remedy}
  end

  @doc """
  What the doctor says of a namespace of which this VM knows nobody but its own socket: one of the helper's
  own, as the executable is started in one.
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

  # F_GETPIPE_SZ of fcntl(2), and of a pipe made anew.
  @new "pipe(my $r, my $w); print fcntl($w, 1032, 0)"

  @doc "How large a new pipe of this user is with so many servers, and the largest of theirs was."
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
