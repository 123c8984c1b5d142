defmodule NetlinkPort.Doctor.Executable do
  @moduledoc false
  # Checks the file of the helper: whether it exists, its version, and who may write and run it.

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.{Doctor, Environment, Errno}
  alias NetlinkPort.Helper.{ExecutableAccess, Execve}
  alias NetlinkPort.Doctor.Remedy

  @spec checks(Path.t() | nil, {atom(), atom()}) :: [Doctor.check()]
  def checks(path, os \\ :os.type())

  def checks(_path, {family, name}) when {family, name} != {:unix, :linux} do
    [
      {:fail, "the helper runs on Linux alone, and this is #{name}",
       "run the application on Linux"}
    ]
  end

  def checks(nil, _linux) do
    [
      {:fail,
       "there is no helper: this code lies in no folder of an application, as in an escript",
       Remedy.missing(nil)}
    ]
  end

  def checks(path, _linux) do
    case File.stat(path) do
      {:ok, %{type: :regular} = stat} ->
        [version(path) | mode(path, stat, Execve.file_capabilities(path))]

      {:ok, %{type: type}} ->
        [{:fail, "#{path} is no file but a #{ExecutableAccess.kind(type)}", Remedy.missing(path)}]

      {:error, :eacces} ->
        [unreached(path)]

      {:error, reason} when reason in [:enoent, :enotdir] ->
        [{:fail, "#{path}: #{ExecutableAccess.missing(path)}", Remedy.missing(path)}]

      {:error, reason} ->
        [{:fail, "#{path}: #{Errno.text(Errno.number(reason))}", Remedy.missing(path)}]
    end
  end

  defp unreached(path) do
    {found, remedy} = ExecutableAccess.refused(path)
    {:fail, "#{path} cannot be run: EACCES: #{found}", remedy}
  end

  defp version(path) do
    ours = Execve.version()

    case Execve.version(path) do
      {:ok, ^ours} ->
        {:ok, "#{path}, version #{ours}", nil}

      {:ok, theirs} ->
        {:fail, "#{path} is version #{theirs}, this library #{ours}", Remedy.version(path)}

      {:error, :eacces} ->
        unreached(path)

      {:error, {:another, said, status}} ->
        line = "#{path} --version ended with status #{status} and said #{inspect(said)}"
        {:fail, line, Remedy.another(path)}

      {:error, {found, remedy}} ->
        {:fail, "#{path} #{found}", remedy || Remedy.another(path)}
    end
  end

  defp mode(path, %{mode: mode}, capabilities) do
    octal = ExecutableAccess.octal(mode)

    writable =
      if (mode &&& 0o002) == 0,
        do: {:ok, "mode #{octal}: others may not write it", nil},
        else: {:warn, "mode #{octal}: anybody may write it", "chmod o-w #{path}"}

    [writable | file_capabilities(path, mode, capabilities)]
  end

  defp file_capabilities(_path, _mode, :unknown),
    do: [{:ok, "file capabilities: not looked at, there is no getcap(8)", nil}]

  defp file_capabilities(_path, _mode, {:ok, %{text: ""}}),
    do: [{:ok, "file capabilities: none, so that it has those of who starts it", nil}]

  # In any other user namespace they do not count, not even for root of the machine.
  defp file_capabilities(_path, _mode, {:ok, %{text: text, rootid: rootid}}) when rootid != nil do
    {found, remedy} = Execve.foreign(rootid)
    [{:warn, "file capabilities: #{text}: #{found}", remedy}]
  end

  defp file_capabilities(path, mode, {:ok, %{text: text, names: names}}) do
    shared =
      if (mode &&& 0o001) != 0 do
        line = "file capabilities: #{text}; anybody may run it and enter namespaces with it"
        {:warn, line, Remedy.group(path)}
      else
        {:ok, "file capabilities: #{text}", nil}
      end

    [shared | powerless(path, names)]
  end

  # A reason that holds for several capabilities is reported once. A capability that the bounding set lacks keeps the
  # file from being run at all, which is another finding.
  defp powerless(path, names) do
    environment = Environment.look()

    for(
      name <- names,
      Environment.bounded?(environment, name),
      do: Execve.powerless(path, name, environment)
    )
    |> Enum.reject(&is_nil/1)
    |> Enum.uniq()
    |> Enum.map(fn {found, remedy} ->
      {:warn, "these capabilities do not count: #{found}", remedy}
    end)
  end
end
