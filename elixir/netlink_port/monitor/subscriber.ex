defmodule NetlinkPort.Monitor.Subscriber do
  @moduledoc false
  # The state of one subscriber of a monitor: which messages it is sent, and when. Pure.
  #
  #     owed ── resync ──▶ waiting ── a dump begins ──▶ attached ── it is read ──▶ live
  #       ▲ └──────────── resync, without a dump of the monitor's ───────────────▶ │
  #       └────────────────────────────── a gap, or behind ────────────────────────┘
  #
  # Invariants:
  # - After a gap nothing is sent before its resync, except :netlink_down.
  # - Events that come while a dump runs are sent behind the snapshot. Earlier ones are dropped.
  # - Nothing is sent without credit. Credit is how many messages the subscriber's mailbox may still be sent
  #   (NetlinkPort.Server.MailboxGauge).
  # - At most `bound` events and the pieces of one snapshot wait here.

  alias NetlinkPort.Server.MailboxGauge

  @type place :: :opening | {:joined, NetlinkPort.Socket.t()} | {:down, term()}
  @type message :: tuple()
  @type phase :: {:owed, reason :: term(), down_sent? :: boolean()} | :waiting | :attached | :live
  @type t :: %__MODULE__{
          pid: pid(),
          bound: pos_integer(),
          gauge: MailboxGauge.t(),
          credit: non_neg_integer(),
          phase: phase(),
          queue: :queue.queue(message()),
          events: non_neg_integer()
        }

  @enforce_keys [:pid, :bound, :gauge]
  defstruct [
    :pid,
    :bound,
    :gauge,
    credit: 0,
    phase: {:owed, :subscribed, false},
    queue: :queue.new(),
    events: 0
  ]

  @doc "Returns a new subscriber whose mailbox may hold `bound` messages."
  @spec new(pid(), pos_integer()) :: t()
  def new(pid, bound), do: %__MODULE__{pid: pid, bound: bound, gauge: MailboxGauge.new(bound)}

  @doc "Notes a gap. Further gaps before the resync of the first are the same gap."
  @spec gap(t(), reason :: term()) :: t()
  def gap(%{phase: {:owed, _reason, _down_sent?}} = subscriber, _later_reason), do: subscriber
  def gap(subscriber, reason), do: restart({:owed, reason, false}, subscriber)

  @doc "Adds an event."
  @spec event(t(), message()) :: t()
  def event(%{phase: :live, events: events, bound: bound} = subscriber, _message)
      when events >= bound,
      do: gap(subscriber, :behind)

  # No piece of the snapshot has been sent yet, so the subscriber waits for another snapshot and needs no resync.
  def event(%{phase: :attached, events: events, bound: bound} = subscriber, _message)
      when events >= bound,
      do: restart(:waiting, subscriber)

  def event(%{phase: phase, queue: queue, events: events} = subscriber, message)
      when phase in [:live, :attached],
      do: %{subscriber | queue: :queue.in({:event, message}, queue), events: events + 1}

  # The snapshot that follows contains the event, or the dump that the subscriber makes after its resync.
  def event(subscriber, _message), do: subscriber

  @doc "Notes that the dumps begin."
  @spec attach(t()) :: t()
  def attach(%{phase: :waiting} = subscriber), do: %{subscriber | phase: :attached}
  def attach(subscriber), do: subscriber

  @doc "Notes that the dumps have failed."
  @spec detach(t()) :: t()
  def detach(%{phase: :attached} = subscriber), do: restart(:waiting, subscriber)
  def detach(subscriber), do: subscriber

  @doc "Adds the snapshot, before the events that came while it was read."
  @spec snapshot(t(), [message()]) :: t()
  def snapshot(%{phase: :attached, queue: queue} = subscriber, pieces) do
    %{subscriber | phase: :live, queue: :queue.join(:queue.from_list(pieces), queue)}
  end

  def snapshot(subscriber, _pieces), do: subscriber

  @doc "Takes the messages that may be sent now. `dumps?` is whether the monitor makes snapshots."
  @spec advance(t(), place(), dumps? :: boolean()) :: {[message()], t()}
  def advance(%{phase: {:owed, reason, down_sent?}} = subscriber, place, dumps?) do
    # A subscriber that was behind starts again only when half of its mailbox is free.
    room? = 2 * subscriber.credit > subscriber.bound

    case place do
      {:joined, _socket} when room? ->
        phase = if dumps?, do: :waiting, else: :live
        {[{:netlink_resync, reason}], spend(%{subscriber | phase: phase})}

      {:down, why} when room? and not down_sent? ->
        {[{:netlink_down, why}], spend(%{subscriber | phase: {:owed, reason, true}})}

      _not_yet ->
        {[], subscriber}
    end
  end

  def advance(%{phase: :live} = subscriber, _place, _dumps?), do: drain(subscriber, [])
  def advance(subscriber, _place, _dumps?), do: {[], subscriber}

  @doc "Takes a message that has no place in the order of events, if there is credit."
  @spec unordered(t(), message()) :: {[message()], t()}
  def unordered(%{credit: 0} = subscriber, _message), do: {[], subscriber}
  def unordered(subscriber, message), do: {[message], spend(subscriber)}

  @doc "Whether messages wait for credit."
  @spec waiting?(t(), place()) :: boolean()
  def waiting?(%{phase: {:owed, _reason, down_sent?}}, {:down, _why}), do: not down_sent?
  def waiting?(%{phase: {:owed, _reason, _down_sent?}}, {:joined, _socket}), do: true
  def waiting?(%{phase: :live, queue: queue}, _place), do: not :queue.is_empty(queue)
  def waiting?(_subscriber, _place), do: false

  defp drain(%{credit: 0} = subscriber, sent), do: {Enum.reverse(sent), subscriber}

  defp drain(subscriber, sent) do
    case :queue.out(subscriber.queue) do
      {{:value, {:event, message}}, queue} ->
        subscriber = %{subscriber | queue: queue, events: subscriber.events - 1}
        drain(spend(subscriber), [message | sent])

      {{:value, message}, queue} ->
        drain(spend(%{subscriber | queue: queue}), [message | sent])

      {:empty, _queue} ->
        {Enum.reverse(sent), subscriber}
    end
  end

  defp spend(%{credit: credit} = subscriber), do: %{subscriber | credit: credit - 1}

  defp restart(phase, subscriber) do
    %{subscriber | phase: phase, queue: :queue.new(), events: 0}
  end
end
