defmodule NetlinkPort.Server.WaitersTest do
  # What the server does for one of thousands of processes that wait costs the same however many there are.
  use NetlinkPort.Case, async: true

  import NetlinkPort.Cost

  alias NetlinkPort.Server.Delivery

  setup do
    # A server that spins for an answer would count as one that works.
    %{server: start_server!(spin: 0)}
  end

  defp passive!(server) do
    {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    socket
  end

  defp waiting(server, socket) do
    entry = :sys.get_state(server, within(5_000)).sockets.entries[socket.handle]
    length(Delivery.waiters(entry.delivery))
  end

  # Processes that run `fun`, and are killed at the end of the test.
  defp processes!(count, fun) do
    pids = for _ <- 1..count, do: spawn(fun)
    on_exit(fn -> kill!(pids) end)
    pids
  end

  defp kill!(pids), do: Enum.each(pids, &Process.exit(&1, :kill))

  # All news of their ends is in the mailbox before the process takes the first.
  defp kill_together!(pids, pid) do
    :ok = :sys.suspend(pid, within(5_000))
    kill!(pids)
    monitors = for pid <- pids, do: Process.monitor(pid)
    for monitor <- monitors, do: assert_receive({:DOWN, ^monitor, _, _, _}, within(5_000))

    eventually!(fn ->
      Process.info(pid, :message_queue_len) >= {:message_queue_len, length(pids)}
    end)

    :ok = :sys.resume(pid, within(5_000))
  end

  describe "costs the server in proportion to their number:" do
    test "processes that wait in recv/2, and are killed", %{server: server} do
      assert_in_proportion(fn count ->
        socket = passive!(server)
        pids = processes!(count, fn -> NetlinkPort.recv(socket, :infinity) end)
        eventually!(fn -> waiting(server, socket) == count end)

        reductions(server, fn ->
          kill_together!(pids, server)
          eventually!(fn -> waiting(server, socket) == 0 end)
        end)
      end)
    end

    test "processes that wait in recv/2 until their timeout", %{server: server} do
      test = self()

      assert_in_proportion(fn count ->
        socket = passive!(server)
        # The first error of a server costs its callers more than later ones.
        assert {:error, %Error{reason: :etimedout}} = NetlinkPort.recv(socket, 0)

        reductions(server, fn ->
          processes!(count, fn -> send(test, {:received, NetlinkPort.recv(socket, 500)}) end)

          for _ <- 1..count do
            assert_receive {:received, {:error, %Error{reason: :etimedout}}}, within(60_000)
          end
        end)
      end)
    end
  end
end
