defmodule NetlinkPort.Server.Sockets do
  @moduledoc false
  # The server's table of sockets: their owners, the `recv`s that wait, and where each arriving item goes. It sends
  # owners their messages and answers waiting `recv`s. It collects the grants, which the server writes to the helper.

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
    # `notify?`: the owner is sent `:netlink_closed` when the socket is closed.
    # `recipient`: as on the board.
    # `late` are the numbers of former owners' exchanges: their answers are dropped.
    defstruct [:socket, :owner, :monitor, :delivery, :resume, :gauge, :recipient] ++
                [held?: false, gone?: false, notify?: true, late: %{}]
  end

  @type t :: %__MODULE__{
          helper: Reference.t(),
          entries: %{Socket.handle() => %Entry{}},
          monitors: %{reference() => {:owner | :waiter, Socket.handle()}},
          grants: [binary()],
          tap: Tap.t() | nil
        }
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
    entry = struct!(Entry, [notify?: notify?, recipient: recipient] ++ fields)
    monitors = Map.put(sockets.monitors, monitor, {:owner, Socket.handle(socket)})
    put(%{sockets | monitors: monitors}, entry)
  end

  defp elsewhere?(owner), do: node(owner) != node()

  # The mailbox of a new owner has not been measured yet, so the first credit is 0.
  defp credit(nil), do: :infinity
  defp credit(_gauge), do: 0

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

  @doc "First half of controlling_process/2: from now on the old owner is sent no message."
  @spec pause(t(), Socket.handle(), pid()) :: {raw(), t()}
  def pause(sockets, handle, caller) do
    with_entry(sockets, handle, fn
      %{owner: ^caller, delivery: delivery} = entry ->
        paused = %{delivery | mode: false}
        entry = %{entry | delivery: paused, resume: entry.resume || delivery.mode, held?: false}
        {{:ok, nil}, put(sockets, entry)}

      _not_the_owner ->
        {{:error, {:info, Errno.number(:eperm), ""}}, sockets}
    end)
  end

  @doc """
  Second half of controlling_process/2: the new owner is sent what has arrived since the first half, but no answers to
  the exchanges with the numbers `late`, which are the old owner's.
  """
  @spec give(t(), Socket.handle(), pid(), LateAnswers.classes()) :: {raw(), t()}
  def give(sockets, handle, owner, late) do
    with_entry(sockets, handle, fn entry ->
      register(sockets, entry, owner)
      monitor = Relay.monitor(owner, if(entry.notify?, do: entry.socket))
      sockets = forget(sockets, entry.monitor, entry.owner)
      sockets = %{sockets | monitors: Map.put(sockets.monitors, monitor, {:owner, handle})}
      # The new owner's mailbox has not been measured yet.
      gauge = entry.gauge && MailboxGauge.new(entry.gauge.bound)
      late = LateAnswers.merge(entry.late, late)
      delivery = Delivery.discard(entry.delivery, &late?(late, &1))
      delivery = %{delivery | credit: credit(gauge), relayed?: elsewhere?(owner)}
      {:ok, effects, delivery} = Delivery.set_active(delivery, [entry.resume || false])
      fields = [owner: owner, monitor: monitor, delivery: delivery, gauge: gauge, resume: nil]
      entry = struct!(entry, [late: late] ++ fields)
      {{:ok, nil}, sockets |> perform(entry, effects) |> put(entry)}
    end)
  end

  defp late?(late, {:data, datagram, metadata}), do: LateAnswers.only?(late, datagram, metadata)
  defp late?(_late, _loss_or_error), do: false

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

  @doc """
  Changes the mode of a socket. If it becomes active, waiting `recv`s are answered with EINVAL.

  Between the halves of controlling_process/2 the socket must deliver nothing to the old owner. The new owner may know
  of the socket by then, and change its mode: that change takes effect in the second half. A change by the old owner
  means that it has given up handing over the socket.
  """
  @spec set_active(t(), Socket.handle(), [NetlinkPort.active() | integer()], pid()) ::
          {raw(), t()}
  def set_active(sockets, handle, changes, caller) do
    with_entry(sockets, handle, fn
      %{resume: resume, owner: owner} = entry when resume != nil and owner != caller ->
        set_active_later(sockets, entry, changes)

      %{held?: true, owner: owner} = entry when owner != caller ->
        if waits?(entry),
          do: set_active_now(sockets, entry, changes),
          else: set_active_later(sockets, %{entry | resume: false}, changes)

      entry ->
        set_active_now(sockets, %{entry | resume: nil, held?: false}, changes)
    end)
  end

  # An owner that waits has nothing in hand.
  defp waits?(%{owner: owner, delivery: delivery}) do
    Enum.any?(Delivery.waiters(delivery), &match?({_, _, {^owner, _}, _}, &1))
  end

  @doc "The owner has nothing in hand any more: a change of the mode that came meanwhile takes effect."
  @spec let_go(t(), Socket.handle(), pid()) :: t()
  def let_go(sockets, handle, caller) do
    case sockets.entries do
      %{^handle => %{held?: true, owner: ^caller, resume: nil} = entry} ->
        put(sockets, %{entry | held?: false})

      %{^handle => %{held?: true, owner: ^caller, resume: resume} = entry} ->
        entry = %{entry | held?: false, resume: nil}
        {_changed, sockets} = set_active_now(sockets, entry, [resume])
        sockets

      _not_held ->
        sockets
    end
  end

  defp set_active_later(sockets, entry, changes) do
    case Delivery.mode(entry.resume, changes) do
      # The second half, given 0, sends the new owner `:netlink_passive` for the count that ended.
      {:ok, false, ended} when ended > 0 -> {{:ok, nil}, put(sockets, %{entry | resume: 0})}
      {:ok, resume, _ended} -> {{:ok, nil}, put(sockets, %{entry | resume: resume})}
      :einval -> {too_many(), sockets}
    end
  end

  defp set_active_now(sockets, entry, changes) do
    case Delivery.set_active(entry.delivery, changes) do
      {:ok, effects, %{mode: false} = delivery} ->
        entry = %{entry | delivery: delivery}
        {{:ok, nil}, sockets |> perform(entry, effects) |> put(entry)}

      {:ok, effects, delivery} ->
        {waiters, delivery} = Delivery.withdraw(delivery, fn _waiter -> true end)
        sockets = Enum.reduce(waiters, sockets, &dismiss(&2, &1, active()))
        entry = %{entry | delivery: delivery, held?: false}
        {{:ok, nil}, sockets |> perform(entry, effects) |> put(entry)}

      :einval ->
        {too_many(), sockets}
    end
  end

  defp too_many, do: {:error, {:setsockopt, Errno.number(:einval), "active"}}

  @doc """
  A caller wants one item within `left` ms. If there is none, the caller waits and is answered later.

  A negative `left` means that the server is late: an item that is there is still handed out. The server has checked
  that the caller still waits, since a datagram for a caller that has given up would be lost.
  """
  @spec recv(t(), Socket.handle(), GenServer.from(), timeout(), hold? :: boolean()) ::
          {raw() | :wait, t()}
  def recv(sockets, handle, {caller, _tag} = from, left, hold?) do
    changed? =
      match?(%{^handle => %{held?: true, resume: resume}} when resume != nil, sockets.entries)

    sockets = let_go(sockets, handle, caller)

    with_entry(sockets, handle, fn
      # A change of the mode that has just taken effect may have sent messages, which come first.
      _entry when hold? and changed? -> {active(), sockets}
      entry -> next(sockets, entry, from, left, hold?)
    end)
  end

  defp next(sockets, entry, {caller, _tag} = from, left, hold?) do
    entry = %{entry | held?: entry.held? or (hold? and entry.owner == caller)}

    case Delivery.demand(entry.delivery) do
      {:item, item, delivery} -> {answer(item), put(sockets, %{entry | delivery: delivery})}
      :empty when left <= 0 -> {timed_out(), sockets}
      :empty -> {:wait, wait(sockets, entry, from, left)}
      :active -> {active(), sockets}
    end
  end

  # The waiting caller is monitored, so that no datagram goes to a process that has died.
  defp wait(sockets, entry, {pid, _tag} = from, left) do
    monitor = Relay.monitor(pid)
    handle = Socket.handle(entry.socket)
    message = {:recv_timeout, handle, monitor}
    timer = if left != :infinity, do: Process.send_after(self(), message, left)
    give_up_at = if timer, do: System.monotonic_time(:millisecond) + left, else: :never
    delivery = Delivery.wait(entry.delivery, {monitor, timer, from, give_up_at})
    monitors = Map.put(sockets.monitors, monitor, {:waiter, handle})
    put(%{sockets | monitors: monitors}, %{entry | delivery: delivery})
  end

  @doc "A waiting `recv` has timed out, or its caller has died."
  @spec withdraw(t(), Socket.handle(), reference()) :: t()
  def withdraw(sockets, handle, monitor) do
    case sockets.entries do
      %{^handle => entry} ->
        {gone, delivery} = Delivery.withdraw(entry.delivery, &match?({^monitor, _, _, _}, &1))
        sockets = put(sockets, %{entry | delivery: delivery})
        Enum.reduce(gone, sockets, &dismiss(&2, &1, timed_out()))

      _closed ->
        sockets
    end
  end

  @doc "The reply to the `recv` of a request that was not sent."
  @spec unsent(term()) :: {:error, {:unsent, term()}}
  def unsent(failure), do: {:error, {:unsent, failure}}

  @doc "The request of a process was not sent: so replies to its waiting `recv`, if there is one."
  @spec refuse(t(), Socket.handle(), pid(), term()) :: {:ok, t()} | :none
  def refuse(sockets, handle, pid, failure) do
    with %{^handle => entry} <- sockets.entries,
         mine? = &match?({_monitor, _timer, {^pid, _tag}, _give_up_at}, &1),
         {[_ | _] = waiters, delivery} <- Delivery.withdraw(entry.delivery, mine?) do
      sockets = put(sockets, %{entry | delivery: delivery})
      {:ok, Enum.reduce(waiters, sockets, &dismiss(&2, &1, unsent(failure)))}
    else
      _nobody_waits -> :none
    end
  end

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

  defp with_entry(sockets, handle, fun) do
    case sockets.entries do
      %{^handle => entry} -> fun.(entry)
      _closed -> {closed(), sockets}
    end
  end

  # Every change of a socket ends here, after its messages were sent: grants and the end of a gone socket follow.
  defp put(sockets, entry) do
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

  defp perform(sockets, entry, effects) do
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

  # Answers a waiting `recv`.
  defp dismiss(sockets, {monitor, timer, {pid, _tag} = from, _give_up_at}, answer) do
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

  defp answer({:data, datagram, metadata}), do: {:ok, {datagram, metadata}}
  defp answer({:overrun, dropped}), do: {:error, Error.new(:recv, :enobufs, dropped: dropped)}
  defp answer({:error, error}), do: {:error, error}

  defp active, do: {:error, {:recv, Errno.number(:einval), ""}}
  defp timed_out, do: {:error, {:recv, Errno.number(:etimedout), ""}}
end
