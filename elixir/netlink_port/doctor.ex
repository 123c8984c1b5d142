defmodule NetlinkPort.Doctor do
  @moduledoc """
  Checks everything that this library needs. Says of each thing that it is well, or what to do about it.

  `mix netlink_port.doctor` prints the report, and ends with an exit code for scripts. In a release, which has no Mix:

      bin/my_app rpc "NetlinkPort.Doctor.run()"
      bin/my_app eval "NetlinkPort.Doctor.run() == :ok || System.halt(1)"

  `rpc` checks the running application, with its servers and sockets. `eval` starts a VM of its own, as the same user
  and with the same executable, so it works before the application runs.

  The doctor starts a helper for the checks, and ends it afterwards. If the executable itself fails its checks, no
  helper is started. It checks:

    * the executable: where it is, its version, who may write and run it, its file capabilities;
    * the helper as it runs: its capabilities, what does not work without a missing one, seccomp;
    * the kernel: its version, and what it supports, by trying;
    * the namespaces in `/run/netns`: whether the helper can enter each, and whether the kernel confirms it;
    * the servers of this node, and the namespaces that only their sockets and pins keep alive;
    * limits of buffers, descriptors and watches;
    * how long a request takes.

  ## What the marks mean

  `:fail`, with exit code 1: the executable is missing, not executable or of another version. The helper does not
  start, or runs without its seccomp filter. The kernel lacks pidfd_open(2), `NETLINK_ROUTE` or `NETLINK_GENERIC`. A
  namespace cannot be entered.

  `:warn`: something that you may need is missing, or is likely to be a mistake. For example a capability, a small
  limit, a file that others may write, a helper that was restarted or does not answer, a namespace that only sockets
  keep alive.

  The time that a request takes is reported, and never fails.

  The doctor opens a socket of each protocol of which the kernel has one in this namespace (`/proc/net/netlink`), so that
  it loads no module. It names the other protocols as not tried.
  """

  alias NetlinkPort.{Arguments, Error, FileName, Helper, Options, Redaction, Server}
  alias NetlinkPort.Doctor.{Capabilities, Executable, Kernel, Limits, Namespaces, Pinned}
  alias NetlinkPort.Doctor.{RoundTrip, Servers}

  # How much of the message of an unexpected failure is shown, in characters.
  @banner 300

  @typedoc "The mark, what was found, and what to do: a command or a sentence, `nil` if nothing is to be done."
  @type check :: {:ok | :warn | :fail, line :: String.t(), remedy :: String.t() | nil}

  @typedoc "The checks by section, in the order in which they were made."
  @type report :: [{title :: String.t(), [check()]}]

  @typedoc """
  `:executable` is the path of the helper. Defaults to the executable that servers take. `:netns` is a list of
  namespaces to enter. Defaults to those in `/run/netns`.
  """
  @type option :: {:executable, Path.t()} | {:netns, [NetlinkPort.netns()]}

  @doc """
  Makes the checks, and prints the report.

      iex> NetlinkPort.Doctor.run()
      :ok

  Errors: `:error` if a check fails. The report says which.
  """
  @spec run([option()]) :: :ok | :error
  def run(opts \\ []) do
    report = report(opts)
    IO.puts(format(report, unicode?: :io.getopts()[:encoding] == :unicode))
    if well?(report), do: :ok, else: :error
  end

  @doc """
  Whether no check of a report failed. Warnings do not count.

      iex> NetlinkPort.Doctor.well?([{"kernel", [{:ok, "Linux 6.18", nil}, {:warn, "no cookies", nil}]}])
      true
      iex> NetlinkPort.Doctor.well?([{"kernel", [{:fail, "no NETLINK_ROUTE", "upgrade"}]}])
      false
  """
  @spec well?(report()) :: boolean()
  def well?(report) do
    report!(report)

    not Enum.any?(report, fn {_title, checks} ->
      Enum.any?(checks, &match?({:fail, _line, _remedy}, &1))
    end)
  end

  defp report!(report) do
    unless list_of?(report, fn part ->
             match?({_title, _checks}, part) and
               list_of?(elem(part, 1), &match?({_mark, _line, _remedy}, &1))
           end) do
      raise ArgumentError, "expected a report, as report/1 returns it, got: #{inspect(report)}"
    end
  end

  defp list_of?(list, fun),
    do: is_list(list) and not List.improper?(list) and Enum.all?(list, fun)

  @doc """
  Makes the checks, and returns the report. It takes about a second.

      [{"executable", _checks} | _more] = NetlinkPort.Doctor.report(netns: [{:name, "blue"}])
  """
  @spec report([option()]) :: report()
  def report(opts \\ []) do
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:executable, :netns])
    netns = netns!(opts[:netns])
    executable = Arguments.executable!(opts[:executable] || Helper.Executable.path())
    executable = executable && FileName.expand(executable)
    # start_link/1 of a server that fails ends a caller that does not trap exits.
    look = fn ->
      Process.flag(:trap_exit, true)
      look(executable, netns)
    end

    look |> Task.async() |> Task.await(:infinity)
  end

  defp netns!(nil), do: nil

  defp netns!(places) do
    if not is_list(places) or List.improper?(places) do
      raise ArgumentError, "expected netns: a list of namespaces, got: #{inspect(places)}"
    end

    # Only the form is checked here. A path that does not work is reported by the check that enters it.
    for place <- places do
      place = place(place)
      _target = Options.target(place)
      place
    end
  end

  defp place({:path, path} = place) do
    with {:ok, path} <- FileName.chardata(path), do: {:path, path}, else: (_ -> place)
  end

  defp place(place), do: place

  defp look(executable, netns) do
    {_title, checks} = file = section("executable", fn -> Executable.checks(executable) end)

    # A helper that was started all the same would fail for the reason that is reported already.
    if Enum.any?(checks, &match?({:fail, _line, _remedy}, &1)),
      do: [file, {"helper", [unstarted()]}] ++ running(nil),
      else: [file | started(executable, netns)]
  end

  defp unstarted do
    {:warn, "not started; kernel, namespaces, limits and round trip are not looked at without it",
     "put the executable in order first, as said above"}
  end

  # The server logs nothing, since the report says the same.
  defp started(executable, netns) do
    case Server.start_link([name: nil, executable: executable], :none) do
      {:ok, server} ->
        report =
          [
            section("helper", fn -> Capabilities.checks(info(server)) end),
            section("kernel", fn -> Kernel.checks(server, info(server)) end),
            section("namespaces", fn -> Namespaces.checks(server, netns) end)
          ] ++
            running(server) ++
            [
              section("limits", fn -> Limits.checks(server, info(server)) end),
              section("round trip", fn -> RoundTrip.checks(server) end)
            ]

        # The server is linked to this process, and may have ended already.
        if Process.alive?(server), do: GenServer.stop(server)
        report

      {:error, %Error{} = error} ->
        [{"helper", [{:fail, Exception.message(error), remedy(error)}]} | running(nil)]
    end
  end

  defp info(server) do
    {:ok, info} = NetlinkPort.info(server)
    info
  end

  # A section that fails unexpectedly, for example because its helper was killed, must not hide the others.
  defp section(title, checks) do
    {title, checks.()}
  catch
    kind, reason ->
      # The formatted banner is cut, not the exception: Exception.message/1 fails for a cut one.
      banner = Exception.format_banner(kind, reason) |> String.slice(0, @banner)
      line = "could not be looked at: " <> banner
      {title, [{:fail, line, "try again; if it says so again, it is a bug of this library"}]}
  end

  # The doctor's own server is left out.
  defp running(own) do
    servers = Servers.stats(own)

    [
      section("servers", fn -> Servers.checks(servers) end),
      section("namespaces kept alive", fn -> Pinned.checks(servers, own) end)
    ]
  end

  defp remedy(%{reason: :eproto}) do
    "its own words, on standard error, say what was refused; run it by hand: PATH --version"
  end

  defp remedy(_error), do: "try again; if it says so again, run it by hand: PATH --version"

  @doc """
  A report as lines for people. Without `unicode?: true` the marks are ASCII.

      iex> NetlinkPort.Doctor.format([{"kernel", [{:fail, "no NETLINK_ROUTE", "upgrade"}]}])
      "kernel\\n  XX no NETLINK_ROUTE\\n      -> upgrade\\n0 well, 0 to look at, 1 failing"
  """
  @spec format(report(), unicode?: boolean()) :: String.t()
  def format(report, opts \\ []) do
    report!(report)
    Arguments.keyword!(opts)
    Arguments.known!(opts, [:unicode?])

    {marks, arrow} =
      if Keyword.get(opts, :unicode?, false),
        do: {%{ok: "✓", warn: "!", fail: "✗"}, "→"},
        else: {%{ok: "ok", warn: "!!", fail: "XX"}, "->"}

    report
    |> Enum.map(fn {title, checks} ->
      [title, "\n" | Enum.map(checks, &line(&1, marks, arrow))]
    end)
    |> Enum.concat([summary(report)])
    |> IO.iodata_to_binary()
  end

  # Paths in a line may hold any bytes.
  defp line({mark, line, nil}, marks, _arrow),
    do: ["  ", marks[mark], " ", Redaction.legible(line), "\n"]

  defp line({mark, line, remedy}, marks, arrow) do
    [line({mark, line, nil}, marks, arrow), "      ", arrow, " ", Redaction.legible(remedy), "\n"]
  end

  defp summary(report) do
    marks = for {_title, checks} <- report, {mark, _, _} <- checks, do: mark
    count = Enum.frequencies(marks)
    "#{count[:ok] || 0} well, #{count[:warn] || 0} to look at, #{count[:fail] || 0} failing"
  end
end
