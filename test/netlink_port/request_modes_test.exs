defmodule NetlinkPort.RequestModesTest do
  # Requests on sockets in every active mode: the answers are those of the request, and errors, losses and messages of
  # the mode are the owner's.
  use NetlinkPort.Case, async: true

  @moduletag :root

  alias NetlinkPort.{Attr, Message}
  alias NetlinkPort.Request.SocketState

  @link_group 1
  @newlink 16
  @getlink 18
  @lo <<0::32, 1::32-native, 0::64>>
  @all_links <<0::128>>
  @changes 40
  # More bytes than a socket's sndbuf has.
  @too_big 4_000_000

  setup do
    server = start_server!()
    %{server: server, netns: netns!()}
  end

  defp mailbox, do: Process.info(self(), :messages) |> elem(1)

  # Each kind of request, with at least one message as its answer.
  defp ways(socket, opts \\ []) do
    [
      request: fn -> NetlinkPort.request(socket, @getlink, @lo, opts) end,
      batch: fn -> NetlinkPort.batch(socket, [{@getlink, [], @lo}], opts) end,
      dump: fn -> NetlinkPort.dump(socket, @getlink, @all_links, opts) end,
      stream: fn ->
        {:ok, Enum.to_list(NetlinkPort.stream(socket, @getlink, @all_links, opts))}
      end,
      drain: fn ->
        [_first] = Enum.take(NetlinkPort.stream(socket, @getlink, @all_links, opts), 1)
        NetlinkPort.dump(socket, @getlink, @all_links, opts)
      end
    ]
  end

  test "the error of an earlier send goes to the owner, and is not that of a request", context do
    for active <- [true, false],
        socket = socket!(context, active: active),
        {way, ask} <- ways(socket) do
      :ok = NetlinkPort.send(socket, :binary.copy(<<0>>, @too_big))
      assert {^way, {:ok, [_ | _]}} = {way, ask.()}
      assert_receive {:netlink_error, ^socket, %{stage: :send}}, within(1_000)
      assert mailbox() == []
    end
  end

  test "a request of another process on an active socket is ETIMEDOUT, which names the owner",
       context do
    for active <- [true, 100] do
      socket = socket!(context, active: active)

      for {way, ask} <- Keyword.take(ways(socket, timeout: 100), [:request, :batch, :dump]) do
        assert {^way, {:error, %{reason: :etimedout} = error}} =
                 {way, Task.await(Task.async(ask), :infinity)}

        assert Exception.message(error) =~
                 "request: ETIMEDOUT: the socket is active, so its owner, #{inspect(self())}, is sent the answer"

        # The owner gets it, and has to read the rest of the dump.
        assert_receive {:netlink, ^socket, _answer}, within(1_000)
      end
    end
  end

  test "a request that cannot be sent is an error at once, and leaves no unfinished dump",
       context do
    long = [timeout: within(60_000)]

    for active <- [true, false], socket = socket!(context, active: active) do
      too_big = :binary.copy(<<0>>, @too_big)
      assert {:error, %{stage: :send}} = NetlinkPort.request(socket, @getlink, too_big, long)

      assert {:error, %{stage: :send, messages: []}} =
               NetlinkPort.dump(socket, @getlink, too_big, long)

      assert {:ok, [_ | _]} = NetlinkPort.dump(socket, @getlink, @all_links, long)
      assert mailbox() == []
    end
  end

  test "an answer is complete when :once or a count ends in the middle of it", context do
    for active <- [:once, 1, 2, 3], {way, ask} <- ways(socket!(context, active: active)) do
      assert {^way, {:ok, [_ | _]}} = {way, ask.()}
    end

    flush()

    for count <- [1, 2, 3], way <- [:request, :batch, :dump, :stream, :drain] do
      socket = socket!(context, active: count)
      assert {^way, {:ok, [_ | _]}} = {way, ways(socket)[way].()}
      if count == 1, do: assert(mailbox() == [{:netlink_passive, socket}])
      flush()
    end
  end

  test "a request gets its answer when an event uses up :once or a count", context do
    for {active, told} <- [{:once, 1}, {1, 2}] do
      socket = socket!(context, active: active, groups: [@link_group])
      assert {:ok, []} = NetlinkPort.request(socket, @newlink, [@lo, mtu(60_000 + told)])
      assert [{:netlink, ^socket, _event} | passive] = mailbox()
      assert length(passive) == told - 1
      flush()
    end
  end

  test "a request gets its answer when another process makes its active socket passive",
       context do
    socket = socket!(context, active: true)

    for _round <- 1..40, {way, ask} <- ways(socket) do
      :ok = NetlinkPort.setopts(socket, active: true)
      change = Task.async(fn -> NetlinkPort.setopts(socket, active: false) end)
      assert {^way, {:ok, [_ | _]}} = {way, ask.()}
      assert :ok = Task.await(change, within(5_000))
    end

    assert mailbox() == []
  end

  test "a datagram that a request has taken keeps its order when other processes change the mode",
       context do
    alias NetlinkPort.Server.Client
    socket = socket!(context, active: false, groups: [@link_group])
    changer = socket!(context, [])
    for n <- 1..3, do: NetlinkPort.request(changer, @newlink, [@lo, mtu(60_000 + n)])

    set = fn active ->
      Task.await(Task.async(fn -> NetlinkPort.setopts(socket, active: active) end), within(5_000))
    end

    datagrams = fn -> for {:netlink, ^socket, datagram} <- mailbox(), do: datagram end

    assert {:ok, first} = Client.hold(socket, 5_000)
    # Neither change lets a datagram overtake the first.
    assert :ok = set.(true)
    assert :ok = set.(false)
    assert {:error, %{stage: :recv, reason: :einval}} = Client.hold(socket, 5_000)
    assert {:ok, second} = Client.hold(socket, 5_000)
    assert :ok = set.(1)
    assert datagrams.() == []
    send(self(), {:netlink, socket, second})
    assert :ok = Client.let_go(socket)
    assert_receive {:netlink_passive, ^socket}
    assert [^second, third] = datagrams.()
    assert mtus([first, second, third]) == [60_001, 60_002, 60_003]
  end

  test "a datagram that a request waits for keeps its order when other processes set the same mode",
       context do
    alias NetlinkPort.Server.{Client, Delivery}
    socket = socket!(context, active: false, groups: [@link_group])
    owner = self()

    waits? = fn ->
      %{entries: entries} = :sys.get_state(context.server).sockets
      Delivery.waiters(entries[socket.handle].delivery) != []
    end

    others =
      Task.async(fn ->
        eventually!(waits?)
        :ok = NetlinkPort.setopts(socket, active: false)
        changer = socket!(context, [])

        # The answer to the owner, which has not received it yet, is followed by an event and a change of the mode.
        true = :erlang.suspend_process(owner)
        for n <- 1..2, do: NetlinkPort.request(changer, @newlink, [@lo, mtu(60_000 + n)])
        :ok = NetlinkPort.setopts(socket, active: true)
        :erlang.resume_process(owner)
      end)

    assert {:ok, first} = Client.hold(socket, within(5_000))
    assert Task.await(others, within(5_000))
    refute_received {:netlink, ^socket, _second}
    assert :ok = Client.let_go(socket)
    assert_receive {:netlink, ^socket, second}
    assert mtus([first, second]) == [60_001, 60_002]
  end

  test "events keep their order while other processes change the mode during requests", context do
    socket = socket!(context, active: false, groups: [@link_group], rcvbuf: 1_000_000)
    # The events of links are larger.
    {test, count} = {self(), room!(context.server, 400, 4_352)}

    changes =
      Task.async(fn ->
        {:ok, changer} = NetlinkPort.open(context.server, :route, netns: {:name, context.netns})
        for n <- 1..count, do: NetlinkPort.request(changer, @newlink, [@lo, mtu(60_000 + n)])
        send(test, :changed)
      end)

    toggles = Task.async(fn -> toggle(socket) end)
    until_changed(socket)
    send(toggles.pid, :stop)
    _turns = Task.await(toggles, :infinity)
    :changed = Task.await(changes, within(5_000))
    :ok = NetlinkPort.setopts(socket, active: true)
    # All that the kernel had to send comes before this.
    assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @lo)

    {mailbox, changed} = {mailbox(), Enum.to_list(60_001..(60_000 + count))}
    told = mtus(for {:netlink, ^socket, datagram} <- mailbox, do: datagram)
    assert for({:netlink_overrun, ^socket, lost} <- mailbox, do: lost) == []
    assert {changed -- told, told == Enum.sort(told)} == {[], true}
    assert told == changed
  end

  defp toggle(socket) do
    for active <- [true, false, :once, 2, false], do: NetlinkPort.setopts(socket, active: active)

    receive do
      :stop -> :ok
    after
      0 -> toggle(socket)
    end
  end

  defp until_changed(socket) do
    assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @lo)
    assert {:ok, [_lo]} = NetlinkPort.dump(socket, @getlink, @all_links)

    receive do
      :changed -> :ok
    after
      0 -> until_changed(socket)
    end
  end

  # The MTUs of the events in these datagrams.
  defp mtus(datagrams) do
    for datagram <- datagrams do
      {:ok, [%{payload: <<_ifinfomsg::binary-size(16), attrs::binary>>}]} =
        Message.decode(datagram)

      {:ok, attrs} = Attr.decode(attrs)
      {:ok, mtu} = Attr.u32(attrs, 4)
      mtu
    end
  end

  # Opens a passive socket whose events fill the window and overrun the kernel's queue.
  defp lossy!(context) do
    socket = socket!(context, active: false, groups: [@link_group], window: 2_000, rcvbuf: 4_000)
    changer = socket!(context, sndbuf: 1_000_000)
    changes = for n <- 1..@changes, do: {@newlink, [], [@lo, mtu(60_000 + n)]}
    {:ok, _outcomes} = NetlinkPort.batch(changer, changes)
    NetlinkPort.close(changer)
    socket
  end

  defp drops(socket) do
    {:ok, %{drops: drops}} = NetlinkPort.info(socket)
    drops
  end

  # The new MTU of each event that the owner is sent, and the losses, until all losses are reported.
  defp told!(socket, told \\ []) do
    receive do
      {:netlink, ^socket, datagram} ->
        {:ok, [%{payload: <<_ifinfomsg::binary-size(16), attrs::binary>>}]} =
          Message.decode(datagram)

        {:ok, attrs} = Attr.decode(attrs)
        {:ok, mtu} = Attr.u32(attrs, 4)
        told!(socket, told ++ [mtu])

      {:netlink_overrun, ^socket, dropped} ->
        told!(socket, told ++ [{:lost, dropped}])
    after
      if(lost(told) > 0 and lost(told) == drops(socket), do: 0, else: within(3_000)) ->
        assert lost(told) > 0
        assert lost(told) == drops(socket)
        told
    end
  end

  defp lost(told), do: Enum.sum(for {:lost, dropped} <- told, do: dropped)

  test "a loss during a request is reported to the owner, on a passive socket in order",
       context do
    for way <- [:dump, :stream, :drain, :request, :batch], active <- [false, true] do
      socket = lossy!(context)
      :ok = NetlinkPort.setopts(socket, active: active)
      # An ack may be among what was lost.
      outcome = attempt(ways(socket, timeout: within(300))[way])
      if way == :dump, do: assert({:ok, [_ | _]} = outcome)
      # The owner is now sent the datagrams that the request has not read.
      :ok = NetlinkPort.setopts(socket, active: true)
      told = told!(socket)

      if active == false,
        do: assert(first(told) == Enum.to_list(60_001..(60_000 + length(first(told)))))

      NetlinkPort.close(socket)
    end
  end

  test "a loss from before a request, in the owner's mailbox, is not its error", context do
    for way <- [:request, :batch, :dump, :stream, :drain] do
      socket = lossy!(context)
      :ok = NetlinkPort.setopts(socket, active: true)

      eventually!(fn ->
        Enum.any?(mailbox(), &match?({:netlink_overrun, ^socket, _dropped}, &1))
      end)

      assert {^way, {:ok, [_ | _]}} = {way, ways(socket)[way].()}
      assert {^way, {:ok, [_ | _]}} = {way, ways(socket)[way].()}
      told!(socket)
      NetlinkPort.close(socket)
    end
  end

  # Opens a passive socket. The server keeps some events, and a loss after them.
  defp kept_loss!(context) do
    socket = socket!(context, active: false, groups: [@link_group], rcvbuf: 4_000)
    changer = socket!(%{context | server: start_server!()}, sndbuf: 1_000_000)
    helper = os_pid(context.server)
    signal!(helper, "STOP")
    changes = for n <- 1..@changes, do: {@newlink, [], [@lo, mtu(60_000 + n)]}
    {:ok, _outcomes} = NetlinkPort.batch(changer, changes)
    signal!(helper, "CONT")

    eventually!(fn ->
      %{^socket => kept} =
        for {_handle, entry} <- :sys.get_state(context.server).sockets.entries,
            into: %{},
            do: {entry.socket, :queue.to_list(entry.delivery.kept)}

      Enum.any?(kept, &match?({:overrun, _dropped}, &1))
    end)

    socket
  end

  test "a loss from before a request, kept by the server, is not its error, and is reported once",
       context do
    for way <- [:request, :batch, :two, :dump, :stream, :drain] do
      socket = kept_loss!(context)
      # The ack of the second message does not show whether an error of the first was lost.
      two = fn ->
        NetlinkPort.batch(socket, [{@newlink, [], [@lo, mtu(65_000)]}, {@getlink, [], @lo}])
      end

      assert {^way, {:ok, [_ | _]}} = {way, ([two: two] ++ ways(socket))[way].()}
      told = told!(socket)
      assert first(told) == Enum.to_list(60_001..(60_000 + length(first(told))))
      refute_received {:netlink_overrun, ^socket, _dropped}
      NetlinkPort.close(socket)
    end
  end

  defp relay(test) do
    receive do: (message -> send(test, {:heard, message}))
    relay(test)
  end

  test "a new owner gets every event, and no late answers to the old owner", context do
    for active <- [true, false], arrives <- [:before, :after] do
      socket = socket!(context, active: active, groups: [@link_group])
      changer = socket!(%{context | server: start_server!()}, [])
      helper = os_pid(context.server)
      signal!(helper, "STOP")
      assert {:error, %{reason: :etimedout}} = request_twice(socket)
      mtu = if(active, do: 61_000, else: 62_000) + if(arrives == :before, do: 1, else: 2)
      assert {:ok, []} = NetlinkPort.request(changer, @newlink, [@lo, mtu(mtu)])

      if arrives == :before do
        signal!(helper, "CONT")
        eventually!(fn -> received(socket) == 4 + 1 end)
      end

      test = self()
      new = spawn_link(fn -> relay(test) end)
      assert :ok = NetlinkPort.controlling_process(socket, new)
      if arrives == :after, do: signal!(helper, "CONT")

      # The new owner's requests are answered.
      own = Rtnl.getlink(1, 5)

      if active do
        assert_receive {:heard, {:netlink, ^socket, <<_::32, @newlink::16-native, _::binary>>}}
        :ok = NetlinkPort.send(socket, own)
        assert_receive {:heard, {:netlink, ^socket, <<_::64, 5::32-native, _::binary>>}}
        refute_received {:heard, _message}
      else
        assert {:ok, <<_::64, 0::32, _::binary>>} = NetlinkPort.recv(socket, within(5_000))
        :ok = NetlinkPort.send(socket, own)
        assert {:ok, <<_::64, 5::32-native, _::binary>>} = NetlinkPort.recv(socket, within(5_000))
        assert {:ok, %{kept: 0}} = NetlinkPort.info(socket)
      end

      NetlinkPort.close(socket)
    end
  end

  # A link and an ack each.
  defp request_twice(socket) do
    assert {:error, %{reason: :etimedout}} =
             NetlinkPort.request(socket, @getlink, @lo, timeout: 50)

    NetlinkPort.request(socket, @getlink, @lo, timeout: 50)
  end

  # How many datagrams the helper has handed on to the server. Those before the call of stats/1 have been handled.
  defp received(socket) do
    {:ok, %{received: received}} = NetlinkPort.stats(socket)
    received
  end

  # Exchanges that end by their timeout, with how many datagrams answer each: a link for each request, and an ack.
  defp abandoned do
    links = [{@getlink, [], @lo}, {@getlink, [], @lo}]

    [
      request: {2, &NetlinkPort.request(&1, @getlink, @lo, timeout: 50)},
      unacked: {1, &NetlinkPort.request(&1, @getlink, @lo, timeout: 50, ack: false)},
      batch: {3, &NetlinkPort.batch(&1, links, timeout: 50)}
    ]
  end

  test "late answers reach no owner that only receives, and use up no count", context do
    for active <- [true, 3, :once, false], {_way, {count, ask}} <- abandoned() do
      socket = socket!(context, active: active)
      helper = stop!(context.server)
      assert {:error, %{reason: :etimedout}} = ask.(socket)
      signal!(helper, :CONT)
      eventually!(fn -> received(socket) == count end)
      assert {active, mailbox()} == {active, []}
      assert {:ok, %{active: ^active, kept: 0}} = NetlinkPort.info(socket)

      # The answer to a datagram that the owner has numbered itself.
      :ok = NetlinkPort.send(socket, Rtnl.getlink(1, 5))
      assert <<_::64, 5::32-native, _::binary>> = heard(socket, active)
      NetlinkPort.close(socket)
    end
  end

  test "the event of a request that was given up reaches the owner, and its late ack does not",
       context do
    for active <- [true, false] do
      socket = socket!(context, active: active, groups: [@link_group])
      helper = stop!(context.server)
      mtu = mtu(if(active, do: 63_001, else: 63_002))
      late = NetlinkPort.request(socket, @newlink, [@lo, mtu], timeout: 50)
      assert {:error, %{reason: :etimedout}} = late
      signal!(helper, :CONT)
      assert <<_::32, @newlink::16-native, _::binary>> = heard(socket, active)
      eventually!(fn -> received(socket) == 2 end)
      assert mailbox() == []
      assert {:ok, %{kept: 0}} = NetlinkPort.info(socket)
      NetlinkPort.close(socket)
    end
  end

  test "late answers to another process's request on a passive socket are dropped, too",
       context do
    socket = socket!(context, active: false)
    helper = stop!(context.server)
    ask = fn -> NetlinkPort.request(socket, @getlink, @lo, timeout: 50) end
    assert {:error, %{reason: :etimedout}} = Task.await(Task.async(ask), :infinity)
    signal!(helper, :CONT)
    eventually!(fn -> received(socket) == 2 end)
    assert {:ok, %{kept: 0}} = NetlinkPort.info(socket)
  end

  # As team of :generic ends its answers. Here a peer ends one, before the kernel answers with a link and an ack.
  test "what comes behind the NLMSG_DONE of an answer reaches no owner that only receives",
       context do
    for active <- [true, false] do
      socket = socket!(context, active: active, user_peers: true)
      peer = socket!(context, active: false, user_peers: true)
      {:ok, %{port_id: port_id}} = NetlinkPort.info(socket)
      :ok = SocketState.number(socket, 77)
      done = Rtnl.message(3, 2, 77, <<0::32>>)
      :ok = NetlinkPort.send(peer, done, to: {port_id, 0})
      eventually!(fn -> received(socket) == 1 end)
      assert {:ok, []} = NetlinkPort.request(socket, @getlink, @lo)
      eventually!(fn -> received(socket) == 3 end)
      assert mailbox() == []
      assert {:ok, %{kept: 0}} = NetlinkPort.info(socket)
      NetlinkPort.close(socket)
    end
  end

  defp stop!(server) do
    helper = os_pid(server)
    signal!(helper, :STOP)
    # kill(2) does not wait for that.
    eventually!(fn -> File.read!("/proc/#{helper}/stat") =~ ") T " end)
    helper
  end

  defp heard(socket, false) do
    {:ok, datagram} = NetlinkPort.recv(socket, within(5_000))
    datagram
  end

  defp heard(socket, _active), do: event(socket)

  test "a new owner's dump is complete after the old owner left one unfinished", context do
    for active <- [true, false, :once] do
      socket = socket!(context, active: active)
      stream = NetlinkPort.stream(socket, @getlink, @all_links)
      reduce = &Enumerable.reduce(stream, {:cont, nil}, fn message, _none -> &1.(message) end)
      assert {:suspended, _message, continue} = reduce.(&{:suspend, &1})

      task =
        Task.async(fn ->
          receive do: (:go -> :ok)
          {NetlinkPort.dump(socket, @getlink, @all_links), mailbox()}
        end)

      assert :ok = NetlinkPort.controlling_process(socket, task.pid)
      send(task.pid, :go)
      assert {{:ok, [_ | _]}, []} = Task.await(task, within(5_000))
      assert_raise NetlinkPort.Error, ~r/a change of its owner/, fn -> continue.({:cont, nil}) end
    end
  end

  test "a request gets its answer from behind the events that max_queue holds back", context do
    changer = socket!(context, active: false)

    change = fn mtus ->
      for n <- mtus, do: {:ok, []} = NetlinkPort.request(changer, @newlink, [@lo, mtu(n)])
    end

    # How many events the server keeps back.
    kept = fn socket ->
      {:ok, %{kept: kept}} = NetlinkPort.info(socket)
      kept
    end

    for {way, _ask} <- ways(nil) do
      socket = socket!(context, groups: [@link_group], max_queue: 2)
      change.(60_001..60_005)
      eventually!(fn -> length(mailbox()) + kept.(socket) == 5 end)
      assert length(mailbox()) <= 3
      assert {^way, {:ok, [_ | _]}} = {way, ways(socket)[way].()}
      change.(60_006..60_009)
      eventually!(fn -> length(mailbox()) + kept.(socket) == 9 end)
      assert {:ok, active: true} = NetlinkPort.getopts(socket, [:active])
      # The bound holds again.
      assert length(mailbox()) < 9
      assert mtus(for _event <- 1..9, do: event(socket)) == Enum.to_list(60_001..60_009)
      assert mailbox() == []
      NetlinkPort.close(socket)
    end
  end

  test "another process receives nothing that a request holds back on an active socket",
       context do
    alias NetlinkPort.Server.Client
    socket = socket!(context, groups: [@link_group], max_queue: 1)
    changer = socket!(context, active: false)
    for n <- 60_001..60_004, do: NetlinkPort.request(changer, @newlink, [@lo, mtu(n)])
    eventually!(fn -> mailbox() != [] and match?({:ok, %{kept: 3}}, NetlinkPort.info(socket)) end)
    assert {:ok, second} = Client.hold(socket, 0)
    other = Task.async(fn -> NetlinkPort.recv(socket, 0) end)
    assert {:error, %{stage: :recv, reason: :einval}} = Task.await(other, within(5_000))
    first = event(socket)
    # The owner's mailbox is empty, but the second event is not there yet.
    assert {:ok, third} = Client.hold(socket, 0)
    for datagram <- [second, third], do: send(self(), {:netlink, socket, datagram})
    :ok = Client.let_go(socket)
    told = [first | for(_event <- 1..3, do: event(socket))]
    assert mtus(told) == [60_001, 60_002, 60_003, 60_004]
  end

  defp event(socket) do
    assert_receive {:netlink, ^socket, datagram}, within(5_000)
    datagram
  end

  # Of a dump, since the server drops late answers to requests.
  test "a late answer in the mailbox of a socket that is now passive is dropped", context do
    socket = socket!(context, active: true)

    for {way, ask} <- ways(socket) do
      :ok = NetlinkPort.setopts(socket, active: true)
      helper = stop!(context.server)

      assert {:error, %{reason: :etimedout}} =
               NetlinkPort.dump(socket, @getlink, @all_links, timeout: 0)

      signal!(helper, :CONT)

      # Up to its end. The kernel answers under its RTNL mutex, which others may hold for seconds while they delete
      # namespaces.
      eventually!(fn -> Enum.any?(mailbox(), &done?/1) end, 30_000)
      :ok = NetlinkPort.setopts(socket, active: false)
      assert {^way, {:ok, [_ | _]}} = {way, ask.()}
      assert {way, mailbox()} == {way, []}
    end
  end

  defp done?({:netlink, _socket, datagram}) do
    {:ok, messages} = Message.decode(datagram)
    Enum.any?(messages, &(Message.control(&1.type) == :done))
  end

  # The events before the first loss.
  defp first(told), do: Enum.take_while(told, &is_integer/1)

  # A stream raises when something was lost.
  defp attempt(ask) do
    ask.()
  rescue
    error in NetlinkPort.Error -> {:error, error}
  end

  defp mtu(bytes), do: Attr.encode([{4, Attr.u32(bytes)}])

  defp flush() do
    receive do
      {:netlink_passive, _socket} -> flush()
      {:netlink, _socket, _datagram} -> flush()
    after
      0 -> :ok
    end
  end
end
