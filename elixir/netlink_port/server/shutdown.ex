defmodule NetlinkPort.Server.Shutdown do
  @moduledoc false
  # How the helper ends with its server.
  #
  # An orderly stop loses no command: by the time the helper acknowledges `stop`, it has carried out all commands
  # before it. A helper that does not acknowledge is killed. Otherwise its port could not be drained, would outlive
  # the server, and would keep the VM from stopping.

  alias NetlinkPort.Deadline
  alias NetlinkPort.Helper.{OsProcess, Protocol, Reference}
  alias NetlinkPort.Server.{Commands, State}

  # How long the helper has for its last acknowledgement when the server is stopped, in ms. Shorter than a child's
  # default shutdown of 5 s.
  @timeout 2_000

  @doc """
  Ends the helper, given the reason why the server ends. Returns `:gone` if the helper was seen to end. Otherwise the
  notifier goes on watching the helper.
  """
  @spec stop(term(), State.t()) :: :gone | :ending | {:error, String.t()}
  def stop(:stuck, state), do: kill(state)
  def stop({:helper_exit, status}, _state) when is_integer(status), do: :gone
  def stop({:helper_exit, _reason}, state), do: kill(state)

  def stop(_reason, state) do
    reference = Reference.expect(state.helper, {nil, :ping})
    state = State.write(state, Protocol.command(reference, {:stop}))
    deadline = Deadline.at(@timeout)
    if await(state, reference, deadline) == :overdue, do: kill(state), else: :ending
  end

  defp kill(state), do: OsProcess.kill(state.process, state.helper.port)

  defp await(%{helper: %{port: port}} = state, reference, deadline) do
    timeout = Deadline.left(deadline)

    receive do
      {^port, {:data, frame}} ->
        case Protocol.decode(frame) do
          {:reply, ^reference, _reply} ->
            :ok

          {:reply, other, reply} ->
            state |> Commands.replied(other, reply) |> await(reference, deadline)

          _event ->
            await(state, reference, deadline)
        end

      {^port, {:exit_status, _status}} ->
        :ok

      {:EXIT, ^port, _reason} ->
        :ok

      :retry ->
        await(State.retry(state), reference, deadline)
    after
      timeout -> :overdue
    end
  end
end
