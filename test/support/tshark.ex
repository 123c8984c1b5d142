defmodule NetlinkPort.Tshark do
  @moduledoc false
  # Reads capture files with Wireshark's programs: tshark(1), capinfos(1).

  @doc "The values of fields, a list for each packet. Raises if the file is damaged."
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

  @doc "The values that capinfos(1) prints, by name."
  def capinfos(path) do
    for line <- lines(run!("capinfos", ["-M", path])),
        [name, value] <- [String.split(line, ":", parts: 2)],
        into: %{},
        do: {String.trim(name), String.trim(value)}
  end

  defp lines(output), do: String.split(output, "\n", trim: true)

  # Without standard error, where tshark warns root.
  defp run!(program, arguments) do
    script = "exec #{program} \"$@\" 2>/dev/null"
    {output, 0} = System.cmd("sh", ["-c", script, program | arguments])
    output
  end
end
