defmodule NetlinkPort.Monitor.Config do
  @moduledoc false
  # The options of a monitor, checked in the caller.

  alias NetlinkPort.{Error, Options}

  # What the monitor's own mailbox may hold; then its socket's window fills, then the kernel's queue.
  @max_queue 1_000
  @largest 1_000_000_000
  @own [:name, :server, :protocol, :dump]
  @of_sockets [:netns, :groups]

  @type t :: %__MODULE__{
          server: GenServer.server(),
          protocol: NetlinkPort.protocol(),
          open: keyword(),
          dump_open: keyword(),
          dumps: NetlinkPort.Monitor.Snapshot.dumps()
        }

  @enforce_keys [:server, :protocol, :open, :dump_open, :dumps]
  defstruct [:server, :protocol, :open, :dump_open, :dumps]

  @spec new(term()) :: {:ok, t()} | {:error, Error.t()}
  def new(opts) do
    Options.keyword!(opts)
    Options.known!(opts, @own ++ @of_sockets ++ (Options.names() -- [:active]))
    protocol = Keyword.get(opts, :protocol, :route)

    open =
      Keyword.drop(opts, @own) ++
        [close_on: :namespace_gone, active: true, max_queue: @max_queue]

    with {:ok, %{netns: netns}} <- Options.open(protocol, open) do
      # That of now, whatever the working directory is when it is opened again.
      opts = Keyword.put(opts, :netns, netns)

      {:ok,
       %__MODULE__{
         server: Options.server!(Keyword.get(opts, :server, NetlinkPort)),
         protocol: protocol,
         open: Keyword.put(open, :netns, netns),
         dump_open: Keyword.take(opts, [:netns, :get_strict_chk]),
         dumps: dumps!(Keyword.get(opts, :dump, []))
       }}
    end
  end

  @doc "A bound on a mailbox."
  @spec max_queue!(term()) :: pos_integer()
  def max_queue!(count) when is_integer(count) and count in 1..@largest, do: count

  def max_queue!(other) do
    raise ArgumentError,
          "expected max_queue: a number of messages up to #{@largest}, got: #{inspect(other)}"
  end

  defp dumps!(dumps) when is_list(dumps) do
    for dump <- dumps do
      case dump do
        {type, payload} -> {Options.type!(type), IO.iodata_to_binary(payload)}
        _other -> wrong(dumps)
      end
    end
  end

  defp dumps!(other), do: wrong(other)

  @spec wrong(term()) :: no_return()
  defp wrong(other) do
    raise ArgumentError, "expected dump: a list of {type, payload}, got: #{inspect(other)}"
  end
end
