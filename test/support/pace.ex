defmodule NetlinkPort.Pace do
  @moduledoc false
  # The factor by which all deadlines of the suite are longer on a slow machine: under emulation, or beside other
  # work. A deadline shows that something hangs. No test checks how long something takes.

  alias NetlinkPort.Helper

  # The time of round_trip/0 on the machine for which the deadlines were set, two cores at rest, in microseconds.
  @reference 6_000
  @runs 9
  # For how long each scheduler is kept busy to see how much of the processors this VM gets, in ms.
  @busy 200
  # A smaller factor counts as 1. A larger one has another cause than a slow machine.
  @least 1.5
  @most 60.0
  @variable "NETLINK_PORT_TEST_SLOW"

  @doc "Measures the factor, or takes it from the environment. Prints it if it is not 1."
  def set do
    {factor, how} =
      case Float.parse(System.get_env(@variable, "")) do
        {factor, ""} when factor >= 1 -> {factor, "by #{@variable}"}
        _none -> measured()
      end

    :persistent_term.put(__MODULE__, factor)

    if factor > 1,
      do: IO.puts("Deadlines are #{Float.round(factor, 1)} times as long as usual: #{how}.")
  end

  # Short work may be fast beside other work that slows long work down, and the other way round.
  defp measured do
    took = median(for _ <- 1..@runs, do: elem(:timer.tc(&round_trip/0), 0))
    share = share()
    factor = min(max(took / @reference, 1 / share), @most)
    factor = if factor < @least, do: 1.0, else: factor

    {factor,
     "a helper and a shell take #{div(took, 1000)} ms here, and #{div(@reference, 1000)} ms usually; this VM gets " <>
       "#{round(100 * share)} % of the processors; #{@variable} sets the factor"}
  end

  # The part of the processors' time that the schedulers get when all are busy.
  defp share do
    schedulers = System.schedulers_online()
    _since = :erlang.statistics(:runtime)
    until = System.monotonic_time(:millisecond) + @busy
    busy = for _ <- 1..schedulers, do: Task.async(fn -> busy(until) end)
    _done = Task.await_many(busy, :infinity)
    {_total, cpu} = :erlang.statistics(:runtime)
    min(max(cpu, 1) / (schedulers * @busy), 1.0)
  end

  defp busy(until),
    do: if(System.monotonic_time(:millisecond) < until, do: busy(until), else: :ok)

  defp median(times), do: times |> Enum.sort() |> Enum.at(div(@runs, 2))

  # A shell, and a helper from its start to its first frame. The helper ends when its standard input does.
  defp round_trip do
    {"", 0} = System.cmd("sh", ["-c", ":"])
    port = Port.open({:spawn_executable, Helper.Executable.path()}, [:binary, packet: 4])

    receive do
      {^port, {:data, _hello}} -> Port.close(port)
    after
      60_000 -> raise "the helper does not start"
    end
  end

  @doc "A deadline in ms."
  def within(ms), do: round(ms * :persistent_term.get(__MODULE__, 1.0))
end
