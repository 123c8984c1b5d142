# What `make docs` shows, and how it is grouped. Paths are those from the top of the repository.
guides = [
  Start: ~w(README.md docs/getting-started.md docs/cheatsheet.cheatmd docs/erlang.md CHANGELOG.md),
  Concepts: ~w(docs/concepts.md docs/decisions.md),
  "Coming from a NIF": ~w(docs/coming-from-a-nif.md docs/drop-in-socket.md),
  Deployment: ~w(docs/deployment.md docs/operations.md docs/distribution.md),
  Faults: ~w(docs/faults.md),
  Benchmarks: ~w(docs/benchmarks.md),
  Protocol: ~w(docs/protocol.md docs/vectors.txt docs/kernels.md)
]

[
  main: "readme",
  formatters: ["html"],
  extras: Enum.flat_map(guides, fn {_group, paths} -> paths end),
  groups_for_extras: guides,
  groups_for_modules: [
    Sockets: [
      NetlinkPort,
      NetlinkPort.Socket,
      NetlinkPort.Pin,
      NetlinkPort.Native,
      NetlinkPort.Error
    ],
    "Above sockets": [NetlinkPort.Connection, NetlinkPort.Monitor],
    "Seeing inside": [NetlinkPort.Doctor, NetlinkPort.Top, NetlinkPort.Telemetry],
    Messages: [
      NetlinkPort.Message,
      NetlinkPort.Attr,
      NetlinkPort.Generic,
      NetlinkPort.ExtAck,
      NetlinkPort.DecodeError
    ]
  ]
]
