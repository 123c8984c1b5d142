defmodule NetlinkPort.ArgumentsTest do
  # A wrong argument raises in the caller, before anything is sent.
  use ExUnit.Case, async: true

  import Bitwise, only: [<<<: 2]

  alias NetlinkPort.Arguments

  test "each check of an argument raises for wrong values" do
    for {check, right, wrong} <- [
          {&Arguments.group!/1, [1, 0xFFFFFFFF], [0, 0x100000000, nil]},
          {&Arguments.uint32!(:port_id, &1), [0, 0xFFFFFFFF], [-1, 0x100000000, "1"]},
          {&Arguments.peer!/1, [{0, 0xFFFFFFFF}], [{0, -1}, {0x100000000, 0}, 1, {1}]},
          {&Arguments.timeout!/1, [0, :infinity], [-1, :never]},
          {&Arguments.server!/1, [self(), NetlinkPort, {:global, 1}, {:n, :n@h}],
           [1, "n", [], %{}]},
          {&Arguments.pid!(:owner, &1), [self()], [nil, 1]},
          {&Arguments.boolean!(:wait, &1), [true, false], ["yes", 1, nil]},
          {&Arguments.socket!/1, [], [nil, :socket, %{}]},
          {&Arguments.executable!/1, ["/bin/true", nil], [:netlink_port, [:netlink_port]]}
        ] do
      for value <- right, do: assert(check.(value) == value)

      for value <- wrong do
        error = assert_raise ArgumentError, fn -> check.(value) end
        # The message names the wrong value, or its wrong part.
        parts = if is_tuple(value), do: Tuple.to_list(value), else: []
        assert Enum.any?([value | parts], &(error.message =~ "got: #{inspect(&1)}"))
      end
    end
  end

  test "a peer that is not a pair of port id and groups raises" do
    assert_raise ArgumentError, ~r/port_id, groups/, fn -> Arguments.peer!({1}) end
    assert_raise ArgumentError, fn -> Arguments.peer!({-1, 0}) end
  end

  test "protocols of any number are left to the kernel" do
    for number <- [0, 17, 250, -1, 0x7FFFFFFF, -0x80000000] do
      assert Arguments.protocol!(number) == number
    end

    # No kernel has a protocol beyond an int: the helper is sent another number that no kernel has.
    for number <- [0x80000000, -0x80000001, 1 <<< 70],
        do: assert(Arguments.protocol!(number) == -1)
  end
end
