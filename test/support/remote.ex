defmodule NetlinkPort.Remote do
  @moduledoc false
  # What the tests of distribution run on another node: a module that it can load.

  alias NetlinkPort.{Error, Rtnl}

  def use_a_socket(server, netns) do
    opts = [netns: {:name, netns}, active: false, groups: [1]]
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    names = Rtnl.link_names(socket)
    :ok = NetlinkPort.setopts(socket, rcvbuf: 100_000)
    read = NetlinkPort.getopts(socket, [:rcvbuf])
    {:error, %Error{reason: :etimedout}} = NetlinkPort.recv(socket, 10)
    large = :binary.copy(<<0>>, 1_000_000)
    {:error, %Error{reason: :emsgsize}} = NetlinkPort.send(socket, large, wait: true)
    info = NetlinkPort.info(socket)
    groups = NetlinkPort.memberships(socket)
    closed = NetlinkPort.close(socket)
    {:error, %Error{reason: :ebadf}} = NetlinkPort.send(socket, "x")
    {names, read, groups, info, closed}
  end

  def run_a_server(test, name) do
    {:ok, server} = NetlinkPort.start_link(name: name)
    send(test, {:started, server})
    Process.sleep(:infinity)
  end

  def own_a_socket(test, server, opts) do
    {:ok, socket} = NetlinkPort.open(server, :route, opts)
    send(test, {:open, socket})
    pass_on(test)
  end

  defp pass_on(test) do
    receive do
      message -> send(test, {:got, message})
    end

    pass_on(test)
  end
end
