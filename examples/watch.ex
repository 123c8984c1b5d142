defmodule Examples.Watch do
  @moduledoc """
  Follows the events of several namespaces in one process, and waits for the expected ones.

  An expected event is `{namespace, :new | :deleted, fields}`, see `Examples.Rtnetlink`.
  """

  alias Examples.{IpStyle, Rtnetlink}

  # How long expected events may take, and how long other events may follow them, in ms.
  @patience 5_000
  @quiet 100

  @enforce_keys [:sockets, :names]
  defstruct [:sockets, :names]

  @doc "Subscribes the calling process to the events of namespaces, given by name."
  def open(namespaces) do
    sockets = Map.new(namespaces, &{ok!(Rtnetlink.subscribe({:name, &1})), &1})
    names = Map.new(namespaces, &{&1, IpStyle.learn(%{}, ok!(Rtnetlink.list({:name, &1})).links)})
    %__MODULE__{sockets: sockets, names: names}
  end

  @doc "Prints events until all expected ones have come. Raises if they do not come."
  def await(watch, expected) do
    await(watch, expected, now() + @patience)
  end

  defp await(watch, expected, deadline) do
    left = max(deadline - now(), 0)
    left = if expected == [], do: min(left, @quiet), else: left

    receive do
      {:netlink, socket, datagram} when is_map_key(watch.sockets, socket) ->
        namespace = watch.sockets[socket]
        events = Rtnetlink.events(datagram)
        watch = learn(watch, namespace, events)
        for event <- events, do: print(namespace, IpStyle.event(event, watch.names[namespace]))
        await(watch, Enum.reject(expected, &among?(&1, namespace, events)), deadline)

      message
      when elem(message, 0) in [:netlink_closed, :netlink_error, :netlink_overrun] ->
        raise "not expected: #{inspect(message)}"
    after
      left ->
        if expected != [], do: raise("these events did not come: #{inspect(expected)}")
        watch
    end
  end

  @doc "Waits for the end of every socket, and returns the reasons."
  def await_closed(watch) do
    for {socket, namespace} <- watch.sockets do
      receive do
        {:netlink_closed, ^socket, reason} ->
          print(namespace, ":netlink_closed, #{inspect(reason)}")
          reason
      after
        @patience -> raise "#{inspect(socket)} was not closed"
      end
    end
  end

  defp learn(watch, namespace, events) do
    items = for {_change, item} <- events, do: item
    %{watch | names: Map.update!(watch.names, namespace, &IpStyle.learn(&1, items))}
  end

  defp among?({namespace, change, fields}, namespace, events) do
    Enum.any?(events, fn {its_change, item} ->
      its_change == change and Enum.all?(fields, fn {key, value} -> item[key] == value end)
    end)
  end

  defp among?(_of_another, _namespace, _events), do: false

  defp print(namespace, line) do
    IO.puts("       #{String.pad_trailing(namespace, 13)} | #{line}")
  end

  defp ok!({:ok, value}), do: value
  defp ok!({:error, error}), do: raise(error)

  defp now, do: System.monotonic_time(:millisecond)
end
