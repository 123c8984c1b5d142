defmodule NetlinkPort.Server.Recv do
  @moduledoc false
  # The `recv`s of a passive socket: each takes what the server keeps, or waits for the next item. A `hold` is the `recv`
  # of a request (NetlinkPort.Server.Client).

  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Server.{Delivery, Ownership, Sockets}
  alias NetlinkPort.Socket

  @doc """
  A caller wants one item within `left` ms. If there is none, the caller waits and is answered later.

  A negative `left` means that the server is late: an item that is there is still handed out. The server has checked
  that the caller still waits, since a datagram for a caller that has given up would be lost.
  """
  @spec recv(Sockets.t(), Socket.handle(), GenServer.from(), timeout(), hold? :: boolean()) ::
          {Sockets.raw() | :wait, Sockets.t()}
  def recv(sockets, handle, {caller, _tag} = from, left, hold?) do
    changed? =
      match?(%{^handle => %{held?: true, resume: resume}} when resume != nil, sockets.entries)

    sockets = Ownership.let_go(sockets, handle, caller)

    Sockets.with_entry(sockets, handle, fn
      %{owner: ^caller} = entry when hold? ->
        cond do
          Delivery.behind?(entry.delivery) ->
            next(sockets, Ownership.hold_back(entry), from, left, hold?)

          # A change of the mode that has just taken effect may have sent messages, which come first.
          changed? ->
            {Sockets.active(), sockets}

          true ->
            next(sockets, entry, from, left, hold?)
        end

      # The owner of an active socket has something in hand.
      %{held?: true, resume: resume} when resume not in [nil, false, 0] ->
        {Sockets.active(), sockets}

      entry ->
        next(sockets, entry, from, left, hold?)
    end)
  end

  defp next(sockets, entry, {caller, _tag} = from, left, hold?) do
    entry = %{entry | held?: entry.held? or (hold? and entry.owner == caller)}

    case Delivery.demand(entry.delivery) do
      {:item, item, delivery} ->
        {Sockets.answer(item), Sockets.put(sockets, %{entry | delivery: delivery})}

      :empty when left <= 0 ->
        {Sockets.timed_out(), sockets}

      :empty ->
        {:wait, wait(sockets, entry, from, left)}

      :active ->
        {Sockets.active(), sockets}
    end
  end

  # The waiting caller is monitored, so that no datagram goes to a process that has died.
  defp wait(sockets, entry, {pid, _tag} = from, left) do
    monitor = Relay.monitor(pid)
    handle = Socket.handle(entry.socket)
    message = {:recv_timeout, handle, monitor}
    timer = if left != :infinity, do: Process.send_after(self(), message, left)
    give_up_at = if timer, do: System.monotonic_time(:millisecond) + left, else: :never
    waiter = {monitor, timer, from, give_up_at}
    delivery = Delivery.wait(entry.delivery, monitor, pid, waiter)
    monitors = Map.put(sockets.monitors, monitor, {:waiter, handle})
    Sockets.put(%{sockets | monitors: monitors}, %{entry | delivery: delivery})
  end

  @doc "A waiting `recv` has timed out, or its caller has died."
  @spec withdraw(Sockets.t(), Socket.handle(), reference()) :: Sockets.t()
  def withdraw(sockets, handle, monitor) do
    case sockets.entries do
      %{^handle => entry} ->
        {gone, delivery} = Delivery.withdraw(entry.delivery, monitor)
        sockets = Sockets.put(sockets, %{entry | delivery: delivery})
        Enum.reduce(gone, sockets, &Sockets.dismiss(&2, &1, Sockets.timed_out()))

      _closed ->
        sockets
    end
  end

  @doc "The reply to the `recv` of a request that was not sent."
  @spec unsent(term()) :: {:error, {:unsent, term()}}
  def unsent(failure), do: {:error, {:unsent, failure}}

  @doc "The request of a process was not sent: so replies to its waiting `recv`, if there is one."
  @spec refuse(Sockets.t(), Socket.handle(), pid(), term()) :: {:ok, Sockets.t()} | :none
  def refuse(sockets, handle, pid, failure) do
    with %{^handle => entry} <- sockets.entries,
         {[_ | _] = waiters, delivery} <- Delivery.withdraw_of(entry.delivery, pid) do
      sockets = Sockets.put(sockets, %{entry | delivery: delivery})
      {:ok, Enum.reduce(waiters, sockets, &Sockets.dismiss(&2, &1, unsent(failure)))}
    else
      _nobody_waits -> :none
    end
  end
end
