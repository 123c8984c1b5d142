defmodule NetlinkPort.Server.Sockets do
  @moduledoc false
  # The server's table of sockets, and where each arriving item goes: it sends owners their messages and answers waiting
  # `recv`s. It collects the grants, which the server writes to the helper. NetlinkPort.Server.Ownership changes owners
  # and modes, and NetlinkPort.Server.Recv takes items.

  alias NetlinkPort.{Errno, Error, Socket}
  alias NetlinkPort.Capture.Tap
  alias NetlinkPort.Helper.{Protocol, Reference}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.{Delivery, LateAnswers, MailboxGauge}
  alias NetlinkPort.Telemetry

  defmodule Entry do
    @moduledoc false
    @enforce_keys [:socket, :owner, :monitor, :delivery]
    # `resume` is the mode to return to after controlling_process/2, while it has paused the socket, or after a hold.
    # `held?`: the owner has a datagram in hand, and hands it on to its own mailbox. Until it lets go, it is sent nothing.
    # `gauge` measures the mailbox of an owner with `max_queue:`.
    # `gone?`: the helper has closed the socket, and only the kept items are left to take.
    # `notify?`: the owner is sent `:netlink_closed` when the socket ends. `tell_close?`: also when another process has
    # closed it.
    # `recipient`: as on the board.
    # `late` are the numbers of exchanges that were given up, also those of former owners: their answers are dropped.
    defstruct [:socket, :owner, :monitor, :delivery, :resume, :gauge, :recipient] ++
                [held?: false, gone?: false, notify?: true, tell_close?: false, late: %{}]
  end

  @type t :: %__MODULE__{
          helper: Reference.t(),
          entries: %{Socket.handle() => %Entry{}},
          monitors: %{reference() => {:owner | :waiter, Socket.handle()}},
          grants: [binary()],
          tap: Tap.t() | nil
        }
  @typedoc "A waiting `recv`: its monitor, its timer, its caller, and when that gives up."
  @type waiter :: {reference(), reference() | nil, GenServer.from(), integer() | :never}
  @type raw :: {:ok, term()} | {:error, {Error.stage(), integer(), binary()} | Error.t()}

  @enforce_keys [:helper]
  defstruct [:helper, :tap, entries: %{}, monitors: %{}, grants: []]

  @spec new(Reference.t()) :: t()
  def new(helper), do: %__MODULE__{helper: helper}

  @doc "How many sockets there are."
  @spec count(t()) :: non_neg_integer()
  def count(%__MODULE__{entries: entries}), do: map_size(entries)

  @doc "Whether a handle is that of an open socket."
  @spec open?(t(), Socket.handle()) :: boolean()
  def open?(%__MODULE__{entries: entries}, handle) do
    match?(%{^handle => %{gone?: false}}, entries)
  end

  @doc "Whether a socket is on the table: open, or closed by the helper with kept items left."
  @spec known?(t(), Socket.handle()) :: boolean()
  def known?(%__MODULE__{entries: entries}, handle), do: is_map_key(entries, handle)

  @doc "The error for a handle that no socket has."
  @spec closed() :: raw()
  def closed, do: {:error, {:info, Errno.number(:ebadf), ""}}

  @doc "Takes the collected grants, to be written to the helper."
  @spec take_grants(t()) :: {[binary()], t()}
  def take_grants(%__MODULE__{grants: grants} = sockets), do: {grants, %{sockets | grants: []}}

  ## Coming and going

  @doc "Adds a socket that the helper has opened."
  @spec add(t(), Socket.t(), map()) :: t()
  def add(sockets, socket, options) do
    %{owner: owner, active: active, window: window, max_queue: bound} = options
    notify? = options.closed_message
    recipient = if active != false, do: owner
    shown = shown(sockets, recipient)
    Reference.put_socket(sockets.helper, socket, if(notify?, do: owner), shown)
    monitor = Relay.monitor(owner, if(notify?, do: socket))
    gauge = MailboxGauge.new(bound)
    delivery = Delivery.new(active, window, credit(gauge), elsewhere?(owner))
    fields = [socket: socket, owner: owner, monitor: monitor, delivery: delivery, gauge: gauge]
    tell_close? = Map.get(options, :tell_close?, false)
    told = [notify?: notify?, tell_close?: tell_close?]
    entry = struct!(Entry, [recipient: recipient] ++ told ++ fields)
    monitors = Map.put(sockets.monitors, monitor, {:owner, Socket.handle(socket)})
    put(%{sockets | monitors: monitors}, entry)
  end

  defp elsewhere?(owner), do: node(owner) != node()

  defp credit(nil), do: :infinity
  defp credit(_gauge), do: 0

  @doc "A process closes a socket. An owner that wants to know is told, unless it is that process."
  @spec tell_close(t(), Socket.handle(), pid()) :: :ok
  def tell_close(sockets, handle, closer) do
    case sockets.entries do
      %{^handle => %{tell_close?: true, owner: owner} = entry} when owner != closer ->
        Relay.deliver(owner, entry.monitor, {:netlink_closed, entry.socket, :closed})

      _not_told ->
        :ok
    end
  end

  @doc "Forgets a socket. Waiting `recv`s are answered with EBADF."
  @spec remove(t(), Socket.handle(), :closed | :owner_down | :namespace_gone) :: t()
  def remove(sockets, handle, reason) do
    {entry, entries} = Map.pop!(sockets.entries, handle)
    Reference.delete_socket(sockets.helper, handle)
    emit(entry, :close, %{count: 1}, %{reason: reason})
    sockets = forget(%{sockets | entries: entries}, entry.monitor, entry.owner)
    Enum.reduce(Delivery.waiters(entry.delivery), sockets, &dismiss(&2, &1, closed()))
  end

  @doc """
  The helper has closed a socket because its namespace is gone. Its owner is sent `:netlink_closed` after the kept
  items have been taken; at once if there are none.
  """
  @spec gone(t(), Socket.handle()) :: t()
  def gone(sockets, handle) do
    case sockets.entries do
      %{^handle => entry} ->
        Reference.retire_socket(sockets.helper, entry.socket, notified(entry, entry.owner))
        put(sockets, %{entry | gone?: true})

      # The owner has closed it meanwhile.
      _closed ->
        sockets
    end
  end

  # If the server ends between the two calls the notifier notifies the owner again: better twice than never.
  defp finish(sockets, %{owner: owner, socket: socket, monitor: monitor, notify?: notify?}) do
    if notify?, do: Relay.deliver(owner, monitor, {:netlink_closed, socket, :namespace_gone})
    remove(sockets, Socket.handle(socket), :namespace_gone)
  end

  defp emit(%{socket: socket, owner: owner}, event, measurements, metadata) do
    metadata = Map.merge(metadata, %{server: self(), socket: socket, owner: owner})
    Telemetry.execute([:socket, event], measurements, metadata)
  end

  @doc "Which socket a monitor belongs to, and whether it is for the owner or for a waiting `recv`."
  @spec watched(t(), reference()) :: {:owner | :waiter, Socket.handle()} | nil
  def watched(%__MODULE__{monitors: monitors}, monitor), do: Map.get(monitors, monitor)

  @doc "Makes a process the owner of an entry. Its mailbox has not been measured yet, so its first credit is 0."
  @spec owned_by(t(), %Entry{}, pid()) :: {t(), %Entry{}}
  def owned_by(sockets, entry, owner) do
    register(sockets, entry, owner)
    monitor = Relay.monitor(owner, if(entry.notify?, do: entry.socket))
    sockets = forget(sockets, entry.monitor, entry.owner)
    monitors = Map.put(sockets.monitors, monitor, {:owner, Socket.handle(entry.socket)})
    gauge = entry.gauge && MailboxGauge.new(entry.gauge.bound)
    delivery = %{entry.delivery | credit: credit(gauge), relayed?: elsewhere?(owner)}
    entry = %{entry | owner: owner, monitor: monitor, delivery: delivery, gauge: gauge}
    {%{sockets | monitors: monitors}, entry}
  end

  defp register(sockets, %{gone?: true, socket: socket} = entry, owner) do
    Reference.retire_socket(sockets.helper, socket, notified(entry, owner))
  end

  defp register(sockets, %{socket: socket} = entry, owner) do
    shown = shown(sockets, entry.recipient)
    Reference.put_socket(sockets.helper, socket, notified(entry, owner), shown)
  end

  defp notified(%{notify?: notify?}, owner), do: if(notify?, do: owner)

  ## What passes

  @doc "Copies all datagrams to a tap from now on; `nil` ends that."
  @spec tap(t(), Tap.t() | nil) :: t()
  def tap(sockets, tap) do
    sockets = %{sockets | tap: tap}
    for {_handle, entry} <- sockets.entries, do: register(sockets, entry, entry.owner)
    sockets
  end

  @doc "The server sends a datagram on behalf of a process on another node."
  @spec sent(t(), Socket.handle(), iodata()) :: :ok
  def sent(sockets, handle, datagram), do: pass(sockets, :out, handle, datagram)

  defp pass(%{tap: tap, entries: entries}, direction, handle, datagram) do
    case entries do
      %{^handle => entry} -> Tap.pass(tap, direction, entry.socket, datagram)
      _closed -> :ok
    end
  end

  ## What arrives, and who takes it

  @doc "An item has arrived for a socket, which may be closed by now."
  @spec arrive(t(), Socket.handle(), Delivery.item()) :: t()
  def arrive(%__MODULE__{tap: tap} = sockets, handle, {:data, datagram, _metadata} = item)
      when tap != nil do
    pass(sockets, :in, handle, datagram)
    take_in(sockets, handle, item)
  end

  def arrive(sockets, handle, {_data, _datagram, _metadata} = item) do
    take_in(sockets, handle, item)
  end

  def arrive(%{entries: entries} = sockets, handle, item) do
    case {entries, item} do
      {%{^handle => entry}, {:overrun, dropped}} ->
        emit(entry, :overrun, %{dropped: dropped}, %{})

      {%{^handle => entry}, {:error, error}} ->
        emit(entry, :error, %{count: 1}, %{error: error})

      {_closed, _item} ->
        :ok
    end

    take_in(sockets, handle, item)
  end

  defp take_in(sockets, handle, item) when is_integer(handle) do
    case sockets.entries do
      # The fast path for the usual case: no kept items, no waiting `recv`, no count, no credit, no relay.
      %{
        ^handle =>
          %{delivery: %{mode: true, credit: :infinity, relayed?: false}, gone?: false, late: late} =
              entry
      }
      when late == %{} ->
        send(entry.owner, message(entry.socket, item))
        put(sockets, %{entry | delivery: Delivery.take(entry.delivery, item)})

      %{^handle => %{gone?: false} = entry} ->
        if late?(entry.late, item),
          do: put(sockets, %{entry | delivery: Delivery.take(entry.delivery, item)}),
          else: take_in(sockets, entry, item)

      _closed ->
        sockets
    end
  end

  defp take_in(sockets, %Entry{} = entry, item) do
    {gone, delivery} = Delivery.skip(entry.delivery, &stale?/1)
    {effects, delivery} = Delivery.arrive(delivery, item)
    sockets = Enum.reduce(gone, sockets, &dismiss(&2, &1, timed_out()))
    sockets |> perform(entry, effects) |> put(%{entry | delivery: delivery})
  end

  # A datagram for a caller that has died or timed out would be lost. The message of its monitor or timer may lie
  # behind the datagram in the mailbox.
  defp stale?({_monitor, _timer, {pid, _tag}, give_up_at}) do
    (node(pid) == node() and not Process.alive?(pid)) or
      (give_up_at != :never and System.monotonic_time(:millisecond) > give_up_at)
  end

  @doc "Drops the answers to exchanges that were given up, from now on, and those that are kept."
  @spec drop_answers(t(), Socket.handle(), LateAnswers.classes()) :: t()
  def drop_answers(sockets, handle, late) do
    case sockets.entries do
      %{^handle => entry} -> put(sockets, without_answers(entry, late))
      _closed -> sockets
    end
  end

  @doc "The entry of a socket without the kept answers to exchanges that were given up. Later ones are dropped."
  @spec without_answers(%Entry{}, LateAnswers.classes()) :: %Entry{}
  def without_answers(entry, late) do
    late = LateAnswers.merge(entry.late, late)
    %{entry | delivery: Delivery.discard(entry.delivery, &late?(late, &1)), late: late}
  end

  @doc "Whether an item is nothing but late answers."
  @spec late?(LateAnswers.classes(), Delivery.item()) :: boolean()
  def late?(late, {:data, datagram, metadata}), do: LateAnswers.only?(late, datagram, metadata)
  def late?(_late, _loss_or_error), do: false

  @doc "A datagram of `cost`, delivered to an owner on another node, has left this node."
  @spec relayed(t(), Socket.handle(), pos_integer()) :: t()
  def relayed(sockets, handle, cost) do
    case sockets.entries do
      %{^handle => entry} ->
        put(sockets, %{entry | delivery: Delivery.relayed(entry.delivery, cost)})

      _closed ->
        sockets
    end
  end

  @doc "The gauge of the owner's mailbox has sent a report."
  @spec gauged(t(), Socket.handle(), MailboxGauge.report()) :: t()
  def gauged(sockets, handle, report) do
    case sockets.entries do
      %{^handle => %{gauge: gauge} = entry} when gauge != nil ->
        if about?(report, entry.owner),
          do: gauged(sockets, entry, handle, report),
          else: sockets

      _closed ->
        sockets
    end
  end

  defp gauged(sockets, %{delivery: delivery} = entry, handle, report) do
    {credit, gauge} = MailboxGauge.read(entry.gauge, handle, report, delivery.credit)
    {effects, delivery} = Delivery.credit(delivery, credit)
    entry = %{entry | gauge: gauge, delivery: delivery}
    sockets |> perform(entry, effects) |> put(entry)
  end

  # A report on the mailbox of a former owner is ignored.
  defp about?({:length, owner, _length}, asked), do: owner == asked
  defp about?(:rested, _owner), do: true

  @doc "What the server knows of a socket."
  @spec info(t(), Socket.handle()) :: raw()
  def info(sockets, handle) do
    {info, _sockets} = with_entry(sockets, handle, &{{:ok, entry_info(&1)}, sockets})
    info
  end

  @doc "As `info/2`, for each socket."
  @spec list(t()) :: [map()]
  def list(sockets), do: for({_handle, entry} <- sockets.entries, do: entry_info(entry))

  defp entry_info(%{owner: owner, delivery: delivery, socket: socket} = entry) do
    %{
      socket: socket,
      owner: owner,
      closed_message: entry.notify?,
      active: delivery.mode,
      kept: Delivery.kept(delivery),
      window: delivery.window
    }
  end

  ## For Ownership and Recv

  @doc "Returns what `fun` makes of the entry of a socket, or the error of a closed one."
  @spec with_entry(t(), Socket.handle(), (%Entry{} -> {result, t()})) :: {result | raw(), t()}
        when result: term()
  def with_entry(sockets, handle, fun) do
    case sockets.entries do
      %{^handle => entry} -> fun.(entry)
      _closed -> {closed(), sockets}
    end
  end

  @doc "Every change of a socket ends here, after its messages were sent: grants and the end of a gone socket follow."
  @spec put(t(), %Entry{}) :: t()
  def put(sockets, entry) do
    handle = Socket.handle(entry.socket)
    {sockets, entry} = grant(sockets, handle, show(sockets, watch(entry, handle), handle))
    sockets = %{sockets | entries: Map.put(sockets.entries, handle, entry)}

    if entry.gone? and not Delivery.kept?(entry.delivery),
      do: finish(sockets, entry),
      else: sockets
  end

  # Requests look at the board to know where to wait for their answers.
  defp show(_sockets, %{delivery: %{mode: false}, recipient: nil} = entry, _handle), do: entry

  defp show(_sockets, %{delivery: %{mode: mode}, owner: owner, recipient: owner} = entry, _handle)
       when mode != false,
       do: entry

  defp show(sockets, %{delivery: %{mode: mode}} = entry, handle) do
    recipient = if mode != false, do: entry.owner
    _there? = Reference.update_socket(sockets.helper, handle, shown(sockets, recipient))
    %{entry | recipient: recipient}
  end

  defp shown(sockets, recipient), do: {sockets.tap, recipient, System.unique_integer()}

  # Credit bounds only mode `true`: `:once` and counts bound themselves.
  defp watch(%{gauge: gauge, delivery: %{mode: true} = delivery} = entry, handle)
       when gauge != nil do
    waiting? = Delivery.kept?(delivery)
    %{entry | gauge: MailboxGauge.watch(gauge, handle, entry.owner, delivery.credit, waiting?)}
  end

  defp watch(entry, _handle), do: entry

  defp grant(sockets, handle, entry) do
    case Delivery.grant(entry.delivery) do
      {nil, _same} ->
        {sockets, entry}

      {due, delivery} ->
        grants = [Protocol.grant(handle, due) | sockets.grants]
        {%{sockets | grants: grants}, %{entry | delivery: delivery}}
    end
  end

  @doc "Sends the messages and the answers that a change of the delivery has led to."
  @spec perform(t(), %Entry{}, [Delivery.effect()]) :: t()
  def perform(sockets, entry, effects) do
    _there? = show_sent(sockets, entry, effects)

    Enum.reduce(effects, sockets, fn
      {:deliver, item}, sockets ->
        deliver(entry, message(entry.socket, item), charge(entry, item))
        sockets

      :passive, sockets ->
        deliver(entry, {:netlink_passive, entry.socket}, nil)
        sockets

      {:answer, waiter, item}, sockets ->
        dismiss(sockets, waiter, answer(item))
    end)
  end

  # The owner's requests look at the board to know whether datagrams may be in its mailbox. `:once` and a count may end
  # with what the server kept, so that the socket is passive before and after.
  defp show_sent(sockets, %{recipient: nil, socket: socket}, effects) do
    if Enum.any?(effects, &(not match?({:answer, _waiter, _item}, &1))),
      do: Reference.update_socket(sockets.helper, Socket.handle(socket), shown(sockets, nil))
  end

  defp show_sent(_sockets, _entry, _effects), do: nil

  defp deliver(%{owner: owner, monitor: monitor}, message, charge) do
    Relay.deliver(owner, monitor, message, charge)
  end

  # The relay names this handle and cost in its report when the datagram has left.
  defp charge(%{socket: socket}, {:data, datagram, _metadata}) do
    {Socket.handle(socket), Protocol.charge(byte_size(datagram))}
  end

  defp charge(_entry, _item), do: nil

  @doc "Answers a waiting `recv`."
  @spec dismiss(t(), waiter(), term()) :: t()
  def dismiss(sockets, {monitor, timer, {pid, _tag} = from, _give_up_at}, answer) do
    _left = timer && Process.cancel_timer(timer, async: true, info: false)
    Relay.reply(from, answer)
    forget(sockets, monitor, pid)
  end

  defp forget(sockets, monitor, pid) do
    Relay.demonitor(monitor, pid)
    %{sockets | monitors: Map.delete(sockets.monitors, monitor)}
  end

  defp message(socket, {:data, datagram, nil}), do: {:netlink, socket, datagram}
  defp message(socket, {:data, datagram, metadata}), do: {:netlink, socket, datagram, metadata}
  defp message(socket, {:overrun, dropped}), do: {:netlink_overrun, socket, dropped}
  defp message(socket, {:error, error}), do: {:netlink_error, socket, error}

  @doc "The answer that an item is to a `recv`."
  @spec answer(Delivery.item()) :: raw()
  def answer({:data, datagram, metadata}), do: {:ok, {datagram, metadata}}
  def answer({:overrun, dropped}), do: {:error, Error.new(:recv, :enobufs, dropped: dropped)}
  def answer({:error, error}), do: {:error, error}

  @doc "The error for a `recv` on an active socket."
  @spec active :: raw()
  def active, do: {:error, {:recv, Errno.number(:einval), ""}}

  @doc "The error for a `recv` that nothing has answered in time."
  @spec timed_out :: raw()
  def timed_out, do: {:error, {:recv, Errno.number(:etimedout), ""}}
end
