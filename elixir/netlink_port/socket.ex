defmodule NetlinkPort.Socket do
  @moduledoc """
  A netlink socket in a helper. `NetlinkPort.open/3` returns it.

  The struct is opaque: use it with the functions of `NetlinkPort`. It can be sent to other processes and other nodes.
  Two structs are `==` exactly when they stand for the same socket, so that a receive can match on one:
  `{:netlink, ^socket, datagram}`. `inspect/1` shows the protocol, the namespace and the handle:

      #NetlinkPort.Socket<route in blue, handle 7>

  A handle is never used twice in the life of the VM.
  """

  # Not @opaque: Dialyzer would not let the library's other modules read the fields.
  @typedoc "A socket. Its fields are private to the library."
  @type t :: %__MODULE__{
          handle: handle(),
          protocol: NetlinkPort.protocol(),
          netns: NetlinkPort.netns(),
          helper: struct()
        }

  @typedoc "The number that stands for a socket."
  @type handle :: non_neg_integer()

  @enforce_keys [:handle, :protocol, :netns, :helper]
  defstruct [:handle, :protocol, :netns, :helper]

  @doc """
  Returns the handle of a socket, as `NetlinkPort.Native` uses it.

      handle = NetlinkPort.Socket.handle(socket)
      ^socket = NetlinkPort.socket(MyApp.Netlink, handle)
  """
  @spec handle(t()) :: handle()
  def handle(%__MODULE__{handle: handle}), do: handle

  def handle(other),
    do: raise(ArgumentError, "expected a NetlinkPort.Socket, got: #{inspect(other)}")

  # Each message about a socket holds a copy of it. In OTP 25 a struct that is made field by field has a tuple of its
  # keys of its own, which is copied too. The update of a constant has the constant's keys, which are not copied.
  @doc false
  @spec new(handle(), NetlinkPort.protocol(), NetlinkPort.netns(), struct()) :: t()
  def new(handle, protocol, netns, helper),
    do: %{blank() | handle: handle, protocol: protocol, netns: netns, helper: helper}

  defp blank, do: %__MODULE__{handle: 0, protocol: 0, netns: :host, helper: nil}

  @doc false
  @spec place(NetlinkPort.netns()) :: String.t()
  def place(:host), do: "host"
  def place({:name, name}), do: name
  def place({:path, path}), do: path
  def place({:pid, pid}), do: "the namespace of process #{pid}"

  defimpl Inspect do
    # A path may contain any byte, such as a newline. The output must stay on one line.
    def inspect(socket, _opts) do
      place = Kernel.inspect(NetlinkPort.Socket.place(socket.netns))
      place = String.trim(place, "\"")
      "#NetlinkPort.Socket<#{socket.protocol} in #{place}, handle #{socket.handle}>"
    end
  end
end
