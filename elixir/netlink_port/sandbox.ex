defmodule NetlinkPort.Sandbox do
  @moduledoc """
  A network namespace for a test, with the faults that real namespaces, helpers and kernels have. It needs no root.

      defmodule MyApp.LinksTest do
        use ExUnit.Case, async: true
        use NetlinkPort.Sandbox

        setup :netlink_sandbox

        test "a new link is an event", %{server: server, netns: netns, sandbox: sandbox} do
          {:ok, socket} = NetlinkPort.open(server, :route, netns: netns, groups: [1])
          run!(sandbox, "ip", ["link", "add", "br0", "type", "bridge"])
          assert_receive {:netlink, ^socket, _datagram}
        end
      end

  A sandbox is three things: a user namespace and a network namespace (user_namespaces(7), network_namespaces(7)) that
  belong to the user who runs the tests, and are held by the helper's executable; the loopback interface in it, which is up;
  and a server (`NetlinkPort`) with `user_namespaces: true`. In iex, `start_link/1` starts a sandbox. The guide is
  docs/testing.md.

  A sandbox needs nsenter(1) of util-linux. With `path:` or `stand_in:` it also needs unshare(1) and mount(8), and the
  fault `{:open_refused, :emfile}` needs prlimit(1). ip(8) and other programs are needed only if you run them in the
  sandbox.

  ## Where namespaces are refused

  A sysctl, AppArmor (Ubuntu 24.04) or a container may refuse user namespaces. If the tests run as root, the sandbox
  is then made as root, without a user namespace. Otherwise there is no sandbox, and `use NetlinkPort.Sandbox` marks
  the tests of its module as skipped. It prints one line, once, that says what refuses user namespaces and how to
  allow them; `unavailable/0` returns that line. In a module without `use NetlinkPort.Sandbox`,
  `setup :netlink_sandbox` fails with the line.

  ## What stays behind

  Nothing stays behind, whether the test passes, fails, or its VM is killed with SIGKILL. The process that holds the
  namespace reads a pipe from the VM, and ends at the end of file. Programs that `run/4` started are in a process
  namespace (pid_namespaces(7)) that ends with that process.
  The folder of a sandbox with `path:` or `stand_in:` is a tmpfs(5) in a mount namespace of its own, and ends with it.
  There is one exception. While a server with `stand_in: true` starts, its copiers wait in open(2) of a FIFO, and the
  shell that holds the folder wakes them when the VM ends. If both are killed at the same moment, a copier can stay.

  ## Faults

  `fault/3` makes faults. The kernel brings about a "real" fault. A "stand-in" fault is made by a process of this
  library that stands between the server and its helper, in user space. It answers in the kernel's place, and passes
  everything else unchanged. A sandbox has this process only with the option `stand_in: true`.

  | fault | by | what follows |
  | --- | --- | --- |
  | `:helper_killed` | real: SIGKILL | the owner is sent `{:netlink_closed, socket, {:helper_exit, 137}}` (`:epipe` instead of 137 if a command was written to the helper as it ended); the server has been started again when `fault/3` returns |
  | `:helper_stopped` | real: SIGSTOP | nothing arrives; callers get `ETIMEDOUT` after the server's `call_timeout:`; without a call the server finds out by a ping, after `ping_interval:`; then the server ends, and the owner is sent `{:netlink_closed, socket, :stuck}` |
  | `:helper_continued` | real: SIGCONT | what was queued arrives; after `:stuck` there is no helper to continue, and `fault/3` raises |
  | `{:overrun, count}` | real: the receive buffer is filled until the kernel has dropped `count` datagrams | the datagrams from before the gap arrive, then `{:netlink_overrun, socket, count}`; a passive socket returns `ENOBUFS`; a monitor sends `:netlink_resync` with `:overrun` |
  | `:namespace_gone` | real: the process that holds the namespace ends | with `close_on: :namespace_gone`, the owner is sent `{:netlink_closed, socket, :namespace_gone}`, and without it nothing; a monitor sends `:netlink_down`; later opens fail with `ESRCH`, or with `ENOENT` if the sandbox has `path: true` |
  | `:namespace_back` | real: a new namespace | with `path: true` it has the same path, and a monitor sends `:netlink_resync` with `:namespace_gone`; without, only `info/1` names the new namespace, and a monitor stays down |
  | `{:open_refused, :emfile}` | real: RLIMIT_NOFILE of the helper | opens fail with `EMFILE`, until `:open_allowed` |
  | `{:open_refused, errno}` | stand-in | the next open fails with that errno, at the stage `:setns` or that of `stage:` |
  | `{:answer, errno}` | stand-in | the next request is answered with that errno, and does not reach the kernel |
  | `:interrupted_dump` | stand-in | the next dump is marked as interrupted (`NLM_F_DUMP_INTR`); `NetlinkPort.dump/4` tries it five times, then returns `EINTR` |
  """

  alias NetlinkPort.{Arguments, Attr}
  alias NetlinkPort.Sandbox.{Fault, Instance, Recording, Refusal}

  @typedoc "A sandbox: its pid or its name."
  @type t :: GenServer.server()

  @type option ::
          {:name, GenServer.name()}
          | {:server, keyword() | GenServer.server()}
          | {:path, boolean()}
          | {:stand_in, boolean()}

  @type fault ::
          :helper_killed
          | :helper_stopped
          | :helper_continued
          | {:overrun, pos_integer()}
          | :namespace_gone
          | :namespace_back
          | {:open_refused, atom()}
          | :open_allowed
          | {:answer, atom()}
          | :interrupted_dump

  @doc """
  Imports `netlink_sandbox/1`, `run/4`, `run!/4`, `veth/2`, `fault/3` and `replay/2` into a test module. On a machine
  where there can be no sandbox, it marks the module's tests as skipped, and prints one line that says why. It belongs
  after `use ExUnit.Case`.
  """
  defmacro __using__(_opts) do
    quote do
      import NetlinkPort.Sandbox,
        only: [
          netlink_sandbox: 1,
          run: 3,
          run: 4,
          run!: 3,
          run!: 4,
          veth: 2,
          fault: 2,
          fault: 3,
          replay: 2
        ]

      unless Module.has_attribute?(__MODULE__, :moduletag) do
        raise ArgumentError, "use ExUnit.Case before use NetlinkPort.Sandbox"
      end

      @moduletag NetlinkPort.Sandbox.__tags__()
    end
  end

  @doc false
  @spec __tags__() :: keyword()
  def __tags__ do
    case unavailable() do
      nil ->
        [netlink_sandbox: []]

      line ->
        told? = :persistent_term.get({__MODULE__, :told}, false)
        if not told?, do: IO.puts(:stderr, "Skipped: " <> line)
        :persistent_term.put({__MODULE__, :told}, true)
        [netlink_sandbox: [], skip: line]
    end
  end

  @doc """
  Why there can be no sandbox on this machine: a line that says what refuses namespaces and how to allow them. `nil`
  if there can be one.

      iex> NetlinkPort.Sandbox.unavailable() in [nil] or is_binary(NetlinkPort.Sandbox.unavailable())
      true

  Use it in test_helper.exs to exclude tests of your own, with `ExUnit.configure(exclude: …)`. The machine is examined
  once for each VM.
  """
  @spec unavailable() :: String.t() | nil
  def unavailable do
    case Refusal.way() do
      {:ok, _way} -> nil
      {:error, line} -> line
    end
  end

  ## Start

  @doc """
  The child specification of `{NetlinkPort.Sandbox, options}`, see `start_link/1`. Each specification has its own id,
  so that a test can start several sandboxes by `start_supervised!/1`. A sandbox is not restarted.

      iex> NetlinkPort.Sandbox.child_spec([]).restart
      :temporary
  """
  @spec child_spec([option()]) :: Supervisor.child_spec()
  def child_spec(opts) do
    Arguments.keyword!(opts)

    %{
      id: make_ref(),
      start: {__MODULE__, :start_link, [opts]},
      restart: :temporary,
      shutdown: 30_000
    }
  end

  @doc """
  Starts a sandbox, linked to the caller. The sandbox ends when the caller ends.

  Options:

    * `:server` - a keyword list: the options of the sandbox's own server, see `NetlinkPort.start_link/1`. For example
      `name: MyApp.Netlink`. Or the pid or name of a server that runs already; then the sandbox does not start it
      again after `:helper_killed`. Defaults to `[]`.
    * `:path` - `true` names the namespace by a path, `{:path, path}`. After `:namespace_gone` and `:namespace_back`
      the path leads to the new namespace. With a path, sockets that are closed with their namespace, as a monitor's
      are, cost one instance of inotify(7) for each server; a user has 128. `false` names the namespace by
      `{:pid, os_pid}`, which does not come back. Defaults to `false`.
    * `:stand_in` - `true` allows the stand-in faults, see above. It costs some ms at the start. Defaults to `false`.
    * `:name` - the name to register the sandbox as. Defaults to no name.

  For example:

      {:ok, sandbox} = NetlinkPort.Sandbox.start_link()
      %{netns: netns, server: server} = NetlinkPort.Sandbox.info(sandbox)
      {:ok, socket} = NetlinkPort.open(server, :route, netns: netns)

  Errors: the line of `unavailable/0`, and the errors of `NetlinkPort.start_link/1`.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts \\ []), do: Instance.start_link(opts)

  @doc """
  For `setup :netlink_sandbox`: starts a sandbox under the test's supervisor. It adds these to the context:

    * `:netns` - the namespace, for `NetlinkPort.open/3` and `NetlinkPort.Monitor`.
    * `:server` - the name of the sandbox's server. It stays valid when the server has been started again.
    * `:sandbox` - the sandbox, for the functions of this module.

  A tag gives the options of `start_link/1`: `@tag netlink_sandbox: [stand_in: true]`. By hand, in a test:

      %{netns: _, server: _, sandbox: _} = NetlinkPort.Sandbox.netlink_sandbox(%{netlink_sandbox: [path: true]})

  Errors: it raises the line of `unavailable/0` on a machine where there can be no sandbox.
  """
  @spec netlink_sandbox(map()) :: %{
          netns: NetlinkPort.netns(),
          server: GenServer.server(),
          sandbox: pid()
        }
  def netlink_sandbox(context) do
    unless is_map(context) do
      raise ArgumentError, "expected the context of a test, got: #{inspect(context)}"
    end

    if line = unavailable(), do: raise(line)
    opts = with true <- Map.get(context, :netlink_sandbox, []), do: []
    # Called by name, since an application that is not under test may lack ExUnit.
    sandbox = apply(callbacks(), :start_supervised!, [{__MODULE__, opts}])
    sandbox |> info() |> Map.take([:netns, :server]) |> Map.put(:sandbox, sandbox)
  end

  defp callbacks, do: Module.concat(ExUnit, Callbacks)

  @doc """
  Returns `:netns` and `:server` as above; `:os_pid`, the id of a process in the namespace; and `:path`, the file that
  stands for the namespace (`/proc/<pid>/ns/net`). `:os_pid` and `:path` are `nil` while the namespace is gone.

      %{netns: {:pid, os_pid}, os_pid: os_pid} = NetlinkPort.Sandbox.info(sandbox)
  """
  @spec info(t()) :: %{
          netns: NetlinkPort.netns(),
          server: GenServer.server(),
          os_pid: pos_integer() | nil,
          path: Path.t() | nil
        }
  def info(sandbox) do
    Map.take(Instance.call(sandbox, :info), [:netns, :server, :os_pid, :path])
  end

  ## What runs in it

  @doc """
  Runs a program in the namespace, as root of the namespace. Returns what the program printed, with standard error,
  and its exit status. It takes the options of `System.cmd/3`.

      {_links, 0} = NetlinkPort.Sandbox.run(sandbox, "ip", ["-j", "link"])

  The program is in the sandbox's process namespace, where process ids of the machine mean nothing. So name the
  namespace of another sandbox by a path: `["link", "set", "br0", "netns", NetlinkPort.Sandbox.info(other).path]`.

  If there is no such program the exit status is 127, or 126 if a folder of the path may not be read. Every process
  that the program starts ends with the sandbox.

  Errors: it raises if the namespace is gone.
  """
  @spec run(t(), String.t(), [String.t()], keyword()) :: {Collectable.t(), non_neg_integer()}
  def run(sandbox, program, arguments, opts \\ []) do
    command!(program, arguments)
    Arguments.keyword!(opts)

    case Instance.call(sandbox, :enter) do
      {:ok, enter} ->
        opts = Keyword.put_new(opts, :stderr_to_stdout, true)
        System.cmd("nsenter", enter ++ ["--", program | arguments], opts)

      {:error, reason} ->
        raise reason
    end
  end

  @doc """
  As `run/4`, but returns only what was printed, and raises if the exit status is not 0.

      NetlinkPort.Sandbox.run!(sandbox, "ip", ["addr", "add", "192.0.2.1/24", "dev", "lo"])
  """
  @spec run!(t(), String.t(), [String.t()], keyword()) :: Collectable.t()
  def run!(sandbox, program, arguments, opts \\ []) do
    case run(sandbox, program, arguments, opts) do
      {output, 0} ->
        output

      {output, status} ->
        command = Enum.join([program | arguments], " ")

        raise "#{command}: exit status #{status}: #{if is_binary(output), do: String.trim(output)}"
    end
  end

  # An argument of execve(2) ends at its first NUL byte: the rest would be lost.
  defp command!(program, arguments) do
    unless is_list(arguments) and not List.improper?(arguments) and
             Enum.all?(
               [program | arguments],
               &(is_binary(&1) and not String.contains?(&1, <<0>>))
             ) do
      raise ArgumentError,
            "expected a program and a list of its arguments, strings without NUL bytes, " <>
              "got: #{inspect(program)} and #{inspect(arguments)}"
    end
  end

  # include/uapi/linux/rtnetlink.h, if_link.h, veth.h
  @newlink 16
  @ifname 3
  @linkinfo 18
  @net_ns_pid 19
  @info_kind 1
  @info_data 2
  @peer 1
  # struct ifinfomsg with interface number 0 (the name is an attribute): without flags, and with IFF_UP.
  @link <<0::128>>
  @up <<0::16, 0::16, 0::32, 1::32-native, 1::32-native>>

  @doc """
  Joins two sandboxes by a veth(4). Both ends are up, and have no addresses. Returns the names of the ends.

      {here, there} = NetlinkPort.Sandbox.veth(sandbox, other)
      NetlinkPort.Sandbox.run!(sandbox, "ip", ["addr", "add", "192.0.2.1/24", "dev", here])
      NetlinkPort.Sandbox.run!(other, "ip", ["addr", "add", "192.0.2.2/24", "dev", there])

  Start the second sandbox of a test by `start_supervised!(NetlinkPort.Sandbox)`. The ends are named `veth0`, `veth1`
  and so on, in each sandbox from 0; names that are taken are left out. A sandbox can be joined with itself.
  """
  @spec veth(t(), t()) :: {String.t(), String.t()}
  def veth(a, b) do
    {here, there} = ends = {Instance.call(a, :veth), Instance.call(b, :veth)}
    peer = [@link | Attr.encode([{@ifname, there <> <<0>>}, {@net_ns_pid, Attr.u32(os_pid!(b))}])]
    kind = [{@info_kind, "veth" <> <<0>>}, {@info_data, [{@peer, IO.iodata_to_binary(peer)}]}]
    make = [@link | Attr.encode([{@ifname, here <> <<0>>}, {@linkinfo, kind}])]

    with :ok <- link(a, [{make, [:create, :excl]}, {up(here), []}]),
         :ok <- link(b, [{up(there), []}]) do
      ends
    else
      # The kernel gives such names, too. The next names are tried.
      {:error, %{reason: :eexist}} -> veth(a, b)
      {:error, error} -> raise error
    end
  end

  # An end can be set up only after its peer exists.
  defp up(name), do: [@up | Attr.encode([{@ifname, name <> <<0>>}])]

  defp os_pid!(sandbox), do: info(sandbox).os_pid || raise("the namespace of the sandbox is gone")

  defp link(sandbox, links) do
    opts = [netns: {:pid, os_pid!(sandbox)}, active: false]
    requests = for {link, flags} <- links, do: {@newlink, flags, link}

    with {:ok, socket} <- NetlinkPort.open(info(sandbox).server, :route, opts),
         {:ok, outcomes} <- NetlinkPort.batch(socket, requests),
         nil <- Enum.find(outcomes, &match?({:error, _error}, &1)) do
      NetlinkPort.close(socket)
    end
  end

  ## Faults

  @doc """
  Makes a fault of the table above. Returns when the fault has happened, or is in place.

      fault(sandbox, {:overrun, 3})
      assert_receive {:netlink_overrun, ^socket, 3}

  Options:

    * `:of`, with `:overrun` - a socket, or the process that owns it, for example a monitor. Defaults to all sockets
      that the sandbox's server has in the namespace. The count is exact if nothing else happens in the namespace
      until the owner has received the overrun.
    * `:lose`, with `:overrun` - a function, called when the receive buffers are full. The events of its changes to
      the namespace are lost, and count as drops. The helper is stopped meanwhile, so the function has to make its
      changes by `run!/4`. One drop has been made before it runs, so `fault/3` raises if the function makes `count`
      events or more. Defaults to a function that does nothing.
    * `:times`, with `{:answer, errno}`, `{:open_refused, errno}` and `:interrupted_dump` - how many requests, opens
      or dumps fail. Defaults to 1. A monitor and `NetlinkPort.dump/4` try an interrupted dump five times: with fewer the
      dump succeeds.
    * `:type`, with `{:answer, errno}` - only requests of this type fail, for example 16 (`RTM_NEWLINK`). Defaults to
      every type. In a batch each message is a request.
    * `:message` and `:offset`, with `{:answer, errno}` - the extended acknowledgement: the kernel's sentence, and the
      offset of the byte that it objects to, from the start of the request's header. Default to none.
    * `:stage`, with `{:open_refused, errno}` - `t:NetlinkPort.Error.stage/0`. Defaults to `:setns`.

  Errors: it raises if the fault cannot be made, and says why.

  For example:

      fault(sandbox, {:answer, :enospc}, message: "no room", offset: 16)
      {:error, error} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)
      %{reason: :enospc, ext_ack: %{message: "no room", offset: 16}} = error
  """
  @spec fault(t(), fault(), keyword()) :: :ok
  def fault(sandbox, fault, opts \\ []) do
    Arguments.keyword!(opts)

    case Fault.make(sandbox, fault, opts) do
      :ok -> :ok
      {:error, reason} when is_binary(reason) -> raise "#{inspect(fault)}: #{reason}"
      {:error, reason} when is_exception(reason) -> raise reason
      {:error, reason} -> raise "#{inspect(fault)}: #{inspect(reason)}"
    end
  end

  @doc """
  Plays a capture to a process, as the messages that the owner of a socket gets. So a bug report becomes a test.

      {:ok, %{datagrams: _, cut: 0}} =
        NetlinkPort.Sandbox.replay("trace.pcapng", to: pid, socket: socket)

  It reads pcapng and pcap with the link type `LINKTYPE_NETLINK` (253), as `NetlinkPort.capture/3`, Wireshark and
  tcpdump (on an nlmon interface) write them. Only datagrams from the kernel are played; datagrams to the kernel are
  left out. The direction is that of the file. If the file has none, a datagram whose first message has
  `NLM_F_REQUEST` counts as one to the kernel.

  Options:

    * `:to` - the process to play to. Required.
    * `:socket` - the socket in the messages, for example the one that the process follows. Defaults to `:replay`.
    * `:tag` - the first element of the messages. Defaults to `:netlink`. To play to a subscriber of
      `NetlinkPort.Monitor`, use `:netlink_event`, with the monitor's pid as `:socket`.
    * `:timed` - `true` keeps the time between the datagrams; the caller waits. `false` sends them at once. Defaults
      to `false`.
    * `:protocol` - plays only the datagrams of this protocol. Defaults to all.
    * `:interface` - plays only the datagrams of the interface of this name. `NetlinkPort.capture/3` makes one
      for each socket. Defaults to all.

  A datagram that was cut by the capture cannot be played. In its place the process is sent
  `{:netlink_error, socket, error}` with `EMSGSIZE` and the datagram's length, as for a datagram that was cut on its
  way from the kernel.
  A datagram that was cut before its protocol is cut for every `:protocol`.

  Returns how many datagrams were played (`:datagrams`), how many were cut (`:cut`), and whether the file ends in the
  middle of a packet (`:truncated`).

  Errors: those of reading the file, such as `ENOENT`. `NetlinkPort.DecodeError` if the file is not a capture, or has
  another link type; the error names the link type.
  """
  @spec replay(Path.t(), keyword()) ::
          {:ok, %{datagrams: non_neg_integer(), cut: non_neg_integer(), truncated: boolean()}}
          | {:error, NetlinkPort.Error.t() | NetlinkPort.DecodeError.t()}
  def replay(path, opts), do: Recording.replay(path, opts)
end
