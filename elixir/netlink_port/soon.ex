defmodule NetlinkPort.Soon do
  @moduledoc false
  # Waiting for what is about to come. A scheduler that has nothing to run is asleep within a
  # microsecond, and to wake it costs more than most requests: whoever waits for an answer keeps
  # their scheduler awake first, for about as long as the helper takes, by yielding to others.

  # How long, in us.
  @limit 50

  @doc "Calls `look` again and again until it returns something else than `:timeout`."
  @spec look((() -> :timeout | answer)) :: :timeout | answer when answer: term()
  def look(look) do
    with :timeout <- look.() do
      # With a single scheduler, and so a single processor as a rule, it would keep the helper from it.
      if :erlang.system_info(:schedulers_online) > 1,
        do: look(look, now() + limit()),
        else: :timeout
    end
  end

  defp look(look, until) do
    :erlang.yield()

    with :timeout <- look.() do
      if now() < until, do: look(look, until), else: :timeout
    end
  end

  defp now, do: System.monotonic_time()
  defp limit, do: System.convert_time_unit(@limit, :microsecond, :native)
end
