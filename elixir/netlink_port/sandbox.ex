defmodule NetlinkPort.Sandbox do
  @moduledoc """
  A network namespace for a test, and the faults that the real thing has. Without root.

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

  A sandbox is a user namespace and a network namespace of the user that runs the tests
  (user_namespaces(7)), made by unshare(1) of util-linux, with its loopback up, and a server
  (`NetlinkPort`) with `user_namespaces: true`. In iex it is started by `start_link/1`. docs/testing.md is the guide.

  Needed are unshare(1) and nsenter(1) of util-linux, 2.32 or newer, and for `{:open_refused, :emfile}` its
  prlimit(1); ip(8) and the like only for what you run in it.

  ## Where namespaces are refused

  A sysctl, AppArmor (Ubuntu 24.04) or a container may refuse user namespaces. Then a sandbox is made as root where
  the tests run as root, without a user namespace. Otherwise `use NetlinkPort.Sandbox` marks the tests of
  its module as skipped and prints, once, a line that says what refuses them and how to allow it:
  `unavailable/0`. Where the module is not used, `setup :netlink_sandbox` fails with that line.

  ## What stays

  Nothing, when the test is over, has failed, or its VM was killed with SIGKILL: the process that holds the namespace
  ends at the end of file of a pipe from the VM, and whatever was started by `run/4` is in a process namespace
  (pid_namespaces(7)) that ends with it.

  ## Faults

  `fault/3` makes them. "Real" ones the kernel brings about; a "stand-in" is a process of this library between the
  server and its helper, in user space, which speaks in the kernel's place and leaves everything else as it is. It has to be
  asked for, by `stand_in: true`.

  | fault | by | what follows |
  | --- | --- | --- |
  | `:helper_killed` | real: SIGKILL | `{:netlink_closed, socket, {:helper_exit, 137}}` (`:epipe` instead of 137 where a command ran into it); the server is started again when `fault/3` returns |
  | `:helper_stopped` | real: SIGSTOP | nothing comes; `ETIMEDOUT`, then `:stuck`, after the deadlines of `NetlinkPort.start_link/1` |
  | `:helper_continued` | real: SIGCONT | what was queued comes |
  | `{:overrun, count}` | real: the receive buffer is filled until the kernel has dropped `count` datagrams | what is older than the gap, then `{:netlink_overrun, socket, count}`, `ENOBUFS` of a passive socket, `:netlink_resync` with `:overrun` from a monitor |
  | `:namespace_gone` | real: the namespace's process ends | with `close_on: :namespace_gone`, `{:netlink_closed, socket, :namespace_gone}`; later opens are `ESRCH`, or `ENOENT` with `path: true` |
  | `:namespace_back` | real: a new namespace; with `path: true` under the same path | a monitor's `:netlink_resync` with `:namespace_gone` |
  | `{:open_refused, :emfile}` | real: RLIMIT_NOFILE of the helper | opens are `EMFILE`, until `:open_allowed` |
  | `{:open_refused, errno}` | stand-in | the next open is that errno, of the stage `:setns` or of `stage:` |
  | `{:answer, errno}` | stand-in | the next request is answered by that errno, and does not reach the kernel |
  | `:interrupted_dump` | stand-in | the next dump is marked as interrupted (`NLM_F_DUMP_INTR`); `NetlinkPort.dump/4` tries it five times, then `EINTR` |
  """

  alias NetlinkPort.{Attr, Options}
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
  Imports `netlink_sandbox/1`, `run/4`, `run!/4`, `veth/2`, `fault/3` and `replay/2` into a test module, and
  has its tests skipped where there can be no sandbox, with one line that says why. After `use ExUnit.Case`.
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
  Why there can be no sandbox on this machine: a line that says what refuses namespaces and how to allow
  them, or `nil`.

      iex> NetlinkPort.Sandbox.unavailable() in [nil] or is_binary(NetlinkPort.Sandbox.unavailable())
      true

  For tests of your own that take it, `ExUnit.configure(exclude: …)` in test_helper.exs. It is looked at once.
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
  The specification of a child: `{NetlinkPort.Sandbox, options}`, see `start_link/1`. Each has an id of its own, so that
  a test can start several by `start_supervised!/1`; none is restarted.

      iex> NetlinkPort.Sandbox.child_spec([]).restart
      :temporary
  """
  @spec child_spec([option()]) :: Supervisor.child_spec()
  def child_spec(opts) do
    %{
      id: make_ref(),
      start: {__MODULE__, :start_link, [opts]},
      restart: :temporary,
      shutdown: 30_000
    }
  end

  @doc """
  Starts a sandbox, linked to the caller. It ends with it.

  Options:

    * `:server` - options of its server, see `NetlinkPort.start_link/1`, `name: MyApp.Netlink` for one; or a
      server that is there, by its pid or name, which then is not the sandbox's to start again.
    * `:path` - `true` to have the namespace named by a path, `{:path, path}`, that stands for its successor after
      `:namespace_gone` and `:namespace_back`. `{:pid, os_pid}` otherwise, which never comes back. Sockets that are
      closed with their namespace, a monitor's, then take an instance of inotify(7) for each server, of which a user
      has 128.
    * `:stand_in` - `true` for the faults that take one, see above. It costs some ms at the start.
    * `:name` - to register the sandbox as.

  For example:

      {:ok, sandbox} = NetlinkPort.Sandbox.start_link()
      %{netns: netns, server: server} = NetlinkPort.Sandbox.info(sandbox)
      {:ok, socket} = NetlinkPort.open(server, :route, netns: netns)

  Errors: the line of `unavailable/0`, and those of `NetlinkPort.start_link/1`.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts \\ []), do: Instance.start_link(opts)

  @doc """
  For `setup :netlink_sandbox`: starts a sandbox under the test's supervisor. It adds to the context

    * `:netns` - for `NetlinkPort.open/3` and `NetlinkPort.Monitor`,
    * `:server` - the name of its server, also after that was started again,
    * `:sandbox` - for the functions of this module.

  Options of `start_link/1` are a tag, `@tag netlink_sandbox: [stand_in: true]`. By hand, in a test:

      %{netns: _, server: _, sandbox: _} = NetlinkPort.Sandbox.netlink_sandbox(%{netlink_sandbox: [path: true]})

  Errors: it raises where there can be no sandbox, with the line of `unavailable/0`.
  """
  @spec netlink_sandbox(map()) :: %{
          netns: NetlinkPort.netns(),
          server: GenServer.server(),
          sandbox: pid()
        }
  def netlink_sandbox(context) do
    if line = unavailable(), do: raise(line)
    opts = with true <- Map.get(context, :netlink_sandbox, []), do: []
    # Not by its name: whoever does not test has no ExUnit.
    sandbox = apply(callbacks(), :start_supervised!, [{__MODULE__, opts}])
    sandbox |> info() |> Map.take([:netns, :server]) |> Map.put(:sandbox, sandbox)
  end

  defp callbacks, do: Module.concat(ExUnit, Callbacks)

  @doc """
  What is known of a sandbox: `:netns` and `:server` as above, `:os_pid`, a process in its namespace, and `:path`, the
  file that stands for it (`/proc/<pid>/ns/net`), both `nil` while it is gone.

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
  Runs a program in the namespace, as its root, and returns what it printed, standard error with it, and its
  exit status, as `System.cmd/3`, whose options it takes.

      {_links, 0} = NetlinkPort.Sandbox.run(sandbox, "ip", ["-j", "link"])

  It is in a process namespace of the sandbox's, too. So the namespace of another sandbox is named to it by a path, and
  not by a process id: `["link", "set", "br0", "netns", NetlinkPort.Sandbox.info(other).path]`. A program that is not
  there is status 127 (126 where a folder of the path may not be read). What it starts ends with the sandbox.

  Errors: it raises where the namespace is gone.
  """
  @spec run(t(), String.t(), [String.t()], keyword()) :: {Collectable.t(), non_neg_integer()}
  def run(sandbox, program, arguments, opts \\ []) do
    case Instance.call(sandbox, :enter) do
      {:ok, enter} ->
        opts = Keyword.put_new(opts, :stderr_to_stdout, true)
        System.cmd("nsenter", enter ++ ["--", program | arguments], opts)

      {:error, reason} ->
        raise reason
    end
  end

  @doc """
  As `run/4`, but returns what was printed, and raises where the exit status is not 0.

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

  # include/uapi/linux/rtnetlink.h, if_link.h, veth.h
  @newlink 16
  @ifname 3
  @linkinfo 18
  @net_ns_pid 19
  @info_kind 1
  @info_data 2
  @peer 1
  # struct ifinfomsg, of no interface by its number; and with IFF_UP.
  @link <<0::128>>
  @up <<0::16, 0::16, 0::32, 1::32-native, 1::32-native>>

  @doc """
  Joins two sandboxes by a veth(4), both ends up and without addresses; returns the names of its ends.

      {here, there} = NetlinkPort.Sandbox.veth(sandbox, other)
      NetlinkPort.Sandbox.run!(sandbox, "ip", ["addr", "add", "192.0.2.1/24", "dev", here])
      NetlinkPort.Sandbox.run!(other, "ip", ["addr", "add", "192.0.2.2/24", "dev", there])

  A second sandbox of a test is `start_supervised!(NetlinkPort.Sandbox)`. Names are `veth0`, `veth1` and so on.
  """
  @spec veth(t(), t()) :: {String.t(), String.t()}
  def veth(a, b) do
    {here, there} = ends = {Instance.call(a, :veth), Instance.call(b, :veth)}
    peer = [@link | Attr.encode([{@ifname, there <> <<0>>}, {@net_ns_pid, Attr.u32(os_pid!(b))}])]
    kind = [{@info_kind, "veth" <> <<0>>}, {@info_data, [{@peer, IO.iodata_to_binary(peer)}]}]
    make = [@link | Attr.encode([{@ifname, here <> <<0>>}, {@linkinfo, kind}])]
    link!(a, [{make, [:create, :excl]}, {up(here), []}])
    link!(b, [{up(there), []}])
    ends
  end

  # An end can only be up when it has its peer.
  defp up(name), do: [@up | Attr.encode([{@ifname, name <> <<0>>}])]

  defp os_pid!(sandbox), do: info(sandbox).os_pid || raise("the namespace of the sandbox is gone")

  defp link!(sandbox, links) do
    opts = [netns: {:pid, os_pid!(sandbox)}, active: false]
    requests = for {link, flags} <- links, do: {@newlink, flags, link}

    with {:ok, socket} <- NetlinkPort.open(info(sandbox).server, :route, opts),
         {:ok, outcomes} <- NetlinkPort.batch(socket, requests),
         nil <- Enum.find(outcomes, &match?({:error, _error}, &1)) do
      NetlinkPort.close(socket)
    else
      {:error, error} -> raise error
    end
  end

  ## Faults

  @doc """
  Makes a fault, see the table above. Returns when it is there.

      fault(sandbox, {:overrun, 3})
      assert_receive {:netlink_overrun, ^socket, 3}

  Options:

    * `:of`, with `:overrun` - a socket, or the process that owns it: a monitor say. All sockets of the sandbox's
      server in its namespace by default. The count is exact where nothing else happens in the namespace until
      the owner has been told.
    * `:lose`, with `:overrun` - a function that is run when the receive buffers are full: what it changes in the
      namespace is lost, and counts. The helper is stopped meanwhile, so that it changes it by `run!/4`. One that
      makes more than `count` events raises.
    * `:times`, with `{:answer, errno}`, `{:open_refused, errno}` and `:interrupted_dump` - how many are to be so. Defaults
      to 1. A monitor and `NetlinkPort.dump/4` try a dump that was interrupted five times.
    * `:type`, with `{:answer, errno}` - requests of this type alone, 16 (`RTM_NEWLINK`) say. Those of any type by
      default. In a batch each message is a request.
    * `:message` and `:offset`, with `{:answer, errno}` - the extended acknowledgement: the kernel's sentence,
      and the byte of the request that it objects to, its header included. None by default.
    * `:stage`, with `{:open_refused, errno}` - `t:NetlinkPort.Error.stage/0`. Defaults to `:setns`.

  Errors: it raises where the fault cannot be made, and says why.

  For example:

      fault(sandbox, {:answer, :enospc}, message: "no room", offset: 16)
      {:error, error} = NetlinkPort.request(socket, 18, <<0::32, 1::32-native, 0::64>>)
      %{reason: :enospc, ext_ack: %{message: "no room", offset: 16}} = error
  """
  @spec fault(t(), fault(), keyword()) :: :ok
  def fault(sandbox, fault, opts \\ []) do
    Options.keyword!(opts)

    case Fault.make(sandbox, fault, opts) do
      :ok -> :ok
      {:error, reason} when is_binary(reason) -> raise "#{inspect(fault)}: #{reason}"
      {:error, reason} when is_exception(reason) -> raise reason
      {:error, reason} -> raise "#{inspect(fault)}: #{inspect(reason)}"
    end
  end

  @doc """
  Plays a capture to a process, as the messages that an owner gets: a bug report becomes a test.

      {:ok, %{datagrams: _, cut: 0}} =
        NetlinkPort.Sandbox.replay("trace.pcapng", to: pid, socket: socket)

  Reads pcapng and pcap, as `NetlinkPort.capture/3`, Wireshark and tcpdump (on an nlmon interface) write them, with the
  link type `LINKTYPE_NETLINK` (253). Only what the kernel sent is played; what was sent to it is left out, by the
  direction in the file, or where it tells none by `NLM_F_REQUEST` of the first message.

  Options:

    * `:to` - the process. Required.
    * `:socket` - what the messages carry as their socket, the one that the process follows say. Defaults to `:replay`.
    * `:tag` - the first element of the messages. Defaults to `:netlink`; `:netlink_event`, with the monitor's pid as
      `:socket`, plays to a subscriber of `NetlinkPort.Monitor`.
    * `:timed` - `true` to wait between them as long as it took; the caller waits. Defaults to `false`: at once.
    * `:protocol` - datagrams of this protocol alone. Defaults to all.
    * `:interface` - those of the interface of this name alone; `NetlinkPort.capture/3` makes one for each socket.

  A packet that the capture has cut cannot be played: the process is sent `{:netlink_error, socket, error}` with `EMSGSIZE` and
  the datagram's length, as of a datagram that was cut on its way. Returns how many `:datagrams` were played,
  how many were `:cut`, and whether the file itself ends in the middle of a packet (`:truncated`).

  Errors: of the file, such as `ENOENT`; and `NetlinkPort.DecodeError` for what is no capture, or has another link type, which it
  names.
  """
  @spec replay(Path.t(), keyword()) ::
          {:ok, %{datagrams: non_neg_integer(), cut: non_neg_integer(), truncated: boolean()}}
          | {:error, NetlinkPort.Error.t() | NetlinkPort.DecodeError.t()}
  def replay(path, opts), do: Recording.replay(path, opts)
end
