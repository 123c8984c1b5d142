defmodule NetlinkPort.Doctor.Remedy do
  @moduledoc false
  # The remedy for an executable, by where it lies. Danger: a file that users may write to, such as that of a build,
  # must not get capabilities where it lies, since every such user would then have them.

  import Bitwise, only: [&&&: 2]

  alias NetlinkPort.{Environment, Helper}
  alias NetlinkPort.Helper.{ExecutableAccess, Execve, Install}

  @usual "/usr/local/lib/netlink_port"
  @as_root "; or start the VM as root"
  @name "NETLINK_PORT_EXECUTABLE, `executable:` or --executable"

  @doc "Whether the file was installed: only root can have put it there, and it is not that of a build."
  @spec installed?(Path.t()) :: boolean()
  def installed?(path) do
    folder = Path.dirname(path)

    with false <- path == Helper.Executable.built() or Path.basename(folder) == "priv",
         {:ok, %{type: :regular, uid: 0} = stat} <- File.stat(path) do
      (stat.mode &&& 0o022) == 0 and Install.closed(folder) == :ok
    else
      _a_build_or_users -> false
    end
  end

  @doc """
  The remedy for a helper that lacks a capability: the reason that it cannot have it, or how it gets it. `usual` is
  the path at which a helper may be installed already.
  """
  @spec capability(Path.t(), atom(), Path.t()) :: String.t()
  def capability(path, capability, usual \\ @usual) do
    environment = Environment.look()

    case Execve.powerless(path, capability, environment) do
      {found, remedy} ->
        "#{found}: #{remedy}"

      nil ->
        if environment.user_namespace == :other,
          do: "this VM runs in a user namespace of its own: " <> inside(path, usual),
          else: capable(path, usual, root(environment, capability))
    end
  end

  defp inside(path, usual) do
    "there it may enter namespaces that were made in it, and no others; " <>
      capable(path, usual, @as_root)
  end

  defp root(%{uid: 0} = environment, capability) do
    if Environment.capable?(environment, capability),
      do: @as_root,
      else: "; root does not get it here: #{Environment.noroot()}"
  end

  defp root(_user, _capability), do: @as_root

  defp capable(path, usual, root) do
    cond do
      installed?(path) ->
        "install it again: #{install(path)}"

      path != usual and File.exists?(usual) ->
        "--executable #{usual} looks at the one that is installed there, and " <>
          "NETLINK_PORT_EXECUTABLE=#{usual} has servers take it"

      true ->
        "mix netlink_port.install --to #{Path.dirname(usual)} --group GROUP, then " <>
          "NETLINK_PORT_EXECUTABLE=#{usual}, or --executable #{usual} here" <> root
    end
  end

  @doc "The remedy for a helper with capabilities that every user may run."
  @spec group(Path.t()) :: String.t()
  def group(path) do
    if installed?(path),
      do: "install it for a group: " <> install(path),
      else:
        "install it for a group: mix netlink_port.install --to #{Path.dirname(@usual)} --group GROUP"
  end

  @doc "The remedy for a helper of another version."
  @spec version(Path.t()) :: String.t()
  def version(path) do
    cond do
      path == Helper.Executable.built() ->
        "build both from one source: `mix deps.compile netlink_port --force`, or `mix compile --force`"

      installed?(path) ->
        "install that of this library, without NETLINK_PORT_EXECUTABLE in the environment: " <>
          install(path)

      true ->
        "put the one of this build there: install -m 0755 #{Helper.Executable.built()} #{path}"
    end
  end

  @doc "The remedy for a file that is not a helper. The file itself is left alone."
  @spec another(Path.t()) :: String.t()
  def another(path) do
    if path == Helper.Executable.built(),
      do: "build it again: `mix deps.compile netlink_port --force`, or `mix compile --force`",
      else: "it is another program; name the helper by #{@name}"
  end

  @doc "The remedy for a file that does not exist."
  @spec missing(Path.t() | nil) :: String.t()
  def missing(path) do
    if path != nil and path == Helper.Executable.built(),
      do: "run `mix compile`; in a release, check that it holds priv/netlink_port",
      else: "name one that is there by #{@name}; `mix netlink_port.install` installs one"
  end

  # For the group of the installed file, unless that is root's.
  defp install(path) do
    group =
      case File.stat(path) do
        {:ok, %{gid: gid}} when gid != 0 -> ExecutableAccess.group(gid)
        _none -> "GROUP"
      end

    "mix netlink_port.install --to #{path} --group #{group}"
  end
end
