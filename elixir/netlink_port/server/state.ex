defmodule NetlinkPort.Server.State do
  @moduledoc false
  # The state of a server, and the steps that each part of the server takes: it writes a frame to the helper, takes
  # over changed sockets, replies to a caller, and spins.

  alias NetlinkPort.{Helper, Spin}
  alias NetlinkPort.Helper.{OsProcess, Protocol, Reference}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.{Pins, Sockets, Status, WriteQueue}

  # How many bytes the helper may send ahead of the server, over all sockets.
  @window 8_388_608

  # `frames` counts the frames of the helper, `frames_at_ping` those before the last ping is due. `suspect?`: the helper
  # seems stuck, and has a last ping to answer. The helper may send until `granted` bytes; `taken` of them have come.
  @type t :: %__MODULE__{
          helper: Reference.t(),
          process: OsProcess.t() | nil,
          hello: Helper.hello(),
          notifier: pid(),
          notifier_monitor: reference(),
          ping_interval: timeout(),
          executable: Path.t(),
          sockets: Sockets.t(),
          pins: Pins.t(),
          outgoing: WriteQueue.t(),
          status: Status.t(),
          spin: Spin.t(),
          frames: non_neg_integer(),
          frames_at_ping: non_neg_integer(),
          suspect?: boolean(),
          taken: non_neg_integer(),
          granted: non_neg_integer()
        }

  @enforce_keys [
    :helper,
    :process,
    :hello,
    :notifier,
    :notifier_monitor,
    :ping_interval,
    :executable,
    :sockets,
    :pins,
    :outgoing,
    :status,
    :spin
  ]
  defstruct @enforce_keys ++
              [frames: 0, frames_at_ping: 0, suspect?: false, taken: 0, granted: 0]

  ## To the helper

  @doc "Writes a frame to the helper, or queues it while the port is busy."
  @spec write(t(), iodata()) :: t()
  def write(state, frame), do: %{state | outgoing: WriteQueue.write(state.outgoing, frame)}

  @doc "Writes the queued frames."
  @spec retry(t()) :: t()
  def retry(state), do: %{state | outgoing: WriteQueue.retry(state.outgoing)}

  @doc "Takes over the sockets after a change, and sends the helper the grants that are due."
  @spec update(t(), Sockets.t()) :: t()
  def update(state, %{grants: []} = sockets), do: %{state | sockets: sockets}

  def update(state, sockets) do
    {grants, sockets} = Sockets.take_grants(sockets)
    Enum.reduce(grants, %{state | sockets: sockets}, &write(&2, &1))
  end

  @doc "Opens the window of all sockets together again, once half of it is used. The first grant opens it."
  @spec grant_all(t()) :: t()
  def grant_all(%{taken: taken, granted: granted} = state)
      when 2 * (taken + @window - granted) >= @window do
    write(%{state | granted: taken + @window}, Protocol.grant_all(taken + @window))
  end

  def grant_all(state), do: state

  ## Return values of the callbacks

  @doc """
  Replies to a caller. GenServer's own reply, by the return value, would suspend the server while the caller's node is
  suspended.
  """
  @spec reply(t(), GenServer.from(), term()) :: {:noreply, t()}
  def reply(state, from, reply) do
    Relay.reply(from, reply)
    {:noreply, state}
  end

  @doc "A command for a caller was written: spins until the helper's reply."
  @spec await_reply(t()) :: {:noreply, t()} | {:noreply, t(), timeout()}
  def await_reply(state) do
    spin(%{state | spin: Spin.asked(state.spin, System.monotonic_time())})
  end

  @doc """
  A caller waits for a datagram. It is an answer, and comes soon, if the caller makes a request, or if an answer came a
  moment ago: the caller itself has written the command. Without this a helper that slept stays a miss for ever.
  """
  @spec await_datagram(t(), request? :: boolean()) :: {:noreply, t()} | {:noreply, t(), timeout()}
  def await_datagram(state, request?) do
    if request? or Spin.on?(state.spin, System.monotonic_time()),
      do: await_reply(state),
      else: {:noreply, state}
  end

  @doc "The helper has replied, or the kernel to a request: spins until the next one."
  @spec answered(t()) :: {:noreply, t()} | {:noreply, t(), timeout()}
  def answered(state) do
    spin(%{state | spin: Spin.answered(state.spin, System.monotonic_time())})
  end

  @doc "Goes on spinning, if it does: with timeout 0 `:timeout` follows as soon as the mailbox is empty."
  @spec spin(t()) :: {:noreply, t()} | {:noreply, t(), timeout()}
  def spin(%{spin: %{until: nil}} = state), do: {:noreply, state}

  def spin(state) do
    {:noreply, state, if(Spin.on?(state.spin, System.monotonic_time()), do: 0, else: :infinity)}
  end
end
