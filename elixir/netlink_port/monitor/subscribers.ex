defmodule NetlinkPort.Monitor.Subscribers do
  @moduledoc false
  # All subscribers of a monitor, by the reference that monitors each. Sends each subscriber the messages that
  # NetlinkPort.Monitor.Subscriber releases. Runs in the monitor.

  alias NetlinkPort.{Error, Telemetry}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.MailboxGauge
  alias NetlinkPort.Monitor.Subscriber

  @type t :: %{reference() => Subscriber.t()}
  # The state of the monitor's socket, and whether the monitor makes snapshots.
  @type socket_state :: {Subscriber.place(), dumps? :: boolean()}

  @doc "Adds a process whose mailbox may hold `bound` messages. A process that is there already begins anew."
  @spec add(t(), pid(), pos_integer(), socket_state()) :: t()
  def add(subscribers, pid, bound, socket_state) do
    subscribers
    |> drop(pid)
    |> advance_one(Relay.monitor(pid), Subscriber.new(pid, bound), socket_state)
  end

  @spec drop(t(), pid()) :: t()
  def drop(subscribers, pid) do
    {dropped, rest} =
      Enum.split_with(subscribers, fn {_ref, subscriber} -> subscriber.pid == pid end)

    Enum.each(dropped, fn {ref, subscriber} -> Relay.demonitor(ref, subscriber.pid) end)
    Map.new(rest)
  end

  @doc "Applies `fun` to each subscriber, and sends nothing."
  @spec update(t(), (Subscriber.t() -> Subscriber.t())) :: t()
  def update(subscribers, fun),
    do: Map.new(subscribers, fn {ref, subscriber} -> {ref, fun.(subscriber)} end)

  @doc "Applies `fun` to each subscriber, then sends it the messages that may be sent."
  @spec advance(t(), socket_state(), (Subscriber.t() -> Subscriber.t())) :: t()
  def advance(subscribers, socket_state, fun) do
    Enum.reduce(subscribers, subscribers, fn {ref, subscriber}, subscribers ->
      advance_one(subscribers, ref, fun.(subscriber), socket_state)
    end)
  end

  @doc "Takes the report of a mailbox's gauge. Its subscriber may have been dropped by now."
  @spec gauged(t(), reference(), MailboxGauge.report(), socket_state()) :: t()
  def gauged(subscribers, ref, report, socket_state) do
    case subscribers do
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
    Map.put(subscribers, ref, %{subscriber | gauge: gauge})
  end

  @doc "Notes that the dumps have failed. With `notify?` the subscribers that wait for them are sent the error."
  @spec failed(t(), Error.t(), boolean()) :: t()
  def failed(subscribers, error, notify?) do
    Map.new(subscribers, fn {ref, subscriber} ->
      {ref, subscriber |> notify(ref, error, notify?) |> Subscriber.detach()}
    end)
  end

  defp notify(%{phase: :attached} = subscriber, ref, error, true) do
    {messages, subscriber} = Subscriber.unordered(subscriber, {:netlink_error, error})
    deliver(subscriber, ref, messages)
    subscriber
  end

  defp notify(subscriber, _ref, _error, _notify?), do: subscriber

  @doc "Whether any subscriber waits for a snapshot."
  @spec waiting?(t()) :: boolean()
  def waiting?(subscribers),
    do: Enum.any?(subscribers, fn {_ref, subscriber} -> subscriber.phase == :waiting end)

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
    all = Map.values(subscribers)

    [
      subscribers: length(all),
      phases: Enum.frequencies_by(all, &phase(&1.phase)),
      events_kept: Enum.sum(Enum.map(all, & &1.events))
    ]
  end

  defp phase({:owed, _reason, _down_sent?}), do: :owed
  defp phase(phase), do: phase
end
