# Decides about the packets of a queue of netfilter: accepts them, or drops those that contain a text.
#
#     mix run examples/nfqueue.exs --netns NAME --queue NUMBER [--drop TEXT] [--for SECONDS]
#
# To try it:
#
#     ip netns add blue; ip -n blue link set lo up
#     ip netns exec blue iptables -A OUTPUT -p udp --dport 5353 -j NFQUEUE --queue-num 7
#     mix run examples/nfqueue.exs --netns blue --queue 7 --drop secret
#     ip netns exec blue bash -c 'echo hello >/dev/udp/127.0.0.1/5353; echo secret >/dev/udp/127.0.0.1/5353'

defmodule Examples.Nfqueue do
  alias NetlinkPort.{Attr, Message}

  # include/uapi/linux/netfilter/nfnetlink_queue.h. The types of NFNL_SUBSYS_QUEUE (3) begin at 0x300.
  @packet 0x300
  @verdict 0x301
  @config 0x302
  @cfg_cmd 1
  @cfg_params 2
  @bind 1
  @copy_packet 2
  @packet_hdr 1
  @verdict_hdr 2
  @payload 10
  @drop 0
  @accept 1

  # How many datagrams the owner takes at a time.
  @burst 100

  @switches [netns: :string, queue: :integer, drop: :string, for: :integer]

  def main(arguments) do
    {:ok, _supervisor} = Supervisor.start_link([NetlinkPort], strategy: :one_for_one)
    {opts, []} = OptionParser.parse!(arguments, strict: @switches)

    case bound({:name, opts[:netns]}, opts[:queue]) do
      {:ok, socket} ->
        IO.puts("waiting for packets of queue #{opts[:queue]}")
        if opts[:for], do: Process.send_after(self(), :over, opts[:for] * 1000)
        :ok = NetlinkPort.setopts(socket, active: @burst)
        decide(socket, opts[:queue], &verdict(&1, opts[:drop]))

      {:error, error} ->
        IO.puts(:stderr, Exception.message(error))
        System.halt(1)
    end
  end

  # The queue belongs to the socket that binds it: packets come to that socket, and verdicts of others are EPERM. Packets
  # for which its receive buffer has no room are dropped.
  defp bound(netns, queue) do
    opts = [netns: netns, active: false, rcvbuf: 8_000_000]

    with {:ok, socket} <- NetlinkPort.open(:netfilter, opts),
         {:ok, []} <- configure(socket, queue, {@cfg_cmd, <<@bind, 0, 0::16>>}),
         # Up to 65,535 bytes of each packet.
         {:ok, []} <- configure(socket, queue, {@cfg_params, <<0xFFFF::32, @copy_packet>>}),
         do: {:ok, socket}
  end

  defp configure(socket, queue, attr),
    do: NetlinkPort.request(socket, @config, [about(queue) | Attr.encode([attr])])

  # struct nfgenmsg
  defp about(queue), do: <<0, 0, queue::16>>

  defp decide(socket, queue, verdict) do
    receive do
      {:netlink, ^socket, datagram} ->
        {:ok, messages} = Message.decode(datagram)

        verdicts =
          for message <- messages, {id, packet} <- packet(message), do: {id, verdict.(packet)}

        :ok = give(socket, queue, verdicts)
        decide(socket, queue, verdict)

      {:netlink_passive, ^socket} ->
        :ok = NetlinkPort.setopts(socket, active: @burst)
        decide(socket, queue, verdict)

      {:netlink_overrun, ^socket, dropped} ->
        IO.puts("#{dropped} packets dropped: no room in the receive buffer")
        decide(socket, queue, verdict)

      {:netlink_closed, ^socket, reason} ->
        exit(reason)

      :over ->
        :ok
    end
  end

  defp packet(%Message{type: @packet, payload: <<_nfgenmsg::32, attrs::binary>>}) do
    {:ok, attrs} = Attr.decode(attrs)
    {:ok, <<id::32, _protocol::16, _hook::8>>} = Attr.binary(attrs, @packet_hdr)
    {:ok, packet} = Attr.binary(attrs, @payload)
    [{id, packet}]
  end

  # The error of a verdict: the packet has left the queue.
  defp packet(%Message{}), do: []

  # No NLM_F_ACK: an ack for each packet would take the room of packets in the receive buffer. The kernel reports errors
  # all the same.
  defp give(_socket, _queue, []), do: :ok

  defp give(socket, queue, verdicts) do
    messages =
      for {id, verdict} <- verdicts do
        attrs = Attr.encode([{@verdict_hdr, <<verdict::32, id::32>>}])

        %Message{
          type: @verdict,
          flags: Message.flags([:request]),
          payload: [about(queue) | attrs]
        }
      end

    NetlinkPort.send(socket, Message.encode(messages))
  end

  defp verdict(packet, text) do
    if text && String.contains?(packet, text) do
      IO.puts("dropped: #{byte_size(packet)} bytes")
      @drop
    else
      IO.puts("accepted: #{byte_size(packet)} bytes")
      @accept
    end
  end
end

Examples.Nfqueue.main(System.argv())
