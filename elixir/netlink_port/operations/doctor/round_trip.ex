defmodule NetlinkPort.Doctor.RoundTrip do
  @moduledoc false
  # Measures how long a request takes, from the caller to the kernel and back.

  alias NetlinkPort.Doctor

  @count 500
  # RTM_GETLINK of interface 1, rtnetlink(7).
  @getlink 18
  @payload <<0::32, 1::32-native, 0::64>>

  @spec checks(GenServer.server()) :: [Doctor.check()]
  def checks(server) do
    with {:ok, socket} <- NetlinkPort.open(server, :route, active: false),
         {:ok, times} <- times(socket, @count, []) do
      :ok = NetlinkPort.close(socket)
      times = Enum.sort(times)

      [median, late] =
        for share <- [0.5, 0.99], do: times |> Enum.at(trunc(@count * share)) |> us()

      [
        {:ok,
         "#{@count} requests, one after the other: median #{median} us, 99th percentile #{late} us",
         nil}
      ]
    else
      {:error, error} -> [{:fail, Exception.message(error), nil}]
    end
  end

  defp times(_socket, 0, times), do: {:ok, times}

  defp times(socket, left, times) do
    began = System.monotonic_time()

    with {:ok, [_lo]} <- NetlinkPort.request(socket, @getlink, @payload) do
      times(socket, left - 1, [System.monotonic_time() - began | times])
    end
  end

  defp us(time), do: System.convert_time_unit(time, :native, :nanosecond) |> div(1_000)
end
