defmodule NetlinkPort.HeldFileServer do
  @moduledoc false
  # What a user does while OTP's file server is suspended, which stands for a process of the VM whose `File` call waits for
  # a file system that does not answer. Runs in a VM of its own, by `NetlinkPort.Nodes.peer!/1`: all of a VM shares
  # the file server. No function here may use `File` once it is held.

  alias NetlinkPort.Connection
  alias NetlinkPort.Helper.Reference

  @getlink <<0::32, 1::32-native, 0::64>>
  # RTM_DELLINK of an interface that is not there. Without CAP_NET_ADMIN the kernel does not look.
  @dellink {17, <<0::32, 1_000_000::32-native, 0::64>>}

  # The sockets and servers of the function before are left: they end with the VM.
  defp ready do
    Process.flag(:trap_exit, true)
    :ok = :logger.set_primary_config(:level, :none)
    :ok = :sys.resume(:file_server_2)
  end

  defp hold, do: :ok = :sys.suspend(:file_server_2)

  defp server!(opts) do
    ready()
    {:ok, server} = NetlinkPort.start_link([name: nil] ++ opts)
    server
  end

  defp socket!(server, opts) do
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    socket
  end

  defp command!(command) do
    port = Port.open({:spawn, command}, [:exit_status])
    receive do: ({^port, {:exit_status, 0}} -> :ok)
  end

  # Before the server is held, so that the first use of a program is none of what is tested.
  defp os_pid(server) do
    {:ok, %{os_pid: os_pid}} = NetlinkPort.info(server)
    os_pid
  end

  def recv(opts) do
    server = server!(opts)
    [socket, closed] = for _ <- 1..2, do: socket!(server, active: false)
    :ok = NetlinkPort.close(closed)
    hold()
    [kind(NetlinkPort.recv(socket, 10)), kind(NetlinkPort.recv(closed, 10))]
  end

  def recvs(opts, count) do
    socket = opts |> server!() |> socket!(active: false)
    hold()
    tasks = for _ <- 1..count, do: Task.async(fn -> kind(NetlinkPort.recv(socket, 500)) end)
    {tasks |> Task.await_many(:infinity) |> Enum.frequencies(), looked?(socket)}
  end

  def opens(opts) do
    server = server!(opts)
    socket = socket!(server, active: false)
    hold()

    errors = [
      kind(NetlinkPort.open(server, :route, netns: {:name, "nlp-none"})),
      kind(NetlinkPort.open(server, :route, netns: {:path, "nlp-relative"})),
      kind(NetlinkPort.pin(server, {:name, "nlp-none"}, []))
    ]

    {errors, works?(server, socket), looked?(socket)}
  end

  def failed_send(opts, switch) do
    server = server!(opts)
    [socket, other] = for _ <- 1..2, do: socket!(server, [])
    hold()
    command!("touch #{switch}")
    :ok = NetlinkPort.send(socket, @getlink)
    told = receive do: ({:netlink_error, ^socket, error} -> kind({:error, error}))
    command!("rm #{switch}")
    {told, works?(server, other), looked?(socket)}
  end

  # The helper has no capability, and its bounding set has them all.
  def refused(opts, netns) do
    server = server!(opts)
    socket = socket!(server, active: false)
    {:ok, connection} = Connection.start_link(server: server, protocol: :route, name: nil)
    hold()

    for way <- ways(server, socket, connection, netns) do
      forget_the_look(socket)
      {:error, error} = way.()
      {error.lacks, looked?(socket)}
    end
  end

  # As `refused/2`, with a look at the machine that does not end.
  def refused_without_a_look(opts, netns) do
    server = server!(opts)
    socket = socket!(server, active: false)
    {:ok, connection} = Connection.start_link(server: server, protocol: :route, name: nil)
    looker = spawn(fn -> Process.sleep(:infinity) end)
    until = System.monotonic_time(:millisecond) + 100
    true = :ets.insert(socket.helper.board, {:look, looker, until})

    for way <- ways(server, socket, connection, netns) do
      {:error, error} = way.()
      Exception.message(error)
    end
  end

  defp ways(server, socket, connection, netns) do
    {type, payload} = @dellink

    [
      fn -> NetlinkPort.open(server, :route, netns: {:name, netns}) end,
      fn -> NetlinkPort.request(socket, type, payload) end,
      fn -> one(NetlinkPort.batch(socket, [{type, [], payload}])) end,
      fn -> Connection.request(connection, type, payload) end,
      fn -> one(Connection.batch(connection, [{type, [], payload}])) end
    ]
  end

  defp one({:ok, [outcome]}), do: outcome

  defp forget_the_look(%{helper: helper}) do
    true = :ets.delete(helper.board, :look)
    true = Reference.put_privileges(helper, %{Reference.privileges(helper) | nosuid: nil})
  end

  def starts(executables) do
    ready()
    hold()

    for executable <- executables do
      case NetlinkPort.start_link(name: nil, executable: executable, hello_timeout: 2_000) do
        {:ok, _server} -> :ok
        failed -> kind(failed)
      end
    end
  end

  def stuck(opts) do
    server = server!([call_timeout: 500] ++ opts)
    socket = socket!(server, [])
    os_pid = os_pid(server)
    hold()
    command!("kill -STOP #{os_pid}")
    told = kind(NetlinkPort.info(server))
    {told, receive(do: ({:netlink_closed, ^socket, reason} -> reason))}
  end

  def killed(opts) do
    server = server!(opts)
    socket = socket!(server, [])
    os_pid = os_pid(server)
    hold()
    command!("kill -STOP #{os_pid}")
    Process.exit(server, :kill)
    {os_pid, receive(do: ({:netlink_closed, ^socket, reason} -> reason))}
  end

  defp kind({:error, error}), do: {error.stage, error.reason}

  defp works?(server, socket) do
    {:ok, %{rss: rss}} = NetlinkPort.stats(server)
    match?({:ok, [_link]}, NetlinkPort.request(socket, 18, @getlink)) and is_integer(rss)
  end

  defp looked?(socket), do: Reference.privileges(socket.helper).nosuid != nil
end
