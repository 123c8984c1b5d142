defmodule Mix.Tasks.Compile.NetlinkPort do
  @moduledoc false
  # The Mix compiler that puts the helper into priv/. Cargo builds it, or NETLINK_PORT_EXECUTABLE names one that was
  # built elsewhere. With `config :netlink_port, executable:` nothing is built.
  #
  # mix.exs requires this file, since Mix looks for a compiler before anything is compiled.
  use Mix.Task.Compiler

  @root __DIR__
  @version Mix.Project.config()[:version]
  @variable "NETLINK_PORT_EXECUTABLE"
  @ways "https://rustup.rs, or `apt-get install cargo` on Debian 13. " <>
          "Where there can be none, #{@variable} names an executable that was built elsewhere"

  @impl true
  def run(_args), do: build(:os.type())

  @doc false
  @spec build({atom(), atom()}) :: {:ok | :noop, []}
  def build(os) do
    prebuilt = variable()
    configured = Application.get_env(:netlink_port, :executable)

    cond do
      # Without Linux the application still compiles, for work on its other parts.
      os != {:unix, :linux} and not cross?() -> without_helper(os)
      prebuilt != "" -> prebuilt |> prebuilt!() |> install() |> link()
      configured != nil -> configured!(configured)
      true -> cargo!() |> install() |> link()
    end
  end

  defp without_helper({_family, name}) do
    Mix.shell().info(
      "netlink_port: compiled without the helper, which runs on Linux alone (this is #{name}); " <>
        "NetlinkPort.start_link/1 says so, too"
    )

    {:noop, []}
  end

  # As bytes: under LC_ALL=C each byte is a character, which System.get_env/1 would encode again.
  defp variable do
    case :os.getenv(to_charlist(@variable)) do
      false -> ""
      value -> :unicode.characters_to_binary(value, :unicode, :file.native_name_encoding())
    end
  end

  ## Cargo

  defp cargo! do
    least = least_version()

    cargo =
      System.find_executable("cargo") || Mix.raise("netlink_port needs cargo; #{get(least)}")

    check_version!(cargo, least)

    unless File.exists?(Path.join(@root, "priv/netlink_port")),
      do: Mix.shell().info("netlink_port: Cargo builds the helper, which takes a minute")

    # Cargo's errors go directly to standard error. Standard output is a JSON object for each line: only Cargo knows
    # where its artefact is, by CARGO_TARGET_DIR, CARGO_BUILD_TARGET and its own files.
    arguments = ~w(build --release --locked --quiet --bin netlink_port
                   --message-format json-render-diagnostics)

    case System.cmd(cargo, arguments, cd: @root) do
      {output, 0} -> built!(output)
      {_output, status} -> Mix.raise("cargo build failed with status #{status}, as it says above")
    end
  end

  defp least_version do
    manifest = File.read!(Path.join(@root, "Cargo.toml"))
    [_line, version] = Regex.run(~r/^rust-version = "(.+)"$/m, manifest)
    version
  end

  defp check_version!(cargo, least) do
    # Runs in the project's folder, since rustup may choose another Cargo there.
    {output, _status} = System.cmd(cargo, ["--version"], cd: @root, stderr_to_stdout: true)

    with [_, found] <- Regex.run(~r/^cargo (\d+\.\d+\.\d+)/m, output),
         :lt <- Version.compare(found, least <> ".0") do
      Mix.raise("netlink_port needs cargo #{least}, #{cargo} is #{found}; #{get(least)}")
    else
      nil -> Mix.raise("#{cargo} does not work: #{String.trim(output)}")
      _new_enough -> :ok
    end
  end

  defp get(least), do: "install Rust #{least} or newer: #{@ways}"

  defp built!(output) do
    case Regex.run(~r/"executable":"((?:[^"\\]|\\.)+)"/, output) do
      [_, path] -> Regex.replace(~r/\\(.)/, path, "\\1")
      nil -> Mix.raise("cargo build has not said where the executable is, but: #{output}")
    end
  end

  ## Executables that were built elsewhere

  defp prebuilt!(path) do
    # A dependency is compiled in its own folder, and the VM runs in another, so a relative path has no fixed meaning.
    if Path.type(path) != :absolute, do: refuse!(path, "is not an absolute path")

    case version(path) do
      {:ok, @version} ->
        path

      {:error, :foreign} ->
        if cross?(), do: path, else: refuse!(path, "cannot run on this machine")

      {:ok, other} ->
        refuse!(path, "is version #{other}")

      {:error, reason} ->
        refuse!(path, reason)
    end
  end

  defp refuse!(path, reason) do
    Mix.raise(
      "#{@variable}: #{path} #{reason}; it has to be netlink_port #{@version} for the machine that " <>
        "is built for (for another one than this set MIX_TARGET or CARGO_BUILD_TARGET); " <>
        "unset #{@variable} to have Cargo build it"
    )
  end

  # The executable is used at this path, perhaps on another machine. Here it may be missing or not readable.
  defp configured!(path) when is_binary(path) do
    case version(path) do
      {:ok, other} when other != @version ->
        Mix.shell().error(
          "netlink_port: #{path}, which `config :netlink_port, executable:` names, is version " <>
            "#{other}, and the library #{@version}: install the helper anew"
        )

      _ours_or_unknown ->
        :ok
    end

    {:noop, []}
  end

  defp configured!(other) do
    Mix.raise("expected `config :netlink_port, executable:` to be a path, got: #{inspect(other)}")
  end

  defp version(path) do
    case File.stat(path) do
      {:ok, %{type: :regular}} -> answer(path)
      {:ok, %{type: type}} -> {:error, "is no file but a #{type}"}
      {:error, reason} -> {:error, "cannot be used: #{:file.format_error(reason)}"}
    end
  end

  # For a file that execve(2) refuses the VM returns the errno as exit status: 8 is ENOEXEC.
  defp answer(path) do
    case ask(path) do
      {"netlink_port " <> version, 0} -> {:ok, String.trim(version)}
      {"", 8} -> if elf?(path), do: {:error, :foreign}, else: {:error, "is not netlink_port"}
      {output, _status} -> {:error, "is not netlink_port: it says #{inspect(output)}"}
    end
  rescue
    error in ErlangError -> {:error, "cannot be run: #{:file.format_error(error.original)}"}
  end

  # A port, since System.cmd/3 would look for another name under LC_ALL=C.
  defp ask(path) do
    options = [:binary, :exit_status, :stderr_to_stdout, args: ["--version"]]
    collect(Port.open({:spawn_executable, path}, options), "")
  end

  defp collect(port, output) do
    receive do
      {^port, {:data, data}} -> collect(port, output <> data)
      {^port, {:exit_status, status}} -> {output, status}
    end
  end

  defp elf?(path), do: File.open!(path, [:read], &IO.binread(&1, 4)) == "\x7FELF"

  ## Into priv/

  # By rename(2), so that no process reads half an executable, and a running one is left alone.
  defp install(built) do
    installed = Path.join(priv(), "netlink_port")

    if same?(built, installed) do
      {:noop, []}
    else
      sweep(installed)
      temporary = "#{installed}.tmp#{System.pid()}"

      # Every user may run it, whatever the umask: a release may run as another user.
      with :ok <- File.mkdir_p(Path.dirname(installed)),
           :ok <- File.cp(built, temporary),
           :ok <- File.chmod(temporary, 0o755),
           :ok <- File.rename(temporary, installed) do
        {:ok, []}
      else
        {:error, reason} ->
          _result = File.rm(temporary)
          Mix.raise("cannot write #{installed}: #{:file.format_error(reason)}")
      end
    end
  end

  # The helper for the host lies in the source, to which the build has a link. A helper for another machine must
  # replace neither that nor one for a third machine, so it goes into a folder of its own build.
  defp priv do
    if cross?() do
      priv = Path.join(Mix.Project.app_path(), "priv")
      if match?({:ok, _target}, File.read_link(priv)), do: File.rm!(priv)
      priv
    else
      Path.join(@root, "priv")
    end
  end

  # After a build for another machine with the same build path, a folder stands in place of the link, and Mix would
  # keep the folder.
  defp link(result) do
    priv = Path.join(Mix.Project.app_path(), "priv")

    if not cross?() and File.read_link(priv) == {:error, :einval} do
      File.rm_rf!(priv)
      Mix.Project.build_structure()
    end

    result
  end

  defp cross?, do: Mix.target() != :host or System.get_env("CARGO_BUILD_TARGET", "") != ""

  # Removes the temporary files of builds that were killed.
  defp sweep(installed) do
    # Not Path.wildcard/1: the user's path may hold a brace or a star.
    with {:ok, names} <- File.ls(Path.dirname(installed)) do
      for "netlink_port.tmp" <> pid = name <- names,
          not File.exists?("/proc/" <> pid),
          do: File.rm(Path.join(Path.dirname(installed), name))
    end
  end

  # Sizes are compared first: most builds that differ do so in size, and need not be read.
  defp same?(built, installed) do
    with {:ok, %{size: size}} <- File.stat(built),
         {:ok, %{size: ^size}} <- File.stat(installed),
         {:ok, bytes} <- File.read(built),
         {:ok, ^bytes} <- File.read(installed) do
      true
    else
      _different -> false
    end
  end
end
