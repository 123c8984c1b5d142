defmodule NetlinkPort.Remote do
  @moduledoc false
  # Functions that the tests of distribution run on another node, which can load this module.

  alias NetlinkPort.{Error, Rtnl}

  def use_a_socket(server, netns) do
    opts = [netns: {:name, netns}, active: false, groups: [1]]
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    names = Rtnl.link_names(socket)
    :ok = NetlinkPort.setopts(socket, rcvbuf: 100_000)
    read = NetlinkPort.getopts(socket, [:rcvbuf])
    {:error, %Error{reason: :etimedout}} = NetlinkPort.recv(socket, 10)
    large = :binary.copy(<<0>>, 1_000_000)
    {:error, %Error{reason: :emsgsize}} = NetlinkPort.send(socket, large, wait: true)
    info = NetlinkPort.info(socket)
    groups = NetlinkPort.memberships(socket)
    closed = NetlinkPort.close(socket)
    {:error, %Error{reason: :ebadf}} = NetlinkPort.send(socket, "x")
    {names, read, groups, info, closed}
  end

  def run_a_server(test, name) do
    {:ok, server} = NetlinkPort.start_link(name: name)
    send(test, {:started, server})
    Process.sleep(:infinity)
  end

  def own_a_socket(test, server, opts) do
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    send(test, {:open, socket})
    pass_on(test)
  end

  defp pass_on(test) do
    receive do
      message -> send(test, {:got, message})
    end

    pass_on(test)
  end

  @doc "A process that records its messages, and calls functions: see `read/1` and `ask/3`."
  def recorder(node), do: Node.spawn(node, __MODULE__, :record, [[]])

  def record(kept) do
    receive do
      {:read, from} ->
        send(from, {self(), Enum.reverse(kept)})
        record(kept)

      {:ask, from, {module, function, arguments}} ->
        send(from, {self(), apply(module, function, arguments)})
        record(kept)

      message ->
        record([message | kept])
    end
  end

  @doc "The messages that a recorder was sent, in order."
  def read(recorder), do: exchange(recorder, {:read, self()})

  @doc "Has a recorder call a function. The module defaults to NetlinkPort."
  def ask(recorder, module \\ NetlinkPort, function, arguments) do
    exchange(recorder, {:ask, self(), {module, function, arguments}})
  end

  defp exchange(recorder, message) do
    send(recorder, message)

    receive do
      {^recorder, answer} -> answer
    after
      NetlinkPort.Pace.within(10_000) -> raise "no answer to #{inspect(message)}"
    end
  end

  @doc "Calls a function and keeps its result for `kept/1`."
  def keep(key, module, function, arguments) do
    :persistent_term.put({__MODULE__, key}, apply(module, function, arguments))
  end

  def kept(key), do: :persistent_term.get({__MODULE__, key}, nil)

  @doc "The notifiers on this node of servers on other nodes."
  def notifiers do
    init = {NetlinkPort.Nodes.RemoteOwnerNotifier, :init, 1}

    for pid <- Process.list(),
        {:dictionary, dictionary} <- [Process.info(pid, :dictionary)],
        dictionary[:"$initial_call"] == init,
        do: pid
  end

  @doc "Subscribes to a monitor, and sends `test` a message for each complete snapshot."
  def take_snapshots(test, monitor) do
    {:ok, _pid} = NetlinkPort.Monitor.subscribe(monitor)
    snapshots(test)
  end

  defp snapshots(test) do
    receive do
      {:netlink_snapshot, _monitor, :end} -> send(test, {:snapshot, self()})
      _other -> :ok
    end

    snapshots(test)
  end

  @doc "The number of messages of a dump."
  def dump(connection, {type, payload}) do
    {:ok, messages} = NetlinkPort.Connection.dump(connection, type, payload, timeout: 60_000)
    length(messages)
  end

  @doc "Starts a supervisor that outlives its caller."
  def supervise(children) do
    {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
    Process.unlink(supervisor)
    supervisor
  end
end
