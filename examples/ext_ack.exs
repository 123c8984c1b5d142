# Sends requests that the kernel refuses, and shows its extended acks: the errno, the message, the attribute that it
# points at, and what it would have accepted. Changes nothing.
#
#     mix run examples/ext_ack.exs [--netns NAME]

alias NetlinkPort.{Attr, Error}

netns =
  case System.argv() do
    ["--netns", name] -> {:name, name}
    [] -> :host
  end

{:ok, _supervisor} = Supervisor.start_link([NetlinkPort], strategy: :one_for_one)
{:ok, socket} = NetlinkPort.open(:route, netns: netns, active: false)

# rtnetlink(7): the type of a request, and its payload.
requests = [
  # RTM_NEWLINK of loopback with IFLA_TXQLEN (13), which has 32 bits.
  {"a queue length of 16 bits", 16,
   [<<0::32, 1::32-native, 0::64>> | Attr.encode([{13, Attr.u16(1_000)}])]},
  # RTM_NEWADDR of loopback, IPv4, without IFA_LOCAL.
  {"an address without an address", 20, <<2, 32, 0, 0, 1::32-native>>},
  # RTM_NEWROUTE of a type that does not exist.
  {"a route of type 200", 24, <<2, 32, 0, 0, 254, 3, 253, 200, 0::32>>}
]

for {what, type, payload} <- requests do
  IO.puts(what)

  case NetlinkPort.request(socket, type, payload) do
    {:error, %Error{ext_ack: ext_ack} = error} ->
      IO.puts("  " <> Exception.message(error))

      said = if ext_ack, do: Map.from_struct(ext_ack), else: %{}
      for {name, value} <- said, value != nil, do: IO.puts("    #{name}: #{inspect(value)}")

    {:ok, []} ->
      IO.puts("  taken")
  end
end
