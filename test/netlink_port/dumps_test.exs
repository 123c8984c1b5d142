defmodule NetlinkPort.DumpsTest do
  # Dumps that fail: the kernel's datagrams reach the owner unchanged.
  use NetlinkPort.Case, async: true

  @moduletag :root

  @newaddr 20
  @getaddr 22
  @done 3
  @error 2
  @dump_request 0x301
  @dump_interrupted 0x10
  @ebusy 16

  setup do
    netns = netns!()
    lines = for n <- 1..4_000, do: "addr add 10.0.#{div(n, 256)}.#{rem(n, 256)}/32 dev lo"
    ip_batch!(netns, lines)
    # The window lets one datagram through at a time, so that the dump waits in the kernel.
    opts = [netns: {:name, netns}, active: false, window: 1]
    {:ok, socket} = NetlinkPort.open(start_server!(), :route, opts)
    %{netns: netns, socket: socket}
  end

  defp dump!(socket, sequence) do
    request = Rtnl.message(@getaddr, @dump_request, sequence, <<2, 0::56>>)
    assert :ok = NetlinkPort.send(socket, request, wait: true)
  end

  # All datagrams up to the end of a dump.
  defp rest(socket, sequence) do
    assert {:ok, datagram} = NetlinkPort.recv(socket, within(5_000))
    done? = Enum.any?(Rtnl.messages(datagram), &match?({@done, ^sequence, _}, &1))
    [datagram | if(done?, do: [], else: rest(socket, sequence))]
  end

  defp flags(<<size::32-native, _type::16, flags::16-native, _::binary>> = datagram) do
    rest = binary_part(datagram, size, byte_size(datagram) - size)
    [flags | if(byte_size(rest) >= 16, do: flags(rest), else: [])]
  end

  test "a second dump before the first is read to its end is EBUSY; the first is complete",
       context do
    %{socket: socket} = context
    dump!(socket, 1)
    dump!(socket, 2)
    messages = socket |> rest(1) |> Enum.flat_map(&Rtnl.messages/1)

    assert [{@error, 2, <<errno::32-signed-native, _::binary>>}] =
             for({_, 2, _} = m <- messages, do: m)

    assert errno == -@ebusy
    assert Enum.count(messages, &match?({@newaddr, 1, _}, &1)) == 4_001
    dump!(socket, 3)
    assert length(rest(socket, 3)) > 1
  end

  test "a dump that a change interrupts has NLM_F_DUMP_INTR", %{socket: socket, netns: netns} do
    dump!(socket, 1)
    quiet = rest(socket, 1)
    assert Enum.all?(Enum.flat_map(quiet, &flags/1), &(Bitwise.band(&1, @dump_interrupted) == 0))

    dump!(socket, 2)
    assert {:ok, _first} = NetlinkPort.recv(socket, within(5_000))
    ip!(["-n", netns, "addr", "add", "10.9.9.9/32", "dev", "lo"])
    interrupted = rest(socket, 2)

    assert Enum.any?(
             Enum.flat_map(interrupted, &flags/1),
             &(Bitwise.band(&1, @dump_interrupted) != 0)
           )
  end
end
