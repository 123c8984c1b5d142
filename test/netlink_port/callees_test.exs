defmodule NetlinkPort.CalleesTest do
  # Errors of calls name what was called, and say why a socket was closed.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Connection, Monitor}

  @getlink 18
  # Classic BPF that drops all datagrams: `ret #0`.
  @nothing [{6, 0, 0, 0}]

  defp connection!(server, opts \\ []) do
    spec = {Connection, [server: server, protocol: :route] ++ opts}
    start_supervised!(Supervisor.child_spec(spec, id: make_ref(), restart: :temporary))
  end

  defp monitor!(server),
    do: start_supervised!({Monitor, server: server, protocol: :route, groups: [1]})

  defp calls(process) do
    [
      server: fn -> NetlinkPort.open(process, :route, []) end,
      server: fn -> NetlinkPort.pin(process, :host) end,
      server: fn -> NetlinkPort.info(process) end,
      server: fn -> NetlinkPort.stats(process) end,
      server: fn -> NetlinkPort.socket(process, 7) end,
      server: fn -> NetlinkPort.capture(process, tmp_path!("callee.pcapng")) end,
      connection: fn -> Connection.request(process, @getlink) end,
      connection: fn -> Connection.dump(process, @getlink) end,
      connection: fn -> Connection.batch(process, [{@getlink, [], ""}]) end,
      monitor: fn -> Monitor.subscribe(process) end,
      monitor: fn -> Monitor.unsubscribe(process) end
    ]
  end

  test "the error of a call names the server, connection or monitor that is not running" do
    for {kind, call} <- calls(:no_such_process) do
      assert {:error, %Error{stage: :thread, reason: :esrch} = error} = call.()
      message = Exception.message(error)
      assert message =~ "no such #{kind} is running, :no_such_process,"

      module =
        %{server: "NetlinkPort", connection: "NetlinkPort.Connection"}[kind] ||
          "NetlinkPort.Monitor"

      assert message =~ "{#{module}, name: :no_such_process"
      assert message =~ if(kind == :server, do: ~r/^helper: /, else: ~r/^#{kind}: /)
    end
  end

  test "the error of a call names the pid of a server, connection or monitor that has ended" do
    {pid, monitor} = spawn_monitor(fn -> :ok end)
    assert_receive {:DOWN, ^monitor, :process, ^pid, _reason}

    for {kind, call} <- calls(pid) do
      assert {:error, %Error{stage: :thread, reason: :esrch} = error} = call.()
      assert Exception.message(error) =~ "the #{kind} #{inspect(pid)} has ended"
    end
  end

  test "a name in a registry that is not running is ESRCH, and starts monitors and connections" do
    name = {:via, Registry, {__MODULE__.Nowhere, :server}}

    for {_kind, call} <- calls(name),
        do: assert({:error, %Error{stage: :thread, reason: :esrch}} = call.())

    connection = connection!(name)
    assert {:error, %Error{reason: :esrch} = error} = Connection.request(connection, @getlink)
    assert Exception.message(error) =~ inspect(name)
    monitor = monitor!(name)
    {:ok, ^monitor} = Monitor.subscribe(monitor)
    assert_receive {:netlink_down, ^monitor, {:error, %Error{reason: :esrch}}}
    start_supervised!({Registry, keys: :unique, name: __MODULE__.Nowhere})
    start_server!(name: name)
    assert_receive {:netlink_resync, ^monitor, :subscribed}, 20_000

    eventually!(fn ->
      match?(
        {:ok, [_lo]},
        Connection.request(connection, @getlink, <<0::32, 1::32-native, 0::64>>)
      )
    end)
  end

  test "a call of another kind of process of this library is EINVAL, which says so; all go on" do
    server = start_server!()
    {:ok, capture} = NetlinkPort.capture(server, tmp_path!("other.pcapng"))
    processes = [server: server, connection: connection!(server), monitor: monitor!(server)]
    processes = [{:capture, capture} | processes]

    for {actual, process} <- processes,
        {kind, call} <- [{:capture, fn -> NetlinkPort.stop_capture(process) end} | calls(process)],
        kind != actual do
      assert {:error, %Error{stage: :protocol, reason: :einval} = error} = call.()
      assert Exception.message(error) =~ "#{inspect(process)} is no #{kind} of this library"
    end

    for {_kind, process} <- processes, do: assert(Process.alive?(process))
  end

  test "the error of a connection that ends during a call is about the connection" do
    connection = connection!(start_server!(), filter: @nothing)
    asking = spawn_reporting(fn -> Connection.request(connection, @getlink, <<0::128>>) end)
    eventually!(fn -> map_size(:sys.get_state(connection).calls.calls) == 1 end)
    Process.exit(connection, :kill)
    assert_receive {:result, ^asking, {:error, error}}
    assert {error.stage, error.reason} == {:thread, :epipe}
    assert Exception.message(error) =~ ~r/^connection: EPIPE: it has ended/
  end

  test "the error of a pin whose helper has ended is about the pin" do
    server = start_server!()
    {:ok, pin} = NetlinkPort.pin(server, :host)
    GenServer.stop(server)
    assert {:error, %Error{stage: :thread, reason: :epipe} = error} = NetlinkPort.info(pin)

    assert Exception.message(error) ==
             "#{inspect(pin)}: EPIPE: the helper that held it has ended; pin the namespace again"
  end

  describe "a namespace that is gone during a request" do
    @describetag :root

    test "is EBADF on a socket of either mode, and the error does not blame the helper" do
      server = start_server!()

      for active <- [true, false] do
        netns = netns!()
        opts = [netns: {:name, netns}, close_on: :namespace_gone, filter: @nothing]

        asking =
          spawn_reporting(fn ->
            {:ok, socket} = NetlinkPort.open(server, :route, [active: active] ++ opts)
            NetlinkPort.request(socket, @getlink, <<0::128>>, timeout: 60_000)
          end)

        eventually!(fn -> match?({:ok, %{sockets: [%{sent: 1}]}}, NetlinkPort.stats(server)) end)
        ip!(["netns", "del", netns])
        assert_receive {:result, ^asking, {:error, error}}, 20_000
        assert {error.stage, error.reason} == {:info, :ebadf}
        refute Exception.message(error) =~ "helper"
      end
    end

    test "is EPIPE on a connection, which says why" do
      netns = netns!()
      opts = [netns: {:name, netns}, close_on: :namespace_gone, filter: @nothing]
      connection = connection!(start_server!(), opts)
      ask = fn -> Connection.request(connection, @getlink, <<0::128>>, timeout: 60_000) end
      asking = spawn_reporting(ask)
      eventually!(fn -> map_size(:sys.get_state(connection).calls.calls) == 1 end)
      ip!(["netns", "del", netns])
      assert_receive {:result, ^asking, {:error, error}}, 20_000
      assert {error.stage, error.reason} == {:thread, :epipe}

      assert Exception.message(error) ==
               "connection: EPIPE: its socket was closed, since its namespace is gone; " <>
                 "the connection opens another: call again"
    end
  end
end
