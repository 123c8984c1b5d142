defmodule NetlinkPort.Agents do
  @moduledoc false
  # A controller and agents. Each is a node in its own network namespace, connected by veth to a bridge in the
  # controller's namespace. The VM of the tests is no node: it talks to each node over standard input and output,
  # so that a lost connection does not cut it off. There is no epmd: each node listens at the same port, at its own
  # address.

  import ExUnit.Callbacks
  import NetlinkPort.Case

  alias NetlinkPort.Remote

  # Any port except that of epmd, which does not run.
  @port "4370"
  # In s. A silent connection is lost after 3 to 5 s, and no smaller value makes sense.
  @ticktime "4"
  # How long a connection to a node that does not answer is tried, in s.
  @setup_time "2"

  defstruct [:name, :netns, :address, :node, :log, :peer, :os_pid]

  @doc "Makes the namespaces and links, then starts all nodes at once, each agent with a server `MyApp.Netlink`."
  def start!(count) do
    controller = place!("controller", 1)
    agents = for n <- 1..count, do: place!("agent#{n}", n + 1)
    ip!(["-n", controller.netns, "link", "add", "br0", "type", "bridge"])
    ip!(["-n", controller.netns, "link", "set", "br0", "up"])
    ip!(["-n", controller.netns, "addr", "add", controller.address <> "/24", "dev", "br0"])
    Enum.each(agents, &join!(&1, controller))

    [controller | agents] =
      [controller | agents]
      |> Task.async_stream(&boot/1, timeout: within(60_000), max_concurrency: count + 1)
      |> Enum.map(fn {:ok, booted} -> booted end)

    {controller, Enum.map(agents, &serve!/1)}
  end

  defp place!(name, n) do
    netns = netns!()
    # Before the namespace is deleted: on_exit callbacks run in reverse order.
    on_exit(fn -> for pid <- pids(netns), do: as_root("kill", ["-KILL", pid]) end)
    address = "10.77.0.#{n}"
    node = :"#{name}@#{address}"

    %__MODULE__{
      name: name,
      netns: netns,
      address: address,
      node: node,
      log: tmp_path!("#{name}.log")
    }
  end

  defp join!(agent, controller) do
    ip!(~w(-n #{controller.netns} link add #{agent.name} type veth peer name eth0
           netns #{agent.netns}))
    ip!(~w(-n #{controller.netns} link set #{agent.name} master br0 up))
    ip!(~w(-n #{agent.netns} addr add #{agent.address}/24 dev eth0))
    ip!(~w(-n #{agent.netns} link set eth0 up))
  end

  defp boot(place) do
    arguments =
      ~w(-start_epmd false -erl_epmd_port #{@port} -setcookie netlink_port -connect_all false
         -kernel net_ticktime #{@ticktime} net_setuptime #{@setup_time} +S 1:1
         -kernel error_logger {file,"#{place.log}"} -pa) ++ :code.get_path()

    options = %{
      name: to_charlist(place.name),
      host: to_charlist(place.address),
      longnames: true,
      connection: :standard_io,
      wait_boot: 60_000,
      exec: {~c"/sbin/ip", [~c"netns", ~c"exec", to_charlist(place.netns), ~c"erl"]},
      args: Enum.map(arguments, &to_charlist/1)
    }

    {:ok, peer, node} = :peer.start(options)
    true = node == place.node

    {:ok, _started} =
      :peer.call(peer, :application, :ensure_all_started, [:elixir], within(5_000))

    %{place | peer: peer, os_pid: peer |> :peer.call(:os, :getpid, []) |> List.to_integer()}
  end

  @doc "Starts the node of an agent again."
  def restart!(agent), do: agent |> boot() |> serve!()

  defp serve!(agent) do
    on(agent, Remote, :supervise, [[{NetlinkPort, name: MyApp.Netlink}]])
    agent
  end

  @doc "Calls a function on a node."
  def on(%{peer: peer}, module, function, arguments) do
    :peer.call(peer, module, function, arguments, 30_000)
  end

  @doc "The processes of a namespace."
  def pids(netns), do: "ip" |> as_root(["netns", "pids", netns]) |> elem(0) |> String.split()

  @doc "The server of an agent, for the controller."
  def server(agent), do: {MyApp.Netlink, agent.node}
end
