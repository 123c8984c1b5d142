defmodule NetlinkPort.Connection.Process do
  @moduledoc false
  # The process of a connection: it opens the socket and opens it again, sends the calls of NetlinkPort.Connection.Calls
  # when they may be sent, and replies to the callers.

  use GenServer

  alias NetlinkPort.{
    Arguments,
    Deadline,
    Errno,
    Error,
    ProcessLimit,
    Redaction,
    Socket,
    Telemetry
  }

  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.Helper.Reference
  alias NetlinkPort.Request.Exchange
  alias NetlinkPort.Server.{Client, Opening, PinNumbers}
  alias NetlinkPort.Connection.{Calls, Transmit}

  # The shortest and the longest pause before another attempt to open the socket, in ms.
  @min_backoff 10
  @max_backoff 1_000
  # How long calls that are under way may keep others waiting, in ms. The kernel answers at once.
  @answer_timeout 5_000
  # How many messages the connection handles at most before it sends what may be sent.
  @together 32

  # When there is no `socket`, `error` says why. `replacement` replaces `socket` as soon as no call is under way on
  # `socket`. A call is known by the monitor of its caller. `senders` maps the monitor of each process that waits
  # for sendmsg(2) to its call. `opener` monitors the process that opens a socket. `monitor` monitors the server,
  # if it is on this node. `known` are the processes that led to the namespace. `timer` fires when the first call is due:
  # a timer for each call would cost more than the call. `held` counts the messages since a call may be sent.
  @enforce_keys [:server, :protocol, :opts, :calls]
  defstruct [
    :server,
    :protocol,
    :opts,
    :calls,
    :socket,
    :monitor,
    :error,
    :opener,
    :replacement,
    :timer,
    backoff: @min_backoff,
    known: [],
    senders: %{},
    held: 0
  ]

  ## The socket

  @impl true
  def init({server, protocol, opts}) do
    opts = [owner: self()] ++ opts
    state = %__MODULE__{server: server, protocol: protocol, opts: opts, calls: Calls.new()}

    if remote?(server),
      do: {:ok, open(%{state | error: unreached(server)})},
      else: {:ok, opened(state, Opening.again(server, protocol, opts, []))}
  end

  defp unreached(server) do
    {:error, error} = Client.failed({:thread, Errno.number(:esrch), ""}, {:server, server})
    error
  end

  defp remote?({_name, node}) when is_atom(node), do: node != node()
  defp remote?(server) when is_pid(server), do: node(server) != node()
  defp remote?(_name), do: false

  # The new socket replaces a socket that is still in use.
  defp opened(%{socket: %Socket{}} = state, {:ok, replacement, known}) do
    swap_when_idle(%{state | opener: nil, replacement: replacement, known: known})
  end

  defp opened(%{socket: %Socket{}} = state, {:error, error}) do
    reset(%{state | opener: nil}, error)
  end

  defp opened(state, {:ok, %Socket{helper: helper} = socket, known}) do
    # A remote notifier reports the end of a server on another node, by :netlink_closed.
    monitor = if Reference.local?(helper), do: Process.monitor(helper.server)
    Telemetry.execute([:connection, :up], %{count: 1}, %{connection: self(), socket: socket})
    state = %{state | socket: socket, monitor: monitor, opener: nil, backoff: @min_backoff}
    %{state | known: known}
  end

  defp opened(state, {:error, error}) do
    if state.error == nil, do: report_down(state, error)
    open_later(%{state | error: error, opener: nil})
  end

  defp report_down(state, error) do
    metadata = %{connection: self(), error: error}
    Telemetry.execute([:connection, :down], %{calls: Calls.count(state.calls)}, metadata)
  end

  defp open(%{server: server, protocol: protocol, opts: opts, known: known} = state) do
    again = fn -> exit({:opened, Opening.again(server, protocol, opts, known)}) end

    case ProcessLimit.spawn_monitor(again) do
      {:ok, {_pid, opener}} -> %{state | opener: opener}
      :system_limit -> opened(state, {:error, ProcessLimit.error(:thread, "connection")})
    end
  end

  defp open_later(%{backoff: backoff} = state) do
    _timer = Process.send_after(self(), :open, backoff)
    %{state | backoff: min(2 * backoff, @max_backoff)}
  end

  defp closed(state, error) do
    if state.monitor, do: Process.demonitor(state.monitor, [:flush])
    if state.replacement, do: close_in_background(state.replacement)
    report_down(state, error)
    state = %{state | socket: nil, monitor: nil, replacement: nil, error: error}
    state = settle(state, Calls.close(state.calls, error))
    if state.opener, do: state, else: open_later(state)
  end

  defp reset(%{socket: socket} = state, error) do
    close_in_background(socket)
    closed(state, error)
  end

  # In another process: a helper that does not answer must not block the connection.
  defp close_in_background(socket) do
    with :system_limit <- ProcessLimit.spawn(fn -> NetlinkPort.close(socket) end),
         do: Process.send_after(self(), {:close, socket}, @max_backoff)

    :ok
  end

  ## Another socket, for one that a dump has made unusable

  # Calls that were sent on the old socket are still answered there. The others go to the new socket.
  defp replace(
         %{calls: %{unusable?: true}, opener: nil, replacement: nil, socket: %Socket{}} = state
       ) do
    _timer = Process.send_after(self(), {:replace, state.socket}, @answer_timeout)
    open(state)
  end

  defp replace(state), do: swap_when_idle(state)

  defp swap_when_idle(%{replacement: %Socket{} = replacement, socket: old} = state) do
    if Calls.under_way?(state.calls) do
      state
    else
      close_in_background(old)
      if state.monitor, do: Process.demonitor(state.monitor, [:flush])

      state = %{
        state
        | socket: nil,
          monitor: nil,
          replacement: nil,
          calls: Calls.unsent(state.calls)
      }

      send_next(opened(state, {:ok, replacement, state.known}))
    end
  end

  defp swap_when_idle(state), do: state

  # Of the stage and errno of a helper that has ended, whatever closed the socket.
  defp epipe(reason \\ nil) do
    hint = "its socket was closed#{because(reason)}; the connection opens another: call again"
    Error.new(:thread, :epipe, subject: "connection", hint: hint)
  end

  defp because(nil), do: ""
  defp because(:closed), do: " by another process"
  defp because(:namespace_gone), do: ", since its namespace is gone"
  defp because(:noconnection), do: ", since the node of its server, or the way to it, was lost"
  defp because(:stuck), do: ", since the helper did not answer, and was killed"
  defp because({:helper_exit, _status}), do: ", since the helper has ended"
  defp because(_reason), do: ", since the helper or its server has ended"

  ## A call begins

  @impl true
  def handle_call({:exchange, {:only_of, protocol, question}, timeouts, deadline}, from, state) do
    if Arguments.protocol!(protocol) == Arguments.protocol!(state.protocol) do
      handle_call({:exchange, question, timeouts, deadline}, from, state)
    else
      sentence =
        "expected a connection of the protocol #{inspect(protocol)}, " <>
          "got one of #{inspect(state.protocol)}"

      answer(from, {:error, {:wrong, sentence}}, state)
    end
  end

  def handle_call({:exchange, _question, _timeouts, _deadline}, from, %{socket: nil} = state) do
    answer(from, {:error, state.error}, state)
  end

  def handle_call({:exchange, question, {timeout, _total} = timeouts, deadline}, from, state) do
    left = Deadline.time_left(deadline, timeout)

    # Pins are resolved before a call waits. Their numbers hold as long as the helper of this socket, and a call that
    # waits ends with that socket.
    made =
      with {:ok, question} <- PinNumbers.resolve_question(question, state.socket),
           do: Exchange.new(state.protocol, question)

    case made do
      {:ok, exchange} when is_integer(left) and left <= 0 and timeout > 0 ->
        answer(from, Exchange.cut(exchange, Exchange.overdue(:silent)), state)

      {:ok, exchange} ->
        exchange = %{exchange | socket: state.socket}
        noreply(begin(state, exchange, from, timeouts, left))

      {:error, error} ->
        answer(from, {:error, error}, state)

      {:wrong, _sentence} = wrong ->
        answer(from, {:error, wrong}, state)
    end
  end

  def handle_call(_unknown, from, state) do
    answer(from, {:error, Error.new(:protocol, :einval)}, state)
  end

  defp answer(from, answer, state) do
    Relay.reply(from, answer)
    noreply(state)
  end

  @impl true
  def handle_cast(_unknown, state), do: noreply(state)

  defp begin(state, exchange, {caller, _tag} = from, timeouts, left) do
    id = Relay.monitor(caller)
    calls = Calls.add(state.calls, id, exchange, from, timeouts, left)
    send_soon(arm(%{state | calls: calls}, id))
  end

  # Replies to the callers, then sends the calls that may be sent now.
  defp settle(state, {replies, calls}) do
    state =
      for {id, {caller, _tag} = from, outcome} <- replies, reduce: %{state | calls: calls} do
        state ->
          Relay.demonitor(id, caller)
          Relay.reply(from, outcome(outcome, state))
          # A dump that was given up is still read, with a deadline of its own.
          arm(state, id)
      end

    replace(send_soon(state))
  end

  # The caller makes the sentence: the connection must not wait for a file.
  defp outcome(outcome, %{socket: %Socket{helper: helper}}) do
    if Exchange.lacking?(outcome), do: {:refused, outcome, helper}, else: outcome
  end

  defp outcome(outcome, _closed), do: outcome

  # While others are under way, calls that may be sent wait until the mailbox is empty. What has come together then shares
  # a datagram, a command to the helper, and a sendmsg(2).
  defp send_soon(%{held: 0, calls: calls} = state) do
    cond do
      not Calls.more?(calls) -> state
      Calls.none_sent?(calls) -> send_next(state)
      true -> %{state | held: 1}
    end
  end

  defp send_soon(state), do: state

  # Every callback returns by this: a return without the timeout would leave the calls that are held back.
  defp noreply(%{held: 0} = state), do: {:noreply, state}

  defp noreply(%{held: held} = state) when held < @together,
    do: {:noreply, %{state | held: held + 1}, 0}

  defp noreply(state), do: noreply(send_next(state))

  defp send_next(state), do: gather(%{state | held: 0}, [], 0)

  # `together` are the calls of the next datagram, the last first, and `size` is its size.
  defp gather(state, together, size) do
    case Calls.next(state.calls) do
      nil -> send_together(state, together)
      {id, datagrams, calls} -> gather(%{state | calls: calls}, together, size, {id, datagrams})
    end
  end

  defp gather(state, together, size, {id, datagrams} = call) do
    more = if Calls.shares?(state.calls, id), do: IO.iodata_length(datagrams)

    cond do
      more == nil -> state |> send_together(together) |> transmit(call) |> gather([], 0)
      Transmit.small?(size + more) -> gather(state, [call | together], size + more)
      true -> state |> send_together(together) |> gather([call], more)
    end
  end

  defp send_together(state, []), do: state
  defp send_together(state, [call]), do: transmit(state, call)

  defp send_together(state, together) do
    calls = Enum.reverse(together)

    case Transmit.at_once(state.socket, Enum.map(calls, &elem(&1, 1))) do
      :ok -> Enum.reduce(calls, state, &expect(&2, elem(&1, 0)))
      # One by one, so that an error is only that of its call.
      _not_sent -> Enum.reduce(calls, state, &transmit(&2, &1))
    end
  end

  defp transmit(state, {id, datagrams}) do
    # The call before this may have found that the socket is closed, which has ended all calls.
    if Calls.member?(state.calls, id),
      do: state |> expect(id) |> transmit(id, datagrams),
      else: state
  end

  defp transmit(state, id, datagrams) do
    case Transmit.send(state.socket, datagrams) do
      :ok -> state
      {:later, monitor} -> put_in(state.senders[monitor], id)
      {:error, error} -> unsent(state, id, error)
    end
  end

  defp expect(state, id) do
    if Calls.left(state.calls, id) > @answer_timeout,
      do: arm(%{state | calls: Calls.sent(state.calls, id, @answer_timeout)}, id),
      else: state
  end

  defp unsent(state, id, %{stage: :send, reason: reason} = error) when reason != :ebadf do
    settle(state, Calls.finish(state.calls, id, {:error, error}))
  end

  # The socket is closed, or the helper has ended. The message that says so may come later, or came too early.
  defp unsent(state, _id, _error), do: closed(state, epipe())

  ## A call goes on

  @impl true
  def handle_info({:netlink, socket, datagram}, %{socket: socket} = state) do
    noreply(settle(state, Calls.received(state.calls, datagram, nil)))
  end

  # With metadata, as pktinfo gives it.
  def handle_info({:netlink, socket, datagram, %{group: group}}, %{socket: socket} = state) do
    noreply(settle(state, Calls.received(state.calls, datagram, group)))
  end

  def handle_info({:netlink_overrun, socket, dropped}, %{socket: socket} = state) do
    noreply(lost(state, Error.new(:recv, :enobufs, dropped: dropped)))
  end

  def handle_info({:netlink_error, socket, %{stage: :recv} = error}, %{socket: socket} = state) do
    noreply(lost(state, error))
  end

  def handle_info({:netlink_error, socket, error}, %{socket: socket} = state) do
    noreply(reset(state, error))
  end

  def handle_info({:netlink_closed, socket, reason}, %{socket: socket} = state) do
    noreply(closed(state, epipe(reason)))
  end

  def handle_info({:DOWN, monitor, :process, _server, reason}, %{monitor: monitor} = state) do
    noreply(closed(state, epipe(reason)))
  end

  def handle_info({:DOWN, monitor, :process, _pid, reason}, %{opener: monitor} = state) do
    case reason do
      {:opened, result} -> noreply(opened(state, result))
      _killed -> noreply(opened(state, {:error, epipe()}))
    end
  end

  def handle_info({:DOWN, monitor, :process, _pid, reason}, %{senders: senders} = state)
      when is_map_key(senders, monitor) do
    {id, senders} = Map.pop!(senders, monitor)
    noreply(sent(%{state | senders: senders}, id, reason))
  end

  def handle_info({:DOWN, id, :process, caller, _reason}, state) do
    if Calls.member?(state.calls, id) do
      calls = Calls.give_up(state.calls, id)
      Relay.demonitor(id, caller)
      noreply(settle(arm(%{state | calls: calls}, id), {[], calls}))
    else
      noreply(state)
    end
  end

  def handle_info(:due, state) do
    {overdue, quiet, calls} = Calls.due(state.calls)
    calls = Enum.reduce(quiet, calls, &Calls.unanswered(&2, &1))
    state = settle(%{state | timer: nil}, {[], calls})
    state = Enum.reduce(overdue, state, &expire(&2, &1))
    noreply(arm_at(state, Calls.next_look(state.calls)))
  end

  # The calls on a socket that a dump has made unusable have had their time.
  def handle_info({:replace, socket}, %{socket: socket} = state) do
    noreply(reset(state, Exchange.overdue(:silent)))
  end

  # The mailbox is empty.
  def handle_info(:timeout, state), do: noreply(send_next(state))

  def handle_info(:open, %{socket: nil, opener: nil} = state), do: noreply(open(state))

  def handle_info({:close, socket}, state) do
    close_in_background(socket)
    noreply(state)
  end

  def handle_info({:relay_idle, node, relay, handled}, state) do
    Relay.idle(node, relay, handled)
    noreply(state)
  end

  # Messages of a closed socket, of a finished call, and of strangers.
  def handle_info(_message, state), do: noreply(state)

  defp lost(state, error) do
    {ids, calls} = Calls.lose(state.calls, error, Map.values(state.senders))
    settle(Enum.reduce(ids, %{state | calls: calls}, &arm(&2, &1)), {[], calls})
  end

  defp sent(state, _id, {:sent, :ok}), do: state

  defp sent(state, id, reason) do
    case {Calls.member?(state.calls, id), reason} do
      {false, _reason} -> state
      {true, {:sent, {:error, error}}} -> unsent(state, id, error)
      {true, _killed} -> reset(state, epipe())
    end
  end

  ## Deadlines

  # The end of one call can end others, too.
  defp expire(state, id) do
    if Calls.member?(state.calls, id) and Calls.left(state.calls, id) == 0,
      do: settle(state, Calls.expire(state.calls, id)),
      else: state
  end

  defp arm(state, id), do: arm_at(state, Calls.next_due(state.calls, id))

  # A timer that fires too early, since its call is over or its deadline has moved, sets the next.
  defp arm_at(state, :infinity), do: state
  defp arm_at(%{timer: {_timer, set}} = state, at) when set <= at, do: state

  defp arm_at(%{timer: timer} = state, at) do
    with {timer, _later} <- timer, do: Process.cancel_timer(timer, async: true, info: false)
    %{state | timer: {Process.send_after(self(), :due, at, abs: true), at}}
  end

  @impl true
  def terminate(_reason, _state), do: Redaction.forget_mailbox()

  # For crash reports and :sys.get_status/1. Payloads may contain keys and must not be shown. A callback of GenServer
  # since Elixir 1.17.
  @doc false
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(%{state: %__MODULE__{} = state} = status) do
    Redaction.status(status,
      server: state.server,
      protocol: state.protocol,
      netns: Keyword.get(state.opts, :netns, :host),
      socket: state.socket,
      error: state.error && Exception.message(state.error),
      calls: Calls.count(state.calls),
      sending: map_size(state.senders)
    )
  end

  def format_status(status), do: Redaction.status(status)
end
