defmodule Mix.Tasks.NetlinkPort.Doctor do
  @shortdoc "Looks at what netlink_port needs, and says what to do"

  @moduledoc """
  Checks the executable, its privileges, the kernel, namespaces and limits. Prints a line for each, with a check mark
  or a remedy. See `NetlinkPort.Doctor`, also for releases.

      mix netlink_port.doctor
      mix netlink_port.doctor --netns blue --netns /run/docker/netns/1a2b
      mix netlink_port.doctor --node my_app@host --cookie COOKIE

  Options:

    * `--executable PATH` - the helper to check. Defaults to the executable that servers take.
    * `--netns NAME` or `--netns PATH` - a namespace to enter. May be given any number of times. Defaults to those in
      `/run/netns`.
    * `--node NAME@HOST` - makes the checks in a running application. It then also checks that application's servers,
      and the namespaces that only its sockets and pins keep alive.
    * `--cookie COOKIE` - the cookie of that node. Defaults to that of `~/.erlang.cookie`.

  Exit code: 0 if nothing fails, with or without warnings. 1 if something fails. 2 for wrong arguments, or if the node
  cannot be asked.
  """

  use Mix.Task

  alias NetlinkPort.{Arguments, Doctor, FileName, Helper, Options}
  alias NetlinkPort.Operations.Attach

  @switches [executable: :string, netns: :keep, node: :string, cookie: :string]

  @see "see `mix help netlink_port.doctor`"

  @impl true
  def run(arguments) do
    if "--help" in arguments or "-h" in arguments,
      do: Mix.Tasks.Help.run(["netlink_port.doctor"]),
      else: parse(arguments)
  end

  defp parse(arguments) do
    case OptionParser.parse(arguments, strict: @switches) do
      {options, [], []} ->
        look(options)

      {_options, _rest, [{name, _value} | _]} ->
        refuse("unknown option, or without its value: #{name}; " <> @see)

      {_options, [rest | _], _invalid} ->
        refuse("unexpected argument: #{rest}; " <> @see)
    end
  end

  defp look(options) do
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:logger)
    netns = for {:netns, place} <- options, do: netns(FileName.argument(place))
    opts = if netns == [], do: [], else: [netns: netns]
    opts = executable(options[:executable]) ++ opts

    case report(options[:node], options[:cookie], opts) do
      {:ok, report} ->
        Mix.shell().info(Doctor.format(report, unicode?: :io.getopts()[:encoding] == :unicode))
        unless Doctor.well?(report), do: exit({:shutdown, 1})

      {:error, sentence} ->
        refuse(sentence)
    end
  end

  defp report(nil, _cookie, opts), do: {:ok, Doctor.report(opts)}

  defp report(node, cookie, opts) do
    with {:ok, node} <- Attach.node(node, cookie), do: Attach.call(node, Doctor, :report, [opts])
  end

  defp netns(place) do
    place = if String.contains?(place, "/"), do: {:path, place}, else: {:name, place}
    _target = checked("--netns", fn -> Options.target(place) end)
    place
  end

  defp executable(nil) do
    path = Helper.Executable.path()
    _path = checked("config :netlink_port", fn -> Arguments.executable!(path) end)
    []
  end

  defp executable(path) do
    path = FileName.argument(path)
    [executable: checked("--executable", fn -> Arguments.executable!(path) end)]
  end

  # Only the form: what a path leads to is looked at by the checks of the doctor.
  defp checked(name, check) do
    check.()
  rescue
    error in ArgumentError -> refuse(name <> ": " <> Exception.message(error))
  end

  @spec refuse(String.t()) :: no_return()
  defp refuse(sentence) do
    Mix.shell().error("netlink_port.doctor: " <> sentence)
    exit({:shutdown, 2})
  end
end
