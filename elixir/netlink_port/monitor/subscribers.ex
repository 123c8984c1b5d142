defmodule NetlinkPort.Monitor.Subscribers do
  @moduledoc false
  # All subscribers of a monitor, by the reference that monitors each. Sends each subscriber the messages that
  # NetlinkPort.Monitor.Subscriber releases. Runs in the monitor.
  #
  # There may be thousands, so that only what concerns all of them, such as an event, goes through all of them.

  alias NetlinkPort.{Error, Telemetry}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.MailboxGauge
  alias NetlinkPort.Monitor.Subscriber

  @type t :: %__MODULE__{
          all: %{reference() => Subscriber.t()},
          references: %{pid() => reference()},
          waiting: refs(),
          attached: refs()
        }
  # The keys are references.
  @typep refs :: %{reference() => []}
  # The state of the monitor's socket, and whether the monitor makes snapshots.
  @type socket_state :: {Subscriber.place(), dumps? :: boolean()}

  # `waiting` and `attached` are the subscribers in these phases.
  defstruct all: %{}, references: %{}, waiting: %{}, attached: %{}

  @spec new() :: t()
  def new, do: %__MODULE__{}

  @doc "Adds a process whose mailbox may hold `bound` messages. A process that is there already begins anew."
  @spec add(t(), pid(), pos_integer(), socket_state()) :: t()
  def add(subscribers, pid, bound, socket_state) do
    subscribers = drop(subscribers, pid)
    ref = Relay.monitor(pid)
    references = Map.put(subscribers.references, pid, ref)

    advance_one(
      %{subscribers | references: references},
      ref,
      Subscriber.new(pid, bound),
      socket_state
    )
  end

  @spec drop(t(), pid()) :: t()
  def drop(subscribers, pid) do
    case subscribers.references do
      %{^pid => ref} ->
        Relay.demonitor(ref, pid)
        down(subscribers, ref)

      _unknown ->
        subscribers
    end
  end

  @doc "Removes a subscriber that has ended, by its monitor."
  @spec down(t(), reference()) :: t()
  def down(%{all: all} = subscribers, ref) do
    case Map.pop(all, ref) do
      {%{pid: pid}, all} ->
        references = Map.delete(subscribers.references, pid)
        index(%{subscribers | all: all, references: references}, ref, nil)

      {nil, _all} ->
        subscribers
    end
  end

  defp put(subscribers, ref, subscriber),
    do: index(%{subscribers | all: Map.put(subscribers.all, ref, subscriber)}, ref, subscriber)

  defp index(%{waiting: waiting, attached: attached} = subscribers, ref, subscriber) do
    phase = subscriber && subscriber.phase

    %{
      subscribers
      | waiting: member(waiting, ref, phase == :waiting),
        attached: member(attached, ref, phase == :attached)
    }
  end

  defp member(refs, ref, true), do: Map.put(refs, ref, [])
  defp member(refs, ref, false), do: Map.delete(refs, ref)

  @doc "Notes a gap of each subscriber, and sends nothing."
  @spec gap(t(), reason :: term()) :: t()
  def gap(subscribers, reason),
    do: update(subscribers, subscribers.all, &Subscriber.gap(&1, reason))

  @doc "Notes that the dumps begin, for the subscribers that wait for them."
  @spec attach(t()) :: t()
  def attach(subscribers), do: update(subscribers, subscribers.waiting, &Subscriber.attach/1)

  defp update(subscribers, some, fun) do
    Enum.reduce(some, subscribers, fn {ref, _one}, subscribers ->
      put(subscribers, ref, fun.(Map.fetch!(subscribers.all, ref)))
    end)
  end

  @doc "Sends the subscribers that wait for the dumps the snapshot."
  @spec snapshot(t(), [Subscriber.message()], socket_state()) :: t()
  def snapshot(subscribers, pieces, socket_state) do
    advance(
      subscribers,
      subscribers.attached,
      socket_state,
      &Subscriber.snapshot(&1, pieces)
    )
  end

  @doc "Applies `fun` to each subscriber, then sends it the messages that may be sent."
  @spec advance(t(), socket_state(), (Subscriber.t() -> Subscriber.t())) :: t()
  def advance(subscribers, socket_state, fun),
    do: advance(subscribers, subscribers.all, socket_state, fun)

  defp advance(subscribers, some, socket_state, fun) do
    Enum.reduce(some, subscribers, fn {ref, _one}, subscribers ->
      advance_one(subscribers, ref, fun.(Map.fetch!(subscribers.all, ref)), socket_state)
    end)
  end

  @doc "Takes the report of a mailbox's gauge. Its subscriber may have been dropped by now."
  @spec gauged(t(), reference(), MailboxGauge.report(), socket_state()) :: t()
  def gauged(subscribers, ref, report, socket_state) do
    case subscribers.all do
      %{^ref => subscriber} ->
        {credit, gauge} = MailboxGauge.read(subscriber.gauge, ref, report, subscriber.credit)
        advance_one(subscribers, ref, %{subscriber | credit: credit, gauge: gauge}, socket_state)

      _dropped ->
        subscribers
    end
  end

  defp advance_one(subscribers, ref, subscriber, {place, dumps?}) do
    {messages, subscriber} = Subscriber.advance(subscriber, place, dumps?)
    deliver(subscriber, ref, messages)
    waiting? = Subscriber.waiting?(subscriber, place)
    gauge = MailboxGauge.watch(subscriber.gauge, ref, subscriber.pid, subscriber.credit, waiting?)
    put(subscribers, ref, %{subscriber | gauge: gauge})
  end

  @doc "Notes that the dumps have failed. With `notify?` the subscribers that wait for them are sent the error."
  @spec failed(t(), Error.t(), socket_state(), boolean()) :: t()
  def failed(subscribers, error, socket_state, notify?) do
    Enum.reduce(subscribers.attached, subscribers, fn {ref, []}, subscribers ->
      subscriber = subscribers.all |> Map.fetch!(ref) |> notify(ref, error, notify?)
      advance_one(subscribers, ref, Subscriber.detach(subscriber), socket_state)
    end)
  end

  defp notify(subscriber, _ref, _error, false), do: subscriber

  defp notify(subscriber, ref, error, true) do
    {messages, subscriber} = Subscriber.unordered(subscriber, {:netlink_error, error})
    deliver(subscriber, ref, messages)
    subscriber
  end

  @doc "Whether any subscriber waits for a snapshot."
  @spec waiting?(t()) :: boolean()
  def waiting?(%{waiting: waiting}), do: waiting != %{}

  @doc "How many subscribers there are."
  @spec count(t()) :: non_neg_integer()
  def count(%{all: all}), do: map_size(all)

  defp deliver(%{pid: pid}, ref, messages) do
    Enum.each(messages, fn message ->
      with {:netlink_resync, reason} <- message do
        metadata = %{monitor: self(), subscriber: pid, reason: reason}
        Telemetry.execute([:monitor, :resync], %{count: 1}, metadata)
      end

      Relay.deliver(pid, ref, Tuple.insert_at(message, 1, self()))
    end)
  end

  @doc "Summarizes the subscribers for status reports."
  @spec summary(t()) :: keyword()
  def summary(subscribers) do
    all = Map.values(subscribers.all)

    [
      subscribers: count(subscribers),
      phases: Enum.frequencies_by(all, &phase(&1.phase)),
      events_kept: Enum.sum(Enum.map(all, & &1.events))
    ]
  end

  defp phase({:owed, _reason, _down_sent?}), do: :owed
  defp phase(phase), do: phase
end
