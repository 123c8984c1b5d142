defmodule Bench.OneProcessor do
  @moduledoc false
  # Requests where VM and helper share one processor: the same comparison in a VM of its own, `taskset -c 0` and `+S 1`.

  alias Bench.{Baseline, Measure, Place, Requests, Work}

  @goals [{"send/2 and a message", 1.7}, {"request/4 with ack", 2.2}]

  @doc "`{name, goal, result}`."
  def rows do
    paths = Enum.flat_map(:code.get_path(), fn path -> ["-pa", List.to_string(path)] end)

    files =
      for part <- ~w(work baseline place measure requests), do: Path.join(__DIR__, part <> ".exs")

    requires = Enum.flat_map(files ++ [__ENV__.file], &["-r", &1])

    arguments =
      ~w(-c 0 elixir --erl) ++
        ["+S 1"] ++ paths ++ requires ++ ["-e", "Bench.OneProcessor.main()"]

    {told, 0} = System.cmd("taskset", arguments, env: [{"BENCH_PRIORITY", Place.priority()}])
    results = told |> Base.decode64!(ignore: :whitespace) |> :erlang.binary_to_term()
    for {{name, goal}, result} <- Enum.zip(@goals, results), do: {name, goal, result}
  end

  @doc "In the VM with one processor: prints the results."
  def main do
    Place.priority("self", System.fetch_env!("BENCH_PRIORITY"))

    Place.with_netns("one", fn netns ->
      Place.with_server(fn server ->
        context = %{netns: netns, server: server}

        bare =
          Measure.compare(fn -> Requests.serial(context, true) end, fn ->
            Requests.serial_baseline(context)
          end)

        acked =
          Measure.compare(
            fn ->
              socket = Requests.open!(context, active: true)
              link = <<0::32, 1::32-native, 0::64>>

              figure =
                Measure.each(2_000, fn _n ->
                  {:ok, [_]} = NetlinkPort.request(socket, 18, link)
                end)

              NetlinkPort.close(socket)
              figure
            end,
            fn ->
              socket = Baseline.open(netns)

              figure =
                Measure.each(2_000, fn n ->
                  Baseline.send(socket, Work.getlink(n, 5))
                  {Baseline.recv(socket), Baseline.recv(socket)}
                end)

              Baseline.close(socket)
              figure
            end
          )

        [bare, acked] |> :erlang.term_to_binary() |> Base.encode64() |> IO.puts()
      end)
    end)
  end
end
