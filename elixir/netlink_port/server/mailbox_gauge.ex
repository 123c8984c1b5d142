defmodule NetlinkPort.Server.MailboxGauge do
  @moduledoc false
  # Measures the mailbox of a socket's owner, or of a monitor's subscriber, for `max_queue:`.
  #
  # The VM does not notify when a process takes a message, and reading the length of a mailbox can block while that
  # process is suspended. So another process reads the length, one at a time for each owner. It does so when half of
  # the owner's credit is used up. While the owner does not catch up, it does so again, less and less often.

  alias NetlinkPort.Nodes.Relay
  alias NetlinkPort.ProcessLimit
  alias NetlinkPort.Server.Delivery

  # How long to wait before a mailbox that was too full is measured again, in ms.
  @soonest 1
  @latest 64
  # More than any bound.
  @full 0x7FFFFFFF

  @type t :: %__MODULE__{
          bound: pos_integer(),
          found: Delivery.credit(),
          asked: Delivery.credit() | nil,
          resting?: boolean(),
          rest: pos_integer()
        }
  @typedoc "Names the measured process: a socket's handle, or a subscriber's reference."
  @type key :: term()
  @type report :: {:length, pid(), non_neg_integer()} | :rested

  # `found` is the credit of the last measurement, `asked` that of when the present one began.
  @enforce_keys [:bound]
  defstruct [:bound, found: :infinity, asked: nil, resting?: false, rest: @soonest]

  @doc "A gauge for a bound, in messages. `nil` for `:infinity`."
  @spec new(pos_integer() | :infinity) :: t() | nil
  def new(:infinity), do: nil
  def new(bound), do: %__MODULE__{bound: bound}

  @doc """
  Starts a measurement if one is due. The calling process is sent `{:gauge, key, report}`.
  `waiting?` says whether items wait for credit.
  """
  @spec watch(t(), key(), pid(), Delivery.credit(), waiting? :: boolean()) :: t()
  def watch(%{asked: nil, resting?: false} = gauge, key, owner, credit, waiting?) do
    # An owner to which nothing was sent since the last measurement is not measured again.
    if 2 * credit <= gauge.bound and (credit < gauge.found or waiting?) do
      case measure(key, owner) do
        :ok -> %{gauge | asked: credit}
        :system_limit -> rest(gauge, key, @latest)
      end
    else
      gauge
    end
  end

  def watch(gauge, _key, _owner, _credit, _waiting?), do: gauge

  # The measuring process waits while the owner is suspended. For an owner on another node it runs after everything
  # that is on its way to that node.
  defp measure(key, owner) do
    principal = self()
    report = fn -> send(principal, {:gauge, key, {:length, owner, queue_length(owner)}}) end

    if node(owner) == node() do
      with {:ok, _pid} <- ProcessLimit.spawn(report), do: :ok
    else
      Relay.run(node(owner), report)
    end
  end

  defp rest(gauge, key, rest) do
    _timer = Process.send_after(self(), {:gauge, key, :rested}, rest)
    %{gauge | resting?: true}
  end

  @doc "The credit that follows from a report. Messages sent since the measurement began count as not taken."
  @spec read(t(), key(), report(), Delivery.credit()) :: {Delivery.credit(), t()}
  def read(gauge, _key, :rested, credit), do: {credit, %{gauge | resting?: false}}
  # An earlier gauge of this socket asked for this measurement.
  def read(%{asked: nil} = gauge, _key, _length, credit), do: {credit, gauge}

  def read(%{asked: asked, bound: bound} = gauge, key, {:length, _owner, length}, credit) do
    found = max(bound - length - (asked - credit), 0)
    gauge = %{gauge | asked: nil, found: found}

    if 2 * found > bound do
      {found, %{gauge | rest: @soonest}}
    else
      rest = if found == 0, do: min(2 * gauge.rest, @latest), else: @soonest
      {found, %{rest(gauge, key, gauge.rest) | rest: rest}}
    end
  end

  defp queue_length(owner) when node(owner) == node() do
    case Process.info(owner, :message_queue_len) do
      {:message_queue_len, length} -> length
      nil -> 0
    end
  end

  # A mailbox that cannot be read counts as full. If its node has ended, that closes the socket.
  defp queue_length(owner) do
    {:message_queue_len, length} =
      :erpc.call(node(owner), :erlang, :process_info, [owner, :message_queue_len], 5_000)

    length
  catch
    _kind, _reason -> @full
  end
end
