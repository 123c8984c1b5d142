defmodule NetlinkPort.Doctor do
  @moduledoc """
  Looks at what this library needs, and says of each thing whether it is well, or what to do.

  `mix netlink_port.doctor` prints it and ends with a code for scripts. In a release, where there is no Mix:

      bin/my_app rpc "NetlinkPort.Doctor.run()"
      bin/my_app eval "NetlinkPort.Doctor.run() == :ok || System.halt(1)"

  `rpc` looks at the running application, its servers and sockets among it; `eval` starts a VM of its
  own, of the same user and with the same executable, and can be run before the application is.

  What is looked at, by a helper that is started for it and ended again, unless its executable fails already:

    * the executable: where it is, its version, who may write and run it, its file capabilities;
    * the helper as it runs: its capabilities and what is missing for want of one, seccomp;
    * the kernel: its version, and what it supports, by trying;
    * whether the namespaces in `/run/netns` can be entered, and the kernel confirms each;
    * the servers of this node, and the namespaces that nothing but their sockets keeps alive;
    * limits of buffers, descriptors and watches;
    * the time that a request takes.

  ## What the marks mean

  `:fail`, and exit code 1: the executable is missing, not executable or of another version; the helper does
  not start, or runs without its seccomp filter; the kernel is too old or lacks `NETLINK_ROUTE` or
  `NETLINK_GENERIC`; a namespace cannot be entered. `:warn`: something that you may need is missing, or is
  likely to be a mistake: a capability, a small limit, a file that others may write, a helper that was
  restarted or does not answer, a namespace that only sockets keep alive. A time is a time, and never a failure.

  To open each protocol can make the kernel load its module, as any program that opens it does.
  """

  alias NetlinkPort.{Error, FileName, Helper, Options, Server}
  alias NetlinkPort.Doctor.{Capabilities, Executable, Kernel, Limits, Namespaces, Pinned}
  alias NetlinkPort.Doctor.{RoundTrip, Servers}

  # How much of what has failed unexpectedly is told.
  @banner 300

  @typedoc "Whether it is well, what was found, and what to do: a command or a sentence."
  @type check :: {:ok | :warn | :fail, line :: String.t(), remedy :: String.t() | nil}

  @typedoc "What was found, by what was looked at, in the order it was looked at."
  @type report :: [{title :: String.t(), [check()]}]

  @typedoc """
  `:executable` is the path of the helper, the one servers take by themselves unless told otherwise;
  `:netns` a list of namespaces to enter instead of those in `/run/netns`.
  """
  @type option :: {:executable, Path.t()} | {:netns, [NetlinkPort.netns()]}

  @doc """
  Looks, and prints what it found.

      iex> NetlinkPort.Doctor.run()
      :ok

  Errors: `:error` where something fails; what that is, is printed.
  """
  @spec run([option()]) :: :ok | :error
  def run(opts \\ []) do
    report = report(opts)
    IO.puts(format(report, unicode?: :io.getopts()[:encoding] == :unicode))
    if well?(report), do: :ok, else: :error
  end

  @doc """
  Whether nothing fails.

      iex> NetlinkPort.Doctor.well?([{"kernel", [{:ok, "Linux 6.18", nil}, {:warn, "no cookies", nil}]}])
      true
      iex> NetlinkPort.Doctor.well?([{"kernel", [{:fail, "Linux 4.19 is too old", "upgrade"}]}])
      false
  """
  @spec well?(report()) :: boolean()
  def well?(report) do
    not Enum.any?(report, fn {_title, checks} ->
      Enum.any?(checks, &match?({:fail, _line, _remedy}, &1))
    end)
  end

  @doc """
  Looks. It takes a second or so.

      [{"executable", _checks} | _more] = NetlinkPort.Doctor.report(netns: [{:name, "blue"}])
  """
  @spec report([option()]) :: report()
  def report(opts \\ []) do
    Options.keyword!(opts)
    Options.known!(opts, [:executable, :netns])
    netns = netns!(opts[:netns])
    executable = Options.executable!(opts[:executable]) || Helper.Executable.path()
    executable = executable && FileName.expand(executable)
    # A helper that cannot be started ends who has started it, if that does not look out for it.
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

    # What is wrong with a path is told where it is tried.
    Enum.each(places, &Options.target/1)
    places
  end

  defp look(executable, netns) do
    {_title, checks} = file = section("executable", fn -> Executable.checks(executable) end)

    # Started all the same it would fail for what is said already.
    if Enum.any?(checks, &match?({:fail, _line, _remedy}, &1)),
      do: [file, {"helper", [unstarted()]}] ++ running(nil),
      else: [file | started(executable, netns)]
  end

  defp unstarted do
    {:warn, "not started; kernel, namespaces, limits and round trip are not looked at without it",
     "put the executable in order first, as said above"}
  end

  # The report says what its server would log.
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

        # It goes with this process, too.
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

  # One that fails in a way nobody has thought of, as when somebody kills the helper, hides no other.
  defp section(title, checks) do
    {title, checks.()}
  catch
    kind, reason ->
      # Cut as a sentence: the message of an exception that is cut cannot be told.
      banner = Exception.format_banner(kind, reason) |> String.slice(0, @banner)
      line = "could not be looked at: " <> banner
      {title, [{:fail, line, "try again; if it says so again, it is a bug of this library"}]}
  end

  # The helper of this look does not count.
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
  A report for people, in lines. Without `unicode?: true` the marks are ASCII.

      iex> NetlinkPort.Doctor.format([{"kernel", [{:fail, "Linux 4.19 is too old", "upgrade"}]}])
      "kernel\\n  XX Linux 4.19 is too old\\n      -> upgrade\\n0 well, 0 to look at, 1 failing"
  """
  @spec format(report(), unicode?: boolean()) :: String.t()
  def format(report, opts \\ []) do
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

  defp line({mark, line, nil}, marks, _arrow), do: ["  ", marks[mark], " ", line, "\n"]

  defp line({mark, line, remedy}, marks, arrow) do
    [line({mark, line, nil}, marks, arrow), "      ", arrow, " ", remedy, "\n"]
  end

  defp summary(report) do
    marks = for {_title, checks} <- report, {mark, _, _} <- checks, do: mark
    count = Enum.frequencies(marks)
    "#{count[:ok] || 0} well, #{count[:warn] || 0} to look at, #{count[:fail] || 0} failing"
  end
end
