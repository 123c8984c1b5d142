defmodule Sample.MixProject do
  use Mix.Project

  def project do
    [
      app: :sample,
      version: "0.1.0",
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      deps: deps(),
      releases: [sample: [include_executables_for: [:unix]]]
    ]
  end

  def application, do: [mod: {Sample.Application, []}, extra_applications: [:logger]]

  # Your own project has one of the two.
  defp deps do
    case System.get_env("SAMPLE_GIT") do
      nil -> [{:netlink_port, path: System.get_env("SAMPLE_PATH", "../..")}]
      url -> [{:netlink_port, git: url}]
    end
  end
end
