# frames.exs BYTE_ORDER FOLDER: writes the frames that converse.sh sends to the helper of another machine: open a
# socket in a namespace, by path; ask for its info; dump the links there. BYTE_ORDER, little or big, is that of the
# machine, in which netlink messages are.
alias NetlinkPort.Helper.Protocol

[order, folder] = System.argv()
# RTM_GETLINK of all, NLM_F_REQUEST | NLM_F_DUMP, with an empty struct ifinfomsg.
header = {32, 18, 0x301, 1, 0}

request =
  case {order, header} do
    {"little", {length, type, flags, sequence, port}} ->
      <<length::32-little, type::16-little, flags::16-little, sequence::32-little,
        port::32-little>>

    {"big", {length, type, flags, sequence, port}} ->
      <<length::32, type::16, flags::16, sequence::32, port::32>>
  end <> <<0::128>>

for {name, path} <- [{"there", "/run/netns/there"}, {"held", "/run/held"}] do
  frames = [
    Protocol.grant_all(1_000_000),
    Protocol.command(1, {:open, 1, {:path, path}, 0, 0, false, 1_000_000, []}),
    Protocol.command(2, {:info, 1}),
    Protocol.send(3, 1, request, byte_size(request))
  ]

  framed =
    for frame <- frames, frame = IO.iodata_to_binary(frame), do: [<<byte_size(frame)::32>>, frame]

  File.write!(Path.join(folder, name), framed)
end
