defmodule NetlinkPort.SandboxPlaces do
  @moduledoc false
  # What sandboxes do in a place (NetlinkPort.Places): a VM in the place calls it.

  alias NetlinkPort.Sandbox

  @doc """
  `unavailable/0`, and what each kind of sandbox does: `:ok`, or the sentence with which it is refused. `:built` has
  the helper as it is built, the others have that of the place.
  """
  def told(places, place) do
    Process.flag(:trap_exit, true)
    Application.ensure_all_started(:logger)
    Logger.configure(level: :none)
    helper = [server: [executable: NetlinkPort.Places.helper(places, place)]]

    Map.new(
      [
        plain: helper,
        path: [path: true] ++ helper,
        stand_in: [stand_in: true] ++ helper,
        built: [server: [executable: places.built]]
      ],
      fn {name, opts} -> {name, used(opts)} end
    )
    |> Map.put(:unavailable, Sandbox.unavailable())
  end

  defp used(opts) do
    case Sandbox.start_link(opts) do
      {:ok, sandbox} ->
        used(sandbox, opts)
        GenServer.stop(sandbox)

      {:error, sentence} when is_binary(sentence) ->
        sentence

      {:error, error} ->
        Exception.message(error)
    end
  rescue
    error -> "raised: " <> Exception.message(error)
  catch
    :exit, reason -> "exit: " <> inspect(reason)
  end

  defp used(sandbox, opts) do
    %{server: server, netns: netns} = Sandbox.info(sandbox)
    {:ok, socket} = NetlinkPort.open(server, :route, netns: netns, groups: [1])
    "0\n" = Sandbox.run!(sandbox, "id", ["-u"])
    Sandbox.fault(sandbox, :helper_stopped)
    Sandbox.fault(sandbox, :helper_continued)
    Sandbox.fault(sandbox, {:overrun, 2}, of: socket)
    receive do: ({:netlink_overrun, ^socket, 2} -> :ok)
    Sandbox.fault(sandbox, {:open_refused, :emfile})
    {:error, %{reason: :emfile}} = NetlinkPort.open(server, :route, netns: netns)
    Sandbox.fault(sandbox, :open_allowed)
    {:ok, other} = Sandbox.start_link()
    {_here, _there} = Sandbox.veth(sandbox, other)
    GenServer.stop(other)

    if opts[:stand_in] do
      Sandbox.fault(sandbox, {:open_refused, :eperm})
      {:error, %{reason: :eperm}} = NetlinkPort.open(server, :route, netns: netns)
    end

    Sandbox.fault(sandbox, :helper_killed)
    Sandbox.fault(sandbox, :namespace_gone)
    Sandbox.fault(sandbox, :namespace_back)
    {:ok, _socket} = NetlinkPort.open(server, :route, netns: Sandbox.info(sandbox).netns)
  end
end
