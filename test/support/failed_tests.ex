defmodule NetlinkPort.FailedTests do
  @moduledoc false
  # A formatter of ExUnit. Behind the last line of a run it names each test that failed again, with the first lines of
  # its failure: a log that only keeps its end still tells which test it was, and when.

  use GenServer

  @lines 6

  @impl true
  def init(_opts), do: {:ok, []}

  @impl true
  def handle_cast({:test_finished, %{state: {:failed, failures}} = test}, failed) do
    {:noreply, [line(test, failures) | failed]}
  end

  def handle_cast({:suite_finished, _times}, failed) do
    # The formatters get the event at the same time: this one prints behind ExUnit's own, which does it at once.
    if failed != [], do: Process.sleep(500)
    for line <- Enum.reverse(failed), do: IO.puts(["\nFailed: " | line])
    {:noreply, failed}
  end

  def handle_cast(_event, failed), do: {:noreply, failed}

  defp line(test, failures) do
    [{kind, reason, stack} | _more] = failures
    text = Exception.format_banner(kind, reason, stack)

    first =
      text
      |> String.split("\n")
      |> Enum.take(@lines)
      |> Enum.map_join("\n  ", &String.slice(&1, 0, 300))

    seconds = Float.round(test.time / 1.0e6, 1)
    at = DateTime.utc_now() |> DateTime.to_time() |> Time.truncate(:second)

    "#{inspect(test.module)}, #{test.name} (#{Path.relative_to_cwd(test.tags.file)}:#{test.tags.line}), " <>
      "after #{seconds} s, at #{at} UTC:\n  #{first}"
  end
end
