defmodule NetlinkPort.Doctor.Executable do
  @moduledoc false
  # The file: whether it is there, of this version, and who may write and run it.

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.{Doctor, Errno}

  @spec checks(Path.t()) :: [Doctor.check()]
  def checks(path) do
    case File.stat(path) do
      {:ok, %{type: :regular} = stat} -> [version(path) | mode(path, stat)]
      {:ok, %{type: type}} -> [{:fail, "#{path} is no file but a #{type}", other(path)}]
      {:error, reason} -> [{:fail, "#{path}: #{Errno.text(Errno.number(reason))}", other(path)}]
    end
  end

  # The one that the build installs is made by building.
  defp other(path) do
    if path == built(),
      do: "run `mix compile`; in a release, check that it holds priv/netlink_port",
      else: "name one that is there, as `executable:` of the server or as --executable"
  end

  # Where the build puts it, whatever servers are told to take.
  defp built, do: Path.expand(Application.app_dir(:netlink_port, "priv/netlink_port"))

  defp version(path) do
    _loaded = Application.load(:netlink_port)
    ours = to_string(Application.spec(:netlink_port, :vsn))

    case System.cmd(path, ["--version"], stderr_to_stdout: true) do
      {"netlink_port " <> rest, 0} ->
        case String.trim(rest) do
          ^ours -> {:ok, "#{path}, version #{ours}", nil}
          theirs -> {:fail, "#{path} is version #{theirs}, this library #{ours}", rebuild(path)}
        end

      {output, status} ->
        said = output |> String.slice(0, 80) |> inspect()
        {:fail, "#{path} --version ended with status #{status} and said #{said}", rebuild(path)}
    end
  rescue
    error in ErlangError -> {:fail, "#{path} cannot be run: #{reason(error)}", run(error, path)}
  end

  defp rebuild(path) do
    if path == built(),
      do:
        "build both from one source: `mix deps.compile netlink_port --force`, or `mix compile --force`",
      else: "install the one of this build there: install -m 0755 #{built()} #{path}"
  end

  defp reason(%{original: reason}) when is_atom(reason),
    do: reason |> Atom.to_string() |> String.upcase()

  defp reason(error), do: Exception.message(error)

  defp run(%{original: :eacces}, path) do
    "chmod 0755 #{path}, and see that its folders can be searched and its file system is not mounted noexec"
  end

  defp run(_error, path), do: "is it built for this machine? `file #{path}` tells"

  defp mode(path, %{mode: mode}) do
    octal = (mode &&& 0o7777) |> Integer.to_string(8) |> String.pad_leading(4, "0")
    capabilities = capabilities(path)

    writable =
      if (mode &&& 0o002) == 0,
        do: {:ok, "mode #{octal}: others may not write it", nil},
        else: {:warn, "mode #{octal}: anybody may write it", "chmod o-w #{path}"}

    case capabilities do
      {:ok, ""} ->
        [writable, {:ok, "file capabilities: none, so that it has those of who starts it", nil}]

      {:ok, told} when (mode &&& 0o001) != 0 ->
        line = "file capabilities: #{told}; anybody may run it and enter namespaces with it"

        [
          writable,
          {:warn, line, "chgrp GROUP #{path} && chmod 0750 #{path}, then setcap(8) again"}
        ]

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
