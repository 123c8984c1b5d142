defmodule NetlinkPort.Helper.Protocol do
  @moduledoc false
  # Frames to and from the helper. docs/protocol.md is the specification. The tests of both sides read
  # docs/vectors.txt. Pure functions.

  @version 5
  # Stands for an absent value in the metadata of a datagram.
  @absent -0x80000000

  @type reference_number :: 0..0x7FFFFFFF
  @type metadata :: NetlinkPort.metadata()
  @type command ::
          {:open, NetlinkPort.Socket.handle(), target(), integer(), non_neg_integer() | false,
           boolean(), non_neg_integer(), [{atom(), term()}]}
          | {:pin, NetlinkPort.Socket.handle(), :host | place()}
          | {:close, NetlinkPort.Socket.handle()}
          | {:bind, NetlinkPort.Socket.handle(), non_neg_integer(), non_neg_integer()}
          | {:set, NetlinkPort.Socket.handle(), atom(), term()}
          | {:get, NetlinkPort.Socket.handle(), atom()}
          | {:send_to, NetlinkPort.Socket.handle(), non_neg_integer(), non_neg_integer(),
             binary()}
          | {:info, NetlinkPort.Socket.handle()}
          | {:info}
          | {:ping}
          | {:stop}
  @typedoc "Process id, start time and pidfd inode of a process that a target led through."
  @type process :: {integer(), non_neg_integer(), non_neg_integer()}
  @type place :: {:path, binary()} | {:pid, integer()}
  @type known :: place() | {:known, place(), [process()]}
  @type target :: :host | known() | {:watched, known()}
  @type event ::
          {:data, NetlinkPort.Socket.handle(), binary(), metadata() | nil}
          | {:answer, NetlinkPort.Socket.handle(), binary()}
          | {:reply, reference_number(), {:ok, term()} | {:error, {atom(), integer(), binary()}}}
          | {:failed, NetlinkPort.Socket.handle(), atom(), integer(), non_neg_integer()}
          | {:overrun, NetlinkPort.Socket.handle(), non_neg_integer()}
          | {:gone, NetlinkPort.Socket.handle()}
          | {:malformed, atom()}
          | {:hello, integer(), keyword()}
          | {:unknown, term()}

  @overhead 300

  @doc "The protocol version of this library."
  @spec version() :: pos_integer()
  def version, do: @version

  @doc "A command with a reference: the helper replies to it."
  @spec command(reference_number(), command()) :: binary()
  def command(reference, command), do: encode(Tuple.insert_at(command, 1, reference))

  @doc "A cumulative grant of bytes to one socket."
  @spec grant(NetlinkPort.Socket.handle(), non_neg_integer()) :: binary()
  def grant(handle, bytes), do: encode({:grant, handle, bytes})

  @doc "A cumulative grant of bytes to the helper."
  @spec grant_all(non_neg_integer()) :: binary()
  def grant_all(bytes), do: encode({:grant, bytes})

  @doc """
  What a datagram of `size` bytes takes of a window: its length, and a fixed overhead for its cost in the VM. The
  helper computes the same (src/sockets.rs).
  """
  @spec charge(non_neg_integer()) :: pos_integer()
  def charge(size), do: size + @overhead

  @doc "A datagram to the kernel. To reference 0 the helper sends no reply."
  @spec send(reference_number(), NetlinkPort.Socket.handle(), iodata(), non_neg_integer()) ::
          iodata()
  def send(reference, handle, datagram, size) do
    [<<131, 104, 4, 97, 1, 98, reference::32, 98, handle::32, 109, size::32>> | datagram]
  end

  @doc "As `send/4`, but the helper replies only if sendmsg(2) fails."
  @spec ask(reference_number(), NetlinkPort.Socket.handle(), iodata(), non_neg_integer()) ::
          iodata()
  def ask(reference, handle, datagram, size) do
    [<<131, 104, 4, 97, 4, 98, reference::32, 98, handle::32, 109, size::32>> | datagram]
  end

  # Minor version 2 encodes atoms as UTF-8 on every OTP release, so the bytes of a frame are always the same.
  defp encode(term), do: :erlang.term_to_binary(term, minor_version: 2)

  @doc "Decodes a frame. A frame that is no event of this protocol is `{:unknown, reason}`."
  @spec decode(binary()) :: event()
  def decode(<<131, 104, 3, 97, 1, 98, handle::32, 109, size::32, datagram::binary-size(size)>>) do
    {:data, handle, datagram, nil}
  end

  def decode(<<131, 104, 3, 97, 3, 98, handle::32, 109, size::32, datagram::binary-size(size)>>) do
    {:answer, handle, datagram}
  end

  def decode(
        <<131, 104, 6, 97, 2, 98, handle::32, 98, group::signed-32, 98, nsid::signed-32, 98,
          sender::32, 109, size::32, datagram::binary-size(size)>>
      ) do
    metadata = %{group: told(group), nsid: told(nsid)}
    # The kernel has port id 0. Only a peer in user space is added to the metadata.
    metadata = if sender == 0, do: metadata, else: Map.put(metadata, :port_id, sender)
    {:data, handle, datagram, metadata}
  end

  def decode(frame) do
    case :erlang.binary_to_term(frame, [:safe]) do
      {:ok, reference} when is_integer(reference) ->
        {:reply, reference, {:ok, nil}}

      {:ok, reference, value} when is_integer(reference) ->
        {:reply, reference, {:ok, value}}

      {:error, reference, stage, errno, detail}
      when is_integer(reference) and is_atom(stage) and is_integer(errno) and is_binary(detail) ->
        {:reply, reference, {:error, {stage, errno, detail}}}

      {:failed, handle, stage, errno, length}
      when is_integer(handle) and is_atom(stage) and is_integer(errno) and is_integer(length) ->
        {:failed, handle, stage, errno, length}

      {:overrun, handle, dropped} when is_integer(handle) and is_integer(dropped) ->
        {:overrun, handle, dropped}

      {:gone, handle} when is_integer(handle) ->
        {:gone, handle}

      {:malformed, reason} when is_atom(reason) ->
        {:malformed, reason}

      {:hello, version, properties} when is_integer(version) and is_list(properties) ->
        {:hello, version, properties}

      other ->
        {:unknown, other}
    end
  rescue
    ArgumentError -> {:unknown, :not_a_term}
  end

  @doc "The atoms that a frame may hold, so that they exist for decoding with `:safe`, whatever modules are loaded."
  @spec atoms() :: [atom()]
  def atoms do
    ~w(open setns socket bind connect setsockopt getsockopt send recv info watch protocol
       program os_pid home may_leave capabilities max_frame max_fds lowest_fd user_namespace
       bounding no_new_privs seccomp processes
       namespace cookie verified port_id drops foreign received received_bytes sent sent_bytes
       queued_bytes queue_limit granted charged sockets pins fds descriptor
       empty version truncated tag depth count atom integer improper trailing nil true false)a
  end

  defp told(@absent), do: nil
  defp told(value), do: value
end
