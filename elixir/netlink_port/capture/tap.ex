defmodule NetlinkPort.Capture.Tap do
  @moduledoc false
  # Copies datagrams to a capture, in the processes that send them and in the server that receives them. The tap is on
  # each socket's row of the board (NetlinkPort.Helper.Reference), which a sender reads anyway, and in the server's
  # table. `nil` means no tap.
  #
  # Invariants: no process waits for a capture. Datagrams that are sent to a capture and not yet written cost at most
  # `@room` bytes. A datagram that does not fit is dropped and counted.

  alias NetlinkPort.Socket
  alias NetlinkPort.Capture.Pcapng
  alias NetlinkPort.Helper.Protocol

  @room 8_388_608
  # Indices of the counters.
  @queued 1
  @dropped 2

  @type t :: {pid(), counters()}

  @typedoc "Direction, monotonic time, socket, the datagram's first bytes and full length, drops so far."
  @type passed ::
          {:passed, Pcapng.direction(), integer(), socket(), {binary(), non_neg_integer()},
           non_neg_integer()}
  @type socket :: {Socket.handle(), NetlinkPort.protocol(), NetlinkPort.netns()}

  @type counters :: :atomics.atomics_ref()

  @doc "New counters, shared by a tap and the capture that it leads to."
  @spec counters() :: counters()
  def counters, do: :atomics.new(2, [])

  @doc "Sends the capture a datagram as `t:passed/0`. If there is no room, the datagram is dropped and counted."
  @spec pass(t() | nil, Pcapng.direction(), Socket.t(), iodata()) :: :ok
  def pass(nil, _direction, _socket, _datagram), do: :ok

  def pass({pid, counters}, direction, socket, datagram) do
    stamp = System.monotonic_time()
    size = IO.iodata_length(datagram)
    cost = cost(min(size, Pcapng.longest()))

    if :atomics.add_get(counters, @queued, cost) <= @room do
      dropped = :atomics.get(counters, @dropped)
      source = {socket.handle, socket.protocol, socket.netns}
      send(pid, {:passed, direction, stamp, source, {start(datagram, size), size}, dropped})
      :ok
    else
      :atomics.sub(counters, @queued, cost)
      :atomics.add(counters, @dropped, 1)
    end
  end

  # A cut datagram is copied: a sub-binary would keep the whole in memory.
  defp start(datagram, size) do
    bytes = IO.iodata_to_binary(datagram)
    longest = Pcapng.longest()
    if size > longest, do: :binary.copy(binary_part(bytes, 0, longest)), else: bytes
  end

  @doc "What `size` bytes of a datagram cost until they are written."
  @spec cost(non_neg_integer()) :: pos_integer()
  def cost(size), do: Protocol.charge(size)

  @doc "Gives back the cost of datagrams that were written."
  @spec done(counters(), non_neg_integer()) :: :ok
  def done(counters, cost), do: :atomics.sub(counters, @queued, cost)

  @doc "How many datagrams were dropped."
  @spec dropped(counters()) :: non_neg_integer()
  def dropped(counters), do: :atomics.get(counters, @dropped)
end
