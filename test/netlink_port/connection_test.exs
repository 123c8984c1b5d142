defmodule NetlinkPort.ConnectionTest do
  # Many callers on one socket, against the real kernel. A stopped helper holds all requests in flight until it is
  # continued or killed.
  use NetlinkPort.Case, async: true

  doctest NetlinkPort.Connection

  alias NetlinkPort.{Attr, Connection, Message}

  @moduletag :root

  @newlink 16
  @getlink 18
  @newaddr 20
  @getaddr 22
  @addresses 4_000
  @enodev 19

  setup do
    netns = netns!()
    name = :"server-#{netns}"
    server = start_server!(name: name)
    %{netns: netns, name: name, server: server}
  end

  defp connect!(%{netns: netns, name: name}, opts \\ []) do
    defaults = [server: name, protocol: :route, netns: {:name, netns}]
    spec = {Connection, Keyword.merge(defaults, opts)}
    start_supervised!(Supervisor.child_spec(spec, id: make_ref(), restart: :temporary))
  end

  defp addresses!(netns) do
    lines = for n <- 1..@addresses, do: "addr add 10.0.#{div(n, 256)}.#{rem(n, 256)}/32 dev lo"

    ip_batch!(netns, lines)
  end

  defp link(index), do: <<0::32, index::32-native, 0::64>>

  defp getlink(connection, index, opts \\ []),
    do: Connection.request(connection, @getlink, link(index), opts)

  defp getaddrs(connection, opts \\ []),
    do: Connection.dump(connection, @getaddr, <<2, 0::56>>, opts)

  # RTM_NEWLINK of a link that does not exist, without NLM_F_CREATE: refused with ENODEV.
  defp refused(index), do: {@newlink, [], link(index)}

  defp index(%Message{type: @newlink, payload: <<_::32, index::32-native, _::binary>>}), do: index

  # Waits until the connection answers.
  defp eventually_ok!(connection) do
    eventually!(fn -> match?({:ok, [_lo]}, getlink(connection, 1)) end, 15_000)
  end

  defp state(connection), do: :sys.get_state(connection)
  defp calls(connection), do: state(connection).calls.calls

  defp in_flight!(connection, count),
    do: eventually!(fn -> map_size(calls(connection)) == count end)

  defp stopped!(%{server: server}) do
    os_pid = os_pid(server)
    signal!(os_pid, :STOP)
    on_exit(fn -> as_root("kill", ["-CONT", "#{os_pid}"]) end)
    os_pid
  end

  defp whole?({:ok, messages}) do
    Enum.count(messages, &(&1.type == @newaddr)) == @addresses + 1
  end

  describe "the callers of a connection" do
    test "get their own answers, a hundred at once", %{netns: netns} = context do
      ip_batch!(
        netns,
        for(n <- 2..100, do: "link add x#{n} index #{n} type vxlan id #{n} dstport 0")
      )

      connection = connect!(context)

      callers =
        for n <- 1..100 do
          spawn_reporting(fn ->
            for _ <- 1..20 do
              {:ok, [link]} = getlink(connection, n)
              {:error, none} = getlink(connection, 1_000 + n)

              {:ok, both} =
                Connection.batch(connection, [{@getlink, [], link(n)}, refused(2_000 + n)])

              [{:ok, [again]}, {:error, refused}] = both
              {index(link), none.errno, index(again), refused.errno}
            end
          end)
        end

      for {results, n} <- Enum.with_index(results(callers), 1) do
        assert Enum.uniq(results) == [{n, @enodev, n, @enodev}]
      end

      assert %{calls: calls, seqs: seqs, room: 16} = state(connection).calls
      assert {calls, seqs} == {%{}, %{}}
    end

    test "wait for other dumps with a dump, and not with a request", %{netns: netns} = context do
      addresses!(netns)
      connection = connect!(context)
      helper = stopped!(context)
      dumps = for _ <- 1..10, do: spawn_reporting(fn -> getaddrs(connection) end)
      in_flight!(connection, 10)
      request = spawn_reporting(fn -> getlink(connection, 1) end)
      in_flight!(connection, 11)
      signal!(helper, :CONT)

      order =
        for _ <- 1..11 do
          assert_receive {:result, pid, result}, within(15_000)
          if pid != request, do: assert(whole?(result))
          pid
        end

      assert Enum.sort(order) == Enum.sort([request | dumps])
      assert Enum.find_index(order, &(&1 == request)) <= 1
    end

    test "can be killed while their dump is sent, or waits", %{netns: netns} = context do
      addresses!(netns)
      connection = connect!(context)
      helper = stopped!(context)
      dump = spawn_reporting(fn -> getaddrs(connection) end)
      in_flight!(connection, 1)
      waiting = spawn_reporting(fn -> getaddrs(connection) end)
      in_flight!(connection, 2)
      last = spawn_reporting(fn -> getaddrs(connection) end)
      in_flight!(connection, 3)
      for pid <- [dump, waiting], do: Process.exit(pid, :kill)
      # The dump that the kernel is working on stays, and is read to its end.
      in_flight!(connection, 2)
      signal!(helper, :CONT)
      assert [outcome] = results([last])
      assert whole?(outcome)
      assert calls(connection) == %{}
    end

    test "raise for wrong arguments", context do
      connection = connect!(context)
      assert_raise ArgumentError, fn -> Connection.request(connection, 70_000) end
      assert_raise ArgumentError, fn -> Connection.request(connection, 18, [:no_iodata]) end
      assert_raise ArgumentError, fn -> Connection.batch(connection, [{18, [], :no_iodata}]) end
      assert_raise ArgumentError, fn -> Connection.dump(connection, 18, "", ack: false) end
      assert_raise ArgumentError, fn -> Connection.start_link(protocol: :route, groups: [1]) end
      assert_raise ArgumentError, fn -> Connection.start_link(server: context.name) end
      assert {:ok, []} = Connection.batch(connection, [])
      assert {:ok, [_lo]} = getlink(connection, 1)
    end

    test "are served after unexpected messages", context do
      connection = connect!(context)
      {:ok, other} = NetlinkPort.open(context.name, :route, active: false)
      error = Error.new(:recv, :enobufs)

      for message <- [
            :open,
            {:deadline, make_ref()},
            {:netlink, other, "short"},
            {:netlink_closed, other, :stuck},
            {:netlink_error, other, error},
            {:DOWN, make_ref(), :process, self(), :killed},
            "anything"
          ] do
        send(connection, message)
      end

      GenServer.cast(connection, :anything)
      assert {:error, %Error{reason: :einval}} = GenServer.call(connection, :anything)
      send(connection, {:netlink, state(connection).socket, "short"})
      assert {:ok, [_lo]} = getlink(connection, 1)
      assert Process.alive?(connection)
    end

    test "get ESRCH without the connection" do
      assert {:error, error} = getlink(:no_such_connection, 1)
      assert {error.stage, error.reason} == {:thread, :esrch}
    end
  end

  describe "deadlines" do
    test "are those of each caller; late answers reach nobody", %{netns: netns} = context do
      addresses!(netns)
      connection = connect!(context)
      helper = stopped!(context)
      patient = spawn_reporting(fn -> getlink(connection, 1, timeout: :infinity) end)

      callers = [
        spawn_reporting(fn -> getlink(connection, 1, timeout: 50) end),
        spawn_reporting(fn -> getaddrs(connection, timeout: 50) end),
        spawn_reporting(fn -> getaddrs(connection, timeout: 50) end),
        spawn_reporting(fn -> Connection.batch(connection, [refused(9)], timeout: 50) end)
      ]

      for {:error, error} <- results(callers) do
        assert {error.stage, error.reason} == {:request, :etimedout}
      end

      refute_received {:result, ^patient, _early}
      signal!(helper, :CONT)
      assert [{:ok, [_lo]}] = results([patient])
      assert connection |> getaddrs() |> whole?()
      assert calls(connection) == %{}
    end

    test "bound a dump by a total_timeout: shorter than its timeout:, sent or not",
         context do
      connection = connect!(context)
      stopped!(context)
      opts = [timeout: 60_000, total_timeout: 100]
      dumps = for _ <- 1..2, do: spawn_reporting(fn -> getaddrs(connection, opts) end)

      for {:error, error} <- results(dumps) do
        assert {error.stage, error.reason} == {:request, :etimedout}
        assert Exception.message(error) =~ "total_timeout: 100 ms"
      end
    end

    test "close the socket if an abandoned dump does not go on", context do
      connection = connect!(context)
      helper = stopped!(context)
      given_up = spawn_reporting(fn -> getaddrs(connection, timeout: :infinity) end)
      in_flight!(connection, 1)
      Process.exit(given_up, :kill)
      socket = state(connection).socket
      # Five seconds for the dump, and five for the requests beside it.
      assert {:error, error} = getlink(connection, 1, timeout: 60_000)
      assert {error.stage, error.reason} == {:request, :etimedout}
      signal!(helper, :CONT)
      eventually_ok!(connection)
      assert state(connection).socket != socket
      assert {:ok, [_address]} = getaddrs(connection)
    end
  end

  describe "losses and errors:" do
    # The kernel begins the dump. Its first datagram takes all the room, and the kernel finds none for its answers to
    # the batch.
    test "requests in flight get ENOBUFS, dumps are repeated", %{netns: netns} = context do
      addresses!(netns)
      connection = connect!(context, rcvbuf: 1)
      helper = stopped!(context)
      dump = spawn_reporting(fn -> getaddrs(connection) end)
      in_flight!(connection, 1)
      waiting = spawn_reporting(fn -> getaddrs(connection) end)
      in_flight!(connection, 2)

      request = spawn_reporting(fn -> getlink(connection, 1) end)
      in_flight!(connection, 3)
      refused = for n <- 1..10, do: refused(100 + n)
      batch = spawn_reporting(fn -> Connection.batch(connection, refused) end)
      in_flight!(connection, 4)
      # There is no room for these: they were not sent, and are not affected.
      held = for n <- 1..10, do: {@getlink, [], link(200 + n)}
      late = spawn_reporting(fn -> Connection.batch(connection, held) end)
      in_flight!(connection, 5)
      signal!(helper, :CONT)

      for {:error, error} <- results([batch, request]) do
        assert {error.stage, error.reason} == {:recv, :enobufs}
        assert error.dropped > 0
      end

      assert Enum.all?(results([dump, waiting]), &whole?/1)
      # Sent later, into a buffer that has room for at most one of its errors.
      assert [{:error, %Error{reason: :enobufs}}] = results([late])
      assert {:error, %Error{reason: :enodev}} = getlink(connection, 9)
      assert calls(connection) == %{}
    end

    test "a dump that a change interrupts is repeated; the mailbox is bounded", context do
      %{netns: netns} = context
      addresses!(netns)
      connection = connect!(context, max_queue: 4, window: 1)
      # The kernel makes no more of the dump than there is room for.
      :sys.suspend(connection)
      dump = spawn_reporting(fn -> getaddrs(connection) end)
      mailbox = fn -> connection |> Process.info(:message_queue_len) |> elem(1) end
      eventually!(fn -> mailbox.() == 1 end)
      :erlang.trace(connection, true, [:receive])
      # The dump must not end before this process has seen its first datagram.
      Process.flag(:priority, :high)
      :sys.resume(connection)
      assert_receive {:trace, ^connection, :receive, {:netlink, _socket, _datagram}}
      :sys.suspend(connection)
      Process.flag(:priority, :normal)
      :erlang.trace(connection, false, [:receive])
      ip!(["-n", netns, "addr", "add", "10.9.9.9/32", "dev", "lo"])
      assert mailbox.() <= 6
      :sys.resume(connection)
      assert [{:ok, messages}] = results([dump])
      assert length(messages) == @addresses + 2
      refute Enum.any?(messages, &Message.flag?(&1, :dump_intr))
    end

    test "a datagram that is too long is an error for its caller only", context do
      connection = connect!(context, sndbuf: 1)
      requests = for n <- 1..200, do: refused(n + 100)
      assert {:error, error} = Connection.batch(connection, requests)
      assert {error.stage, error.reason} == {:send, :emsgsize}
      assert {:ok, [_lo]} = getlink(connection, 1)
      connection = connect!(context)
      assert {:ok, outcomes} = Connection.batch(connection, requests)
      assert Enum.uniq(for {:error, error} <- outcomes, do: error.errno) == [@enodev]
      assert length(outcomes) == 200
    end
  end

  describe "the calls of a connection" do
    alias NetlinkPort.Connection.Calls
    alias NetlinkPort.Request.Exchange

    # A dump in progress, whose caller has given up.
    defp left do
      opts = %{flags: 0, max_bytes: :infinity}
      {:ok, exchange} = Exchange.new(:route, {:dump, @getlink, <<0::128>>, opts})
      calls = Calls.add(Calls.new(), :dump, exchange, {self(), :tag}, {:infinity, :infinity}, 9)
      {:dump, [_datagram], calls} = Calls.next(calls)
      [seq] = Map.keys(calls.seqs)
      {Calls.give_up(calls, :dump), seq}
    end

    test "read an abandoned dump up to a bound, beyond which the socket is unusable" do
      {calls, seq} = left()

      message = %Message{
        type: @newlink,
        flags: 2,
        seq: seq,
        payload: :binary.copy(<<0>>, 60_000_000)
      }

      datagram = IO.iodata_to_binary(Message.encode(message))

      states =
        for _ <- 1..5, reduce: [calls] do
          [calls | _] = before ->
            {[], calls} = Calls.received(calls, datagram, nil)
            [calls | before]
        end

      assert Enum.map(Enum.reverse(states), & &1.unusable?) == [
               false,
               false,
               false,
               false,
               false,
               true
             ]

      # Nothing more is sent on it. Requests that were not sent go to the next socket.
      {:ok, exchange} =
        Exchange.new(:route, {:request, @getlink, link(1), %{flags: 0, ack: true}})

      calls = Calls.add(hd(states), :later, exchange, {self(), :tag}, {9, 9}, 9)
      assert Calls.next(calls) == nil
      assert {:later, [_datagram], _calls} = calls |> Calls.unsent() |> Calls.next()
    end

    # Calls of these types, all sent. Returns them, and the number of each.
    defp sent(types) do
      calls =
        for {id, type} <- types, reduce: Calls.new() do
          calls ->
            {:ok, exchange} =
              Exchange.new(:route, {:request, type, link(1), %{flags: 0, ack: true}})

            calls = Calls.add(calls, id, exchange, {self(), id}, {60_000, :infinity}, 60_000)
            {^id, [_datagram], calls} = Calls.next(calls)
            calls
        end

      {calls, Map.new(calls.seqs, fn {seq, id} -> {id, seq} end)}
    end

    defp ack(seq), do: %Message{type: 2, seq: seq, payload: <<0::32, 0::128>>}

    defp received(calls, message),
      do: Calls.received(calls, IO.iodata_to_binary(Message.encode(message)), nil)

    test "get the error of a loss if their answers do not come, as soon as that is known" do
      {calls, seqs} = sent(whole: @newlink, incomplete: @getlink, missing: @newlink)
      lost = Error.new(:recv, :enobufs, dropped: 2)
      assert {[_one, _two, _three], calls} = Calls.lose(calls, lost, [])
      assert {[{:whole, _from, {:ok, [], nil}}], calls} = received(calls, ack(seqs.whole))
      # The link may have been lost.
      assert {[{:incomplete, _from, {:error, ^lost}}], calls} =
               received(calls, ack(seqs.incomplete))

      # A call that is sent behind the probe has nothing to do with the loss.
      {probe, [datagram], calls} = Calls.next(calls)

      assert {:ok, [%Message{type: 1, seq: number}]} =
               Message.decode(IO.iodata_to_binary(datagram))

      {:ok, later} = Exchange.new(:route, {:request, @newlink, link(1), %{flags: 0, ack: true}})
      calls = Calls.add(calls, :later, later, {self(), :later}, {9_000, :infinity}, 9_000)
      assert {:later, [_datagram], calls} = Calls.next(calls)
      # The answer to the probe is lost, too: another probe follows.
      assert {_ids, calls} = Calls.lose(calls, Error.new(:recv, :enobufs, dropped: 1), [])
      refute Calls.member?(calls, probe)
      assert {[], calls} = received(calls, ack(number))
      {_probe, [datagram], calls} = Calls.next(calls)
      assert {:ok, [%Message{seq: number}]} = Message.decode(IO.iodata_to_binary(datagram))
      later = Enum.find_value(calls.seqs, fn {seq, id} -> if id == :later, do: seq end)
      assert {[{:later, _from, {:ok, [], nil}}], calls} = received(calls, ack(later))
      assert {[{:missing, _from, {:error, ^lost}}], calls} = received(calls, ack(number))
      assert {calls.calls, calls.seqs, calls.room} == {%{}, %{}, 16}
    end

    test "get the error of a loss after five seconds at most if no probe can be sent" do
      {calls, _seqs} = sent(one: @newlink)
      lost = Error.new(:recv, :enobufs, dropped: 2)
      assert {[:one], calls} = Calls.lose(calls, lost, [:one])
      assert Calls.next(calls) == nil
      assert Calls.left(calls, :one) <= 5_000
      assert {[{:one, _from, {:error, ^lost}}], _calls} = Calls.expire(calls, :one)
    end

    test "get no probe while a dump takes the room for its answer" do
      {calls, _seqs} = sent(one: @newlink)
      opts = %{flags: 0, max_bytes: :infinity}
      {:ok, dump} = Exchange.new(:route, {:dump, @getlink, <<0::128>>, opts})
      calls = Calls.add(calls, :dump, dump, {self(), :tag}, {:infinity, :infinity}, 9_000)
      {:dump, [_datagram], calls} = Calls.next(calls)
      {[:one], calls} = Calls.lose(calls, Error.new(:recv, :enobufs), [])
      assert Calls.next(calls) == nil
      seq = Enum.find_value(calls.seqs, fn {seq, id} -> if id == :dump, do: seq end)
      # It was incomplete, and is sent again, behind the probe.
      done = %Message{type: 3, flags: 2, seq: seq, payload: <<0::32>>}
      assert {[], calls} = received(calls, done)
      assert {probe, [_datagram], calls} = Calls.next(calls)
      assert probe not in [:one, :dump]
      assert {:dump, [_datagram], _calls} = Calls.next(calls)
    end

    test "get the error of an unreadable datagram only if it is their answer" do
      opts = %{flags: 0, ack: true}
      {:ok, exchange} = Exchange.new(:route, {:request, @getlink, link(1), opts})

      calls =
        for id <- [:one, :two], reduce: Calls.new() do
          calls ->
            calls = Calls.add(calls, id, exchange, {self(), id}, {9_000, :infinity}, 9_000)
            {^id, [_datagram], calls} = Calls.next(calls)
            calls
        end

      number = Enum.find_value(calls.seqs, fn {seq, id} -> if id == :two, do: seq end)

      whole = fn seq ->
        IO.iodata_to_binary(Message.encode(%Message{type: 16, seq: seq, payload: "abcd"}))
      end

      stranger = Enum.find(1..3, &(not is_map_key(calls.seqs, &1)))

      for unread <- ["short", whole.(stranger) <> "tail", binary_part(whole.(stranger), 0, 18)] do
        assert {[], ^calls} = Calls.received(calls, unread, nil)
      end

      for unread <- [whole.(number) <> "tail", binary_part(whole.(number), 0, 18)] do
        assert {[{:two, {_pid, :two}, {:error, error}}], left} =
                 Calls.received(calls, unread, nil)

        assert {error.stage, error.reason} == {:recv, :ebadmsg}
        assert Map.keys(left.calls) == [:one]
      end
    end

    test "are bounded by their bytes, too, since an error repeats the request" do
      big = {:request, @getlink, :binary.copy(<<0>>, 30_000), %{flags: 0, ack: true}}
      {:ok, exchange} = Exchange.new(:route, big)

      calls =
        for id <- 1..3, reduce: Calls.new() do
          calls -> Calls.add(calls, id, exchange, {self(), id}, {9, 9}, 9)
        end

      assert {1, _datagrams, calls} = Calls.next(calls)
      assert {2, _datagrams, calls} = Calls.next(calls)
      assert Calls.next(calls) == nil
      # A request that is not answered for long loses its place.
      assert {3, _datagrams, _calls} = calls |> Calls.unanswered(1) |> Calls.next()
    end
  end

  describe "a connection and its socket:" do
    test "the helper is killed: every caller gets an error, and later callers are served",
         context do
      connection = connect!(context)
      helper = stopped!(context)

      callers =
        for n <- 1..60 do
          spawn_reporting(fn ->
            case rem(n, 3) do
              0 -> getlink(connection, 1, timeout: :infinity)
              1 -> getaddrs(connection, timeout: :infinity)
              2 -> Connection.batch(connection, [refused(9)], timeout: :infinity)
            end
          end)
        end

      in_flight!(connection, 60)
      signal!(helper, :KILL)

      for {:error, error} <- results(callers) do
        assert {error.stage, error.reason} == {:thread, :epipe}
      end

      eventually!(fn -> match?({:error, %Error{reason: :esrch}}, getlink(connection, 1)) end)
      start_server!(name: context.name)
      eventually_ok!(connection)
      assert {:ok, [_address]} = getaddrs(connection)
    end

    test "the server is restarted while callers go on: each gets an answer or an error", %{
      netns: netns
    } do
      name = :"restarted-#{netns}"
      children = [{NetlinkPort, name: name, executable: helper()}]
      limits = [strategy: :one_for_one, max_restarts: 100]

      start_supervised!(%{
        id: :top,
        start: {Supervisor, :start_link, [children, limits]},
        type: :supervisor
      })

      connection = connect!(%{name: name, netns: netns})
      stop = :atomics.new(1, [])

      callers =
        for _ <- 1..8 do
          spawn_reporting(fn ->
            Stream.repeatedly(fn -> getlink(connection, 1) end)
            |> Enum.take_while(fn outcome ->
              assert match?({:ok, [_lo]}, outcome) or
                       match?({:error, %Error{stage: :thread}}, outcome)

              :atomics.get(stop, 1) == 0
            end)
            |> length()
          end)
        end

      for _ <- 1..5 do
        server = Process.whereis(name)
        signal!(os_pid(server), :KILL)
        eventually!(fn -> Process.whereis(name) not in [nil, server] end)
        eventually_ok!(connection)
      end

      :atomics.put(stop, 1, 1)
      assert Enum.all?(results(callers), &(&1 > 0))
    end

    test "the connection starts before its server and its namespace", %{netns: netns} do
      name = :"late-#{netns}"
      connection = connect!(%{name: name, netns: netns <> "-late"})
      assert {:error, %Error{stage: :thread, reason: :esrch}} = getlink(connection, 1)
      assert {:error, %Error{stage: :thread, reason: :esrch}} = getaddrs(connection)
      start_server!(name: name)

      eventually!(fn ->
        match?({:error, %Error{stage: :open, reason: :enoent}}, getlink(connection, 1))
      end)

      on_exit(fn -> as_root("ip", ["netns", "del", netns <> "-late"]) end)
      ip!(["netns", "add", netns <> "-late"])
      eventually_ok!(connection)
    end

    test "the socket is closed with its namespace, and opened in the next namespace of that name",
         context do
      %{netns: netns} = context
      connection = connect!(context, close_on: :namespace_gone)
      assert {:ok, [_lo]} = getlink(connection, 1)
      helper = stopped!(context)
      caller = spawn_reporting(fn -> getlink(connection, 1, timeout: :infinity) end)
      in_flight!(connection, 1)
      ip!(["netns", "del", netns])
      signal!(helper, :CONT)
      # The answer or the end, depending on which the helper takes first.
      assert [outcome] = results([caller])

      assert match?({:ok, [_lo]}, outcome) or
               match?({:error, %Error{stage: :thread, reason: :epipe}}, outcome)

      eventually!(fn ->
        match?({:error, %Error{stage: :open, reason: :enoent}}, getlink(connection, 1))
      end)

      ip!(["netns", "add", netns])
      eventually_ok!(connection)
    end

    test "another process closes the socket: callers get an error at once, and later callers are served",
         context do
      connection = connect!(context)
      helper = stopped!(context)

      # Without the message from the server this caller would wait for ever: no other call is made.
      caller = spawn_reporting(fn -> getlink(connection, 1, timeout: :infinity) end)
      in_flight!(connection, 1)
      socket = state(connection).socket
      closer = spawn_reporting(fn -> NetlinkPort.close(socket) end)
      assert [{:error, error}] = results([caller])

      assert Exception.message(error) ==
               "connection: EPIPE: its socket was closed by another process; " <>
                 "the connection opens another: call again"

      signal!(helper, :CONT)
      assert results([closer]) == [:ok]
      eventually_ok!(connection)
      assert state(connection).socket != socket
    end

    test "the socket is closed when the connection ends", context do
      connection = connect!(context)
      {:ok, %{sockets: before}} = NetlinkPort.info(context.name)
      GenServer.stop(connection)

      eventually!(fn ->
        match?({:ok, %{sockets: now}} when now == before - 1, NetlinkPort.info(context.name))
      end)
    end
  end

  test "crash reports show no payloads", context do
    connection = connect!(context)
    _helper = stopped!(context)
    secret = Attr.encode([{3, "a-secret-key"}])
    spawn(fn -> Connection.request(connection, @getlink, [link(1), secret], timeout: 1_000) end)
    in_flight!(connection, 1)
    shown = &inspect(&1, limit: :infinity, printable_limit: :infinity, binaries: :as_strings)
    assert shown.(:sys.get_state(connection)) =~ "a-secret-key"
    refute shown.(:sys.get_status(connection)) =~ "a-secret-key"
  end
end
