defmodule NetlinkPort.Mirror do
  @moduledoc false
  # The link and IPv4 route tables of a namespace as a subscriber of a monitor sees them. It applies
  # what it is sent and counts it, by tag, and fails where an order is not kept.

  alias NetlinkPort.{Attr, Message, Monitor}

  # RTM_GETLINK and RTM_GETROUTE, of IPv4.
  @dumps [{18, <<0::128>>}, {26, <<2, 0::88>>}]
  # RTNLGRP_LINK and RTNLGRP_IPV4_ROUTE
  @groups [1, 7]

  def dumps, do: @dumps
  def groups, do: @groups

  @doc "A process that mirrors; linked to the caller."
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

  @doc "Its tables and counts, after what is in its mailbox by now; `nil` while it has no whole ones."
  def read(mirror, timeout \\ 15_000) do
    ref = make_ref()
    send(mirror, {:read, self(), ref})

    receive do
      {^ref, state} -> %{state | tables: if(state.phase == :live, do: state.tables)}
    after
      timeout -> raise "the mirror does not answer"
    end
  end

  @doc "What the kernel says the tables are."
  def kernel(socket) do
    for {type, payload} <- @dumps, reduce: %{} do
      tables ->
        {:ok, messages} = NetlinkPort.dump(socket, type, payload)
        Enum.reduce(messages, tables, &change/2)
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
    %{state | tables: Enum.reduce(messages, state.tables, &change/2)}
  end

  ## Messages, idempotent

  # Links of family AF_UNSPEC: those of AF_BRIDGE are about ports. The IPv4 routes of a link go when
  # it is deleted or goes down (IFF_UP), and the kernel tells nothing of each.
  defp change(%{type: type, payload: <<0, _, _::16, index::32-native, rest::binary>>}, tables)
       when type in [16, 17] do
    <<flags::32-native, _change::32, attrs::binary>> = rest
    {:ok, attrs} = Attr.decode(attrs)
    link = {Attr.string(attrs, 3), Attr.u32(attrs, 4), flags}
    tables = if type == 16 and up?(flags), do: tables, else: without_routes(tables, index)
    if type == 16, do: Map.put(tables, index, link), else: Map.delete(tables, index)
  end

  defp change(%{type: type, payload: <<2, header::binary-size(11), attrs::binary>>}, tables)
       when type in [24, 25] do
    <<prefix, _source, tos, _table, protocol, scope, kind, _flags::32-native>> = header
    {:ok, attrs} = Attr.decode(attrs)
    {:ok, table} = Attr.u32(attrs, 15)
    key = {table, Attr.binary(attrs, 1), prefix, tos, Attr.u32(attrs, 6)}
    route = {protocol, scope, kind, Attr.u32(attrs, 4), Attr.binary(attrs, 5)}
    if type == 24, do: Map.put(tables, key, route), else: Map.delete(tables, key)
  end

  defp change(_other, tables), do: tables

  defp up?(flags), do: Bitwise.band(flags, 1) == 1

  defp without_routes(tables, index) do
    for {key, value} <- tables, not of?(value, index), into: %{}, do: {key, value}
  end

  defp of?({_protocol, _scope, _kind, interface, _gateway}, index), do: interface == {:ok, index}
  defp of?(_link, _index), do: false
end
