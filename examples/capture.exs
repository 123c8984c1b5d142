# Lists the links of a namespace, and captures the datagrams for Wireshark.
#
#     mix run examples/capture.exs [--netns NAME | --path PATH] FILE

defmodule Examples.Capture do
  # linux/rtnetlink.h
  @rtm_getlink 18

  def main(arguments) do
    {netns, path} = options(arguments)
    children = [{NetlinkPort, name: NetlinkPort}]
    {:ok, _supervisor} = Supervisor.start_link(children, strategy: :one_for_one)

    with {:ok, capture} <- NetlinkPort.capture(NetlinkPort, path),
         {:ok, socket} <- NetlinkPort.open(:route, netns: netns, active: false),
         {:ok, links} <- NetlinkPort.dump(socket, @rtm_getlink, <<0::128>>),
         {:ok, counts} <- NetlinkPort.stop_capture(capture) do
      IO.puts("#{length(links)} links, #{counts.datagrams} datagrams; look at them with")
      IO.puts("  tshark -r #{path}")
    else
      {:error, error} -> fail(Exception.message(error))
    end
  end

  defp options(arguments) do
    case OptionParser.parse(arguments, strict: [netns: :string, path: :string]) do
      {[], [file], []} -> {:host, file}
      {[netns: name], [file], []} -> {{:name, name}, file}
      {[path: path], [file], []} -> {{:path, path}, file}
      _wrong -> fail("usage: mix run examples/capture.exs [--netns NAME | --path PATH] FILE")
    end
  end

  defp fail(message) do
    IO.puts(:stderr, message)
    exit({:shutdown, 1})
  end
end

Examples.Capture.main(System.argv())
