defmodule NetlinkPort.ShownTest do
  # The output of a crash report and of :sys.get_status/1 is small, however large the state is.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Connection, Monitor, Redaction}

  # An attribute would be copied into the code wherever it is used, and compiled there: more than 1 GB of memory.
  defp large, do: :binary.copy(<<7>>, 1_000_000)

  # Printed as in shells and reports, but without their limits.
  defp size(term), do: byte_size(inspect(term, limit: :infinity, printable_limit: :infinity))

  test "a large term is cut to its beginning" do
    large = large()
    assert Redaction.brief(large) == {:cut, 1_000_000, :binary.copy(<<7>>, 16)}
    assert Redaction.brief("short") == "short"

    assert Redaction.brief({1, :two, 3.0, [4 | 5], %{six: "6"}}) ==
             {1, :two, 3.0, [4 | 5], %{six: "6"}}

    for term <- [
          {make_ref(), {:data, large}},
          Enum.to_list(1..100_000),
          [[large | large], large | large],
          Map.new(1..10_000, &{&1, large}),
          List.to_tuple(Enum.to_list(1..10_000)),
          Enum.reduce(1..100_000, [], &[&1, &2]),
          Error.new(:request, :eintr, messages: List.duplicate(large, 100)),
          :queue.from_list(List.duplicate(large, 100))
        ] do
      assert size(Redaction.brief(term)) < 3_000
    end
  end

  test "a crash report shows no datagram, whatever the last message was" do
    server = start_server!()
    state = :sys.get_state(server)
    message = {state.helper.port, {:data, large()}}

    status = %{
      state: state,
      message: message,
      reason: {:oops, [large()]},
      log: [{:in, message}, {:in, message}]
    }

    shown = NetlinkPort.Server.format_status(status)
    assert size(shown) < 1_500
    assert {port, {:data, {:cut, 1_000_000, _beginning}}} = shown.message
    assert port == state.helper.port
    assert Map.keys(shown) == Map.keys(status)
  end

  describe ":sys.get_status/1 is short, and shows the main fields, of" do
    defp status(pid) do
      status = :sys.get_status(pid)
      assert size(status) < 4_000
      inspect(status, limit: :infinity, printable_limit: :infinity)
    end

    test "a server" do
      name = :"shown_#{System.unique_integer([:positive])}"
      server = start_server!(name: name)
      for _ <- 1..50, do: {:ok, _} = NetlinkPort.open(server, :route, active: false)
      status = status(server)

      for told <- ["name: #{inspect(name)}", "helper: #{os_pid(server)}", "restarts: 0"],
          do: assert(status =~ told)

      for told <- ["sockets: 50", "outgoing: 0", "capture: false"], do: assert(status =~ told)
    end

    @tag :root
    test "a monitor with many messages to send" do
      netns = netns!()
      server = start_server!()
      opts = [server: server, netns: {:name, netns}, groups: [1]]
      {:ok, monitor} = start_supervised({Monitor, opts})

      slow =
        spawn(fn ->
          Monitor.subscribe(monitor, max_queue: 10)
          Process.sleep(:infinity)
        end)

      on_exit(fn -> Process.exit(slow, :kill) end)
      eventually!(fn -> status(monitor) =~ "subscribers: 1" end)
      # It misses what comes before it has joined.
      eventually!(fn -> status(monitor) =~ "place: {:joined" end)

      ip_batch!(netns, for(n <- 1..20, do: "link add br#{n} type bridge"))
      eventually!(fn -> status(monitor) =~ ~r/(events_kept: [1-9]|owed: 1)/ end)
      status = status(monitor)

      for told <- ["place: {:joined, #NetlinkPort.Socket<", netns, "phases:"],
          do: assert(status =~ told)
    end

    test "a connection, with and without a socket" do
      {:ok, connection} = start_supervised({Connection, server: :nowhere, protocol: :route})
      status = status(connection)

      for told <- ["server: :nowhere", "socket: nil", "no such server", "calls: 0"],
          do: assert(status =~ told)
    end

    test "a capture" do
      server = start_server!()
      path = tmp_path!("trace.pcapng")
      {:ok, capture} = NetlinkPort.capture(server, path)
      assert status(server) =~ "capture: true"
      status = status(capture)
      for told <- [path, "datagrams: 0", "max_bytes: 67108864"], do: assert(status =~ told)
    end
  end
end
