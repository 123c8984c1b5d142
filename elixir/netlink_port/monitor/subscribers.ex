defmodule NetlinkPort.Monitor.Subscribers do
  @moduledoc false
  # All subscribers of a monitor, by the reference that watches each: sends each what
  # NetlinkPort.Monitor.Subscriber says is to be sent now. Runs in the monitor.

  alias NetlinkPort.{Error, Telemetry}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.MailboxGauge
  alias NetlinkPort.Monitor.Subscriber

  @type t :: %{reference() => Subscriber.t()}
  # Where the monitor is, and whether it has a snapshot to make.
  @type ways :: {Subscriber.place(), dumps? :: boolean()}

  @doc "Adds a process whose mailbox may hold `bound` messages; one that is there already begins anew."
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

  @doc "Changes each; nothing is sent."
  @spec each(t(), (Subscriber.t() -> Subscriber.t())) :: t()
  def each(subscribers, fun), do: Map.new(subscribers, fn {ref, one} -> {ref, fun.(one)} end)

  @doc "Sends whatever can be sent, to each after what `fun` does with it."
  @spec advance(t(), ways(), (Subscriber.t() -> Subscriber.t())) :: t()
  def advance(subscribers, ways, fun) do
    Enum.reduce(subscribers, subscribers, fn {ref, one}, subscribers ->
      advance_one(subscribers, ref, fun.(one), ways)
    end)
  end

  @doc "The gauge of a mailbox has something to say; its subscriber may be forgotten by now."
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

  @doc "The dump that some wait for has failed; `tell?` is whether they are to hear of it."
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

  @doc "Whether one waits for a dump."
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

  @doc "What status reports show of them."
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
