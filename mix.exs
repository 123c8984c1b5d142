defmodule NetlinkPort.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :netlink_port,
      version: @version,
      elixir: "~> 1.14",
      description: "AF_NETLINK sockets in other network namespaces, out of the VM",
      elixirc_paths: elixirc_paths(Mix.env()),
      # The tests use PropEr and EUnit where they are installed, without a dependency on them.
      prune_code_paths: Mix.env() != :test,
      test_ignore_filters: [
        &String.starts_with?(&1, [
          "test/architectures/",
          "test/containers/",
          "test/dist/",
          "test/kernels/",
          "test/layers/",
          "test/matrix/",
          "test/soak/"
        ])
      ],
      compilers: [:netlink_port] ++ Mix.compilers(),
      start_permanent: Mix.env() == :prod,
      deps: [],
      dialyzer: [],
      package: package()
    ]
  end

  # There is no application callback: nothing starts by itself.
  def application, do: [extra_applications: [:logger]]

  defp elixirc_paths(:test), do: ["elixir", "test/support"]
  defp elixirc_paths(_env), do: ["elixir"]

  # The files that a build needs. Cargo refuses a manifest whose examples, in test/fixtures, are missing. `links:` is
  # empty, since there is no public address yet.
  defp package do
    [
      licenses: ["Apache-2.0"],
      links: %{},
      files: ~w(Cargo.toml Cargo.lock src test/fixtures mix.exs build.exs elixir priv/.gitkeep
                README.md CHANGELOG.md LICENSE docs
                examples/*.ex* examples/systemd examples/sample/mix.exs examples/sample/.formatter.exs
                examples/sample/lib examples/sample/test)
    ]
  end
end

Code.require_file("build.exs", __DIR__)
