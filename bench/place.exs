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

    try do
      fun.(server)
    after
      GenServer.stop(server)
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
