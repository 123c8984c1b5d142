defmodule NetlinkPort.PlacesTest do
  # What is said of a fault has to be true in the place it is said in: each fault in each place, by VMs
  # that run there.
  use NetlinkPort.Case, async: true

  alias NetlinkPort.{PlaceFaults, Places}

  @moduletag root: true, userns: true

  @faults [:environment, :start, :start_built, :stuck, :doctor]

  # One VM for each place; all faults are done there, and the tests look at what was said.
  setup_all do
    places = Places.setup!()

    told =
      Places.places()
      |> Task.async_stream(
        fn place ->
          {told, _output} = Places.call(places, place, PlaceFaults, :told, [place, @faults])
          {place, told}
        end,
        timeout: 120_000,
        max_concurrency: 2
      )
      |> Map.new(fn {:ok, told} -> told end)

    %{places: places, told: told}
  end

  # What was said of a fault, in each place.
  defp said(c, fault), do: for({place, told} <- c.told, into: %{}, do: {place, told[fault]})

  test "the VM knows where it is", c do
    assert said(c, :environment) == %{
             root: {:own, 0, :initial, false, true},
             user: {:own, 0, :initial, false, true},
             user_namespace: {:own, 0, :other, false, true},
             hidepid1: {:own, 1, :initial, false, true},
             hidepid2: {:own, 2, :initial, false, true},
             foreign_proc: {:foreign, 0, :initial, false, true},
             unbounded_root: {:own, 0, :initial, false, false},
             unbounded_user: {:own, 0, :initial, false, false},
             no_new_privs: {:own, 0, :initial, true, true},
             nosuid: {:own, 0, :initial, false, true}
           }
  end

  test "a helper that is stuck is killed, whatever /proc shows of it", c do
    for {place, said} <- said(c, :stuck),
        place != :unbounded_user,
        do: assert({place, said} == {place, :gone})
  end

  describe "without a shell" do
    defp stuck!(c, shell, options) do
      prefix = ~w(unshare -m --propagation private)
      Places.call(c.places, :root, PlaceFaults, :stuck_without_shell, [shell, options], prefix)
    end

    test "a stuck helper is killed by kill(1), or by the helper's own executable", c do
      # A program that is no shell, one that fails, one that cannot be run.
      for {shell, kill?} <- [{"/bin/true", true}, {"/bin/cat", false}, {"/dev/null", false}] do
        {said, output} = stuck!(c, shell, kill?: kill?, helper?: true)
        assert {shell, kill?, said} == {shell, kill?, {false, true}}
        assert output =~ "did not answer and was killed"
      end
    end

    test "and without anything else that kills the log does not say that it was killed; it is tried again",
         c do
      {said, output} = stuck!(c, "/bin/true", kill?: false, helper?: false)
      assert said == {true, true}

      assert output =~
               ~r/helper \d+ did not answer, and could not be killed yet: neither a shell, kill\(1\) nor /

      assert output =~ ~r/helper \d+ lives on without its server, and could not be killed: /
      refute output =~ "was killed"
    end
  end
end
