defmodule NetlinkPort.HostileFramesTest do
  # Hostile frames to the executable. Each has a named answer or a named exit code, takes no more memory than the
  # frame itself, and leaves the helper running.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2]
  import NetlinkPort.Program

  alias NetlinkPort.Helper.Protocol

  @max_frame 16_777_280
  # The tags that a command may have, as docs/protocol.md lists them.
  @tags [97, 98, 100, 104, 106, 107, 108, 109, 110, 119]

  describe "frames" do
    test "can arrive byte by byte" do
      port = open_port([:stream])
      {[_hello], ""} = read_frames(port, "", 1)

      frames = [
        vector!("ping"),
        "",
        Protocol.command(5, {:close, 7}),
        IO.iodata_to_binary(Protocol.send(6, 7, "datagram", 8)),
        <<131, 80>>,
        vector!("ping")
      ]

      for frame <- frames, <<(byte <- <<byte_size(frame)::32, frame::binary>>)>> do
        Port.command(port, <<byte>>)
      end

      {said, ""} = read_frames(port, "", 6)

      assert Enum.map(said, &Protocol.decode/1) ==
               [{:reply, 11, {:ok, nil}}, {:malformed, :empty}] ++
                 closed(5) ++ closed(6) ++ [{:malformed, :tag}, {:reply, 11, {:ok, nil}}]
    end

    test "can arrive cut at any byte" do
      port = open_port([:stream])
      {[_hello], ""} = read_frames(port, "", 1)
      frame = Protocol.command(5, {:set, 7, :rcvbuf, 1})
      bytes = :binary.copy(<<byte_size(frame)::32, frame::binary>>, 3)
      [answer] = closed(5)

      for cut <- 0..byte_size(bytes) do
        {first, second} = :erlang.split_binary(bytes, cut)
        Port.command(port, first)
        Port.command(port, second)
        {said, ""} = read_frames(port, "", 3)
        assert {cut, Enum.map(said, &Protocol.decode/1)} == {cut, List.duplicate(answer, 3)}
      end
    end

    test "up to the limit are accepted" do
      program = start!()
      # {dance, 5, Binary}, as long as a frame may be.
      overhead = byte_size(term({:dance, 5, ""}))
      frame = term({:dance, 5, :binary.copy("x", @max_frame - overhead)})
      assert byte_size(frame) == @max_frame
      assert_said(program, [{frame, refused(5, "unknown command")}])
    end

    test "beyond the limit end the helper with 65 as soon as their length is read" do
      for length <- [@max_frame + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF] do
        port = open_port([:stream])
        {:os_pid, os_pid} = Port.info(port, :os_pid)
        {[_hello], ""} = read_frames(port, "", 1)
        Port.command(port, <<length::32>>)
        assert_receive {^port, {:exit_status, status}}, within(10_000)
        assert {length, status} == {length, 65}
        eventually!(fn -> not running?(os_pid) end)
      end
    end

    # If the helper allocated the length in the header, the limit on its address space would end it.
    test "of 4 GiB are refused before memory is allocated for them" do
      limited = script!(~s(ulimit -v 65536; exec "#{executable()}"))

      for length <- [@max_frame + 1, 0xFFFFFFFF] do
        %{port: port} = start_stream!(limited)
        Port.command(port, <<length::32, "and some of its bytes">>)
        assert_receive {^port, {:exit_status, status}}, within(10_000)
        assert {length, status} == {length, 65}
      end

      # The longest frame allowed fits.
      %{port: port} = start_stream!(limited)
      Port.command(port, [<<@max_frame::32>>, :binary.copy(<<0>>, @max_frame)])
      {[said], ""} = read_frames(port, "", 1)
      assert Protocol.decode(said) == {:malformed, :version}
    end

    test "of which only the length has arrived are waited for" do
      for length <- [1, 9, 300_000, @max_frame] do
        program = %{port: port} = start_stream!()
        before = bytes_read(program)
        Port.command(port, <<length::32>>)
        eventually!(fn -> bytes_read(program) == before + 4 and waiting?(program) end)
        assert_peak(program, length)
        Port.command(port, :binary.copy(<<80>>, length))
        {[said], ""} = read_frames(port, "", 1)
        assert {length, Protocol.decode(said)} == {length, {:malformed, :version}}
        Port.command(port, <<11::32, vector!("ping")::binary>>)
        {[said], ""} = read_frames(port, "", 1)
        assert Protocol.decode(said) == {:reply, 11, {:ok, nil}}
        assert_at_rest(program)
      end
    end

    test "before a frame that is too long are answered" do
      port = open_port([:stream])
      {[_hello], ""} = read_frames(port, "", 1)
      Port.command(port, <<0::32>>)
      {[said], ""} = read_frames(port, "", 1)
      assert Protocol.decode(said) == {:malformed, :empty}
      Port.command(port, <<255, 255, 255, 255>>)
      assert_receive {^port, {:exit_status, 65}}, within(10_000)
    end
  end

  defp bytes_read(%{os_pid: os_pid}) do
    [_, bytes] = Regex.run(~r/rchar: (\d+)/, File.read!("/proc/#{os_pid}/io"))
    String.to_integer(bytes)
  end

  defp waiting?(%{os_pid: os_pid}), do: File.read!("/proc/#{os_pid}/stat") =~ ~r/\) S /

  describe "hostile frames" do
    test "that begin with any tag are malformed, or are no command" do
      program = start!()

      for tag <- 0..255 do
        alone =
          case tag do
            # The empty list is a whole term, without a reference that an answer could name.
            106 -> []
            tag when tag in @tags -> malformed(:truncated)
            _other -> malformed(:tag)
          end

        # An integer, an atom and so on, all zeroes, with zeroes behind.
        with_zeroes =
          case tag do
            108 -> malformed(:improper)
            tag when tag in @tags -> malformed(:trailing)
            _other -> malformed(:tag)
          end

        assert_said(program, [
          {<<131, tag>>, alone},
          {<<131, tag, 0::512>>, with_zeroes},
          # And inside a command.
          {<<131, 104, 2, 119, 4, "ping", tag>>, if(tag == 106, do: [], else: alone)}
        ])
      end

      assert_at_rest(program)
    end

    # Each tag of the External Term Format that no command has, in a term as Erlang would encode it.
    defp well_formed do
      atom = <<119, 1, "a">>

      %{
        70 => <<1.5::float>>,
        77 => <<1::32, 3, 0xE0>>,
        82 => <<0>>,
        88 => <<atom::binary, 1::32, 1::32, 1::32>>,
        89 => <<atom::binary, 1::32, 1::32>>,
        90 => <<1::16, atom::binary, 1::32, 1::32>>,
        99 => "1.50000000000000000000e+00" <> <<0::40>>,
        101 => <<atom::binary, 1::32, 0>>,
        102 => <<atom::binary, 1::32, 0>>,
        103 => <<atom::binary, 1::32, 1::32, 0>>,
        105 => <<1::32, 97, 1>>,
        111 => <<1::32, 0, 5>>,
        112 => <<46::32, 0, 0::128, 0::32, 0::32, atom::binary, 97, 0, 97, 0, 106>>,
        113 => <<atom::binary, atom::binary, 97, 1>>,
        114 => <<1::16, atom::binary, 0, 1::32>>,
        115 => <<1, "a">>,
        116 => <<1::32, atom::binary, 97, 1>>,
        117 => <<0::32, 103, atom::binary, 1::32, 1::32, 0, atom::binary, 97, 0, 97, 0>>,
        118 => <<1::16, "a">>,
        120 => <<atom::binary, 1::64, 1::32>>,
        121 => <<0::64, 97, 1>>
      }
    end

    test "with tags that no command has are refused, well formed and of any length" do
      program = start!()

      for {tag, body} <- well_formed() do
        assert_said(program, [
          {<<131, tag, body::binary>>, malformed(:tag)},
          {<<131, 104, 2, 119, 4, "ping", tag, body::binary>>, malformed(:tag)},
          {<<131, 104, 2, 119, 4, "ping", 108, 1::32, tag, body::binary, 106>>, malformed(:tag)},
          {<<131, tag, 0xFFFFFFFF::32, body::binary>>, malformed(:tag)}
        ])
      end
    end

    test "of all kinds can arrive byte by byte" do
      program = %{port: port} = start_stream!()

      for {frame, expected} <- told_apart() do
        for <<(byte <- <<byte_size(frame)::32, frame::binary>>)>>,
          do: Port.command(port, <<byte>>)

        {[said], ""} = read_frames(port, "", 1)
        assert {frame, [Protocol.decode(said)]} == {frame, expected}
      end

      assert_at_rest(program)
    end

    test "are reported with their reasons" do
      program = start!()
      assert_said(program, told_apart())
      assert_at_rest(program)
    end

    defp told_apart do
      [
        {"", malformed(:empty)},
        {<<0>>, malformed(:version)},
        {<<130, 106>>, malformed(:version)},
        {<<132, 106>>, malformed(:version)},
        {"Usage: netlink_port", malformed(:version)},
        {<<131>>, malformed(:truncated)},
        {<<131, 98, 1, 2, 3>>, malformed(:truncated)},
        {<<131, 109, 0xFFFFFFFF::32>>, malformed(:truncated)},
        {<<131, 109, 5::32, "four">>, malformed(:truncated)},
        {<<131, 119, 5, "four">>, malformed(:truncated)},
        {<<131, 100, 0xFFFF::16, "four">>, malformed(:truncated)},
        {<<131, 107, 5::16, "four">>, malformed(:truncated)},
        {<<131, 110, 8, 0, 1>>, malformed(:truncated)},
        {<<131, 104, 255>>, malformed(:truncated)},
        {<<131, 108, 1::32>>, malformed(:truncated)},
        {<<131, 108, 1::32, 106>>, malformed(:truncated)},
        {<<131, 108, 0xFFFFFFFF::32>>, malformed(:count)},
        {<<131, 106, 106>>, malformed(:trailing)},
        {vector!("ping") <> <<0>>, malformed(:trailing)},
        {vector!("ping") <> vector!("ping"), malformed(:trailing)},
        {vector!("send") <> <<0>>, malformed(:trailing)},
        {binary_part(vector!("send"), 0, 23), malformed(:truncated)},
        {term([1 | 2]), malformed(:improper)},
        {term({:ping, [{:a, 1} | :b]}), malformed(:improper)},
        {<<131, 108, 0::32, 97, 1>>, malformed(:improper)}
      ]
    end

    test "with atoms that are not UTF-8 are refused" do
      program = start!()

      for name <- [
            <<200>>,
            <<0xFF>>,
            <<0xC0, 0x80>>,
            <<0xED, 0xA0, 0x80>>,
            <<"pin", 0xE7>>,
            <<0xF4, 0x90, 0x80, 0x80>>,
            <<0xC3>>
          ] do
        size = byte_size(name)

        assert_said(program, [
          {<<131, 119, size, name::binary>>, malformed(:atom)},
          {<<131, 100, size::16, name::binary>>, malformed(:atom)},
          {<<131, 104, 2, 119, size, name::binary, 97, 5>>, malformed(:atom)},
          # As a target, and as an option.
          {<<131, 104, 4, 119, 4, "open", 97, 5, 97, 7, 119, size, name::binary>>,
           malformed(:atom)},
          {<<131, 104, 4, 119, 3, "get", 97, 5, 97, 7, 119, size, name::binary>>,
           malformed(:atom)}
        ])
      end

      # These atoms are UTF-8, but no commands.
      for name <- ["", "pïng", "\0", "ping\n", String.duplicate("å", 127)] do
        frame = <<131, 104, 2, 119, byte_size(name), name::binary, 97, 5>>
        assert_said(program, [{frame, refused(5, "unknown command")}])
      end
    end

    test "with integers that no command has are refused" do
      program = start!()

      for integer <- [1 <<< 64, -(1 <<< 64), 1 <<< 70, 1 <<< 2_000, -(1 <<< 2_000)] do
        assert_said(program, [
          {term(integer), malformed(:integer)},
          {term({:ping, integer}), malformed(:integer)}
        ])
      end

      assert_said(program, [
        # LARGE_BIG_EXT, a tag of its own.
        {term(1 <<< 3_000), malformed(:tag)},
        {term(-(1 <<< 3_000)), malformed(:tag)},
        {<<131, 111, 1::32, 0, 5>>, malformed(:tag)},
        {<<131, 111, 0xFFFFFFFF::32, 0, 5>>, malformed(:tag)},
        # Wrong lengths.
        {<<131, 110, 255, 0, 5>>, malformed(:integer)},
        {<<131, 110, 9, 0, 5, 0::64>>, malformed(:integer)},
        {<<131, 110, 8, 0, 5>>, malformed(:truncated)},
        {<<131, 110, 8>>, malformed(:truncated)},
        {<<131, 110, 1, 0, 5, 0>>, malformed(:trailing)},
        # A sign byte that is neither 0 nor 1.
        {<<131, 110, 1, 2, 5>>, malformed(:integer)},
        {<<131, 110, 1, 255, 5>>, malformed(:integer)},
        # The largest integers, which are no references.
        {term({:ping, (1 <<< 64) - 1}), []},
        {term({:ping, -(1 <<< 64) + 1}), []},
        {term({:ping, 1 <<< 31}), []},
        {term({:ping, -1}), []},
        # An integer as a small big, although a shorter form exists.
        {<<131, 104, 2, 119, 4, "ping", 110, 8, 0, 5, 0::56>>, [{:reply, 5, {:ok, nil}}]},
        {<<131, 104, 2, 119, 4, "ping", 110, 0, 0>>, []},
        {<<131, 104, 2, 100, 4::16, "ping", 98, 5::32>>, [{:reply, 5, {:ok, nil}}]}
      ])
    end

    test "with terms that no command has are refused" do
      program = start!()

      for term <- [
            1.5,
            %{},
            %{a: 1},
            self(),
            make_ref(),
            &Protocol.decode/1,
            fn -> :ok end,
            program.port,
            <<1::3>>,
            List.to_tuple(Enum.to_list(1..256)),
            {:ping, 5, %{}}
          ] do
        assert_said(program, [{term(term), malformed(:tag)}])
      end
    end

    test "that are compressed are refused" do
      program = start!()
      bomb = :erlang.term_to_binary(:binary.copy("x", 10_000_000), [:compressed])
      assert <<131, 80, _rest::binary>> = bomb
      assert byte_size(bomb) < 100_000
      ping = :erlang.term_to_binary({:ping, 5, :binary.copy("x", 1_000)}, [:compressed])

      assert_said(program, [
        {bomb, malformed(:tag)},
        {ping, malformed(:tag)},
        # Wrong sizes, and a compressed term in a term.
        {<<131, 80, 0xFFFFFFFF::32, :zlib.compress(<<97, 5>>)::binary>>, malformed(:tag)},
        {<<131, 80, 0::32>>, malformed(:tag)},
        {<<131, 104, 2, 119, 4, "ping", bomb |> binary_part(1, 100)::binary>>, malformed(:tag)}
      ])

      assert_at_rest(program)
    end

    test "with deeply nested terms are refused" do
      program = start!()

      assert_said(program, [
        {<<131, :binary.copy(<<104, 1>>, 1_000_000)::binary, 106>>, malformed(:depth)},
        {<<131, :binary.copy(<<108, 1::32>>, 1_000_000)::binary>>, malformed(:depth)},
        {<<131, :binary.copy(<<108, 1::32, 104, 1>>, 500_000)::binary>>, malformed(:depth)},
        {<<131, 104, 2, 119, 4, "ping", :binary.copy(<<104, 1>>, 1_000_000)::binary>>,
         malformed(:depth)},
        # The limit: 8 levels are accepted, 9 are not.
        {<<131, :binary.copy(<<104, 1>>, 7)::binary, 106>>, []},
        {<<131, :binary.copy(<<104, 1>>, 8)::binary, 106>>, malformed(:depth)}
      ])

      # The memory that these frames needed is freed with the next one.
      assert_at_rest(program)
    end

    test "with more terms than a command has are refused" do
      program = start!()
      # The list itself counts.
      nils = fn count -> <<131, 108, count::32, :binary.copy(<<106>>, count + 1)::binary>> end

      assert_said(program, [
        {nils.(16_383), []},
        {nils.(16_384), malformed(:count)},
        {nils.(1_000_000), malformed(:count)},
        {<<131, 107, 0xFFFF::16, 0::size(0xFFFF)-unit(8)>>, malformed(:count)},
        # Wide and deep: the terms of every level count.
        {<<131, 104, 2, :binary.copy(nils.(10_000) |> binary_part(1, 10_006), 2)::binary>>,
         malformed(:count)}
      ])

      assert_at_rest(program)
    end

    test "of a large size leave no memory in use" do
      program = start!()
      {:ok, _opened} = opened(program, 1)
      large = :binary.copy("x", 16 * 1024 * 1024)

      # Each frame is made in its turn: all of them at once are more memory than some machines map.
      for {frame, expected} <- [
            {fn -> <<131, 109, byte_size(large)::32, large::binary>> end, []},
            {fn -> large end, malformed(:version)},
            {fn -> term({:send_to, 5, 99, 0, 0, large}) end, closed(5)},
            {fn -> IO.iodata_to_binary(Protocol.send(5, 99, large, byte_size(large))) end,
             closed(5)},
            {fn -> IO.iodata_to_binary(Protocol.send(5, 1, large, byte_size(large))) end,
             [{:reply, 5, {:error, {:send, 90, ""}}}]},
            {fn -> term({:set, 5, 1, :filter, large}) end,
             [{:reply, 5, {:error, {:setsockopt, 22, "filter"}}}]},
            {fn -> term({:set, 5, 1, :rcvbuf, large}) end,
             [{:reply, 5, {:error, {:setsockopt, 22, "rcvbuf"}}}]},
            {fn -> open(5, 2, {:path, large}) end, [{:reply, 5, {:error, {:open, 36, ""}}}]},
            {fn -> term({:dance, 5, large}) end, refused(5, "unknown command")},
            # Shorter frames after longer ones.
            {fn -> term({:dance, 5, binary_part(large, 0, 9_000_000)}) end,
             refused(5, "unknown command")},
            {fn -> term({:ping, 5, List.duplicate(binary_part(large, 0, 1_000), 15_000)}) end,
             refused(5, "unknown command")}
          ] do
        assert_said(program, [{frame.(), expected}])
        :erlang.garbage_collect()
        assert_at_rest(program)
      end
    end

    test "made from valid frames with changed bytes get the answer of a command, or none" do
      program = start!()
      :rand.seed(:exsss, {2, 7, 1828})
      # Without `stop`, which would end the helper.
      {_stop, frames} = Map.pop!(vectors(), "stop")
      frames = Map.values(frames)

      for _ <- 1..20 do
        events = say(program, for(_ <- 1..1_000, do: mutated(Enum.random(frames))))

        for event <- events do
          assert elem(event, 0) in [:malformed, :reply, :failed, :data, :overrun]
        end
      end

      assert_at_rest(program)
    end

    defp mutated(frame) do
      frame =
        Enum.reduce(1..:rand.uniform(4), frame, fn _, frame ->
          at = :rand.uniform(byte_size(frame)) - 1
          {head, <<_old, tail::binary>>} = :erlang.split_binary(frame, at)
          <<head::binary, :rand.uniform(256) - 1, tail::binary>>
        end)

      if :rand.uniform(4) == 1,
        do: binary_part(frame, 0, :rand.uniform(byte_size(frame)) - 1),
        else: frame
    end
  end
end
