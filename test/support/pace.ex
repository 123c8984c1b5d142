defmodule NetlinkPort.Pace do
  @moduledoc false
  # How slow this machine is, as one factor by which all deadlines of the suite are longer: under emulation, or
  # beside other work. A deadline says that something hangs; how long something takes is no test.

  alias NetlinkPort.Helper

  # What a helper and a shell take from their start to their end, and a helper to answer, where the deadlines were
  # set: two cores at rest. In microseconds.
  @reference 6_000
  @runs 9
  # Less than twice as slow is as usual; beyond the other it is not the machine that is slow.
  @least 2.0
  @most 60.0
  @variable "NETLINK_PORT_TEST_SLOW"

  @doc "Measures the factor, or takes it from the environment; tells of it in a line unless it is 1."
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

  defp measured do
    took = median(for _ <- 1..@runs, do: elem(:timer.tc(&round_trip/0), 0))
    factor = min(took / @reference, @most)
    factor = if factor < @least, do: 1.0, else: factor

    {factor,
     "a helper and a shell take #{div(took, 1000)} ms here, and #{div(@reference, 1000)} ms usually; " <>
       "#{@variable} sets the factor"}
  end

  defp median(times), do: times |> Enum.sort() |> Enum.at(div(@runs, 2))

  # The helper says hello first, and ends with its standard input.
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
