defmodule NetlinkPort.Sandbox.Fault do
  @moduledoc false
  # Makes the faults of `NetlinkPort.Sandbox.fault/3`. Each function returns when its fault has happened or is in
  # place.

  alias NetlinkPort.{Arguments, Environment, Errno, Socket}
  alias NetlinkPort.Sandbox.{Holder, Instance, Overrun, StandIn}

  # How long a process may take to act on a signal, in ms.
  @patience 10_000
  # With this limit only standard input, output and error are possible descriptors.
  @no_descriptor 3
  @without_options [
    :helper_killed,
    :helper_stopped,
    :helper_continued,
    :namespace_gone,
    :namespace_back,
    :open_allowed
  ]
  # The stages of NetlinkPort.open/3.
  @stages [
    :open,
    :setns,
    :socket,
    :bind,
    :connect,
    :setsockopt,
    :getsockopt,
    :info,
    :watch,
    :thread
  ]

  @spec make(GenServer.server(), term(), keyword()) :: :ok | {:error, term()}
  def make(sandbox, fault, opts)

  def make(sandbox, :helper_killed, []) do
    info = Instance.call(sandbox, :info)
    server = whereis!(info.server)
    monitor = Process.monitor(server)

    with {:ok, os_pid} <- helper(sandbox, info.server),
         :ok <- Holder.signal("KILL", os_pid) do
      receive do
        {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
      end

      if info.own?, do: Instance.call(sandbox, {:restarted, server}), else: :ok
    end
  end

  def make(sandbox, :helper_stopped, []) do
    info = Instance.call(sandbox, :info)

    with {:ok, os_pid} <- helper(sandbox, info.server), do: stop(sandbox, info.server, os_pid)
  end

  def make(sandbox, :helper_continued, []) do
    case stopped(sandbox, Instance.call(sandbox, :info).server) do
      nil -> {:error, "no helper of this sandbox is stopped" <> ended(sandbox)}
      os_pid -> continue(sandbox, os_pid)
    end
  end

  def make(sandbox, gone, []) when gone in [:namespace_gone, :namespace_back] do
    Instance.call(sandbox, gone)
  end

  def make(sandbox, {:overrun, count}, opts) when is_integer(count) and count > 0 do
    Arguments.known!(opts, [:of, :lose])
    lose = Keyword.get(opts, :lose, fn -> :ok end)

    unless is_function(lose, 0) do
      raise ArgumentError, "expected lose: a function without arguments, got: #{inspect(lose)}"
    end

    info = Instance.call(sandbox, :info)

    with :ok <- running(sandbox, info.server),
         {:ok, sockets} <- sockets(info, opts[:of]),
         {:ok, helping} <- Instance.call(sandbox, :helping),
         {:ok, %{os_pid: os_pid}} <- NetlinkPort.info(info.server) do
      Overrun.make(info, helping, sockets, count, %{
        stop: fn -> stop(sandbox, info.server, os_pid) end,
        continue: fn -> continue(sandbox, os_pid) end,
        lose: lose
      })
    end
  end

  def make(sandbox, {:open_refused, :emfile}, []) do
    info = Instance.call(sandbox, :info)

    with {:ok, os_pid} <- helper(sandbox, info.server),
         do: prlimit(os_pid, "#{@no_descriptor}:")
  end

  def make(sandbox, :open_allowed, []) do
    info = Instance.call(sandbox, :info)

    with :ok <- running(sandbox, info.server),
         {:ok, %{os_pid: os_pid, max_fds: max_fds}} <- NetlinkPort.info(info.server) do
      prlimit(os_pid, "#{max_fds}:")
    end
  end

  def make(sandbox, {:open_refused, errno}, opts) when is_atom(errno) do
    Arguments.known!(opts, [:stage, :times])
    stage = Keyword.get(opts, :stage, :setns)

    unless stage in @stages do
      raise ArgumentError,
            "expected stage: a stage of an open, one of #{inspect(@stages)}, got: #{inspect(stage)}"
    end

    stand_in(sandbox, {:open, errno!(errno), stage}, opts)
  end

  def make(sandbox, {:answer, errno}, opts) when is_atom(errno) do
    Arguments.known!(opts, [:message, :offset, :type, :times])
    _type = opts[:type] && Arguments.type!(opts[:type])
    _offset = opts[:offset] && Arguments.uint32!(:offset, opts[:offset])
    message = opts[:message]

    unless message == nil or text?(message) do
      raise ArgumentError, "expected message: a text without NUL, got: #{inspect(message)}"
    end

    answer = opts |> Keyword.drop([:times]) |> Enum.reject(&match?({_name, nil}, &1)) |> Map.new()
    stand_in(sandbox, {:answer, errno!(errno), answer}, opts)
  end

  def make(sandbox, :interrupted_dump, opts) do
    Arguments.known!(opts, [:times])
    stand_in(sandbox, :interrupt, opts)
  end

  def make(_sandbox, fault, [_ | _] = opts) when fault in @without_options do
    raise ArgumentError, "the fault #{inspect(fault)} takes no options, got: #{inspect(opts)}"
  end

  def make(_sandbox, other, opts) do
    raise ArgumentError,
          "expected a fault of NetlinkPort.Sandbox.fault/3, got: #{inspect(other)} with #{inspect(opts)}"
  end

  defp text?(message),
    do: is_binary(message) and String.valid?(message) and not String.contains?(message, <<0>>)

  defp errno!(errno) do
    _number = Errno.number(errno)
    errno
  rescue
    FunctionClauseError ->
      reraise ArgumentError,
              "expected an errno such as :eperm, got: #{inspect(errno)}",
              __STACKTRACE__
  end

  defp stand_in(sandbox, rule, opts) do
    times = Keyword.get(opts, :times, 1)

    unless is_integer(times) and times > 0 do
      raise ArgumentError, "expected times: a positive integer, got: #{inspect(times)}"
    end

    case Instance.call(sandbox, :info).stand_in do
      nil ->
        raise ArgumentError,
              "this fault needs a sandbox with stand_in: true, as in @tag netlink_sandbox: [stand_in: true]"

      pid ->
        StandIn.add(pid, rule, times)
    end
  end

  defp whereis!(server) do
    GenServer.whereis(server) || raise ArgumentError, "no such server: #{inspect(server)}"
  end

  # The sockets that the server has in the namespace: one, those of a process, or all.
  defp sockets(_info, %Socket{} = socket), do: {:ok, [socket]}

  defp sockets(info, owner) when is_pid(owner) or owner == nil do
    %{inode: inode} = File.stat!(info.path)

    with {:ok, %{sockets: sockets}} <- NetlinkPort.stats(info.server) do
      found =
        for socket <- sockets,
            socket.inode == inode,
            owner in [nil, socket.owner],
            do: socket.socket

      if found == [], do: {:error, "no such socket is open in the namespace"}, else: {:ok, found}
    end
  end

  defp sockets(_info, other),
    do: raise(ArgumentError, "expected of: a socket or its owner, got: #{inspect(other)}")

  # A stopped helper cannot be asked for its process id.
  defp helper(sandbox, server) do
    with nil <- stopped(sandbox, server),
         {:ok, %{os_pid: os_pid}} <- NetlinkPort.info(server) do
      {:ok, os_pid}
    else
      os_pid when is_integer(os_pid) -> {:ok, os_pid}
      {:error, error} -> {:error, error}
    end
  end

  # The helper that this sandbox has stopped, unless it has ended with its server since.
  defp stopped(sandbox, server) do
    case Instance.call(sandbox, :stopped) do
      {pid, os_pid} -> if GenServer.whereis(server) == pid, do: os_pid
      nil -> nil
    end
  end

  defp ended(sandbox) do
    if Instance.call(sandbox, :stopped),
      do:
        ": the helper that was stopped has ended with its server, as by :stuck or :helper_killed",
      else: ""
  end

  defp running(sandbox, server) do
    if stopped(sandbox, server),
      do: {:error, "the helper is stopped: make the fault :helper_continued first"},
      else: :ok
  end

  defp stop(sandbox, server, os_pid) do
    :ok = Instance.call(sandbox, {:stopped, {GenServer.whereis(server), os_pid}})
    with :ok <- Holder.signal("STOP", os_pid), do: await_state(os_pid, &(&1 == "T"))
  end

  defp continue(sandbox, os_pid) do
    :ok = Instance.call(sandbox, {:stopped, nil})
    with :ok <- Holder.signal("CONT", os_pid), do: await_state(os_pid, &(&1 != "T"))
  end

  # A signal takes effect only when the process runs next, so this waits for it. A helper is not dumpable, so hidepid
  # (proc(5)) hides it from its own user. Then the signal is all that can be done: before the helper next runs in user
  # mode the kernel makes it take the signal.
  defp await_state(os_pid, wanted, deadline \\ System.monotonic_time(:millisecond) + @patience) do
    state = state(os_pid)

    cond do
      state == nil ->
        if Environment.hidden?(),
          do: Holder.signal("0", os_pid),
          else: {:error, "the helper has ended"}

      wanted.(state) ->
        :ok

      System.monotonic_time(:millisecond) > deadline ->
        {:error, "the helper did not take the signal"}

      true ->
        Process.sleep(1)
        await_state(os_pid, wanted, deadline)
    end
  end

  # `nil` if /proc does not show the process.
  defp state(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> stat |> String.split(") ") |> List.last() |> String.first()
      {:error, _reason} -> nil
    end
  end

  # Sets only the soft limit, so that it can be raised again.
  defp prlimit(os_pid, limit) do
    arguments = ["--pid", "#{os_pid}", "--nofile=#{limit}"]

    with program when program != nil <- System.find_executable("prlimit"),
         {_output, 0} <- System.cmd(program, arguments, stderr_to_stdout: true) do
      :ok
    else
      nil ->
        {:error,
         "there is no prlimit(1), which limits the descriptors of the helper: install util-linux"}

      {output, _status} ->
        {:error, String.trim(output)}
    end
  end
end
