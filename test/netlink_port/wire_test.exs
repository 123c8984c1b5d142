defmodule NetlinkPort.WireTest do
  # The helper reads what the library encodes: its decoder, without the helper, says what it has read
  # (test/fixtures/decoder.rs).
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2]

  alias NetlinkPort.Helper.Protocol

  @options ~w(add_membership drop_membership memberships pktinfo broadcast_error no_enobufs
              listen_all_nsid ext_ack cap_ack get_strict_chk rcvbuf sndbuf filter)a
  # docs/protocol.md.
  @max_depth 8
  @max_integer (1 <<< 64) - 1

  setup do
    port = Port.open({:spawn_executable, fixture!("decoder")}, [:binary, :exit_status, packet: 4])
    %{decoder: port}
  end

  # What the decoder reads in a frame: a command in Rust's notation, and a term that is encoded again.
  defp read(port, frame) do
    Port.command(port, frame)
    {receive_frame(port), receive_frame(port)}
  end

  defp receive_frame(port) do
    receive do
      {^port, {:data, frame}} -> frame
      {^port, {:exit_status, status}} -> raise "the decoder ended with exit status #{status}"
    after
      within(10_000) -> raise "the decoder does not answer"
    end
  end

  ## A command as Rust writes it

  defp command(reference, command), do: "Ok((Reference(#{reference}), Ok(#{shown(command)})))"

  defp shown({:open, handle, target, protocol, bind, user_peers, window, options}) do
    bind = if bind, do: "Some(#{bind})", else: "None"
    options = Enum.map_join(options, ", ", fn {name, value} -> "(#{pair(name, value)})" end)

    watched = match?({:watched, _target}, target)

    "Open(Handle(#{handle}), Spec { target: #{target(target)}, known: [#{known(target)}], " <>
      "watched: #{watched}, protocol: #{protocol}, " <>
      "bind: #{bind}, user_peers: #{user_peers}, options: [#{options}] }, #{window})"
  end

  defp shown({:set, handle, name, value}), do: "Set(Handle(#{handle}), #{pair(name, value)})"
  defp shown({:get, handle, name}), do: "Get(Handle(#{handle}), #{camel(name)})"
  defp shown({:info, handle}), do: "SocketInfo(Handle(#{handle}))"
  defp shown({:grant, bytes}), do: "GrantAll(#{bytes})"

  defp shown({:send_to, handle, port_id, groups, datagram}) do
    "SendTo(Handle(#{handle}), #{port_id}, #{groups}, #{bytes(datagram)})"
  end

  defp shown({:send, handle, datagram}), do: "Send(Handle(#{handle}), #{bytes(datagram)})"
  defp shown({name}), do: camel(name)

  # Close, Bind, Grant: a handle and numbers.
  defp shown(command) do
    [name, handle | numbers] = Tuple.to_list(command)
    "#{camel(name)}(#{Enum.join(["Handle(#{handle})" | numbers], ", ")})"
  end

  defp target(:host), do: "Host"
  defp target({:path, path}), do: "Path(#{bytes(path)})"
  defp target({:pid, pid}), do: "Pid(#{pid})"
  defp target({:watched, target}), do: target(target)
  defp target({:known, target, _processes}), do: target(target)

  defp known({:watched, target}), do: known(target)

  defp known({:known, _target, processes}) do
    Enum.map_join(processes, ", ", fn {id, started, inode} ->
      "Process { id: #{id}, started: #{started}, inode: #{inode} }"
    end)
  end

  defp known(_target), do: ""

  defp pair(name, value), do: "#{camel(name)}, #{value(value)}"

  defp value(true), do: "Integer(1)"
  defp value(false), do: "Integer(0)"
  defp value(number) when is_integer(number), do: "Integer(#{number})"
  defp value(program), do: "Program(#{bytes(program)})"

  defp bytes(bytes), do: "[#{bytes |> :binary.bin_to_list() |> Enum.join(", ")}]"
  defp camel(name), do: name |> Atom.to_string() |> Macro.camelize()

  test "a command with values at every limit is decoded as it was encoded", %{decoder: decoder} do
    handle = 0x7FFFFFFF

    for {reference, command} <- [
          {1, {:open, handle, :host, -0x80000000, 0xFFFFFFFF, true, @max_integer, []}},
          {0x7FFFFFFF,
           {:open, 0, {:pid, -0x80000000}, 0x7FFFFFFF, false, false, 0, [filter: ""]}},
          {0, {:close, handle}},
          {255, {:bind, 0, 0xFFFFFFFF, 0}},
          {256, {:bind, 0, 0, 0x80000000}},
          {5, {:set, handle, :rcvbuf, 0xFFFFFFFF}},
          {5, {:send_to, handle, 0xFFFFFFFF, 0x80000000, ""}},
          {5, {:stop}}
        ] do
      {read, _again} = read(decoder, Protocol.command(reference, command))
      assert read == command(reference, command)
    end
  end

  # PropEr, if it is installed (Debian: erlang-proper).
  if Code.ensure_loaded?(:proper) do
    describe "properties" do
      @describetag timeout: within(120_000)

      test "any command is decoded as it was encoded", %{decoder: decoder} do
        check(:proper_types.tuple([handle(), command_type()]), 3_000, fn {reference, command} ->
          frame = Protocol.command(reference, command)
          {read, again} = read(decoder, frame)
          read == command(reference, command) and again == frame
        end)
      end

      test "any grant is decoded as it was encoded", %{decoder: decoder} do
        check(:proper_types.tuple([handle(), window()]), 500, fn {handle, bytes} ->
          {one, _} = read(decoder, Protocol.grant(handle, bytes))
          {all, _} = read(decoder, Protocol.grant_all(bytes))
          {one, all} == {command(0, {:grant, handle, bytes}), command(0, {:grant, bytes})}
        end)
      end

      test "any datagram is decoded as it was encoded", %{decoder: decoder} do
        type = :proper_types.tuple([handle(), handle(), :proper_types.binary()])

        check(type, 1_000, fn {reference, handle, datagram} ->
          frame = Protocol.send(reference, handle, datagram, byte_size(datagram))
          {read, again} = read(decoder, frame)

          read == command(reference, {:send, handle, datagram}) and
            :erlang.binary_to_term(again) == {1, reference, handle, datagram}
        end)
      end

      # Any frame: the term of a command is read back, and any other is refused.
      test "any term is decoded, or refused if no command has it", %{decoder: decoder} do
        nesting = :proper_types.list(:proper_types.oneof([exactly(:tuple), exactly(:list)]))
        leaf = :proper_types.oneof([:proper_types.any(), wide_integer(), :proper_types.binary()])
        type = :proper_types.tuple([leaf, :proper_types.resize(10, nesting)])

        check(type, 10_000, fn {leaf, nesting} ->
          term = Enum.reduce(nesting, leaf, &nest/2)
          frame = :erlang.term_to_binary(term, minor_version: 2)

          case read(decoder, frame) do
            {"Err(" <> _reason, ""} -> not readable?(term, @max_depth)
            {_read, again} -> readable?(term, @max_depth) and same?(again, term)
          end
        end)
      end

      defp nest(:tuple, term), do: {term, 1}
      defp nest(:list, term), do: [term, []]

      defp same?(frame, term), do: :erlang.binary_to_term(frame, [:safe]) === term

      # The terms of a command, docs/protocol.md.
      defp readable?(_term, 0), do: false
      defp readable?(integer, _) when is_integer(integer), do: abs(integer) <= @max_integer
      defp readable?(atom, _) when is_atom(atom), do: byte_size(Atom.to_string(atom)) <= 255
      defp readable?(binary, _) when is_binary(binary), do: true

      defp readable?(tuple, depth) when is_tuple(tuple) and tuple_size(tuple) <= 255 do
        tuple |> Tuple.to_list() |> Enum.all?(&readable?(&1, depth - 1))
      end

      defp readable?(list, depth) when is_list(list) do
        # A list of bytes is a string, which does not nest deeper.
        not List.improper?(list) and
          (Enum.all?(list, &(&1 in 0..255)) or Enum.all?(list, &readable?(&1, depth - 1)))
      end

      defp readable?(_other, _depth), do: false

      defp command_type do
        :proper_types.oneof([
          :proper_types.tuple([
            exactly(:open),
            handle(),
            target_type(),
            protocol(),
            :proper_types.oneof([exactly(false), word()]),
            :proper_types.boolean(),
            window(),
            :proper_types.list(:proper_types.tuple([option(), value_type()]))
          ]),
          :proper_types.tuple([exactly(:close), handle()]),
          :proper_types.tuple([exactly(:bind), handle(), word(), word()]),
          :proper_types.tuple([exactly(:set), handle(), option(), value_type()]),
          :proper_types.tuple([exactly(:get), handle(), option()]),
          :proper_types.tuple([
            exactly(:send_to),
            handle(),
            word(),
            word(),
            :proper_types.binary()
          ]),
          :proper_types.tuple([exactly(:info), handle()]),
          :proper_types.oneof([exactly({:info}), exactly({:ping}), exactly({:stop})])
        ])
      end

      defp target_type do
        :proper_types.oneof([
          exactly(:host),
          known_type(),
          :proper_types.tuple([exactly(:watched), known_type()])
        ])
      end

      # Without processes it is the target alone.
      defp known_type do
        number = :proper_types.integer(0, 0xFFFFFFFFFFFFFFFF)
        process = :proper_types.tuple([protocol(), number, number])
        processes = :proper_types.non_empty(:proper_types.list(process))

        :proper_types.oneof([
          place_type(),
          :proper_types.tuple([exactly(:known), place_type(), processes])
        ])
      end

      defp place_type do
        :proper_types.oneof([
          :proper_types.tuple([exactly(:path), :proper_types.binary()]),
          :proper_types.tuple([exactly(:pid), protocol()])
        ])
      end

      defp value_type do
        :proper_types.oneof([:proper_types.boolean(), word(), :proper_types.binary()])
      end

      defp option, do: :proper_types.oneof(Enum.map(@options, &exactly/1))

      defp handle, do: number(0, 0x7FFFFFFF)
      defp word, do: number(0, 0xFFFFFFFF)
      defp window, do: number(0, @max_integer)
      defp protocol, do: number(-0x80000000, 0x7FFFFFFF)
      defp wide_integer, do: number(-(1 <<< 70), 1 <<< 70)

      # PropEr draws small numbers from a wide range. These are around powers of two, which include the limits of each
      # length on the wire.
      defp number(least, most) do
        :proper_types.oneof(
          for bit <- 0..70,
              power <- [1 <<< bit, -(1 <<< bit)],
              {from, to} = {max(least, power - 40), min(most, power + 40)},
              from <= to do
            :proper_types.integer(from, to)
          end
        )
      end

      defp exactly(term), do: :proper_types.exactly(term)

      # Fails with the counterexample that PropEr has shrunk.
      defp check(type, count, property) do
        options = [:quiet, :long_result, numtests: count]
        assert :proper.quickcheck(:proper.forall(type, property), options) == true
      end
    end
  end
end
