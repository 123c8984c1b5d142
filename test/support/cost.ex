defmodule NetlinkPort.Cost do
  @moduledoc false
  # What work costs a process, in reductions, which count its function calls: unlike time they do not depend on how busy
  # the machine is. For tests that a cost does not grow with the square of a number.

  import ExUnit.Assertions

  # In words. A garbage collection costs reductions, as many as there are live words by then.
  @heap 8_000_000

  @doc "The reductions of the calling process in `fun`."
  def reductions(fun) do
    without_collections()
    counted(self(), fun)
  end

  @doc "The reductions of a process of a behaviour while `fun` runs, after which the process must be idle."
  def reductions(pid, fun) do
    change = fn state ->
      without_collections()
      state
    end

    _state = :sys.replace_state(pid, change, :infinity)
    counted(pid, fun)
  end

  defp without_collections do
    Process.flag(:min_heap_size, @heap)
    :erlang.garbage_collect()
  end

  defp counted(pid, fun) do
    {:reductions, before} = Process.info(pid, :reductions)
    fun.()
    {:reductions, since} = Process.info(pid, :reductions)
    since - before
  end

  @doc """
  Fails unless the cost of 4,000 is less than eight times that of 1,000, as `cost` returns it for a number: four times
  for a cost in proportion to the number, sixteen times for one that grows with its square.
  """
  def assert_in_proportion(cost) do
    {small, large} = {cost.(1_000), cost.(4_000)}
    assert large < 8 * small, "1,000 cost #{small} reductions, and 4,000 cost #{large}"
  end
end
