defmodule NetlinkPort.Tshark do
  @moduledoc false
  # What Wireshark's own programs make of a file: tshark(1), capinfos(1).

  @doc "Values of fields, a list for each packet; raises where the file is damaged."
  def fields(path, fields) do
    arguments = ["-r", path, "-T", "fields"] ++ Enum.flat_map(fields, &["-e", &1])
    for line <- lines(run!("tshark", arguments)), do: String.split(line, "\t")
  end

  @doc "The names of the messages in each packet, and of the commands of generic netlink."
  def message_types(path) do
    for packet <- String.split(run!("tshark", ["-r", path, "-V"]), ~r/^Frame /m, trim: true),
        do:
          ~r/(?:Netlink message header \(type: |^    Command: )([^()\n]*[^()\n ])/m
          |> Regex.scan(packet)
          |> Enum.map(&List.last/1)
  end

  @doc "What capinfos(1) says, by name."
  def capinfos(path) do
    for line <- lines(run!("capinfos", ["-M", path])),
        [name, value] <- [String.split(line, ":", parts: 2)],
        into: %{},
        do: {String.trim(name), String.trim(value)}
  end

  defp lines(output), do: String.split(output, "\n", trim: true)

  # It warns root on standard error.
  defp run!(program, arguments) do
    script = "exec #{program} \"$@\" 2>/dev/null"
    {output, 0} = System.cmd("sh", ["-c", script, program | arguments])
    output
  end
end
