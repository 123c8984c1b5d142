defmodule NetlinkPort.Golden do
  @moduledoc false
  # Datagrams recorded from the kernel: test/golden/netlink.txt.

  @path Path.expand("../golden/netlink.txt", __DIR__)
  @external_resource @path

  @all for line <- File.stream!(@path),
           [name, hex] <- [String.split(String.trim(line), ": ")],
           not String.starts_with?(name, "#"),
           into: %{},
           do: {name, Base.decode16!(hex, case: :lower)}

  @doc "A datagram by its name."
  def datagram!(name), do: Map.fetch!(@all, name)

  @doc "All datagrams."
  def datagrams, do: Map.values(@all)
end
