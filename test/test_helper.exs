NetlinkPort.Case.sweep()

unprivileged? = System.cmd("id", ["-u"]) != {"0\n", 0}

if unprivileged? do
  IO.puts("Not root: tests tagged :root, which make network namespaces, are skipped.")
end

ExUnit.start(
  capture_log: true,
  assert_receive_timeout: 2_000,
  exclude: if(unprivileged?, do: [:root], else: [])
)
