defmodule NetlinkPort.Native do
  @moduledoc """
  The three functions of a netlink NIF, with the same results, on handles instead of descriptors.

  They are for code that was written against a NIF which opens a netlink socket in another network
  namespace and hands over its file descriptor. A handle stands for the socket here;
  `NetlinkPort.socket/2` gives the `t:NetlinkPort.Socket.t/0` to send and receive with.

  Each function uses the server `NetlinkPort` unless it is given another one first. A socket opened
  here starts passive and belongs to the calling process: unlike a descriptor it closes when that
  process ends.

      {:ok, handle} = NetlinkPort.Native.open_in_netns("/run/netns/blue", 0)
      :ok = NetlinkPort.Native.bind_netlink(handle, 0x1)
      socket = NetlinkPort.socket(handle)
      :ok = NetlinkPort.send(socket, request)
      {:ok, datagram} = NetlinkPort.recv(socket, 5_000)
      :ok = NetlinkPort.Native.close_fd(handle)
  """

  alias NetlinkPort.{Error, Options, Socket}

  @typedoc "The step that failed."
  @type stage :: :open | :setns | :socket | :thread

  @typedoc "An errno(3) of Linux."
  @type errno :: pos_integer()

  @doc """
  Opens a netlink socket in the network namespace that a file stands for.

  `protocol` is a number of `include/uapi/linux/netlink.h`, 0 for `NETLINK_ROUTE`.

  | what is wrong | result |
  | --- | --- |
  | the path is missing or empty | `{:error, {:open, 2}}` (`ENOENT`) |
  | it has a NUL byte | `{:error, {:open, 22}}` (`EINVAL`) |
  | it has 4096 bytes or more | `{:error, {:open, 36}}` (`ENAMETOOLONG`) |
  | the file is no network namespace | `{:error, {:setns, 22}}` (`EINVAL`) |
  | the helper may not enter it | `{:error, {:setns, 1}}` (`EPERM`) |
  | the protocol is unknown | `{:error, {:socket, 93}}` (`EPROTONOSUPPORT`) |
  | no server runs | `{:error, {:thread, 3}}` (`ESRCH`) |
  | the helper is dead | `{:error, {:thread, 32}}` (`EPIPE`) |
  | the helper is stuck | `{:error, {:thread, 110}}` (`ETIMEDOUT`) |

      {:ok, handle} = NetlinkPort.Native.open_in_netns(MyApp.Netlink, "/run/netns/blue", 0)

  Errors are those of the table, and `{:error, {:socket, errno}}` of whatever else fails once the namespace is
  entered. Nothing is ever created at the path, and nothing there is opened that is not a namespace: a FIFO
  or a device answers at once.
  """
  @spec open_in_netns(GenServer.server(), Path.t(), integer()) ::
          {:ok, Socket.handle()} | {:error, {stage(), errno()}}
  def open_in_netns(server \\ NetlinkPort, netns_path, protocol)

  def open_in_netns(server, netns_path, protocol)
      when is_binary(netns_path) and is_integer(protocol) do
    opts = [netns: {:path, netns_path}, active: false, bind: false]

    case NetlinkPort.open(server, protocol, opts) do
      {:ok, socket} -> {:ok, Socket.handle(socket)}
      {:error, error} -> {:error, {stage(error), error.errno}}
    end
  end

  def open_in_netns(_server, netns_path, protocol) do
    raise ArgumentError,
          "expected a path and a protocol number, " <>
            "got: #{inspect(netns_path)} and #{inspect(protocol)}"
  end

  # What happens to a socket behind socket(2) is part of making it here.
  defp stage(%Error{stage: stage}) when stage in [:open, :setns, :thread], do: stage
  defp stage(%Error{}), do: :socket

  @doc """
  Binds a socket with `nl_pid` 0 and `groups` as `nl_groups`: a mask of 32 bits in which bit `n`
  stands for group `n + 1`.

      {:ok, handle} = NetlinkPort.Native.open_in_netns(MyApp.Netlink, "/run/netns/blue", 0)
      :ok = NetlinkPort.Native.bind_netlink(MyApp.Netlink, handle, 0x1)

  Errors: `{:error, 9}` (`EBADF`) for a handle that is not open, `{:error, 1}` (`EPERM`) where the
  helper may not join a group, and the errno of the helper's failure otherwise, as above.
  """
  @spec bind_netlink(GenServer.server(), Socket.handle(), non_neg_integer()) ::
          :ok | {:error, errno()}
  def bind_netlink(server \\ NetlinkPort, handle, groups) do
    groups = Options.uint32!(:groups, groups)

    with %Socket{} = socket <- NetlinkPort.socket(server, handle),
         :ok <- NetlinkPort.bind(socket, 0, groups) do
      :ok
    else
      {:error, error} -> {:error, error.errno}
    end
  end

  @doc """
  Closes a socket. The answer is always `:ok`: for a handle that is unknown or closed, without a
  server, and with a dead helper.

      :ok = NetlinkPort.Native.close_fd(MyApp.Netlink, 1_000_000)
  """
  @spec close_fd(GenServer.server(), Socket.handle()) :: :ok
  def close_fd(server \\ NetlinkPort, handle)

  def close_fd(server, handle) when is_integer(handle) and handle >= 0 do
    with %Socket{} = socket <- NetlinkPort.socket(server, handle), do: NetlinkPort.close(socket)
    :ok
  rescue
    # What is no server has no socket open either, nor has a module that registers none.
    _error -> :ok
  end

  def close_fd(_server, _handle), do: :ok
end
