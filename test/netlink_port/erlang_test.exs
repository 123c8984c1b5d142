defmodule NetlinkPort.ErlangTest do
  # Runs each test of the EUnit module test/erlang/netlink_port_tests.erl as a test here, and checks that the code in
  # docs/erlang.md runs.
  use NetlinkPort.Case, async: false

  import ExUnit.CaptureIO

  @module :netlink_port_tests
  @source Path.expand("../erlang/netlink_port_tests.erl", __DIR__)
  @guide Path.expand("../../docs/erlang.md", __DIR__)
  @external_resource @source

  options = [:binary, :return, :warnings_as_errors]

  case :compile.file(String.to_charlist(@source), options) do
    {:ok, module, binary, []} -> {:module, _name} = :code.load_binary(module, ~c"", binary)
    {:error, errors, warnings} -> raise "#{@source}: #{inspect(errors ++ warnings)}"
  end

  # EUnit's parse transform exports functions whose names end so.
  @generators for {name, 0} <- @module.module_info(:exports),
                  String.ends_with?(Atom.to_string(name), "_test_"),
                  do: name

  for name <- @generators do
    @tag :root
    test "#{name |> Atom.to_string() |> String.trim_trailing("_test_") |> String.replace("_", " ")}" do
      told = capture_io(fn -> send(self(), run(unquote(name))) end)
      assert_received outcome
      assert outcome == :ok, told
      assert told =~ "Test passed", told
    end
  end

  defp run(name), do: :eunit.test({:generator, @module, name}, [:verbose])

  test "the EUnit module has tests" do
    assert length(@generators) >= 7
  end

  test "the code in docs/erlang.md runs" do
    [_text | blocks] = String.split(File.read!(@guide), "```erlang\n")
    source = squeeze(File.read!(@source))
    assert length(blocks) >= 6

    for block <- blocks, [code, _text] = String.split(block, "```", parts: 2) do
      assert String.contains?(source, squeeze(code)), "the tests do not run this:\n#{code}"
    end
  end

  # Indentation does not count.
  defp squeeze(code), do: code |> String.split() |> Enum.join(" ")
end
