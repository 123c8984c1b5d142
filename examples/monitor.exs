# Follows the links, addresses and routes of a namespace, a line for each event, until it is
# interrupted or the time is up.
#
#     mix run examples/monitor.exs [--netns NAME | --path PATH] [--for SECONDS]

Code.require_file("rtnetlink.ex", __DIR__)
Code.require_file("ip_style.ex", __DIR__)

defmodule Examples.Monitor do
  alias Examples.{IpStyle, Rtnetlink}

  @usage "usage: mix run examples/monitor.exs [--netns NAME | --path PATH] [--for SECONDS]"

  def main(arguments) do
    {netns, seconds} = options(arguments)

    children = [{NetlinkPort, name: NetlinkPort}]
    {:ok, _supervisor} = Supervisor.start_link(children, strategy: :one_for_one)

    if seconds, do: Process.send_after(self(), :time_is_up, seconds * 1_000)
    open(netns)
  end

  defp open(netns) do
    case Rtnetlink.subscribe(netns) do
      {:ok, socket} ->
        IO.puts("following #{inspect(socket)}")
        follow(socket, netns, names(netns))

      {:error, error} ->
        fail(Exception.message(error))
    end
  end

  # Listed only once subscribed, so that no link is missed in between.
  defp names(netns) do
    case Rtnetlink.list(netns) do
      {:ok, list} ->
        IpStyle.learn(%{}, list.links)

      {:error, error} ->
        IO.puts("-- the names of the links are not known: " <> Exception.message(error))
        %{}
    end
  end

  defp follow(socket, netns, names) do
    receive do
      {:netlink, ^socket, datagram} ->
        events = Rtnetlink.events(datagram)
        names = IpStyle.learn(names, for({_change, item} <- events, do: item))
        for event <- events, do: IO.puts(IpStyle.event(event, names))
        follow(socket, netns, names)

      {:netlink_overrun, ^socket, dropped} ->
        IO.puts("-- the kernel has dropped #{dropped} datagrams")
        follow(socket, netns, names)

      {:netlink_error, ^socket, error} ->
        IO.puts("-- " <> Exception.message(error))
        follow(socket, netns, names)

      {:netlink_closed, ^socket, reason} ->
        IO.puts("-- closed, #{inspect(reason)}: events are missed until it is open again")
        open(netns)

      :time_is_up ->
        :ok
    end
  end

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
