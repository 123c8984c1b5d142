# Lists the links, addresses and routes of a namespace.
#
#     mix run examples/links.exs [--netns NAME | --path PATH]

Code.require_file("rtnetlink.ex", __DIR__)
Code.require_file("ip_style.ex", __DIR__)

defmodule Examples.Links do
  alias Examples.{IpStyle, Rtnetlink}

  def main(arguments) do
    netns = netns(arguments)
    children = [{NetlinkPort, name: NetlinkPort}]
    {:ok, _supervisor} = Supervisor.start_link(children, strategy: :one_for_one)

    case Rtnetlink.list(netns) do
      {:ok, list} ->
        show("Links", IpStyle.links(list))
        show("Addresses", IpStyle.addresses(list))
        show("Routes", IpStyle.routes(list))

      {:error, error} ->
        fail(Exception.message(error))
    end
  end

  defp netns(arguments) do
    case OptionParser.parse(arguments, strict: [netns: :string, path: :string]) do
      {[], [], []} -> :host
      {[netns: name], [], []} -> {:name, name}
      {[path: path], [], []} -> {:path, path}
      _wrong -> fail("usage: mix run examples/links.exs [--netns NAME | --path PATH]")
    end
  end

  defp show(heading, lines) do
    IO.puts(heading)
    for line <- lines, do: IO.puts("  " <> line)
    IO.puts("")
  end

  defp fail(message) do
    IO.puts(:stderr, message)
    exit({:shutdown, 1})
  end
end

Examples.Links.main(System.argv())
