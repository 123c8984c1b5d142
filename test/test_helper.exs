# What this machine does not allow is skipped, with one line that says so.
requirements = [
  root: {
    System.cmd("id", ["-u"]) == {"0\n", 0} or System.get_env("NETLINK_PORT_TEST_SU") != nil,
    "Not root: tests that make network namespaces are skipped."
  },
  systemd: {
    System.find_executable("systemd-analyze") != nil,
    "No systemd-analyze: the unit of examples/systemd is not checked."
  },
  team: {
    match?(
      {_, 0},
      System.cmd("unshare", ~w(-n ip link add type team), stderr_to_stdout: true)
    ),
    "No team interfaces in this kernel: the answers of their family are not read."
  },
  tshark: {
    System.find_executable("tshark") != nil and System.find_executable("capinfos") != nil,
    "No tshark: tests that have it read captures are skipped."
  },
  userns: {
    match?({_, 0}, System.cmd("unshare", ["-Ur", "true"], stderr_to_stdout: true)),
    "No user namespaces here (unshare -Ur): tests that need them are skipped."
  }
]

missing = for {tag, {false, sentence}} <- requirements, do: {tag, sentence}
for {_tag, sentence} <- missing, do: IO.puts(sentence)

# A suite within the suite (unprivileged_test.exs) leaves out what its VM cannot see or do.
without =
  for tag <- String.split(System.get_env("NETLINK_PORT_TEST_WITHOUT", "")),
      do: String.to_atom(tag)

# The programs of test/fixtures/.
if without == [],
  do: {_output, 0} = System.cmd("cargo", ~w(build --release --locked --quiet --examples))

# What tests let a second user run lies there.
unless NetlinkPort.Case.open_to_all?(System.tmp_dir!()), do: System.put_env("TMPDIR", "/tmp")

NetlinkPort.Case.sweep()
exclude = Keyword.keys(missing) ++ without
NetlinkPort.Pace.set()

ExUnit.start(
  capture_log: true,
  assert_receive_timeout: NetlinkPort.Pace.within(5_000),
  timeout: NetlinkPort.Pace.within(60_000),
  exclude: exclude
)
