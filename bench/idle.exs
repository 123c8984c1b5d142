defmodule Bench.Idle do
  @moduledoc false
  # The cost of a helper without traffic.

  alias Bench.{Measure, Place}

  @seconds 60

  def seconds, do: @seconds

  def start_to_hello do
    start = System.monotonic_time()
    {:ok, server} = NetlinkPort.start_link(name: nil)
    time = Measure.microseconds(start) / 1_000
    GenServer.stop(server)
    time
  end

  @doc "VmRSS of the helper, in MiB."
  def rss(server) do
    [_, kb] = Regex.run(~r/VmRSS:\s+(\d+)/, proc(server, "status"))
    String.to_integer(kb) / 1_024
  end

  @doc """
  Two helpers with 1,000 sockets in 100 namespaces each, one without pings, and one with the usual pings: the RSS, and
  the CPU time (ms) and wake-ups of 60 s. Reading the RSS wakes neither.
  """
  def thousand do
    Place.with_many("idle", 100, fn names ->
      Place.with_server([ping_interval: :infinity], fn silent ->
        Place.with_server(fn pinged ->
          for server <- [silent, pinged], do: open_all(server, names)
          pids = Enum.map([silent, pinged], &Measure.os_pid/1)
          rss = rss(silent)
          before = Enum.map(pids, &state/1)
          Process.sleep(1_000 * @seconds)
          [silent, pinged] = Enum.zip_with(Enum.map(pids, &state/1), before, &difference/2)
          %{rss: rss, silent: silent, pinged: pinged}
        end)
      end)
    end)
  end

  defp open_all(server, names) do
    for name <- names, _ <- 1..10 do
      {:ok, _} = NetlinkPort.open(server, :route, netns: {:name, name}, groups: [1])
    end
  end

  defp state(pid) do
    [_, count] =
      Regex.run(~r/^voluntary_ctxt_switches:\s+(\d+)/m, File.read!("/proc/#{pid}/status"))

    {Measure.cpu(pid), String.to_integer(count)}
  end

  defp difference({cpu, wakes}, {cpu_before, wakes_before}) do
    %{cpu: cpu - cpu_before, wakes: wakes - wakes_before}
  end

  defp proc(server, file), do: File.read!("/proc/#{Measure.os_pid(server)}/#{file}")
end
