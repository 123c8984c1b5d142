# Shows the library at work on two namespaces, which the demo makes and removes. Needs root.
#
#     mix run examples/demo.exs

for file <- ["rtnetlink.ex", "ip_style.ex", "watch.ex"], do: Code.require_file(file, __DIR__)

defmodule Examples.Demo do
  alias Examples.{IpStyle, Rtnetlink, Watch}

  @sigkill 9
  @unsupported_protocol 250

  def main do
    if File.stat!("/proc/self").uid != 0, do: fail("Run the demo as root: it makes namespaces.")
    if !System.find_executable("ip"), do: fail("The demo needs `ip`, of the package iproute2.")

    # Even if the supervisor gives up, this process must live to remove the namespaces.
    Process.flag(:trap_exit, true)
    blue = "blue-#{System.pid()}"
    green = "green-#{System.pid()}"

    say("Two network namespaces, new and empty.")

    with_namespace(blue, fn ->
      with_namespace(green, fn ->
        children = [{NetlinkPort, name: NetlinkPort}]
        {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
        run(blue, green)
        Supervisor.stop(supervisor)
      end)
    end)

    IO.puts("\nAll of it worked.")
  end

  defp run(blue, green) do
    helper = helper()

    say("""
    NetlinkPort, under a supervisor, follows links, addresses and routes of both, through one
    helper, process #{helper}. Below each command are the events it caused, live: as many as the
    kernel sends, also where it says the same twice.
    """)

    watch = [blue, green] |> Watch.open() |> connect(blue, green)

    say("What is in the namespaces now, read over netlink, and the same as `ip` prints.")
    list(blue)
    list(green)

    say("""
    The helper is killed. Its server ends with it, the owner of the sockets is told, and the
    supervisor starts another server with another helper. 137 is 128 and the signal's number.
    (The log of that crash is left out.)
    """)

    kill(helper, watch)
    watch = Watch.open([blue, green])
    check("there is another helper", helper() != helper)

    say("The sockets are open again, in process #{helper()}, and the events go on.")
    disconnect(watch, blue, green)

    say("""
    OTP's `socket` can enter a namespace, too. When that fails, here for want of such a protocol,
    a thread of the VM stays there. This is shown in a VM of its own, which then takes the
    interfaces of #{blue} for those of the host:
    """)

    fail_with_otp(blue)

    say("The same failure with NetlinkPort, 100 times in this VM: nothing has moved.")
    fail_with_netlink_port(blue)
  end

  ## Events

  # `addrgenmode none` and `nodad` keep IPv6 from adding events of its own, seconds later.
  defp connect(watch, blue, green) do
    watch
    |> step(blue, "link add veth0 type veth peer name veth1 netns #{green}", [
      {blue, :new, kind: :link, name: "veth0"},
      {green, :new, kind: :link, name: "veth1"}
    ])
    |> step(blue, "link set veth0 addrgenmode none up", [
      {blue, :new, kind: :link, name: "veth0"}
    ])
    |> step(green, "link set veth1 addrgenmode none up", [
      {green, :new, kind: :link, name: "veth1", state: "UP"},
      {blue, :new, kind: :link, name: "veth0", state: "UP"}
    ])
    |> step(blue, "addr add 10.0.0.1/24 dev veth0", [
      {blue, :new, kind: :address, address: "10.0.0.1"},
      {blue, :new, kind: :route, destination: "10.0.0.0/24"}
    ])
    |> step(green, "addr add 10.0.0.2/24 dev veth1", [
      {green, :new, kind: :address, address: "10.0.0.2"},
      {green, :new, kind: :route, destination: "10.0.0.0/24"}
    ])
    |> step(green, "addr add fd00::2/64 dev veth1 nodad", [
      {green, :new, kind: :address, address: "fd00::2"},
      {green, :new, kind: :route, destination: "fd00::/64"}
    ])
    |> step(blue, "route add default via 10.0.0.2", [
      {blue, :new, kind: :route, destination: "default"}
    ])
  end

  defp disconnect(watch, blue, green) do
    watch
    |> step(blue, "addr add 10.0.0.3/24 dev veth0", [
      {blue, :new, kind: :address, address: "10.0.0.3"}
    ])
    |> step(blue, "route del default", [
      {blue, :deleted, kind: :route, destination: "default"}
    ])
    |> step(green, "link set veth1 down", [
      {green, :deleted, kind: :route, destination: "fd00::/64"},
      {blue, :new, kind: :link, name: "veth0", state: "DOWN"}
    ])
  end

  defp step(watch, namespace, command, expected) do
    show_and_run("ip", ["-n", namespace | String.split(command)])
    Watch.await(watch, expected)
  end

  ## Listing

  defp list(namespace) do
    {:ok, list} = Rtnetlink.list({:name, namespace})
    show_as_ip("links", IpStyle.links(list), namespace, [~w(-br link)])
    show_as_ip("addresses", IpStyle.addresses(list), namespace, [~w(-br addr)])
    show_as_ip("routes", IpStyle.routes(list), namespace, [~w(route), ~w(-6 route)])
  end

  defp show_as_ip(kind, lines, namespace, commands) do
    IO.puts("     #{kind} of #{namespace}")
    of_ip = Enum.map_join(commands, &run!("ip", ["-n", namespace | &1]))

    same? = words(lines) == words(String.split(of_ip, "\n", trim: true))
    check("`ip` lists the same #{kind}", same?)
    for line <- lines, do: IO.puts("       " <> line)
  end

  defp words(lines), do: Enum.map(lines, &String.split/1)

  ## The helper

  defp helper do
    {:ok, info} = NetlinkPort.info(NetlinkPort)
    info.os_pid
  end

  defp kill(helper, watch) do
    level = Logger.level()
    Logger.configure(level: :none)
    show_and_run("kill", ["-#{@sigkill}", "#{helper}"])
    reasons = Watch.await_closed(watch)
    Logger.configure(level: level)
    check("the helper was killed", Enum.all?(reasons, &(&1 == {:helper_exit, 128 + @sigkill})))
  end

  ## Failing to open a socket

  defp fail_with_otp(namespace) do
    {:ok, list} = Rtnetlink.list({:name, namespace})
    inside = list.links |> Enum.map(& &1.name) |> Enum.sort() |> Enum.join(" ")

    script = Path.join(__DIR__, "otp_netns.exs")
    output = run!("elixir", ["--erl", "+S 1:1", script, "/run/netns/#{namespace}"])
    lines = String.split(output, "\n", trim: true)
    for line <- lines, do: IO.puts("     " <> line)

    check("it began at home", "interfaces before: #{interfaces()}" in lines)
    check("it ended in #{namespace}", "interfaces after:  #{inside}" in lines)
    check("a thread has strayed", Enum.any?(lines, &(&1 =~ ~r/^strayed threads: +1 of/)))
  end

  defp fail_with_netlink_port(namespace) do
    before = interfaces()
    IO.puts("     interfaces before: " <> before)

    failures =
      for _time <- 1..100 do
        {:error, error} = NetlinkPort.open(@unsupported_protocol, netns: {:name, namespace})
        {error.stage, error.reason}
      end

    [failure] = Enum.uniq(failures)
    check("there is no such protocol", failure == {:socket, :eprotonosupport})
    IO.puts("     NetlinkPort.open:  " <> inspect({:error, elem(failure, 1)}))
    IO.puts("     interfaces after:  " <> interfaces())
    check("the interfaces are the same", interfaces() == before)

    {:ok, info} = NetlinkPort.info(NetlinkPort)
    home = "net:[#{info.home_inode}]"
    IO.puts("     strayed threads:   " <> strayed(System.pid(), home))
    IO.puts("     of the helper:     " <> strayed(info.os_pid, home))
  end

  defp strayed(process, home) do
    threads = Path.wildcard("/proc/#{process}/task/*/ns/net")
    strayed = Enum.count(threads, &(File.read_link!(&1) != home))
    check("all threads of process #{process} are at home", threads != [] and strayed == 0)
    "#{strayed} of #{length(threads)}"
  end

  defp interfaces do
    {:ok, interfaces} = :inet.getifaddrs()
    interfaces |> Enum.map(&elem(&1, 0)) |> Enum.sort() |> Enum.join(" ")
  end

  ## Commands

  defp with_namespace(name, fun) do
    show_and_run("ip", ["netns", "add", name])

    try do
      fun.()
    after
      run!("ip", ["netns", "delete", name])
    end
  end

  defp show_and_run(program, arguments) do
    IO.puts("     $ " <> Enum.join([program | arguments], " "))
    run!(program, arguments)
  end

  defp run!(program, arguments) do
    {output, status} = System.cmd(program, arguments, stderr_to_stdout: true)
    if status != 0, do: raise("#{program} #{Enum.join(arguments, " ")}: #{output}")
    output
  end

  ## Saying

  defp say(text), do: IO.puts(IO.ANSI.format(["\n", :bright, String.trim_trailing(text)]))

  defp check(_claim, true), do: :ok
  defp check(claim, false), do: raise("not true: #{claim}")

  defp fail(message) do
    IO.puts(:stderr, message)
    exit({:shutdown, 1})
  end
end

Examples.Demo.main()
