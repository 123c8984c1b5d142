defmodule NetlinkPort.FaultsDocTest do
  # Each row of docs/faults.md is a claim, and must name a test that exists.
  use ExUnit.Case, async: true

  @root Path.expand("../..", __DIR__)

  # `file: title`, the last cell of each row. A row of another form fails the test.
  defp rows do
    for "|" <> _ = line <- @root |> Path.join("docs/faults.md") |> File.stream!(),
        cells =
          ~r/^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$/ |> Regex.run(line) |> List.wrap(),
        not header?(cells) do
      assert [_line, fault, _seen, _lost, test] = cells, line
      {fault, test}
    end
  end

  @headers [["fault", "what the user sees", "what is lost", "test"], ~w(--- --- --- ---)]

  defp header?(cells), do: Enum.drop(cells, 1) in @headers

  # Titles as ExUnit makes them: that of the `describe`, if any, and that of the `test`.
  defp titles(name) do
    [path] = Path.wildcard(Path.join(@root, "test/**/#{name}.exs"))
    source = File.read!(path)
    refute source =~ ~r/@(module|describe)?tag :?skip/, "#{path} leaves tests out"
    {:defmodule, _, [_module, [do: body]]} = Code.string_to_quoted!(source)
    titles_in(body, "")
  end

  defp titles_in({:__block__, _, expressions}, prefix) do
    Enum.flat_map(expressions, &titles_in(&1, prefix))
  end

  defp titles_in({:describe, _, [title, [do: body]]}, _prefix), do: titles_in(body, title <> " ")
  defp titles_in({:test, _, [title | _rest]}, prefix), do: [prefix <> title]
  defp titles_in(_other, _prefix), do: []

  test "every row of docs/faults.md names a test that exists" do
    rows = rows()
    assert length(rows) >= 30
    assert rows == Enum.uniq_by(rows, &elem(&1, 0))

    tests =
      for {fault, test} <- rows do
        assert [file, title] = String.split(test, ": ", parts: 2), fault
        {file, title, fault}
      end

    for {file, tests} <- Enum.group_by(tests, &elem(&1, 0)),
        titles = titles(file),
        {_file, title, fault} <- tests,
        do: assert(title in titles, "#{fault}: there is no #{inspect(title)} in #{file}")
  end
end
