NetlinkPort.Rootless.run()

loadable? = fn module ->
  File.exists?("/proc/modules") and
    match?({_, 0}, System.cmd("modprobe", ["--dry-run", module], stderr_to_stdout: true)) and
    not String.contains?(File.read!("/proc/modules"), module <> " ")
end

link? = fn type ->
  arguments = ["-n", "ip", "link", "add", "nlp0", "type" | String.split(type)]
  match?({_, 0}, System.cmd("unshare", arguments, stderr_to_stdout: true))
end

# These tests write chains of IPv4. A kernel without them can have a table all the same (5.10).
nftables? =
  match?(
    {_, 0},
    System.cmd(
      "unshare",
      ["-n", "nft", "table ip t { chain c { type filter hook output priority 0; }; }"],
      stderr_to_stdout: true
    )
  )

# Before Linux 6.2 such a warning goes to the kernel's log.
warning? = fn ->
  script =
    "tc qdisc add dev lo root handle 1: htb && tc class add dev lo parent 1: classid 1:1 htb rate 10gbit"

  {output, _status} = System.cmd("unshare", ["-n", "sh", "-c", script], stderr_to_stdout: true)
  output =~ "quantum of class"
end

# Set by test/kernels/guest.sh.
own_machine? = System.get_env("NETLINK_PORT_TEST_OWN_MACHINE") != nil

# Skips the tests that this machine does not allow, and says so in one line.
requirements = [
  modules: {
    loadable?.("psample") and loadable?.("drop_monitor"),
    "No modules `psample` and `drop_monitor` to load here: generic families are not registered again for real."
  },
  mac80211_hwsim: {
    own_machine? and loadable?.("mac80211_hwsim"),
    "Not in a machine of the suite's own with the module `mac80211_hwsim` (make kernels): no radios are simulated."
  },
  netdevsim: {
    own_machine? and loadable?.("netdevsim"),
    "Not in a machine of the suite's own with the module `netdevsim` (make kernels): no devlink device is simulated."
  },
  nftables: {
    nftables?,
    "No tables of nftables for IPv4 here: conntrack, nflog and sets are not followed."
  },
  proc_events: {
    with({:ok, text} <- File.read("/proc/net/connector"), do: text =~ "cn_proc") == true,
    "No process events in this kernel or namespace: the connector is not listened to."
  },
  root: {
    System.cmd("id", ["-u"]) == {"0\n", 0} or System.get_env("NETLINK_PORT_TEST_SU") != nil,
    "Not root: tests that make network namespaces are skipped."
  },
  init_user_namespace: {
    not NetlinkPort.Rootless.inside?(),
    "Not root of the machine: tests that take other users, or capabilities of files, are skipped."
  },
  link_echo: {
    :os.version() >= {6, 2, 0},
    "A kernel before Linux 6.2 does not echo RTM_NEWLINK: echoes of links are not read."
  },
  netdev: {
    :os.version() >= {6, 3, 0},
    "A kernel before Linux 6.3 has no family netdev: groups by name are not changed for another."
  },
  ns_last_pid: {
    File.exists?("/proc/sys/kernel/ns_last_pid"),
    "No /proc/sys/kernel/ns_last_pid in this kernel: no process id is given to a second process."
  },
  proc_syscall: {
    File.exists?("/proc/self/syscall"),
    "No /proc/<pid>/syscall in this kernel: whether an idle helper sleeps is not seen."
  },
  warnings: {
    warning?.(),
    "No sch_htb that warns in extended acks in this kernel (6.2 or later): the warnings of successes are not read."
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
  team: {
    link?.("team"),
    "No team interfaces in this kernel: the answers of their family are not read."
  },
  wireguard: {
    link?.("wireguard"),
    "No wireguard interfaces in this kernel: the answers of their family are not read."
  },
  vrf: {
    link?.("vrf table 10") and link?.("dummy"),
    "No vrf or dummy interfaces in this kernel: the routes of these are not followed."
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

# A suite that a test starts (unprivileged_test.exs) leaves out tests that its VM cannot run.
without =
  for tag <- String.split(System.get_env("NETLINK_PORT_TEST_WITHOUT", "")),
      do: String.to_atom(tag)

# Builds the programs of test/fixtures/.
if without == [],
  do: {_output, 0} = System.cmd("cargo", ~w(build --release --locked --quiet --examples))

# The folder of files that tests let a second user run.
unless NetlinkPort.Case.open_to_all?(System.tmp_dir!()), do: System.put_env("TMPDIR", "/tmp")

NetlinkPort.Case.sweep()
exclude = Keyword.keys(missing) ++ without
NetlinkPort.Pace.set()

ExUnit.start(
  formatters: [ExUnit.CLIFormatter, NetlinkPort.FailedTests],
  capture_log: true,
  assert_receive_timeout: NetlinkPort.Pace.within(5_000),
  timeout: NetlinkPort.Pace.within(60_000),
  exclude: exclude
)
