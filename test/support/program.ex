defmodule NetlinkPort.Program do
  @moduledoc false
  # The helper without the library: a test sends it frames and receives its events. The test owns the port.

  import ExUnit.Assertions
  alias NetlinkPort.{Helper, Pace}
  alias NetlinkPort.Helper.Protocol

  # The most memory that the helper may use at rest, in kB.
  @rest 8 * 1024
  # References of pings are above this, and all other references in the tests below.
  @pings 0x70000000

  ## Starting it

  def executable, do: Helper.Executable.path()

  def open_port(options, executable \\ executable()) do
    Port.open({:spawn_executable, executable}, [:binary, :exit_status | options])
  end

  @doc "Starts the helper as the server does, and waits for its first frame."
  def start!(executable \\ executable()) do
    port = open_port([packet: 4], executable)
    assert_receive {^port, {:data, frame}}, Pace.within(10_000)
    version = Protocol.version()
    assert {:hello, ^version, hello} = Protocol.decode(frame)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    assert hello[:os_pid] == os_pid
    %{port: port, os_pid: os_pid, hello: hello}
  end

  @doc "Starts the helper with a port without `:packet`."
  def start_stream!(executable \\ executable()) do
    port = open_port([:stream], executable)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    {[_hello], ""} = read_frames(port, "", 1)
    %{port: port, os_pid: os_pid}
  end

  ## Talking to it

  @doc """
  Sends frames, and a ping after them. Returns the events that came before the answer to the ping. That the helper
  still answers is half of every test.
  """
  def say(%{port: port}, frames) do
    reference = @pings + System.unique_integer([:positive])
    Enum.each(frames, &Port.command(port, &1))
    Port.command(port, Protocol.command(reference, {:ping}))
    events(port, {:reply, reference, {:ok, nil}})
  end

  defp events(port, last, seen \\ []) do
    receive do
      {^port, {:data, frame}} ->
        case Protocol.decode(frame) do
          ^last -> Enum.reverse(seen)
          event -> events(port, last, [event | seen])
        end

      {^port, {:exit_status, status}} ->
        flunk("the program ended with exit status #{status}")
    after
      Pace.within(10_000) -> flunk("the program does not answer")
    end
  end

  @doc "The events until the end of the helper, and its exit status."
  def rest(port, seen \\ []) do
    receive do
      {^port, {:data, frame}} -> rest(port, [Protocol.decode(frame) | seen])
      {^port, {:exit_status, status}} -> {Enum.reverse(seen), status}
    after
      Pace.within(10_000) -> flunk("the program does not end")
    end
  end

  @doc "Reads `left` frames from a port without `:packet`. Returns them and the bytes behind them."
  def read_frames(_port, seen, 0), do: {[], seen}

  def read_frames(port, <<size::32, frame::binary-size(size), seen::binary>>, left) do
    {frames, seen} = read_frames(port, seen, left - 1)
    {[frame | frames], seen}
  end

  def read_frames(port, seen, left) do
    receive do
      {^port, {:data, bytes}} -> read_frames(port, seen <> bytes, left)
    after
      Pace.within(10_000) -> flunk("no whole frame, only #{inspect(seen)}")
    end
  end

  @doc "Checks the events after each frame, and that no frame takes more memory than allowed."
  def assert_said(program, cases) do
    for {frame, expected} <- cases do
      reset_peak(program)
      said = say(program, [frame])
      assert {shown(frame), said} == {shown(frame), expected}
      assert_peak(program, copies(expected) * byte_size(frame), shown(frame))
    end
  end

  # A malformed frame is not copied. A term takes memory beside its frame.
  defp copies([{:malformed, _reason}]), do: 1
  defp copies(_term), do: 2

  defp shown(frame), do: inspect(frame, limit: 40, printable_limit: 40)

  ## What it says

  def malformed(reason), do: [{:malformed, reason}]
  def refused(reference, detail), do: [{:reply, reference, {:error, {:protocol, 22, detail}}}]
  def closed(reference), do: [{:reply, reference, {:error, {:info, 9, ""}}}]

  def term(term), do: :erlang.term_to_binary(term, minor_version: 2)

  def open(reference, handle, target \\ :host) do
    Protocol.command(reference, {:open, handle, target, 0, 0, false, 10_000, []})
  end

  @doc "Opens a socket in the program's own namespace, which needs no privilege."
  def opened(program, handle) do
    [{:reply, 5, answer}] = say(program, [open(5, handle)])
    answer
  end

  ## Its memory

  # Resets the peak of memory (VmHWM), proc_pid_clear_refs(5).
  def reset_peak(%{os_pid: os_pid}), do: File.write!("/proc/#{os_pid}/clear_refs", "5")

  @doc "Checks that the helper has used at most `bytes` above its use at rest, since its start or the last reset."
  def assert_peak(program, bytes, what \\ "") do
    peak = kilobytes(program, "VmHWM")
    assert peak < @rest + div(bytes, 1024), "#{what}: #{peak} kB for #{bytes} bytes"
  end

  def assert_at_rest(program), do: assert(kilobytes(program, "VmRSS") < @rest)

  defp kilobytes(%{os_pid: os_pid}, name) do
    [_, kilobytes] = Regex.run(~r/#{name}:\s+(\d+) kB/, File.read!("/proc/#{os_pid}/status"))
    String.to_integer(kilobytes)
  end
end
