defmodule NetlinkPort.Doctor.Limits do
  @moduledoc false
  # Limits of buffers, descriptors and watches, and whether the helper may go beyond the first.

  alias NetlinkPort.Doctor

  # What the kernel has by default, include/linux/skmbuff.h; a storm of route events fills it in 1 ms.
  @usual 212_992
  @large 8_388_608
  @few_fds 1_024
  @few_instances 128

  @spec checks(GenServer.server(), map()) :: [Doctor.check()]
  def checks(server, info) do
    [buffers(), forced(server), fds(info.max_fds), inotify(), epoll()]
  end

  defp buffers do
    told =
      for name <- ~w(rmem_max wmem_max rmem_default wmem_default),
          do: "#{name} #{sysctl("net/core/" <> name) || "not told in this namespace"}"

    {:ok, "net.core: " <> Enum.join(told, ", "), nil}
  end

  # By trying: twice what is asked for is told, socket(7).
  defp forced(server) do
    limit = sysctl("net/core/rmem_max") || @usual

    with {:ok, socket} <- NetlinkPort.open(server, :route, active: false),
         :ok <- NetlinkPort.setopts(socket, rcvbuf: limit + 4_096),
         {:ok, [rcvbuf: rcvbuf]} <- NetlinkPort.getopts(socket, [:rcvbuf]) do
      :ok = NetlinkPort.close(socket)

      cond do
        rcvbuf > 2 * limit ->
          {:ok, "rcvbuf: and sndbuf: may go beyond these (SO_RCVBUFFORCE)", nil}

        limit > @usual ->
          {:ok, "rcvbuf: may be up to rmem_max, and not beyond", nil}

        true ->
          {:warn, "rcvbuf: may not go beyond rmem_max: a storm of events overruns it",
           "sysctl -w net.core.rmem_max=#{@large}, or give the helper CAP_NET_ADMIN"}
      end
    else
      {:error, error} -> {:warn, "rcvbuf: " <> Exception.message(error), nil}
    end
  end

  defp fds(count) when count < @few_fds do
    {:warn, "#{count} descriptors: a socket takes one, and a pin",
     "raise those of the VM: ulimit -n 65536, or LimitNOFILE=65536"}
  end

  defp fds(count),
    do: {:ok, "#{count} descriptors of the helper, one a socket or pin (RLIMIT_NOFILE)", nil}

  defp inotify do
    instances = sysctl("fs/inotify/max_user_instances")
    watches = sysctl("fs/inotify/max_user_watches")
    line = "fs.inotify, for close_on: #{instances} instances, #{watches} watches of a user"

    if is_integer(instances) and instances < @few_instances,
      do: {:warn, line, "sysctl -w fs.inotify.max_user_instances=#{@few_instances}"},
      else: {:ok, line, nil}
  end

  defp epoll,
    do:
      {:ok, "fs.epoll: #{sysctl("fs/epoll/max_user_watches")} watches of a user, one a socket",
       nil}

  defp sysctl(name) do
    with {:ok, text} <- File.read("/proc/sys/" <> name),
         {number, _newline} <- Integer.parse(text) do
      number
    else
      _not_told -> nil
    end
  end
end
