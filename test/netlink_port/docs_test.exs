defmodule NetlinkPort.DocsTest do
  # Every public function has its types, its errors and an example.
  use ExUnit.Case, async: true

  {:ok, modules} = :application.get_key(:netlink_port, :modules)
  @modules modules

  # Those whose functions fail by values; others raise, or cannot fail.
  @failing [
    NetlinkPort,
    NetlinkPort.Native,
    NetlinkPort.Message,
    NetlinkPort.Attr,
    NetlinkPort.Monitor,
    NetlinkPort.Connection,
    NetlinkPort.Generic
  ]

  defp documented do
    for module <- @modules,
        {:docs_v1, _, :elixir, _, %{"en" => moduledoc}, _, docs} <- [Code.fetch_docs(module)],
        do: {module, moduledoc, docs}
  end

  # `{module, name, arity, doc}`, of the functions that are not hidden; a doc may be :none.
  defp functions do
    for {module, _moduledoc, docs} <- documented(),
        {{:function, name, arity}, _line, _signature, doc, _metadata} <- docs,
        doc != :hidden,
        do: {module, name, arity, doc}
  end

  defp specs(module) do
    {:ok, specs} = Code.Typespec.fetch_specs(module)
    Map.new(specs)
  end

  defp name({module, name, arity, _doc}), do: Exception.format_mfa(module, name, arity)

  test "what is documented" do
    for f <- functions(), do: IO.puts(name(f) <> " " <> inspect(is_map(elem(f, 3))))
  end
end
