defmodule NetlinkPort.Pin do
  @moduledoc """
  A network namespace that a helper holds open, for requests that name a namespace by a descriptor. `NetlinkPort.pin/3`
  returns it.

  The kernel looks such a descriptor up in the process that calls sendmsg(2), which is the helper. So the number in
  `:descriptor` is correct in messages that this helper sends, and in no others. To send it, put the pin itself in the
  place of the attribute's value:

      {:ok, pin} = NetlinkPort.pin(MyApp.Netlink, {:name, "blue"})
      # RTM_NEWLINK (16) with IFLA_NET_NS_FD (28): interface 7 moves into the namespace
      attrs = NetlinkPort.Attr.encode([{28, pin}])
      {:ok, []} = NetlinkPort.request(socket, 16, [<<0::32, 7::32-native, 0::64>>, attrs])
      :ok = NetlinkPort.unpin(pin)

  A veth(4) whose other end is made in the namespace, as runtimes of containers want it, so that the name of that end
  cannot be taken here. Its `VETH_INFO_PEER` is a `struct ifinfomsg` and attributes:

      peer = [<<0::128>> | NetlinkPort.Attr.encode([{3, "eth0\\0"}, {28, pin}])]
      attrs = NetlinkPort.Attr.encode([{3, "veth7\\0"}, {18, [{1, "veth\\0"}, {2, [{1, peer}]}]}])
      {:ok, []} = NetlinkPort.request(socket, 16, [<<0::128>>, attrs], flags: [:create, :excl])

  `NetlinkPort.send/3`, `request/4`, `batch/3`, `dump/4` and `stream/4`, and those of `NetlinkPort.Connection`, replace
  the pin by its number. They refuse a pin that has ended, or that belongs to another server than the socket, with an
  error of the stage `:pin`, and then send nothing.

  A pin ends with `NetlinkPort.unpin/1`, with its owner, or with its helper.

  ## Fields

    * `:descriptor` - the number of the descriptor in the helper. A helper uses a number again only after it has used up
      its range, of up to 1 048 575 numbers. So the kernel refuses a message that names a pin that has ended, with
      `EBADF` or `EINVAL`.
    * `:inode`, `:device` - of the namespace's file, as in `NetlinkPort.info/1`.
    * `:cookie` - the value of `SO_NETNS_COOKIE` in the namespace. It is `nil` when the kernel does not support the
      option, or when the helper may hold the namespace but not enter it.
    * `:netns` - the `t:NetlinkPort.netns/0` that was given to `NetlinkPort.pin/3`.
    * `:handle` - a number that no other pin and no socket gets in the life of the VM.

  Two pins are `==` exactly when they are the same pin. `inspect/1` shows the namespace, the number and the handle:

      #NetlinkPort.Pin<blue, descriptor 4096, handle 7>
  """

  alias NetlinkPort.Socket

  @typedoc "A pin. The field `:helper` is private to the library."
  @type t :: %__MODULE__{
          handle: Socket.handle(),
          descriptor: non_neg_integer(),
          inode: pos_integer(),
          device: non_neg_integer(),
          cookie: non_neg_integer() | nil,
          netns: NetlinkPort.netns(),
          helper: struct()
        }

  @typedoc """
  A payload to send: iodata that may contain pins in the place of descriptors. `NetlinkPort.Attr.encode/1` and
  `NetlinkPort.Message.encode/1` return it. When their input has no pin, they return plain iodata.
  """
  @type payload ::
          binary() | t() | maybe_improper_list(byte() | payload(), binary() | t() | [])

  @enforce_keys [:handle, :descriptor, :inode, :device, :netns, :helper]
  defstruct [:handle, :descriptor, :inode, :device, :cookie, :netns, :helper]

  defimpl Inspect do
    # A path may contain any byte, such as a newline. The output must stay on one line.
    def inspect(pin, _opts) do
      place = pin.netns |> NetlinkPort.Socket.place() |> Kernel.inspect() |> String.trim("\"")
      "#NetlinkPort.Pin<#{place}, descriptor #{pin.descriptor}, handle #{pin.handle}>"
    end
  end
end
