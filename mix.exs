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
      # Tests use applications that nothing here depends on, where they are installed: PropEr, EUnit.
      prune_code_paths: Mix.env() != :test,
      test_ignore_filters: [&String.starts_with?(&1, ["test/matrix/", "test/soak/"])],
      compilers: [:netlink_port] ++ Mix.compilers(),
      start_permanent: Mix.env() == :prod,
      deps: [],
      dialyzer: [],
      package: package()
    ]
  end

  # Nothing starts by itself: there is no application callback.
  def application, do: [extra_applications: [:logger]]

  defp elixirc_paths(:test), do: ["elixir", "test/support"]
  defp elixirc_paths(_env), do: ["elixir"]

  defp package do
    [
      licenses: ["Apache-2.0"],
      files:
        ~w(Cargo.toml Cargo.lock src elixir priv/.gitkeep mix.exs README.md CHANGELOG.md LICENSE
           docs examples test/fixtures)
    ]
  end
end

defmodule Mix.Tasks.Compile.NetlinkPort do
  @moduledoc false
  # Builds the Rust program with Cargo and installs it as priv/netlink_port.
  use Mix.Task.Compiler

  @install "install Rust 1.85 or newer: https://rustup.rs, or `apt-get install cargo` on Debian 13"

  @impl true
  def run(_args) do
    cargo = System.find_executable("cargo") || Mix.raise("netlink_port needs cargo; #{@install}")
    root = Path.dirname(Mix.Project.project_file())
    arguments = ~w(build --release --locked --quiet --bin netlink_port)

    case System.cmd(cargo, arguments, cd: root, stderr_to_stdout: true, into: IO.stream()) do
      {_output, 0} -> install(Path.join(root, "target/release/netlink_port"), root)
      {_output, status} -> Mix.raise("cargo build failed with status #{status}, as it says above")
    end
  end

  # By rename, so that no reader ever sees half an executable, and a running one is left alone.
  defp install(built, root) do
    installed = Path.join(root, "priv/netlink_port")

    if same?(built, installed) do
      {:noop, []}
    else
      temporary = installed <> ".tmp#{System.pid()}"

      with :ok <- File.mkdir_p(Path.dirname(installed)),
           :ok <- File.cp(built, temporary),
           :ok <- File.rename(temporary, installed) do
        {:ok, []}
      else
        {:error, reason} ->
          _result = File.rm(temporary)
          Mix.raise("cannot write #{installed}: #{:file.format_error(reason)}")
      end
    end
  end

  defp same?(built, installed) do
    case {File.read(built), File.read(installed)} do
      {{:ok, bytes}, {:ok, bytes}} -> true
      _other -> false
    end
  end
end
