# Follows the links, addresses and routes of a namespace, a line for each event, until it is interrupted or the time
# is over. It goes on when the namespace or the helper ends and comes back: try `ip netns del` and `ip netns add`,
# and kill -9 of the helper.
#
#     mix run examples/monitor.exs [--netns NAME | --path PATH] [--for SECONDS]

Code.require_file("rtnetlink.ex", __DIR__)
Code.require_file("ip_style.ex", __DIR__)

defmodule Examples.Monitor do
  alias Examples.{IpStyle, Rtnetlink}

  @usage "usage: mix run examples/monitor.exs [--netns NAME | --path PATH] [--for SECONDS]"

  def main(arguments) do
    {netns, seconds} = options(arguments)
    place = [netns: netns, groups: Rtnetlink.groups(), dump: Rtnetlink.dumps()]
    children = [NetlinkPort, {NetlinkPort.Monitor, [name: Examples.Events] ++ place}]
    {:ok, _supervisor} = Supervisor.start_link(children, strategy: :one_for_one)

    if seconds, do: Process.send_after(self(), :time_is_up, seconds * 1_000)
    {:ok, monitor} = NetlinkPort.Monitor.subscribe(Examples.Events)
    follow(monitor, %{})
  end

  # Messages name links by index. `names` has the known names by index.
  defp follow(monitor, names) do
    receive do
      {:netlink_snapshot, ^monitor, :begin} ->
        follow(monitor, %{})

      {:netlink_snapshot, ^monitor, :end} ->
        IO.puts("-- #{map_size(names)} links; what follows are changes")
        follow(monitor, names)

      {:netlink_snapshot, ^monitor, messages} ->
        items = for {:new, item} <- Rtnetlink.changes(messages), do: item
        follow(monitor, IpStyle.learn(names, items))

      {:netlink_event, ^monitor, datagram} ->
        events = Rtnetlink.events(datagram)
        names = IpStyle.learn(names, for({_change, item} <- events, do: item))
        for event <- events, do: IO.puts(IpStyle.event(event, names))
        follow(monitor, names)

      {:netlink_resync, ^monitor, reason} ->
        IO.puts("-- in step from here on: #{why(reason)}")
        follow(monitor, names)

      {:netlink_down, ^monitor, reason} ->
        IO.puts("-- nothing is heard: #{why(reason)}")
        follow(monitor, names)

      {:netlink_error, ^monitor, error} ->
        IO.puts("-- " <> Exception.message(error))
        follow(monitor, names)

      :time_is_up ->
        :ok
    end
  end

  defp why({:error, error}), do: Exception.message(error)
  defp why(reason), do: inspect(reason)

  defp options(arguments) do
    strict = [netns: :string, path: :string, for: :integer]

    case OptionParser.parse(arguments, strict: strict) do
      {options, [], []} ->
        {seconds, place} = Keyword.pop(options, :for)
        {netns(place), seconds}

      _wrong ->
        fail(@usage)
    end
  end

  defp netns([]), do: :host
  defp netns(netns: name), do: {:name, name}
  defp netns(path: path), do: {:path, path}
  defp netns(_wrong), do: fail(@usage)

  defp fail(message) do
    IO.puts(:stderr, message)
    exit({:shutdown, 1})
  end
end

Examples.Monitor.main(System.argv())
