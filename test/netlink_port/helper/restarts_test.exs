defmodule NetlinkPort.RestartsTest do
  # The number of restarts of a server by its supervisor.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Helper.Restarts

  defp restarts(server) do
    {:ok, %{restarts: restarts}} = NetlinkPort.stats(server)
    restarts
  end

  defp kill!(server, whereis) do
    old = whereis.(server)
    signal!(os_pid(server), :KILL)
    eventually!(fn -> whereis.(server) not in [nil, old] end)
  end

  test "each named server counts its own restarts" do
    limits = [strategy: :one_for_one, max_restarts: 100]
    start = {Supervisor, :start_link, [[], limits]}
    supervisor = start_supervised!(%{id: :restarts, start: start, type: :supervisor})
    names = for n <- 1..2, do: :"restarts_#{System.unique_integer([:positive])}_#{n}"

    for name <- names do
      {:ok, _pid} =
        Supervisor.start_child(supervisor, %{
          id: name,
          start: {NetlinkPort, :start_link, [[name: name]]}
        })
    end

    [one, two] = names
    assert {restarts(one), restarts(two)} == {0, 0}
    for _ <- 1..3, do: kill!(one, &Process.whereis/1)
    kill!(two, &Process.whereis/1)
    assert {restarts(one), restarts(two)} == {3, 1}
  end

  test "each server of a PartitionSupervisor counts its own restarts" do
    name = :"partitions_#{System.unique_integer([:positive])}"

    start_supervised!(
      {PartitionSupervisor,
       child_spec: {NetlinkPort, name: nil}, name: name, partitions: 3, max_restarts: 100}
    )

    server = fn key -> {:via, PartitionSupervisor, {name, key}} end
    for _ <- 1..4, do: kill!(server.(1), &GenServer.whereis/1)
    assert Enum.map(0..2, &restarts(server.(&1))) == [0, 4, 0]
  end

  test "a start that fails since the name is taken does not count" do
    name = :"restarts_#{System.unique_integer([:positive])}"
    {:ok, pid} = NetlinkPort.start_link(name: name)
    assert {:error, {:already_started, ^pid}} = NetlinkPort.start_link(name: name)
    assert restarts(name) == 0
    GenServer.stop(pid)
    {:ok, _pid} = NetlinkPort.start_link(name: name)
    assert restarts(name) == 1
  end

  describe "the list of starts in the supervisor" do
    defp start(name, outcome) do
      test = self()

      Restarts.start(name, fn start ->
        send(test, start)
        outcome
      end)

      receive do: (start -> start)
    end

    defp ended do
      {pid, monitor} = spawn_monitor(fn -> :ok end)
      receive do: ({:DOWN, ^monitor, _, _, _} -> pid)
    end

    defp slots, do: length(Process.get(Restarts, []))

    test "does not grow with servers that come and go, named or not" do
      for n <- 1..500 do
        start(nil, {:ok, ended()})
        start({:global, n}, {:ok, ended()})
      end

      assert slots() <= 33
    end

    test "has all servers that run, and their successors count on" do
      pids = for n <- 1..100, pid = idle_process(), do: {n, pid, start({:global, n}, {:ok, pid})}
      assert slots() == 100
      assert Enum.all?(pids, fn {_n, _pid, start} -> start.restarts == 0 end)
      {_n, pid, _start} = hd(pids)
      monitor = Process.monitor(pid)
      send(pid, :stop)
      assert_receive {:DOWN, ^monitor, _, _, _}
      assert %{restarts: 1} = start({:global, 1}, {:ok, ended()})
      assert %{restarts: 2} = start({:global, 1}, {:ok, ended()})
      assert %{restarts: 0} = start({:global, 101}, {:ok, ended()})
    end

    test "limits the log lines of repeated starts, failed ones too" do
      logs = for _ <- 1..7, do: start(:loop, {:error, :enoent}).log
      assert logs == [:more, :more, :more, :more, :last, :none, :none]
      assert start(:another, {:ok, ended()}).log == :more
    end
  end
end
