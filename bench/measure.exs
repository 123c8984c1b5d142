defmodule Bench.Measure do
  @moduledoc false
  # Measures the library and the baseline by turns in the same run. Gives medians, and the ratio of each turn with its
  # spread.

  @rounds 7

  @doc "The number of rounds of a comparison."
  def rounds, do: @rounds

  @doc """
  Runs `fun` in a new process, so that its mailbox is empty and its heap small, whatever was measured before.
  """
  def alone(fun), do: fun |> Task.async() |> Task.await(:infinity)

  @doc "Runs both by turns, after one round that does not count. Neither always comes first."
  def compare(ours, baseline) do
    ours = fn -> alone(ours) end
    baseline = fn -> alone(baseline) end
    _warm = {ours.(), baseline.()}
    pairs = for round <- 1..@rounds, do: turn(round, ours, baseline)
    ratios = for {mine, theirs} <- pairs, do: mine / max(theirs, 1.0e-9)
    {mine, theirs} = Enum.unzip(pairs)

    %{
      ours: median(mine),
      baseline: median(theirs),
      ratio: median(ratios),
      low: quantile(ratios, 0.25),
      high: quantile(ratios, 0.75)
    }
  end

  defp turn(round, ours, baseline) when rem(round, 2) == 0, do: {ours.(), baseline.()}

  defp turn(_round, ours, baseline) do
    theirs = baseline.()
    {ours.(), theirs}
  end

  @doc "The median of the results of `fun` over the rounds."
  def single(fun) do
    _warm = alone(fun)
    median(for _ <- 1..@rounds, do: alone(fun))
  end

  @doc "Microseconds of one of `count` calls."
  def each(count, fun) do
    start = System.monotonic_time()
    for n <- 1..count, do: fun.(n)
    microseconds(start) / count
  end

  @doc "Milliseconds of a call."
  def milliseconds(fun) do
    start = System.monotonic_time()
    fun.()
    microseconds(start) / 1_000
  end

  def microseconds(start) do
    System.convert_time_unit(System.monotonic_time() - start, :native, :nanosecond) / 1_000
  end

  @doc "The CPU time of a process and all its threads so far, in ms."
  def cpu(os_pid) do
    for thread <- ls("/proc/#{os_pid}/task"), reduce: 0.0 do
      sum ->
        case File.read("/proc/#{os_pid}/task/#{thread}/schedstat") do
          {:ok, line} -> sum + (line |> String.split() |> hd() |> String.to_integer()) / 1.0e6
          {:error, _gone} -> sum
        end
    end
  end

  defp ls(path), do: File.ls!(path)

  @doc "The CPU time of the VM and of a server's helper so far, in ms."
  def cpu_of_both(server), do: cpu(System.pid()) + cpu(os_pid(server))

  def os_pid(server) do
    {:ok, %{os_pid: pid}} = NetlinkPort.info(server)
    pid
  end

  def median(list), do: quantile(list, 0.5)

  def quantile(list, part) do
    list |> Enum.sort() |> Enum.at(round(part * (length(list) - 1)))
  end
end
