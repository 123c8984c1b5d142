defmodule Soak.Worker do
  @moduledoc false
  # An owner of sockets that does random operations and checks every message: that it is for this owner, that it
  # comes in order, and that every gap was reported.

  alias NetlinkPort.{Error, Native, Pace}
  alias Soak.{Ledger, Storm, World}

  # How long something that must happen may take, in ms.
  @patience 20_000
  # How much longer than its timeout a caller waits for a server, in ms.
  @grace 5_000
  @most_sockets 8

  defmodule Sub do
    @moduledoc false
    # `kind` is :events, numbered from `base`, or :requests. `mode` is that of the events.
    @enforce_keys [:socket, :kind, :index]
    # `ours?` is false while another owner gives the socket to this one.
    defstruct [
      :socket,
      :kind,
      :index,
      :mode,
      :storm,
      :base,
      ours?: true,
      next: 0,
      seen: 0,
      lost: 0
    ]
  end

  # `over` has closed sockets, whose end may still be reported, once. `void` has sockets whose owner is not
  # known.
  defstruct [:number, :config, subs: %{}, over: MapSet.new(), void: MapSet.new(), sequence: 1]

  def start(number, config) do
    spawn(fn ->
      :rand.seed(:exsss, {config.seed, number, System.unique_integer([:positive])})
      loop(%__MODULE__{number: number, config: config})
    end)
  end

  defp loop(state) do
    state |> quiesce() |> hear(:rand.uniform(20) - 1) |> act(Enum.random(acts())) |> loop()
  end

  defp acts do
    [:open_events, :open_requests, :request, :request, :request, :request, :post, :post, :options] ++
      [
        :info,
        :close,
        :close,
        :stale,
        :native,
        :impatient,
        :malformed,
        :give,
        :reconcile,
        :refused
      ]
  end

  ## Hearing

  # Takes the messages that are there. Waits at most `patience` ms for the first.
  defp hear(state, patience) do
    receive do
      message when elem(message, 0) != :quiesce -> state |> heard(message) |> hear(0)
    after
      patience -> state
    end
  end

  # Only between two acts: the other owners would wait for the storm that this one holds during some.
  defp quiesce(state) do
    receive do
      {:quiesce, from} ->
        state = Enum.reduce(Map.values(state.subs), state, &close(&2, &1))
        send(from, {:quiet, self()})
        quiet(%{state | over: MapSet.new(), void: MapSet.new()})
    after
      0 -> state
    end
  end

  defp heard(state, {:netlink, socket, datagram}), do: event(state, socket, {:datagram, datagram})
  defp heard(state, {:netlink_overrun, socket, lost}), do: event(state, socket, {:lost, lost})

  defp heard(state, {:netlink_passive, socket}) do
    with_sub(state, socket, fn sub ->
      _answer = Ledger.call(:setopts, fn -> NetlinkPort.setopts(socket, active: sub.mode) end)
      put(state, sub)
    end)
  end

  defp heard(state, {:netlink_closed, socket, _reason}) do
    handle = handle(socket)
    Ledger.count(:closed_told)

    cond do
      is_map_key(state.subs, handle) -> forget(state, handle)
      handle in state.over -> %{state | over: MapSet.delete(state.over, handle)}
      handle in state.void -> state
      true -> wrong(state, {:closed_again_or_not_ours, socket})
    end
  end

  # Comes before all messages of the socket, and before the socket may be used.
  defp heard(state, {:take, sub}), do: put(state, %{sub | ours?: false})

  defp heard(state, {:yours, handle}) do
    case state.subs do
      %{^handle => sub} -> put(state, %{sub | ours?: true})
      _closed -> state
    end
  end

  defp heard(state, {:untake, handle}) do
    %{state | subs: Map.delete(state.subs, handle), void: MapSet.put(state.void, handle)}
  end

  defp heard(state, other), do: wrong(state, {:unknown_message, other})

  # Messages in flight to closed sockets may still come. All others are errors.
  defp quiet(state) do
    receive do
      :go_on -> state
      {:netlink_closed, _socket, _reason} -> quiet(state)
      {:take, sub} -> quiet(close(state, sub))
      {tag, _handle} when tag in [:untake, :yours] -> quiet(state)
      other -> state |> wrong({:message_when_quiet, other}) |> quiet()
    end
  end

  defp event(state, socket, event) do
    if handle(socket) in state.void do
      state
    else
      with_sub(state, socket, &(state |> put(account(&1, event)) |> rearm(socket)))
    end
  end

  defp account(%{kind: :events} = sub, {:datagram, datagram}) do
    number = Storm.number(datagram)
    Ledger.count(:events_seen)
    if number < sub.next, do: Ledger.wrong({:out_of_order, sub, number})
    %{sub | next: number + 1, seen: sub.seen + 1}
  end

  defp account(%{kind: :events} = sub, {:lost, lost}) do
    Ledger.count(:events_lost, lost)
    Ledger.count(:overruns)
    %{sub | lost: sub.lost + lost}
  end

  defp account(sub, event) do
    Ledger.wrong({:event_of_a_passive_socket, sub, event})
    sub
  end

  defp rearm(state, socket) do
    with_sub(state, socket, fn sub ->
      if sub.mode == :once do
        _answer = Ledger.call(:setopts, fn -> NetlinkPort.setopts(socket, active: :once) end)
      end

      state
    end)
  end

  ## Acting

  defp act(state, act)
       when map_size(state.subs) >= @most_sockets and act in [:open_events, :open_requests],
       do: act(state, :close)

  defp act(state, :open_events) do
    {index, storm} = Enum.random(state.config.storms)
    mode = Enum.random([true, :queued, :once, 1 + :rand.uniform(50), false])
    {active, bound} = if mode == :queued, do: {true, 50}, else: {mode, :infinity}
    rcvbuf = Enum.random([4_096, 212_992, 4_000_000])
    window = Enum.random([1_000, 65_536, 1_048_576])

    opts = [
      netns: World.netns(index),
      groups: [Storm.group()],
      active: active,
      max_queue: bound,
      rcvbuf: rcvbuf,
      window: window
    ]

    Storm.still(storm, fn sent ->
      case open(state, :route, opts) do
        {:ok, socket} ->
          fields = [socket: socket, kind: :events, index: index, mode: active, storm: storm]
          put(state, struct!(Sub, fields ++ [base: sent, next: sent]))

        {:error, error} ->
          expected(state, error, index)
      end
    end)
  end

  defp act(state, :open_requests) do
    index = :rand.uniform(state.config.world.count)

    case open(state, :route, netns: World.netns(index), active: false) do
      {:ok, socket} -> put(state, %Sub{socket: socket, kind: :requests, index: index})
      {:error, error} -> expected(state, error, index)
    end
  end

  defp act(state, :request), do: request(state, wait: true)
  defp act(state, :post), do: request(state, [])

  defp act(state, :options) do
    with_any(state, fn %{socket: socket} = sub ->
      calls = [
        fn -> NetlinkPort.getopts(socket, [:active, :rcvbuf]) end,
        fn -> NetlinkPort.setopts(socket, cap_ack: true) end,
        fn -> NetlinkPort.memberships(socket) end,
        fn -> NetlinkPort.join(socket, 20) end,
        fn -> NetlinkPort.leave(socket, 20) end
      ]

      told(state, sub, Ledger.call(:options, Enum.random(calls)))
    end)
  end

  # The end of a socket must have been reported, or be reported soon.
  defp act(state, :info) do
    with_any(state, fn %{socket: socket} = sub ->
      case Ledger.call(:info, fn -> NetlinkPort.info(socket) end) do
        {:error, %Error{reason: reason}} when reason in [:ebadf, :esrch] ->
          await_closed(state, sub, now() + Pace.within(@patience))

        answer ->
          told(state, sub, answer)
      end
    end)
  end

  defp act(state, :close), do: with_any(state, &close(state, &1))

  defp act(state, :stale) do
    case Enum.take(state.over, 1) do
      [handle] ->
        answer = Ledger.call(:stale, fn -> Native.bind_netlink(handle, 1) end)
        if answer == :ok, do: Ledger.wrong({:stale_handle_works, handle})
        state

      [] ->
        state
    end
  end

  defp act(state, :native) do
    index = :rand.uniform(state.config.world.count)
    server = Enum.random(state.config.servers)
    path = "/run/netns/" <> World.name(index)

    case Ledger.call(:native_open, fn -> Native.open_in_netns(server, path, 0) end) do
      {:ok, handle} ->
        _answer = Ledger.call(:native_bind, fn -> Native.bind_netlink(server, handle, 1) end)
        :ok = Ledger.call(:native_close, fn -> Native.close_fd(server, handle) end)
        %{state | over: MapSet.put(state.over, handle)}

      {:error, {stage, errno}} when is_atom(stage) and errno > 0 ->
        Ledger.count({:refused, stage, errno})
        state
    end
  end

  defp act(state, :impatient) do
    with_any(state, fn %{socket: socket} = sub ->
      if sub.kind == :requests do
        answer = Ledger.call(:impatient, fn -> NetlinkPort.recv(socket, :rand.uniform(4) - 1) end)
        told(state, sub, answer)
      else
        state
      end
    end)
  end

  defp act(state, :malformed) do
    server = Enum.random(state.config.servers)

    opts =
      Enum.random([[netns: :nowhere], [active: 0], [colour: 1], [window: 0], [groups: [0]], :no])

    try do
      answer = Ledger.call(:malformed, fn -> NetlinkPort.open(server, :route, opts) end)
      Ledger.wrong({:malformed_taken, opts, answer})
    rescue
      ArgumentError -> :as_it_should
    end

    state
  end

  defp act(state, :refused) do
    case open(state, 250, netns: :host) do
      {:error, %Error{stage: :socket, reason: :eprotonosupport}} -> state
      {:error, error} -> expected(state, error, 0)
    end
  end

  defp act(state, :give) do
    taker =
      state.config.workers |> :ets.lookup(:rand.uniform(state.config.count)) |> hd() |> elem(1)

    with_any(state, fn sub -> if taker == self(), do: state, else: give(state, sub, taker) end)
  end

  # While the storm pauses: every event that it has sent was received, or reported as lost.
  defp act(state, :reconcile) do
    with_any(state, fn sub ->
      if sub.kind == :events do
        state = hurry(state, sub)

        Storm.still(sub.storm, fn sent ->
          reconcile(state, handle(sub.socket), sent, {nil, nil})
        end)
      else
        state
      end
    end)
  end

  # Taking one event at a time would take too long.
  defp hurry(state, %{mode: false}), do: state

  defp hurry(state, %{socket: socket} = sub) do
    case Ledger.call(:setopts, fn -> NetlinkPort.setopts(socket, active: true) end) do
      :ok -> put(state, %{sub | mode: true})
      failed -> told(state, sub, failed)
    end
  end

  # While fewer and fewer events are missing, they are on their way.
  defp reconcile(state, handle, sent, {before, deadline}) do
    case state.subs do
      %{^handle => sub} ->
        missing = sent - sub.base - sub.seen - sub.lost
        deadline = if missing == before, do: deadline, else: now() + Pace.within(@patience)

        cond do
          missing == 0 ->
            Ledger.count(:reconciled)
            state

          missing < 0 or now() > deadline ->
            Ledger.wrong({:does_not_add_up, missing, sent, NetlinkPort.stats(sub.socket), sub})
            close(state, sub)

          sub.mode == false ->
            answer = Ledger.call(:recv, fn -> NetlinkPort.recv(sub.socket, 100) end)
            state |> received(sub, answer) |> reconcile(handle, sent, {missing, deadline})

          true ->
            state |> hear(100) |> reconcile(handle, sent, {missing, deadline})
        end

      # Closed meanwhile.
      _gone ->
        state
    end
  end

  defp received(state, sub, {:ok, datagram}), do: put(state, account(sub, {:datagram, datagram}))

  defp received(state, sub, {:error, %Error{dropped: lost}}) when lost != nil,
    do: put(state, account(sub, {:lost, lost}))

  defp received(state, sub, failed), do: state |> told(sub, failed) |> hear(0)

  # The worst error: a socket that answers with the name of another namespace.
  defp request(state, how) do
    case for {_handle, %{kind: :requests, ours?: true} = sub} <- state.subs, do: sub do
      [] ->
        state

      subs ->
        %{socket: socket} = sub = Enum.random(subs)
        sequence = state.sequence
        state = %{state | sequence: sequence + 1}
        question = World.question(sequence)

        case Ledger.call(:send, fn -> NetlinkPort.send(socket, question, how) end) do
          :ok -> answer(state, sub, sequence)
          failed -> told(state, sub, failed)
        end
    end
  end

  defp answer(state, %{socket: socket} = sub, sequence) do
    case Ledger.call(:recv, fn -> NetlinkPort.recv(socket, 10_000) end) do
      {:ok, datagram} ->
        marker = World.marker(sub.index)

        case World.read_answer(datagram) do
          {^sequence, ^marker} -> state
          {^sequence, :not_yet} -> state
          # An earlier answer, to a request whose recv had timed out.
          {earlier, ^marker} when earlier < sequence -> answer(state, sub, sequence)
          {earlier, :not_yet} when earlier < sequence -> answer(state, sub, sequence)
          other -> wrong(state, {:wrong_answer, sub, sequence, other})
        end

      failed ->
        told(state, sub, failed)
    end
  end

  defp give(state, sub, taker) do
    handle = handle(sub.socket)
    send(taker, {:take, sub})

    case Ledger.call(:give, fn -> NetlinkPort.controlling_process(sub.socket, taker) end) do
      :ok ->
        Ledger.count(:given)
        send(taker, {:yours, handle})
        %{state | subs: Map.delete(state.subs, handle)}

      {:error, error} ->
        # The owner is not known now. ESRCH: the new owner has been killed.
        send(taker, {:untake, handle})
        _ok = Ledger.call(:close, fn -> NetlinkPort.close(sub.socket) end)

        state = %{
          state
          | subs: Map.delete(state.subs, handle),
            void: MapSet.put(state.void, handle)
        }

        if error.reason == :esrch, do: state, else: expected(state, error, sub.index)
    end
  end

  # After close/1 nothing comes, except a message about the helper's death if it died at the same time. A server that
  # did not answer in time closes the socket later.
  defp close(state, %{socket: %{helper: helper} = socket}) do
    began = now()
    :ok = Ledger.call(:close, fn -> NetlinkPort.close(socket) end)
    handle = handle(socket)

    if now() - began > helper.call_timeout + Pace.within(@grace) do
      Ledger.count(:closed_late)
      %{state | subs: Map.delete(state.subs, handle), void: MapSet.put(state.void, handle)}
    else
      state |> forget(handle) |> flush(socket)
    end
  end

  defp flush(state, socket) do
    receive do
      {tag, ^socket, _} when tag in [:netlink, :netlink_overrun] -> flush(state, socket)
      {:netlink_passive, ^socket} -> flush(state, socket)
    after
      0 -> state
    end
  end

  defp await_closed(state, sub, deadline) do
    cond do
      not is_map_key(state.subs, handle(sub.socket)) -> state
      now() > deadline -> wrong(forget(state, handle(sub.socket)), {:never_told, sub})
      true -> state |> hear(50) |> await_closed(sub, deadline)
    end
  end

  ## Answers

  defp open(state, protocol, opts) do
    server = Enum.random(state.config.servers)
    Ledger.call(:open, fn -> NetlinkPort.open(server, protocol, opts) end)
  end

  defp told(state, _sub, ok) when ok == :ok or elem(ok, 0) == :ok, do: state
  defp told(state, sub, {:error, error}), do: expected(state, error, sub.index)

  # Errors that are expected while helpers, servers and namespaces come and go.
  defp expected(state, %Error{} = error, index) do
    stays? = index in Map.keys(state.config.storms)

    fine? =
      error.stage == :thread or error.reason in [:ebadf, :etimedout, :eagain] or
        (not stays? and {error.stage, error.reason} in gone())

    Ledger.count({:refused, error.stage, error.reason})
    if fine?, do: state, else: wrong(state, {:unexpected, error, index})
  end

  # A namespace that is being deleted or made.
  defp gone, do: [open: :enoent, open: :esrch, open: :eacces, setns: :einval, setopts: :eperm]

  ## Sockets

  defp with_any(state, fun) do
    case for {_handle, %{ours?: true} = sub} <- state.subs, do: sub do
      [] -> state
      subs -> fun.(Enum.random(subs))
    end
  end

  defp with_sub(state, socket, fun) do
    case state.subs do
      %{^socket => _} -> state
      subs -> if sub = subs[handle(socket)], do: fun.(sub), else: unknown(state, socket)
    end
  end

  defp unknown(state, socket) do
    if handle(socket) in state.void,
      do: state,
      else: wrong(state, {:not_ours, socket, Process.info(self(), :message_queue_len)})
  end

  defp put(state, sub), do: %{state | subs: Map.put(state.subs, handle(sub.socket), sub)}

  defp forget(state, handle) do
    %{state | subs: Map.delete(state.subs, handle), over: MapSet.put(state.over, handle)}
  end

  defp wrong(state, what) do
    Ledger.wrong(what)
    state
  end

  defp handle(socket), do: NetlinkPort.Socket.handle(socket)
  defp now, do: System.monotonic_time(:millisecond)
end
