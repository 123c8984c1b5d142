# Owners in each active mode that take nothing during a storm of route events: the memory that this costs the helper
# and the VM, and the events that each owner gets and misses once it takes everything.
#
#     STALLED_SECONDS=60 mix run bench/stalled.exs        (root)

defmodule Stalled do
  # RTNLGRP_IPV4_ROUTE.
  @groups [7]
  @quiet 1_000

  def run(seconds) do
    [storm, calm] = for part <- ~w(storm calm), do: "nlp-#{System.pid()}-#{part}"
    Enum.each([storm, calm], &ip(["netns", "add", &1]))

    try do
      Enum.each([storm, calm], &ip(["-n", &1, "link", "set", "lo", "up"]))
      IO.puts("storms of #{seconds} s; owners that take nothing meanwhile; windows of 1 MiB\n")
      phase([false, :once, 100, {true, 1_000}], storm, calm, seconds)
      phase([true], storm, calm, seconds)
    after
      Enum.each([storm, calm], &ip(["netns", "del", &1]))
    end
  end

  # Each owner has its own helper.
  defp phase(modes, storm, calm, seconds) do
    {:ok, server} = NetlinkPort.start_link(name: nil)
    {:ok, %{os_pid: os_pid}} = NetlinkPort.info(server)
    owners = for mode <- modes, do: {mode, owner(server, storm, mode)}
    taker = owner(server, calm, true)
    send(elem(taker, 0), :take)
    before = {rss(os_pid), vm()}

    steady = Task.async(fn -> events(calm, seconds, 20, 100) end)
    sent = events(storm, seconds, 500, 50)
    steady = Task.await(steady, :infinity)
    under = {rss(os_pid), vm()}

    row(["active", "sent", "mailbox", "kept", "seen", "dropped", "exact"])

    for {mode, {pid, socket}} <- owners do
      {:ok, %{kept: kept}} = NetlinkPort.info(socket)
      {:message_queue_len, mailbox} = Process.info(pid, :message_queue_len)
      send(pid, :take)
      {seen, dropped} = taken(pid)
      row([inspect(mode), sent, mailbox, kept, seen, dropped, seen + dropped == sent])
    end

    {seen, dropped} = taken(elem(taker, 0))
    row(["(takes)", steady, "", "", seen, dropped, seen + dropped == steady])
    IO.puts("\nkB             before   under stalled owners")
    print = fn name, part -> IO.puts([name, pad(elem(before, part)), pad(elem(under, part))]) end
    print.("helper RSS", 0)
    print.("VM memory ", 1)
    IO.puts("")
    GenServer.stop(server)
  end

  defp owner(server, netns, mode) do
    {active, bound} = if is_tuple(mode), do: mode, else: {mode, :infinity}
    parent = self()

    pid =
      spawn_link(fn ->
        opts = [netns: {:name, netns}, groups: @groups, active: active, max_queue: bound]
        {:ok, socket} = NetlinkPort.open(server, :route, opts)
        send(parent, {self(), socket})
        receive do: (:take -> :ok)
        if active != true, do: :ok = NetlinkPort.setopts(socket, active: true)
        send(parent, {self(), take(socket, {0, 0})})
      end)

    receive do: ({^pid, socket} -> {pid, socket})
  end

  defp take(socket, {seen, dropped}) do
    receive do
      {:netlink, ^socket, _datagram} -> take(socket, {seen + 1, dropped})
      {:netlink_overrun, ^socket, count} -> take(socket, {seen, dropped + count})
      {:netlink_passive, ^socket} -> take(socket, {seen, dropped})
    after
      @quiet -> {seen, dropped}
    end
  end

  defp taken(pid), do: receive(do: ({^pid, {seen, dropped}} -> {seen, dropped}))

  # Adds and deletes routes, an event each; pauses for `pause` ms after each `count` of both.
  defp events(netns, seconds, count, pause) do
    path = Path.join(System.tmp_dir!(), netns <> ".batch")
    routes = for n <- 1..count, do: "10.0.#{div(n, 256)}.#{rem(n, 256)}/32 dev lo\n"
    File.write!(path, for(verb <- ["add", "del"], route <- routes, do: ["route #{verb} ", route]))
    ends = System.monotonic_time(:millisecond) + 1_000 * seconds
    sent = batches(netns, path, ends, pause, 0)
    File.rm!(path)
    2 * count * sent
  end

  defp batches(netns, path, ends, pause, done) do
    if System.monotonic_time(:millisecond) < ends do
      ip(["-n", netns, "-batch", path])
      Process.sleep(pause)
      batches(netns, path, ends, pause, done + 1)
    else
      done
    end
  end

  defp ip(arguments), do: {_output, 0} = System.cmd("ip", arguments, stderr_to_stdout: true)

  defp rss(os_pid) do
    [_, kb] = Regex.run(~r/VmRSS:\s+(\d+)/, File.read!("/proc/#{os_pid}/status"))
    String.to_integer(kb)
  end

  defp vm do
    Enum.each(Process.list(), &:erlang.garbage_collect/1)
    div(:erlang.memory(:total), 1024)
  end

  defp row(cells), do: IO.puts(Enum.map_join(cells, &pad/1))
  defp pad(cell), do: String.pad_leading("#{cell}", 12)
end

Stalled.run(String.to_integer(System.get_env("STALLED_SECONDS", "60")))
