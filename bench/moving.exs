# What a move from a NIF costs in time. Compares examples/drop_in_socket.ex with OTP's own socket, which the user of
# a NIF has, by turns. Also measures each call that waits, for callers with several numbers of messages in their
# mailbox.
#
#     mix run bench/moving.exs        (as root)

folder = __DIR__

for file <- ~w(baseline measure place work),
    do: Code.require_file(file <> ".exs", folder)

Code.require_file("../examples/drop_in_socket.ex", folder)

defmodule Bench.Moving do
  alias Bench.{Baseline, Measure, Place, Work}
  alias Examples.DropInSocket

  @requests 500
  @opens 200
  @calls 200
  @mailboxes [0, 10_000, 50_000]

  def main do
    {:ok, _server} = NetlinkPort.start_link()
    _sweeper = Place.sweep_at_end()

    Place.with_netns("moving", fn netns ->
      IO.puts("#{System.schedulers_online()} processors, load #{load()}\n")
      beside(netns)
      waiting(netns)
    end)
  end

  defp load, do: "/proc/loadavg" |> File.read!() |> String.split() |> hd()

  defp beside(netns) do
    IO.puts("us of one                       drop-in   :socket   ratio   quartiles")

    for {what, ours, theirs} <- [
          {"request and its answer", fn -> asked(netns) end, fn -> asked_baseline(netns) end},
          {"the same, sent without waiting", fn -> posted(netns) end,
           fn -> asked_baseline(netns) end},
          {"open, bind and close", fn -> opened(netns) end, fn -> opened_baseline(netns) end}
        ] do
      told = Measure.compare(ours, theirs)

      :io.format("~-30s ~8.1f  ~8.1f  ~6.2f   ~.2f - ~.2f~n", [
        what,
        told.ours,
        told.baseline,
        told.ratio,
        told.low,
        told.high
      ])
    end
  end

  defp open!(netns) do
    {:ok, socket} = DropInSocket.open(0, {:path, "/run/netns/" <> netns})
    socket
  end

  defp asked(netns) do
    socket = open!(netns)

    figure =
      Measure.each(@requests, fn n ->
        :ok = DropInSocket.send(socket, Work.getlink(n))
        {:ok, _datagram} = DropInSocket.recv_datagram(socket)
      end)

    DropInSocket.close(socket)
    figure
  end

  defp posted(netns) do
    socket = open!(netns)

    figure =
      Measure.each(@requests, fn n ->
        :ok = NetlinkPort.send(socket.socket, Work.getlink(n))
        {:ok, _datagram} = DropInSocket.recv_datagram(socket)
      end)

    DropInSocket.close(socket)
    figure
  end

  defp asked_baseline(netns) do
    socket = Baseline.open(netns)

    figure =
      Measure.each(@requests, fn n ->
        Baseline.send(socket, Work.getlink(n))
        Baseline.recv(socket)
      end)

    Baseline.close(socket)
    figure
  end

  defp opened(netns), do: Measure.each(@opens, fn _n -> DropInSocket.close(open!(netns)) end)

  defp opened_baseline(netns),
    do: Measure.each(@opens, fn _n -> Baseline.close(Baseline.open(netns)) end)

  defp waiting(netns) do
    %{socket: socket} = open!(netns)
    {:ok, pin} = NetlinkPort.pin({:name, netns})

    calls = [
      {"recv/2", fn _ -> NetlinkPort.recv(socket, 0) end},
      {"send/3, wait: true", fn _ -> NetlinkPort.send(socket, "", wait: true) end},
      {"info/1 of a socket", fn _ -> NetlinkPort.info(socket) end},
      {"info/1 of a pin", fn _ -> NetlinkPort.info(pin) end},
      {"stats/1 of a socket", fn _ -> NetlinkPort.stats(socket) end},
      {"setopts/2 of active", fn _ -> NetlinkPort.setopts(socket, active: false) end},
      {"setopts/2 of rcvbuf", fn _ -> NetlinkPort.setopts(socket, rcvbuf: 100_000) end},
      {"getopts/2", fn _ -> NetlinkPort.getopts(socket, [:active, :rcvbuf]) end},
      {"memberships/1", fn _ -> NetlinkPort.memberships(socket) end},
      {"open/3 and close/1", fn _ -> DropInSocket.close(open!(netns)) end}
    ]

    IO.puts("\nus, with so many messages in the mailbox   " <> Enum.join(@mailboxes, "   "))

    for {what, call} <- calls do
      figures = for size <- @mailboxes, do: Measure.single(fn -> with_mailbox(size, call) end)
      cells = Enum.map_join(figures, "   ", &:erlang.float_to_binary(&1, decimals: 1))
      IO.puts(String.pad_trailing(what, 43) <> cells)
    end
  end

  defp with_mailbox(size, call) do
    for n <- 1..size//1, do: send(self(), {:other, n})
    Measure.each(@calls, call)
  end
end

Bench.Moving.main()
