defmodule NetlinkPort.Server.Sockets do
  @moduledoc false
  # The server's table of sockets: who owns each, who waits on it, and what becomes of what arrives.
  # Sends owners their messages and answers those who wait; what the helper is to be told, grants, is
  # collected for the server to write.

  alias NetlinkPort.{Errno, Error, Socket}
  alias NetlinkPort.Capture.Tap
  alias NetlinkPort.Helper.{Protocol, Reference}
  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.{Delivery, MailboxGauge}
  alias NetlinkPort.Telemetry

  defmodule Entry do
    @moduledoc false
    @enforce_keys [:socket, :owner, :monitor, :delivery]
    # `resume` is the mode to go back to, while controlling_process/2 has the socket paused.
    # `gauge` measures the mailbox of an owner that has a bound.
    # `gone?`: the helper has closed it, and what is kept is all that will ever be there.
    # `tell?`: the owner is to be told when it is closed.
    defstruct [:socket, :owner, :monitor, :delivery, :resume, :gauge, gone?: false, tell?: true]
  end

  @type t :: %__MODULE__{
          link: Reference.t(),
          entries: %{Socket.handle() => %Entry{}},
          monitors: %{reference() => {:owner | :waiter, Socket.handle()}},
          grants: [binary()],
          tap: Tap.t() | nil
        }
  @type raw :: {:ok, term()} | {:error, {Error.stage(), integer(), binary()} | Error.t()}

  @enforce_keys [:link]
  defstruct [:link, :tap, entries: %{}, monitors: %{}, grants: []]

  @spec new(Reference.t()) :: t()
  def new(link), do: %__MODULE__{link: link}

  @doc "How many there are."
  @spec count(t()) :: non_neg_integer()
  def count(%__MODULE__{entries: entries}), do: map_size(entries)

  @doc "Whether a handle is that of an open socket."
  @spec open?(t(), Socket.handle()) :: boolean()
  def open?(%__MODULE__{entries: entries}, handle) do
    match?(%{^handle => %{gone?: false}}, entries)
  end

  @doc "Whether a handle is that of an open socket, or of one that is gone with things left to take."
  @spec known?(t(), Socket.handle()) :: boolean()
  def known?(%__MODULE__{entries: entries}, handle), do: is_map_key(entries, handle)

  @doc "The answer for a handle that no socket has."
  @spec closed() :: raw()
  def closed, do: {:error, {:info, Errno.number(:ebadf), ""}}

  @doc "Takes the grants that are due, for the helper."
  @spec take_grants(t()) :: {[binary()], t()}
  def take_grants(%__MODULE__{grants: grants} = sockets), do: {grants, %{sockets | grants: []}}

  ## Coming and going

  @doc "Adds a socket that the helper has opened."
  @spec add(t(), Socket.t(), map()) :: t()
  def add(sockets, socket, options) do
    %{owner: owner, active: active, window: window, max_queue: bound} = options
    tell? = options.closed_message
    Reference.put_socket(sockets.link, socket, if(tell?, do: owner), sockets.tap)
    monitor = Relay.monitor(owner, if(tell?, do: socket))
    gauge = MailboxGauge.new(bound)
    delivery = Delivery.new(active, window, credit(gauge), elsewhere?(owner))
    fields = [socket: socket, owner: owner, monitor: monitor, delivery: delivery, gauge: gauge]
    entry = struct!(Entry, [tell?: tell?] ++ fields)
    monitors = Map.put(sockets.monitors, monitor, {:owner, Socket.handle(socket)})
    put(%{sockets | monitors: monitors}, entry)
  end

  defp elsewhere?(owner), do: node(owner) != node()

  # What may be sent to an owner whose mailbox has not been looked at yet.
  defp credit(nil), do: :infinity
  defp credit(_gauge), do: 0

  @doc "Forgets a socket; those who wait on it are told that it is closed."
  @spec remove(t(), Socket.handle(), :closed | :owner_down | :namespace_gone) :: t()
  def remove(sockets, handle, reason) do
    {entry, entries} = Map.pop!(sockets.entries, handle)
    Reference.delete_socket(sockets.link, handle)
    tell(entry, :close, %{count: 1}, %{reason: reason})
    sockets = forget(%{sockets | entries: entries}, entry.monitor, entry.owner)
    Enum.reduce(Delivery.waiters(entry.delivery), sockets, &dismiss(&2, &1, closed()))
  end

  @doc """
  The helper has closed a socket, since its namespace is gone. Its owner is told when what is kept has
  been taken: at once, unless the owner has left something.
  """
  @spec gone(t(), Socket.handle()) :: t()
  def gone(sockets, handle) do
    case sockets.entries do
      %{^handle => entry} ->
        Reference.retire_socket(sockets.link, entry.socket, told_of_end(entry, entry.owner))
        put(sockets, %{entry | gone?: true})

      # Closed meanwhile.
      _closed ->
        sockets
    end
  end

  # What ends between the two is told again by the witness, rather than by nobody.
  defp finish(sockets, %{owner: owner, socket: socket, monitor: monitor, tell?: tell?}) do
    if tell?, do: Relay.deliver(owner, monitor, {:netlink_closed, socket, :namespace_gone})
    remove(sockets, Socket.handle(socket), :namespace_gone)
  end

  defp tell(%{socket: socket, owner: owner}, event, measurements, metadata) do
    metadata = Map.merge(metadata, %{server: self(), socket: socket, owner: owner})
    Telemetry.execute([:socket, event], measurements, metadata)
  end

  @doc "What a monitor was for."
  @spec watched(t(), reference()) :: {:owner | :waiter, Socket.handle()} | nil
  def watched(%__MODULE__{monitors: monitors}, monitor), do: Map.get(monitors, monitor)

  @doc "First half of controlling_process/2: the old owner is sent nothing more."
  @spec pause(t(), Socket.handle(), pid()) :: {raw(), t()}
  def pause(sockets, handle, caller) do
    with_entry(sockets, handle, fn
      %{owner: ^caller, delivery: delivery} = entry ->
        paused = %{delivery | mode: false}
        entry = %{entry | delivery: paused, resume: entry.resume || delivery.mode}
        {{:ok, nil}, put(sockets, entry)}

      _not_the_owner ->
        {{:error, {:info, Errno.number(:eperm), ""}}, sockets}
    end)
  end

  @doc "Second half: the new owner gets what has come since."
  @spec give(t(), Socket.handle(), pid()) :: {raw(), t()}
  def give(sockets, handle, owner) do
    with_entry(sockets, handle, fn entry ->
      register(sockets, entry, owner)
      monitor = Relay.monitor(owner, if(entry.tell?, do: entry.socket))
      sockets = forget(sockets, entry.monitor, entry.owner)
      sockets = %{sockets | monitors: Map.put(sockets.monitors, monitor, {:owner, handle})}
      # The new owner's mailbox has not been looked at yet.
      gauge = entry.gauge && MailboxGauge.new(entry.gauge.bound)
      delivery = %{entry.delivery | credit: credit(gauge), relayed?: elsewhere?(owner)}
      {:ok, effects, delivery} = Delivery.set_active(delivery, [entry.resume || false])
      fields = [owner: owner, monitor: monitor, delivery: delivery, gauge: gauge, resume: nil]
      entry = struct!(entry, fields)
      {{:ok, nil}, sockets |> perform(entry, effects) |> put(entry)}
    end)
  end

  defp register(sockets, %{gone?: true, socket: socket} = entry, owner) do
    Reference.retire_socket(sockets.link, socket, told_of_end(entry, owner))
  end

  defp register(sockets, %{socket: socket} = entry, owner) do
    Reference.put_socket(sockets.link, socket, told_of_end(entry, owner), sockets.tap)
  end

  defp told_of_end(%{tell?: tell?}, owner), do: if(tell?, do: owner)

  ## What passes

  @doc "From now on what passes goes to a tap as well, or to none."
  @spec tap(t(), Tap.t() | nil) :: t()
  def tap(sockets, tap) do
    sockets = %{sockets | tap: tap}
    for {_handle, entry} <- sockets.entries, do: register(sockets, entry, entry.owner)
    sockets
  end

  @doc "The server sends a datagram, on behalf of another node."
  @spec sent(t(), Socket.handle(), iodata()) :: :ok
  def sent(sockets, handle, datagram), do: pass(sockets, :out, handle, datagram)

  defp pass(%{tap: tap, entries: entries}, direction, handle, datagram) do
    case entries do
      %{^handle => entry} -> Tap.pass(tap, direction, entry.socket, datagram)
      _closed -> :ok
    end
  end

  ## What arrives, and who takes it

  @doc "Something has arrived for a socket, which may be closed by now."
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
        tell(entry, :overrun, %{dropped: dropped}, %{})

      {%{^handle => entry}, {:error, error}} ->
        tell(entry, :error, %{count: 1}, %{error: error})

      {_closed, _item} ->
        :ok
    end

    take_in(sockets, handle, item)
  end

  defp take_in(sockets, handle, item) do
    case sockets.entries do
      # The usual case, made short: nothing is kept, nobody waits, nothing is counted or relayed.
      %{
        ^handle =>
          %{delivery: %{mode: true, credit: :infinity, relayed?: false}, gone?: false} = entry
      } ->
        send(entry.owner, message(entry.socket, item))
        put(sockets, %{entry | delivery: Delivery.take(entry.delivery, item)})

      %{^handle => %{gone?: false} = entry} ->
        {gone, delivery} = Delivery.skip(entry.delivery, &stale?/1)
        {effects, delivery} = Delivery.arrive(delivery, item)
        sockets = Enum.reduce(gone, sockets, &dismiss(&2, &1, timed_out()))
        sockets |> perform(entry, effects) |> put(%{entry | delivery: delivery})

      _closed ->
        sockets
    end
  end

  # A caller that has died, or whose time is up: what went to it would be lost. Its timer, or its
  # monitor, has fired already or is about to, but may lie behind the datagram in the mailbox.
  defp stale?({_monitor, _timer, {pid, _tag}, give_up_at}) do
    (node(pid) == node() and not Process.alive?(pid)) or
      (give_up_at != :never and System.monotonic_time(:millisecond) > give_up_at)
  end

  @doc "What was delivered to an owner on another node has left."
  @spec relayed(t(), Socket.handle(), pos_integer()) :: t()
  def relayed(sockets, handle, cost) do
    case sockets.entries do
      %{^handle => entry} ->
        put(sockets, %{entry | delivery: Delivery.relayed(entry.delivery, cost)})

      _closed ->
        sockets
    end
  end

  @doc "The gauge of an owner's mailbox has something to say."
  @spec gauged(t(), Socket.handle(), MailboxGauge.report()) :: t()
  def gauged(sockets, handle, report) do
    case sockets.entries do
      %{^handle => %{gauge: gauge} = entry} when gauge != nil ->
        if told_of?(report, entry.owner),
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

  # A former owner's mailbox says nothing.
  defp told_of?({:length, owner, _length}, asked), do: owner == asked
  defp told_of?(:rested, _owner), do: true

  @doc """
  A process changes the mode of a socket; whoever waits on one that becomes active is told.

  Between the halves of controlling_process/2 nothing may go to the old owner, though the new one may
  have heard from it and want more: then it counts from the second half on. The old owner itself can
  only ask for it if it has given up handing over.
  """
  @spec set_active(t(), Socket.handle(), [NetlinkPort.active() | integer()], pid()) ::
          {raw(), t()}
  def set_active(sockets, handle, changes, caller) do
    with_entry(sockets, handle, fn
      %{resume: resume, owner: owner} = entry when resume != nil and owner != caller ->
        set_active_later(sockets, entry, changes)

      entry ->
        set_active_now(sockets, %{entry | resume: nil}, changes)
    end)
  end

  defp set_active_later(sockets, entry, changes) do
    case Delivery.mode(entry.resume, changes) do
      # 0: the new owner is told of a count that has ended.
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
        entry = %{entry | delivery: delivery}
        {{:ok, nil}, sockets |> perform(entry, effects) |> put(entry)}

      :einval ->
        {too_many(), sockets}
    end
  end

  defp too_many, do: {:error, {:setsockopt, Errno.number(:einval), "active"}}

  @doc """
  Someone wants one item within `left` ms. Without one there they wait, and are answered later.

  `left` is negative where the server is late: what is there is still handed out. The server has made
  sure that the caller still waits, since a datagram handed to one that has given up would be lost.
  """
  @spec recv(t(), Socket.handle(), GenServer.from(), timeout()) :: {raw() | :wait, t()}
  def recv(sockets, handle, from, left) do
    with_entry(sockets, handle, fn entry ->
      case Delivery.demand(entry.delivery) do
        {:item, item, delivery} -> {answer(item), put(sockets, %{entry | delivery: delivery})}
        :empty when left <= 0 -> {timed_out(), sockets}
        :empty -> {:wait, wait(sockets, entry, from, left)}
        :active -> {active(), sockets}
      end
    end)
  end

  # Who waits is watched, so that no datagram goes to a process that has died.
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

  @doc "One who waits has waited long enough, or has died."
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

  @doc "What is known of a socket in the VM."
  @spec info(t(), Socket.handle()) :: raw()
  def info(sockets, handle) do
    {told, _sockets} = with_entry(sockets, handle, &{{:ok, told(&1)}, sockets})
    told
  end

  @doc "The same of each socket."
  @spec list(t()) :: [map()]
  def list(sockets), do: for({_handle, entry} <- sockets.entries, do: told(entry))

  defp told(%{owner: owner, delivery: delivery, socket: socket}) do
    %{
      socket: socket,
      owner: owner,
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

  # Every change of a socket comes through here, behind what it had to say.
  defp put(sockets, entry) do
    handle = Socket.handle(entry.socket)
    {sockets, entry} = grant(sockets, handle, watch(entry, handle))
    sockets = %{sockets | entries: Map.put(sockets.entries, handle, entry)}

    if entry.gone? and not Delivery.kept?(entry.delivery),
      do: finish(sockets, entry),
      else: sockets
  end

  # What is sent in another mode than `true` has a bound of its own.
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

  defp deliver(%{owner: owner, monitor: monitor}, message, charge) do
    Relay.deliver(owner, monitor, message, charge)
  end

  # What the report of a relay says of a datagram.
  defp charge(%{socket: socket}, {:data, datagram, _metadata}) do
    {Socket.handle(socket), Protocol.charge(byte_size(datagram))}
  end

  defp charge(_entry, _item), do: nil

  # Answers one who waits.
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
