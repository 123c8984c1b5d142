defmodule Bench.Floor do
  @moduledoc false
  # The least that a request through a port program costs: frames of the same sizes, echoed by a program that spins and
  # does nothing else, and the two system calls of the request in a loop of C.

  alias Bench.{Measure, Place, Work}

  # The bytes of a frame around its datagram, docs/protocol.md.
  @send 20
  @answer 14

  @doc "Compiles the program. Returns its path."
  def build do
    path = Path.join(System.tmp_dir!(), Place.name("floor"))
    source = Path.join(__DIR__, "floor.c")
    {"", 0} = System.cmd("cc", ["-O2", "-o", path, source], stderr_to_stdout: true)
    path
  end

  @doc "Microseconds of a request."
  def request(program, netns, count) do
    {told, 0} = System.cmd("ip", ~w(netns exec #{netns} #{program} netlink #{count}))
    [nanoseconds, length] = told |> String.split() |> Enum.map(&String.to_integer/1)
    nanoseconds / 1_000 + echo(program, length + @answer, count)
  end

  defp echo(program, size, count) do
    port =
      Port.open({:spawn_executable, program}, [:binary, packet: 4, args: ["echo", "#{size}"]])

    Place.same_priority(port)
    frame = [:binary.copy(<<0>>, @send) | Work.getlink(1)]
    for _ <- 1..200, do: ask(port, frame)
    figure = Measure.each(count, fn _n -> ask(port, frame) end)
    Port.close(port)
    figure
  end

  defp ask(port, frame) do
    true = Port.command(port, frame)
    spin(port)
  end

  # As the server spins.
  defp spin(port) do
    receive do
      {^port, {:data, _frame}} -> :ok
    after
      0 ->
        :erlang.bump_reductions(4_000)
        :erlang.yield()
        spin(port)
    end
  end
end
