defmodule NetlinkPort.CapabilityTest do
  use ExUnit.Case, async: true

  import Bitwise, only: [<<<: 2, |||: 2]

  alias NetlinkPort.Capability

  test "the numbers are those of include/uapi/linux/capability.h" do
    path = "/usr/include/linux/capability.h"

    with {:ok, text} <- File.read(path) do
      for [_all, name, number] <- Regex.scan(~r/^#define\s+(CAP_\w+)\s+(\d+)\s*$/m, text) do
        assert [atom] = Capability.names(1 <<< String.to_integer(number))
        assert Capability.shown(atom) == name
      end
    end

    assert Capability.names(1 <<< 21) == [:sys_admin]
    assert Capability.names(0) == []
    assert Capability.names(1 <<< 12 ||| 1 <<< 11) == [:net_broadcast, :net_admin]
    assert Capability.in?(1 <<< 12, :net_admin)
    refute Capability.in?(1 <<< 12, :sys_admin)
  end
end
