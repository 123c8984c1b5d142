defmodule NetlinkPort.Doctor.Namespaces do
  @moduledoc false
  # Checks whether namespaces can be entered: those of `ip netns`, or those that the caller named.

  alias NetlinkPort.{Doctor, FileName, Redaction, Socket}

  @folder "/run/netns"
  @named 8
  @alike 4

  @spec checks(GenServer.server(), [NetlinkPort.netns()] | nil) :: [Doctor.check()]
  def checks(server, nil) do
    # As bytes: File.ls/1 would encode names twice under LC_ALL=C.
    case :file.list_dir_all(@folder) do
      {:ok, []} ->
        [none()]

      {:ok, names} ->
        listed(
          server,
          for(name <- names |> Enum.map(&FileName.bytes/1) |> Enum.sort(), do: {:name, name})
        )

      {:error, :enoent} ->
        [none()]

      {:error, reason} ->
        [{:warn, "#{@folder}: #{reason}", "run it as a user that may read #{@folder}"}]
    end
  end

  def checks(server, places), do: told(for place <- places, do: check(server, place))

  # A namespace that is deleted during the check is no fault.
  defp listed(server, places) do
    looks = for place <- places, do: check(server, place)

    case Enum.reject(looks, &match?({_check, {:open, :enoent}}, &1)) do
      [] -> [none()]
      looks -> told(looks)
    end
  end

  defp told(looks) do
    {well, rest} = Enum.split_with(looks, &match?({:ok, _place}, &1))
    reached(for({:ok, place} <- well, do: place)) ++ Enum.flat_map(alike(rest), &some/1)
  end

  # Of many namespaces that fail for the same reason only some are shown.
  defp alike(failed) do
    failed
    |> Enum.group_by(fn {_check, reason} -> reason end, fn {check, _reason} -> check end)
    |> Map.values()
  end

  defp some(checks) do
    case Enum.split(checks, @alike) do
      {shown, []} ->
        shown

      {[{mark, _line, _remedy} | _] = shown, hidden} ->
        shown ++ [{mark, "... and #{length(hidden)} more, for the same reason", nil}]
    end
  end

  defp none do
    {:ok, "#{@folder} has no namespace to try; --netns takes a path",
     "to try one: ip netns add doctor, and ip netns del doctor afterwards"}
  end

  defp reached([]), do: []

  defp reached(names) do
    shown = names |> Enum.take(@named) |> Enum.join(", ")
    more = if length(names) > @named, do: " and #{length(names) - @named} more", else: ""
    [{:ok, "entered, and confirmed by the kernel: #{shown}#{more}", nil}]
  end

  defp check(server, place) do
    with {:ok, socket} <- NetlinkPort.open(server, :route, netns: place, active: false),
         {:ok, told} <- NetlinkPort.info(socket) do
      :ok = NetlinkPort.close(socket)

      if told.verified,
        do: {:ok, Redaction.plain(Socket.place(place))},
        else: {unconfirmed(Redaction.plain(Socket.place(place))), :unconfirmed}
    else
      {:error, error} ->
        {failed(place, error, Exception.message(error)), {error.stage, error.reason}}
    end
  end

  defp unconfirmed(place) do
    {:warn, "#{place}: entered, but the kernel does not confirm it",
     "before Linux 6.18 it tells only those with CAP_NET_ADMIN there"}
  end

  # No namespace is mounted on the file here. The file was left behind by a reboot, or a namespace is mounted on it in
  # another mount namespace. Danger: deleting the file would end that namespace, so no remedy here deletes it.
  defp failed({:name, _name}, %{stage: :setns, reason: :einval}, line) do
    {:warn, line,
     "it is left over, or it is alive in another mount namespace, the host's say: `ip netns list` tells where it was " <>
       "made; from there it can be passed on (--volume /run/netns:/run/netns:ro,rslave, MountFlags=slave). Do " <>
       "not delete the file here: that would end a namespace that is alive elsewhere"}
  end

  defp failed(_place, %{lacks: lacks}, line) when lacks != nil do
    {:fail, line, "see CAP_#{lacks |> Atom.to_string() |> String.upcase()} above"}
  end

  # The error's sentence already says what to do.
  defp failed(_place, _error, line), do: {:fail, line, nil}
end
