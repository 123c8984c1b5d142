defmodule Examples.DropInSocket do
  @moduledoc """
  The functions that a netlink codec library expects of a socket, on `NetlinkPort`: with its server
  started under the name `NetlinkPort`, hand this module to the library in place of its own.

  Errors are POSIX atoms, as `:gen_udp` has them; the sentence is in the log of whoever wants it, with
  `NetlinkPort.open/3` itself.
  """

  @enforce_keys [:socket, :sequence]
  defstruct [:socket, :sequence]

  @opaque t :: %__MODULE__{socket: NetlinkPort.Socket.t(), sequence: :atomics.atomics_ref()}
  @type netns :: :host | {:pid, pos_integer()} | {:path, Path.t()}
  @type result(value) :: {:ok, value} | {:error, atom()}

  @doc "Opens a bound, passive socket of a protocol, a number or a name, in a namespace."
  @spec open(NetlinkPort.protocol(), netns()) :: result(t())
  def open(protocol, netns \\ :host) do
    with {:ok, socket} <- NetlinkPort.open(protocol, netns: netns, active: false) |> posix() do
      {:ok, %__MODULE__{socket: socket, sequence: :atomics.new(1, signed: false)}}
    end
  end

  @doc "Closes it."
  @spec close(t()) :: :ok
  def close(%__MODULE__{socket: socket}), do: NetlinkPort.close(socket)

  @doc "The next sequence number, 1 to 2^32 - 1, from any process."
  @spec next_seq(t()) :: 1..0xFFFFFFFF
  def next_seq(%__MODULE__{sequence: sequence}) do
    rem(:atomics.add_get(sequence, 1, 1) - 1, 0xFFFFFFFF) + 1
  end

  @doc "Sends a datagram, and waits until the kernel has taken it."
  @spec send(t(), iodata()) :: :ok | {:error, atom()}
  def send(%__MODULE__{socket: socket}, datagram) do
    socket |> NetlinkPort.send(datagram, wait: true) |> posix()
  end

  @doc """
  Receives one datagram, whole: a size is of no use, since no datagram is ever cut, and is taken for the
  sake of those who give one. `timeout:` in ms, 5 000 unless told otherwise.
  """
  @spec recv_datagram(t(), pos_integer() | [size: pos_integer(), timeout: timeout()]) ::
          result(binary())
  def recv_datagram(socket, size_or_opts \\ [])
  def recv_datagram(socket, size) when is_integer(size), do: recv_datagram(socket, size: size)

  def recv_datagram(%__MODULE__{socket: socket}, opts) do
    socket |> NetlinkPort.recv(Keyword.get(opts, :timeout, 5_000)) |> posix()
  end

  @doc "Joins a multicast group, by number."
  @spec add_membership(t(), pos_integer()) :: :ok | {:error, atom()}
  def add_membership(%__MODULE__{socket: socket}, group),
    do: posix(NetlinkPort.join(socket, group))

  @doc "Leaves it."
  @spec drop_membership(t(), pos_integer()) :: :ok | {:error, atom()}
  def drop_membership(%__MODULE__{socket: socket}, group),
    do: posix(NetlinkPort.leave(socket, group))

  @doc "Sets the size of the receive buffer, in bytes."
  @spec set_rcvbuf(t(), pos_integer()) :: :ok | {:error, atom()}
  def set_rcvbuf(%__MODULE__{socket: socket}, bytes) do
    posix(NetlinkPort.setopts(socket, rcvbuf: bytes))
  end

  defp posix({:error, %NetlinkPort.Error{reason: reason}}), do: {:error, reason}
  defp posix(ok), do: ok
end
