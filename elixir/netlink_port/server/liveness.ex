defmodule NetlinkPort.Server.Liveness do
  @moduledoc false
  # Whether the helper still answers. The server pings a helper that has sent nothing for `ping_interval`. When a
  # command has no reply by its deadline, the helper has one last ping to answer, and is stuck if it sends nothing.
  #
  # A frame that has arrived by the deadline may still be in the mailbox, behind the message of the timer. So each
  # timer's message is sent again to the end of the mailbox, and only the second one counts.

  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Server.{Commands, State}

  # How long a helper that seems stuck has to answer one last ping, in ms.
  @last_ping_timeout 1_000

  @doc "Starts the timer of the next ping."
  @spec schedule_ping(State.t()) :: State.t()
  def schedule_ping(%{ping_interval: :infinity} = state), do: state

  def schedule_ping(%{ping_interval: interval} = state) do
    _timer = Process.send_after(self(), :ping, interval)
    state
  end

  @doc "Pings a helper that has sent nothing since the last time. Also forgets what callers that were killed have left."
  @spec ping(State.t()) :: State.t()
  def ping(state) do
    :ok = Reference.forget_dead(state.helper)
    quiet? = state.frames == state.frames_at_ping
    state = if quiet?, do: Commands.ask(state, {:ping}, :ping), else: state
    schedule_ping(%{state | frames_at_ping: state.frames})
  end

  @doc "A command has no reply at its deadline."
  @spec overdue(State.t(), pos_integer()) :: State.t()
  def overdue(state, reference) do
    send(self(), {:overdue_after_mailbox, reference})
    state
  end

  @doc "A command has no reply at its deadline, and the mailbox held none."
  @spec overdue_after_mailbox(State.t(), pos_integer()) :: State.t()
  def overdue_after_mailbox(state, reference) do
    if Commands.overdue(state, reference) == :stuck, do: suspect(state), else: state
  end

  @doc "Sends the last ping, since the VM itself may have been stopped, and have read nothing meanwhile."
  @spec suspect(State.t()) :: State.t()
  def suspect(%{suspect?: true} = state), do: state

  def suspect(state) do
    timeout = min(state.helper.call_timeout, @last_ping_timeout)
    Process.send_after(self(), {:last_ping, state.frames}, timeout)
    Commands.ask(%{state | suspect?: true}, {:ping}, :ping)
  end

  @doc "The time for the last ping is over. `frames` is the count of frames when it was sent."
  @spec last_ping(State.t(), non_neg_integer()) :: State.t()
  def last_ping(state, frames) do
    send(self(), {:last_ping_after_mailbox, frames})
    state
  end

  @doc "Whether the helper has sent anything since the last ping."
  @spec last_ping_after_mailbox(State.t(), non_neg_integer()) ::
          {:noreply, State.t()} | {:stop, :stuck, State.t()}
  def last_ping_after_mailbox(%{frames: frames} = state, frames), do: {:stop, :stuck, state}
  def last_ping_after_mailbox(state, _frames), do: {:noreply, %{state | suspect?: false}}
end
