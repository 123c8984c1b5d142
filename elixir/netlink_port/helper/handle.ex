defmodule NetlinkPort.Helper.Handle do
  @moduledoc false
  # Handles of sockets and pins, from one counter for the whole VM. No handle is ever used twice, over all servers and
  # helpers, so a late command cannot reach another socket.

  @key __MODULE__
  @max 0x7FFFFFFF

  @doc "A handle that was never used before."
  @spec new() :: {:ok, non_neg_integer()} | :exhausted
  def new do
    case :atomics.add_get(counter(), 1, 1) do
      handle when handle <= @max -> {:ok, handle}
      _beyond -> :exhausted
    end
  end

  # Two servers may need the counter first at the same time; the lock lets one of them create it.
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
