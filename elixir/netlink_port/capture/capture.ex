defmodule NetlinkPort.Capture do
  @moduledoc false
  # Writes the datagrams of one server to a pcapng file. The server monitors the capture and removes the taps when
  # it ends. A capture ends with its server, with its owner, at its bound, and at the first error.
  #
  # Invariant: the file ends with a whole block, whatever fails. Each write(2) writes whole blocks, so a killed VM
  # leaves a readable file that lacks only what was not written yet.

  use GenServer, restart: :temporary

  alias NetlinkPort.{
    Arguments,
    Deadline,
    Environment,
    Errno,
    Error,
    ProcessLimit,
    Redaction,
    Socket,
    Telemetry
  }

  alias NetlinkPort.Capture.{Pcapng, Tap}

  # Blocks are collected up to this many bytes while more datagrams come.
  @batch 65_536
  # More than the first block of a file.
  @least 4_096

  @type options :: %{
          path: Path.t(),
          max_bytes: pos_integer(),
          owner: pid(),
          deadline: :infinity | {node(), integer()}
        }

  @enforce_keys [:server, :options, :counters, :epoch]
  defstruct @enforce_keys ++
              [
                :file,
                file_size: :infinity,
                stopping?: false,
                waiting: [],
                interfaces: %{},
                kept: [],
                kept_cost: 0,
                bytes: 0,
                written: 0,
                datagrams: 0,
                dropped: 0
              ]

  ## For the server

  @doc """
  Starts a capture of the calling server and monitors it. The capture replies to `from`: with its pid when the file is
  open, or with the error. To stop, the capture sends the server `{:untap, capture}`, and the server answers by
  `untapped/1`.
  """
  @spec start(GenServer.from(), options()) :: {:ok, Tap.t()} | {:error, Error.t()}
  def start(from, options) do
    counters = Tap.counters()
    # Messages that wait for a slow disk stay off its heap.
    spawn_opts = [message_queue_data: :off_heap]
    arguments = {self(), from, options, counters}

    case ProcessLimit.start(fn ->
           GenServer.start(__MODULE__, arguments, spawn_opt: spawn_opts)
         end) do
      {:ok, pid} ->
        _monitor = Process.monitor(pid)
        {:ok, {pid, counters}}

      :system_limit ->
        {:error, ProcessLimit.error(:capture)}
    end
  end

  @doc "Tells a capture that its tap has been removed: no datagram arrives after this message."
  @spec untapped(pid()) :: :ok
  def untapped(capture) do
    send(capture, :untapped)
    :ok
  end

  ## The process

  # Opening a file can take long, and the server must not wait for it.
  @impl true
  def init({server, from, options, counters}) do
    Process.monitor(server)
    # The wall clock is read once, so that setting it back does not set the timestamps back.
    epoch = System.os_time(:nanosecond) - System.monotonic_time(:nanosecond)
    fields = [server: server, options: options, counters: counters, epoch: epoch]
    {:ok, struct!(__MODULE__, fields), {:continue, {:open, from}}}
  end

  @impl true
  def handle_continue({:open, from}, %{options: options} = state) do
    # Not in init/1: monitoring a process on a suspended node blocks, and would block the server.
    Process.monitor(options.owner)
    state = %{state | file_size: Environment.file_size()}

    with :ok <- if(state.file_size < @least, do: {:error, :efbig}, else: :ok),
         {:ok, file} <- open(options.path),
         {:ok, state} <- flush(keep(%{state | file: file}, Pcapng.section_header())) do
      told(state, :start, %{count: 1}, %{})
      GenServer.reply(from, {:ok, self()})
      # A caller that has given up does not know of its capture.
      late? = Deadline.time_left(options.deadline, :infinity) < 0
      if late?, do: finish(state, :stopped), else: {:noreply, state}
    else
      {:error, reason} ->
        GenServer.reply(from, {:error, error(reason, state)})
        {:stop, :normal, state}
    end
  end

  @impl true
  def handle_call(:stop, from, %{stopping?: true} = state) do
    {:noreply, %{state | waiting: [from | state.waiting]}, patience(state)}
  end

  def handle_call(:stop, from, state) do
    send(state.server, {:untap, self()})
    {:noreply, %{state | stopping?: true, waiting: [from]}, patience(state)}
  end

  # A process may call a capture by mistake, as if it were a server.
  def handle_call(_unknown, from, state) do
    GenServer.reply(from, {:error, Error.new(:protocol, :einval)})
    {:noreply, state, patience(state)}
  end

  @impl true
  def handle_cast(_unknown, state), do: {:noreply, state, patience(state)}

  @impl true
  def handle_info({:passed, _, _, _, {bytes, _length}, _} = passed, state) do
    state = %{state | kept_cost: state.kept_cost + Tap.cost(byte_size(bytes))}

    with {:ok, state} <- write(state, passed),
         {:ok, state} <- if(full_batch?(state), do: flush(state), else: {:ok, state}) do
      {:noreply, state, patience(state)}
    else
      {:error, reason} -> finish(state, error(reason, state))
      :full -> finish(state, :max_bytes)
      :limit -> finish(state, error(:efbig, state))
    end
  end

  # The mailbox is empty.
  def handle_info(:timeout, state) do
    case flush(state) do
      {:ok, state} -> {:noreply, state}
      {:error, reason} -> finish(state, error(reason, state))
    end
  end

  # The server sends this behind every datagram that it copied before the tap was off.
  def handle_info(:untapped, %{stopping?: true} = state), do: finish(state, :stopped)

  def handle_info({:DOWN, _monitor, :process, pid, _reason}, %{server: pid} = state) do
    finish(state, :server_down)
  end

  # The owner has ended, so nobody is notified.
  def handle_info({:DOWN, _monitor, :process, _owner, _reason}, state) do
    finish(state, :stopped)
  end

  def handle_info(_message, state), do: {:noreply, state, patience(state)}

  defp patience(%{kept: []}), do: :infinity
  defp patience(_state), do: 0

  ## The end

  defp finish(state, reason) do
    {reason, state} =
      case flush(state) do
        {:ok, state} -> {reason, state}
        {:error, failed} -> {error(failed, state), state}
      end

    _closed = :file.close(state.file)
    told(state, :stop, counts(state), %{reason: reason})
    tell(state, reason)
    {:stop, :normal, state}
  end

  defp told(state, event, measurements, metadata) do
    metadata =
      Map.merge(metadata, %{capture: self(), server: state.server, path: state.options.path})

    Telemetry.execute([:capture, event], measurements, metadata)
  end

  defp tell(state, %Error{} = error) when state.stopping?, do: reply(state, {:error, error})
  defp tell(state, _reason) when state.stopping?, do: reply(state, {:ok, counts(state)})
  defp tell(_state, :stopped), do: :ok

  defp tell(state, reason) do
    send(state.options.owner, {:netlink_capture_end, self(), reason, counts(state)})
  end

  defp reply(state, answer), do: Enum.each(state.waiting, &GenServer.reply(&1, answer))

  defp counts(state) do
    dropped = Tap.dropped(state.counters)
    %{datagrams: state.datagrams, dropped: dropped, bytes: state.written}
  end

  ## Blocks

  defp write(state, {:passed, direction, stamp, source, bytes, dropped}) do
    {handle, protocol, _netns} = source
    {description, state} = interface(state, source)
    stamp = state.epoch + System.convert_time_unit(stamp, :native, :nanosecond)
    index = Map.fetch!(state.interfaces, handle)
    family = Arguments.protocol!(protocol)
    comment = comment(dropped - state.dropped)
    block = Pcapng.datagram(index, stamp, direction, family, bytes, comment)
    blocks = [description, block]

    bytes = state.bytes + IO.iodata_length(blocks)

    cond do
      bytes > state.options.max_bytes -> :full
      # A longer file would end the VM.
      bytes > state.file_size -> :limit
      true -> {:ok, keep(%{state | datagrams: state.datagrams + 1, dropped: dropped}, blocks)}
    end
  end

  # A socket becomes an interface with its first datagram. So the bound on the file bounds the number of interfaces.
  defp interface(%{interfaces: interfaces} = state, {handle, _protocol, _netns} = source) do
    if is_map_key(interfaces, handle) do
      {[], state}
    else
      interfaces = Map.put(interfaces, handle, map_size(interfaces))
      {Pcapng.interface(name(source)), %{state | interfaces: interfaces}}
    end
  end

  # A path can hold any byte.
  defp name({handle, protocol, netns}) do
    "#{protocol} in #{Redaction.plain(Socket.place(netns))}, handle #{handle}"
  end

  defp comment(0), do: nil
  defp comment(1), do: "1 datagram before this one is missing: the capture could not keep up"
  defp comment(n), do: "#{n} datagrams before this one are missing: the capture could not keep up"

  defp keep(state, blocks) do
    %{state | kept: [state.kept | blocks], bytes: state.bytes + IO.iodata_length(blocks)}
  end

  defp full_batch?(state), do: state.bytes - state.written >= @batch

  ## The file

  defp flush(%{kept: []} = state), do: {:ok, state}

  defp flush(state) do
    case :file.write(state.file, state.kept) do
      :ok ->
        Tap.done(state.counters, state.kept_cost)
        {:ok, %{state | kept: [], kept_cost: 0, written: state.bytes}}

      {:error, reason} ->
        # The write may have ended in the middle of a block.
        _position = :file.position(state.file, state.written)
        _truncated = :file.truncate(state.file)
        {:error, reason}
    end
  end

  # Danger: opening a pipe or a device can block, or have effects. Datagrams can hold keys (xfrm), so a new file is
  # readable by its owner alone.
  defp open(path) do
    case File.stat(path) do
      {:ok, %{type: :regular}} -> :file.open(path, [:raw, :binary, :write])
      {:ok, %{type: :directory}} -> {:error, :eisdir}
      {:ok, _other} -> {:error, :einval}
      {:error, :enoent} -> create(path)
      {:error, reason} -> {:error, reason}
    end
  end

  defp create(path) do
    with {:ok, file} <- :file.open(path, [:raw, :binary, :write, :exclusive]),
         :ok <- File.chmod(path, 0o600) do
      {:ok, file}
    end
  end

  defp error(reason, state), do: Error.new(:capture, errno(reason), subject: state.options.path)

  defp errno(reason) do
    _number = Errno.number(reason)
    reason
  rescue
    FunctionClauseError -> :eio
  end

  @impl true
  def terminate(_reason, _state), do: Redaction.forget_mailbox()

  # What crash reports and :sys.get_status/1 show: no datagrams. A callback of GenServer since
  # Elixir 1.17.
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %__MODULE__{} = state} = status) do
    Redaction.status(status,
      server: state.server,
      path: state.options.path,
      owner: state.options.owner,
      datagrams: state.datagrams,
      dropped: Tap.dropped(state.counters),
      written: state.written,
      max_bytes: state.options.max_bytes,
      stopping?: state.stopping?
    )
  end

  def format_status(status), do: Redaction.status(status)
end
