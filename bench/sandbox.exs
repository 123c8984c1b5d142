defmodule Bench.Sandbox do
  @moduledoc false
  # What a sandbox (`NetlinkPort.Sandbox`) costs a test: the time from its start to the first answer, alone and
  # beside other sandboxes. Compared with `unshare -Urn true`, which makes and removes the same namespaces, by
  # turns, in ms.

  alias Bench.Measure

  @others 100
  @rounds 31

  @doc "Medians of a sandbox, of unshare(1), of the difference in each round, and of a sandbox's end."
  def rows do
    Measure.alone(fn ->
      others = for _ <- 1..@others, do: start()
      _warm = {round(), unshare()}

      rounds =
        for _ <- 1..@rounds do
          {base, {start, stop}} = {unshare(), round()}
          {start, base, start - base, stop}
        end

      Enum.each(others, &GenServer.stop/1)
      for n <- 0..3, do: Measure.median(for(round <- rounds, do: elem(round, n)))
    end)
  end

  defp round do
    start = System.monotonic_time()
    sandbox = start()
    %{server: server, netns: netns} = NetlinkPort.Sandbox.info(sandbox)
    {:ok, socket} = NetlinkPort.open(server, :route, netns: netns, active: false)
    # RTM_GETLINK of the loopback.
    {:ok, [_lo]} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)
    started = Measure.microseconds(start) / 1_000
    {started, Measure.milliseconds(fn -> GenServer.stop(sandbox) end)}
  end

  defp start do
    {:ok, sandbox} = NetlinkPort.Sandbox.start_link()
    sandbox
  end

  defp unshare do
    Measure.milliseconds(fn -> {_output, 0} = System.cmd("unshare", ["-Urn", "true"]) end)
  end
end
