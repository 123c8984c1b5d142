defmodule NetlinkPort.Redaction do
  @moduledoc false
  # Shortens terms for :sys.get_status/1, crash reports and logs: a process's state becomes a few words, without
  # anything large or secret. A datagram can be 16 MiB long, and can hold keys.

  @binary 64
  @first 16
  @items 16
  @depth 6

  @doc "For the callback format_status/1: replaces the state by `state` and shortens everything else."
  @spec status(map(), term()) :: map()
  def status(status, state) do
    status
    |> Map.take([:message, :reason, :log, :queue])
    |> Enum.reduce(%{status | state: state}, fn {key, term}, status ->
      Map.replace!(status, key, brief(term))
    end)
  end

  @doc "The same for a status whose state is not the process's own: its state is shortened."
  @spec status(map()) :: map()
  def status(status), do: status(status, brief(Map.get(status, :state)))

  @doc """
  Empties the mailbox of a process that ends. Otherwise proc_lib(3)'s crash report would print all messages. Callers
  that wait for a reply notice the end by their monitors.
  """
  @spec forget_mailbox() :: :ok
  def forget_mailbox do
    {:message_queue_len, length} = Process.info(self(), :message_queue_len)
    forget(length)
  end

  # Takes only as many messages as there were at first, since more may arrive without end.
  defp forget(0), do: :ok

  defp forget(left) do
    receive do
      _message -> forget(left - 1)
    after
      0 -> :ok
    end
  end

  @doc """
  The names of processes: the registered name, or the pid as text. Process.info/2 is not used, since it would wait for
  a suspended process.
  """
  @spec names([pid()]) :: %{pid() => String.t()}
  def names(pids) do
    names =
      for name <- Process.registered(), pid = Process.whereis(name), into: %{}, do: {pid, name}

    for pid <- pids, into: %{}, do: {pid, name(Map.get(names, pid), pid)}
  end

  defp name(nil, pid), do: inspect(pid)
  defp name(name, _pid), do: inspect(name)

  @doc """
  A path or a name as it is. As an Elixir term if it holds bytes that a terminal would obey.
  `String.printable?/1` accepts some of these bytes, so it is not used.
  """
  @spec plain(String.t()) :: String.t()
  def plain(""), do: inspect("")

  def plain(text) do
    term = inspect(text, binaries: :as_strings, printable_limit: :infinity)
    if term == "\"" <> text <> "\"", do: text, else: term
  end

  @doc """
  A text in which the bytes that a terminal would obey, and those of no character, are escaped as in an Elixir string.
  Line ends, quotes and backslashes stay.
  """
  @spec legible(String.t()) :: String.t()
  def legible(text), do: for(one <- String.codepoints(text), into: "", do: character(one))

  defp character(as_it_is) when as_it_is in ["\n", "\"", "\\"], do: as_it_is

  defp character(one),
    do: one |> inspect(binaries: :as_strings) |> String.slice(1..-2//1)

  @doc "A term whose large parts are replaced by `{:cut, size, beginning}`."
  @spec brief(term()) :: term()
  def brief(term), do: brief(term, @depth)

  defp brief(binary, _depth) when is_binary(binary) and byte_size(binary) > @binary do
    {:cut, byte_size(binary), binary_part(binary, 0, @first)}
  end

  defp brief(%NetlinkPort.Socket{} = socket, _depth), do: socket
  defp brief(term, 0) when is_tuple(term) or is_list(term) or is_map(term), do: :...
  defp brief([], _depth), do: []
  defp brief(list, depth) when is_list(list), do: list(list, @items, depth - 1)

  defp brief(tuple, depth) when is_tuple(tuple) do
    if tuple_size(tuple) > @items,
      do: {:cut, tuple_size(tuple), brief(elem(tuple, 0), depth - 1)},
      else: List.to_tuple(for element <- Tuple.to_list(tuple), do: brief(element, depth - 1))
  end

  defp brief(map, _depth) when is_map(map) and not is_struct(map) and map_size(map) > @items,
    do: {:cut, map_size(map), :map}

  defp brief(map, depth) when is_map(map) do
    # The result of a struct is a struct again, since `__struct__` is one of its keys.
    :maps.map(fn _key, value -> brief(value, depth - 1) end, map)
  end

  defp brief(term, _depth), do: term

  # A list may be improper, as iodata is.
  defp list([_ | _] = more, 0, _depth), do: [{:cut, :list, cost(more)}]
  defp list([head | tail], left, depth), do: [brief(head, depth) | list(tail, left - 1, depth)]
  defp list([], _left, _depth), do: []
  defp list(tail, _left, depth), do: brief(tail, depth)

  defp cost(list), do: if(List.improper?(list), do: :improper, else: length(list))
end
