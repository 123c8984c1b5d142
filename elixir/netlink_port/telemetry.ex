defmodule NetlinkPort.Telemetry do
  @moduledoc """
  The events that this library executes with `:telemetry`, when that library is loaded. `:telemetry` is no dependency.
  Without it, or without a handler, an event costs almost nothing.

  The name of each event begins with `:netlink_port`. Durations and uptimes are in native units of time
  (`System.convert_time_unit/3`). There is no event for a datagram; `NetlinkPort.stats/1` has the counts.

  ## Helpers

  `server` is the pid of the server. `name` is the name it is registered under, or `nil`.

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :helper, :start]` | `duration`: from the start of the server to the first frame of the helper | `server`, `name`, `os_pid`, `executable`, `restarts` |
  | `[:netlink_port, :helper, :failure]` | `duration` | `server`, `name`, `error`, `restarts`: the helper could not be started |
  | `[:netlink_port, :helper, :stop]` | `uptime`; `sockets`, `pins`: how many of them the end of the helper closes | `server`, `name`, `os_pid`, `reason`, the same as in `:netlink_closed`. There is no event when the server is killed with `:kill` |
  | `[:netlink_port, :helper, :busy]` | `count`: 1 | `server`: the helper does not read as fast as the server writes. From now on the server queues commands |

  ## Sockets

  `socket` is the `NetlinkPort.Socket`. Its fields `protocol` and `netns` are useful as tags.

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :open, :stop]` | `duration` | `server` as the caller named it, `protocol`, `netns`, `socket` |
  | `[:netlink_port, :open, :exception]` | `duration` | `server`, `protocol`, `netns`, `kind`: `:error`, `reason`: the `NetlinkPort.Error` that was returned |
  | `[:netlink_port, :socket, :close]` | `count`: 1 | `server`, `socket`, `owner`, `reason`: `:closed`, `:owner_down`, `:namespace_gone`. The `:stop` event of a helper counts the sockets that its end closes, in `sockets` |
  | `[:netlink_port, :socket, :overrun]` | `dropped`: datagrams | `server`, `socket`, `owner` |
  | `[:netlink_port, :socket, :error]` | `count`: 1 | `server`, `socket`, `owner`, `error`: the error that the owner gets by `:netlink_error` or `recv/2` |

  The helper refuses datagrams from user space, and counts them: `:foreign` of `NetlinkPort.stats/1`.

  A slow owner causes no event until the kernel drops datagrams. Before that, `NetlinkPort.stats/1` shows it:
  `:window_left` falls to zero, and `:queued_bytes` rises towards `:queue_limit`. `:broadcast_error` says whether a slow
  owner can fill a conntrack table (`NetlinkPort.setopts/2`).

  ## Pins

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :pin, :stop]` | `duration` | `server` as the caller named it, `netns`, `pin` |
  | `[:netlink_port, :pin, :exception]` | `duration` | `server`, `netns`, `kind`: `:error`, `reason`: the `NetlinkPort.Error` that was returned |
  | `[:netlink_port, :pin, :close]` | `count`: 1 | `server`, `pin`, `owner`, `reason`: `:unpinned`, `:owner_down`. The `:stop` event of a helper counts the pins that its end closes, in `pins` |

  ## Requests

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :request, :stop]` | `duration`; `messages`: how many messages the answer has, or how many requests the batch has; 0 for an error | `kind`: `:request`, `:batch` or `:dump`; `type` of the message, `nil` for a batch; `socket` for the functions of `NetlinkPort` and `NetlinkPort.Generic` on a socket, or `connection` for those on a `NetlinkPort.Connection`; `outcome`: `:ok`, or the `NetlinkPort.Error` |
  | `[:netlink_port, :request, :warning]` | `count`: 1 | `kind`, `type`, and `socket` or `connection`, as above; `ext_ack`: the kernel's extended acknowledgement of a success, `t:NetlinkPort.ExtAck.t/0`. One event for each acknowledgement |

  ## Monitors, connections, captures

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:netlink_port, :monitor, :up]` | `count`: 1 | `monitor`, `socket` |
  | `[:netlink_port, :monitor, :down]` | `count`: 1 | `monitor`, `reason`, the same as in `:netlink_down`. One event until the monitor is up again |
  | `[:netlink_port, :monitor, :resync]` | `count`: 1 | `monitor`, `subscriber`, `reason`: one event for each subscriber that is sent `:netlink_resync` |
  | `[:netlink_port, :connection, :up]` | `count`: 1 | `connection`, `socket` |
  | `[:netlink_port, :connection, :down]` | `calls`: how many calls got the error | `connection`, `error`. One event until the connection is up again |
  | `[:netlink_port, :capture, :start]` | `count`: 1 | `capture`, `server`, `path` |
  | `[:netlink_port, :capture, :stop]` | `datagrams`, `dropped`, `bytes` | `capture`, `server`, `path`, `reason`: `:stopped`, or the reason in `:netlink_capture_end` |

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

  A handler runs in the process that executes the event. For `:open`, `:request`, `[:pin, :stop]` and
  `[:pin, :exception]` that is the caller. For the other events it is the server, the monitor, the connection or the
  capture. A slow handler blocks that process, and in a server it blocks all sockets of that server. So keep handlers
  short, or let them send a message to another process. `:telemetry` detaches a handler that raises, and nothing else
  happens.
  """

  # The module may not exist. `apply/3` keeps the compiler and Dialyzer from looking for it.
  @telemetry :telemetry

  @doc false
  @spec execute([atom(), ...], map(), map()) :: :ok
  def execute(event, measurements, metadata) do
    if on?() do
      apply(@telemetry, :execute, [[:netlink_port | event], measurements, metadata])
    end

    :ok
  catch
    # Observation must never break the library, even when the application :telemetry is not started.
    _kind, _reason -> :ok
  end

  @doc false
  # Runs `fun` and executes an event with its duration. `described` turns the result into the event, its measurements
  # and its metadata.
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
  # Executes the events of a request, batch or dump on `place`, a socket or a connection.
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
