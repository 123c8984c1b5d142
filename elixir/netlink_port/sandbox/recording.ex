defmodule NetlinkPort.Sandbox.Recording do
  @moduledoc false
  # Plays a capture to a process, for `NetlinkPort.Sandbox.replay/2`.

  alias NetlinkPort.{Arguments, DecodeError, Error, Message}
  alias NetlinkPort.Sandbox.CaptureFile

  @request Message.flags([:request])
  # Years, as after a clock was set, are more than a timer takes.
  @longest_sleep 86_400_000
  @options [:to, :socket, :tag, :timed, :protocol, :interface]

  @spec replay(Path.t(), keyword()) :: {:ok, map()} | {:error, Error.t() | DecodeError.t()}
  def replay(path, opts) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, @options)
    to = Arguments.pid!(:to, Keyword.get(opts, :to))
    timed? = Arguments.boolean!(:timed, Keyword.get(opts, :timed, false))
    protocol = with name when name != nil <- opts[:protocol], do: Arguments.protocol!(name)
    socket = Keyword.get(opts, :socket, :replay)
    tag = Keyword.get(opts, :tag, :netlink)
    path = Arguments.path!("a capture", path)
    interface = opts[:interface]

    unless interface == nil or is_binary(interface) do
      raise ArgumentError, "expected interface: a name, got: #{inspect(interface)}"
    end

    with {:ok, bytes} <- read(path),
         {:ok, packets, truncated?} <- CaptureFile.read(bytes),
         wanted = Enum.filter(packets, &wanted?(&1, protocol, interface)),
         :ok <- readable(wanted) do
      play(wanted, fn packet -> send(to, message(packet, tag, socket)) end, timed?)
      cut = Enum.count(wanted, &cut?/1)
      {:ok, %{datagrams: length(wanted) - cut, cut: cut, truncated: truncated?}}
    end
  end

  defp read(path) do
    with {:error, reason} <- File.read(path),
         do: {:error, Error.new(:capture, reason, subject: path)}
  end

  defp wanted?(packet, protocol, interface) do
    (protocol == nil or packet.protocol in [protocol, nil]) and
      (interface == nil or packet.interface == interface) and from_kernel?(packet)
  end

  defp from_kernel?(%{direction: :in}), do: true
  defp from_kernel?(%{direction: :out}), do: false

  defp from_kernel?(%{bytes: <<_length::32, _type::16, flags::16-native, _rest::binary>>}) do
    Bitwise.band(flags, @request) == 0
  end

  defp from_kernel?(_cut), do: true

  # Messages are in the byte order of the machine on which they were captured.
  defp readable(packets) do
    case Enum.find(packets, &foreign?/1) do
      nil ->
        :ok

      packet ->
        reason =
          "its messages are in the other byte order: they are of a machine that this one cannot stand for"

        {:error, %DecodeError{what: :capture, offset: packet.offset, reason: reason}}
    end
  end

  defp foreign?(%{length: length, bytes: <<bytes::binary-4, _rest::binary>>}) do
    <<native::32-native>> = bytes
    <<big::32-big>> = bytes
    <<little::32-little>> = bytes
    other = if native == big, do: little, else: big
    native > length and other >= 16 and other <= length
  end

  defp foreign?(_short), do: false

  defp play(packets, send, timed?) do
    start = System.monotonic_time(:nanosecond)
    # Simple packets have no time.
    first = Enum.find_value(packets, & &1.time)

    Enum.each(packets, fn packet ->
      if timed? and packet.time != nil, do: sleep_until(start + max(packet.time - first, 0))
      send.(packet)
    end)
  end

  defp sleep_until(time) do
    left = div(time - System.monotonic_time(:nanosecond) + 999_999, 1_000_000)

    if left > 0 do
      Process.sleep(min(left, @longest_sleep))
      sleep_until(time)
    end
  end

  defp cut?(packet), do: packet.protocol == nil or byte_size(packet.bytes) < packet.length

  defp message(packet, tag, socket) do
    if cut?(packet),
      do: {:netlink_error, socket, Error.new(:recv, :emsgsize, length: packet.length)},
      else: {tag, socket, packet.bytes}
  end
end
