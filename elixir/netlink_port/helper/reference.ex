defmodule NetlinkPort.Helper.Reference do
  @moduledoc false
  # What a process needs to command a helper without asking its server. It is part of every socket, and so of every
  # message about a socket: keep it small.
  #
  # The board is a public table of the server, with seven kinds of rows:
  #
  #     {:reference, last, privileges, spin}     the last reference given to a command; what the helper may do; for how
  #                                              long to spin, in microseconds
  #     {:look, pid, until}                      who looks at the helper's file, or has (NetlinkPort.Helper.Look)
  #     {reference, waiter, pid}                 commands without an answer yet; without `pid` those of the server
  #     {{:socket, handle}, owner, socket, {tap, recipient, turn}}
  #                                              open sockets; only the server writes these. The owner is `nil`
  #                                              if it gets no `:netlink_closed`, the recipient on a passive socket
  #     {{:asked, handle}, reference, pid}       the last request of the owner of an active socket: its success is not
  #                                              told, so that the row above would stay when the owner is killed
  #     {{:gone, handle}, owner, socket, nil}    sockets that the helper has closed by itself, and whose owner the
  #                                              server has not notified yet
  #     {{:pin, handle}, owner, pin, nil}        pins
  #
  # A process can be killed at any moment, and then no longer takes its rows off the board: `forget_dead/1` does.
  #
  # A reference works only on the node of its server. On other nodes the server does the work.

  alias NetlinkPort.Helper.Privileges

  @type t :: %__MODULE__{
          server: pid(),
          port: port(),
          board: :ets.tid(),
          max_frame: pos_integer(),
          call_timeout: timeout(),
          capabilities: non_neg_integer()
        }

  @enforce_keys [:server, :port, :board, :max_frame, :call_timeout, :capabilities]
  defstruct @enforce_keys

  @doc "How to reach the helper of the calling server."
  @spec new(port(), :ets.tid(), timeout(), map()) :: t()
  def new(port, board, call_timeout, %{max_frame: max_frame, capabilities: capabilities}) do
    # The update of a constant, as in `NetlinkPort.Socket.new/4`.
    %{
      blank()
      | server: self(),
        port: port,
        board: board,
        max_frame: max_frame,
        call_timeout: call_timeout,
        capabilities: capabilities
    }
  end

  defp blank do
    %__MODULE__{
      server: nil,
      port: nil,
      board: nil,
      max_frame: 1,
      call_timeout: 0,
      capabilities: 0
    }
  end

  @doc "A new board of the calling server. The process `heir` inherits it when the server ends, however it ends."
  @spec board(pid(), non_neg_integer()) :: :ets.tid()
  def board(heir, spin) do
    board = :ets.new(:netlink_port, [:public, {:heir, heir, :board}, write_concurrency: true])
    :ets.insert(board, {:reference, 0, nil, spin})
    board
  end

  @doc "Puts what the helper may do on the board."
  @spec put_privileges(t(), Privileges.t()) :: true
  def put_privileges(%__MODULE__{board: board}, privileges) do
    :ets.update_element(board, :reference, {3, privileges})
  rescue
    # The board went with its server.
    ArgumentError -> true
  end

  @doc """
  What the helper may do, as far as it is known, for the sentence of a refusal. If the board cannot be read, only its
  capabilities are known.
  """
  @spec privileges(t()) :: Privileges.t()
  def privileges(%__MODULE__{board: board, capabilities: capabilities}) do
    :ets.lookup_element(board, :reference, 3) || %Privileges{capabilities: capabilities}
  rescue
    # The board went with its server, or is another node's.
    ArgumentError -> %Privileges{capabilities: capabilities}
  end

  @doc """
  The process that looks at the helper's file, or has looked, and until when others wait for it, in monotonic time. The
  first caller is that process.
  """
  @spec looker(t(), integer()) :: {pid(), integer()}
  def looker(%__MODULE__{board: board}, until) do
    _first? = :ets.insert_new(board, {:look, self(), until})
    [{:look, looker, until}] = :ets.lookup(board, :look)
    {looker, until}
  rescue
    # The board went with its server.
    ArgumentError -> {self(), until}
  end

  @doc "For how many microseconds processes spin for an answer of this helper."
  @spec spin(t()) :: non_neg_integer()
  def spin(%__MODULE__{board: board}) do
    :ets.lookup_element(board, :reference, 4)
  rescue
    # The board went with its server, or is another node's.
    ArgumentError -> 0
  end

  @doc "Whether this process may command the port itself."
  @spec local?(t()) :: boolean()
  def local?(%__MODULE__{server: server}), do: node(server) == node()

  @doc "A reference for a command, 1 to 2^31 - 1 and then 1 again. Puts the waiter on the board."
  @spec expect(t(), term()) :: pos_integer()
  def expect(%__MODULE__{board: board}, waiter) do
    reference = next(board)
    :ets.insert(board, {reference, waiter, self()})
    reference
  end

  defp next(board), do: :ets.update_counter(board, :reference, {2, 1, 0x7FFFFFFF, 1})

  @doc "Takes the waiter of a command off the board."
  @spec settle(t(), pos_integer()) :: {:ok, term()} | :error
  def settle(%__MODULE__{board: board}, reference) do
    case :ets.take(board, reference) do
      [row] -> {:ok, elem(row, 1)}
      [] -> :error
    end
  end

  @doc "Takes the waiter of a command off the board, if it is still there."
  @spec forget(t(), pos_integer()) :: true
  def forget(%__MODULE__{board: board}, reference) do
    :ets.delete(board, reference)
  rescue
    # The board went with its server.
    ArgumentError -> true
  end

  @doc """
  The tap of a socket, or `:closed` if the socket is not on the board. Every send makes this look-up, with or without
  a capture.
  """
  @spec tap(t(), NetlinkPort.Socket.handle()) :: NetlinkPort.Capture.Tap.t() | nil | :closed
  def tap(%__MODULE__{board: board}, handle) do
    {tap, _recipient, _turn} = :ets.lookup_element(board, {:socket, handle}, 4)
    tap
  rescue
    # There is no such row. If there is no board either, this raises.
    ArgumentError ->
      _row? = :ets.member(board, {:socket, handle})
      :closed
  end

  @doc """
  The process that the datagrams of a socket were sent to a moment ago: only a hint, since the socket may become passive
  at any time. `nil` for a passive socket. The turn is another one whenever that has changed, or a passive socket's owner
  has been sent what the server kept. `nil` for a socket that is not on the board, and on another node.
  """
  @spec recipient(t(), NetlinkPort.Socket.handle()) :: {pid() | nil, turn()} | nil
  def recipient(%__MODULE__{board: board}, handle) do
    {_tap, recipient, turn} = :ets.lookup_element(board, {:socket, handle}, 4)
    {recipient, turn}
  rescue
    # There is no such row, or no board here.
    ArgumentError -> nil
  end

  @doc """
  As `expect/2`, for a command whose success the helper does not tell. The row goes with the socket, if its caller does not
  `forget/2` it.
  """
  @spec expect_failure(t(), NetlinkPort.Socket.handle(), term()) :: pos_integer()
  def expect_failure(%__MODULE__{board: board}, handle, waiter) do
    reference = next(board)
    :ets.insert(board, [{reference, waiter, self()}, {{:asked, handle}, reference, self()}])
    reference
  end

  @doc "As `forget/2`, also for a request whose socket may be closed by now, so that its row does not go with it."
  @spec forget_request(t(), NetlinkPort.Socket.handle(), pos_integer()) :: true
  def forget_request(%__MODULE__{board: board}, handle, reference) do
    :ets.delete(board, reference)
    :ets.delete_object(board, {{:asked, handle}, reference, self()})
  rescue
    # The board went with its server.
    ArgumentError -> true
  end

  @doc "The waiter of a command, which stays on the board."
  @spec waiter(t(), pos_integer()) :: term() | nil
  def waiter(%__MODULE__{board: board}, reference) do
    case :ets.lookup(board, reference) do
      [row] -> elem(row, 1)
      [] -> nil
    end
  end

  @doc "Puts a failure in the place of the waiter, for the `recv` that will ask for it. If the waiter is gone, none will."
  @spec put_failure(t(), pos_integer(), term()) :: boolean()
  def put_failure(%__MODULE__{board: board}, reference, failure),
    do: :ets.update_element(board, reference, {2, {:failed, failure}})

  @doc "Takes the rows of processes that have ended off the board."
  @spec forget_dead(t()) :: :ok
  def forget_dead(%__MODULE__{board: board}) do
    rows = :ets.select(board, [{{:"$1", :_, :"$2"}, [{:is_pid, :"$2"}], [{{:"$1", :"$2"}}]}])

    for {key, pid} <- rows, not Process.alive?(pid), do: :ets.match_delete(board, {key, :_, pid})
    :ok
  end

  @doc "The failure that a command has left on the board, or `nil`."
  @spec failure(t(), pos_integer() | nil) :: term() | nil
  def failure(_reference, nil), do: nil

  def failure(helper, reference) do
    case waiter(helper, reference) do
      {:failed, failure} -> failure
      _sent_or_under_way -> nil
    end
  end

  @type turn :: integer()
  @type shown :: {NetlinkPort.Capture.Tap.t() | nil, recipient :: pid() | nil, turn()}

  @doc "Puts a socket on the board, or changes its owner, its tap, or its recipient."
  @spec put_socket(t(), NetlinkPort.Socket.t(), pid() | nil, shown()) :: true
  def put_socket(%__MODULE__{board: board}, socket, owner, shown) do
    :ets.insert(board, {{:socket, NetlinkPort.Socket.handle(socket)}, owner, socket, shown})
  end

  @doc "Changes the tap and the recipient of a socket, if it is on the board."
  @spec update_socket(t(), NetlinkPort.Socket.handle(), shown()) :: boolean()
  def update_socket(%__MODULE__{board: board}, handle, shown),
    do: :ets.update_element(board, {:socket, handle}, {4, shown})

  @doc "Marks a socket as gone: no process may use it, and its owner is still to be notified."
  @spec retire_socket(t(), NetlinkPort.Socket.t(), pid() | nil) :: true
  def retire_socket(%__MODULE__{board: board}, socket, owner) do
    handle = NetlinkPort.Socket.handle(socket)
    # In this order: if the server ends in between, its heir still finds the owner.
    :ets.insert(board, {{:gone, handle}, owner, socket, nil})
    :ets.delete(board, {:socket, handle})
  end

  @doc "Takes a socket off the board."
  @spec delete_socket(t(), NetlinkPort.Socket.handle()) :: true
  def delete_socket(%__MODULE__{board: board}, handle) do
    :ets.delete(board, {:socket, handle})
    :ets.delete(board, {:gone, handle})

    case :ets.take(board, {:asked, handle}) do
      [{_key, reference, _pid}] -> :ets.delete(board, reference)
      [] -> true
    end
  end

  @doc "Puts a pin on the board."
  @spec put_pin(t(), NetlinkPort.Pin.t(), pid()) :: true
  def put_pin(%__MODULE__{board: board}, pin, owner) do
    :ets.insert(board, {{:pin, pin.handle}, owner, pin, nil})
  end

  @doc "Takes a pin off the board."
  @spec delete_pin(t(), NetlinkPort.Socket.handle()) :: true
  def delete_pin(%__MODULE__{board: board}, handle), do: :ets.delete(board, {:pin, handle})

  @doc "Whether a pin is on the board."
  @spec pin?(t(), NetlinkPort.Socket.handle()) :: boolean()
  def pin?(%__MODULE__{board: board}, handle) do
    :ets.member(board, {:pin, handle})
  rescue
    # The board went with its server.
    ArgumentError -> false
  end

  @doc "The owners to notify of the server's end, each once for each of its sockets and pins on the board."
  @spec to_notify(:ets.tid()) :: [{pid(), NetlinkPort.Socket.t() | NetlinkPort.Pin.t()}]
  def to_notify(board) do
    rows = :ets.match(board, {{:_, :_}, :"$1", :"$2", :_})
    for [owner, held] <- rows, owner != nil, uniq: true, do: {owner, held}
  end
end
