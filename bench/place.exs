defmodule Bench.Place do
  @moduledoc false
  # Namespaces of the benchmark, which are deleted when it ends.

  def ip(arguments), do: {_output, 0} = System.cmd("ip", arguments, stderr_to_stdout: true)

  @doc """
  Deletes the remaining namespaces of the benchmark when this VM ends, also when it is interrupted or killed: a shell
  waits for the end of its input.
  """
  def sweep_at_end do
    script =
      "trap '' INT TERM HUP; cat >/dev/null; ip netns list | " <>
        "sed -n 's/^\\(#{name("")}[^ ]*\\).*/\\1/p' | xargs -r -n 1 ip netns del"

    Port.open({:spawn_executable, "/bin/sh"}, args: ["-c", script])
  end

  @doc "A name of this run."
  def name(suffix), do: "nlp-#{System.pid()}-#{suffix}"

  @doc "Runs `fun` with a namespace whose loopback is up."
  def with_netns(suffix, fun) do
    name = name(suffix)
    ip(["netns", "add", name])

    try do
      ip(["-n", name, "link", "set", "lo", "up"])
      fun.(name)
    after
      ip(["netns", "del", name])
    end
  end

  @doc "Runs `fun` with many namespaces."
  def with_many(suffix, count, fun) do
    names = for n <- 1..count, do: name("#{suffix}#{n}")
    batch(for(name <- names, do: "netns add #{name}\n"))

    try do
      fun.(names)
    after
      batch(for(name <- names, do: "netns del #{name}\n"))
    end
  end

  @doc "Runs `fun` with a server of its own."
  def with_server(opts \\ [], fun) do
    {:ok, server} = NetlinkPort.start_link([name: nil] ++ opts)
    {:ok, %{os_pid: os_pid}} = NetlinkPort.info(server)
    same_priority(os_pid)

    try do
      fun.(server)
    after
      GenServer.stop(server)
    end
  end

  @doc """
  Gives a port program the priority of the VM. OTP starts each port program in a session of its own. Where the kernel
  groups processes by session (sched(7), "The autogroup feature"), a nice value counts only within its group.
  """
  def same_priority(port) when is_port(port) do
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    same_priority(os_pid)
  end

  def same_priority(os_pid), do: priority(os_pid, priority())

  @doc "Gives the session of a process a priority."
  def priority(_os_pid, ""), do: :ok
  def priority(os_pid, nice), do: File.write!("/proc/#{os_pid}/autogroup", nice)

  @doc "The priority of the VM's session, or an empty string where the kernel does not group processes by session."
  def priority do
    case File.read("/proc/self/autogroup") do
      {:ok, told} -> ~r/nice (-?\d+)/ |> Regex.run(told, capture: :all_but_first) |> hd()
      {:error, _none} -> ""
    end
  end

  @doc "`ip -batch` of these lines, in a namespace if one is named."
  def batch(lines, netns \\ nil) do
    path = Path.join(System.tmp_dir!(), name("batch#{System.unique_integer([:positive])}"))
    File.write!(path, lines)

    try do
      ip(if(netns, do: ["-n", netns], else: []) ++ ["-batch", path])
    after
      File.rm!(path)
    end
  end

  @doc "The lines of `ip -batch` that add `count` routes."
  def routes(count), do: for(n <- 0..(count - 1), do: "route add #{destination(n)}/32 dev lo\n")

  @doc "Deletes all routes of the main table."
  def flush(netns), do: ip(["-n", netns, "route", "flush", "table", "main"])

  defp destination(n), do: "10.#{div(n, 65_536)}.#{rem(div(n, 256), 256)}.#{rem(n, 256)}"
end
