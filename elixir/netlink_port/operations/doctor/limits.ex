defmodule NetlinkPort.Doctor.Limits do
  @moduledoc false
  # Checks the limits of buffers, descriptors and watches, and whether the helper may exceed the limit of buffers.

  alias NetlinkPort.Doctor

  # The kernel's default (include/linux/skmbuff.h). A storm of route events fills it in 1 ms.
  @usual 212_992
  @large 8_388_608
  # The default before Linux 6.8. Until then only the initial network namespace shows the value.
  @optmem 20_480
  @few_fds 1_024
  @few_instances 128

  @spec checks(GenServer.server(), map()) :: [Doctor.check()]
  def checks(server, info) do
    [buffers(), forced(server), filter(), fds(info.max_fds), low_fds(info), inotify(), epoll()]
  end

  defp buffers do
    told =
      for name <- ~w(rmem_max wmem_max rmem_default wmem_default),
          do: "#{name} #{sysctl("net/core/" <> name) || "not told in this namespace"}"

    {:ok, "net.core: " <> Enum.join(told, ", "), nil}
  end

  # Tries with a buffer that holds a storm of events. The kernel reports twice the bytes that it grants, to include
  # its own records, socket(7).
  defp forced(server) do
    limit = sysctl("net/core/rmem_max") || @usual
    asked = max(limit + 4_096, @large)

    with {:ok, socket} <- NetlinkPort.open(server, :route, active: false),
         :ok <- NetlinkPort.setopts(socket, rcvbuf: asked),
         {:ok, [rcvbuf: rcvbuf]} <- NetlinkPort.getopts(socket, [:rcvbuf]) do
      :ok = NetlinkPort.close(socket)
      given = "a socket that asks for #{asked} bytes gets #{div(rcvbuf, 2)}"

      cond do
        rcvbuf > 2 * limit ->
          {:ok, "rcvbuf: and sndbuf: may go beyond these (SO_RCVBUFFORCE): #{given}", nil}

        limit > @usual ->
          {:ok, "rcvbuf: may be up to rmem_max, and not beyond: #{given}", nil}

        true ->
          {:warn,
           "rcvbuf: may not go beyond rmem_max, and a storm of events overruns it: #{given}",
           "sysctl -w net.core.rmem_max=#{@large} in the first network namespace, or a helper with CAP_NET_ADMIN " <>
             "in the first user namespace"}
      end
    else
      {:error, error} -> {:warn, "rcvbuf: " <> Exception.message(error), nil}
    end
  end

  # The size of struct bpf_prog and its head, and that of an instruction. setopts/2 takes at most so many
  # instructions.
  @filter_head 112
  @instruction 8
  @instructions 4_096

  defp filter do
    room = div((sysctl("net/core/optmem_max") || @optmem) - @filter_head, @instruction)

    if room < @instructions,
      do:
        {:ok,
         "filter: up to #{max(room, 0)} instructions (net.core.optmem_max), and not #{@instructions}",
         "where that is too few: sysctl -w net.core.optmem_max=131072"},
      else: {:ok, "filter: up to #{@instructions} instructions (net.core.optmem_max)", nil}
  end

  defp fds(count) when count < @few_fds do
    {:warn, "#{count} descriptors: a socket takes one, and a pin",
     "raise those of the VM: ulimit -n 65536, or LimitNOFILE=65536"}
  end

  defp fds(count),
    do: {:ok, "#{count} descriptors of the helper, one a socket or pin (RLIMIT_NOFILE)", nil}

  # The kernel looks up a descriptor in a message in the table of the sender, which is the helper.
  defp low_fds(%{lowest_fd: lowest}) when lowest >= @few_fds do
    {:ok,
     "its descriptors lie from #{lowest} on: a smaller number in a message (IFLA_NET_NS_FD) is EBADF",
     nil}
  end

  defp low_fds(%{lowest_fd: lowest}) do
    {:warn,
     "its descriptors lie from #{lowest} on: a number in a message (IFLA_NET_NS_FD) that is meant for " <>
       "another process can name one of them",
     "raise those of the VM: ulimit -n 65536, or LimitNOFILE=65536"}
  end

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
