# look.exs: prints what this VM and a helper may do in a container of run.sh, a line each. Run by `bin/sample eval`.
# LOOK lists the namespaces to open: `host`, a name, a path, or `pid:N`. LOOK_USER_NAMESPACES=true is the option of the
# server.
status = fn pid, field ->
  [_, value] = Regex.run(~r/^#{field}:\s+(\S+)/m, File.read!("/proc/#{pid}/status"))
  value
end

target = fn
  "host" -> :host
  "/" <> _rest = path -> {:path, path}
  "pid:" <> pid -> {:pid, String.to_integer(pid)}
  name -> {:name, name}
end

# RTM_GETLINK of all; behind the header of 16 bytes IFLA_IFNAME is attribute 3.
links = fn socket ->
  # A long timeout, for busy machines.
  {:ok, messages} = NetlinkPort.dump(socket, 18, <<0::128>>, timeout: 60_000)

  for %{payload: <<_header::binary-16, attributes::binary>>} <- messages do
    {:ok, attributes} = NetlinkPort.Attr.decode(attributes)
    {:ok, name} = NetlinkPort.Attr.string(attributes, 3)
    name
  end
end

case status.("self", "CapEff") do
  "0000000000000000" -> IO.puts("vm: no capabilities")
  some -> IO.puts("vm: capabilities #{some}")
end

Logger.configure(level: :none)
Process.flag(:trap_exit, true)

user_namespaces = System.get_env("LOOK_USER_NAMESPACES") == "true"

with {:ok, server} <- NetlinkPort.start_link(name: nil, user_namespaces: user_namespaces) do
  {:ok, %{os_pid: helper}} = NetlinkPort.info(server)
  IO.puts("helper: seccomp #{status.(helper, "Seccomp")}, #{status.(helper, "CapEff")}")

  for place <- String.split(System.get_env("LOOK", "host")) do
    case NetlinkPort.open(server, :route, netns: target.(place), active: false) do
      {:ok, socket} ->
        {:ok, %{verified: verified}} = NetlinkPort.info(socket)

        IO.puts(
          "#{place}: opened, verified: #{verified}, links: #{Enum.join(links.(socket), " ")}"
        )

      {:error, error} ->
        IO.puts("#{place}: #{error.stage} #{error.reason}: #{Exception.message(error)}")
    end
  end
else
  {:error, error} -> IO.puts("start: #{error.reason}: #{Exception.message(error)}")
end
