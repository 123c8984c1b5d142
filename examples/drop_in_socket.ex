defmodule Examples.DropInSocket do
  @moduledoc """
  The socket module of a netlink codec library that uses a NIF and `:socket`, written with `NetlinkPort`. Start a
  server under the name `NetlinkPort`, and use this module in place of the library's own.

  Results are those of such modules: atoms as in `:socket`, such as `:timeout` and `:closed`. Errors of `open/3` also
  have the step that failed. For a sentence that says what to do, call `Exception.message/1` on the error of
  `NetlinkPort.open/3`.
  """

  import Kernel, except: [send: 2]

  @enforce_keys [:socket, :netns, :protocol, :seq]
  defstruct [:socket, :netns, :protocol, :seq]

  @type netns :: :host | {:pid, pos_integer()} | {:path, Path.t()}
  @type t :: %__MODULE__{
          socket: NetlinkPort.Socket.t(),
          netns: netns(),
          protocol: NetlinkPort.protocol(),
          seq: :atomics.atomics_ref()
        }
  @type open_error ::
          {:socket, atom()}
          | {:bind, atom()}
          | {:open | :setns | :socket | :thread, pos_integer()}

  # Twice the most that the kernel puts into a datagram of a dump.
  @recv_size 65_536

  @doc """
  Opens a bound, passive socket of a protocol, a number or a name, in a namespace.

  Options: `:owner` - the process whose end closes the socket. Defaults to the caller. The owner is sent no
  messages, so that it can be any process. `:server` - the `NetlinkPort` to open it with. Defaults to `NetlinkPort`.

  Errors: `{:socket, reason}` for `:host`, `{stage, errno}` for other namespaces, and `{:bind, reason}`.
  """
  @spec open(NetlinkPort.protocol(), netns(), owner: pid(), server: GenServer.server()) ::
          {:ok, t()} | {:error, open_error()}
  def open(protocol, netns \\ :host, opts \\ []) do
    {server, opts} = Keyword.pop(opts, :server, NetlinkPort)
    opts = [netns: netns, active: false, closed_message: false] ++ opts

    case NetlinkPort.open(server, protocol, opts) do
      {:ok, socket} ->
        # The counter starts at 0, so that the first number is 1.
        seq = :atomics.new(1, signed: false)
        {:ok, %__MODULE__{socket: socket, netns: netns, protocol: protocol, seq: seq}}

      {:error, error} ->
        {:error, not_opened(error, netns)}
    end
  end

  defp not_opened(%{stage: :bind, reason: reason}, _netns), do: {:bind, reason}
  defp not_opened(%{reason: reason}, :host), do: {:socket, reason}

  defp not_opened(%{stage: stage, errno: errno}, _netns)
       when stage in [:open, :setns, :socket, :thread],
       do: {stage, errno}

  defp not_opened(%{errno: errno}, _netns), do: {:socket, errno}

  @doc "Closes the socket, from any process. A caller that waits in `recv_datagram/2` gets `:closed`."
  @spec close(t()) :: :ok
  def close(%__MODULE__{socket: socket}), do: NetlinkPort.close(socket)

  @doc "Closes the socket if the result of a later step is an error. Returns that result."
  @spec close_on_error(result, t()) :: result when result: term()
  def close_on_error({:error, _reason} = error, %__MODULE__{} = socket) do
    :ok = close(socket)
    error
  end

  def close_on_error(result, %__MODULE__{}), do: result

  @doc "The next sequence number, 1 to 2^32 - 1 and then 1 again. Any process may call this."
  @spec next_seq(t()) :: 1..0xFFFFFFFF
  def next_seq(%__MODULE__{seq: seq} = socket) do
    case rem(:atomics.add_get(seq, 1, 1), 0x100000000) do
      0 -> next_seq(socket)
      number -> number
    end
  end

  @doc "Sends a datagram, and waits until the kernel has taken it: `:socket.send/2`."
  @spec send(t(), iodata()) :: :ok | {:error, atom()}
  def send(%__MODULE__{socket: socket}, datagram) do
    socket |> NetlinkPort.send(datagram, wait: true) |> told()
  end

  @doc """
  Receives one whole datagram. If the datagram is longer than `:size`, the error is `:truncated`, and the datagram is
  lost. `:size` defaults to 65_536 bytes, `:timeout`, in ms, to `:infinity`.
  """
  @spec recv_datagram(t(), pos_integer() | [size: pos_integer(), timeout: timeout()]) ::
          {:ok, binary()} | {:error, atom()}
  def recv_datagram(socket, size_or_opts \\ [])
  def recv_datagram(socket, size) when is_integer(size), do: recv_datagram(socket, size: size)

  def recv_datagram(%__MODULE__{socket: socket}, opts) do
    size = Keyword.get(opts, :size, @recv_size)

    case NetlinkPort.recv(socket, Keyword.get(opts, :timeout, :infinity)) do
      {:ok, datagram} when byte_size(datagram) > size -> {:error, :truncated}
      result -> told(result)
    end
  end

  @doc "Joins a multicast group, by number."
  @spec add_membership(t(), pos_integer()) :: :ok | {:error, atom()}
  def add_membership(%__MODULE__{socket: socket}, group),
    do: socket |> NetlinkPort.join(group) |> told()

  @doc "Leaves a multicast group, by number."
  @spec drop_membership(t(), pos_integer()) :: :ok | {:error, atom()}
  def drop_membership(%__MODULE__{socket: socket}, group),
    do: socket |> NetlinkPort.leave(group) |> told()

  @doc "Sets the size of the receive buffer, in bytes."
  @spec set_rcvbuf(t(), pos_integer()) :: :ok | {:error, atom()}
  def set_rcvbuf(%__MODULE__{socket: socket}, bytes),
    do: socket |> NetlinkPort.setopts(rcvbuf: bytes) |> told()

  defp told({:error, %{stage: :recv, reason: :etimedout}}), do: {:error, :timeout}
  # Closed by a caller, or by the end of its helper.
  defp told({:error, %{reason: :ebadf}}), do: {:error, :closed}
  defp told({:error, %{stage: :thread, reason: :epipe}}), do: {:error, :closed}
  defp told({:error, %{reason: reason}}), do: {:error, reason}
  defp told(done), do: done
end
