defmodule NetlinkPort.Top do
  @moduledoc """
  A live view of servers and their sockets, in a terminal: how much passes through each socket in a second, how much
  was dropped, and what waits. The busiest socket comes first.

      mix netlink_port.top                                         # see its help
      bin/my_app remote                                            # in a release, then
      iex> NetlinkPort.Top.run()

  For each server it shows the process id of its helper, how long the helper has been up, its memory, its share of a
  processor, restarts, descriptors, sockets, and the commands that wait for the helper (`OUT`).

  For each socket it shows the handle, protocol, namespace and owner; the datagrams and bytes received (`IN`) and sent
  (`OUT`) in a second; the datagrams dropped, and how many of these since the last look; how full the kernel's receive
  queue (`QUEUE`) and the socket's window (`WINDOW`) are; and the items that wait in the VM for the owner (`KEPT`).
  See `t:NetlinkPort.socket_stats/0`.

  A window of 100% means that the owner does not take what is there. Then the kernel's receive queue fills, and the
  kernel drops each datagram that the queue has no room for.

  Pins (`NetlinkPort.Pin`) come after the sockets, with `pin` as their protocol.

  Each look costs a call to every server, and two commands to the helper for each socket.
  """

  alias NetlinkPort.{Arguments, Error, Redaction}
  alias NetlinkPort.Operations.Attach
  alias NetlinkPort.Operations.Survey
  alias NetlinkPort.Top.Screen

  # How long a server may take to answer, in ms. A server that does not is shown as such.
  @patience 2_000

  @typedoc """
  A look at a node: the monotonic time of the node, in ms; the statistics of each server, `nil` if the server did not
  answer; and the names of owners and servers there.
  """
  @type sample :: %{
          node: node(),
          at: integer(),
          servers: [{pid(), NetlinkPort.server_stats() | nil}],
          names: %{pid() => String.t()}
        }

  @doc """
  Shows the view until you press `q` (and Enter, in a shell that passes on whole lines).

      iex> NetlinkPort.Top.run(interval: 500)
      :ok

  Options:

    * `:interval` - the time from one look to the next, in ms, at least 100. Defaults to 1 000.
    * `:once` - `true` prints the view once, for scripts: not cut to the terminal, with the rates of one interval.
      Defaults to `false`.
    * `:node` - the node to look at. It has to be connected already. Defaults to this node.
    * `:size` - a function that returns `{rows, columns}` of the terminal. Defaults to asking the terminal.

  Errors: a sentence that says why the node cannot be asked.
  """
  @spec run(
          interval: pos_integer(),
          once: boolean(),
          node: node(),
          size: (() -> {pos_integer(), pos_integer()})
        ) :: :ok | {:error, String.t()}
  def run(opts \\ []) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:interval, :once, :node, :size])
    node = Keyword.get(opts, :node, node())
    interval = interval!(Keyword.get(opts, :interval, 1_000))

    if Arguments.boolean!(:once, Keyword.get(opts, :once, false)),
      do: once(node, interval),
      else: live(node, interval, Keyword.get(opts, :size, &size/0))
  end

  defp interval!(interval) when is_integer(interval) and interval >= 100,
    do: Arguments.timeout!(interval)

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
        # The terminal is gone, for example that of `bin/my_app rpc`. `rescue` would take every ErlangError.
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

  # Each frame is written over the last, line by line, since a cleared screen would flicker.
  defp frame(before, now, {rows, columns}) do
    lines = Screen.lines(before, now, {rows - 1, columns})
    ["\e[H", Enum.map(lines, &[&1, "\e[K\r\n"]), "\e[J"]
  end

  # Control-C arrives as a key if the terminal does not turn it into a signal (stty -isig).
  @quit ["q", "Q", "\x03"]

  defp keys do
    top = self()
    # Linked, so that it ends with the view.
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
  # A look at this node. Top calls it on other nodes.
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

  # Names are resolved on this node: a pid is printed differently on another.
  defp names(told) do
    owners =
      for {_pid, %{sockets: sockets, pins: pins}} <- told, held <- sockets ++ pins, do: held.owner

    Redaction.names(owners ++ for({pid, _stats} <- told, do: pid))
  end
end
