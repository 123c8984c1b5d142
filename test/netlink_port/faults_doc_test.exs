defmodule NetlinkPort.FaultsDocTest do
  # docs/faults.md is a claim a row: each must name a test that there is.
  use ExUnit.Case, async: true

  @root Path.expand("../..", __DIR__)

  # `file: title`, the last cell of each row.
  defp rows do
    for "| " <> line <- @root |> Path.join("docs/faults.md") |> File.stream!(),
        cells = line |> String.trim() |> String.trim_trailing("|") |> String.split(" | "),
        [fault, _seen, _lost, test] = Enum.map(cells, &String.trim/1),
        fault != "fault" and not String.starts_with?(fault, "---"),
        do: {fault, test}
  end

  # Titles as ExUnit makes them: that of the `describe`, if there is one, and that of the `test`.
  defp titles("seccomp.rs" = file) do
    source = File.read!(Path.join([@root, "src", file]))
    for [_, name] <- Regex.scan(~r/#\[test\]\s+fn (\w+)/, source), do: name
  end

  defp titles(name) do
    [path] = Path.wildcard(Path.join(@root, "test/**/#{name}.exs"))
    {:defmodule, _, [_module, [do: body]]} = path |> File.read!() |> Code.string_to_quoted!()
    titles_in(body, "")
  end

  defp titles_in({:__block__, _, expressions}, prefix) do
    Enum.flat_map(expressions, &titles_in(&1, prefix))
  end

  defp titles_in({:describe, _, [title, [do: body]]}, _prefix), do: titles_in(body, title <> " ")
  defp titles_in({:test, _, [title | _rest]}, prefix), do: [prefix <> title]
  defp titles_in(_other, _prefix), do: []

  test "every row of docs/faults.md names a test that there is" do
    rows = rows()
    assert length(rows) >= 30
    assert rows == Enum.uniq_by(rows, &elem(&1, 0))

    for {fault, test} <- rows do
      assert [file, title] = String.split(test, ": ", parts: 2), fault
      assert title in titles(file), "#{fault}: there is no #{inspect(title)} in #{file}"
    end
  end
end
