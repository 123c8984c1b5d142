defmodule NetlinkPort.Nodes.RelayTest do
  use ExUnit.Case, async: true

  import NetlinkPort.Cost

  alias NetlinkPort.Nodes.Relay

  test "the end of a monitor that has fired does not cost a search of the mailbox" do
    assert_in_proportion(fn count ->
      monitors =
        for _ <- 1..count do
          pid = spawn(fn -> :ok end)
          monitor = Relay.monitor(pid)
          assert_receive {:DOWN, ^monitor, :process, ^pid, _reason}
          {monitor, pid}
        end

      for number <- 1..count, do: send(self(), {:waits, number})

      cost =
        reductions(fn -> for {monitor, pid} <- monitors, do: Relay.demonitor(monitor, pid) end)

      for number <- 1..count, do: assert_received({:waits, ^number})
      cost
    end)
  end
end
