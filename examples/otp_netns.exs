# Shows what OTP's own way into a network namespace does to the VM when the socket cannot be opened.
#
#     elixir --erl "+S 1:1" examples/otp_netns.exs PATH
#
# The option `netns` of socket:open/4 moves a scheduler thread into the namespace, opens the socket there and moves
# the thread back. If the socket cannot be opened, the thread is not moved back. With one scheduler (+S 1:1) all
# code in the VM then runs in the wrong namespace.

interfaces = fn ->
  {:ok, interfaces} = :inet.getifaddrs()
  interfaces |> Enum.map(&elem(&1, 0)) |> Enum.sort() |> Enum.join(" ")
end

threads = fn ->
  links = Enum.map(Path.wildcard("/proc/self/task/*/ns/net"), &File.read_link!/1)
  strayed = Enum.count(links, &(&1 != File.read_link!("/proc/self/ns/net")))
  "#{strayed} of #{length(links)}"
end

[path] = System.argv()
netlink = 16
unsupported_protocol = 250

IO.puts("interfaces before: " <> interfaces.())
result = :socket.open(netlink, :raw, unsupported_protocol, %{netns: path})
IO.puts("socket:open/4:     " <> inspect(result))
IO.puts("interfaces after:  " <> interfaces.())
IO.puts("strayed threads:   " <> threads.())
