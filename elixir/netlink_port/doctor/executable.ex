defmodule NetlinkPort.Doctor.Executable do
  @moduledoc false
  # The file: whether it is there, of this version, and who may write and run it.

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.{Access, Doctor, Errno, Helper}
  alias NetlinkPort.Doctor.Remedy

  @spec checks(Path.t()) :: [Doctor.check()]
  def checks(path) do
    case File.stat(path) do
      {:ok, %{type: :regular} = stat} ->
        capabilities = capabilities(path)
        [version(path, capabilities) | mode(path, stat, capabilities)]

      {:ok, %{type: type}} ->
        [{:fail, "#{path} is no file but a #{type}", Remedy.missing(path)}]

      {:error, :eacces} ->
        [unreached(path)]

      {:error, reason} ->
        [{:fail, "#{path}: #{Errno.text(Errno.number(reason))}", Remedy.missing(path)}]
    end
  end

  defp unreached(path) do
    {found, remedy} = Access.refused(path)
    {:fail, "#{path} cannot be run: EACCES: #{found}", remedy}
  end

  defp version(path, capabilities) do
    _loaded = Application.load(:netlink_port)
    ours = to_string(Application.spec(:netlink_port, :vsn))

    case System.cmd(path, ["--version"], stderr_to_stdout: true) do
      {"netlink_port " <> rest, 0} ->
        case String.trim(rest) do
          ^ours ->
            {:ok, "#{path}, version #{ours}", nil}

          theirs ->
            line = "#{path} is version #{theirs}, this library #{ours}"
            {:fail, line, Remedy.version(path)}
        end

      # As the VM tells that execve(2) says EPERM.
      {"", 1} when capabilities not in [{:ok, ""}, :unknown] ->
        {:fail, "#{path} #{Helper.format_error({:helper_exit, 1})}",
         "have the bounding set hold what the file has"}

      {output, status} ->
        said = output |> String.slice(0, 80) |> inspect()
        line = "#{path} --version ended with status #{status} and said #{said}"
        {:fail, line, Remedy.another(path)}
    end
  rescue
    error in ErlangError -> cannot_run(error, path)
  end

  defp cannot_run(%{original: :eacces}, path), do: unreached(path)

  defp cannot_run(error, path) do
    {:fail, "#{path} cannot be run: #{reason(error)}",
     "is it built for this machine? `file #{path}` tells"}
  end

  defp reason(%{original: reason}) when is_atom(reason),
    do: reason |> Atom.to_string() |> String.upcase()

  defp reason(error), do: Exception.message(error)

  defp mode(path, %{mode: mode}, capabilities) do
    octal = Access.octal(mode)

    writable =
      if (mode &&& 0o002) == 0,
        do: {:ok, "mode #{octal}: others may not write it", nil},
        else: {:warn, "mode #{octal}: anybody may write it", "chmod o-w #{path}"}

    case capabilities do
      {:ok, ""} ->
        [writable, {:ok, "file capabilities: none, so that it has those of who starts it", nil}]

      {:ok, told} when (mode &&& 0o001) != 0 ->
        line = "file capabilities: #{told}; anybody may run it and enter namespaces with it"
        [writable, {:warn, line, Remedy.group(path)}]

      {:ok, told} ->
        [writable, {:ok, "file capabilities: #{told}", nil}]

      :unknown ->
        [writable, {:ok, "file capabilities: not looked at, there is no getcap(8)", nil}]
    end
  end

  # In a directory that users often do not have in their path.
  defp capabilities(path) do
    getcap =
      System.find_executable("getcap") ||
        Enum.find(["/usr/sbin/getcap", "/sbin/getcap"], &File.exists?/1)

    with true <- getcap != nil,
         {output, 0} <- System.cmd(getcap, [path], stderr_to_stdout: true) do
      {:ok,
       output |> String.replace_prefix(path, "") |> String.trim() |> String.trim_leading("= ")}
    else
      _not_told -> :unknown
    end
  end
end
