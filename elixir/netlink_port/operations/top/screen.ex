defmodule NetlinkPort.Top.Screen do
  @moduledoc false
  # Turns two looks into the lines of a screen. Pure functions.

  alias NetlinkPort.{Socket, Top}

  @typedoc "Rows and columns, or no limit."
  @type size :: {pos_integer(), pos_integer()} | :infinity

  # The title and the width of each column. A negative width aligns left.
  @servers [
    {"SERVER", -28},
    {"PID", 8},
    {"UP", 8},
    {"RSS", 8},
    {"CPU", 6},
    {"RESTARTS", 9},
    {"FDS", 6},
    {"SOCKETS", 8},
    {"OUT", 5}
  ]

  @sockets [
    {"HANDLE", 6},
    {"PROTOCOL", -9},
    {"NAMESPACE", -16},
    {"OWNER", -20},
    {"IN/s", 7},
    {"B/s", 7},
    {"OUT/s", 7},
    {"B/s", 7},
    {"DROPS", 11},
    {"QUEUE", 6},
    {"WINDOW", 7},
    {"KEPT", 6}
  ]

  @doc "The lines of a screen. Without an earlier look there are no rates."
  @spec lines(Top.sample() | nil, Top.sample(), size()) :: [String.t()]
  def lines(before, now, size) do
    sockets = sockets(before, now)

    [summary(now, sockets), "", row(@servers, Enum.map(@servers, &elem(&1, 0)))]
    |> Enum.concat(before |> servers(now) |> some(size))
    |> Enum.concat(["", row(@sockets, Enum.map(@sockets, &elem(&1, 0)))])
    |> Enum.concat(Enum.map(sockets, &socket(&1, now.names)))
    |> Enum.concat(pins(now))
    |> fit(size)
  end

  # Servers get a third of the screen, since sockets say more.
  defp some(lines, :infinity), do: lines
  defp some(lines, {rows, _columns}), do: first(lines, max(div(rows, 3), 2))

  defp fit(lines, :infinity), do: Enum.map(lines, &String.trim_trailing/1)

  defp fit(lines, {rows, columns}) do
    for line <- first(lines, rows), do: line |> String.slice(0, columns) |> String.trim_trailing()
  end

  defp first(_lines, most) when most < 1, do: []
  defp first(lines, most) when length(lines) <= most, do: lines

  defp first(lines, most) do
    {shown, hidden} = Enum.split(lines, most - 1)
    shown ++ ["... and #{length(hidden)} more"]
  end

  defp summary(now, sockets) do
    sum = fn key -> sockets |> Enum.map(& &1[key]) |> Enum.reject(&is_nil/1) |> Enum.sum() end

    "netlink_port on #{now.node}: servers #{length(now.servers)}, sockets #{length(sockets)}, " <>
      pinned(now) <>
      "in #{count(sum.(:in))}/s #{bytes(sum.(:in_bytes))}/s, " <>
      "out #{count(sum.(:out))}/s #{bytes(sum.(:out_bytes))}/s, " <>
      "dropped #{sum.(:drops)}#{more(sum.(:dropped))}"
  end

  ## Servers

  defp servers(before, now) do
    for {pid, stats} <- Enum.sort_by(now.servers, &name(&1, now.names)) do
      name = name({pid, stats}, now.names)

      if stats,
        do: server(name, stats, earlier(before, pid), elapsed(before, now)),
        else: name <> " does not answer"
    end
  end

  defp server(name, stats, earlier, elapsed) do
    row(@servers, [
      name,
      stats.os_pid,
      up(stats.uptime),
      stats.rss && bytes(stats.rss),
      cpu(stats.cpu, earlier && earlier.cpu, elapsed),
      stats.restarts,
      stats.fds,
      length(stats.sockets),
      stats.outgoing
    ])
  end

  # The name as registered with the server, that of its pid on its node, or the pid.
  defp name({_pid, %{name: name}}, _names) when name != nil, do: inspect(name)
  defp name({pid, _stats}, names), do: Map.get(names, pid) || inspect(pid)

  defp cpu(now, before, elapsed) when is_integer(now) and is_integer(before) and elapsed > 0 do
    "#{round(100 * max(now - before, 0) / elapsed)}%"
  end

  defp cpu(_now, _before, _elapsed), do: nil

  defp earlier(nil, _pid), do: nil

  defp earlier(before, pid) do
    case List.keyfind(before.servers, pid, 0) do
      {_pid, stats} -> stats
      nil -> nil
    end
  end

  defp elapsed(nil, _now), do: 0
  defp elapsed(before, now), do: now.at - before.at

  ## Sockets

  # The sockets with their rates, the highest first.
  defp sockets(before, now) do
    elapsed = elapsed(before, now)

    sockets =
      for {pid, %{sockets: sockets}} <- now.servers,
          earlier = before(before, pid),
          stats <- sockets,
          do: rates(stats, earlier[stats.handle], elapsed)

    Enum.sort_by(sockets, &{-((&1.in || 0) + (&1.out || 0)), &1.stats.handle})
  end

  defp before(before, pid) do
    case earlier(before, pid) do
      nil -> %{}
      %{sockets: sockets} -> Map.new(sockets, &{&1.handle, &1})
    end
  end

  defp rates(stats, earlier, elapsed) do
    rate = fn key ->
      if earlier && elapsed > 0, do: 1_000 * (stats[key] - earlier[key]) / elapsed
    end

    %{
      stats: stats,
      in: rate.(:received),
      in_bytes: rate.(:received_bytes),
      out: rate.(:sent),
      out_bytes: rate.(:sent_bytes),
      drops: stats.drops,
      dropped: if(earlier, do: stats.drops - earlier.drops, else: 0)
    }
  end

  defp socket(%{stats: stats} = socket, names) do
    row(@sockets, [
      stats.handle,
      stats.protocol,
      plain(Socket.place(stats.netns)),
      Map.get(names, stats.owner) || inspect(stats.owner),
      socket.in && count(socket.in),
      socket.in_bytes && bytes(socket.in_bytes),
      socket.out && count(socket.out),
      socket.out_bytes && bytes(socket.out_bytes),
      "#{stats.drops}#{more(socket.dropped)}",
      percent(stats.queued_bytes, stats.queue_limit),
      percent(stats.window - min(stats.window_left, stats.window), stats.window),
      stats.kept
    ])
  end

  defp pinned(now) do
    case Enum.sum(for {_pid, stats} <- now.servers, do: length(pins_of(stats))) do
      0 -> ""
      count -> "pins #{count}, "
    end
  end

  # A pin has no traffic, so its line has no rates.
  defp pins(now) do
    for {_pid, stats} <- now.servers, pin <- pins_of(stats) do
      owner = Map.get(now.names, pin.owner) || inspect(pin.owner)
      @sockets |> Enum.take(4) |> row([pin.handle, "pin", plain(Socket.place(pin.netns)), owner])
    end
  end

  # An older version reports no pins, and a server that does not answer reports nothing.
  defp pins_of(%{pins: pins}), do: pins
  defp pins_of(_stats), do: []

  # A path can hold any byte, and a terminal obeys some of them.
  defp plain(place), do: place |> inspect() |> String.trim("\"")

  defp percent(_part, 0), do: nil
  defp percent(part, whole), do: "#{round(100 * part / whole)}%"

  defp more(dropped) when dropped > 0, do: " +#{dropped}"
  defp more(_none), do: ""

  ## Cells

  # A cell on the left is cut to its column. A cell on the right that is too long moves the following ones.
  defp row(columns, cells) do
    columns
    |> Enum.zip(cells)
    |> Enum.map_join(" ", fn {{_title, width}, cell} -> cell(cell, width) end)
  end

  defp cell(nil, width), do: cell("-", width)

  defp cell(cell, width) when width < 0 do
    text = to_string(cell)
    # The end of a path or a module says more than the beginning.
    text =
      if String.length(text) > -width,
        do: "…" <> String.slice(text, (width + 1)..-1//1),
        else: text

    String.pad_trailing(text, -width)
  end

  defp cell(cell, width), do: cell |> to_string() |> String.pad_leading(width)

  @doc "A number for people: at most 4 digits, and a letter for its scale."
  @spec count(number()) :: String.t()
  def count(number), do: scale(number, ["", "k", "M", "G", "T"], 1_000)

  @doc "A number of bytes for people."
  @spec bytes(number()) :: String.t()
  def bytes(number), do: scale(number, ["B", "kB", "MB", "GB", "TB"], 1_000)

  defp scale(number, [unit], _base), do: "#{round(number)}#{unit}"
  defp scale(number, [unit | _rest], base) when round(number) < base, do: whole(number) <> unit
  defp scale(number, [_unit | rest], base), do: scale(number / base, rest, base)

  defp whole(number) when number < 10 and is_float(number) do
    if trunc(number * 10) == round(number) * 10,
      do: "#{round(number)}",
      else: :erlang.float_to_binary(number, decimals: 1)
  end

  defp whole(number), do: "#{round(number)}"

  defp up(ms) when ms < 60_000, do: "#{div(ms, 1_000)}s"
  defp up(ms) when ms < 3_600_000, do: "#{div(ms, 60_000)}m#{rem(div(ms, 1_000), 60)}s"
  defp up(ms) when ms < 86_400_000, do: "#{div(ms, 3_600_000)}h#{rem(div(ms, 60_000), 60)}m"
  defp up(ms), do: "#{div(ms, 86_400_000)}d#{rem(div(ms, 3_600_000), 24)}h"
end
