# converse.exs EXECUTABLE PID INTERFACE: opens a socket in the namespace of a process, through that executable, and
# finds an interface there.
alias NetlinkPort.Attr

[executable, pid, interface] = System.argv()
children = [{NetlinkPort, executable: executable}]
{:ok, _supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
{:ok, socket} = NetlinkPort.open(:route, netns: {:pid, String.to_integer(pid)}, active: false)
{:ok, %{verified: true}} = NetlinkPort.info(socket)

# RTM_GETLINK of all; behind the header of 16 bytes IFLA_IFNAME is attribute 3.
{:ok, messages} = NetlinkPort.dump(socket, 18, <<0::128>>)

names =
  for %{payload: <<_header::binary-16, attributes::binary>>} <- messages do
    {:ok, attributes} = Attr.decode(attributes)
    {:ok, name} = Attr.string(attributes, 3)
    name
  end

if interface in names do
  IO.puts("  links in another namespace: #{Enum.join(names, ", ")}")
else
  IO.puts(:stderr, "no #{interface} in #{inspect(names)}")
  System.halt(1)
end
