defmodule NetlinkPort.Helper.Handle do
  @moduledoc false
  # Handles for sockets, counted up once for the whole VM: none is ever given twice, whichever
  # server or helper asks, so that a late command cannot reach another socket.

  @key __MODULE__
  @max 0x7FFFFFFF

  @doc "A handle nobody has had."
  @spec new() :: {:ok, non_neg_integer()} | :exhausted
  def new do
    case :atomics.add_get(counter(), 1, 1) do
      handle when handle <= @max -> {:ok, handle}
      _beyond -> :exhausted
    end
  end

  # Two servers may come here first at the same time; the lock lets one of them make the counter.
  defp counter do
    with nil <- :persistent_term.get(@key, nil) do
      :global.trans({@key, self()}, &create/0, [node()])
    end
  end

  defp create do
    with nil <- :persistent_term.get(@key, nil) do
      counter = :atomics.new(1, signed: false)
      :persistent_term.put(@key, counter)
      counter
    end
  end
end
