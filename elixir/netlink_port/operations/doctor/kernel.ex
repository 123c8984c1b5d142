defmodule NetlinkPort.Doctor.Kernel do
  @moduledoc false
  # Checks the kernel: its version, and by trying what it supports.

  alias NetlinkPort.{Arguments, Doctor, Environment, Error}

  # The oldest version that the library has run on (docs/kernels.md). pidfd_open(2) came with Linux 5.3.
  @oldest {5, 10}
  @protocols ~w(route generic netfilter sock_diag xfrm audit kobject_uevent connector crypto rdma selinux
                fib_lookup scsitransport iscsi usersock)a
  @needed [:route, :generic]
  # Tried even if the kernel shows no socket of its own: it never has one for usersock.
  @always [:usersock | @needed]

  @spec checks(GenServer.server(), map()) :: [Doctor.check()]
  def checks(server, info) do
    [version() | features(server, info)] ++ [pidfd(server) | protocols(server)]
  end

  defp version do
    {major, minor, patch} = :os.version()
    told = "Linux #{release() || "#{major}.#{minor}.#{patch}"}"

    if {major, minor} >= @oldest,
      do: {:ok, told, nil},
      else:
        {:warn, told <> " is older than 5.10, the oldest kernel that this library has run on",
         "upgrade, or run this library's tests on it: mix test"}
  end

  defp release do
    with {:ok, release} <- File.read("/proc/sys/kernel/osrelease"),
         do: String.trim(release),
         else: (_ -> nil)
  end

  defp features(server, info) do
    case NetlinkPort.open(server, :route, active: false) do
      {:ok, socket} ->
        {:ok, told} = NetlinkPort.info(socket)

        checks = [
          cookie(told.cookie),
          proof(told.verified, :net_admin in info.capabilities),
          option(socket, :ext_ack, "NETLINK_EXT_ACK", "4.12: errors say less without it"),
          option(
            socket,
            :get_strict_chk,
            "NETLINK_GET_STRICT_CHK",
            "4.20: dumps are not filtered"
          )
        ]

        :ok = NetlinkPort.close(socket)
        checks

      {:error, error} ->
        [{:fail, Exception.message(error), "without NETLINK_ROUTE nothing else can be looked at"}]
    end
  end

  defp cookie(nil) do
    {:warn, "SO_NETNS_COOKIE is not there: `:cookie` of info/1 is nil",
     "upgrade to Linux 5.14 or newer"}
  end

  defp cookie(_cookie), do: {:ok, "SO_NETNS_COOKIE", nil}

  defp proof(true, true), do: {:ok, "SIOCGSKNS: the kernel proves where a socket is", nil}
  defp proof(true, false), do: {:ok, "NS_GET_ID: the kernel proves where a socket is", nil}

  defp proof(false, false) do
    {:warn, "SIOCGSKNS is refused: places are taken on trust",
     "it takes CAP_NET_ADMIN, see above, or Linux 6.18 or newer"}
  end

  defp proof(false, true) do
    {:warn, "SIOCGSKNS is refused: places are taken on trust", ask(Environment.look())}
  end

  # Every kernel that is new enough for the library has SIOCGSKNS (Linux 4.10).
  defp ask(%{user_namespace: :other}) do
    "it takes CAP_NET_ADMIN in the user namespace that owns the network namespace, and this VM has it in a user " <>
      "namespace of its own: run it outside of that (`unshare -Ur`, a rootless container), or give it a network " <>
      "namespace of its own there, too (`unshare -Urn`)"
  end

  defp ask(_environment) do
    "have what stands between helper and kernel, such as a seccomp profile, let ioctl(2) through"
  end

  defp option(socket, name, constant, since) do
    case NetlinkPort.setopts(socket, [{name, true}]) do
      :ok -> {:ok, constant, nil}
      {:error, error} -> {:warn, "#{constant}: #{error.reason}", "upgrade to Linux " <> since}
    end
  end

  # The namespace itself may fail to open: pidfd_open(2) comes before that, and only it is checked here.
  defp pidfd(server) do
    place = {:pid, String.to_integer(System.pid())}

    case NetlinkPort.open(server, :route, netns: place, close_on: :namespace_gone) do
      {:error, %Error{stage: :watch} = error} ->
        {:fail, "pidfd_open(2): " <> Exception.message(error), allow()}

      {:ok, socket} ->
        :ok = NetlinkPort.close(socket)
        {:ok, "pidfd_open(2)", nil}

      {:error, _of_the_namespace} ->
        {:ok, "pidfd_open(2)", nil}
    end
  end

  # A new kernel has pidfd_open(2), so something before the kernel refuses it.
  defp allow do
    {major, minor, _patch} = :os.version()

    if {major, minor} >= @oldest,
      do: "have what stands between helper and kernel, such as a seccomp profile, let it through",
      else: "upgrade to Linux 5.10 or newer"
  end

  # socket(2) loads the module of a protocol that the kernel does not have yet, and a check changes nothing.
  defp protocols(server) do
    there = kernel_sockets()

    {tried, untried} =
      Enum.split_with(@protocols, &(&1 in @always or Arguments.protocol!(&1) in there))

    results = for protocol <- tried, do: {protocol, try_protocol(server, protocol)}
    opened = for {protocol, :ok} <- results, do: protocol
    missing = for {protocol, {:error, :eprotonosupport}} <- results, do: protocol

    refused =
      for {protocol, {:error, reason}} <- results,
          reason != :eprotonosupport,
          do: {protocol, reason}

    [
      {:ok, "protocols: " <> Enum.join(opened, ", "), nil},
      missing(missing),
      untried(untried)
      | for({protocol, reason} <- refused, do: {:warn, "#{protocol}: #{reason}", "see errno(3)"})
    ]
    |> Enum.reject(&is_nil/1)
  end

  # The protocols of which the kernel has a socket in this namespace. /proc/net/netlink has a line for each socket: its
  # address, protocol and port id, which is 0 for the kernel's.
  defp kernel_sockets do
    for {:ok, table} <- [File.read("/proc/net/netlink")],
        line <- String.split(table, "\n"),
        [_address, protocol, "0" | _rest] <- [String.split(line)],
        do: String.to_integer(protocol)
  end

  defp try_protocol(server, protocol) do
    case NetlinkPort.open(server, protocol, active: false) do
      {:ok, socket} -> NetlinkPort.close(socket)
      {:error, error} -> {:error, error.reason}
    end
  end

  defp missing([]), do: nil

  defp missing(protocols) do
    mark = if Enum.any?(@needed, &(&1 in protocols)), do: :fail, else: :ok
    {mark, "not in this kernel: " <> Enum.join(protocols, ", "), "take a kernel that has it"}
  end

  defp untried([]), do: nil

  defp untried(protocols) do
    {:ok, "not tried: " <> Enum.join(protocols, ", "),
     "the kernel has no socket of these in this namespace; to open one loads its module, if there is one"}
  end
end
