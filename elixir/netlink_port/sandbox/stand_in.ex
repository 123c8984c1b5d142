defmodule NetlinkPort.Sandbox.StandIn do
  @moduledoc false
  # Stands between a server and its helper, and answers in the kernel's place what a test asks for. It works in user
  # space, and needs no change to a socket or its user. All other frames pass unchanged.
  #
  #     server ── a ──▶ this process ── b ──▶ helper
  #            ◀─ d ───              ◀─ c ───
  #
  # a to d are FIFOs. The server starts a script as its helper. The script copies its standard input to a, and d to
  # its standard output. Then it becomes the helper by exec, which reads b and writes c. So the process id, the exit
  # status, signals and the end of the input are those of the helper. Each start of the server gets new FIFOs.
  #
  # When either side ends, the rest ends too: each copier ends at the end of file of its input. What it then says of a
  # broken pipe is no concern of the test's.

  use GenServer

  alias NetlinkPort.{Errno, Helper, Message}

  # The two commands that send a datagram to the kernel, docs/protocol.md.
  @send 1
  @ask 4
  @request Message.flags([:request])
  @dump Message.flags([:dump])
  @interrupted Message.flags([:dump_intr])
  @ack_tlvs Message.flags([:ack_tlvs])

  # NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS
  @message 1
  @offset 2

  # `rules` are `{rule, times left}`. `dumps` are the dumps to interrupt, by handle and sequence number.
  defstruct [:folder, :commands, :events, :number, rules: [], dumps: %{}]

  @type rule ::
          {:open, atom(), atom()} | {:answer, atom(), map()} | :interrupt

  @spec start_link(Path.t()) :: GenServer.on_start()
  def start_link(folder) do
    case Enum.find(["mkfifo", "cat"], &(System.find_executable(&1) == nil)) do
      nil -> GenServer.start_link(__MODULE__, folder)
      program -> {:error, "stand_in: true needs #{program}(1), and there is none in PATH"}
    end
  end

  @doc "Adds a rule for the next `times` commands to which it applies."
  @spec add(pid(), rule(), pos_integer()) :: :ok
  def add(stand_in, rule, times), do: GenServer.call(stand_in, {:add, rule, times})

  @doc "Starts a server whose frames pass through this process. Runs in the supervisor."
  @spec start_server(pid(), keyword()) :: GenServer.on_start()
  def start_server(stand_in, opts) do
    executable = Keyword.get_lazy(opts, :executable, &Helper.Executable.path/0)
    script = GenServer.call(stand_in, {:begin, executable}, 60_000)

    with {:error, error} <- NetlinkPort.start_link(Keyword.put(opts, :executable, script)),
         do: {:error, alone(opts) || error}
  end

  # Of a helper that cannot run only a start without the script says why.
  defp alone(opts) do
    case NetlinkPort.start_link(Keyword.put(opts, :name, nil)) do
      {:ok, server} -> with :ok <- GenServer.stop(server), do: nil
      {:error, error} -> error
    end
  end

  ## The process

  @impl true
  def init(folder) do
    Process.flag(:trap_exit, true)
    {:ok, %__MODULE__{folder: folder, number: 0}}
  end

  @impl true
  def handle_call({:add, rule, times}, _from, state) do
    {:reply, :ok, %{state | rules: state.rules ++ [{rule, times}]}}
  end

  def handle_call({:begin, executable}, _from, state) do
    state = state |> close(:commands) |> close(:events)
    folder = Path.join(state.folder, "#{state.number}")
    File.mkdir!(folder)
    {_output, 0} = System.cmd("mkfifo", for(name <- ~w(a b c d), do: Path.join(folder, name)))
    script = Path.join(folder, "helper")
    File.write!(script, script(folder, executable))
    File.chmod!(script, 0o700)
    commands = copy(folder, "a", "b")
    events = copy(folder, "c", "d")
    state = %{state | number: state.number + 1, commands: commands, events: events, dumps: %{}}
    {:reply, script, state}
  end

  defp script(folder, executable) do
    """
    #!/bin/sh
    exec 3<&0
    cat <&3 >'#{folder}/a' 2>/dev/null &
    cat <'#{folder}/d' 2>/dev/null &
    exec '#{executable}' "$@" 3<&- <'#{folder}/b' >'#{folder}/c'
    """
  end

  # A port that reads frames from one FIFO, and writes frames to another.
  defp copy(folder, from, to) do
    script = ~S(exec 3<&0 2>/dev/null; cat <&3 >"$2" & exec cat "$1" 3<&-)
    arguments = ["-c", script, "sh", Path.join(folder, from), Path.join(folder, to)]
    opts = [:binary, :exit_status, packet: 4, args: arguments]
    Port.open({:spawn_executable, System.find_executable("sh")}, opts)
  end

  @impl true
  def handle_info({port, {:data, frame}}, %{commands: port} = state) do
    {:noreply, command(frame, state)}
  end

  def handle_info({port, {:data, frame}}, %{events: port} = state) do
    {frame, state} = event(frame, state)
    pass(state.events, frame)
    {:noreply, state}
  end

  # The server has closed its end, or the helper has ended. The other side must notice the same.
  def handle_info({port, {:exit_status, _status}}, %{commands: port} = state) do
    {:noreply, close(state, :commands)}
  end

  def handle_info({port, {:exit_status, _status}}, %{events: port} = state) do
    {:noreply, close(state, :events)}
  end

  # From a port that was closed.
  def handle_info({port, _message}, state) when is_port(port), do: {:noreply, state}
  def handle_info({:EXIT, port, _reason}, state) when is_port(port), do: {:noreply, state}
  def handle_info({:EXIT, _parent, reason}, state), do: {:stop, reason, state}
  def handle_info(_message, state), do: {:noreply, state}

  defp close(state, name) do
    _closed? = port(Map.fetch!(state, name), &Port.close/1)
    Map.put(state, name, nil)
  end

  defp pass(port, frame), do: port(port, &Port.command(&1, frame))

  # The port may have ended meanwhile.
  defp port(nil, _fun), do: false

  defp port(port, fun) do
    fun.(port)
  rescue
    ArgumentError -> false
  end

  ## Commands of the server

  # A datagram to the kernel, see docs/protocol.md.
  defp command(
         <<131, 104, 4, 97, kind, 98, ref::32, 98, handle::32, 109, size::32,
           datagram::binary-size(size)>> = frame,
         state
       )
       when kind in [@send, @ask] do
    with true <- state.rules != [],
         {:ok, messages} <- Message.decode(datagram) do
      {passing, state} = Enum.map_reduce(messages, state, &request(&1, handle, &2))
      passing = Enum.reject(passing, &is_nil/1)

      cond do
        length(passing) == length(messages) -> pass(state.commands, frame)
        passing == [] -> done(kind, ref, state)
        true -> pass(state.commands, send_frame(kind, ref, handle, Message.encode(passing)))
      end

      state
    else
      _unchanged ->
        pass(state.commands, frame)
        state
    end
  end

  defp command(frame, %{rules: []} = state) do
    pass(state.commands, frame)
    state
  end

  defp command(frame, state) do
    with {:open, ref, _, _, _, _, _, _, _} <- :erlang.binary_to_term(frame),
         {{:open, errno, stage}, state} <- take(state, &match?({:open, _, _}, &1)) do
      pass(state.events, term({:error, ref, stage, Errno.number(errno), ""}))
      state
    else
      _other ->
        pass(state.commands, frame)
        state
    end
  end

  defp send_frame(kind, ref, handle, datagram) do
    size = IO.iodata_length(datagram)
    [<<131, 104, 4, 97, kind, 98, ref::32, 98, handle::32, 109, size::32>> | datagram]
  end

  # The kernel's answer to an ask tells that it was sent.
  defp done(@ask, _ref, _state), do: false
  defp done(@send, 0, _state), do: false
  defp done(@send, ref, state), do: pass(state.events, term({:ok, ref}))

  defp term(term), do: :erlang.term_to_binary(term, minor_version: 2)

  # Returns nil for a message that is answered here. Other messages pass.
  defp request(message, handle, state) do
    request? = Bitwise.band(message.flags, @request) != 0
    dump? = Bitwise.band(message.flags, @dump) == @dump

    answered =
      request? &&
        take(state, fn
          {:answer, _errno, opts} -> Map.get(opts, :type, message.type) == message.type
          _other -> false
        end)

    cond do
      answered ->
        {{:answer, errno, opts}, state} = answered
        pass(state.events, data(handle, Message.encode(refusal(message, errno, opts))))
        {nil, state}

      interrupted = dump? && take(state, &(&1 == :interrupt)) ->
        {:interrupt, state} = interrupted
        {message, %{state | dumps: Map.put(state.dumps, {handle, message.seq}, true)}}

      true ->
        {message, state}
    end
  end

  # NLMSG_ERROR with the request, followed by the extended acknowledgement, netlink(7).
  defp refusal(request, errno, opts) do
    said = for text when text != nil <- [opts[:message]], do: {@message, text <> <<0>>}
    there = for offset when offset != nil <- [opts[:offset]], do: {@offset, <<offset::32-native>>}
    payload = [<<-Errno.number(errno)::signed-32-native>>, Message.encode(request)]
    tlvs = said ++ there
    flags = if tlvs == [], do: 0, else: @ack_tlvs
    attributes = NetlinkPort.Attr.encode(tlvs)

    %Message{
      type: 2,
      flags: flags,
      seq: request.seq,
      pid: request.pid,
      payload: [payload | attributes]
    }
  end

  defp data(handle, datagram) do
    size = IO.iodata_length(datagram)
    [<<131, 104, 3, 97, 1, 98, handle::32, 109, size::32>> | datagram]
  end

  # Uses up one time of the first rule for which `match?` is true.
  defp take(state, match?) do
    case Enum.split_while(state.rules, fn {rule, _times} -> not match?.(rule) end) do
      {_all, []} ->
        nil

      {before, [{rule, 1} | rest]} ->
        {rule, %{state | rules: before ++ rest}}

      {before, [{rule, times} | rest]} ->
        {rule, %{state | rules: before ++ [{rule, times - 1} | rest]}}
    end
  end

  ## Events of the helper

  defp event(
         <<131, 104, 3, 97, kind, 98, handle::32, 109, size::32, datagram::binary-size(size)>> =
           frame,
         %{dumps: dumps} = state
       )
       when dumps != %{} and kind in [1, 3] do
    case Message.decode(datagram) do
      {:ok, messages} -> interrupt(frame, handle, messages, state)
      {:error, _unreadable} -> {frame, state}
    end
  end

  defp event(frame, state), do: {frame, state}

  defp interrupt(frame, handle, messages, state) do
    if Enum.any?(messages, &is_map_key(state.dumps, {handle, &1.seq})) do
      {marked, state} = Enum.map_reduce(messages, state, &mark(&1, handle, &2))
      {data(handle, Message.encode(marked)), state}
    else
      {frame, state}
    end
  end

  defp mark(message, handle, state) do
    key = {handle, message.seq}

    if is_map_key(state.dumps, key) do
      ended? = Message.control(message.type) in [:done, :error]
      dumps = if ended?, do: Map.delete(state.dumps, key), else: state.dumps
      {%{message | flags: Bitwise.bor(message.flags, @interrupted)}, %{state | dumps: dumps}}
    else
      {message, state}
    end
  end
end
