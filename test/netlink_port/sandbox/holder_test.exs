defmodule NetlinkPort.Sandbox.HolderTest do
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Sandbox.Holder

  # A command to a program without a standard input ends the port with `:epipe`, without an exit status. The
  # same happens with a killed holder, until OTP has noticed its end.
  test "a holder that was killed a moment before ends at once" do
    test = self()

    spawn_link(fn ->
      Process.flag(:trap_exit, true)
      {:ok, port} = Holder.spawn_program("sh", ["-c", "exec <&-; echo ready; exec sleep 600"])
      {:ok, {_port, os_pid} = holder} = Holder.await(port)

      # OTP's program that forks holds the pipe a moment longer, and forks one program after the other.
      {"", 0} = System.cmd("true", [])
      send(test, {:started, os_pid})
      send(test, {:stopped, Holder.stop(holder)})
    end)

    assert_receive {:started, os_pid}, within(5_000)
    on_exit(fn -> Holder.signal("KILL", os_pid) end)
    assert_receive {:stopped, :ok}, within(5_000)
  end
end
