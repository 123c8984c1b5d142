# Random operations of 100 processes in 50 namespaces, with storms of events, and kills of owners, servers and
# helpers. At the end it checks that every call was answered once, that every event reached its owner in order or
# was reported as lost, and that nothing has grown.
#
#     SOAK_SECONDS=300 SOAK_SEED=1 make soak        (root)

for part <- ~w(ledger world storm worker chaos), do: Code.require_file("#{part}.exs", __DIR__)

defmodule Soak do
  alias NetlinkPort.Pace
  alias Soak.{Chaos, Ledger, Storm, Worker, World}

  @servers [Soak.A, Soak.B, Soak.C]
  @workers 100
  @namespaces 50
  @storms 10
  @chaos 2
  # A call takes at most its timeout, the grace for a late server, and a suspension.
  @longest_call 30_000
  # The helper's buffers are bounded: 1 MiB to receive, 256 KiB of commands, answers, and the code.
  @most_rss_kb 8_192

  def run(seconds, seed) do
    :rand.seed(:exsss, {seed, 0, 0})
    Ledger.start()
    IO.puts("soak: #{seconds} s, seed #{seed}, #{@workers} owners, #{@namespaces} namespaces")
    world = World.build(@namespaces)

    # Storms and chaos are linked. The namespaces are deleted also when one of them crashes.
    Process.flag(:trap_exit, true)

    try do
      soak(world, seconds, seed)
    catch
      # Before the owners complain of namespaces that are gone.
      kind, reason ->
        IO.puts("soak: " <> Exception.format(kind, reason, __STACKTRACE__))
        exit({:shutdown, 1})
    after
      World.demolish(world)
    end
  end

  defp soak(world, seconds, seed) do
    children = for name <- @servers, do: child(name)
    # More restarts than supervisors usually allow.
    limits = [strategy: :one_for_one, max_restarts: 1_000_000, max_seconds: 1]
    {:ok, supervisor} = Supervisor.start_link(children, limits)

    storms =
      for index <- 1..@storms, into: %{} do
        {:ok, storm} = Storm.start_link(index)
        {index, storm}
      end

    workers = :ets.new(:soak_workers, [:public])

    config = %{
      world: world,
      storms: storms,
      servers: @servers,
      supervisor: supervisor,
      workers: workers,
      dead: :ets.new(:soak_dead, [:public]),
      count: @workers,
      seed: seed
    }

    for number <- 1..@workers, do: hire(number, config)
    # Namespaces without a storm come and go.
    shares = Enum.chunk_every((@storms + 1)..@namespaces, div(@namespaces - @storms, @chaos))
    chaos = for share <- shares, do: Chaos.start(config, share)
    warm_up = max(div(seconds, 10), 10)
    keep_up(config, now() + 1_000 * warm_up)
    before = at_rest(config, chaos)
    go_on(config, chaos)
    keep_up(config, now() + 1_000 * max(seconds - warm_up, 1))
    later = at_rest(config, chaos)
    calls = Ledger.calls(MapSet.new(:ets.tab2list(config.dead), &elem(&1, 0)))
    report(calls, before, later)
    verdict(calls, before, later)
  end

  defp child(name), do: {NetlinkPort, name: name, call_timeout: 4_000, ping_interval: 5_000}

  defp hire(number, config) do
    pid = Worker.start(number, config)
    Process.monitor(pid)
    :ets.insert(config.workers, {number, pid})
  end

  # Replaces owners that were killed. Any other end is an error.
  defp keep_up(config, deadline) do
    receive do
      {:DOWN, _monitor, :process, pid, reason} ->
        replace(config, pid, reason)
        keep_up(config, deadline)

      {:EXIT, pid, reason} when is_pid(pid) ->
        exit({:crashed, pid, reason})
    after
      min(1_000, max(deadline - now(), 0)) ->
        for late <- Ledger.overdue(Pace.within(@longest_call)),
            do: Ledger.wrong({:no_answer, late})

        if now() < deadline, do: keep_up(config, deadline)
    end
  end

  defp replace(config, pid, reason) do
    if reason != :killed, do: Ledger.wrong({:owner_crashed, reason})
    :ets.insert(config.dead, {pid})
    [[number]] = :ets.match(config.workers, {:"$1", pid})
    hire(number, config)
  end

  ## At rest

  # Stops everything, then counts what is left.
  defp at_rest(config, chaos) do
    Enum.each(chaos, &Chaos.pause/1)
    for {_index, storm} <- config.storms, do: Storm.pause(storm)
    keep_up(config, now() + 500)
    for {number, _pid} <- :ets.tab2list(config.workers), do: quiesce(config, number)
    await_servers(config, now() + Pace.within(30_000))
    settle(config, now() + Pace.within(30_000))
  end

  # A server that was just killed is starting again.
  defp await_servers(config, deadline) do
    down = for name <- config.servers, not match?({:ok, _}, NetlinkPort.info(name)), do: name

    cond do
      down == [] ->
        :ok

      now() > deadline ->
        Ledger.wrong({:down, down, Supervisor.which_children(config.supervisor)})

      true ->
        Process.sleep(100)
        await_servers(config, deadline)
    end
  end

  defp go_on(config, chaos) do
    for {_number, pid} <- :ets.tab2list(config.workers), do: send(pid, :go_on)
    for {_index, storm} <- config.storms, do: Storm.go_on(storm)
    Enum.each(chaos, &Chaos.go_on/1)
  end

  # A server that dies of it is restarted, and made quiet, too.
  defp quiesce(config, number) do
    [{^number, pid}] = :ets.lookup(config.workers, number)
    send(pid, {:quiesce, self()})

    receive do
      {:quiet, ^pid} ->
        :ok

      {:DOWN, _monitor, :process, ^pid, reason} ->
        replace(config, pid, reason)
        quiesce(config, number)
    after
      2 * Pace.within(@longest_call) ->
        Ledger.wrong({:not_quiet, Process.info(pid, :current_stacktrace)})
    end
  end

  # Processes that are ending get time: until two counts a second apart are the same.
  defp settle(config, deadline) do
    one = figures(config)
    Process.sleep(1_000)
    two = figures(config)
    counted = &Map.drop(&1, [:memory_kb, :rss_kb, :atoms])
    if counted.(one) == counted.(two) or now() > deadline, do: two, else: settle(config, deadline)
  end

  defp figures(config) do
    Enum.each(Process.list(), &:erlang.garbage_collect/1)
    helpers = for name <- config.servers, {:ok, info} <- [NetlinkPort.info(name)], do: info

    %{
      helpers: length(helpers),
      sockets: helpers |> Enum.map(& &1.sockets) |> Enum.sum(),
      fds: helpers |> Enum.map(& &1.fds) |> Enum.sum(),
      rss_kb: helpers |> Enum.map(&rss(&1.os_pid)) |> Enum.max(fn -> 0 end),
      processes: length(Process.list()),
      ports: length(Port.list()),
      tables: length(:ets.all()),
      atoms: :erlang.system_info(:atom_count),
      memory_kb: div(:erlang.memory(:total), 1024),
      namespaces: length(Path.wildcard("/run/netns/nlp-#{System.pid()}-*")),
      vm_fds: length(File.ls!("/proc/self/fd")),
      programs: programs()
    }
  end

  defp rss(os_pid) do
    [_, kb] = Regex.run(~r/VmRSS:\s+(\d+)/, File.read!("/proc/#{os_pid}/status"))
    String.to_integer(kb)
  end

  # Helpers of this VM, zombies included: children of erl_child_setup, which is a child of this VM.
  defp programs do
    {setup, _status} = System.cmd("pgrep", ["-P", System.pid()])
    {all, _status} = System.cmd("pgrep", ["-c", "-P", setup |> String.split() |> Enum.join(",")])
    # pgrep itself is one of them.
    all |> String.trim() |> String.to_integer()
  end

  ## The end

  defp report(calls, before, later) do
    IO.puts("\ncalls              made   answered     killed")
    for {name, called, answered, left} <- calls, do: row([name, called, answered, left])
    {_, called, answered, left} = Enum.reduce(calls, {:all, 0, 0, 0}, &add/2)
    row([:all, called, answered, left])

    IO.puts("\nwhat happened")

    for {key, count} <- Ledger.counts() do
      IO.puts("  #{String.pad_trailing(inspect(key), 36)}#{count}")
    end

    IO.puts("\nat rest         before      after")
    for {key, value} <- before, do: row([key, value, Map.fetch!(later, key)])
  end

  defp add({_name, a, b, c}, {all, x, y, z}), do: {all, a + x, b + y, c + z}

  defp row([name | cells]) do
    cells = Enum.map_join(cells, &String.pad_leading("#{&1}", 11))
    IO.puts("#{String.pad_trailing("#{name}", 12)}#{cells}")
  end

  defp verdict(calls, before, later) do
    for {name, called, answered, left} <- calls, called != answered + left do
      Ledger.wrong({:calls_not_answered_once, name, called, answered, left})
    end

    same = ~w(helpers sockets fds processes ports tables namespaces vm_fds programs)a

    for key <- same,
        before[key] != later[key],
        do: Ledger.wrong({:grown, key, before[key], later[key]})

    # Of the VM itself: allocators keep some of their peak.
    if later.memory_kb > before.memory_kb + 8_192,
      do: Ledger.wrong({:grown, :memory_kb, before, later})

    if later.atoms > before.atoms + 100, do: Ledger.wrong({:grown, :atoms, before, later})
    if later.rss_kb > @most_rss_kb, do: Ledger.wrong({:grown, :rss_kb, before, later})
    if later.sockets != 0, do: Ledger.wrong({:sockets_left, later.sockets})

    case Ledger.wrongs() do
      [] ->
        IO.puts("\nsoak: nothing wrong")

      wrongs ->
        IO.puts("\nsoak: #{length(wrongs)} things wrong") &&
          System.at_exit(fn _ -> exit({:shutdown, 1}) end)
    end
  end

  defp now, do: System.monotonic_time(:millisecond)
end

seconds = String.to_integer(System.get_env("SOAK_SECONDS", "300"))
seed = String.to_integer(System.get_env("SOAK_SEED", "#{System.os_time(:second)}"))
Logger.configure(level: :critical)
NetlinkPort.Pace.set()
Soak.run(seconds, seed)
