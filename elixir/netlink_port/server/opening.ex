defmodule NetlinkPort.Server.Opening do
  @moduledoc false
  # How a server is asked for a socket: once, and again, as `NetlinkPort.Connection` and
  # `NetlinkPort.Monitor` do.
  #
  # A process is named by a number, which is another's when it has ended. So who opens again is told which
  # processes the target led through, by number, start time and pidfd, and gives them back with the next
  # open: a number that another process has by then is ESRCH. A link that leads to a process of another
  # number is followed.

  alias NetlinkPort.{Deadline, Error, Options, Socket, Telemetry}
  alias NetlinkPort.Helper.Protocol
  alias NetlinkPort.Server.Client

  @typedoc "The processes that a target has led through, as the helper tells them."
  @type known :: [Protocol.process()]

  @doc "Opens a socket."
  @spec once(GenServer.server(), NetlinkPort.protocol(), keyword()) ::
          {:ok, Socket.t()} | {:error, Error.t()}
  def once(server, protocol, opts) do
    with {:ok, options} <- Options.open(protocol, opts),
         {:ok, socket, _known} <- ask(server, options),
         do: {:ok, socket}
  end

  @doc "Opens a socket, where earlier ones have told of these processes."
  @spec again(GenServer.server(), NetlinkPort.protocol(), keyword(), known()) ::
          {:ok, Socket.t(), known()} | {:error, Error.t()}
  def again(server, protocol, opts, known) do
    with {:ok, options} <- Options.open(protocol, opts),
         do: ask(server, Map.put(options, :known, known))
  end

  defp ask(server, options) do
    Telemetry.timed(fn -> call(server, options) end, &event(server, options, &1))
  end

  defp call(server, options) do
    deadline = Deadline.new(options.timeout)

    case Client.call(server, {:open, options, deadline}, options.timeout) do
      {:ok, {%Socket{} = socket, known}} -> {:ok, socket, known}
      # It was not asked for these, or is of a version that does not tell them.
      {:ok, %Socket{} = socket} -> {:ok, socket, []}
      {:error, %Error{} = error} -> {:error, error}
      {:error, {stage, errno, _detail}} -> {:error, Error.new(stage, errno)}
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

  @doc "The target of an open, with what its caller knows of it."
  @spec target(map()) :: Protocol.target()
  def target(%{target: target, known: [_ | _] = known}), do: with_known(target, known)
  def target(%{target: target}), do: target

  defp with_known(:host, _known), do: :host
  defp with_known({:watched, target}, known), do: {:watched, {:known, target, known}}
  defp with_known(target, known), do: {:known, target, known}

  @doc "What an open is answered with: the processes, too, for who gives them back."
  @spec opened(Socket.t(), map(), keyword()) :: Socket.t() | {Socket.t(), known()}
  def opened(socket, %{known: _known}, place),
    do: {socket, Keyword.get(place, :processes, [])}

  def opened(socket, _options, _place), do: socket
end
