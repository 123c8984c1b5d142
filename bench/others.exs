defmodule Bench.Others do
  @moduledoc false
  # The same work by pyroute2, whose NetNS also runs a process in the namespace, and by ip(8), a process for each
  # command.

  alias Bench.{Measure, Place, Requests}
  alias NetlinkPort.Attr

  @routes 20_000

  @doc "Rows of `{name, unit, ours, pyroute2, ip}`; `nil` for a program that cannot do it."
  def rows(context) do
    Place.with_netns("others", fn netns ->
      context = %{context | netns: netns}
      Bench.Dumps.fill(context, @routes)
      pyroute2 = pyroute2(netns)

      [
        {"one link by its index", "us", Measure.single(fn -> Requests.serial(context, true) end),
         pyroute2["request"],
         1_000 * Measure.single(fn -> ip(["-n", netns, "link", "show", "lo"]) end)},
        {"open and close in a namespace", "us", Measure.single(fn -> Requests.opens(context) end),
         pyroute2["open"], nil},
        {"#{@routes} routes, decoded", "ms", Measure.single(fn -> decoded(context) end),
         pyroute2["dump"] && pyroute2["dump"] / 1_000,
         Measure.single(fn -> ip(["-n", netns, "route", "show"]) end)}
      ]
    end)
  end

  defp ip(arguments), do: Measure.milliseconds(fn -> Place.ip(arguments) end)

  defp decoded(context) do
    socket = Requests.open!(context, active: false)

    time =
      Measure.milliseconds(fn ->
        {:ok, routes} = NetlinkPort.dump(socket, 26, <<2, 0::88>>)

        for %{payload: <<_rtmsg::binary-size(12), attributes::binary>>} <- routes do
          {:ok, decoded} = Attr.decode(attributes)
          decoded
        end
      end)

    NetlinkPort.close(socket)
    time
  end

  defp pyroute2(netns) do
    script = Path.join(__DIR__, "others.py")

    case System.cmd("/usr/bin/python3", [script, netns], stderr_to_stdout: true) do
      {output, 0} ->
        for line <- String.split(output, "\n", trim: true), into: %{} do
          [name, figure] = String.split(line)
          {name, String.to_float(figure)}
        end

      {output, _failed} ->
        IO.puts(
          "no figures of pyroute2: #{output |> String.split("\n", trim: true) |> List.last()}"
        )

        %{}
    end
  end
end
