defmodule NetlinkPort.Socket do
  @moduledoc """
  A netlink socket of a helper, as `NetlinkPort.open/3` returns it.

  The struct is opaque: use it with the functions of `NetlinkPort`. Two are `==` exactly when they
  stand for the same socket, so that it can be matched in messages (`{:netlink, ^socket, datagram}`),
  and it can be sent to other processes and other nodes. `inspect/1` shows its protocol, its namespace
  and its handle:

      #NetlinkPort.Socket<route in blue, handle 7>

  The handle is never used twice in the life of the VM.
  """

  # Dialyzer would not let the library's own modules look into an @opaque struct.
  @typedoc "A socket. Its fields are the library's own."
  @type t :: %__MODULE__{
          handle: handle(),
          protocol: NetlinkPort.protocol(),
          netns: NetlinkPort.netns(),
          link: struct()
        }

  @typedoc "The number that stands for a socket."
  @type handle :: non_neg_integer()

  @enforce_keys [:handle, :protocol, :netns, :link]
  defstruct [:handle, :protocol, :netns, :link]

  @doc """
  The handle, as `NetlinkPort.Native` uses it.

      handle = NetlinkPort.Socket.handle(socket)
      ^socket = NetlinkPort.socket(MyApp.Netlink, handle)
  """
  @spec handle(t()) :: handle()
  def handle(%__MODULE__{handle: handle}), do: handle

  @doc false
  @spec place(NetlinkPort.netns()) :: String.t()
  def place(:host), do: "host"
  def place({:name, name}), do: name
  def place({:path, path}), do: path
  def place({:pid, pid}), do: "the namespace of process #{pid}"

  defimpl Inspect do
    # A path can hold any byte; what is shown stays on one line.
    def inspect(socket, _opts) do
      place = Kernel.inspect(NetlinkPort.Socket.place(socket.netns))
      place = String.trim(place, "\"")
      "#NetlinkPort.Socket<#{socket.protocol} in #{place}, handle #{socket.handle}>"
    end
  end
end
