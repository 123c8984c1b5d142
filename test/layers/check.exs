# Checks the layers: compares the table in CONTRIBUTING.md with `mix xref graph`. The lowest layer comes first. A file
# uses files of its own layer and of lower ones. Run by `make check`, with the compiled project.

defmodule Layers do
  # Rows of the table: | number | name | `pattern`, `pattern` | ... |
  def table(page) do
    for line <- String.split(page, "\n"),
        [_, number, name, patterns] <- [Regex.run(~r/^\| (\d+) \| ([^|]+) \| ([^|]+) \|/, line)],
        [pattern] <- Regex.scan(~r/(?<=`)[^`, ]+(?=`)/, patterns) do
      {String.to_integer(number), name, pattern}
    end
  end

  # The first pattern that matches a file: a file, or a folder that ends with /.
  def layer(table, file) do
    Enum.find_value(table, fn {number, _name, pattern} ->
      if file == pattern or
           (String.ends_with?(pattern, "/") and String.starts_with?(file, pattern)),
         do: number
    end)
  end

  # `mix xref graph` prints a file, and below it, indented by a branch, each file that it uses.
  def uses(graph) do
    {uses, _file} =
      graph
      |> String.split("\n", trim: true)
      |> Enum.flat_map_reduce(nil, fn line, file ->
        case Regex.run(~r/^([|`]-- )?elixir\/(\S+\.ex)/, line) do
          [_, "", file] -> {[], file}
          [_, _branch, used] -> {[{file, used}], file}
          nil -> {[], file}
        end
      end)

    uses
  end
end

{graph, 0} = System.cmd("mix", ["xref", "graph", "--format", "plain"])
table = "CONTRIBUTING.md" |> File.read!() |> Layers.table()
files = Path.wildcard("elixir/**/*.ex") |> Enum.map(&String.replace_prefix(&1, "elixir/", ""))
uses = Layers.uses(graph)

if table == [] or uses == [], do: raise("the table of layers or the graph could not be read")

nowhere = for file <- files, Layers.layer(table, file) == nil, do: "#{file} is in no layer"

upwards =
  for {file, used} <- uses, Layers.layer(table, used) > Layers.layer(table, file) do
    "#{file} (layer #{Layers.layer(table, file)}) uses #{used} (layer #{Layers.layer(table, used)})"
  end

unused =
  for {number, _name, pattern} <- table,
      not Enum.any?(files, &String.starts_with?(&1, pattern)) do
    "layer #{number} names #{pattern}, which is not there"
  end

case nowhere ++ upwards ++ unused do
  [] ->
    IO.puts("layers: #{length(files)} files, #{length(uses)} uses, none upwards")

  wrong ->
    IO.puts(:stderr, ["layers, see CONTRIBUTING.md:\n" | Enum.map(wrong, &["  ", &1, "\n"])])
    System.halt(1)
end
