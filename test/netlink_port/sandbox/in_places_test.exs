defmodule NetlinkPort.Sandbox.InPlacesTest do
  # In each place a sandbox and its faults work, or the start fails at once with one true line.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{Places, SandboxPlaces}

  @moduletag root: true, userns: true, init_user_namespace: true, timeout: within(300_000)

  setup do
    %{places: Places.setup!()}
  end

  # Where a VM ends while it starts a program, OTP's own erl_child_setup says that it has lost the VM.
  defp told(c, place) do
    {told, output} = Places.call(c.places, place, SandboxPlaces, :told, [place])
    {told, String.replace(output, ~r/^erl_child_setup: failed with error 32 .*\r?\n/m, "")}
  end

  test "a sandbox and its faults work in each place where the helper can run and /proc has its process id",
       c do
    for place <- Places.places() -- [:foreign_proc, :unbounded_user] do
      works = %{unavailable: nil, plain: :ok, path: :ok, stand_in: :ok, built: :ok}
      # Nothing is printed.
      assert {place, told(c, place)} == {place, {works, ""}}
    end
  end

  test "with the /proc of another pid namespace there is no sandbox, and unavailable/0 says why",
       c do
    {told, _output} = told(c, :foreign_proc)
    assert told.unavailable =~ "/proc is that of another pid namespace"
    assert told.unavailable =~ "--mount-proc"
    refute told.unavailable =~ "\n"
    for kind <- [:plain, :path, :stand_in, :built], do: assert(told[kind] == told.unavailable)
  end

  test "a helper that cannot run is an error that names it, also with a stand-in", c do
    {told, _output} = told(c, :unbounded_user)
    assert {told.unavailable, told.built} == {nil, :ok}

    for kind <- [:plain, :path, :stand_in] do
      assert told[kind] =~ "helper #{c.places.installed} was not run"
      assert told[kind] =~ "CAP_SYS_ADMIN"
    end
  end
end
