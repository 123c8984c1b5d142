defmodule NetlinkPort.TelemetryTest do
  # Every event of the catalogue, if a module :telemetry is loaded, and no event without it. The library of that
  # name is no dependency: this test makes a module with its name, which passes the events on.
  use NetlinkPort.Case, async: false

  alias NetlinkPort.{Connection, Monitor, Telemetry}

  @moduletag :root
  @recorder :telemetry_test_recorder

  defp load(body) do
    {:module, _name, _code, _term} = Module.create(:telemetry, body, Macro.Env.location(__ENV__))

    on_exit(&unload/0)
  end

  defp unload do
    :code.purge(:telemetry)
    :code.delete(:telemetry)
    :code.purge(:telemetry)
  end

  defp load_recorder do
    Process.register(self(), @recorder)

    load(
      quote do
        def execute(event, measurements, metadata) do
          send(unquote(@recorder), {event, measurements, metadata})
        end
      end
    )
  end

  # The pattern of an event. Only the name of the library is given once.
  defmacrop told(event, measurements, metadata) do
    quote do
      assert_receive {[:netlink_port | unquote(event)], unquote(measurements) = measurements,
                      unquote(metadata)}

      measurements
    end
  end

  test "without :telemetry no event is sent, and nothing fails" do
    refute function_exported?(:telemetry, :execute, 3)
    assert Telemetry.execute([:helper, :busy], %{count: 1}, %{}) == :ok
    assert Telemetry.timed(fn -> :result end, fn _ -> raise "not asked" end) == :result
  end

  test "a handler that raises affects no caller" do
    load(quote(do: def(execute(_event, _measurements, _metadata), do: raise("broken"))))
    server = start_server!()
    {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    assert {:ok, [_lo]} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)
    assert NetlinkPort.close(socket) == :ok
    assert GenServer.stop(server) == :ok
  end

  describe "there are events for" do
    setup do: load_recorder()

    test "a helper that starts, ends, or cannot start" do
      name = :"telemetry_#{System.unique_integer([:positive])}"
      server = start_server!(name: name)

      told([:helper, :start], %{duration: duration}, %{
        server: ^server,
        name: ^name,
        os_pid: os_pid,
        executable: _,
        restarts: 0
      })

      assert duration > 0
      {:ok, _socket} = NetlinkPort.open(name, :route, [])
      signal!(os_pid, :KILL)
      reason = {:helper_exit, 137}

      told([:helper, :stop], %{uptime: uptime, sockets: 1}, %{
        server: ^server,
        name: ^name,
        os_pid: ^os_pid,
        reason: ^reason
      })

      assert uptime > 0
      GenServer.stop(start_server!())
      told([:helper, :stop], %{sockets: 0}, %{reason: :normal, name: nil})
      Process.flag(:trap_exit, true)
      {:error, error} = NetlinkPort.start_link(name: nil, executable: "/nowhere")
      told([:helper, :failure], %{duration: _}, %{error: ^error, name: nil})
    end

    test "sockets that open, close, or cannot be opened" do
      netns = netns!()
      server = start_server!()
      opts = [netns: {:name, netns}, close_on: :namespace_gone]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      place = {:name, netns}

      told([:open, :stop], %{duration: duration}, %{
        server: ^server,
        protocol: :route,
        netns: ^place,
        socket: ^socket
      })

      assert duration > 0
      {:error, error} = NetlinkPort.open(server, :route, netns: {:name, "nowhere"})

      told([:open, :exception], %{duration: _}, %{
        server: ^server,
        kind: :error,
        reason: ^error,
        netns: {:name, "nowhere"}
      })

      ip!(["netns", "del", netns])
      test = self()

      told([:socket, :close], %{count: 1}, %{
        server: ^server,
        socket: ^socket,
        owner: ^test,
        reason: :namespace_gone
      })

      {:ok, socket} = NetlinkPort.open(server, :route, [])
      NetlinkPort.close(socket)
      told([:socket, :close], _, %{socket: ^socket, reason: :closed})
      owner = idle_process()
      {:ok, socket} = NetlinkPort.open(server, :route, owner: owner)
      send(owner, :stop)
      told([:socket, :close], _, %{socket: ^socket, reason: :owner_down})
    end

    test "pins that begin, end, or fail" do
      server = start_server!()
      test = self()
      {:ok, pin} = NetlinkPort.pin(server, :host)
      told([:pin, :stop], %{duration: duration}, %{server: ^server, netns: :host, pin: ^pin})
      assert duration > 0
      {:error, error} = NetlinkPort.pin(server, {:name, "nowhere"})

      told([:pin, :exception], %{duration: _}, %{
        server: ^server,
        kind: :error,
        reason: ^error,
        netns: {:name, "nowhere"}
      })

      NetlinkPort.unpin(pin)

      told([:pin, :close], %{count: 1}, %{
        server: ^server,
        pin: ^pin,
        owner: ^test,
        reason: :unpinned
      })

      owner = idle_process()
      {:ok, pin} = NetlinkPort.pin(server, :host, owner: owner)
      send(owner, :stop)
      told([:pin, :close], _, %{pin: ^pin, reason: :owner_down})
      {:ok, _pin} = NetlinkPort.pin(server, :host)
      GenServer.stop(server)
      told([:helper, :stop], %{sockets: 0, pins: 1}, %{server: ^server})
    end

    test "overruns and errors of sockets" do
      netns = netns!()
      server = start_server!()
      opts = [netns: {:name, netns}, groups: [5], active: false, window: 1, rcvbuf: 4_096]
      {:ok, socket} = NetlinkPort.open(server, :route, opts)
      ip_batch!(netns, for(n <- 1..100, do: "addr add 10.0.0.#{n}/32 dev lo"))
      NetlinkPort.setopts(socket, active: true)
      assert_receive {:netlink_overrun, ^socket, dropped}
      told([:socket, :overrun], %{dropped: ^dropped}, %{socket: ^socket, server: ^server})

      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, sndbuf: 4_608)
      :ok = NetlinkPort.send(socket, :binary.copy(<<0>>, 65_536))
      assert_receive {:netlink_error, ^socket, error}
      told([:socket, :error], %{count: 1}, %{socket: ^socket, error: ^error})
    end

    test "requests, batches and dumps, of sockets and of connections" do
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, active: false)
      {:ok, connection} = start_supervised({Connection, server: server, protocol: :route})
      link = <<0::32, 1::32-native, 0::64>>

      for {module, place} <- [
            {NetlinkPort, %{socket: socket}},
            {Connection, %{connection: connection}}
          ] do
        [{_key, on}] = Map.to_list(place)
        {:ok, [_lo]} = module.request(on, 18, link)
        told([:request, :stop], %{messages: 1, duration: _}, metadata)
        assert metadata == Map.merge(place, %{kind: :request, type: 18, outcome: :ok})
        {:ok, links} = module.dump(on, 18, <<0::128>>)
        count = length(links)
        told([:request, :stop], %{messages: ^count}, %{kind: :dump, type: 18, outcome: :ok})
        {:ok, [_, _]} = module.batch(on, [{18, [], link}, {18, [], link}])
        told([:request, :stop], %{messages: 2}, %{kind: :batch, type: nil, outcome: :ok})
        {:error, error} = module.request(on, 18, <<0::32, 999_999::32-native, 0::64>>)
        told([:request, :stop], %{messages: 0}, %{kind: :request, outcome: ^error})
      end
    end

    @tag :root
    @tag :warnings
    test "the kernel's warnings with a success" do
      netns = netns!()
      server = start_server!()
      {:ok, socket} = NetlinkPort.open(server, :route, netns: {:name, netns}, active: false)
      exec = ["netns", "exec", netns]
      tc = ~w(tc qdisc add dev lo root handle 1: htb)

      # On a kernel with sch_htb: a class of 10 Gbit, whose quantum the kernel finds big.
      with {_output, 0} <- as_root("ip", exec ++ tc) do
        rate = <<0, 1, 0::48, 1_250_000_000::32-native>>
        opt = <<rate::binary, rate::binary, 1000::32-native, 1000::32-native, 0::96>>

        attrs = NetlinkPort.Attr.encode([{1, "htb" <> <<0>>}, {2, {:plain, [{1, opt}]}}])

        class = <<0::32, 1::32-native, 0x10001::32-native, 0x10000::32-native, 0::32>>
        {:ok, []} = NetlinkPort.request(socket, 40, [class | attrs], flags: [:create, :excl])

        told([:request, :warning], %{count: 1}, %{
          kind: :request,
          type: 40,
          socket: ^socket,
          ext_ack: %{message: message}
        })

        assert message =~ "is big"
      end
    end

    test "monitors and connections that go down and come back" do
      name = :"telemetry_#{System.unique_integer([:positive])}"
      {:ok, connection} = start_supervised({Connection, server: name, protocol: :route})

      told([:connection, :down], %{calls: 0}, %{connection: ^connection, error: %{reason: :esrch}})

      {:ok, monitor} = start_supervised({Monitor, server: name, groups: [1]})
      told([:monitor, :down], %{count: 1}, %{monitor: ^monitor, reason: {:error, _}})
      {:ok, ^monitor} = Monitor.subscribe(monitor)
      server = start_server!(name: name)
      told([:connection, :up], %{count: 1}, %{connection: ^connection, socket: %Socket{}})
      told([:monitor, :up], %{count: 1}, %{monitor: ^monitor, socket: %Socket{}})
      test = self()

      told([:monitor, :resync], %{count: 1}, %{
        monitor: ^monitor,
        subscriber: ^test,
        reason: :subscribed
      })

      GenServer.stop(server)

      told([:connection, :down], %{calls: 0}, %{connection: ^connection, error: %{reason: :epipe}})

      told([:monitor, :down], %{count: 1}, %{monitor: ^monitor, reason: {:closed, :normal}})
      # They check repeatedly, and the event comes once.
      eventually!(fn -> :sys.get_state(monitor).open_wait > 80 end)
      eventually!(fn -> :sys.get_state(connection).backoff > 80 end)
      refute_received {[:netlink_port, :connection, :down], _, _}
      refute_received {[:netlink_port, :monitor, :down], _, _}
    end

    test "captures" do
      server = start_server!()
      path = tmp_path!("trace.pcapng")
      {:ok, capture} = NetlinkPort.capture(server, path)
      told([:capture, :start], %{count: 1}, %{capture: ^capture, server: ^server, path: ^path})
      {:ok, counts} = NetlinkPort.stop_capture(capture)

      assert told([:capture, :stop], _, %{capture: ^capture, server: ^server, reason: :stopped}) ==
               counts
    end

    test "a helper that does not read its input, once" do
      server = start_server!()
      helper = os_pid(server)
      {:ok, socket} = NetlinkPort.open(server, :route, [])
      signal!(helper, :STOP)
      datagram = :binary.copy(<<0>>, 1_000_000)

      # For another node the server itself writes and keeps them.
      for _ <- 1..20,
          do: {:ok, nil} = GenServer.call(server, {:send, socket.handle, datagram, false})

      told([:helper, :busy], %{count: 1}, %{server: ^server})
      refute_received {[:netlink_port, :helper, :busy], _, _}
      assert %{outgoing: outgoing} = Map.new(:sys.get_state(server) |> shown())
      assert outgoing > 0
      signal!(helper, :CONT)
    end
  end

  defp shown(state), do: NetlinkPort.Server.format_status(%{state: state}).state

  test "the catalogue lists every event, and no other" do
    sources = Path.expand("../../elixir/**/*.ex", __DIR__) |> Path.wildcard()
    catalogue = Enum.find(sources, &String.ends_with?(&1, "netlink_port/telemetry.ex"))
    row = ~r/^  \| `\[:netlink_port, :(\w+), :(\w+)\]` \|/m
    documented = for [_all | name] <- Regex.scan(row, File.read!(catalogue)), do: name

    # Calls of execute/3, and the events that timed/2 reports. Those of one object share a function.
    told =
      for source <- sources,
          text = File.read!(source),
          [_all | name] <- Regex.scan(~r/(?:execute\(|\{)\[:(\w+), :(\w+)\],/, text),
          do: name

    shared =
      for {file, object, pattern} <- [
            {"server/sockets.ex", "socket", ~r/emit\(\w+, :(\w+),/},
            {"capture/capture.ex", "capture", ~r/told\(state, :(\w+),/}
          ],
          [_all, event] <-
            Regex.scan(pattern, File.read!(Path.join(Path.dirname(catalogue), file))),
          do: [object, event]

    assert Enum.sort(documented) == Enum.sort(Enum.uniq(told ++ shared))
  end
end
