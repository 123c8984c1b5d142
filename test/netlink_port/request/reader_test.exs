defmodule NetlinkPort.Request.ReaderTest do
  # A request does not await the outcome of its own sendmsg(2): it waits for the answer, and the failure of the send comes
  # in its place.
  use NetlinkPort.Case, async: true

  @getlink 18
  @link <<0::32, 1::32-native, 0::64>>
  # More than the send buffer of a socket, so that sendmsg(2) is EMSGSIZE.
  @large [@link, :binary.copy(<<0>>, 200_000)]

  setup do
    server = start_server!([])
    %{server: server, helper: os_pid(server), netns: netns!()}
  end

  defp open!(context, opts) do
    {:ok, socket} =
      NetlinkPort.open(context.server, :route, [netns: {:name, context.netns}] ++ opts)

    socket
  end

  defp board(server), do: :ets.tab2list(:sys.get_state(server).helper.board)

  # The commands that somebody waits for.
  defp waited_for(server), do: Enum.count(board(server), &is_integer(elem(&1, 0)))

  test "a failed send is the error of its request at once", context do
    for active <- [true, false, :once, 100] do
      socket = open!(context, active: active, sndbuf: 4_608)

      for ack <- [true, false] do
        opts = [ack: ack, timeout: :infinity]
        assert {:error, error} = NetlinkPort.request(socket, @getlink, @large, opts)
        assert {error.stage, error.reason} == {:send, :emsgsize}
        assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @link, ack: ack)
      end

      assert {:error, error} = NetlinkPort.dump(socket, @getlink, @large, timeout: :infinity)
      assert {error.stage, error.reason, error.messages} == {:send, :emsgsize, []}
      assert {:ok, [_lo]} = NetlinkPort.dump(socket, @getlink, @link)
      refute_received _message
      assert waited_for(context.server) == 0
    end
  end

  test "the error of an earlier send goes to the owner, not to the request", context do
    for active <- [true, false] do
      socket = open!(context, active: active, sndbuf: 4_608)
      :ok = NetlinkPort.send(socket, :binary.copy(<<0>>, 200_000))
      assert {:ok, [_lo]} = NetlinkPort.request(socket, @getlink, @link)
      assert_receive {:netlink_error, ^socket, %{stage: :send, reason: :emsgsize}}, within(5_000)
    end
  end

  test "a request that times out leaves nothing behind", context do
    for active <- [true, false] do
      socket = open!(context, active: active)
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
          socket = open!(context, active: active)
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
      socket = open!(%{context | server: server}, active: active)
      signal!(helper, :STOP)

      killer =
        Task.async(fn ->
          eventually!(fn -> waited_for(server) > 0 end, 5_000)
          signal!(helper, :KILL)
        end)

      opts = [timeout: :infinity]
      assert {:error, error} = NetlinkPort.request(socket, @getlink, @link, opts)
      assert {error.stage, error.reason} == {:thread, :epipe}
      assert Task.await(killer) == :ok
    end
  end
end
