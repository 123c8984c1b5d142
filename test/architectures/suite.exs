# suite.exs PREFIX FILE...: runs these files of the suite in the machine, and prints a line for run.sh after each:
# "@@ pass PREFIX/FILE TESTS" or "@@ fail PREFIX/FILE"; `-` is no prefix. Run by `mix run --no-compile`, since the machine
# is slow, and the code was compiled outside.
defmodule Lines do
  use GenServer

  # %{file => {modules still to run, tests so far, whether any failed}}
  def init(_options), do: {:ok, :persistent_term.get(__MODULE__)}

  def handle_cast({:module_finished, %ExUnit.TestModule{} = module}, files) do
    tests =
      Enum.reject(module.tests, &match?({kind, _} when kind in [:skipped, :excluded], &1.state))

    bad? = module.state != nil or Enum.any?(tests, & &1.state)
    {left, sum, bad_before?} = Map.fetch!(files, module.file)
    file = {left - 1, sum + length(tests), bad? or bad_before?}
    report(file, module.file)
    {:noreply, Map.put(files, module.file, file)}
  end

  def handle_cast(_event, files), do: {:noreply, files}

  # A file has passed when all its modules have.
  defp report({0, sum, false}, file), do: IO.puts("\n@@ pass #{name(file)} #{sum}")
  defp report({0, _sum, true}, file), do: IO.puts("\n@@ fail #{name(file)}")
  defp report(_more, _file), do: :ok

  defp name(file),
    do: prefix(hd(System.argv())) <> Path.relative_to(file, Path.expand("test/netlink_port"))

  defp prefix("-"), do: ""
  defp prefix(prefix), do: prefix <> "/"
end

[_prefix | files] = System.argv()
Code.require_file("test/test_helper.exs")
ExUnit.configure(formatters: [ExUnit.CLIFormatter, Lines], timeout: 600_000, max_cases: 1)

{:ok, modules, _warnings} = files |> Enum.map(&Path.expand/1) |> Kernel.ParallelCompiler.require()

tests =
  for module <- modules, function_exported?(module, :__ex_unit__, 0), do: module.__ex_unit__()

:persistent_term.put(
  Lines,
  Map.new(Enum.frequencies_by(tests, & &1.file), fn {file, modules} ->
    {file, {modules, 0, false}}
  end)
)
