defmodule NetlinkPort.Connection.ProcessTest do
  # Requests that wait in the mailbox of a connection at the same time. A suspended connection gathers them.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Connection, Message}

  @moduletag :root

  @newlink 16
  @getlink 18
  # NFT_MSG_GETGEN of nf_tables
  @getgen 0xA10

  setup do
    netns = netns!()
    %{netns: netns, server: start_server!()}
  end

  defp connect!(%{netns: netns, server: server}, opts \\ []) do
    defaults = [server: server, protocol: :route, netns: {:name, netns}]
    spec = {Connection, Keyword.merge(defaults, opts)}
    start_supervised!(Supervisor.child_spec(spec, id: make_ref(), restart: :temporary))
  end

  defp link(index), do: <<0::32, index::32-native, 0::64>>

  defp state(connection), do: :sys.get_state(connection)

  # How many datagrams the connection has sent.
  defp sent(connection) do
    {:ok, %{sent: sent}} = NetlinkPort.stats(state(connection).socket)
    sent
  end

  # Makes these calls at the same time, in their order. Returns their outcomes in the same order.
  defp together(connection, calls) do
    :sys.suspend(connection)
    pids = for {call, count} <- Enum.with_index(calls, 1), do: queued!(connection, call, count)
    :sys.resume(connection)
    results(pids)
  end

  defp queued!(connection, call, count) do
    pid = spawn_reporting(call)

    eventually!(fn ->
      Process.info(connection, :message_queue_len) == {:message_queue_len, count}
    end)

    pid
  end

  test "requests that wait at the same time share a datagram, and each gets its own answer",
       context do
    connection = connect!(context)
    before = sent(connection)

    calls =
      for n <- 1..4 do
        [
          fn -> Connection.request(connection, @getlink, link(1)) end,
          fn -> Connection.request(connection, @getlink, link(1_000 + n), ack: false) end,
          fn -> Connection.request(connection, @newlink, link(2_000 + n), ext_ack: true) end
        ]
      end

    for [found, missing, refused] <-
          Enum.chunk_every(together(connection, List.flatten(calls)), 3) do
      assert {:ok, [%Message{type: @newlink}]} = found
      assert {:error, %Error{reason: :enodev}} = missing
      assert {:error, %Error{reason: :enodev}} = refused
    end

    # The first is sent at once: nothing was under way that it could wait for.
    assert sent(connection) - before == 2
    assert %{calls: calls, seqs: seqs, room: 16} = state(connection).calls
    assert {calls, seqs} == {%{}, %{}}
  end

  # A protocol, two requests, and what each is answered with.
  defp others do
    family = &[<<3, 1, 0::16>>, Attr.encode([{2, &1 <> <<0>>}])]

    [
      # CTRL_CMD_GETFAMILY
      {:generic, {16, family.("nlctrl")}, :ok, {16, family.("none")}, :enoent},
      # XFRM_MSG_GETSPDINFO, and XFRM_MSG_GETSA without a protocol
      {:xfrm, {0x25, <<0::32>>}, :ok, {0x12, <<0::192>>}, :einval},
      # SOCK_DIAG_BY_FAMILY of a connection of TCP that is not there, and of no family
      {:sock_diag, {20, <<2, 6, 0::432>>}, :enoent, {20, <<255, 0::440>>}, :einval}
    ]
  end

  test "requests share a datagram in each protocol where the kernel reads every message of it",
       context do
    for {protocol, one, answer, other, refusal} <- others() do
      connection = connect!(context, protocol: protocol, netns: :host)

      # Kernels without the protocol have no such socket.
      if state(connection).socket do
        before = sent(connection)

        calls =
          for {type, payload} <- [one, other, one, other],
              do: fn -> Connection.request(connection, type, payload) end

        outcomes = for outcome <- together(connection, calls), do: reason(outcome)
        assert {protocol, outcomes} == {protocol, [answer, refusal, answer, refusal]}
        assert sent(connection) - before == 2
      end
    end
  end

  defp reason({:ok, [_answer]}), do: :ok
  defp reason({:error, error}), do: error.reason

  test "dumps and batches do not share a datagram with requests around them", context do
    connection = connect!(context)
    before = sent(connection)
    get = fn -> Connection.request(connection, @getlink, link(1)) end
    dump = fn -> Connection.dump(connection, @getlink, <<0::128>>) end

    batch = fn ->
      Connection.batch(connection, [{@getlink, [], link(1)}, {@getlink, [], link(9)}])
    end

    assert [{:ok, [_lo]}, {:ok, [_]}, {:ok, links}, {:ok, [_]}, {:ok, outcomes}, {:ok, [_]}] =
             together(connection, [get, get, dump, get, batch, get])

    assert links != []
    assert [{:ok, [_]}, {:error, %Error{reason: :enodev}}] = outcomes
    # The dump is sent before all requests that wait.
    assert sent(connection) - before == 5
  end

  test "a datagram is never larger than any socket has room for", context do
    connection = connect!(context, sndbuf: 1)
    unknown = Attr.encode([{1_000, :binary.copy(<<0>>, 1_500)}])
    get = fn -> Connection.request(connection, @getlink, [link(1), unknown]) end
    outcomes = together(connection, List.duplicate(get, 12))
    assert Enum.all?(outcomes, &match?({:ok, [_lo]}, &1))
  end

  test "the kernel reads only the first message of a datagram of nfnetlink without CAP_NET_ADMIN: no two share one",
       context do
    set = ~w(--bounding-set -net_admin --inh-caps -net_admin)
    path = script!("exec setpriv #{Enum.join(set, " ")} #{helper()}")
    opts = [server: start_server!(executable: path), protocol: :netfilter, netns: :host]
    connection = connect!(context, opts)
    get = fn -> Connection.request(connection, @getgen, <<0::32>>) end
    outcomes = together(connection, List.duplicate(get, 6))
    for {:error, error} <- outcomes, do: assert({error.stage, error.reason} == {:request, :eperm})
    assert length(outcomes) == 6
  end

  test "the kernel looks up only the first message of a datagram of fib_lookup, and sends back the others: no two share one",
       context do
    connection = connect!(context, protocol: :fib_lookup)
    ip!(["-n", context.netns, "link", "set", "lo", "up"])

    # struct fib_result_nl of 127.0.0.1. The type of the route that is found is at its byte 14: RTN_LOCAL, 2.
    lookup = fn -> Connection.request(connection, 0, <<127, 0, 0, 1, 0::128>>) end
    outcomes = together(connection, List.duplicate(lookup, 4))
    for {:ok, [found]} <- outcomes, do: assert(<<_::112, 2, _::binary>> = found.payload)
    assert length(outcomes) == 4
  end

  test "requests that wait at the same time for a busy port are all sent when it has room",
       context do
    connection = connect!(context)
    {:ok, other} = NetlinkPort.open(context.server, :route, active: false)
    os_pid = os_pid(context.server)
    signal!(os_pid, :STOP)
    on_exit(fn -> as_root("kill", ["-CONT", "#{os_pid}"]) end)
    get = fn -> Connection.request(connection, @getlink, link(1), timeout: :infinity) end
    fill!(other, :binary.copy(<<0>>, 1_000_000))
    first = spawn_reporting(get)
    eventually!(fn -> map_size(state(connection).senders) == 1 end)
    :sys.suspend(connection)
    pids = for n <- 1..5, do: queued!(connection, get, n)
    :sys.resume(connection)
    eventually!(fn -> map_size(state(connection).senders) == 6 end)
    signal!(os_pid, :CONT)
    assert Enum.all?(results([first | pids]), &match?({:ok, [_lo]}, &1))
  end

  # Sends until the port is busy.
  defp fill!(socket, datagram) do
    case NetlinkPort.send(socket, datagram, timeout: 0) do
      :ok -> fill!(socket, datagram)
      {:error, %Error{reason: :eagain}} -> :ok
    end
  end
end
