defmodule NetlinkPort.Helper.Look do
  @moduledoc false
  # On which mount the helper's file lies, which some sentences about a missing capability depend on. It is found out
  # when the first such sentence is made: a start does without, since a look at the machine takes longer than the rest of
  # what a server does at its start.
  #
  # Danger: a file system may not answer. So one process looks, once for each server, and the processes that want the
  # sentence wait for it, all until the same moment. After that, the sentence does without. No server calls this module,
  # and no connection.

  alias NetlinkPort.{Deadline, ProcessLimit}
  alias NetlinkPort.Helper.{Privileges, Reference}

  # How long the sentences wait for the look, in ms.
  @patience 1_000

  @doc "What the helper may do, with what the sentence about a missing capability depends on."
  @spec privileges(Reference.t(), atom()) :: Privileges.t()
  def privileges(helper, capability) do
    known = Reference.privileges(helper)

    if Privileges.mount_counts?(known, capability) do
      :ok = await(fn -> look(helper, known, Deadline.at(@patience)) end)
      Reference.privileges(helper)
    else
      known
    end
  end

  # A process that looks when the time is up goes on alone.
  defp await(look) do
    _whether =
      with {:ok, {_pid, monitor}} <- ProcessLimit.spawn_monitor(look),
           do: ended(monitor, @patience)

    :ok
  end

  defp look(helper, known, until) do
    case Reference.looker(helper, until) do
      {pid, _until} when pid == self() ->
        Reference.put_privileges(helper, Privileges.with_mount(known))

      {pid, until} ->
        ended(Process.monitor(pid), Deadline.left(until))
    end
  end

  defp ended(monitor, timeout) do
    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> true
    after
      timeout -> Process.demonitor(monitor, [:flush])
    end
  end
end
