defmodule NetlinkPort.Case do
  @moduledoc false
  # Namespaces, servers and helpers for tests. Names of namespaces are unique. A namespace is deleted when its
  # test ends, also if the test fails. The next run deletes namespaces of a run that was killed.

  use ExUnit.CaseTemplate

  import Bitwise, only: [&&&: 2]

  using do
    quote do
      import NetlinkPort.Case
      alias NetlinkPort.{Error, Rtnl, Socket}
    end
  end

  @prefix "nlp-"

  ## Namespaces

  @doc "Makes a namespace with its loopback up; returns its name."
  def netns! do
    name = "#{@prefix}#{System.pid()}-#{System.unique_integer([:positive])}"

    # The status is not checked: inside unshare -Ur ip(8) makes the namespace, and then cannot return from it.
    {output, _status} = as_root("ip", ["netns", "add", name])
    on_exit(fn -> as_root("ip", ["netns", "del", name]) end)
    File.exists?(netns_path(name)) || raise("ip netns add #{name}: #{output}")
    ip!(["-n", name, "link", "set", "lo", "up"])
    name
  end

  def netns_path(name), do: "/run/netns/" <> name

  defp id(flag), do: "id" |> System.cmd([flag]) |> elem(0) |> String.trim()

  @doc "The inode of a namespace file, which identifies the namespace."
  def inode(path), do: File.stat!(path).inode

  @doc "Runs ip(8). Raises with its output if it fails."
  def ip!(arguments) do
    case as_root("ip", arguments) do
      {output, 0} -> output
      {output, status} -> raise "ip #{Enum.join(arguments, " ")}: status #{status}: #{output}"
    end
  end

  # A suite that runs as an ordinary user gets a command that runs other commands as root, such as sudo, for what
  # it needs beside the helper: unprivileged_test.exs.
  @doc "Runs a program as root."
  def as_root(program, arguments) do
    [program | arguments] = su() ++ [program | arguments]
    System.cmd(program, arguments, stderr_to_stdout: true)
  end

  defp su, do: String.split(System.get_env("NETLINK_PORT_TEST_SU", ""))

  @doc "Starts a process of the suite's user in a namespace. Returns its process id."
  def sleeper!(netns) do
    user =
      if su() == [],
        do: [],
        else: ["setpriv", "--reuid", id("-u"), "--regid", id("-g"), "--clear-groups"]

    [program | arguments] = su() ++ ["ip", "netns", "exec", netns] ++ user ++ ["sleep", "600"]
    pid = os_process!(program, arguments)
    eventually!(fn -> File.read("/proc/#{pid}/comm") == {:ok, "sleep\n"} end)
    pid
  end

  @doc "Runs many commands in one `ip -batch`."
  def ip_batch!(name, lines) do
    path = tmp_path!("batch")
    File.write!(path, Enum.map(lines, &[&1, ?\n]))
    ip!(["-n", name, "-batch", path])
  end

  @doc "Deletes the namespaces of runs that have ended."
  def sweep do
    for @prefix <> rest = name <- ls("/run/netns"),
        [pid | _] = String.split(rest, "-"),
        not File.exists?("/proc/#{pid}") do
      System.cmd("ip", ["netns", "del", name], stderr_to_stdout: true)
    end
  end

  defp ls(path) do
    case File.ls(path) do
      {:ok, names} -> names
      {:error, _reason} -> []
    end
  end

  @doc "Whether every user can reach a folder."
  def open_to_all?("/" = path), do: searchable?(path)
  def open_to_all?(path), do: searchable?(path) and open_to_all?(Path.dirname(path))

  defp searchable?(path), do: (File.stat!(path).mode &&& 0o001) == 0o001

  @doc "A unique path, deleted when the test ends."
  def tmp_path!(name) do
    path = Path.join(System.tmp_dir!(), "#{@prefix}#{System.pid()}-#{unique()}-#{name}")
    on_exit(fn -> File.rm_rf!(path) end)
    path
  end

  defp unique, do: System.unique_integer([:positive])

  @doc """
  Copies a file or a folder so that every user can reach and read it, and run the programs in it. A second user runs
  such copies, since the clone may be in a folder that other users cannot enter, and a umask may have closed the built
  files.
  """
  def public!(source) do
    copy = tmp_path!(Path.basename(source))
    File.cp_r!(source, copy)
    {_output, 0} = System.cmd("chmod", ["-R", "u+rwX,go=rX", copy])
    copy
  end

  @doc "The compiled library in such a copy, for `elixir -pa`."
  def public_ebin!, do: public!(Application.app_dir(:netlink_port, "ebin"))

  ## The kernel

  @doc "Whether the kernel is that version of Linux or a later one."
  def linux?(major, minor) do
    [_, a, b] = Regex.run(~r/^(\d+)\.(\d+)/, File.read!("/proc/sys/kernel/osrelease"))
    {String.to_integer(a), String.to_integer(b)} >= {major, minor}
  end

  @doc "Whether `cookie` is a value that the kernel may report: SO_NETNS_COOKIE exists since Linux 5.14."
  def cookie?(nil), do: not linux?(5, 14)
  def cookie?(cookie), do: is_integer(cookie) and linux?(5, 14)

  @doc """
  How many events, `wanted` at most, have room in the receive buffer of a socket of the server, however late it is read.
  `size` is what the kernel counts for an event, in bytes: that of a route or an address by default. Without CAP_NET_ADMIN
  `rcvbuf:` is cut to net.core.rmem_max, which is 212,992 before Linux 6.18: 332 such events.
  """
  def room!(server, wanted, size \\ 1_280) do
    opts = [rcvbuf: div(wanted * size, 2), active: false]
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    # The kernel doubles what is asked for, and reports that.
    {:ok, [rcvbuf: bytes]} = NetlinkPort.getopts(socket, [:rcvbuf])
    :ok = NetlinkPort.close(socket)
    min(wanted, div(bytes, size))
  end

  @doc "Opens a socket in the test's namespace, by the test's server."
  def socket!(%{server: server, netns: netns}, protocol \\ :route, opts) do
    {:ok, socket} = NetlinkPort.open(server, protocol, [netns: {:name, netns}] ++ opts)
    socket
  end

  ## Servers and helpers

  @doc """
  Starts a server under the test's supervisor, and returns its pid. `restart:` is that of the child specification,
  and defaults to `:temporary`.
  """
  def start_server!(opts \\ []) do
    {restart, opts} = Keyword.pop(opts, :restart, :temporary)
    defaults = [name: nil, hello_timeout: within(5_000)]
    opts = defaults |> Keyword.merge(opts) |> Keyword.merge(server_options(), &first/3)
    spec = Supervisor.child_spec({NetlinkPort, opts}, id: make_ref(), restart: restart)
    start_supervised!(spec)
  end

  # Options from the environment of the suite, such as another executable.
  defp server_options do
    {opts, _binding} = Code.eval_string(System.get_env("NETLINK_PORT_TEST_SERVER", "[]"))
    opts
  end

  defp first(_key, first, _second), do: first

  @doc "The helper's executable."
  def helper, do: Keyword.get(server_options(), :executable, NetlinkPort.Helper.Executable.path())

  @doc "The process id of a server's helper."
  def os_pid(server) do
    {:ok, %{os_pid: os_pid}} = NetlinkPort.info(server)
    os_pid
  end

  @doc "How many descriptors a server's helper has open."
  def fds(server) do
    {:ok, %{fds: fds}} = NetlinkPort.info(server)
    fds
  end

  @doc "Whether a command waits for the answer of a server's helper."
  def awaited?(server), do: :ets.info(:sys.get_state(server).helper.board, :size) > 1

  @doc "Sends a signal to a process that this test has started."
  def signal!(os_pid, name) do
    {_output, 0} = System.cmd("kill", ["-#{name}", "#{os_pid}"], stderr_to_stdout: true)
    :ok
  end

  @doc "Whether a process runs; a zombie does not."
  def running?(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> not (stat =~ ~r/\) [ZX] /)
      {:error, _reason} -> false
    end
  end

  @doc "Starts a program, which is killed when the test ends. Returns its process id."
  def os_process!(program, arguments) do
    executable = System.find_executable(program) || raise "there is no #{program}"
    port = Port.open({:spawn_executable, executable}, args: arguments)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> as_root("kill", ["-KILL", "#{os_pid}"]) end)
    os_pid
  end

  @doc "A deadline in ms, longer on a slow machine: see NetlinkPort.Pace."
  defdelegate within(ms), to: NetlinkPort.Pace

  @doc "Waits until `fun` returns true. Fails the test after `timeout` ms, or later on a slow machine."
  def eventually!(fun, timeout \\ 5_000) do
    timeout = within(timeout)
    deadline = System.monotonic_time(:millisecond) + timeout
    poll(fun, deadline, timeout)
  end

  defp poll(fun, deadline, timeout) do
    cond do
      fun.() ->
        :ok

      System.monotonic_time(:millisecond) > deadline ->
        ExUnit.Assertions.flunk("not true within #{timeout} ms")

      true ->
        Process.sleep(5)
        poll(fun, deadline, timeout)
    end
  end

  @doc "Runs `fun` in a new process, which the test can kill. The process sends the result to the test."
  def spawn_reporting(fun) do
    test = self()
    spawn(fn -> send(test, {:result, self(), fun.()}) end)
  end

  @doc "The results of processes of `spawn_reporting/1`, in their order."
  def results(pids) do
    for pid <- pids do
      assert_receive {:result, ^pid, result}, within(15_000)
      result
    end
  end

  @doc "A process that does nothing until it is sent `:stop`."
  def idle_process do
    pid = spawn(fn -> receive do: (:stop -> :ok) end)
    on_exit(fn -> Process.exit(pid, :kill) end)
    pid
  end

  ## Misbehaving helpers

  @doc "Writes an executable shell script; returns its path."
  def script!(body) do
    path = tmp_path!("helper.sh")
    File.write!(path, ["#!/bin/sh\n", body, "\n"])
    File.chmod!(path, 0o755)
    path
  end

  @doc "The path of a program of test/fixtures/. test_helper.exs builds them."
  def fixture!(name), do: Path.expand("../../target/release/examples/#{name}", __DIR__)

  @doc "Starts a server with a helper in which a system call fails: `SYSCALL ERRNO WHEN`, see inject.rs."
  def start_injected!(fault, opts \\ []) do
    script = script!("exec #{fixture!("inject")} #{fault} #{helper()} \"$@\"")
    start_server!([executable: script] ++ opts)
  end

  @doc "A shell command that prints a frame with its header."
  def print_frame(payload) do
    frame = <<byte_size(payload)::32, payload::binary>>
    octal = for <<byte <- frame>>, do: "\\0" <> Integer.to_string(byte, 8)
    "printf '%b' '#{octal}'"
  end

  @doc "A vector of docs/vectors.txt, by name."
  def vector!(name), do: Map.fetch!(vectors(), name)

  @doc "All vectors of docs/vectors.txt."
  def vectors do
    for line <- File.stream!(Path.expand("../../docs/vectors.txt", __DIR__)),
        [name, hex] <- [String.split(String.trim(line), ": ", parts: 2)],
        not String.starts_with?(name, "#"),
        into: %{},
        do: {name, Base.decode16!(hex, case: :lower)}
  end
end
