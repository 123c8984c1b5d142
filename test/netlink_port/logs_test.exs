defmodule NetlinkPort.LogsTest do
  # The log: one line for each thing that happens, with metadata, and never a flood.
  use NetlinkPort.Case, async: false

  # A handler of logger(3) that sends the test every event of this library.
  def log(%{meta: %{netlink_port: _}} = event, %{config: %{test: test}}),
    do: send(test, {:logged, event})

  def log(_other, _config), do: :ok

  setup do
    id = :"logs_#{System.unique_integer([:positive])}"
    :ok = :logger.add_handler(id, __MODULE__, %{config: %{test: self()}})
    on_exit(fn -> :logger.remove_handler(id) end)
  end

  defp logged! do
    assert_receive {:logged, %{msg: {:string, line}} = event}
    {IO.iodata_to_binary(line), event}
  end

  test "the end of a helper is one line, which says how it ended" do
    name = :"logs_#{System.unique_integer([:positive])}"
    start_server!(name: name)
    {:ok, _socket} = NetlinkPort.open(name, :route, [])
    helper = os_pid(name)
    signal!(helper, :KILL)
    {line, event} = logged!()

    assert line ==
             "netlink_port #{inspect(name)}: helper #{helper} has ended by SIGKILL; its socket is closed"

    assert event.level == :error
    assert %{netlink_port: ^name, os_pid: ^helper, domain: [:elixir, :netlink_port]} = event.meta
    refute_received {:logged, _event}
  end

  test "an orderly end logs nothing" do
    server = start_server!()
    assert GenServer.stop(server) == :ok
    assert GenServer.stop(start_server!(), :shutdown) == :ok
    refute_received {:logged, _event}
  end

  test "a failed start is logged with its reason" do
    Process.flag(:trap_exit, true)
    {:error, error} = NetlinkPort.start_link(name: nil, executable: "/nowhere")
    {line, event} = logged!()
    assert line =~ Exception.message(error)
    assert is_pid(event.meta.netlink_port)
  end

  test "a helper in a crash loop logs a few lines a minute" do
    name = :"logs_#{System.unique_integer([:positive])}"

    start_supervised!(%{
      id: :loop,
      start:
        {Supervisor, :start_link,
         [[{NetlinkPort, name: name}], [strategy: :one_for_one, max_restarts: 1_000]]}
    })

    for _ <- 1..10 do
      server = Process.whereis(name)
      signal!(os_pid(name), :KILL)
      eventually!(fn -> Process.whereis(name) not in [nil, server] end)
    end

    lines = for _ <- 1..5, do: elem(logged!(), 0)
    assert Enum.count(lines, &(&1 =~ "more of this is not logged for a minute")) == 1
    assert List.last(lines) =~ "more of this"
    refute_received {:logged, _event}
  end

  test "frames that the helper cannot decode are one line with a count" do
    server = start_server!()
    %{helper: %{port: port}} = :sys.get_state(server)
    for _ <- 1..1_000, do: true = Port.command(port, "garbage")
    eventually!(fn -> match?({:ok, %{malformed: 1_000}}, NetlinkPort.stats(server)) end)
    {line, _event} = logged!()
    assert line =~ "the helper could not read a command: version"
    refute_received {:logged, _event}
  end

  test "frames that a helper in a crash loop cannot decode are a few lines a minute" do
    name = :"logs_#{System.unique_integer([:positive])}"
    malformed = frame!(:erlang.term_to_binary({:malformed, :version}))
    script = script!("#{print_frame(vector!("hello"))}; cat #{malformed}; sleep 0.02; exit 3")

    start_supervised!(%{
      id: :loop,
      start:
        {Supervisor, :start_link,
         [
           [{NetlinkPort, name: name, executable: script}],
           [strategy: :one_for_one, max_restarts: 1_000]
         ]}
    })

    for _ <- 1..10, do: assert_receive({:logged, _event})
    refute_receive {:logged, _event}, 1_000
  end

  test "a monitor and a connection whose server does not exist log nothing" do
    {:ok, _pid} = start_supervised({NetlinkPort.Monitor, server: :nowhere, groups: [1]})
    opts = [server: :nowhere, protocol: :route]
    {:ok, connection} = start_supervised({NetlinkPort.Connection, opts})
    eventually!(fn -> :sys.get_state(connection).backoff > 40 end)
    refute_received {:logged, _event}
  end

  test "a crash report is short, also if the last message was a datagram of a megabyte" do
    id = :"logs_all_#{System.unique_integer([:positive])}"
    test = self()
    :ok = :logger.add_handler(id, __MODULE__.All, %{config: %{test: test}})
    on_exit(fn -> :logger.remove_handler(id) end)
    large = :binary.copy("x", 1_000_000)
    script = "#{print_frame(vector!("hello"))}; exec cat #{unheard_of!(large)} -"
    server = start_server!(executable: script!(script))
    monitor = Process.monitor(server)
    assert_receive {:DOWN, ^monitor, :process, ^server, {:protocol_error, reason}}
    assert inspect(reason) =~ "unknown"
    reports = reports(server)
    assert reports != []
    for report <- reports, do: assert(byte_size(report) < 20_000)
    for report <- reports, do: refute(report =~ "xxxxxxxxxxxxxxxxx")
  end

  test "a crash report does not show the mailbox" do
    id = :"logs_all_#{System.unique_integer([:positive])}"
    :ok = :logger.add_handler(id, __MODULE__.All, %{config: %{test: self()}})
    on_exit(fn -> :logger.remove_handler(id) end)
    server = start_server!()
    helper = os_pid(server)
    {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    monitor = Process.monitor(server)
    :sys.suspend(server)
    signal!(helper, :KILL)
    eventually!(fn -> match?([_exit | _], mailbox(server)) end)
    # As a sender on another node does.
    call = {:send, NetlinkPort.Socket.handle(socket), :binary.copy("x", 1_000_000), false}
    request = :gen_server.send_request(server, call)
    :sys.resume(server)
    assert_receive {:DOWN, ^monitor, :process, ^server, {:helper_exit, 137}}
    assert {:error, _ended} = :gen_server.receive_response(request, 1_000)
    reports = reports(server)
    assert length(reports) >= 2
    for report <- reports, do: refute(report =~ "xxxxxxxxxxxxxxxxx")
  end

  defp mailbox(server), do: server |> Process.info(:messages) |> elem(1)

  defmodule All do
    @moduledoc false
    def log(%{msg: {:report, report}, meta: %{pid: pid}}, %{config: %{test: test}}) do
      # The raw event, without the limits of a formatter.
      text = inspect(report, limit: :infinity, printable_limit: :infinity)
      send(test, {:report, pid, text})
    end

    # Since Elixir 1.15 a filter of Logger formats some events before any handler sees them.
    def log(%{msg: {:string, text}, meta: %{pid: pid}}, %{config: %{test: test}}) do
      send(test, {:report, pid, IO.chardata_to_string(text)})
    end

    def log(_other, _config), do: :ok
  end

  defp reports(server) do
    receive do
      {:report, ^server, text} -> [text | reports(server)]
    after
      within(500) -> []
    end
  end

  # A term that is no event, with a binary in it.
  defp unheard_of!(binary) do
    frame!(:erlang.term_to_binary({:unheard_of, binary}, minor_version: 2))
  end

  defp frame!(payload) do
    path = tmp_path!("frame")
    File.write!(path, [<<byte_size(payload)::32>>, payload])
    path
  end
end
