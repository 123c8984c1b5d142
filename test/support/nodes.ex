defmodule NetlinkPort.Nodes do
  @moduledoc false
  # Other nodes on this machine, for tests of distribution. They end when their test does.

  import ExUnit.Callbacks
  import NetlinkPort.Case

  @host ~c"127.0.0.1"

  @doc "Makes this VM a node, if it is not one yet."
  def distributed! do
    System.cmd("epmd", ["-daemon"])
    # The daemon returns before it listens.
    eventually!(fn -> match?({:ok, _names}, :erl_epmd.names({127, 0, 0, 1})) end)
    name = :"nlp#{System.pid()}@127.0.0.1"
    unless Node.alive?(), do: {:ok, _} = Node.start(name, :longnames)
    :ok
  end

  @doc """
  Starts a node with the library (`true`) or without (`false`), or a VM that is no node (`:no_node`). Returns the
  controlling process, see `:peer`, and the name.
  """
  def peer!(library? \\ true)

  def peer!(:no_node) do
    paths = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    options = %{connection: :standard_io, args: paths, wait_boot: within(15_000)}
    {:ok, peer, node} = :peer.start(options)
    ends_with_test!(peer)
    {:ok, _} = :peer.call(peer, :application, :ensure_all_started, [:elixir], within(5_000))
    {peer, node}
  end

  def peer!(library?) do
    paths = if library?, do: Enum.flat_map(:code.get_path(), &[~c"-pa", &1]), else: []
    # Each node connects only to this node.
    args = [~c"-connect_all", ~c"false" | paths]
    name = :peer.random_name()
    # Controlled over standard input and output, so that a lost connection does not end it.
    options = %{
      name: name,
      host: @host,
      args: args,
      longnames: true,
      connection: :standard_io,
      wait_boot: within(15_000)
    }

    {:ok, peer, node} = :peer.start(options)
    ends_with_test!(peer)

    if library?,
      do: {:ok, _} = :peer.call(peer, :application, :ensure_all_started, [:elixir], within(5_000))

    true = Node.connect(node)
    {peer, node}
  end

  # By SIGKILL, since :peer.stop/1 would wait for a VM that is stopped.
  defp ends_with_test!(peer) do
    os_pid = vm_pid(peer)

    on_exit(fn ->
      as_root("kill", ["-KILL", "#{os_pid}"])
      eventually!(fn -> not running?(os_pid) end)
    end)
  end

  @doc "The process id of a node's VM."
  def vm_pid(peer), do: peer |> :peer.call(:os, :getpid, [], within(5_000)) |> List.to_integer()
end
