defmodule Bench.Report do
  @moduledoc false
  # Writes the figures as tables to the terminal and to docs/benchmarks.md, and as a chart to docs/benchmarks.svg.

  @docs Path.expand("../docs", __DIR__)
  @markers {"<!-- made by `make bench` -->", "<!-- end of what `make bench` made -->"}

  @doc "Prints a table: a list of rows, each a list of cells. The first row is the head."
  def table([head | rows]) do
    widths =
      for column <- Enum.zip_with([head | rows], & &1),
          do: column |> Enum.map(&String.length/1) |> Enum.max()

    line = fn cells ->
      [name | figures] = Enum.zip(cells, widths)

      "| " <>
        Enum.map_join([pad(name, :right) | Enum.map(figures, &pad(&1, :left))], " | ", & &1) <>
        " |"
    end

    rule =
      Enum.map_join(Enum.with_index(widths), " | ", fn
        {width, 0} -> String.duplicate("-", width)
        {width, _} -> String.duplicate("-", max(width - 1, 0)) <> ":"
      end)

    Enum.join([line.(head), "| " <> rule <> " |" | Enum.map(rows, line)], "\n")
  end

  defp pad({cell, width}, :right), do: String.pad_trailing(cell, width)
  defp pad({cell, width}, :left), do: String.pad_leading(cell, width)

  def figure(nil), do: ""
  def figure(0), do: "0"
  def figure(number) when abs(number) >= 100, do: "#{round(number)}"
  def figure(number) when abs(number) >= 10, do: :erlang.float_to_binary(number / 1, decimals: 1)
  def figure(number), do: :erlang.float_to_binary(number / 1, decimals: 2)

  def figure(nil, _unit), do: ""
  def figure(number, unit), do: "#{figure(number)} #{unit}"

  @doc "The machine on which the figures were measured."
  def machine do
    [model] =
      Regex.run(~r/^model name\s*:\s*(.*)$/m, File.read!("/proc/cpuinfo"), capture: :all_but_first)

    {release, 0} = System.cmd("uname", ["-r"])
    [kernel] = Regex.run(~r/^\d+\.\d+/, release)

    "#{model}, #{System.schedulers_online()} processors, Linux #{kernel}, " <>
      "Erlang/OTP #{System.otp_release()}, Elixir #{System.version()}, " <>
      "netlink_port #{Application.spec(:netlink_port, :vsn)}, #{Date.utc_today()}"
  end

  @doc "Puts the tables between the markers of docs/benchmarks.md."
  def write(text) do
    path = Path.join(@docs, "benchmarks.md")
    {first, last} = @markers
    [before, rest] = path |> File.read!() |> String.split(first, parts: 2)
    [_old, behind] = String.split(rest, last, parts: 2)
    File.write!(path, [before, first, "\n\n", text, "\n\n", last, behind])
  end

  @doc """
  Draws the ratios, `{name, ratio, low, high, goal}` each; less is better. gnuplot draws in one colour, for a light
  page. The style of the SVG changes the colour on a dark page.
  """
  def chart(rows) do
    data =
      for {{name, ratio, low, high, goal}, index} <- Enum.with_index(Enum.reverse(rows)) do
        label = 1.08 * Enum.max([1, high, goal || 1])
        "#{index} #{ratio} #{low} #{high} #{goal || "NaN"} #{label} \"#{name}\"\n"
      end

    path = Path.join(System.tmp_dir!(), "nlp-#{System.pid()}-chart")
    File.write!(path <> ".dat", data)

    arguments = [
      "-c",
      Path.join(__DIR__, "chart.gp"),
      path <> ".dat",
      path <> ".svg",
      "#{length(rows)}"
    ]

    case System.cmd("gnuplot", arguments, stderr_to_stdout: true) do
      {_quiet, 0} ->
        File.write!(Path.join(@docs, "benchmarks.svg"), themed(File.read!(path <> ".svg")))

      {output, _failed} ->
        IO.puts("no chart: #{output}")
    end

    File.rm(path <> ".dat")
    File.rm(path <> ".svg")
  end

  @style """
  <style>
    svg { color: #1f2328; }
    @media (prefers-color-scheme: dark) { svg { color: #e6edf3; } }
  </style>
  """

  defp themed(svg) do
    svg = String.replace(svg, ~r/(rgb\(\s*0,\s*0,\s*0\)|#000000|"black"|'black')/, "currentColor")
    svg = String.replace(svg, "\"currentColor\"", "currentColor")
    svg = Regex.replace(~r/(fill|stroke|color)=currentColor/, svg, "\\1=\"currentColor\"")
    Regex.replace(~r/(<svg[^>]*>)/s, svg, "\\1\n" <> @style, global: false)
  end
end
