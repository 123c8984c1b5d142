defmodule NetlinkPort.TopTest do
  # The screen alone, and with real traffic.
  # Not async: top asks every server of the VM, and wakes servers that must sleep in their own tests.
  use NetlinkPort.Case, async: false

  import ExUnit.CaptureIO

  alias NetlinkPort.Top
  alias NetlinkPort.Top.Screen

  defp socket(handle, fields) do
    Map.merge(
      %{
        handle: handle,
        protocol: :route,
        netns: {:name, "blue"},
        owner: self(),
        received: 0,
        received_bytes: 0,
        sent: 0,
        sent_bytes: 0,
        drops: 0,
        foreign: 0,
        queued_bytes: 0,
        queue_limit: 200_000,
        window: 1_000_000,
        window_left: 1_000_000,
        kept: 0
      },
      Map.new(fields)
    )
  end

  defp server(sockets, fields \\ []) do
    Map.merge(
      %{
        name: MyApp.Netlink,
        os_pid: 4242,
        uptime: 3_723_000,
        rss: 2_200_000,
        cpu: 100,
        restarts: 1,
        fds: 9,
        outgoing: 0,
        sockets: sockets
      },
      Map.new(fields)
    )
  end

  defp sample(at, servers) do
    %{node: :app@host, at: at, servers: servers, names: %{self() => "MyApp.Owner"}}
  end

  defp words(line), do: String.split(line)

  defp line!(lines, start),
    do:
      Enum.find(lines, &(hd(words(&1) ++ [""]) == start)) ||
        flunk("no #{start} in #{inspect(lines)}")

  describe "the screen" do
    test "shows rates between two samples, drops, and where datagrams wait" do
      pid = idle_process()
      before = [socket(7, received: 100, received_bytes: 10_000, sent: 5, drops: 2)]

      now = [
        socket(7,
          received: 600,
          received_bytes: 2_010_000,
          sent: 6,
          sent_bytes: 50,
          drops: 12,
          queued_bytes: 100_000,
          window_left: 250_000,
          kept: 3
        )
      ]

      before = sample(1_000, [{pid, server(before)}])
      lines = Screen.lines(before, sample(1_500, [{pid, server(now, cpu: 350)}]), :infinity)

      assert hd(lines) ==
               "netlink_port on app@host: servers 1, sockets 1, in 1k/s 4MB/s, out 2/s 100B/s, dropped 12 +10"

      assert words(line!(lines, "MyApp.Netlink")) ==
               ~w(MyApp.Netlink 4242 1h2m 2.2MB 50% 1 9 1 0)

      assert words(line!(lines, "7")) ==
               ~w(7 route blue MyApp.Owner 1k 4MB 2 100B 12 +10 50% 75% 3)
    end

    test "is sorted by rate, the busiest first, then by handle" do
      pid = idle_process()
      before = for n <- 1..4, do: socket(n, [])
      now = [socket(1, []), socket(2, sent: 5), socket(3, received: 9), socket(4, [])]

      looks =
        for {at, sockets} <- [{0, before}, {1_000, now}], do: sample(at, [{pid, server(sockets)}])

      lines = apply(Screen, :lines, looks ++ [:infinity])
      assert for([n | _] <- Enum.map(lines, &words/1), n =~ ~r/^\d+$/, do: n) == ~w(3 2 1 4)
    end

    test "shows pins behind the sockets, and how many there are" do
      pid = idle_process()
      pin = %{handle: 9, netns: {:name, "blue"}, owner: self()}
      known = [sockets: [socket(7, [])], pins: [pin, %{pin | handle: 10, netns: :host}]]
      lines = Screen.lines(nil, sample(1_000, [{pid, server([], known)}]), :infinity)
      assert hd(lines) =~ "servers 1, sockets 1, pins 2, in "
      assert words(line!(lines, "9")) == ~w(9 pin blue MyApp.Owner)

      assert ["10 pin host MyApp.Owner"] =
               lines |> Enum.take(-1) |> Enum.map(&Enum.join(words(&1), " "))
    end

    test "has no rates before the second sample, or of a new socket" do
      pid = idle_process()
      one = sample(0, [{pid, server([socket(1, received: 5)])}])

      assert ["1", "route", "blue", "MyApp.Owner", "-", "-", "-", "-" | _] =
               nil |> Screen.lines(one, :infinity) |> line!("1") |> words()

      two = sample(1_000, [{pid, server([socket(1, received: 6), socket(2, received: 5)])}])
      lines = Screen.lines(one, two, :infinity)
      assert ["2", _, _, _, "-" | _] = words(line!(lines, "2"))
      assert ["1", _, _, _, "1" | _] = words(line!(lines, "1"))
    end

    test "is empty without rows" do
      now = sample(0, [])
      assert Screen.lines(now, now, {0, 80}) == []
      assert Screen.lines(now, now, {-1, 80}) == []
    end

    test "fits the rows and columns of the terminal, and says how much is hidden" do
      servers =
        for n <- 1..30, do: {idle_process(), server([socket(n, [])], name: :"server_#{n}")}

      now = sample(0, servers)

      for rows <- [3, 8, 24, 60], columns <- [1, 20, 80, 200] do
        lines = Screen.lines(now, now, {rows, columns})
        assert length(lines) <= rows
        assert Enum.all?(lines, &(String.length(&1) <= columns))
      end

      lines = Screen.lines(now, now, {24, 200})
      assert length(lines) == 24
      assert List.last(lines) =~ ~r/^\.\.\. and \d+ more$/
      # Servers do not push sockets off the screen.
      assert Enum.count(lines, &(&1 =~ ~r/^ +\d+ route/)) >= 8
    end

    test "shows a server that does not answer, and the absence of servers" do
      pid = idle_process()

      assert Enum.any?(
               Screen.lines(nil, sample(0, [{pid, nil}]), :infinity),
               &(&1 == "#{inspect(pid)} does not answer")
             )

      assert hd(Screen.lines(nil, sample(0, []), {24, 80})) =~ "servers 0, sockets 0, in 0/s"
    end

    test "has no control characters, and keeps its columns" do
      pid = idle_process()
      path = "/run/a/very/long/path/to/somewhere/" <> "\e[2J\n" <> <<255>>

      lines =
        Screen.lines(
          nil,
          sample(0, [{pid, server([socket(1, netns: {:path, path})])}]),
          :infinity
        )

      refute Enum.any?(lines, &(&1 =~ ~r/[\e\n]/))
      assert Enum.all?(lines, &String.valid?/1)
      at = fn line, text -> line |> :binary.match(text) |> elem(0) end
      [titles] = Enum.filter(lines, &(&1 =~ "HANDLE"))
      # Counted in characters: the mark of a cut name has three bytes.
      assert at.(line!(lines, "1"), "MyApp.Owner") in at.(titles, "OWNER")..(at.(titles, "OWNER") +
                                                                               2)
    end

    test "shows rounded numbers with units" do
      counts = [
        {0, "0"},
        {999, "999"},
        {1_000, "1k"},
        {1_240.0, "1.2k"},
        {0.5, "0.5"},
        {99_999, "100k"},
        {12_345_678, "12M"}
      ]

      for {number, text} <- counts, do: assert({number, Screen.count(number)} == {number, text})

      for {number, text} <- [{0, "0B"}, {2_200_000, "2.2MB"}, {7.0e9, "7GB"}],
          do: assert(Screen.bytes(number) == text)
    end
  end

  # Asks without a pause until it is told to stop.
  defp traffic!(name) do
    test = self()

    pid =
      spawn_link(fn ->
        {:ok, socket} = NetlinkPort.open(name, :route, active: false)
        send(test, {:socket, socket})

        ask = fn -> NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>) end
        # Until the server has ended.
        ask |> Stream.repeatedly() |> Enum.find(&match?({:error, _}, &1))
      end)

    on_exit(fn -> Process.exit(pid, :kill) end)
    assert_receive {:socket, socket}
    Process.unlink(pid)
    socket
  end

  test "--once prints the rates of real traffic" do
    name = :"top_#{System.unique_integer([:positive])}"
    server = start_server!(name: name)
    socket = traffic!(name)
    {:ok, before} = NetlinkPort.stats(socket)
    began = System.monotonic_time(:millisecond)
    text = capture_io(fn -> assert Top.run(once: true, interval: 300) == :ok end)
    elapsed = System.monotonic_time(:millisecond) - began
    {:ok, later} = NetlinkPort.stats(socket)
    lines = String.split(text, "\n")
    assert line!(lines, inspect(name)) =~ "#{os_pid(server)}"

    [_handle, "route", "host", _owner, received, _, sent | _] =
      words(line!(lines, "#{socket.handle}"))

    # A request is two datagrams here and one there. The figures lie between those counted before and after.
    most = 1.1 * (later.received - before.received) / 0.3
    assert number(received) > 0 and number(received) <= most
    assert_in_delta number(received), 2 * number(sent), 0.1 * number(received) + 2
    assert elapsed >= 300
  end

  defp number(text) do
    {number, unit} = Float.parse(text)
    number * %{"" => 1, "k" => 1_000, "M" => 1_000_000}[unit]
  end

  describe "the live view" do
    test "redraws in place, asks for the size each time, and ends with q" do
      start_server!(name: name = :"top_#{System.unique_integer([:positive])}")
      test = self()

      size = fn ->
        send(test, :asked)
        {200, 120}
      end

      screen = capture_io("xyq", fn -> assert Top.run(interval: 60_000, size: size) == :ok end)
      assert_received :asked
      assert screen =~ "\e[?25l\e[H\e[J\e[Hnetlink_port on "
      assert screen =~ inspect(name)
      assert String.ends_with?(screen, "\e[K\r\n\e[J\e[?25h\n")
    end

    test "ends with Control-C" do
      assert capture_io("\x03", fn -> :ok = Top.run(interval: 60_000) end) =~ "netlink_port on "
    end

    test "ends when its terminal is gone, as when `rpc` is interrupted" do
      {:ok, terminal} = StringIO.open("")
      test = self()

      viewer =
        spawn_link(fn ->
          Process.group_leader(self(), terminal)

          size = fn ->
            StringIO.close(terminal)
            {24, 80}
          end

          send(test, {:result, Top.run(interval: 100, size: size), Process.info(self(), :links)})
        end)

      assert_receive {:result, :ok, {:links, [^test]}}
      assert is_pid(viewer)
    end

    test "raises other errors than that of a terminal that is gone" do
      capture_io(fn ->
        assert_raise FunctionClauseError, fn -> Top.run(size: fn -> {:none} end) end
      end)
    end

    test "leaves no process behind" do
      before = Process.info(self(), :links)
      capture_io("q", fn -> :ok = Top.run(interval: 60_000) end)
      assert Process.info(self(), :links) == before
    end
  end

  test "wrong options raise" do
    for wrong <- [[interval: 1], [interval: "1"], [once: 1], [bogus: true], :once] do
      assert_raise ArgumentError, fn -> Top.run(wrong) end
    end
  end

  describe "mix netlink_port.top" do
    test "prints its documentation for --help" do
      for help <- ["--help", "-h"] do
        text = capture_io(fn -> Mix.Tasks.NetlinkPort.Top.run([help]) end)
        assert text =~ "mix netlink_port.top" and text =~ "--interval"
      end
    end

    test "ends with 2 for unknown arguments, and names mix help" do
      for {arguments, told} <- [{["--bogus"], "--bogus"}, {["blue"], "unexpected argument: blue"}] do
        text =
          capture_io(:stderr, fn ->
            assert catch_exit(Mix.Tasks.NetlinkPort.Top.run(arguments)) == {:shutdown, 2}
          end)

        assert text =~ told <> "; see `mix help netlink_port.top`"
      end
    end
  end
end
