defmodule NetlinkPort.Pin do
  @moduledoc """
  A network namespace that a helper holds open, as `NetlinkPort.pin/3` returns it, to be named in a request
  where the kernel wants a descriptor.

  The kernel looks such a descriptor up in the process that calls sendmsg(2), which is the helper. The number
  in `:descriptor` is right in messages of that helper, and of no other process. So a pin stands for the
  number where an attribute is encoded:

      {:ok, pin} = NetlinkPort.pin(MyApp.Netlink, {:name, "blue"})
      # RTM_NEWLINK (16) with IFLA_NET_NS_FD (28): interface 7 moves into the namespace
      attrs = NetlinkPort.Attr.encode([{28, pin}])
      {:ok, []} = NetlinkPort.request(socket, 16, [<<0::32, 7::32-native, 0::64>>, attrs])
      :ok = NetlinkPort.unpin(pin)

  `NetlinkPort.send/3`, `request/4`, `batch/3`, `dump/4` and `stream/4`, and those of
  `NetlinkPort.Connection`, put the number in its place. Before anything is sent they refuse a pin that is not of
  the socket's own server, or that has ended, with an error of the stage `:pin`.

  ## Fields

    * `:descriptor` - the number. A helper uses it again only when it has used up its range, up to
      1 048 575 numbers: a message that names a pin that has ended is refused by the kernel with `EBADF` or
      `EINVAL`.
    * `:inode`, `:device` - of the namespace's file, as in `NetlinkPort.info/1`.
    * `:cookie` - what `SO_NETNS_COOKIE` says of it; `nil` where the kernel does not tell, or where the helper
      may hold the namespace and not enter it.
    * `:netns` - what it was pinned by.
    * `:handle` - never used twice in the life of the VM, nor by a socket.

  Two are `==` exactly when they are the same pin. `inspect/1` shows the namespace, the number and the handle:

      #NetlinkPort.Pin<blue, descriptor 4096, handle 7>
  """

  alias NetlinkPort.Socket

  @typedoc "A pin. `:link` is the library's own."
  @type t :: %__MODULE__{
          handle: Socket.handle(),
          descriptor: non_neg_integer(),
          inode: pos_integer(),
          device: non_neg_integer(),
          cookie: non_neg_integer() | nil,
          netns: NetlinkPort.netns(),
          link: struct()
        }

  @typedoc """
  What may be sent: iodata, with pins in the place of descriptors. `NetlinkPort.Attr.encode/1` and
  `NetlinkPort.Message.encode/1` make it of a pin; without one, what they make is iodata.
  """
  @type payload ::
          binary() | t() | maybe_improper_list(byte() | payload(), binary() | t() | [])

  @enforce_keys [:handle, :descriptor, :inode, :device, :netns, :link]
  defstruct [:handle, :descriptor, :inode, :device, :cookie, :netns, :link]

  defimpl Inspect do
    # A path can hold any byte; what is shown stays on one line.
    def inspect(pin, _opts) do
      place = pin.netns |> NetlinkPort.Socket.place() |> Kernel.inspect() |> String.trim("\"")
      "#NetlinkPort.Pin<#{place}, descriptor #{pin.descriptor}, handle #{pin.handle}>"
    end
  end
end
