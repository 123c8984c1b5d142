defmodule Bench.Goals do
  @moduledoc false
  # What a single request costs, in each of the ways to make one, beside what it is measured against, with the ratio
  # that the project aims at.

  alias Bench.{Baseline, Floor, Measure, Place, Requests, Work}
  alias NetlinkPort.Connection

  @requests 2_000
  @link <<0::32, 1::32-native, 0::64>>
  @decoding 30
  @mailbox 50_000

  @doc "`{name, against, unit, goal, ours, theirs}`. The last two are functions that return a figure; less is better."
  def rows(context) do
    bare = {"send/2 and a message", fn -> Requests.serial(context, true) end}
    in_vm = {"in the VM", fn -> Requests.serial_baseline(context) end}
    both = {"in the VM, both read", fn -> baseline(context, &ask_acked/2) end}
    many = {"in the VM, 64 sockets", fn -> Requests.many_baseline(context, 64) end}
    program = Floor.build()
    floor = {"the floor", fn -> Floor.request(program, context.netns, @requests) end}

    [
      row("request/4 without ack, active", bare, 1.2, fn -> request(context, true, false) end),
      row("request/4 with ack, active", both, 1.8, fn -> request(context, true, true) end),
      row("request/4 with ack, passive", both, 1.8, fn -> request(context, false, true) end),
      row("Connection.request/4 without ack", bare, 1.5, fn -> connection(context, false) end),
      row("Connection.request/4 with ack", bare, 2.0, fn -> connection(context, true) end),
      row("the same, 64 callers, without ack", many, 1.2, fn -> callers(context, 64) end),
      row("send/2 and a message, 64 sockets", many, 1.3, fn -> Requests.many(context, 64) end),
      row("send/2 and a message", floor, 1.15, elem(bare, 1)),
      row(
        "open, bind and close",
        {"in the VM", fn -> Requests.opens_baseline(context) end},
        1.0,
        fn ->
          Requests.opens(context)
        end
      ),
      row("send/2 and a message, 2 busy loops", busy(in_vm), 3.0, beside_loops(elem(bare, 1))),
      row(
        "decoding for 30 us after each answer",
        {"in the VM", fn -> baseline(context, &ask_decoded/2) end},
        1.3,
        fn ->
          decoding(context)
        end
      ),
      row("request/4 without ack, passive", in_vm, 1.3, fn -> request(context, false, false) end)
    ] ++
      waiting(context) ++
      [
        row("CPU time of a request", {"in the VM", fn -> cpu_baseline(context) end}, 2.5, fn ->
          cpu(context)
        end),
        {"100 bytes in a mailbox", "as `:gen_udp` has them", "bytes", 1.3,
         fn -> waiting_bytes(context) end, &waiting_udp/0}
      ]
  end

  defp row(name, {against, theirs}, goal, ours), do: {name, against, "us", goal, ours, theirs}

  ## One caller

  defp request(context, active, ack) do
    socket = Requests.open!(context, active: active)

    figure =
      Measure.each(@requests, fn _n ->
        {:ok, [_]} = NetlinkPort.request(socket, 18, @link, ack: ack)
      end)

    NetlinkPort.close(socket)
    figure
  end

  defp connection(context, ack) do
    connection = start_connection(context)

    figure =
      Measure.each(@requests, fn _n ->
        {:ok, [_]} = Connection.request(connection, 18, @link, ack: ack)
      end)

    GenServer.stop(connection)
    figure
  end

  defp start_connection(%{server: server, netns: netns}) do
    opts = [server: server, protocol: :route, netns: {:name, netns}]
    {:ok, connection} = Connection.start_link(opts)
    connection
  end

  defp callers(context, count) do
    connection = start_connection(context)

    figure =
      Requests.at_once(count, fn ->
        {fn _n -> {:ok, [_]} = Connection.request(connection, 18, @link, ack: false) end,
         fn -> :ok end}
      end)

    GenServer.stop(connection)
    figure
  end

  defp baseline(context, ask) do
    socket = Baseline.open(context.netns)
    figure = Measure.each(@requests, &ask.(socket, &1))
    Baseline.close(socket)
    figure
  end

  defp ask_acked(socket, n) do
    Baseline.send(socket, Work.getlink(n, 5))
    {Baseline.recv(socket), Baseline.recv(socket)}
  end

  ## A client that decodes

  defp decoding(context) do
    socket = Requests.open!(context, active: true)

    figure =
      Measure.each(@requests, fn n ->
        Requests.ask(socket, true, n)
        decode()
      end)

    NetlinkPort.close(socket)
    figure
  end

  defp ask_decoded(socket, n) do
    Requests.ask_baseline(socket, n)
    decode()
  end

  defp decode, do: busy_until(System.monotonic_time(:microsecond) + @decoding)

  defp busy_until(time) do
    if System.monotonic_time(:microsecond) < time, do: busy_until(time), else: :ok
  end

  ## A busy machine

  defp busy({against, theirs}), do: {against <> ", 2 busy loops", beside_loops(theirs)}

  defp beside_loops(measured) do
    fn ->
      # Never of a real-time policy, even if the benchmark is.
      args = ["-o", "0", "sh", "-c", "while :; do :; done"]
      loops = for _ <- 1..2, do: Port.open({:spawn_executable, "/usr/bin/chrt"}, args: args)
      pids = for loop <- loops, do: loop |> Port.info(:os_pid) |> elem(1)
      for loop <- loops, do: Place.same_priority(loop)

      try do
        measured.()
      after
        System.cmd("kill", ["-9" | Enum.map(pids, &"#{&1}")])
      end
    end
  end

  ## A long mailbox

  defp waiting(context) do
    calls = [
      {"recv/2", fn socket -> {:error, _} = NetlinkPort.recv(socket, 0) end},
      {"info/1", fn socket -> {:ok, _} = NetlinkPort.info(socket) end},
      {"open/3 and close/1",
       fn _socket -> context |> Requests.open!(active: false) |> NetlinkPort.close() end}
    ]

    for {name, call} <- calls do
      {"#{name}, 50,000 other messages", "with none", "us", 1.2,
       fn -> called(context, call, @mailbox) end, fn -> called(context, call, 0) end}
    end
  end

  defp called(context, call, mailbox) do
    socket = Requests.open!(context, active: false)

    # Otherwise each garbage collection of the caller visits all of these, which costs more than the calls, and says
    # nothing of them.
    Process.flag(:message_queue_data, :off_heap)
    for n <- 1..mailbox//1, do: send(self(), {:other, n})
    for _ <- 1..50, do: call.(socket)
    figure = Measure.each(500, fn _n -> call.(socket) end)
    NetlinkPort.close(socket)
    figure
  end

  ## CPU time

  defp cpu(context) do
    socket = Requests.open!(context, active: true)
    os_pid = Measure.os_pid(context.server)
    figure = cpu_of([System.pid(), os_pid], &Requests.ask(socket, true, &1))
    NetlinkPort.close(socket)
    figure
  end

  defp cpu_baseline(context) do
    socket = Baseline.open(context.netns)
    figure = cpu_of([System.pid()], &Requests.ask_baseline(socket, &1))
    Baseline.close(socket)
    figure
  end

  defp cpu_of(os_pids, ask) do
    count = 5 * @requests
    for n <- 1..200, do: ask.(n)
    before = sum(os_pids)
    for n <- 1..count, do: ask.(n)
    1_000 * (sum(os_pids) - before) / count
  end

  defp sum(os_pids), do: os_pids |> Enum.map(&Measure.cpu/1) |> Enum.sum()

  ## Memory of what waits

  @waiting 1_000

  defp waiting_bytes(context) do
    holder = holder()
    socket = Requests.open!(context, active: true, ext_ack: false, owner: holder)

    # NLMSG_ERROR of a request of 80 bytes: 100 bytes with both headers.
    request = <<80::32-native, 18::16-native, 5::16-native, 1::32, 0::32, 0::32, 0::32, 0::512>>
    request = binary_part(request, 0, 80)

    figure =
      held(
        holder,
        fn -> :ok = NetlinkPort.send(socket, request) end,
        &match?({:netlink, ^socket, <<_::binary-100>>}, &1)
      )

    NetlinkPort.close(socket)
    figure
  end

  defp waiting_udp do
    holder = holder()
    {:ok, receiver} = :gen_udp.open(0, [:binary, ip: {127, 0, 0, 1}, active: true])
    :ok = :gen_udp.controlling_process(receiver, holder)
    {:ok, port} = :inet.port(receiver)
    {:ok, sender} = :gen_udp.open(0)
    send = fn -> :ok = :gen_udp.send(sender, {127, 0, 0, 1}, port, :binary.copy(<<7>>, 100)) end
    figure = held(holder, send, &match?({:udp, _, _, _, <<_::binary-100>>}, &1))
    :gen_udp.close(sender)
    :gen_udp.close(receiver)
    figure
  end

  # A process that reads nothing. Its messages are off the heap, where each has a fragment of exactly its size. A heap
  # grows in steps, which are larger than what is measured.
  defp holder do
    idle = fn -> Process.sleep(:infinity) end
    :erlang.spawn_opt(idle, [:link, message_queue_data: :off_heap])
  end

  # The bytes of a message: what the process and the binaries grow by, while nothing of it is read.
  defp held(holder, send, expected?) do
    before = memory(holder)

    for n <- 1..@waiting do
      send.()
      arrived(holder, n)
    end

    grown = memory(holder) - before
    {:messages, messages} = Process.info(holder, :messages)
    true = Enum.all?(messages, expected?)
    Process.unlink(holder)
    Process.exit(holder, :kill)
    grown / @waiting
  end

  # Each is awaited: the kernel drops what does not fit into the buffer of a socket.
  defp arrived(holder, count) do
    {:message_queue_len, length} = Process.info(holder, :message_queue_len)
    if length < count, do: arrived(holder, count), else: :ok
  end

  defp memory(holder) do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    {:memory, own} = Process.info(holder, :memory)
    own + :erlang.memory(:binary)
  end
end
