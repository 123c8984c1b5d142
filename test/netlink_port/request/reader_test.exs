defmodule NetlinkPort.Request.ReaderTest do
  # A request does not await the outcome of its own sendmsg(2): it waits for the answer, and the failure of the send comes
  # in its place.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Request.{Exchange, Reader}
  alias NetlinkPort.Server.{Client, Commands}

  @getlink 18
  @link <<0::32, 1::32-native, 0::64>>
  # More than the send buffer of a socket, so that sendmsg(2) is EMSGSIZE.
  defp large, do: [@link, :binary.copy(<<0>>, 200_000)]

  setup do
    server = start_server!([])
    %{server: server, helper: os_pid(server), netns: netns!()}
  end

  defp board(server), do: :ets.tab2list(:sys.get_state(server).helper.board)

  # The commands that somebody waits for.
  defp waited_for(server), do: Enum.count(board(server), &is_integer(elem(&1, 0)))

  test "a failed send is the error of its request at once", context do
    for active <- [true, false, :once, 100] do
      socket = socket!(context, active: active, sndbuf: 4_608)

      for ack <- [true, false] do
        opts = [ack: ack, timeout: :infinity]
        assert {:error, error} = NetlinkPort.request(socket, @getlink, large(), opts)
        assert {error.stage, error.reason} == {:send, :emsgsize}
        assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @link, ack: ack)
      end

      assert {:error, error} = NetlinkPort.dump(socket, @getlink, large(), timeout: :infinity)
      assert {error.stage, error.reason, error.messages} == {:send, :emsgsize, []}
      assert {:ok, [_lo]} = NetlinkPort.dump(socket, @getlink, @link)
      refute_received _message
      assert waited_for(context.server) == 0
    end
  end

  test "the error of an earlier send goes to the owner, not to the request", context do
    for active <- [true, false] do
      socket = socket!(context, active: active, sndbuf: 4_608)
      :ok = NetlinkPort.send(socket, :binary.copy(<<0>>, 200_000))
      assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @link)
      assert_receive {:netlink_error, ^socket, %{stage: :send, reason: :emsgsize}}, within(5_000)
    end
  end

  test "late answers are taken from the mailbox, and nothing else", context do
    socket = socket!(context, active: true)
    link = &Rtnl.message(16, 0, &1, @link)
    ack = &Rtnl.message(2, 0, &1, <<0::160>>)
    item = &{:netlink, socket, &1}
    to_group = &{:netlink, socket, &1, %{group: &2, nsid: nil}}
    # 5 was a query, and 6 a change.
    classes = %{5 => :answers, 6 => :changes}
    event = item.(link.(6))
    strange = [item.(link.(7)), to_group.(link.(5), 1), {:netlink, :another, link.(5)}, :other]
    mixed = item.(link.(5) <> link.(0))
    late = [item.(link.(5)), item.(ack.(5)), to_group.(link.(5), 0), item.(ack.(6))]
    for message <- [mixed, event | late] ++ strange ++ late, do: send(self(), message)
    assert Reader.drop_answers(socket, classes) == :ok
    assert Process.info(self(), :messages) == {:messages, [event | strange] ++ [mixed]}
  end

  test "a request that times out leaves nothing behind", context do
    for active <- [true, false] do
      socket = socket!(context, active: active)
      signal!(context.helper, :STOP)

      for ack <- [true, false] do
        opts = [timeout: 50, ack: ack]
        assert {:error, error} = NetlinkPort.request(socket, @getlink, @link, opts)
        assert error.reason == :etimedout
      end

      signal!(context.helper, :CONT)
      assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @link)
      eventually!(fn -> waited_for(context.server) == 0 end, 5_000)
    end
  end

  test "an owner that is killed during a request leaves nothing behind", context do
    for active <- [true, false] do
      test = self()

      owner =
        spawn(fn ->
          socket = socket!(context, active: active)
          send(test, :open)
          receive do: (:ask -> NetlinkPort.request(socket, @getlink, @link))
        end)

      assert_receive :open, within(5_000)
      signal!(context.helper, :STOP)
      send(owner, :ask)
      eventually!(fn -> waited_for(context.server) > 0 end, 5_000)
      Process.exit(owner, :kill)
      signal!(context.helper, :CONT)
      eventually!(fn -> length(board(context.server)) == 1 end, 5_000)
    end
  end

  test "the end of the helper is the error of the request at once", context do
    for active <- [true, false] do
      server = start_server!([])
      helper = os_pid(server)
      socket = socket!(%{context | server: server}, active: active)
      signal!(helper, :STOP)

      killer =
        Task.async(fn ->
          eventually!(fn -> waited_for(server) > 0 end, 5_000)
          signal!(helper, :KILL)
        end)

      opts = [timeout: :infinity]
      assert {:error, error} = NetlinkPort.request(socket, @getlink, @link, opts)
      assert {error.stage, error.reason} == {:thread, :epipe}
      assert Task.await(killer, within(5_000)) == :ok
    end
  end

  # Writes until the port is busy, and no frame more fits.
  defp fill(socket) do
    with :ok <- NetlinkPort.send(socket, [@link, :binary.copy(<<0>>, 60_000)], timeout: 0),
         do: fill(socket)
  end

  # An alias that is left behind counts as memory of its process.
  defp memory do
    :erlang.garbage_collect()
    [memory: memory, total_heap_size: words] = Process.info(self(), [:memory, :total_heap_size])
    memory - words * :erlang.system_info(:wordsize)
  end

  test "a request that cannot be written leaves nothing behind, however often it is tried",
       context do
    socket = socket!(context, active: true)
    signal!(context.helper, :STOP)
    assert {:error, %{reason: :eagain}} = fill(socket)

    ask = fn ->
      assert {:error, error} = NetlinkPort.request(socket, @getlink, @link, timeout: 0)
      assert {error.stage, error.reason} == {:send, :eagain}
    end

    ask.()
    before = memory()
    for _try <- 1..200, do: ask.()
    # Each alias is some 60 bytes.
    assert memory() - before < 200 * 10
    assert waited_for(context.server) == 0
    signal!(context.helper, :CONT)
  end

  test "requests on closed sockets leave nothing behind", context do
    for active <- [true, false] do
      test = self()
      before = length(board(context.server))
      socket = socket!(context, active: active)
      NetlinkPort.close(socket)
      assert {:error, %{reason: :ebadf}} = NetlinkPort.request(socket, @getlink, @link)

      # The socket is closed by another process while its owner asks.
      owner =
        spawn(fn ->
          socket = socket!(context, active: active)
          send(test, {:open, socket})
          receive do: (:ask -> send(test, NetlinkPort.request(socket, @getlink, @link)))
          receive do: (:stop -> :ok)
        end)

      assert_receive {:open, socket}, within(5_000)
      signal!(context.helper, :STOP)
      closer = Task.async(fn -> NetlinkPort.close(socket) end)
      eventually!(fn -> NetlinkPort.recv(socket, 0) |> elem(1) |> Map.get(:reason) == :ebadf end)
      send(owner, :ask)
      assert_receive {:error, %{reason: :ebadf}}, within(5_000)
      signal!(context.helper, :CONT)
      assert Task.await(closer, within(5_000)) == :ok
      send(owner, :stop)
      eventually!(fn -> length(board(context.server)) == before end, 5_000)
    end
  end

  test "a process that is killed during its request on another process's socket leaves nothing behind",
       context do
    socket = socket!(context, active: false, sndbuf: 4_608)
    before = length(board(context.server))

    for payload <- [@link, large()] do
      signal!(context.helper, :STOP)
      asker = spawn(fn -> NetlinkPort.request(socket, @getlink, payload) end)
      eventually!(fn -> waited_for(context.server) > 0 end, 5_000)
      Process.exit(asker, :kill)
      eventually!(fn -> not Process.alive?(asker) end)
      signal!(context.helper, :CONT)
      eventually!(fn -> length(board(context.server)) == before end, 5_000)
    end
  end

  # At each moment between the row and its end.
  test "what a process that is killed has left on the board goes with the next ping" do
    server = start_server!(ping_interval: 20)
    [passive, active] = for active <- [false, true], do: open!(server, active)
    before = length(board(server))
    for socket <- [passive, active], do: :ok = NetlinkPort.close(socket)
    helper = passive.helper

    for begin <- [
          fn -> {:ok, _} = Client.begin(passive, "", :passive, 5_000) end,
          fn -> {:ok, _} = Client.begin(active, "", :active, 5_000) end,
          fn -> Reference.expect(helper, {:caller, make_ref()}) end,
          fn -> Reference.expect(helper, {:asker, self(), 1}) end,
          fn -> Reference.expect_failure(helper, 1, {:failure, make_ref()}) end
        ] do
      left = left_by(begin)
      assert {left, length(board(server)) > before - 2} == {left, true}
      # The helper has answered, and the row of a process that lives stays.
      {:ok, _info} = NetlinkPort.info(server)
      :ok = Reference.forget_dead(helper)
      assert {left, length(board(server)) > before - 2} == {left, true}
      Process.exit(left, :kill)
      eventually!(fn -> length(board(server)) == before - 2 end)
    end
  end

  defp open!(server, active) do
    {:ok, socket} = NetlinkPort.open(server, :route, active: active)
    socket
  end

  # The process that has begun, and does no more.
  defp left_by(begin) do
    test = self()

    pid =
      spawn(fn ->
        begin.()
        send(test, {:begun, self()})
        Process.sleep(:infinity)
      end)

    assert_receive {:begun, ^pid}, within(5_000)
    pid
  end

  test "a failure that comes after the request was given up is not kept", context do
    %{helper: helper} = state = :sys.get_state(context.server)
    reference = Reference.expect(helper, {:asker, self(), 1})
    true = Reference.forget(helper, reference)
    Commands.replied(state, reference, {:error, {:send, 90, ""}})
    assert waited_for(context.server) == 0

    refute Reference.put_failure(helper, reference, {:send, 90, ""})
    assert Reference.failure(helper, reference) == nil
  end

  test "an overdue answer makes the server suspect its helper only after call_timeout",
       context do
    server = start_server!(call_timeout: :infinity, ping_interval: :infinity)
    helper = os_pid(server)

    for active <- [true, false] do
      socket = socket!(%{context | server: server}, active: active)
      signal!(helper, :STOP)
      opts = [timeout: :infinity, total_timeout: 20]
      assert {:error, error} = NetlinkPort.dump(socket, @getlink, <<0::128>>, opts)
      assert error.reason == :etimedout
      refute :sys.get_state(server).suspect?
      signal!(helper, :CONT)
    end

    # The server is asked as well, where the time was that long.
    timeout = within(500)
    server = start_server!(call_timeout: timeout)
    socket = socket!(%{context | server: server}, active: true)
    signal!(os_pid(server), :STOP)
    assert {:error, _overdue} = NetlinkPort.request(socket, @getlink, @link, timeout: timeout)
    assert_receive {:netlink_closed, ^socket, :stuck}, within(10_000)
  end

  # Without taking them from the mailbox.
  defp answers(socket) do
    {:messages, messages} = Process.info(self(), :messages)
    for {:netlink, ^socket, datagram} <- messages, do: datagram
  end

  test "the owner is sent no error for a socket that is closed when the answer has come",
       context do
    socket = socket!(context, active: true)

    opts = %{timeout: within(5_000), total_timeout: within(5_000)}
    {:ok, exchange} = Exchange.new(:route, {:request, @getlink, @link, %{flags: 0, ack: false}})

    {exchange, [datagram], _next} = Exchange.number(exchange, 1)
    reader = Reader.new(socket, exchange, opts, :infinity)
    :ok = NetlinkPort.send(socket, datagram)
    eventually!(fn -> socket |> answers() |> length() == 1 end)
    NetlinkPort.close(socket)
    # As it is when the server was asked for the answer before that was in the mailbox.
    reader = %{reader | active?: false}
    assert {:datagram, _link, nil, reader} = Reader.read(reader)
    refute_received _message
    assert {:error, %{reason: :ebadf}} = Reader.read(reader)
  end
end
