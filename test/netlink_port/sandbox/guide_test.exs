defmodule NetlinkPort.Sandbox.GuideTest do
  # Each block of code in docs/testing.md runs as it is written, in the suite of a user: another VM, as an ordinary
  # user if this one is root.
  use NetlinkPort.Case, async: true

  @moduletag userns: true, timeout: within(300_000)

  @guide Path.expand("../../../docs/testing.md", __DIR__)
  @links Path.expand("../../../examples/sample/lib/links.ex", __DIR__)
  @external_resource @guide

  @blocks Regex.scan(~r/^```elixir\n(.*?)^```/ms, File.read!(@guide), capture: :all_but_first)
          |> List.flatten()

  # The block that begins with these words.
  defp block!(start) do
    [block] = for block <- @blocks, String.starts_with?(block, start), do: block
    block
  end

  # The blocks, in the modules around them that the guide describes in words.
  defp suite(fixture) do
    first = block!("defmodule MyApp.LinksTest do")
    named = block!("@tag netlink_sandbox: [server: [name: MyApp.Netlink]]")
    addresses = block!("run!(sandbox, \"ip\", [\"addr\", \"add\", \"192.0.2.1/24\"")
    joined = block!("other = start_supervised!(NetlinkPort.Sandbox)")
    setup = block!("@moduletag :capture_log")

    surviving =
      for start <- ["test \"an overrun", "test \"a restart", "test \"a subscriber that is behind"],
          do: block!(start)

    surviving = surviving ++ [block!("@tag netlink_sandbox: [path: true]")]
    events = block!("defmodule MyApp.Events do")
    own = block!("@tag netlink_sandbox: [stand_in: true]")
    stuck = block!("@tag netlink_sandbox: [server: [ping_interval: 100")
    replayed = block!("{:ok, %{datagrams: _, cut: 0}} =")
    helper = block!("# test/test_helper.exs")
    blocks = [first, named, addresses, joined, setup, replayed, helper, events, own, stuck]
    blocks = blocks ++ surviving
    assert Enum.sort(blocks) == Enum.sort(@blocks)

    """
    #{helper}
    #{@links |> File.read!() |> String.replace("Sample.Links", "MyApp.Links")}
    #{events}
    #{first}
    defmodule MyApp.MoreTest do
      use ExUnit.Case
      use NetlinkPort.Sandbox
      setup :netlink_sandbox

      #{named}
      test "by name", %{sandbox: sandbox, netns: netns} do
        #{addresses}
        #{joined}
        {:ok, _socket} = NetlinkPort.open(MyApp.Netlink, :route, netns: netns)
        {pid, monitor} = {self(), self()}
        #{String.replace(replayed, "test/fixtures/trace.pcapng", fixture)}
        assert_received {:netlink_event, ^monitor, _datagram}
      end
    end

    defmodule MyApp.SurvivingTest do
      use ExUnit.Case, async: true
      use NetlinkPort.Sandbox
      #{setup}
      #{Enum.join(surviving, "\n")}
    end

    defmodule MyApp.EventsTest do
      use ExUnit.Case, async: true
      use NetlinkPort.Sandbox
      @moduletag :capture_log
      setup :netlink_sandbox
      #{own}
      #{stuck}
    end
    """
  end

  test "each block of code in docs/testing.md runs unchanged" do
    folder = tmp_path!("guide")
    File.mkdir!(folder)
    File.chmod!(folder, 0o755)
    fixture = Path.join(folder, "trace.pcapng")
    alias NetlinkPort.Capture.Pcapng
    datagram = Pcapng.datagram(0, 1, :in, 0, {<<16::32-native, 16::16-native, 0::80>>, 16})
    File.write!(fixture, [Pcapng.section_header(), Pcapng.interface("a"), datagram])
    File.write!(Path.join(folder, "suite.exs"), suite(fixture))

    File.cp_r!(:code.lib_dir(:netlink_port), Path.join(folder, "netlink_port"),
      dereference_symlinks: true
    )

    {_output, 0} = System.cmd("chmod", ["-R", "go+rX", folder])

    user =
      if System.cmd("id", ["-u"]) == {"0\n", 0} and not NetlinkPort.Rootless.inside?(),
        do: ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
        else: ["env"]

    elixir = System.find_executable("elixir")
    arguments = [elixir, "-pa", "#{folder}/netlink_port/ebin", "#{folder}/suite.exs"]
    [program | arguments] = user ++ ["env", "HOME=#{folder}", "CI=true"] ++ arguments
    {output, status} = System.cmd(program, arguments, stderr_to_stdout: true, cd: folder)
    assert {status, output} == {0, output}
    assert output =~ ~r/8 tests, 0 failures|Result: 8 passed/
  end
end
