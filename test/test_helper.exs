# What this machine does not allow is skipped, with one line that says so.
requirements = [
  root: {
    System.cmd("id", ["-u"]) == {"0\n", 0} or System.get_env("NETLINK_PORT_TEST_SU") != nil,
    "Not root: tests that make network namespaces are skipped."
  },
  pipes: {
    System.find_executable("perl") != nil and
      File.read("/proc/sys/fs/pipe-user-pages-soft") == {:ok, "16384\n"},
    "No perl, or another pipe-user-pages-soft than the usual: the pipes of a user are not measured."
  },
  qemu: {
    System.find_executable("qemu-x86_64-static") != nil and
      to_string(:erlang.system_info(:system_architecture)) =~ ~r/^x86_64/,
    "No qemu-x86_64-static: the helper is not run under emulation."
  },
  systemd: {
    System.find_executable("systemd-analyze") != nil,
    "No systemd-analyze: the unit of examples/systemd is not checked."
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

NetlinkPort.Case.sweep()
exclude = Keyword.keys(missing) ++ without
ExUnit.start(capture_log: true, assert_receive_timeout: 5_000, exclude: exclude)
