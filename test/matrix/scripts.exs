# Compiles the scripts that neither `mix compile` nor `mix test` compiles, those of the examples, the benchmarks, the
# documentation and the folders of test/, without running them, so that their warnings are shown.

# A script's modules as they are, and the rest of it as the body of a function.
compilable = fn file ->
  {:__block__, _meta, forms} =
    case Code.string_to_quoted!(File.read!(file), file: file) do
      {:__block__, _meta, _forms} = block -> block
      form -> {:__block__, [], [form]}
    end

  {modules, rest} = Enum.split_with(forms, &match?({:defmodule, _meta, _arguments}, &1))
  name = Module.concat(Script, file |> Path.rootname() |> Path.basename() |> Macro.camelize())
  modules ++ [quote(do: defmodule(unquote(name), do: def(run, do: (unquote_splicing(rest)))))]
end

# All together, since they call each other. Scripts that load others come last.
patterns = ~w(examples/*.{ex,exs} bench/*.exs docs/*.exs test/*/*.exs)

files =
  Enum.flat_map(patterns, &Path.wildcard/1) |> Enum.reject(&String.ends_with?(&1, "_test.exs"))

files = Enum.sort_by(files, &(File.read!(&1) =~ "Code.require_file"))
modules = Code.compile_quoted({:__block__, [], Enum.flat_map(files, compilable)})
IO.puts("#{length(files)} scripts, #{length(modules)} modules")
