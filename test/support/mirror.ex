defmodule NetlinkPort.Mirror do
  @moduledoc false
  # A subscriber of a monitor that keeps the tables of a namespace (NetlinkPort.Tables). It applies each message that
  # it is sent, counts the messages by tag, and fails if they come in a wrong order.

  alias NetlinkPort.{Message, Monitor, Pace, Tables}

  # RTM_GETLINK and RTM_GETROUTE, of IPv4.
  @dumps [{18, <<0::128>>}, {26, <<2, 0::88>>}]
  # RTNLGRP_LINK and RTNLGRP_IPV4_ROUTE
  @groups [1, 7]

  def dumps, do: @dumps
  def groups, do: @groups

  @doc "Starts a mirror, linked to the caller."
  def start(monitor, opts \\ []) do
    test = self()

    pid =
      spawn_link(fn ->
        {:ok, pid} = Monitor.subscribe(monitor, opts)
        send(test, {:mirroring, self()})
        loop(%{monitor: pid, phase: :before, tables: %{}, counts: %{}, reasons: %{}})
      end)

    receive do
      {:mirroring, ^pid} -> pid
    end
  end

  @doc "The state of a mirror after the messages in its mailbox. `tables` is `nil` while they are not complete."
  def read(mirror, timeout \\ 15_000) do
    ref = make_ref()
    send(mirror, {:read, self(), ref})

    receive do
      {^ref, state} -> %{state | tables: if(state.phase == :live, do: state.tables)}
    after
      Pace.within(timeout) -> raise "the mirror does not answer"
    end
  end

  @doc "The tables, from dumps of the kernel."
  def kernel(socket, dumps \\ @dumps) do
    for {type, payload} <- dumps, reduce: %{} do
      tables ->
        {:ok, messages} = NetlinkPort.dump(socket, type, payload)
        Enum.reduce(messages, tables, &Tables.change/2)
    end
  end

  defp loop(state) do
    receive do
      {:read, from, ref} ->
        send(from, {ref, state})
        loop(state)

      message when elem(message, 1) == state.monitor ->
        state |> count(elem(message, 0)) |> told(message) |> loop()
    end
  end

  defp count(state, tag), do: %{state | counts: Map.update(state.counts, tag, 1, &(&1 + 1))}

  defp told(%{phase: :live} = state, {:netlink_event, _monitor, datagram}) do
    {:ok, messages} = Message.decode(datagram)
    apply_all(state, messages)
  end

  defp told(%{phase: :resync} = state, {:netlink_snapshot, _monitor, :begin}),
    do: %{state | phase: :snapshot, tables: %{}}

  defp told(%{phase: :snapshot} = state, {:netlink_snapshot, _monitor, :end}),
    do: %{state | phase: :live}

  defp told(%{phase: :snapshot} = state, {:netlink_snapshot, _monitor, messages}),
    do: apply_all(state, messages)

  defp told(%{phase: phase} = state, {:netlink_down, _monitor, _reason}) when phase != :down,
    do: %{state | phase: :down}

  defp told(state, {:netlink_resync, _monitor, reason}) do
    kind = if is_tuple(reason), do: elem(reason, 0), else: reason
    reasons = Map.update(state.reasons, kind, 1, &(&1 + 1))
    %{state | phase: :resync, reasons: reasons}
  end

  defp told(state, {:netlink_error, _monitor, _error}), do: state

  defp apply_all(state, messages) do
    %{state | tables: Enum.reduce(messages, state.tables, &Tables.change/2)}
  end
end
