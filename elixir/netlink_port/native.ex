defmodule NetlinkPort.Native do
  @moduledoc """
  The three functions of a netlink NIF, with the same results, for handles instead of descriptors.

  They are for code that was written against a NIF which opens a netlink socket in another network namespace and returns
  its file descriptor. Here a handle, a number, stands for the socket. `NetlinkPort.socket/2` returns the
  `t:NetlinkPort.Socket.t/0` of a handle, which sends and receives.

  Each function takes the server as an optional first argument, which defaults to `NetlinkPort`. A socket that is opened
  here starts passive and belongs to the calling process. Unlike a descriptor, it closes when that process ends.

      {:ok, handle} = NetlinkPort.Native.open_in_netns("/run/netns/blue", 0)
      :ok = NetlinkPort.Native.bind_netlink(handle, 0x1)
      socket = NetlinkPort.socket(handle)
      :ok = NetlinkPort.send(socket, request)
      {:ok, datagram} = NetlinkPort.recv(socket, 5_000)
      :ok = NetlinkPort.Native.close_fd(handle)
  """

  alias NetlinkPort.{Arguments, Error, Socket}

  @typedoc "The step that failed."
  @type stage :: :open | :setns | :socket | :thread

  @typedoc "An errno of Linux, errno(3)."
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

  Errors are those of the table, and `{:error, {:socket, errno}}` for any other failure after the helper has entered the
  namespace. The helper never creates anything at the path, and opens nothing there that is not a namespace. So a path
  that leads to a FIFO or a device returns at once.
  """
  @spec open_in_netns(GenServer.server(), Path.t(), integer()) ::
          {:ok, Socket.handle()} | {:error, {stage(), errno()}}
  def open_in_netns(server \\ NetlinkPort, netns_path, protocol)

  def open_in_netns(server, netns_path, protocol)
      when (is_binary(netns_path) or is_list(netns_path)) and is_integer(protocol) do
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

  # A NIF has no stages after socket(2).
  defp stage(%Error{stage: stage}) when stage in [:open, :setns, :thread], do: stage
  defp stage(%Error{}), do: :socket

  @doc """
  Binds a socket with `nl_pid` 0 and `groups` as `nl_groups`. `groups` is a mask of 32 bits, in which bit `n` stands for
  group `n + 1`.

      {:ok, handle} = NetlinkPort.Native.open_in_netns(MyApp.Netlink, "/run/netns/blue", 0)
      :ok = NetlinkPort.Native.bind_netlink(MyApp.Netlink, handle, 0x1)

  Errors: `{:error, 9}` (`EBADF`) for a handle that is not open, `{:error, 1}` (`EPERM`) when the helper may not join a
  group, and the errno of a missing, dead or stuck helper, as in the table of `open_in_netns/3`.
  """
  @spec bind_netlink(GenServer.server(), Socket.handle(), non_neg_integer()) ::
          :ok | {:error, errno()}
  def bind_netlink(server \\ NetlinkPort, handle, groups) do
    groups = Arguments.uint32!(:groups, groups)

    with %Socket{} = socket <- NetlinkPort.socket(server, handle),
         :ok <- NetlinkPort.bind(socket, 0, groups) do
      :ok
    else
      {:error, error} -> {:error, error.errno}
    end
  end

  @doc """
  Closes a socket. Returns `:ok` in every case, even when the handle is unknown or closed, when no server runs, or when
  the helper is dead.

      :ok = NetlinkPort.Native.close_fd(MyApp.Netlink, 1_000_000)
  """
  @spec close_fd(GenServer.server(), Socket.handle()) :: :ok
  def close_fd(server \\ NetlinkPort, handle)

  def close_fd(server, handle) when is_integer(handle) and handle >= 0 do
    _answer =
      with %Socket{} = socket <- NetlinkPort.socket(server, handle),
           do: NetlinkPort.close(socket)

    :ok
  rescue
    # A name without a server has no open socket.
    _error -> :ok
  end

  def close_fd(_server, _handle), do: :ok
end
