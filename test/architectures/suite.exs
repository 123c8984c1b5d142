# suite.exs FILE...: runs these files of the suite in the machine, and prints a line for run.sh after each: "@@ pass
# FILE TESTS" or "@@ fail FILE". Run by `mix run --no-compile`, since the machine is slow, and the code was compiled
# outside.
defmodule Lines do
  use GenServer

  def init(_options), do: {:ok, nil}

  def handle_cast({:module_finished, %ExUnit.TestModule{} = module}, state) do
    tests =
      Enum.reject(module.tests, &match?({kind, _} when kind in [:skipped, :excluded], &1.state))

    bad? = module.state != nil or Enum.any?(tests, & &1.state)
    file = Path.relative_to(module.file, Path.expand("test/netlink_port"))
    # A file can have more than one module: run.sh adds them up.
    IO.puts(if bad?, do: "\n@@ fail #{file}", else: "\n@@ pass #{file} #{length(tests)}")
    {:noreply, state}
  end

  def handle_cast(_event, state), do: {:noreply, state}
end

Code.require_file("test/test_helper.exs")
ExUnit.configure(formatters: [ExUnit.CLIFormatter, Lines], timeout: 600_000, max_cases: 1)
System.argv() |> Enum.map(&Path.expand/1) |> Kernel.ParallelCompiler.require()
