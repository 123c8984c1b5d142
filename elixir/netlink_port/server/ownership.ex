defmodule NetlinkPort.Server.Ownership do
  @moduledoc false
  # Who owns a socket, and in which mode its owner gets the datagrams: setopts/2, both halves of controlling_process/2,
  # and the hold of a request.
  #
  # Invariant: no message overtakes a datagram that the owner has in hand, and no message goes to the old owner between
  # the halves. So a change of the mode waits (`resume` of the entry) until the owner lets go, or the second half comes.

  alias NetlinkPort.{Errno, Socket}
  alias NetlinkPort.Server.{Delivery, LateAnswers, Sockets}

  ## controlling_process/2

  @doc "First half of controlling_process/2: from now on the old owner is sent no message."
  @spec pause(Sockets.t(), Socket.handle(), pid()) :: {Sockets.raw(), Sockets.t()}
  def pause(sockets, handle, caller) do
    Sockets.with_entry(sockets, handle, fn
      %{owner: ^caller, delivery: delivery} = entry ->
        paused = %{delivery | mode: false}
        entry = %{entry | delivery: paused, resume: entry.resume || delivery.mode, held?: false}
        {{:ok, nil}, Sockets.put(sockets, entry)}

      _not_the_owner ->
        {{:error, {:info, Errno.number(:eperm), ""}}, sockets}
    end)
  end

  @doc """
  Second half of controlling_process/2: the new owner is sent what has arrived since the first half, but no answers to
  the exchanges with the numbers `late`, which are the old owner's.
  """
  @spec give(Sockets.t(), Socket.handle(), pid(), LateAnswers.classes()) ::
          {Sockets.raw(), Sockets.t()}
  def give(sockets, handle, owner, late) do
    Sockets.with_entry(sockets, handle, fn %{resume: resume} = entry ->
      {sockets, entry} = Sockets.owned_by(sockets, entry, owner)
      entry = %{Sockets.without_answers(entry, late) | resume: nil}
      set_active_now(sockets, entry, [resume || false])
    end)
  end

  ## setopts/2

  @doc """
  Changes the mode of a socket. If it becomes active, waiting `recv`s are answered with EINVAL.

  Between the halves of controlling_process/2 the socket must deliver nothing to the old owner. The new owner may know
  of the socket by then, and change its mode: that change takes effect in the second half. A change by the old owner
  means that it has given up handing over the socket.
  """
  @spec set_active(Sockets.t(), Socket.handle(), [NetlinkPort.active() | integer()], pid()) ::
          {Sockets.raw(), Sockets.t()}
  def set_active(sockets, handle, changes, caller) do
    Sockets.with_entry(sockets, handle, fn
      %{resume: resume, owner: owner} = entry when resume != nil and owner != caller ->
        set_active_later(sockets, entry, changes)

      # An owner that waits has nothing in hand.
      %{held?: true, owner: owner} = entry when owner != caller ->
        if Delivery.waits?(entry.delivery, owner),
          do: set_active_now(sockets, entry, changes),
          else: set_active_later(sockets, %{entry | resume: false}, changes)

      entry ->
        set_active_now(sockets, %{entry | resume: nil, held?: false}, changes)
    end)
  end

  @doc """
  The mailbox of the owner is full (`max_queue:`), and the owner waits for the answer to a request, which may be among
  what the server keeps back. So the owner takes that item by item, and is sent no message meanwhile.
  """
  @spec hold_back(%Sockets.Entry{}) :: %Sockets.Entry{}
  def hold_back(%{delivery: %{mode: mode} = delivery} = entry),
    do: %{entry | delivery: %{delivery | mode: false}, resume: mode, held?: true}

  @doc "The owner has nothing in hand any more: a change of the mode that came meanwhile takes effect."
  @spec let_go(Sockets.t(), Socket.handle(), pid()) :: Sockets.t()
  def let_go(sockets, handle, caller) do
    case sockets.entries do
      %{^handle => %{held?: true, owner: ^caller, resume: nil} = entry} ->
        Sockets.put(sockets, %{entry | held?: false})

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
      {:ok, false, ended} when ended > 0 ->
        {{:ok, nil}, Sockets.put(sockets, %{entry | resume: 0})}

      {:ok, resume, _ended} ->
        {{:ok, nil}, Sockets.put(sockets, %{entry | resume: resume})}

      :einval ->
        {too_many(), sockets}
    end
  end

  defp set_active_now(sockets, entry, changes) do
    case Delivery.set_active(entry.delivery, changes) do
      {:ok, effects, %{mode: false} = delivery} ->
        entry = %{entry | delivery: delivery}
        {{:ok, nil}, sockets |> Sockets.perform(entry, effects) |> Sockets.put(entry)}

      {:ok, effects, delivery} ->
        {waiters, delivery} = Delivery.withdraw_all(delivery)
        sockets = Enum.reduce(waiters, sockets, &Sockets.dismiss(&2, &1, Sockets.active()))
        entry = %{entry | delivery: delivery, held?: false}
        {{:ok, nil}, sockets |> Sockets.perform(entry, effects) |> Sockets.put(entry)}

      :einval ->
        {too_many(), sockets}
    end
  end

  defp too_many, do: {:error, {:setsockopt, Errno.number(:einval), "active"}}
end
