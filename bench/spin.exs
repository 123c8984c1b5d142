defmodule Bench.Spin do
  @moduledoc false
  # What spinning before sleeping costs, and what it gains: microseconds, and CPU time of VM and helper, of requests
  # in series and of 100 requests a second.

  alias Bench.{Measure, Place, Work}

  def rows do
    for {name, wait, count} <- [
          {"in series", fn -> :ok end, 5_000},
          {"100 a second", fn -> Process.sleep(10) end, 200}
        ],
        spin <- [100, 0] do
      {wall, cpu} = Measure.alone(fn -> run(spin, wait, count) end)
      {name, spin, wall, cpu}
    end
  end

  defp run(spin, wait, count) do
    Place.with_netns("spin", fn netns ->
      Place.with_server([spin: spin], fn server ->
        {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns})
        times(socket, wait, div(count, 10))
        before = Measure.cpu_of_both(server)
        wall = times(socket, wait, count)
        {wall, 1_000 * (Measure.cpu_of_both(server) - before) / count}
      end)
    end)
  end

  # The median of the requests, without the pauses.
  defp times(socket, wait, count) do
    Measure.median(
      for n <- 1..count do
        wait.()
        start = System.monotonic_time()
        :ok = NetlinkPort.send(socket, Work.getlink(n))
        receive do: ({:netlink, ^socket, _answer} -> :ok)
        Measure.microseconds(start)
      end
    )
  end
end
