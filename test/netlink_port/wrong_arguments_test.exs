defmodule NetlinkPort.WrongArgumentsTest do
  # Terms of every type, as each argument of the public functions. A call raises ArgumentError, in the caller and with a
  # sentence of this library, or returns an error. It neither hangs nor disturbs another process.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Attr, Connection, Doctor, ExtAck, Generic, Message, Monitor, Native, Sandbox}

  @wrong [
    nil,
    :atom,
    -1,
    1.5,
    2 ** 5_000,
    "",
    "a\0b",
    <<255>>,
    <<1::3>>,
    ~c"charlist",
    [1 | 2],
    [{:a, 1} | 2],
    [nil],
    {},
    {1, 2, 3},
    {:global, 1},
    {:via, :none, 1},
    {:via, String, 1},
    {:via, Registry, :no_tuple},
    {:via, Registry, {NetlinkPort.NoRegistry, 1}},
    {:via, PartitionSupervisor, 1},
    {:name, nil},
    {nil, nil},
    {:name, "node"},
    {:path, [1 | 2]},
    {:pid, 1.0},
    %{},
    [timeout: -1],
    [timeout: 1.5],
    [flags: [1 | 2]],
    [unknown: 1],
    [{"timeout", 1}]
  ]

  setup do
    server = start_server!()
    {:ok, socket} = NetlinkPort.open(server, :route, active: false)
    {:ok, generic} = NetlinkPort.open(server, :generic, active: false)
    connection = start_supervised!({Connection, server: server, protocol: :route})
    monitor = start_supervised!({Monitor, server: server, protocol: :route, groups: [1]})

    %{
      server: server,
      socket: socket,
      generic: generic,
      connection: connection,
      monitor: monitor
    }
  end

  @link <<0::128>>

  defp calls(c) do
    [
      {NetlinkPort, :open, [c.server, :route, [active: false]]},
      {NetlinkPort, :pin, [c.server, :host, []]},
      {NetlinkPort, :unpin, [:pin]},
      {NetlinkPort, :socket, [c.server, 1]},
      {NetlinkPort, :close, [:socket]},
      {NetlinkPort, :send, [c.socket, "", []]},
      {NetlinkPort, :recv, [c.socket, 0]},
      {NetlinkPort, :request, [c.socket, 18, @link, [timeout: 500]]},
      {NetlinkPort, :batch, [c.socket, [], [timeout: 500]]},
      {NetlinkPort, :dump, [c.socket, 18, @link, [timeout: 500]]},
      {NetlinkPort, :stream, [c.socket, 18, @link, [timeout: 500]]},
      {NetlinkPort, :setopts, [c.socket, []]},
      {NetlinkPort, :getopts, [c.socket, []]},
      {NetlinkPort, :join, [c.socket, 1]},
      {NetlinkPort, :leave, [c.socket, 1]},
      {NetlinkPort, :memberships, [c.socket]},
      {NetlinkPort, :bind, [c.socket, 0, 0]},
      {NetlinkPort, :controlling_process, [c.socket, self()]},
      {NetlinkPort, :info, [c.server]},
      {NetlinkPort, :stats, [c.server]},
      {NetlinkPort, :capture, [c.server, "/nonexistent/file", []]},
      {NetlinkPort, :stop_capture, [c.server]},
      {Connection, :request, [c.connection, 18, @link, [timeout: 500]]},
      {Connection, :batch, [c.connection, [{18, [], @link}], [timeout: 500]]},
      {Connection, :dump, [c.connection, 18, @link, [timeout: 500]]},
      {Monitor, :subscribe, [c.monitor, []]},
      {Monitor, :unsubscribe, [c.monitor]},
      {Generic, :family, [c.generic, "nlctrl", []]},
      {Generic, :families, [c.generic, []]},
      {Generic, :request, [c.generic, "nlctrl", 3, "", [timeout: 500]]},
      {Generic, :dump, [c.generic, "nlctrl", 3, "", [timeout: 500]]},
      {Generic, :decode, [%Message{type: 16}]},
      {Generic, :join, [c.generic, "nlctrl", "notify"]},
      {Generic, :follow, [c.generic, []]},
      {Generic, :rejoin, [:follow, ""]},
      {Native, :open_in_netns, [c.server, "/nonexistent", 0]},
      {Native, :bind_netlink, [c.server, NetlinkPort.Socket.handle(c.socket), 0]},
      {Native, :close_fd, [c.server, 2 ** 62]},
      {NetlinkPort.Socket, :handle, [c.socket]},
      {Attr, :encode, [[]]},
      {Attr, :decode, [""]},
      {Message, :flags, [[]]},
      {Message, :flag?, [%Message{type: 16}, :ack]},
      {Message, :encode, [%Message{type: 16}]},
      {Message, :decode, [""]},
      {ExtAck, :read, [%Message{type: 2}, ""]},
      {Doctor, :format, [[], []]},
      {Doctor, :well?, [[]]}
    ] ++ getters()
  end

  defp getters do
    for {name, 2} <- Attr.__info__(:functions), do: {Attr, name, [[{1, <<0::64>>}], 1]}
  end

  test "a wrong argument is an error with a sentence of this library, and disturbs no other process",
       c do
    failed =
      for {module, function, arguments} <- calls(c),
          {_argument, place} <- Enum.with_index(arguments),
          # That would write a capture.
          {function, place} != {:capture, 1},
          wrong <- @wrong,
          # A large timeout is right, and recv/2 waits.
          {function, place, wrong} != {:recv, 1, 2 ** 5_000},
          outcome = outcome(module, function, List.replace_at(arguments, place, wrong)),
          outcome != :ok,
          do: {module, function, place, wrong, outcome}

    assert failed == []

    # Each process is the one that the test has started, and answers.
    assert {:ok, _info} = NetlinkPort.info(c.server)
    assert {:ok, [_lo]} = NetlinkPort.request(c.socket, 18, <<0::32, 1::32-native, 0::64>>)
    assert {:ok, [_lo]} = Connection.request(c.connection, 18, <<0::32, 1::32-native, 0::64>>)
    assert {:ok, monitor} = Monitor.subscribe(c.monitor)
    assert monitor == c.monitor
  end

  # `:ok` unless the call hangs, exits, or raises anything but a sentence of this library.
  defp outcome(module, function, arguments) do
    task = Task.async(fn -> outcome_of(module, function, arguments) end)

    case Task.yield(task, within(10_000)) || Task.shutdown(task, :brutal_kill) do
      {:ok, outcome} -> outcome
      nil -> :hangs
    end
  end

  defp outcome_of(module, function, arguments) do
    result = apply(module, function, arguments)
    if function == :stream, do: Enum.count(result)
    :ok
  rescue
    error in [ArgumentError] -> sentence(error, __STACKTRACE__)
    error in [NetlinkPort.Error] -> if function == :stream, do: :ok, else: error
    error -> error
  catch
    :exit, reason -> {:exit, reason}
  end

  defp sentence(error, [{module, _function, _arity, _place} | _callers]) do
    if module in [:erlang, :lists, :ets], do: error, else: :ok
  end

  test "nil is no server, and is not advised as the name of one", c do
    for call <- [
          fn -> NetlinkPort.open(nil, :route, []) end,
          fn -> NetlinkPort.info({nil, node()}) end,
          fn -> Connection.start_link(server: nil, protocol: :route) end,
          fn -> Monitor.start_link(server: nil) end,
          fn -> Connection.request(nil, 18) end
        ] do
      assert_raise ArgumentError, ~r/expected a server: a pid or a name, got: /, call
    end

    assert {:ok, _info} = NetlinkPort.info(c.server)
  end

  test "a name that its registry does not take is named, in a call and in a start", c do
    for name <- [{:via, Registry, :no_tuple}, {:via, PartitionSupervisor, 1}, {:via, :none, 1}],
        call <- [
          fn -> NetlinkPort.open(name, :route, []) end,
          fn -> NetlinkPort.start_link(name: name) end,
          fn -> Connection.start_link(name: name, server: c.server, protocol: :route) end,
          fn -> Connection.start_link(server: name, protocol: :route) end,
          fn -> Monitor.start_link(name: name, server: c.server) end,
          fn -> Monitor.start_link(server: name) end,
          fn -> Sandbox.start_link(name: name) end
        ] do
      error = assert_raise ArgumentError, call
      assert Exception.message(error) =~ "expected a "
      assert Exception.message(error) =~ inspect(name)
    end

    for name <- [1, "name", {:name, node()}, [:name]] do
      assert_raise ArgumentError, ~r/expected name: an atom, {:global, name} or/, fn ->
        NetlinkPort.start_link(name: name)
      end
    end
  end

  test "the error of a PartitionSupervisor that is not running says how to start one" do
    name = {:via, PartitionSupervisor, {NetlinkPort.NoPartitions, "key"}}
    assert {:error, %Error{reason: :esrch} = error} = NetlinkPort.open(name, :route, [])

    assert Exception.message(error) =~
             "{PartitionSupervisor, child_spec: {NetlinkPort, name: nil}, name: NetlinkPort.NoPartitions}"
  end

  test "a time of 0 ms for a server, with which it would ping without pause, is refused" do
    for name <- [:call_timeout, :hello_timeout, :ping_interval] do
      assert_raise ArgumentError, ~r/expected #{name}: a positive number of ms/, fn ->
        NetlinkPort.start_link([{:name, nil}, {name, 0}])
      end
    end
  end

  test "an executable without a name, or with a NUL byte, is refused" do
    for path <- ["", "a\0b", ~c""] do
      assert_raise ArgumentError, ~r/expected executable: a path, got: /, fn ->
        NetlinkPort.start_link(name: nil, executable: path)
      end
    end
  end

  test "a program of a sandbox whose name or arguments are no strings, or have a NUL byte, is not run" do
    for {program, arguments} <- [
          {"echo\0", []},
          {"echo", ["a\0b"]},
          {:echo, []},
          {"echo", "a"},
          {"echo", [1]},
          {"echo", ["a" | "b"]}
        ] do
      assert_raise ArgumentError, ~r/expected a program and a list of its arguments/, fn ->
        Sandbox.run(self(), program, arguments)
      end
    end

    assert_raise ArgumentError, ~r/expected a keyword list/, fn ->
      Sandbox.run(self(), "echo", [], 1)
    end

    assert_raise ArgumentError, ~r/expected a keyword list/, fn -> Sandbox.child_spec(nil) end
    # By a name that the compiler does not know, since newer ones warn of such an argument.
    for setup <- [:netlink_sandbox] do
      assert_raise ArgumentError, ~r/the context of a test/, fn -> apply(Sandbox, setup, [[]]) end
    end
  end

  test "decoded attributes in {:ok, attrs}, or attributes to encode, are named by each getter" do
    for {name, 2} <- Attr.__info__(:functions),
        attrs <- [{:ok, [{1, "x"}]}, [{1, [{2, "x"}]}], nil],
        name not in [:all, :flag?] or not is_list(attrs) do
      assert_raise ArgumentError, ~r/expected decoded attributes, the list of/, fn ->
        apply(Attr, name, [attrs, 1])
      end
    end
  end
end
