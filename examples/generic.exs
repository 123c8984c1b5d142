# Lists the families of generic netlink in a namespace, or one family with its commands and groups.
#
#     mix run examples/generic.exs [--netns NAME] [FAMILY]

defmodule Examples.Generic do
  alias NetlinkPort.{Connection, Generic}

  def main(arguments) do
    {netns, names} = options(arguments)

    children = [
      {NetlinkPort, name: Examples.Netlink},
      {Connection,
       server: Examples.Netlink, protocol: :generic, netns: netns, name: Examples.Genl}
    ]

    {:ok, _supervisor} = Supervisor.start_link(children, strategy: :one_for_one)

    case ask(names) do
      {:ok, families} -> Enum.each(families, &show/1)
      {:error, error} -> fail(Exception.message(error))
    end
  end

  defp options(arguments) do
    case OptionParser.parse(arguments, strict: [netns: :string]) do
      {[], names, []} when length(names) <= 1 -> {:host, names}
      {[netns: name], names, []} when length(names) <= 1 -> {{:name, name}, names}
      _wrong -> fail("usage: mix run examples/generic.exs [--netns NAME] [FAMILY]")
    end
  end

  defp ask([]), do: Generic.families(Examples.Genl)

  defp ask([name]) do
    with {:ok, family} <- Generic.family(Examples.Genl, name), do: {:ok, [family]}
  end

  defp show(family) do
    IO.puts("#{family.name}: number #{family.id}, version #{family.version}")

    for {command, flags} <- Enum.sort(family.operations) do
      IO.puts("  command #{command}: #{Enum.join(flags, ", ")}")
    end

    for {group, id} <- Enum.sort(family.groups), do: IO.puts("  group #{group}: number #{id}")
  end

  defp fail(message) do
    IO.puts(:stderr, message)
    exit({:shutdown, 1})
  end
end

Examples.Generic.main(System.argv())
