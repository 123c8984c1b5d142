defmodule NetlinkPort.Helper.Privileges do
  @moduledoc false
  # What a helper may do, and how it was started: the facts that explain a refusal. The helper reports them itself,
  # since a program between it and the VM may have changed them.
  #
  # A field that is not known is `nil`, for example for a helper of another node.

  alias NetlinkPort.{Capability, Environment}

  @typedoc """
  `capabilities` are those that the helper uses, `keep` those that it was told to keep. `bounding`, `no_new_privs` and
  `seccomp` (the mode of the filter) are what it was started with. `nosuid`: its file, `executable`, is on a mount
  with that option; `nil` before `with_mount/1`. `root` are the capabilities of a VM that runs as root, `nil` of another
  or before `with_mount/1`.
  `user_namespace` says whether it is in the initial one, `children` whether it may enter others in a child process.
  """
  @type t :: %__MODULE__{
          capabilities: Capability.set(),
          keep: [atom()],
          bounding: Capability.set() | nil,
          no_new_privs: boolean() | nil,
          executable: Path.t() | nil,
          nosuid: boolean() | nil,
          root: Capability.set() | nil,
          seccomp: 0..2 | nil,
          user_namespace: Environment.namespace(),
          children: boolean() | nil
        }

  @enforce_keys [:capabilities]
  defstruct @enforce_keys ++
              [:bounding, :no_new_privs, :executable, :nosuid, :root, :seccomp] ++
              [:user_namespace, :children, keep: []]

  # PROC_USER_INIT_INO, include/linux/proc_ns.h
  @first 0xEFFFFFFD

  @doc "The privileges of a helper that has said hello."
  @spec new(NetlinkPort.Helper.hello(), keyword(), Path.t()) :: t()
  def new(hello, opts, executable) do
    %__MODULE__{
      capabilities: hello.capabilities,
      keep: opts[:keep],
      bounding: hello.bounding,
      no_new_privs: hello.no_new_privs,
      executable: executable,
      seccomp: hello.seccomp,
      user_namespace: if(hello.user_namespace in [0, @first], do: :initial, else: :other),
      children: opts[:user_namespaces]
    }
  end

  @doc "With the mount of its file, and the capabilities of a VM that runs as root. It reads files: see `NetlinkPort.Helper.Look`."
  @spec with_mount(t()) :: t()
  def with_mount(%__MODULE__{executable: executable} = privileges) do
    environment = Environment.look()
    mount = Environment.mount(environment, executable)
    root = if environment.uid == 0, do: environment.effective
    %{privileges | nosuid: Environment.mounted?(mount, "nosuid"), root: root}
  end

  @doc "Whether `remedy/2` depends on what `with_mount/1` finds, and that is not known yet."
  @spec mount_counts?(t(), atom()) :: boolean()
  def mount_counts?(%{executable: executable, nosuid: nil} = privileges, name)
      when executable != nil do
    not (outside?(privileges, name) or unkept?(privileges, name) or
           privileges.no_new_privs == true)
  end

  def mount_counts?(_known, _name), do: false

  @doc "Whether the helper has a capability."
  @spec capable?(t(), atom()) :: boolean()
  def capable?(privileges, name), do: Capability.in?(privileges.capabilities, name)

  @doc "How the helper can get a capability that it lacks."
  @spec remedy(t(), atom()) :: String.t()
  def remedy(privileges, name) do
    cond do
      outside?(privileges, name) ->
        "its bounding set does not hold it, so that neither root nor the capabilities of a file give " <>
          "it: the container (--cap-add #{bare(name)}) or the systemd unit (CapabilityBoundingSet=) has " <>
          "to allow it" <> also_keep(privileges, name) <> without(name)

      unkept?(privileges, name) ->
        "start its server with keep: [#{inspect(name)}], and the helper with that capability"

      privileges.no_new_privs ->
        "it was started under no_new_privs, so that the capabilities of its file do not count: " <>
          "NoNewPrivileges= of the systemd unit, --security-opt=no-new-privileges of the container; " <>
          "AmbientCapabilities= of the unit counts all the same"

      privileges.nosuid ->
        "its file lies on a file system mounted nosuid, where the capabilities of a file do not count; " <>
          "install it elsewhere by `mix netlink_port.install`" <> flag(name)

      privileges.root != nil and not Capability.in?(privileges.root, name) ->
        "root does not get it here: #{Environment.noroot()}; install the helper with capabilities by " <>
          "`mix netlink_port.install`" <> flag(name)

      true ->
        "start it as root, or install it with capabilities by `mix netlink_port.install`" <>
          flag(name)
    end
  end

  defp bare(name), do: name |> Atom.to_string() |> String.upcase()

  defp outside?(%{bounding: bounding}, name),
    do: bounding != nil and not Capability.in?(bounding, name)

  defp unkept?(privileges, name),
    do: name not in [:sys_admin, :net_admin, :sys_ptrace] and name not in privileges.keep

  defp also_keep(privileges, name) do
    if unkept?(privileges, name),
      do: ", and its server is started with keep: [#{inspect(name)}]",
      else: ""
  end

  defp without(:sys_admin), do: "; sockets in its own namespace (netns: :host) need no capability"
  defp without(_other), do: ""

  # These two are installed by default.
  defp flag(name) when name in [:sys_admin, :net_admin], do: ""
  defp flag(name), do: " with --capability #{name}"

  @doc "What may refuse a system call although no capability is missing."
  @spec refuser(t()) :: String.t()
  def refuser(%{seccomp: 0}) do
    "a security module (AppArmor, SELinux) can be what refuses it"
  end

  def refuser(_filtered) do
    "a seccomp profile can be what refuses it, that of the container (--security-opt seccomp=) or " <>
      "SystemCallFilter= of the systemd unit, or a security module (AppArmor, SELinux)"
  end
end
