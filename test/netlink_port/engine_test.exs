defmodule NetlinkPort.EngineTest do
  # Requests, batches, dumps and streams against the kernel, on passive and on active sockets.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Message}
  alias NetlinkPort.Request.Exchange

  @newlink 16
  @getlink 18
  @newroute 24
  @getroute 26
  @link_group 1
  @lo <<0::32, 1::32-native, 0::64>>
  @all_links <<0::128>>
  @all_routes <<2, 0::88>>

  setup do
    server = start_server!()
    %{server: server, netns: netns!()}
  end

  # RTM_NEWROUTE or RTM_DELROUTE of 10.x.y.z/32 over loopback.
  defp route(n) do
    [
      <<2, 32, 0, 0, 254, 3, 253, 1, 0::32>>
      | Attr.encode([{1, <<10, n::24>>}, {4, Attr.u32(1)}])
    ]
  end

  defp add(n), do: {@newroute, [:create, :excl], route(n)}

  defp destination(%Message{payload: <<_rtmsg::binary-size(12), attrs::binary>>}) do
    {:ok, attrs} = Attr.decode(attrs)

    case Attr.binary(attrs, 1) do
      {:ok, <<10, n::24>>} -> n
      _loopback -> nil
    end
  end

  defp fill!(context, count) do
    socket = socket!(context, sndbuf: 2_000_000)

    for first <- 1..count//1_000 do
      requests = for n <- first..min(first + 999, count), do: add(n)
      {:ok, outcomes} = NetlinkPort.batch(socket, requests, timeout: within(5_000))
      true = Enum.all?(outcomes, &(&1 == {:ok, []}))
    end

    NetlinkPort.close(socket)
  end

  defp mailbox, do: Process.info(self(), :messages) |> elem(1)

  for active <- [true, false] do
    describe "with active: #{active}" do
      @describetag active: active

      test "a request returns its messages, or none with an ack alone", context do
        socket = socket!(context, active: context.active)
        assert {:ok, [%Message{type: @newlink}]} = NetlinkPort.request(socket, @getlink, @lo)

        assert {:ok, [%Message{type: @newlink}]} =
                 NetlinkPort.request(socket, @getlink, @lo, ack: false)

        flags = [:create, :excl]
        assert {:ok, []} = NetlinkPort.request(socket, @newroute, route(1), flags: flags)
        assert mailbox() == []
      end

      test "a kernel error has its errno and the whole extended ack", context do
        socket = socket!(context, active: context.active)

        assert {:error, %Error{stage: :request, reason: :enodev, ext_ack: nil}} =
                 NetlinkPort.request(socket, @getlink, <<0::32, 99::32-native, 0::64>>)

        # IFLA_GROUP is 32 bits.
        attrs = Attr.encode([{4, Attr.u32(1_500)}, {27, <<1, 2>>}])
        assert {:error, error} = NetlinkPort.request(socket, @newlink, [@lo, attrs])
        assert %Error{stage: :request, errno: 34, reason: :erange, ext_ack: ext_ack} = error
        assert ext_ack.message == "Attribute failed policy validation"
        assert {ext_ack.offset, ext_ack.attribute} == {40, {27, <<1, 2>>}}
        assert %{type: 4, min_value_u: 0, max_value_u: 0xFFFFFFFF} = ext_ack.policy
        assert Exception.message(error) =~ "it objects to attribute 27 at byte 40"
      end

      test "an error is decoded with an echoed and with a capped request", context do
        for cap <- [true, false] do
          socket = socket!(context, active: context.active, cap_ack: cap)
          attrs = Attr.encode([{13, <<1, 2>>}])
          assert {:error, error} = NetlinkPort.request(socket, @newlink, [@lo, attrs])
          assert {error.ext_ack.offset, error.ext_ack.attribute} == {32, {13, <<1, 2>>}}
        end
      end

      test "a batch returns an outcome for each of its requests", context do
        socket = socket!(context, active: context.active)
        requests = [add(1), add(1), add(2), {@getlink, [], @lo}, add(2), add(3)]
        assert {:ok, outcomes} = NetlinkPort.batch(socket, requests)

        assert [
                 {:ok, []},
                 {:error, %Error{reason: :eexist}},
                 {:ok, []},
                 {:ok, [%Message{type: @newlink}]},
                 {:error, %Error{reason: :eexist, ext_ack: %{message: nil}}},
                 {:ok, []}
               ] = put_in_nil(outcomes)

        assert {:ok, [{:error, %Error{reason: :eexist}}]} = NetlinkPort.batch(socket, [add(3)])
        assert {:ok, []} = NetlinkPort.batch(socket, [])
        assert mailbox() == []
      end

      test "hundreds of failures in one batch are all returned", context do
        socket = socket!(context, active: context.active, rcvbuf: 4_000_000)
        requests = for n <- 1..500, do: add(rem(n, 250))
        assert {:ok, outcomes} = NetlinkPort.batch(socket, requests)
        assert {true, true} = {length(outcomes) == 500, Enum.count(outcomes, &failed?/1) == 250}
      end

      test "a batch whose errors exceed the receive buffer is ENOBUFS", context do
        socket = socket!(context, active: context.active, rcvbuf: 2_304)
        {:ok, [ok: []]} = NetlinkPort.batch(socket, [add(1)])
        requests = for _ <- 1..200, do: add(1)

        assert {:error, %Error{reason: :enobufs, dropped: dropped}} =
                 NetlinkPort.batch(socket, requests, timeout: within(1_000))

        assert dropped > 0
      end

      test "a dump is complete", context do
        fill!(context, 3_000)
        socket = socket!(context, active: context.active)
        assert {:ok, routes} = NetlinkPort.dump(socket, @getroute, @all_routes)
        found = for route <- routes, n = destination(route), do: n
        assert Enum.sort(found) == Enum.to_list(1..3_000)
        assert mailbox() == []
      end

      test "a stream is lazy, and its unread rest delays nothing", context do
        fill!(context, 3_000)
        socket = socket!(context, active: context.active)
        stream = NetlinkPort.stream(socket, @getroute, @all_routes)
        assert mailbox() == []
        assert length(Enum.take(stream, 2)) == 2
        assert Enum.count(stream, &destination/1) == 3_000
        assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @lo)
        assert mailbox() == []
      end

      test "another request ends a stream with an error that says so; the kernel never answers EBUSY",
           context do
        fill!(context, 3_000)
        socket = socket!(context, active: context.active)

        error =
          assert_raise Error, fn ->
            for _route <- NetlinkPort.stream(socket, @getroute, @all_routes) do
              assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @lo)
            end
          end

        assert {error.stage, error.reason} == {:request, :ebusy}
        assert {:ok, routes} = NetlinkPort.dump(socket, @getroute, @all_routes)
        assert length(routes) >= 3_000

        # Stream.zip/1 does not close the first stream when the second raises.
        both = List.duplicate(NetlinkPort.stream(socket, @getroute, @all_routes), 2)
        assert_raise Error, fn -> both |> Stream.zip() |> Stream.run() end
        assert {:ok, routes} = NetlinkPort.dump(socket, @getroute, @all_routes)
        assert length(routes) >= 3_000
      end

      test "the late answer to an abandoned request is dropped", context do
        socket = socket!(context, active: context.active)
        helper = os_pid(context.server)
        signal!(helper, "STOP")

        assert {:error, %Error{stage: :request, reason: :etimedout}} =
                 NetlinkPort.request(socket, @getlink, @lo, timeout: 50)

        assert {:error, %Error{reason: :etimedout}} =
                 NetlinkPort.dump(socket, @getlink, @all_links, timeout: 50)

        signal!(helper, "CONT")
        assert {:ok, [%Message{}]} = NetlinkPort.request(socket, @getlink, @lo)
        assert {:ok, [%Message{}]} = NetlinkPort.dump(socket, @getlink, @all_links)
        assert mailbox() == []
      end

      test "events during requests are not lost", context do
        socket = socket!(context, active: context.active, groups: [@link_group])
        ip!(["-n", context.netns, "link", "add", "br0", "type", "bridge"])
        assert {:ok, [%Message{}]} = NetlinkPort.request(socket, @getlink, @lo)
        assert {:ok, [%Message{}, %Message{}]} = NetlinkPort.dump(socket, @getlink, @all_links)
        assert_receive {:netlink, ^socket, <<_::32, @newlink::16-native, _::binary>>}
      end

      test "a dump is repeated after an overrun", context do
        fill!(context, 3_000)

        opts = [active: context.active, groups: [@link_group, 7], rcvbuf: 20_000, window: 40_000]
        socket = socket!(context, opts)
        changes = for n <- 1..200, do: "route add 192.168.0.#{n}/32 dev lo"
        ip_batch!(context.netns, changes)
        assert {:ok, routes} = NetlinkPort.dump(socket, @getroute, @all_routes)
        assert length(routes) >= 3_200
      end

      # The kernel then answers ENOBUFS, and begins the dump when that has been read.
      test "a dump is complete even if the receive buffer is full at its start", context do
        fill!(context, 1_000)
        opts = [active: context.active, groups: [7], rcvbuf: 20_000, window: 1]

        # Unread events take some of the 40,000 bytes, about 800 each.
        for waiting <- [15, 25, 35] do
          socket = socket!(context, opts)
          :ok = NetlinkPort.setopts(socket, active: false)
          changes = for n <- 1..waiting, do: "route add 192.168.#{waiting}.#{n}/32 dev lo"
          ip_batch!(context.netns, changes)
          :ok = NetlinkPort.setopts(socket, active: context.active)
          assert {:ok, routes} = NetlinkPort.dump(socket, @getroute, @all_routes)
          assert length(routes) >= 1_000 + waiting
          NetlinkPort.close(socket)
        end
      end

      test "a helper that is killed in mid-request is an error, not a hang", context do
        Process.flag(:trap_exit, true)
        socket = socket!(context, active: context.active)
        helper = os_pid(context.server)
        signal!(helper, "STOP")
        request = fn -> NetlinkPort.request(socket, @getlink, @lo, timeout: 60_000) end
        # The process that waits owns the socket, also an active one.
        {:ok, task} = Task.start_link(fn -> receive do: ({:ask, to} -> send(to, request.())) end)
        :ok = NetlinkPort.controlling_process(socket, task)
        send(task, {:ask, self()})
        eventually!(fn -> Process.info(task, :status) == {:status, :waiting} end)
        signal!(helper, "KILL")
        assert_receive {:error, %Error{stage: :thread, reason: :epipe}}, within(10_000)
      end

      test "a socket that is closed is an error", context do
        socket = socket!(context, active: context.active)
        NetlinkPort.close(socket)
        assert {:error, %Error{reason: :ebadf}} = NetlinkPort.request(socket, @getlink, @lo)
        assert {:error, %Error{reason: :ebadf}} = NetlinkPort.dump(socket, @getlink, @all_links)
      end
    end
  end

  defp failed?({:error, _error}), do: true
  defp failed?({:ok, _messages}), do: false

  # Whether the kernel has a message for EEXIST depends on its version.
  defp put_in_nil(outcomes) do
    for outcome <- outcomes do
      case outcome do
        {:error, error} -> {:error, %{error | ext_ack: %{message: nil}}}
        ok -> ok
      end
    end
  end

  test "a stream of an interrupted dump has all messages, and raises EINTR at its end",
       context do
    for n <- 1..40, do: ip!(["-n", context.netns, "link", "add", "br#{n}", "type", "bridge"])
    socket = socket!(context, active: false, window: 1)
    counter = :counters.new(1, [])

    error =
      assert_raise Error, fn ->
        for _link <- NetlinkPort.stream(socket, @getlink, @all_links) do
          :counters.add(counter, 1, 1)

          if :counters.get(counter, 1) == 1 do
            ip!(["-n", context.netns, "link", "add", "late", "type", "bridge"])
          end
        end
      end

    assert {error.stage, error.reason} == {:request, :eintr}
    assert :counters.get(counter, 1) >= 41
    # dump/4 tries again, and there are no more changes.
    assert {:ok, links} = NetlinkPort.dump(socket, @getlink, @all_links)
    assert length(links) == 42
  end

  test "a stream of 200,000 routes takes no more memory than a short one", context do
    fill!(context, 200_000)
    socket = socket!(context, active: false)
    :erlang.garbage_collect()
    {:memory, before} = Process.info(self(), :memory)

    {count, most} =
      socket
      |> NetlinkPort.stream(@getroute, @all_routes)
      |> Stream.chunk_every(10_000)
      |> Enum.reduce({0, 0}, fn messages, {count, most} ->
        {:memory, now} = Process.info(self(), :memory)
        {count + length(messages), max(most, now - before)}
      end)

    assert count >= 200_000
    # All of them would take more than 50 MB.
    assert most < 20_000_000
  end

  @tag :nftables
  test "a batch of nf_tables is acked at its last request, and fails as a whole", context do
    {:ok, socket} = NetlinkPort.open(context.server, :netfilter, netns: {:name, context.netns})

    nfgenmsg = fn family, id -> <<family, 0, id::16>> end
    begin = {16, [], nfgenmsg.(0, 10)}
    finish = {17, [], nfgenmsg.(0, 10)}
    table = fn name -> [nfgenmsg.(2, 0) | Attr.encode([{1, name <> <<0>>}])] end
    new = fn name -> {0xA00, [:create, :excl], table.(name)} end

    assert {:ok, [ok: [], ok: [], ok: [], ok: []]} =
             NetlinkPort.batch(socket, [begin, new.("one"), new.("two"), finish])

    assert {:ok, outcomes} =
             NetlinkPort.batch(socket, [begin, new.("three"), new.("one"), finish])

    assert {:error, %Error{reason: :eexist}} = Enum.at(outcomes, 2)
    assert {:ok, tables} = NetlinkPort.dump(socket, 0xA01, nfgenmsg.(0, 0))

    names =
      for %{payload: <<_nfgenmsg::32, attrs::binary>>} <- tables do
        {:ok, attrs} = Attr.decode(attrs)
        {:ok, name} = Attr.string(attrs, 1)
        name
      end

    assert Enum.sort(names) == ["one", "two"]
    # A refused begin ends the batch: messages after it are not looked at.
    assert {:ok, [{:error, %Error{}} | _]} =
             NetlinkPort.batch(socket, [{16, [], nfgenmsg.(0, 77)}, new.("four"), finish])
  end

  test "wrong arguments raise", context do
    socket = socket!(context, [])

    for type <- [-1, 65_536, :getlink],
        do: raises(fn -> NetlinkPort.request(socket, type, "") end)

    raises(fn -> NetlinkPort.request(socket, 18, "", flags: [:dumb]) end)
    raises(fn -> NetlinkPort.request(socket, 18, "", retries: 3) end)
    raises(fn -> NetlinkPort.dump(socket, 18, "", ack: false) end)
    raises(fn -> NetlinkPort.batch(socket, [{18, []}]) end)
    raises(fn -> NetlinkPort.request(nil, 18, "") end)
  end

  defp raises(fun), do: assert_raise(ArgumentError, fun)

  test "sequence numbers are never 0, and start again at 1" do
    assert Exchange.sequence(1, 3) == {1, 4}
    assert Exchange.sequence(0xFFFFFFFD, 3) == {0xFFFFFFFD, 1}
    assert Exchange.sequence(0xFFFFFFFE, 3) == {1, 4}
  end
end
