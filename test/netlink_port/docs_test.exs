defmodule NetlinkPort.DocsTest do
  # Every public function documents its types, its errors and an example.
  use NetlinkPort.Case, async: false

  import ExUnit.CaptureIO

  {:ok, modules} = :application.get_key(:netlink_port, :modules)
  @modules modules

  # Paragraphs of code. Those that begin with an asterisk are items of a list.
  code = fn text ->
    paragraphs = String.split(text, "\n\n")
    Enum.filter(paragraphs, &(&1 =~ ~r/\A\n?    (?!\* )/)) |> Enum.join("\n\n")
  end

  @examples for module <- modules,
                {:docs_v1, _, :elixir, _, _, _, docs} <- [Code.fetch_docs(module)],
                {{:function, name, arity}, _line, _signature, %{"en" => text}, _meta} <- docs,
                example = code.(text),
                example != "",
                do: {module, name, arity, example}

  # `{title, code}` of the cheat sheet.
  @cheatsheet Path.expand("../../docs/cheatsheet.cheatmd", __DIR__)
  @external_resource @cheatsheet
  @snippets for [title, code] <-
                  Regex.scan(
                    ~r/^### ([^\n]*)\n\n```elixir\n(.*?)```/ms,
                    File.read!(@cheatsheet),
                    capture: :all_but_first
                  ),
                do: {title, code}

  defp documented do
    for module <- @modules,
        {:docs_v1, _, :elixir, _, %{"en" => moduledoc}, _, docs} <- [Code.fetch_docs(module)],
        do: {module, moduledoc, docs}
  end

  # `{module, name, arity, doc}` of the functions that are not hidden. `doc` may be :none.
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

  # The return types of a function, as text.
  defp returns({module, name, arity, _doc}) do
    for spec <- Map.get(specs(module), {name, arity}, []) do
      {:"::", _meta, [_head, type]} = unwhen(Code.Typespec.spec_to_quoted(name, spec))
      Macro.to_string(type)
    end
    |> Enum.join(" ")
  end

  defp unwhen({:when, _meta, [spec, _guards]}), do: spec
  defp unwhen(spec), do: spec

  defp text({_module, _name, _arity, %{"en" => text}}), do: text
  defp text(_none), do: ""

  defp mfa({module, name, arity, _doc}), do: Exception.format_mfa(module, name, arity)

  defp all!(functions, what, holds?) do
    lacking = for f <- functions, not holds?.(f), do: mfa(f)
    assert lacking == [], "without #{what}:\n" <> Enum.join(lacking, "\n")
  end

  test "modules and functions with documentation are found" do
    modules = for {module, _moduledoc, _docs} <- documented(), do: module
    assert NetlinkPort in modules and NetlinkPort.Attr in modules
    assert length(functions()) > 70
  end

  test "every public function is documented, with its types" do
    all!(functions(), "documentation", &(text(&1) != ""))

    all!(functions(), "a spec", fn {module, name, arity, _doc} ->
      Map.has_key?(specs(module), {name, arity})
    end)
  end

  test "every public function that returns errors documents them" do
    fails? = &(returns(&1) =~ ~r/\berror\b|on_start|got\(/)
    assert Enum.count(functions(), fails?) > 30
    all!(Enum.filter(functions(), fails?), "a paragraph of errors", &(text(&1) =~ ~r/^Errors/m))
  end

  test "every public function has an example" do
    shown = for {module, name, arity, _example} <- @examples, do: {module, name, arity}

    all!(functions(), "an example", fn {module, name, arity, _} ->
      {module, name, arity} in shown
    end)
  end

  # In Markdown an indented block after an item of a list is a part of the item.
  test "code does not directly follow a list" do
    after_item = ~r/^    \* [^\n]*(\n      [^\n]*)*\n\n    [^ *\n]/m
    lacking = for f <- functions(), text(f) =~ after_item, do: mfa(f)
    assert lacking == []
  end

  # Examples that no doctest can run, since they need a namespace. Each runs in a new process, which owns `socket` and
  # `generic`, passive sockets of the protocols in their names.
  describe "the examples that take a namespace run" do
    @describetag :root

    setup do
      netns = netns!()
      for name <- [MyApp.Netlink, NetlinkPort], do: start_server!(name: name)
      place = [server: MyApp.Netlink, netns: {:name, netns}]
      start_supervised!({NetlinkPort.Connection, [protocol: :route, name: MyApp.Blue] ++ place})
      start_supervised!({NetlinkPort.Monitor, [groups: [1], name: MyApp.Links] ++ place})
      {:ok, netns: netns}
    end

    for {module, name, arity, example} <- @examples,
        module != NetlinkPort.Sandbox,
        not String.contains?(example, "iex>") do
      test Exception.format_mfa(module, name, arity), %{netns: netns} do
        example = String.replace(unquote(example), "trace.pcapng", tmp_path!("trace"))
        assert :ok = run(String.replace(example, "blue", netns), netns)
      end
    end

    for {title, snippet} <- @snippets do
      test "the cheat sheet: #{title}", %{netns: netns} do
        snippet = String.replace(unquote(snippet), "trace.pcapng", tmp_path!("trace"))
        assert :ok = run(String.replace(snippet, "blue", netns), netns)
      end
    end
  end

  # In the test's own process, which the test's supervisor needs.
  describe "the examples of sandboxes run" do
    import NetlinkPort.Sandbox, only: [netlink_sandbox: 1]

    @describetag netlink_sandbox: [stand_in: true], capture_log: true, userns: true
    setup :netlink_sandbox

    setup %{server: server, netns: netns} do
      path = tmp_path!("trace.pcapng")
      {:ok, capture} = NetlinkPort.capture(server, path)
      {:ok, _counts} = NetlinkPort.stop_capture(capture)
      {:ok, socket} = NetlinkPort.open(server, :route, netns: netns)
      %{socket: socket, path: path, other: start_supervised!(NetlinkPort.Sandbox)}
    end

    for {NetlinkPort.Sandbox, name, arity, example} <- @examples,
        not String.contains?(example, "iex>") do
      test "#{name}/#{arity}", c do
        imports = "import NetlinkPort.Sandbox; import ExUnit.Assertions\n"
        example = String.replace(unquote(example), "trace.pcapng", c.path)
        bindings = [sandbox: c.sandbox, other: c.other, socket: c.socket, pid: self()]
        Code.eval_string(imports <> example, bindings)
      end
    end
  end

  defp run(example, netns) do
    capture_io(fn -> send(self(), {:ran, evaluate(example, netns)}) end)
    assert_received {:ran, outcome}
    outcome
  end

  defp evaluate(example, netns) do
    task =
      Task.async(fn ->
        passive = [netns: {:name, netns}, active: false]
        {:ok, socket} = NetlinkPort.open(MyApp.Netlink, :route, passive)
        {:ok, generic} = NetlinkPort.open(MyApp.Netlink, :generic, passive)
        Code.eval_string(example, socket: socket, generic: generic)
        :ok
      end)

    Task.await(task, within(30_000))
  end
end
