defmodule NetlinkPort.DropInSocketTest do
  # The example module that codec libraries use in place of their own socket module.
  use NetlinkPort.Case, async: false

  Code.require_file("../examples/drop_in_socket.ex", __DIR__)

  alias Examples.DropInSocket
  alias NetlinkPort.Message

  # The engine of a codec library, as such libraries write it: it calls its socket module, not NetlinkPort.
  defmodule Codec do
    import Bitwise

    alias Examples.DropInSocket, as: Socket
    alias NetlinkPort.Message

    @dump 0x300

    # RTM_GETLINK
    def links(socket), do: talk(socket, 18, @dump, <<0::128>>)
    def link(socket, index), do: talk(socket, 18, 0, <<0::32, index::32-native, 0::64>>)

    def talk(socket, type, flags, payload) do
      seq = Socket.next_seq(socket)
      message = %Message{type: type, flags: flags ||| 5, seq: seq, payload: payload}

      case Socket.send(socket, Message.encode(message)) do
        :ok -> reply(socket, seq, [])
        {:error, reason} -> {:error, {:send, reason}}
      end
    end

    defp reply(socket, seq, kept) do
      case Socket.recv_datagram(socket) do
        {:ok, datagram} ->
          {:ok, messages} = Message.decode(datagram)
          consume(Enum.filter(messages, &(&1.seq == seq)), socket, seq, kept)

        {:error, reason} ->
          {:error, {:recv, reason}}
      end
    end

    defp consume([], socket, seq, kept), do: reply(socket, seq, kept)
    defp consume([%{type: 3} | _], _socket, _seq, kept), do: {:ok, Enum.reverse(kept)}

    defp consume([%{type: 2, payload: <<0::32, _::binary>>} | _], _, _, kept),
      do: {:ok, Enum.reverse(kept)}

    defp consume([%{type: 2, payload: <<errno::signed-32-native, _::binary>>} | _], _, _, _),
      do: {:error, -errno}

    defp consume([message | rest], socket, seq, kept),
      do: consume(rest, socket, seq, [message | kept])

    def subscribed(protocol, netns, group) do
      with {:ok, socket} <- Socket.open(protocol, netns),
           :ok <- socket |> Socket.set_rcvbuf(1_000_000) |> Socket.close_on_error(socket),
           :ok <- socket |> Socket.add_membership(group) |> Socket.close_on_error(socket),
           do: {:ok, socket}
    end

    # A monitor that polls, and ends normally when its socket is closed. It has no other clause for messages.
    def follow(socket, subscriber) do
      case Socket.recv_datagram(socket, timeout: 20) do
        {:ok, datagram} ->
          {:ok, messages} = Message.decode(datagram)
          Kernel.send(subscriber, {:event, Enum.map(messages, & &1.type)})
          follow(socket, subscriber)

        {:error, :timeout} ->
          Kernel.send(subscriber, :quiet)
          follow(socket, subscriber)

        {:error, :closed} ->
          :closed
      end
    end
  end

  defmodule Holder do
    # No catch-all clause: a message that it does not know crashes it.
    use GenServer
    def start_link(opts), do: GenServer.start_link(__MODULE__, opts)
    def links(holder), do: GenServer.call(holder, :links)

    @impl true
    def init({protocol, netns}) do
      with {:ok, socket} <- Examples.DropInSocket.open(protocol, netns), do: {:ok, socket}
    end

    @impl true
    def handle_call(:links, _from, socket), do: {:reply, Codec.links(socket), socket}

    @impl true
    def handle_info(:tick, socket), do: {:noreply, socket}
  end

  describe "the drop-in socket" do
    @describetag :capture_log

    # The module uses the server that is named NetlinkPort.
    setup do
      %{server: start_server!(name: NetlinkPort)}
    end

    defp open_in!(netns, opts \\ []) do
      {:ok, socket} = DropInSocket.open(:route, {:path, netns_path(netns)}, opts)
      socket
    end

    test "has the fields that codec libraries use" do
      path = {:path, netns_path(netns!())}

      assert {:ok, %DropInSocket{netns: ^path, protocol: 0, seq: seq}} =
               DropInSocket.open(0, path)

      assert :atomics.get(seq, 1) == 0
      assert {:ok, %{netns: :host, protocol: :route}} = DropInSocket.open(:route)
    end

    test "sends requests in a namespace, by path and by process, and in the helper's own" do
      netns = netns!()
      sleeper = sleeper!(netns)

      for place <- [{:path, netns_path(netns)}, {:pid, sleeper}, :host] do
        {:ok, socket} = DropInSocket.open(:route, place)
        assert {:ok, [%Message{type: 16} | _]} = Codec.links(socket)
        assert {:ok, [%Message{type: 16}]} = Codec.link(socket, 1)
        assert {:error, 19} = Codec.link(socket, 1_000_000)
        assert {:error, :timeout} = DropInSocket.recv_datagram(socket, size: 8, timeout: 10)
        assert :ok = DropInSocket.close(socket)
        assert :ok = DropInSocket.close(socket)
        assert {:error, {:send, :closed}} = Codec.links(socket)
      end
    end

    test "reports a datagram that is longer than its size, and goes on with the next" do
      socket = open_in!(netns!())

      for size <- [8, [size: 8], [size: 8, timeout: 1_000]] do
        :ok = DropInSocket.send(socket, Rtnl.getlink(1, 1))
        assert {:error, :truncated} = DropInSocket.recv_datagram(socket, size)
      end

      :ok = DropInSocket.send(socket, Rtnl.getlink(1, 7))
      assert {:ok, <<_::64, 7::32-native, _::binary>>} = DropInSocket.recv_datagram(socket)
    end

    test "returns the kernel's error of a send at once, as :socket does" do
      socket = open_in!(netns!())
      assert {:error, :emsgsize} = DropInSocket.send(socket, :binary.copy(<<0>>, 10_000_000))
      assert {:error, :emsgsize} = DropInSocket.send(socket, :binary.copy(<<0>>, 20_000_000))
      assert :ok = DropInSocket.send(socket, ["", [<<16::32-native, 3::16-native>>, <<0::80>>]])
      assert {:error, :timeout} = DropInSocket.recv_datagram(socket, timeout: 10)
    end

    test "joins and leaves groups, and closes if a step of opening fails", %{server: server} do
      netns = netns!()
      path = {:path, netns_path(netns)}
      {:ok, socket} = Codec.subscribed(:route, path, 5)
      ip!(["-n", netns, "addr", "add", "10.0.0.1/32", "dev", "lo"])
      assert {:ok, <<_::32, 20::16-native, _::binary>>} = DropInSocket.recv_datagram(socket)
      assert :ok = DropInSocket.drop_membership(socket, 5)
      before = fds(server)
      assert {:error, :einval} = Codec.subscribed(:route, path, 1_000)
      assert fds(server) == before
      assert {:ok, 1} = DropInSocket.close_on_error({:ok, 1}, socket)
      assert :ok = DropInSocket.close_on_error(:ok, socket)
      assert {:ok, [_link]} = Codec.link(socket, 1)
    end

    test "has sequence numbers that start at 1, are unique across processes, and are not 0 after 32 bits" do
      {:ok, socket} = DropInSocket.open(:route)

      numbers =
        1..20
        |> Enum.map(fn _ ->
          Task.async(fn -> for _ <- 1..50, do: DropInSocket.next_seq(socket) end)
        end)
        |> Task.await_many(within(5_000))
        |> Enum.concat()

      assert Enum.sort(numbers) == Enum.to_list(1..1_000)
      :atomics.put(socket.seq, 1, 0xFFFFFFFE)
      assert [0xFFFFFFFF, 1, 2] = for(_ <- 1..3, do: DropInSocket.next_seq(socket))
      assert {:ok, [_link]} = Codec.link(socket, 1)
    end

    test "returns the errors of such socket modules" do
      file = tmp_path!("file")
      File.write!(file, "")
      assert {:error, {:open, 2}} = DropInSocket.open(:route, {:path, "/run/netns/no-such-name"})
      assert {:error, {:open, 3}} = DropInSocket.open(:route, {:pid, 0x7FFFFFFF})
      assert {:error, {:setns, 22}} = DropInSocket.open(:route, {:path, file})
      netns = {:path, netns_path(netns!())}
      assert {:error, {:socket, 93}} = DropInSocket.open(250, netns)
      assert {:error, {:socket, :eprotonosupport}} = DropInSocket.open(250)
      none = [server: :no_such_server]
      assert {:error, {:thread, 3}} = DropInSocket.open(:route, netns, none)
      assert {:error, {:socket, :esrch}} = DropInSocket.open(:route, :host, none)
      unbound = start_injected!("bind ENOMEM always")
      assert {:error, {:bind, :enomem}} = DropInSocket.open(0, :host, server: unbound)
      assert {:error, {:bind, :enomem}} = DropInSocket.open(0, netns, server: unbound)
    end

    test "lets a monitor wait or poll, and ends that when another process closes the socket" do
      netns = netns!()
      {:ok, socket} = Codec.subscribed(:route, {:path, netns_path(netns)}, 5)
      test = self()
      polling = Task.async(fn -> Codec.follow(socket, test) end)
      assert_receive :quiet
      assert_receive :quiet
      ip!(["-n", netns, "addr", "add", "10.0.0.1/32", "dev", "lo"])
      assert_receive {:event, [20]}
      {:ok, other} = DropInSocket.open(:route)
      waiting = Task.async(fn -> DropInSocket.recv_datagram(other) end)
      for closed <- [socket, other], do: :ok = DropInSocket.close(closed)
      assert Task.await(polling, within(5_000)) == :closed
      assert Task.await(waiting, within(5_000)) == {:error, :closed}
    end

    test "is closed when the helper ends, and ends no process" do
      holder = start_supervised!({Holder, {:route, :host}})
      {:ok, [_link | _]} = Holder.links(holder)
      {:ok, socket} = DropInSocket.open(:route)
      waiting = Task.async(fn -> DropInSocket.recv_datagram(socket) end)
      server = Process.whereis(NetlinkPort)
      monitor = Process.monitor(server)
      signal!(os_pid(server), "KILL")
      assert_receive {:DOWN, ^monitor, :process, ^server, _reason}
      assert Task.await(waiting, within(5_000)) == {:error, :closed}
      assert Holder.links(holder) == {:error, {:send, :closed}}

      for use <- [
            DropInSocket.recv_datagram(socket, timeout: 10),
            DropInSocket.add_membership(socket, 1),
            DropInSocket.set_rcvbuf(socket, 100_000)
          ],
          do: assert(use == {:error, :closed})

      assert Process.info(self(), :messages) == {:messages, []}
    end

    test "can belong to another owner than the opener, and be used by many processes" do
      netns = netns!()
      owner = start_supervised!({Agent, fn -> nil end})
      opening = Task.async(fn -> open_in!(netns, owner: owner) end)
      socket = Task.await(opening, within(5_000))
      refute Process.alive?(opening.pid)

      # One process asks at a time, as with any socket that several processes share.
      for _ <- 1..5 do
        assert {:ok, [_link | _]} =
                 Task.await(Task.async(fn -> Codec.links(socket) end), within(5_000))
      end

      :ok = stop_supervised(Agent)
      eventually!(fn -> Codec.links(socket) == {:error, {:send, :closed}} end)
      # Without `owner:` the socket belongs to the opener.
      opening = Task.async(fn -> open_in!(netns) end)
      lost = Task.await(opening, within(5_000))
      eventually!(fn -> Codec.links(lost) == {:error, {:send, :closed}} end)
    end
  end
end
