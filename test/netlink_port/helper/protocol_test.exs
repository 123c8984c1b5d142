defmodule NetlinkPort.ProtocolTest do
  # The wire by the vectors of docs/vectors.txt, bytes that are no frames of it, and values that survive encoding and
  # decoding.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2]

  alias NetlinkPort.Helper.Protocol

  @max_handle 0x7FFFFFFF

  # Every vector by name: the command and its encoding, or the event that it is decoded to.
  defp commands do
    open = [ext_ack: true, add_membership: 33, filter: <<0, 6, 0, 0, 0, 4, 0, 0>>]
    path = {:path, "/run/netns/blue"}

    %{
      "open path" => Protocol.command(1, {:open, 7, path, 0, 0, false, 1_048_576, open}),
      "open pid" => Protocol.command(2, {:open, 8, {:pid, 4242}, 16, false, true, 1 <<< 40, []}),
      "open watched" =>
        Protocol.command(
          13,
          {:open, 10, {:watched, {:pid, 4242}}, 16, false, true, 1_048_576, []}
        ),
      "open known" =>
        Protocol.command(
          14,
          {:open, 11, {:watched, {:known, {:pid, 4242}, [{4242, 8_639_017, 1 <<< 40}]}}, 16,
           false, true, 1_048_576, []}
        ),
      "open host" => Protocol.command(3, {:open, 9, :host, -1, 0xFFFFFFFF, false, 0, []}),
      "pin" => Protocol.command(14, {:pin, 11, path}),
      "pin pid" => Protocol.command(15, {:pin, 12, {:pid, 4242}}),
      "pin host" => Protocol.command(16, {:pin, 13, :host}),
      "close" => Protocol.command(4, {:close, 7}),
      "bind" => Protocol.command(5, {:bind, 7, 0, 0x80000001}),
      "set" => Protocol.command(6, {:set, 7, :rcvbuf, 1_048_576}),
      "get" => Protocol.command(7, {:get, 7, :memberships}),
      "send" => Protocol.send(0, 7, <<0, 1, 2, 255>>, 4),
      "send answered" => Protocol.send(@max_handle, @max_handle, "", 0),
      "ask" => Protocol.ask(9, 7, <<0, 1, 2, 255>>, 4),
      "send_to" => Protocol.command(8, {:send_to, 7, 0, 1, "hi"}),
      "info socket" => Protocol.command(9, {:info, 7}),
      "info" => Protocol.command(10, {:info}),
      "grant" => Protocol.grant(7, 1 <<< 33),
      "grant all" => Protocol.grant_all(8_388_608),
      "ping" => Protocol.command(11, {:ping}),
      "stop" => Protocol.command(12, {:stop})
    }
  end

  defp events do
    hello = [
      program: "0.1.0",
      os_pid: 4242,
      home: {4, 4_026_531_840},
      may_leave: true,
      capabilities: [12, 21],
      max_frame: 16_777_280,
      max_fds: 4096,
      lowest_fd: 1024,
      user_namespace: 4_026_531_837,
      bounding: 0x1FFFFFFFFFF,
      no_new_privs: true,
      seccomp: 2
    ]

    socket = [
      namespace: {4, 4_026_531_840},
      cookie: nil,
      verified: true,
      port_id: 4_242,
      drops: 3_000_000_000,
      foreign: 1,
      received: 300,
      received_bytes: 1 <<< 40,
      sent: 7,
      sent_bytes: 140,
      queued_bytes: 768,
      queue_limit: 212_992,
      granted: 1_048_576,
      charged: 440
    ]

    pin = [namespace: {4, 4_026_531_840}, cookie: 1 <<< 40, descriptor: 4096]
    denied = {:setsockopt, 1, "listen_all_nsid"}
    datagram = <<0, 1, 2, 255>>

    %{
      "hello" => {:hello, 5, hello},
      "ok" => {:reply, 300, {:ok, nil}},
      "ok socket" => {:reply, 300, {:ok, socket}},
      "ok pin" => {:reply, 300, {:ok, pin}},
      "ok groups" => {:reply, 300, {:ok, [1, 33, 70_000]}},
      "error" => {:reply, 300, {:error, denied}},
      "failed" => {:failed, 7, :recv, 90, 5_000_000},
      "overrun" => {:overrun, 7, 3_000_000_000},
      "gone" => {:gone, 7},
      "malformed" => {:malformed, :tag},
      "data" => {:data, 7, datagram, nil},
      "data answer" => {:answer, 7, datagram},
      "data metadata" => {:data, 7, datagram, %{group: 33, nsid: -1, port_id: 0xFFFFFFFE}},
      "data metadata absent" => {:data, 7, datagram, %{group: nil, nsid: nil}}
    }
  end

  describe "vectors" do
    test "commands are encoded to exactly their bytes" do
      for {name, encoded} <- commands() do
        assert {name, hex(encoded)} == {name, hex(vector!(name))}
      end
    end

    test "events are decoded from exactly their bytes" do
      for {name, event} <- events() do
        assert {name, Protocol.decode(vector!(name))} == {name, event}
      end
    end

    test "all are tested" do
      tested = Map.keys(commands()) ++ Map.keys(events())
      assert Enum.sort(tested) == vectors() |> Map.keys() |> Enum.sort()
      # vectors/0 is a map, in which a repeated name would hide a vector.
      lines =
        Path.expand("../../../docs/vectors.txt", __DIR__) |> File.read!() |> String.split("\n")

      assert Enum.count(lines, &(&1 =~ ~r/^[^#].*: [0-9a-f]+$/)) == length(tested)
    end

    test "a command is not decoded as an event" do
      for {name, encoded} <- commands() do
        assert {:unknown, _term} = Protocol.decode(IO.iodata_to_binary(encoded)), name
      end
    end
  end

  test "a datagram of iodata is not copied, and has the given length" do
    large = :binary.copy("x", 100_000)
    frame = Protocol.send(1, 2, [large, ["y"]], 100_001)
    assert <<_prefix::binary-size(16), 100_001::32, rest::binary>> = IO.iodata_to_binary(frame)
    assert rest == large <> "y"
    assert [_prefix | [same, ["y"]]] = frame
    assert :erts_debug.same(same, large)
  end

  test "atoms are written the same way by every OTP release" do
    # SMALL_ATOM_UTF8_EXT, not ATOM_EXT.
    assert Protocol.command(11, {:ping}) == <<131, 104, 2, 119, 4, "ping", 97, 11>>
  end

  test "every atom that the helper can send exists in the library" do
    src = Path.expand("../../../src", __DIR__)
    sources = for path <- Path.wildcard("#{src}/**/*.rs"), do: File.read!(path)
    properties = Regex.scan(~r/\b(?:property|number)\(\s*"(\w+)"/, Enum.join(sources))
    # The atoms of stages and of `malformed` in Rust: arms of the two functions `atom`.
    arms = Regex.scan(~r/Self::\w+ => "(\w+)",/, source(src, "error.rs") <> source(src, "etf.rs"))
    names = for [_all, name] <- properties ++ arms, uniq: true, do: name
    assert "os_pid" in names and "setns" in names and "truncated" in names
    assert names -- Enum.map(Protocol.atoms(), &Atom.to_string/1) == []
  end

  defp source(src, file), do: src |> Path.join(file) |> File.read!()

  describe "bytes that are no event:" do
    test "a vector cut anywhere is unknown" do
      for {name, _event} <- events(), frame = vector!(name), size <- 0..(byte_size(frame) - 1) do
        cut = binary_part(frame, 0, size)
        assert {name, size, {:unknown, :not_a_term}} == {name, size, Protocol.decode(cut)}
      end
    end

    test "no version byte, or another one, is unknown" do
      for frame <- ["", <<0>>, <<130, 106>>, "Usage: netlink_port", <<104, 0>>] do
        assert Protocol.decode(frame) == {:unknown, :not_a_term}
      end
    end

    test "a term that is no event is unknown" do
      for term <- [
            nil,
            :ok,
            1,
            {},
            {:ok},
            {:ok, :one},
            {:ok, 1.0, nil},
            {:ok, 1, 2, 3},
            {:ok, "1", nil},
            {:error, 1, :open, 2},
            {:error, 1, "open", 2, ""},
            {:error, 1, :open, :enoent, ""},
            {:error, 1, :open, 2, nil},
            {:error, nil, :open, 2, ""},
            {:failed, 7, :recv, 90},
            {:failed, 7, :recv, 90, :long},
            {:failed, :seven, :recv, 90, 0},
            {:failed, 7, "recv", 90, 0},
            {:overrun, 7, nil},
            {:overrun, nil, 7},
            {:malformed, "tag"},
            {:hello, 1, %{}},
            {:hello, :one, []},
            {1, 7, "datagram", nil},
            {2, 7, 0, 0, 0},
            [:ok, 1],
            %{ok: 1}
          ] do
        assert Protocol.decode(:erlang.term_to_binary(term)) == {:unknown, term}
      end
    end

    test "a data frame with a wrong length is unknown" do
      for name <- ["data", "data metadata", "data metadata absent"] do
        frame = vector!(name)
        assert {:unknown, _longer} = Protocol.decode(frame <> <<0>>)
        {head, <<4::32, datagram::binary>>} = :erlang.split_binary(frame, byte_size(frame) - 8)

        for size <- [0, 3, 5, 0x7FFFFFFF, 0xFFFFFFFF] do
          wrong = <<head::binary, size::32, datagram::binary>>
          assert {:unknown, _term} = Protocol.decode(wrong), "#{name}, length #{size}"
        end
      end
    end

    test "an atom that does not exist is refused, and not created" do
      # A name that has never been an atom: half of it is random.
      name = "netlink_port_#{Base.encode16(:crypto.strong_rand_bytes(16))}"
      size = byte_size(name)

      for frame <- [
            <<131, 119, size, name::binary>>,
            <<131, 104, 2, 119, 9, "malformed", 119, size, name::binary>>,
            <<131, 104, 3, 119, 2, "ok", 97, 1, 119, size, name::binary>>
          ] do
        assert Protocol.decode(frame) == {:unknown, :not_a_term}
        assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
      end
    end

    test "a fun, a pid and a reference are unknown" do
      for term <- [self(), make_ref(), &Protocol.decode/1, fn -> :ok end] do
        assert {:unknown, _} = Protocol.decode(:erlang.term_to_binary(term))
      end
    end
  end

  test "a datagram of any bytes arrives unchanged, also if it looks like a frame" do
    for datagram <- ["", <<0>>, <<131, 104, 3>>, vector!("data"), :binary.copy(<<255>>, 100_000)],
        handle <- [0, 1, 255, 256, @max_handle] do
      assert Protocol.decode(data(handle, datagram)) == {:data, handle, datagram, nil}
    end
  end

  test "metadata of value 0 differs from absent metadata" do
    assert {:data, 1, "", %{group: 0, nsid: 0} = told} = Protocol.decode(data(1, 0, 0, 0, ""))
    refute is_map_key(told, :port_id)
    absent = -0x80000000
    # Each alone: the three do not depend on each other.
    assert {:data, 1, "", %{group: nil, nsid: 5, port_id: 9}} =
             Protocol.decode(data(1, absent, 5, 9, ""))

    assert {:data, 1, "", %{group: 5, nsid: nil, port_id: 0xFFFFFFFF}} =
             Protocol.decode(data(1, 5, absent, 0xFFFFFFFF, ""))
  end

  # PropEr, if it is installed (Debian: erlang-proper). Its macros are for Erlang, so that the functions behind them
  # are called.
  if Code.ensure_loaded?(:proper) do
    describe "properties" do
      test "decode never raises" do
        check(:proper_types.binary(), 2_000, &is_tuple(Protocol.decode(&1)))
        # Almost frames: a version byte, then anything.
        tail = :proper_types.tuple([:proper_types.integer(0, 255), :proper_types.binary()])

        check(tail, 5_000, fn {tag, bytes} ->
          is_tuple(Protocol.decode(<<131, tag, bytes::binary>>))
        end)
      end

      test "decode never raises on a vector with changed bytes" do
        frames = vectors() |> Map.values() |> Enum.map(&:proper_types.exactly/1)
        change = :proper_types.tuple([index(), :proper_types.integer(0, 255)])
        type = :proper_types.tuple([:proper_types.oneof(frames), :proper_types.list(change)])

        check(type, 5_000, fn {frame, changes} ->
          frame = Enum.reduce(changes, frame, fn {at, byte}, frame -> put(frame, at, byte) end)
          is_tuple(Protocol.decode(frame))
        end)
      end

      test "data frames are decoded as they were encoded" do
        word = :proper_types.integer(-0x80000000, 0x7FFFFFFF)
        handle = :proper_types.integer(0, @max_handle)
        sender = :proper_types.integer(0, 0xFFFFFFFF)
        datagram = :proper_types.binary()

        check(:proper_types.tuple([handle, datagram]), 500, fn {handle, datagram} ->
          Protocol.decode(data(handle, datagram)) == {:data, handle, datagram, nil}
        end)

        type = :proper_types.tuple([handle, word, word, sender, datagram])

        check(type, 500, fn {handle, group, nsid, sender, datagram} ->
          frame = data(handle, group, nsid, sender, datagram)
          {:data, ^handle, ^datagram, metadata} = Protocol.decode(frame)

          metadata.group == told(group) and metadata.nsid == told(nsid) and
            Map.get(metadata, :port_id, 0) == sender
        end)
      end

      test "commands are terms that binary_to_term/1 reads" do
        reference = :proper_types.integer(0, @max_handle)

        type = :proper_types.tuple([reference, reference, :proper_types.binary()])

        check(type, 500, fn {reference, handle, datagram} ->
          send = Protocol.send(reference, handle, datagram, byte_size(datagram))
          send = IO.iodata_to_binary(send)
          close = Protocol.command(reference, {:close, handle})

          :erlang.binary_to_term(send) == {1, reference, handle, datagram} and
            :erlang.binary_to_term(close) == {:close, reference, handle}
        end)
      end

      # Fails with the counterexample that PropEr has shrunk.
      defp check(type, count, property) do
        options = [:quiet, :long_result, numtests: count]
        assert :proper.quickcheck(:proper.forall(type, property), options) == true
      end

      defp index, do: :proper_types.integer(0, 0xFFFF)

      defp put(frame, at, byte) do
        at = rem(at, byte_size(frame))
        {head, <<_old, rest::binary>>} = :erlang.split_binary(frame, at)
        <<head::binary, byte, rest::binary>>
      end

      defp told(-0x80000000), do: nil
      defp told(value), do: value
    end
  end

  defp data(handle, datagram) do
    <<131, 104, 3, 97, 1, 98, handle::32, 109, byte_size(datagram)::32, datagram::binary>>
  end

  defp data(handle, group, nsid, sender, datagram) do
    <<131, 104, 6, 97, 2, 98, handle::32, 98, group::32, 98, nsid::32, 98, sender::32, 109,
      byte_size(datagram)::32, datagram::binary>>
  end

  defp hex(iodata), do: iodata |> IO.iodata_to_binary() |> Base.encode16(case: :lower)
end
