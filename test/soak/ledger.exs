defmodule Soak.Ledger do
  @moduledoc false
  # Counts operations, records errors word for word, and knows which process is in which call.

  @counts :soak_counts
  @wrongs :soak_wrongs
  @calls :soak_calls

  def start do
    :ets.new(@counts, [:named_table, :public, write_concurrency: true])
    :ets.new(@wrongs, [:named_table, :public, :duplicate_bag])
    :ets.new(@calls, [:named_table, :public])
  end

  def count(key, by \\ 1), do: :ets.update_counter(@counts, key, by, {key, 0})

  def counted(key), do: :ets.lookup_element(@counts, key, 2)
  def counts, do: @counts |> :ets.tab2list() |> Enum.sort()

  @doc "Records an error: something that must never happen."
  def wrong(what) do
    IO.puts("WRONG: #{inspect(what, limit: 60, printable_limit: 200)}")
    :ets.insert(@wrongs, {what, System.monotonic_time()})
  end

  def wrongs, do: :ets.tab2list(@wrongs)

  @doc """
  Makes a call, and counts it when it begins, and when it has returned or raised. Each count is one update of one
  row, so that the sums are exact, whenever the caller is killed.
  """
  def call(name, fun) do
    row = {self(), name}
    :ets.insert_new(@calls, {row, 0, 0, 0})
    :ets.update_element(@calls, row, {4, System.monotonic_time(:millisecond)})
    :ets.update_counter(@calls, row, {2, 1})

    try do
      fun.()
    after
      :ets.update_counter(@calls, row, {3, 1})
    end
  end

  @doc "The numbers of calls by name: made, answered, and abandoned by a caller that was killed."
  def calls(dead) do
    rows = :ets.tab2list(@calls)

    for name <-
          rows |> Enum.map(fn {{_pid, name}, _, _, _} -> name end) |> Enum.uniq() |> Enum.sort() do
      mine = for {{pid, ^name}, called, answered, _since} <- rows, do: {pid, called, answered}
      called = mine |> Enum.map(&elem(&1, 1)) |> Enum.sum()
      answered = mine |> Enum.map(&elem(&1, 2)) |> Enum.sum()
      left = for {pid, one, other} <- mine, pid in dead, reduce: 0, do: (sum -> sum + one - other)
      {name, called, answered, left}
    end
  end

  @doc "The calls of live processes that have lasted longer than `limit` ms."
  def overdue(limit) do
    now = System.monotonic_time(:millisecond)

    for {{pid, name}, called, answered, since} <- :ets.tab2list(@calls),
        called > answered and now - since > limit and Process.alive?(pid),
        do: {pid, name, now - since}
  end
end
