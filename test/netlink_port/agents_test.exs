defmodule NetlinkPort.AgentsTest do
  # A controller follows ten agents, each a node in its own namespace. The tests check its sockets and monitors when
  # a helper, a node or a connection of one agent is lost.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Agents, Connection, Message, Monitor, Remote}

  @moduletag :root
  @moduletag timeout: within(180_000)

  @agents 10
  # RTNLGRP_LINK; RTM_GETLINK of all links
  @links 1
  @dump_links {18, <<0::128>>}
  # How long a node takes to notice a connection that is lost silently, and to come back, in ms.
  @lost 20_000

  setup_all do
    {controller, agents} = Agents.start!(@agents)

    children =
      for agent <- agents do
        server = Agents.server(agent)
        monitor = [name: :"#{agent.name}", groups: [@links], dump: [@dump_links], server: server]
        connection = [name: requests(agent), protocol: :route, server: server]
        for child <- [{Monitor, monitor}, {Connection, connection}], do: spec(child)
      end

    Agents.on(controller, Remote, :supervise, [List.flatten(children)])
    %{controller: controller, agents: agents}
  end

  defp spec({_module, opts} = child), do: Supervisor.child_spec(child, id: opts[:name])
  defp requests(agent), do: :"#{agent.name}_requests"

  # For each agent a process on the controller, which owns two sockets there and subscribes to its monitor.
  setup %{controller: controller, agents: agents} do
    followers =
      for agent <- agents do
        recorder = Agents.on(controller, Remote, :recorder, [controller.node])
        {:ok, monitor} = ask(controller, recorder, Monitor, :subscribe, [:"#{agent.name}"])
        sockets = for _n <- 1..2, do: open!(controller, recorder, agent)
        %{agent: agent, recorder: recorder, monitor: monitor, sockets: sockets}
      end

    on_exit(fn ->
      for %{recorder: recorder} <- followers do
        Agents.on(controller, :erlang, :exit, [recorder, :kill])
      end
    end)

    followers = Enum.map(followers, &Map.put(&1, :controller, controller))
    Enum.each(followers, &eventually_true!/1)
    %{followers: followers}
  end

  defp ask(controller, recorder, module, function, arguments) do
    Agents.on(controller, Remote, :ask, [recorder, module, function, arguments])
  end

  defp open!(controller, recorder, agent) do
    arguments = [Agents.server(agent), :route, [groups: [@links]]]
    {:ok, socket} = ask(controller, recorder, NetlinkPort, :open, arguments)
    socket
  end

  defp read(%{controller: controller, recorder: recorder}) do
    Agents.on(controller, Remote, :read, [recorder])
  end

  defp add_link!(agent, name), do: ip!(~w(-n #{agent.netns} link add #{name} type bridge))

  defp name do
    "b#{System.unique_integer([:positive])}"
  end

  ## What a follower was sent

  defp told(follower, tag),
    do: for(message <- read(follower), elem(message, 0) == tag, do: message)

  defp closed(follower) do
    for {:netlink_closed, socket, reason} <- read(follower), do: {socket, reason}
  end

  defp gaps(%{monitor: monitor} = follower) do
    for {tag, ^monitor, reason} <- read(follower), tag in [:netlink_down, :netlink_resync] do
      {tag, reason}
    end
  end

  # The links by the messages of the monitor since its last resync, once a snapshot is complete.
  defp links(%{monitor: monitor} = follower) do
    messages = Enum.filter(read(follower), &(elem(&1, 1) == monitor))
    since = messages |> Enum.reverse() |> Enum.take_while(&(elem(&1, 0) != :netlink_resync))

    if {:netlink_snapshot, monitor, :end} in since,
      do:
        since
        |> Enum.reverse()
        |> Enum.reduce(%{}, &apply_message/2)
        |> Map.values()
        |> Enum.sort()
  end

  defp apply_message({:netlink_snapshot, _monitor, :begin}, _links), do: %{}
  defp apply_message({:netlink_snapshot, _monitor, :end}, links), do: links

  defp apply_message({:netlink_snapshot, _, messages}, links),
    do: Enum.reduce(messages, links, &change/2)

  defp apply_message({:netlink_event, _monitor, datagram}, links) do
    {:ok, messages} = Message.decode(datagram)
    Enum.reduce(messages, links, &change/2)
  end

  defp apply_message(_other, links), do: links

  # RTM_NEWLINK and RTM_DELLINK. Those of the family AF_BRIDGE are about the ports of a bridge.
  defp change(%{type: 16, payload: <<0, _::24, index::32-native, _::binary>> = link}, links) do
    Map.put(links, index, Rtnl.link_name(link))
  end

  defp change(%{type: 17, payload: <<0, _::24, index::32-native, _::binary>>}, links) do
    Map.delete(links, index)
  end

  defp change(_message, links), do: links

  # Without the reports of interrupted dumps.
  defp kernel_links(%{netns: netns}) do
    lines = String.split(ip!(~w(-n #{netns} -o link)), "\n", trim: true)
    Enum.sort(for line <- lines, [_, name] <- [Regex.run(~r/^\d+: ([^:@]+)/, line)], do: name)
  end

  defp eventually_true!(%{agent: agent} = follower, timeout \\ 5_000) do
    eventually!(fn -> links(follower) == kernel_links(agent) end, timeout)
  end

  # Checks that all works: each agent's events reach its own follower, and no other.
  defp undisturbed!(followers) do
    added = for %{agent: agent} = follower <- followers, do: {follower, add_named!(agent)}

    for {%{sockets: sockets, monitor: monitor} = follower, name} <- added do
      eventually_true!(follower)
      assert name in links(follower)
      assert gaps(follower) == [{:netlink_resync, :subscribed}]
      assert closed(follower) == []
      senders = for message <- read(follower), uniq: true, do: elem(message, 1)
      assert Enum.sort(senders) == Enum.sort([monitor | sockets])
    end
  end

  defp add_named!(agent) do
    name = name()
    add_link!(agent, name)
    name
  end

  defp agent_info(agent) do
    {:ok, info} = Agents.on(agent, NetlinkPort, :info, [MyApp.Netlink])
    info
  end

  test "the events of each agent reach its follower", %{followers: followers} do
    undisturbed!(followers)

    for %{sockets: sockets} = follower <- followers, socket <- sockets do
      assert Enum.any?(told(follower, :netlink), &(elem(&1, 1) == socket))
    end
  end

  test "a helper is killed: its sockets are closed, its monitor sends a resync", context do
    [%{agent: agent, sockets: sockets} = follower | others] = context.followers
    %{os_pid: helper} = agent_info(agent)
    signal!(helper, "KILL")
    eventually!(fn -> length(gaps(follower)) >= 3 end)
    add_named!(agent)
    eventually_true!(follower)
    reason = follower |> closed() |> hd() |> elem(1)
    assert {:helper_exit, _status} = reason
    assert Enum.sort(closed(follower)) == Enum.sort(for(s <- sockets, do: {s, reason}))

    assert [{:netlink_resync, :subscribed}, {:netlink_down, {:closed, ^reason}}, back] =
             gaps(follower)

    assert back == {:netlink_resync, {:closed, reason}}
    undisturbed!(others)
  end

  test "a node is killed, and starts again", context do
    [_first, %{agent: agent, sockets: sockets} = follower | _] = context.followers
    others = context.followers -- [follower]
    %{os_pid: helper} = agent_info(agent)
    signal!(agent.os_pid, "KILL")
    lost!(follower)
    # Not even a helper remains there.
    eventually!(fn -> not running?(helper) and Agents.pids(agent.netns) == [] end)
    undisturbed!(others)
    add_named!(agent)
    agent = Agents.restart!(agent)
    back!(%{follower | agent: agent})
    eventually!(fn -> match?({:ok, [_link]}, request(follower.controller, agent)) end)
    assert Enum.sort(closed(follower)) == lost(sockets)
  end

  test "a connection is lost silently, and comes back", context do
    [follower | others] = Enum.reverse(context.followers)
    %{agent: agent, sockets: sockets, controller: controller} = follower
    # The helpers of earlier tests are gone.
    eventually!(fn -> agent_info(agent).sockets == 4 end)
    %{fds: with_all} = agent_info(agent)
    link = ~w(-n #{controller.netns} link set #{agent.name})
    logged = byte_size(File.read!(controller.log))
    ip!(link ++ ["down"])
    lost!(follower)
    # The agent keeps none of the sockets: the two, the monitor's and the connection's.
    eventually!(fn -> agent_info(agent).fds == with_all - 4 end, @lost)
    # Attempts to reach the agent delay nobody.
    assert {:error, %Error{stage: :thread}} = request(controller, agent)
    late = Agents.on(controller, Remote, :recorder, [controller.node])
    {:ok, monitor} = ask(controller, late, Monitor, :subscribe, [:"#{agent.name}"])

    assert Agents.on(controller, Remote, :read, [late]) == [
             {:netlink_down, monitor, {:closed, :noconnection}}
           ]

    undisturbed!(others)
    add_named!(agent)
    ip!(link ++ ["up"])
    back!(follower)
    # The monitor and the connection have their sockets again.
    eventually!(fn -> agent_info(agent).fds == with_all - 2 end)
    assert {:ok, [_link]} = request(controller, agent)
    # Failed attempts are not logged each time.
    {_seen, log} = :erlang.split_binary(File.read!(controller.log), logged)
    assert length(String.split(log, "\n")) < 10, log
    assert Enum.sort(closed(follower)) == lost(sockets)
    again = open!(controller, follower.recorder, agent)
    name = add_named!(agent)
    eventually!(fn -> Enum.any?(told(follower, :netlink), &(elem(&1, 1) == again)) end)
    eventually!(fn -> name in (links(follower) || []) end)
  end

  # RTM_GETLINK of the loopback, over the connection on the controller.
  defp request(controller, agent) do
    arguments = [requests(agent), 18, <<0::32, 1::32-native, 0::64>>]
    Agents.on(controller, Connection, :request, arguments)
  end

  defp lost(sockets), do: Enum.sort(for(socket <- sockets, do: {socket, :noconnection}))

  defp lost!(%{sockets: sockets} = follower) do
    eventually!(fn -> Enum.sort(closed(follower)) == lost(sockets) end, @lost)
    down = {:netlink_down, {:closed, :noconnection}}
    eventually!(fn -> gaps(follower) == [{:netlink_resync, :subscribed}, down] end)
  end

  defp back!(follower) do
    eventually!(fn -> length(gaps(follower)) == 3 end, @lost)
    assert {:netlink_resync, {:closed, :noconnection}} = List.last(gaps(follower))
    eventually_true!(follower)
  end
end
