defmodule NetlinkPort.Telemetry do
  @moduledoc """
  The events that this library tells `:telemetry` of, where that library is loaded. It is no dependency:
  without it, and without a handler, an event costs nearly nothing.

  Each name begins with `:netlink_port`. Durations and uptimes are in native units of time
  (`System.convert_time_unit/3`). There is no event for a datagram: `NetlinkPort.stats/1` has the counts.

  ## Helpers

  `server` is the pid of the server, `name` what it was registered as, or `nil`.

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :helper, :start]` | `duration`: from the start of the server to the helper's first word | `server`, `name`, `os_pid`, `executable`, `restarts` |
  | `[:netlink_port, :helper, :failure]` | `duration` | `server`, `name`, `error`, `restarts`: it could not be started |
  | `[:netlink_port, :helper, :stop]` | `uptime`; `sockets`, `pins`: how many are closed by it | `server`, `name`, `os_pid`, `reason`, that of `:netlink_closed`. Not where the server is killed with `:kill` |
  | `[:netlink_port, :helper, :busy]` | `count`: 1 | `server`: the helper does not read as fast as the server writes, which keeps commands from now on |

  ## Sockets

  `socket` is the `NetlinkPort.Socket`, which has the fields `protocol` and `netns`.

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :open, :stop]` | `duration` | `server` as it was named, `protocol`, `netns`, `socket` |
  | `[:netlink_port, :open, :exception]` | `duration` | `server`, `protocol`, `netns`, `kind`: `:error`, `reason`: the `NetlinkPort.Error` that was returned |
  | `[:netlink_port, :socket, :close]` | `count`: 1 | `server`, `socket`, `owner`, `reason`: `:closed`, `:owner_down`, `:namespace_gone`. Those that a helper's end closes are in `sockets` of its `:stop` |
  | `[:netlink_port, :socket, :overrun]` | `dropped`: datagrams | `server`, `socket`, `owner` |
  | `[:netlink_port, :socket, :error]` | `count`: 1 | `server`, `socket`, `owner`, `error`: what is told by `:netlink_error`, or by `recv/2` |

  Datagrams from user space are refused in the helper, which counts them: `:foreign` of
  `NetlinkPort.stats/1`. An owner that is slow is no event before the kernel drops: `:queued_bytes` beside
  `:queue_limit` and `:window_left` of `NetlinkPort.stats/1` show it, and `:broadcast_error` whether that
  can fill a conntrack table (`NetlinkPort.setopts/2`).

  ## Pins

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :pin, :stop]` | `duration` | `server` as it was named, `netns`, `pin` |
  | `[:netlink_port, :pin, :exception]` | `duration` | `server`, `netns`, `kind`: `:error`, `reason`: the `NetlinkPort.Error` that was returned |
  | `[:netlink_port, :pin, :close]` | `count`: 1 | `server`, `pin`, `owner`, `reason`: `:unpinned`, `:owner_down`. Those that a helper's end closes are in `pins` of its `:stop` |

  ## Requests

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :request, :stop]` | `duration`; `messages`: how many were asked of the kernel, or read from its dump | `kind`: `:request`, `:batch` or `:dump`; `type` of the message, `nil` of a batch; `socket` of `NetlinkPort.request/4` and its like, or `connection` of those of `NetlinkPort.Connection`; `outcome`: `:ok`, or the `NetlinkPort.Error` |
  | `[:netlink_port, :request, :warning]` | `count`: 1 | `kind`, `type`, and `socket` or `connection`, as above; `ext_ack`: what the kernel said with a success, `t:NetlinkPort.ExtAck.t/0`. One for each that is said |

  ## Monitors, connections, captures

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :monitor, :up]` | `count`: 1 | `monitor`, `socket` |
  | `[:netlink_port, :monitor, :down]` | `count`: 1 | `monitor`, `reason`, that of `:netlink_down`; once until it is up again |
  | `[:netlink_port, :monitor, :resync]` | `count`: 1 | `monitor`, `subscriber`, `reason`: one for each subscriber that is told |
  | `[:netlink_port, :connection, :up]` | `count`: 1 | `connection`, `socket` |
  | `[:netlink_port, :connection, :down]` | `calls`: how many got the error | `connection`, `error`; once until it is up again |
  | `[:netlink_port, :capture, :start]` | `count`: 1 | `capture`, `server`, `path` |
  | `[:netlink_port, :capture, :stop]` | `datagrams`, `dropped`, `bytes` | `capture`, `server`, `path`, `reason`: `:stopped`, or that of `:netlink_capture_end` |

  ## A handler

      :telemetry.attach_many(
        "netlink-port-log",
        [[:netlink_port, :helper, :stop], [:netlink_port, :socket, :overrun]],
        &MyApp.Netlink.handle_event/4,
        nil
      )

      def handle_event([:netlink_port, :helper, :stop], %{uptime: uptime}, metadata, nil) do
        seconds = System.convert_time_unit(uptime, :native, :second)
        Logger.warning("netlink helper ended after \#{seconds} s: \#{inspect(metadata.reason)}")
      end

      def handle_event([:netlink_port, :socket, :overrun], %{dropped: dropped}, %{socket: socket}, nil) do
        Logger.warning("\#{inspect(socket)} lost \#{dropped} datagrams: give it a larger rcvbuf")
      end

  Handlers run in the process that the event is about: `:open`, `:pin` and `:request` in the caller, the others in
  the server, the monitor, the connection or the capture. One that is slow holds that process up, and with
  a server all of its sockets: keep them short, or let them send a message. One that raises is detached by
  `:telemetry`, and hurts nobody.
  """

  # It need not be there; `apply/3` keeps compilers and Dialyzer from asking for it.
  @telemetry :telemetry

  @doc false
  @spec execute([atom(), ...], map(), map()) :: :ok
  def execute(event, measurements, metadata) do
    if on?() do
      apply(@telemetry, :execute, [[:netlink_port | event], measurements, metadata])
    end

    :ok
  catch
    # Its application is not started, say. Nobody is to be hurt by who only looks.
    _kind, _reason -> :ok
  end

  @doc false
  # Runs `fun`, and tells how long it took; `described` makes measurements and metadata of its result,
  # and chooses the event.
  @spec timed((() -> result), (result -> {[atom(), ...], map(), map()})) :: result
        when result: term()
  def timed(fun, described) do
    if on?() do
      began = System.monotonic_time()
      result = fun.()
      duration = System.monotonic_time() - began
      {event, measurements, metadata} = described.(result)
      execute(event, Map.put(measurements, :duration, duration), metadata)
      result
    else
      fun.()
    end
  end

  @doc false
  # Of a request, batch or dump on `place`, a socket or a connection.
  @spec request(:request | :batch | :dump, integer() | nil, {atom(), term()}, (() -> outcome)) ::
          outcome
        when outcome: NetlinkPort.Request.Exchange.outcome()
  def request(kind, type, {key, place}, fun) do
    timed(fun, fn result ->
      {messages, outcome, ext_acks} = asked(result)
      metadata = %{key => place, kind: kind, type: type}

      for ext_ack <- ext_acks,
          do: execute([:request, :warning], %{count: 1}, Map.put(metadata, :ext_ack, ext_ack))

      {[:request, :stop], %{messages: messages}, Map.put(metadata, :outcome, outcome)}
    end)
  end

  defp asked({:error, error}), do: {0, error, []}
  defp asked({:ok, messages, ext_ack}), do: {length(messages), :ok, List.wrap(ext_ack)}

  defp asked({:ok, outcomes}) do
    {length(outcomes), :ok, for({:ok, _messages, ext_ack} <- outcomes, ext_ack, do: ext_ack)}
  end

  defp on?, do: function_exported?(@telemetry, :execute, 3)
end
