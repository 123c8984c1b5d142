defmodule Bench.Dumps do
  @moduledoc false
  # Many routes: made in batches, dumped and decoded.

  alias Bench.{Baseline, Measure, Place, Requests, Work}
  alias NetlinkPort.Message

  @batch 100_000
  # The routes of a datagram: each takes 44 bytes.
  @together 500

  def batch(context) do
    socket = Requests.open!(context, active: true, sndbuf: 4_000_000)

    time =
      Measure.milliseconds(fn ->
        for first <- 0..(@batch - 1)//@together do
          :ok = NetlinkPort.send(socket, together(first, first + @together - 1))
        end

        # NLMSG_ERROR of errno 0 is the ack of the last message of a datagram.
        for first <- 0..(@batch - 1)//@together do
          sequence = first + @together

          receive do
            {:netlink, ^socket,
             <<_::32, 2::16-native, _::16, ^sequence::32-native, _::32, 0::32, _::binary>>} ->
              :ok
          end
        end
      end)

    NetlinkPort.close(socket)
    Place.flush(context.netns)
    time
  end

  def batch_ip(context) do
    lines = Place.routes(@batch)
    time = Measure.milliseconds(fn -> Place.batch(lines, context.netns) end)
    Place.flush(context.netns)
    time
  end

  @doc "Fills the main table with `count` routes."
  def fill(context, count) do
    socket = Requests.open!(context, active: true, sndbuf: 4_000_000)

    for first <- 0..(count - 1)//@together do
      :ok = NetlinkPort.send(socket, together(first, min(first + @together, count) - 1))
      receive do: ({:netlink, ^socket, _ack} -> :ok)
    end

    NetlinkPort.close(socket)
  end

  defp together(first, last), do: for(n <- first..last, do: Work.new_route(n, n + 1, n == last))

  def dump(context, active, read) do
    socket = Requests.open!(context, active: active)

    time =
      Measure.milliseconds(fn ->
        :ok = NetlinkPort.send(socket, Work.dump_routes(1))
        drain(fn -> next(socket, active) end, read)
      end)

    NetlinkPort.close(socket)
    time
  end

  defp next(socket, true), do: receive(do: ({:netlink, ^socket, datagram} -> datagram))

  defp next(socket, false) do
    {:ok, datagram} = NetlinkPort.recv(socket, 5_000)
    datagram
  end

  def dump_baseline(context, read) do
    socket = Baseline.open(context.netns)

    time =
      Measure.milliseconds(fn ->
        Baseline.send(socket, Work.dump_routes(1))
        drain(fn -> Baseline.recv(socket) end, read)
      end)

    Baseline.close(socket)
    time
  end

  defp drain(next, read) do
    datagram = next.()
    _routes = read.(datagram)
    if Work.last?(datagram), do: :ok, else: drain(next, read)
  end

  @doc "Counts all messages of `stream/4`."
  def stream(context) do
    socket = Requests.open!(context, active: false)

    time =
      Measure.milliseconds(fn ->
        count = socket |> NetlinkPort.stream(26, <<2, 0::88>>) |> Enum.count()
        true = count >= context.routes
      end)

    NetlinkPort.close(socket)
    time
  end

  @doc "The same loop by hand, with the same decoder, on OTP's socket."
  def stream_baseline(context) do
    dump_baseline(context, fn datagram ->
      {:ok, messages} = Message.decode(datagram)
      length(messages)
    end)
  end

  @doc "The most memory that the VM took for reading a stream, in MiB."
  def memory_of_stream(context) do
    socket = Requests.open!(context, active: false)
    :erlang.garbage_collect()
    before = :erlang.memory(:total)

    most =
      socket
      |> NetlinkPort.stream(26, <<2, 0::88>>)
      |> Stream.chunk_every(50_000)
      |> Stream.map(fn _messages -> :erlang.memory(:total) end)
      |> Enum.max()

    NetlinkPort.close(socket)
    (most - before) / 1_048_576
  end
end
