defmodule NetlinkPort.Server.Opening do
  @moduledoc false
  # How a server is asked for a socket. `once/3` opens one. `again/4` opens one for `NetlinkPort.Connection` and
  # `NetlinkPort.Monitor`, which open again and again. They serve others, and `stats/1` shows their sockets to
  # everybody. So they are sent `:netlink_closed` also when another process closes the socket.
  #
  # Danger: a process id passes to another process when its process has ended. So the helper reports which processes
  # the target led through (process id, start time, pidfd inode), and `again/4` passes them to the next open. An id
  # that another process has by then is ESRCH. A link that now leads to another process id is followed.

  alias NetlinkPort.{Deadline, Error, Options, Socket, Telemetry}
  alias NetlinkPort.Helper.Protocol
  alias NetlinkPort.Server.Client

  @typedoc "The processes that a target led through, as the helper reports them."
  @type known :: [Protocol.process()]

  @doc "Opens a socket."
  @spec once(GenServer.server(), NetlinkPort.protocol(), keyword()) ::
          {:ok, Socket.t()} | {:error, Error.t()}
  def once(server, protocol, opts) do
    with {:ok, options} <- Options.open(protocol, opts),
         {:ok, socket, _known} <- ask(server, options),
         do: {:ok, socket}
  end

  @doc "Opens a socket, given the processes that earlier opens reported. Returns those of this open."
  @spec again(GenServer.server(), NetlinkPort.protocol(), keyword(), known()) ::
          {:ok, Socket.t(), known()} | {:error, Error.t()}
  def again(server, protocol, opts, known) do
    with {:ok, options} <- Options.open(protocol, opts),
         do: ask(server, Map.merge(options, %{known: known, tell_close?: true}))
  end

  defp ask(server, options) do
    Telemetry.timed(fn -> call(server, options) end, &event(server, options, &1))
  end

  defp call(server, options) do
    deadline = Deadline.new(options.timeout)

    case Client.call(server, {:open, options, deadline}, options.timeout) do
      {:ok, {%Socket{} = socket, known}} -> {:ok, socket, known}
      # Only again/4 asks for the processes. A server of an older version does not report them.
      {:ok, %Socket{} = socket} -> {:ok, socket, []}
      {:error, reason} -> Client.failed(reason, {:server, server})
    end
  end

  defp event(server, options, result) do
    metadata = %{server: server, protocol: options.protocol, netns: options.netns}

    case result do
      {:ok, socket, _known} ->
        {[:open, :stop], %{}, Map.put(metadata, :socket, socket)}

      {:error, error} ->
        {[:open, :exception], %{}, Map.merge(metadata, %{kind: :error, reason: error})}
    end
  end

  ## In the server

  @doc "The target of an open, with the processes that the caller passed."
  @spec target(map()) :: Protocol.target()
  def target(%{target: target, known: [_ | _] = known}), do: with_known(target, known)
  def target(%{target: target}), do: target

  defp with_known(:host, _known), do: :host
  defp with_known({:watched, target}, known), do: {:watched, {:known, target, known}}
  defp with_known(target, known), do: {:known, target, known}

  @doc "The value that answers an open: the socket, with the processes if the caller passed any."
  @spec opened(Socket.t(), map(), keyword()) :: Socket.t() | {Socket.t(), known()}
  def opened(socket, %{known: _known}, place),
    do: {socket, Keyword.get(place, :processes, [])}

  def opened(socket, _options, _place), do: socket
end
