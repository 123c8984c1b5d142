defmodule NetlinkPort.Server.Status do
  @moduledoc false
  # What a server reports of itself and of its helper: in replies to info/1 and stats/1, in status and crash reports,
  # in the log, and as telemetry of its start and end.

  alias NetlinkPort.{Capability, Error, Helper, ProcessLimit, Redaction, Telemetry}
  alias NetlinkPort.Helper.{OsProcess, Protocol, Restarts}
  alias NetlinkPort.Server.{Pins, Sockets, WriteQueue}

  require Logger

  # Monotonic times: `began` when the start began, `started` when the helper had said hello.
  @type t :: %__MODULE__{
          name: GenServer.name() | nil,
          restarts: non_neg_integer(),
          log: Restarts.log(),
          began: integer(),
          started: integer() | nil,
          malformed: non_neg_integer()
        }

  @enforce_keys [:name, :restarts, :log, :began]
  defstruct [:name, :restarts, :log, :began, :started, malformed: 0]

  @doc "The status of a server that starts now."
  @spec new(GenServer.name() | nil, Restarts.start()) :: t()
  def new(name, %{restarts: restarts, log: log}) do
    %__MODULE__{name: name, restarts: restarts, log: log, began: System.monotonic_time()}
  end

  ## The beginning and the end

  @doc "The helper has said hello."
  @spec started(t(), Helper.hello(), Path.t()) :: t()
  def started(status, hello, executable) do
    now = System.monotonic_time()
    metadata = metadata(status, %{os_pid: hello.os_pid, executable: executable})
    metadata = Map.put(metadata, :restarts, status.restarts)
    Telemetry.execute([:helper, :start], %{duration: now - status.began}, metadata)
    %{status | started: now}
  end

  @doc "The server could not start. A supervisor logs the error as a struct; this logs its sentence."
  @spec failed(t(), Error.t()) :: :ok
  def failed(status, error) do
    duration = System.monotonic_time() - status.began
    metadata = metadata(status, %{error: error, restarts: status.restarts})
    Telemetry.execute([:helper, :failure], %{duration: duration}, metadata)
    log(status, nil, Exception.message(error))
  end

  @doc "The server ends. `seen` says whether the helper was seen to end."
  @spec ended(map(), term(), :gone | :ending | {:error, String.t()}) :: :ok
  def ended(%{status: status} = state, reason, seen) do
    os_pid = state.hello.os_pid
    sockets = Sockets.count(state.sockets)
    uptime = System.monotonic_time() - status.started
    pins = Pins.count(state.pins)
    metadata = metadata(status, %{os_pid: os_pid, reason: Redaction.brief(reason)})
    measurements = %{uptime: uptime, sockets: sockets, pins: pins}
    Telemetry.execute([:helper, :stop], measurements, metadata)

    case words(reason, seen) do
      nil -> :ok
      words -> log(status, os_pid, "helper #{os_pid} #{words}; #{closed(sockets)}#{gone(pins)}")
    end
  end

  defp metadata(status, more), do: Map.merge(%{server: self(), name: status.name}, more)

  # Restarts limits the lines: helpers that end again and again would flood the log.
  defp log(%{log: :none}, _os_pid, _line), do: :ok

  defp log(status, os_pid, line) do
    last = if status.log == :last, do: "; more of this is not logged for a minute", else: ""

    Logger.error("netlink_port #{inspect(status.name || self())}: " <> line <> last,
      netlink_port: status.name || self(),
      os_pid: os_pid,
      domain: [:netlink_port]
    )
  end

  defp closed(0), do: "it had no sockets"
  defp closed(1), do: "its socket is closed"
  defp closed(count), do: "its #{count} sockets are closed"

  defp gone(0), do: ""
  defp gone(1), do: ", and its pin is gone"
  defp gone(count), do: ", and its #{count} pins are gone"

  # Without words nothing is logged: the end was orderly.
  defp words({:helper_exit, code}, _seen) when is_integer(code),
    do: "has ended " <> exit_code(code)

  defp words({:helper_exit, reason}, seen),
    do: "#{ended(seen)}, as its port says: #{inspect(reason)}"

  defp words(:stuck, :gone), do: "did not answer and was killed"

  defp words(:stuck, {:error, why}),
    do: "did not answer, and could not be killed yet: #{why}; its owner notifier goes on trying"

  defp words({:protocol_error, term}, _seen),
    do: "sent what is no frame: #{inspect(Redaction.brief(term))}"

  defp words(_reason, {:error, why}),
    do:
      "did not end with its server, and could not be killed yet: #{why}; its owner notifier goes on trying"

  defp words(_reason, _seen), do: nil

  defp ended(:gone), do: "has ended"
  defp ended(_not_seen), do: "cannot be reached any more"

  # docs/protocol.md lists the codes; 128 and more is a signal.
  defp exit_code(0), do: "by itself (exit code 0)"
  defp exit_code(65), do: "after a frame that was too long (exit code 65)"
  defp exit_code(70), do: "by a bug of its own (exit code 70): please report what it said"
  defp exit_code(71), do: "since the system refused it something it needs (exit code 71)"
  defp exit_code(74), do: "since it could not write (exit code 74)"
  defp exit_code(80), do: "since it could not come home from a namespace (exit code 80)"

  defp exit_code(159),
    do: "by SIGSYS: a system call that its own filter, or a seccomp profile, does not let through"

  defp exit_code(137), do: "by SIGKILL"
  defp exit_code(139), do: "by SIGSEGV"
  defp exit_code(134), do: "by SIGABRT"
  defp exit_code(code) when code > 128, do: "by signal #{code - 128}"
  defp exit_code(code), do: "with exit code #{code}"

  @doc "The helper could not read a command. The first such event is logged, and all are counted."
  @spec malformed(map(), atom()) :: map()
  def malformed(%{status: status} = state, reason) do
    if status.malformed == 0,
      do: log(status, state.hello.os_pid, "the helper could not read a command: #{reason}")

    %{state | status: %{status | malformed: status.malformed + 1}}
  end

  ## For info/1 and stats/1

  @doc "For `NetlinkPort.info/1`: what the helper replied, with what its server knows of it."
  @spec info(map(), keyword()) :: map()
  def info(state, reply) do
    Map.merge(Map.new(reply), %{
      executable: state.executable,
      program: state.hello.program,
      protocol: Protocol.version(),
      capabilities: Capability.names(state.hello.capabilities),
      may_leave: state.hello.may_leave,
      max_fds: state.hello.max_fds,
      lowest_fd: state.hello.lowest_fd
    })
  end

  @doc """
  For `NetlinkPort.stats/1`. A process of its own reads `/proc`, so that the server never waits for a file.
  """
  @spec stats(map(), keyword(), GenServer.from()) :: :ok
  def stats(%{status: status} = state, reply, from) do
    uptime = System.monotonic_time() - status.started

    known = %{
      server: self(),
      name: status.name,
      uptime: System.convert_time_unit(uptime, :native, :millisecond),
      restarts: status.restarts,
      frames: state.frames,
      outgoing: WriteQueue.count(state.outgoing),
      malformed: status.malformed,
      max_fds: state.hello.max_fds,
      sockets: Sockets.list(state.sockets),
      pins: Pins.list(state.pins)
    }

    os_pid = state.hello.os_pid
    reply = reply |> Map.new() |> Map.take([:os_pid, :fds])

    answer = &GenServer.reply(from, {:ok, known |> Map.merge(reply) |> Map.merge(&1)})

    # At the VM's limit of processes it is not known what the helper uses.
    with :system_limit <- ProcessLimit.spawn(fn -> answer.(OsProcess.usage(os_pid)) end),
         do: answer.(%{rss: nil, cpu: nil})

    :ok
  end

  @doc "What crash reports and :sys.get_status/1 show."
  @spec format(map()) :: map()
  def format(%{state: %{status: %__MODULE__{}} = state} = status) do
    Redaction.status(status,
      name: state.status.name,
      helper: state.process && state.process.os_pid,
      executable: state.executable,
      restarts: state.status.restarts,
      sockets: Sockets.count(state.sockets),
      pins: Pins.count(state.pins),
      outgoing: WriteQueue.count(state.outgoing),
      capture: state.sockets.tap != nil,
      suspect?: state.suspect?,
      may_leave_home: state.hello.may_leave
    )
  end

  # The start has failed, so the state is still the options.
  def format(status), do: Redaction.status(status)
end
