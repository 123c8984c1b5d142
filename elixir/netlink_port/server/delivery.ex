defmodule NetlinkPort.Server.Delivery do
  @moduledoc false
  # What one socket does with an item that arrives: deliver it to the owner, hand it to a waiting `recv`, or keep it,
  # as inet:setopts/2 defines `active`. The window follows from this: the helper may send as many bytes as have been
  # taken, plus the window. Pure functions.
  #
  # With `active: true` and a bound on the owner's mailbox (`max_queue:`) there is credit: the number of messages that
  # the owner may still be sent before NetlinkPort.Server.MailboxGauge has measured its mailbox again.
  #
  # A datagram for an owner on another node counts as taken when it has left this node (NetlinkPort.Nodes.Relay), not
  # when it is delivered.
  #
  # Invariants: items leave in the order in which they came. While an item is kept, no `recv` waits. The kept items
  # never cost more than the window plus one datagram. The error of a receive costs as an empty datagram does; that of a
  # send costs nothing.

  alias NetlinkPort.Helper.Protocol
  alias NetlinkPort.Server.Waiters

  # At most this many errors are kept for a passive owner. Later ones are dropped.
  @max_errors 64

  @type item ::
          {:data, binary(), map() | nil}
          | {:overrun, non_neg_integer()}
          | {:error, NetlinkPort.Error.t()}
  @type waiter :: Waiters.waiter()
  @type credit :: non_neg_integer() | :infinity
  @type effect :: {:deliver, item()} | :passive | {:answer, waiter(), item()}

  @type t :: %__MODULE__{
          mode: NetlinkPort.active(),
          kept: :queue.queue(item()),
          errors: non_neg_integer(),
          waiters: Waiters.t(),
          window: pos_integer(),
          taken: non_neg_integer(),
          granted: non_neg_integer(),
          credit: credit(),
          relayed?: boolean()
        }

  @enforce_keys [:mode, :window, :granted]
  defstruct [
    :mode,
    :window,
    :granted,
    kept: :queue.new(),
    errors: 0,
    waiters: %Waiters{},
    taken: 0,
    credit: :infinity,
    relayed?: false
  ]

  @doc "A new socket's state."
  @spec new(NetlinkPort.active(), pos_integer(), credit(), boolean()) :: t()
  def new(mode, window, credit \\ :infinity, relayed? \\ false) do
    %__MODULE__{mode: mode, window: window, granted: window, credit: credit, relayed?: relayed?}
  end

  @doc "An item has arrived."
  @spec arrive(t(), item()) :: {[effect()], t()}
  def arrive(state, item) do
    case {state.mode, Waiters.first(state.waiters)} do
      {true, _nobody} when state.credit == 0 ->
        {[], keep(state, item)}

      {false, {:ok, key, waiter}} ->
        {[^waiter], state} = withdraw(state, key)
        {[{:answer, waiter, item}], take(state, item)}

      {false, :empty} ->
        {[], keep(state, item)}

      {_active, _waiters} ->
        deliver(state, item)
    end
  end

  @doc "An item was handed on: its bytes count as taken, and open the window again."
  @spec take(t(), item()) :: t()
  def take(state, item), do: %{state | taken: state.taken + cost(item)}

  defp cost({:data, datagram, _metadata}), do: Protocol.charge(byte_size(datagram))
  defp cost({:error, %{stage: :recv}}), do: Protocol.charge(0)
  defp cost(_item), do: 0

  @doc "A datagram of `cost`, delivered to another node, has left this node."
  @spec relayed(t(), pos_integer()) :: t()
  def relayed(state, cost), do: %{state | taken: state.taken + cost}

  @doc "Sets how many more messages the owner may be sent. Kept items that had no credit go first."
  @spec credit(t(), credit()) :: {[effect()], t()}
  def credit(state, credit) do
    {:ok, effects, state} = drain(%{state | credit: credit}, [])
    {effects, state}
  end

  @doc "A `recv` asks for one item. Returns the item, `:empty`, or `:active` on an active socket."
  @spec demand(t()) :: {:item, item(), t()} | :empty | :active
  def demand(%{mode: mode}) when mode != false, do: :active

  def demand(state) do
    case pop(state) do
      {nil, _state} -> :empty
      {item, state} -> {:item, item, take(state, item)}
    end
  end

  @doc """
  Queues a `recv` of `caller`, known by `key`, behind those that wait. `demand/1` has returned `:empty`.
  """
  @spec wait(t(), Waiters.key(), pid(), waiter()) :: t()
  def wait(state, key, caller, waiter),
    do: %{state | waiters: Waiters.add(state.waiters, key, caller, waiter)}

  @doc "Removes the waiting `recv` with a key, and returns it."
  @spec withdraw(t(), Waiters.key()) :: {[waiter()], t()}
  def withdraw(state, key) do
    case Waiters.remove(state.waiters, key) do
      {:ok, waiter, waiters} -> {[waiter], %{state | waiters: waiters}}
      :none -> {[], state}
    end
  end

  @doc "Removes the waiting `recv`s of a caller, and returns them."
  @spec withdraw_of(t(), pid()) :: {[waiter()], t()}
  def withdraw_of(state, caller) do
    {gone, waiters} = Waiters.remove_of(state.waiters, caller)
    {gone, %{state | waiters: waiters}}
  end

  @doc "Removes all waiting `recv`s, and returns them."
  @spec withdraw_all(t()) :: {[waiter()], t()}
  def withdraw_all(state), do: {waiters(state), %{state | waiters: Waiters.new()}}

  @doc "Removes waiting `recv`s from the head of the queue while `stale?` is true, and returns them."
  @spec skip(t(), (waiter() -> boolean())) :: {[waiter()], t()}
  def skip(state, stale?), do: skip(state, stale?, [])

  defp skip(state, stale?, gone) do
    with {:ok, key, waiter} <- Waiters.first(state.waiters), true <- stale?.(waiter) do
      {[^waiter], state} = withdraw(state, key)
      skip(state, stale?, [waiter | gone])
    else
      _none_or_not_stale -> {Enum.reverse(gone), state}
    end
  end

  @doc "The `recv`s that wait."
  @spec waiters(t()) :: [waiter()]
  def waiters(state), do: Waiters.to_list(state.waiters)

  @doc "Whether a `recv` of a caller waits."
  @spec waits?(t(), pid()) :: boolean()
  def waits?(state, caller), do: Waiters.waits?(state.waiters, caller)

  @doc """
  The mode after a list of changes, and how many of the changes ended a count. A count is added to the present count.
  If the sum exceeds 32767, no change is made.
  """
  @spec mode(NetlinkPort.active() | 0, [NetlinkPort.active() | integer()]) ::
          {:ok, NetlinkPort.active(), ended :: non_neg_integer()} | :einval
  def mode(present, changes) do
    Enum.reduce_while(changes, {:ok, present, 0}, fn change, {:ok, mode, ended} ->
      case changed(mode, change) do
        :einval -> {:halt, :einval}
        0 -> {:cont, {:ok, false, ended + 1}}
        mode -> {:cont, {:ok, mode, ended}}
      end
    end)
  end

  defp changed(mode, change) when is_integer(change) do
    case if(is_integer(mode), do: mode, else: 0) + change do
      sum when sum > 32_767 -> :einval
      sum -> max(sum, 0)
    end
  end

  defp changed(_mode, change), do: change

  @doc "Changes the mode as `mode/2` does. No item is delivered between the changes."
  @spec set_active(t(), [NetlinkPort.active() | integer()]) :: {:ok, [effect()], t()} | :einval
  def set_active(state, changes) do
    with {:ok, mode, ended} <- mode(state.mode, changes) do
      drain(%{state | mode: mode}, List.duplicate(:passive, ended))
    end
  end

  @doc "The cumulative grant to send to the helper, `nil` if none is due. It is due when half the window was taken."
  @spec grant(t()) :: {non_neg_integer() | nil, t()}
  def grant(%{taken: taken, window: window, granted: granted} = state) do
    due = taken + window

    if 2 * (due - granted) >= window do
      {due, %{state | granted: due}}
    else
      {nil, state}
    end
  end

  @doc "Drops the kept items for which `unwanted?` is true. They count as taken."
  @spec discard(t(), (item() -> boolean())) :: t()
  def discard(state, unwanted?) do
    {unwanted, kept} = state.kept |> :queue.to_list() |> Enum.split_with(unwanted?)
    Enum.reduce(unwanted, %{state | kept: :queue.from_list(kept)}, &take(&2, &1))
  end

  @doc "Whether items are kept because the owner's mailbox is full."
  @spec behind?(t()) :: boolean()
  def behind?(state), do: state.mode == true and state.credit == 0 and kept?(state)

  @doc "Whether anything is kept."
  @spec kept?(t()) :: boolean()
  def kept?(state), do: not :queue.is_empty(state.kept)

  @doc "How many items are kept."
  @spec kept(t()) :: non_neg_integer()
  def kept(state), do: :queue.len(state.kept)

  defp drain(%{mode: false} = state, effects), do: {:ok, Enum.reverse(effects), state}
  defp drain(%{mode: true, credit: 0} = state, effects), do: {:ok, Enum.reverse(effects), state}

  defp drain(state, effects) do
    case pop(state) do
      {nil, state} ->
        {:ok, Enum.reverse(effects), state}

      {item, state} ->
        {new, state} = deliver(state, item)
        drain(state, Enum.reverse(new, effects))
    end
  end

  # Only datagrams count: an error or an overrun does not use up `:once` or a count.
  defp deliver(state, {:data, _datagram, _metadata} = item) do
    state = if state.relayed?, do: spend(state), else: state |> take(item) |> spend()

    case state.mode do
      true -> {[{:deliver, item}], state}
      :once -> {[{:deliver, item}], %{state | mode: false}}
      1 -> {[{:deliver, item}, :passive], %{state | mode: false}}
      count -> {[{:deliver, item}], %{state | mode: count - 1}}
    end
  end

  defp deliver(state, item), do: {[{:deliver, item}], state |> take(item) |> spend()}

  # `:once` and a count limit deliveries by themselves: they use credit up, and never wait for it.
  defp spend(%{credit: credit} = state) when credit in [:infinity, 0], do: state
  defp spend(%{credit: credit} = state), do: %{state | credit: credit - 1}

  defp keep(%{errors: errors} = state, {:error, _error} = item) when errors >= @max_errors,
    do: take(state, item)

  defp keep(state, {:error, _error} = item) do
    %{state | kept: :queue.in(item, state.kept), errors: state.errors + 1}
  end

  # Two overruns with no datagram between them are one gap. So kept items stay bounded however many overruns come.
  defp keep(state, {:overrun, dropped} = item) do
    case :queue.out_r(state.kept) do
      {{:value, {:overrun, before}}, kept} ->
        %{state | kept: :queue.in({:overrun, before + dropped}, kept)}

      _other ->
        %{state | kept: :queue.in(item, state.kept)}
    end
  end

  defp keep(state, item), do: %{state | kept: :queue.in(item, state.kept)}

  defp pop(state) do
    case :queue.out(state.kept) do
      {{:value, {:error, _error} = item}, kept} ->
        {item, %{state | kept: kept, errors: state.errors - 1}}

      {{:value, item}, kept} ->
        {item, %{state | kept: kept}}

      {:empty, _kept} ->
        {nil, state}
    end
  end
end
