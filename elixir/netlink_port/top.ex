defmodule NetlinkPort.Top do
  @moduledoc """
  A live view of servers and their sockets, in a terminal: what passes through each in a second, what was
  dropped, what waits. The busiest is first.

      mix netlink_port.top                                         # see its help
      bin/my_app remote                                            # in a release, then
      iex> NetlinkPort.Top.run()

  It shows, of each server: its helper's process id, how long that has been up, memory, share of a
  processor, restarts, descriptors, sockets, and commands that wait for the helper (`OUT`). Of each
  socket: its handle, protocol, namespace and owner; datagrams and bytes that were received (`IN`) and
  sent (`OUT`) in a second; datagrams dropped, and how many of them since the last look; how full the
  kernel's receive queue (`QUEUE`) and its window (`WINDOW`) are, and items that wait in the VM for the owner
  (`KEPT`). See `t:NetlinkPort.socket_stats/0`. A window of 100% is an owner that does not take what is
  there; what then fills is the queue, and what the queue has no room for is dropped.

  Pins (`NetlinkPort.Pin`) come behind the sockets, with `pin` for a protocol.

  Each look asks every socket once; that is all it costs.
  """

  alias NetlinkPort.{Error, Options, Redaction}
  alias NetlinkPort.Operations.Attach
  alias NetlinkPort.Operations.Survey
  alias NetlinkPort.Top.Screen

  # How long a server may take to tell, in ms: one that does not answer is shown as such.
  @patience 2_000

  @typedoc """
  A look at a node: when, in ms of some clock of its own, what each server tells, `nil` for one that does
  not answer, and what owners and servers are called there.
  """
  @type sample :: %{
          node: node(),
          at: integer(),
          servers: [{pid(), NetlinkPort.server_stats() | nil}],
          names: %{pid() => String.t()}
        }

  @doc """
  Shows it until `q` (and Enter, in a shell that waits for it).

      iex> NetlinkPort.Top.run(interval: 500)
      :ok

  Options:

    * `:interval` - ms from one look to the next, 1 000 unless told otherwise, at least 100.
    * `:once` - `true` prints it once, for scripts: whole, with the rates of one interval.
    * `:node` - the node to look at; this one unless told otherwise. It is to be connected already.
    * `:size` - a function that returns `{rows, columns}` of the terminal; it asks the terminal
      unless told otherwise.

  Errors say in words why a node cannot be asked.
  """
  @spec run(
          interval: pos_integer(),
          once: boolean(),
          node: node(),
          size: (() -> {pos_integer(), pos_integer()})
        ) :: :ok | {:error, String.t()}
  def run(opts \\ []) do
    Options.keyword!(opts)
    Options.known!(opts, [:interval, :once, :node, :size])
    node = Keyword.get(opts, :node, node())
    interval = interval!(Keyword.get(opts, :interval, 1_000))

    if Options.boolean!(:once, Keyword.get(opts, :once, false)),
      do: once(node, interval),
      else: live(node, interval, Keyword.get(opts, :size, &size/0))
  end

  defp interval!(interval) when is_integer(interval) and interval >= 100,
    do: Options.timeout!(interval)

  defp interval!(other) do
    raise ArgumentError, "expected interval: ms, at least 100, got: #{inspect(other)}"
  end

  defp once(node, interval) do
    with {:ok, before} <- look(node),
         :ok <- Process.sleep(interval),
         {:ok, now} <- look(node) do
      Enum.each(Screen.lines(before, now, :infinity), &IO.puts/1)
    end
  end

  ## Live

  @hide "\e[?25l\e[H\e[J"
  @show "\e[?25h\n"

  defp live(node, interval, size) do
    with {:ok, first} <- look(node) do
      keys = keys()

      try do
        IO.write(@hide)
        result = show(nil, first, %{node: node, interval: interval, size: size, keys: keys})
        IO.write(@show)
        result
      catch
        # The terminal is gone, that of `bin/my_app rpc` say. By `rescue` it would be any error of Erlang's.
        :error, :terminated -> :ok
      after
        Process.unlink(keys)
        Process.exit(keys, :kill)
      end
    end
  end

  defp show(before, now, %{keys: keys} = view) do
    IO.write(frame(before, now, view.size.()))

    receive do
      {^keys, :quit} -> :ok
    after
      view.interval ->
        with {:ok, next} <- look(view.node), do: show(now, next, view)
    end
  end

  # Written over the last one, line by line: a cleared screen would flicker.
  defp frame(before, now, {rows, columns}) do
    lines = Screen.lines(before, now, {rows - 1, columns})
    ["\e[H", Enum.map(lines, &[&1, "\e[K\r\n"]), "\e[J"]
  end

  # Control-C is a key where the terminal is told not to make a signal of it.
  @quit ["q", "Q", "\x03"]

  defp keys do
    top = self()
    # Linked: it ends with the view.
    spawn_link(fn -> read_keys(top) end)
  end

  defp read_keys(top) do
    case IO.getn("", 1) do
      key when key in @quit -> send(top, {self(), :quit})
      key when is_binary(key) -> read_keys(top)
      # There is no input, as with `rpc`.
      _eof -> Process.sleep(:infinity)
    end
  end

  defp size do
    with {:ok, rows} <- :io.rows(), {:ok, columns} <- :io.columns() do
      {rows, columns}
    else
      _no_terminal -> {24, 80}
    end
  end

  ## A look

  defp look(node) when node == node(), do: {:ok, sample()}
  defp look(node), do: Attach.call(node, __MODULE__, :sample, [])

  @doc false
  # A look at this node; called from others.
  @spec sample() :: sample()
  def sample do
    told =
      for {server, answer} <- Survey.stats(@patience),
          not match?({:error, %Error{reason: :esrch}}, answer),
          do: {server, answered(answer)}

    at = System.monotonic_time(:millisecond)
    %{node: node(), at: at, servers: told, names: names(told)}
  end

  defp answered({:ok, stats}), do: stats
  defp answered({:error, _error}), do: nil

  # Elsewhere a pid is shown otherwise.
  defp names(told) do
    owners =
      for {_pid, %{sockets: sockets, pins: pins}} <- told, held <- sockets ++ pins, do: held.owner

    Redaction.names(owners ++ for({pid, _stats} <- told, do: pid))
  end
end
