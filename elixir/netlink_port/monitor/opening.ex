defmodule NetlinkPort.Monitor.Opening do
  @moduledoc false
  # Opens the socket of a monitor, joins its groups, and sends the messages of the subscription. It runs in a task, so
  # that a server that does not answer never blocks the monitor.
  #
  # Invariant: with groups by name or a subscription the task owns the socket until all is done, so that a failure
  # leaves no socket behind.

  alias NetlinkPort.{Error, Generic, Socket}
  alias NetlinkPort.Generic.{Follow, Nlctrl}
  alias NetlinkPort.Monitor.{Config, Subscription}

  @type result ::
          {:ok, Socket.t(), NetlinkPort.Server.Opening.known(), Follow.t() | nil}
          | {:error, Error.t()}

  @doc """
  Closes the socket `old`, then opens a socket for `monitor`. `known` are the processes that led to the namespace
  before.

  When a family or a group does not exist, calls `report` once with an error. It then waits without a limit until the
  family is registered.
  """
  @spec run(
          Config.t(),
          pid(),
          Socket.t() | nil,
          NetlinkPort.Server.Opening.known(),
          (Error.t() ->
             term())
        ) ::
          result()
  def run(config, monitor, old, known, report) do
    if old, do: NetlinkPort.close(old)

    if config.follow == [] and config.subscription == [] do
      opts = [owner: monitor, active: true] ++ config.open
      with {:ok, socket, known} <- open(config, opts, known), do: {:ok, socket, known, nil}
    else
      with {:ok, socket, known} <- open(config, [active: false] ++ config.open, known) do
        case subscribe(config, socket, monitor, report) do
          {:ok, follow} ->
            {:ok, socket, known, follow}

          {:error, error} ->
            :ok = NetlinkPort.close(socket)
            {:error, error}
        end
      end
    end
  end

  defp open(config, opts, known),
    do: NetlinkPort.Server.Opening.again(config.server, config.protocol, opts, known)

  # Events that come before the monitor owns the socket are dropped: they are older than the resync that follows.
  defp subscribe(config, socket, monitor, report) do
    with {:ok, follow} <- follow(socket, config.follow, report),
         :ok <- Subscription.send(socket, config.subscription, follow),
         :ok <- NetlinkPort.controlling_process(socket, monitor),
         :ok <- NetlinkPort.setopts(socket, active: true) do
      {:ok, follow}
    end
  end

  defp follow(_socket, [], _report), do: {:ok, nil}

  defp follow(socket, wanted, report) do
    with {:ok, follow} <- Generic.follow_families(socket, wanted), do: await(follow, report)
  end

  defp await(%{socket: socket} = follow, report) do
    case {arrived(socket), Follow.missing(follow)} do
      {nil, []} ->
        {:ok, follow}

      {nil, [missing | _]} ->
        report.(Nlctrl.absent(missing))
        take(follow, arrived(socket) || NetlinkPort.recv(socket))

      {item, _missing} ->
        take(follow, item)
    end
  end

  # What came while the families were read is in the mailbox, as of any request on a passive socket.
  defp arrived(socket) do
    receive do
      {:netlink, ^socket, datagram} ->
        {:ok, datagram}

      {:netlink, ^socket, datagram, _metadata} ->
        {:ok, datagram}

      {:netlink_overrun, ^socket, dropped} ->
        {:error, Error.new(:recv, :enobufs, dropped: dropped)}

      {:netlink_error, ^socket, error} ->
        {:error, error}
    after
      0 -> nil
    end
  end

  defp take(%{socket: socket} = follow, item) do
    case item do
      {:error, %{reason: :enobufs}} -> follow(socket, follow.wanted, &ignore/1)
      {:error, error} -> {:error, error}
      received -> rejoin(follow, elem(received, 1))
    end
  end

  defp rejoin(follow, datagram) do
    with {:ok, _changed, follow} <- Generic.rejoin(follow, datagram),
         do: await(follow, &ignore/1)
  end

  defp ignore(_error), do: :ok
end
