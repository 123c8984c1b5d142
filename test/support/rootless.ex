defmodule NetlinkPort.Rootless do
  @moduledoc false
  # For an ordinary user the suite runs in another VM, as root of a new user namespace with a network and a mount
  # namespace. The user namespace has no other user. Tests that need another user, or a privilege that only root of
  # the machine has, are tagged `:init_user_namespace`.

  @variable "NETLINK_PORT_TEST_ROOTLESS"

  # ip netns mounts the names of namespaces in /run, and distribution needs the loopback.
  @script "mount -t tmpfs tmpfs /run && ip link set lo up && exec \"$@\""

  @doc "Whether this VM runs in such a user namespace."
  def inside?, do: System.get_env(@variable) != nil

  @doc "Runs `mix test` there, and ends this VM with its exit status. Returns if that is not possible."
  def run do
    if ordinary?() and mix_test?() and possible?() do
      IO.puts("Not root: the suite runs in a user namespace of its own.")
      halt_with(["mix" | System.argv()])
    end
  end

  defp ordinary? do
    not inside?() and not match?({"0\n", 0}, System.cmd("id", ["-u"])) and
      System.get_env("NETLINK_PORT_TEST_SU") == nil and
      System.get_env("NETLINK_PORT_TEST_WITHOUT") == nil
  end

  # A suite that a test starts requires its files without Mix.
  defp mix_test?, do: match?(["test" | _], System.argv())

  defp possible?, do: match?({_output, 0}, unshare(["true"]))

  defp unshare(command) do
    System.cmd("unshare", arguments(command), stderr_to_stdout: true)
  end

  defp arguments(command) do
    ["--user", "--map-root-user", "--net", "--mount", "sh", "-c", @script, "sh" | command]
  end

  # The command uses the standard input and output of this VM.
  defp halt_with(command) do
    opts = [
      :nouse_stdio,
      :exit_status,
      args: arguments(command),
      env: [{to_charlist(@variable), ~c"1"}]
    ]

    port = Port.open({:spawn_executable, System.find_executable("unshare")}, opts)

    receive do
      {^port, {:exit_status, status}} -> System.halt(status)
    end
  end
end
