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
  @type ways :: {Subscriber.place(), dumps? :: boolean()}

  @doc "Adds a process whose mailbox may hold `bound` messages. A process that is there already begins anew."
  @spec add(t(), pid(), pos_integer(), ways()) :: t()
  def add(subscribers, pid, bound, ways) do
    subscribers |> drop(pid) |> advance_one(Relay.monitor(pid), Subscriber.new(pid, bound), ways)
  end

  @spec drop(t(), pid()) :: t()
  def drop(subscribers, pid) do
    {dropped, kept} = Enum.split_with(subscribers, fn {_ref, one} -> one.pid == pid end)
    Enum.each(dropped, fn {ref, one} -> Relay.demonitor(ref, one.pid) end)
    Map.new(kept)
  end

  @doc "Applies `fun` to each subscriber, and sends nothing."
  @spec each(t(), (Subscriber.t() -> Subscriber.t())) :: t()
  def each(subscribers, fun), do: Map.new(subscribers, fn {ref, one} -> {ref, fun.(one)} end)

  @doc "Applies `fun` to each subscriber, then sends it the messages that may be sent."
  @spec advance(t(), ways(), (Subscriber.t() -> Subscriber.t())) :: t()
  def advance(subscribers, ways, fun) do
    Enum.reduce(subscribers, subscribers, fn {ref, one}, subscribers ->
      advance_one(subscribers, ref, fun.(one), ways)
    end)
  end

  @doc "Takes the report of a mailbox's gauge. Its subscriber may have been dropped by now."
  @spec gauged(t(), reference(), MailboxGauge.report(), ways()) :: t()
  def gauged(subscribers, ref, report, ways) do
    case subscribers do
      %{^ref => one} ->
        {credit, gauge} = MailboxGauge.read(one.gauge, ref, report, one.credit)
        advance_one(subscribers, ref, %{one | credit: credit, gauge: gauge}, ways)

      _forgotten ->
        subscribers
    end
  end

  defp advance_one(subscribers, ref, one, {place, dumps?}) do
    {messages, one} = Subscriber.advance(one, place, dumps?)
    tell(one, ref, messages)
    waiting? = Subscriber.waiting?(one, place)
    gauge = MailboxGauge.watch(one.gauge, ref, one.pid, one.credit, waiting?)
    Map.put(subscribers, ref, %{one | gauge: gauge})
  end

  @doc "Notes that the dumps have failed. With `tell?` the subscribers that wait for them are sent the error."
  @spec failed(t(), Error.t(), boolean()) :: t()
  def failed(subscribers, error, tell?) do
    Map.new(subscribers, fn {ref, one} ->
      {ref, one |> told_of(ref, error, tell?) |> Subscriber.detach()}
    end)
  end

  defp told_of(%{phase: :attached} = one, ref, error, true) do
    {messages, one} = Subscriber.aside(one, {:netlink_error, error})
    tell(one, ref, messages)
    one
  end

  defp told_of(one, _ref, _error, _tell?), do: one

  @doc "Whether any subscriber waits for a snapshot."
  @spec waiting?(t()) :: boolean()
  def waiting?(subscribers),
    do: Enum.any?(subscribers, fn {_ref, one} -> one.phase == :waiting end)

  defp tell(%{pid: pid}, ref, messages) do
    Enum.each(messages, fn message ->
      with {:netlink_resync, reason} <- message do
        metadata = %{monitor: self(), subscriber: pid, reason: reason}
        Telemetry.execute([:monitor, :resync], %{count: 1}, metadata)
      end

      Relay.deliver(pid, ref, Tuple.insert_at(message, 1, self()))
    end)
  end

  @doc "Summarizes the subscribers for status reports."
  @spec shown(t()) :: keyword()
  def shown(subscribers) do
    all = Map.values(subscribers)

    [
      subscribers: length(all),
      phases: Enum.frequencies_by(all, &phase(&1.phase)),
      events_kept: Enum.sum(Enum.map(all, & &1.events))
    ]
  end

  defp phase({:owed, _reason, _told?}), do: :owed
  defp phase(phase), do: phase
end
