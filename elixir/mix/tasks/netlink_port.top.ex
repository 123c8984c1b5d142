defmodule Mix.Tasks.NetlinkPort.Top do
  @shortdoc "Shows a running application's netlink sockets and what passes through them"

  @moduledoc """
  A live view of the servers and sockets of a running application: see `NetlinkPort.Top`.

      mix netlink_port.top --node my_app@host
      mix netlink_port.top --node my_app@host.example.org --cookie COOKIE --interval 500
      mix netlink_port.top --node my_app@host --once

  Press `q` or Control-C to end it. Options:

    * `--node NAME@HOST` - the application's node. Required. The task joins it as a hidden node, under a name that
      the node chooses, and leaves it at the end.
    * `--cookie COOKIE` - the cookie of that node. Defaults to that of `~/.erlang.cookie`.
    * `--interval MS` - the time from one look to the next, at least 100. Defaults to 1000.
    * `--once` - prints the view once, for scripts: not cut to the terminal, with the rates of one interval.

  Exit code: 0. 1 if the node is lost. 2 for wrong arguments, or if the node cannot be reached.
  """

  use Mix.Task

  alias NetlinkPort.Top
  alias NetlinkPort.Operations.Attach

  @switches [node: :string, cookie: :string, interval: :integer, once: :boolean]

  @see "see `mix help netlink_port.top`"

  @impl true
  def run(arguments) do
    if "--help" in arguments or "-h" in arguments,
      do: Mix.Tasks.Help.run(["netlink_port.top"]),
      else: parse(arguments)
  end

  defp parse(arguments) do
    case OptionParser.parse(arguments, strict: @switches) do
      {options, [], []} ->
        look(Map.new(options))

      {_options, _rest, [{name, _} | _]} ->
        refuse("unknown option, or a wrong value: #{name}; " <> @see)

      {_options, [rest | _], _invalid} ->
        refuse("unexpected argument: #{rest}; " <> @see)
    end
  end

  defp look(%{interval: interval}) when interval < 100,
    do: refuse("--interval is at least 100 ms")

  defp look(%{node: name} = options) do
    Mix.Task.run("app.config")

    case Attach.node(name, options[:cookie]) do
      {:ok, node} -> view(node, options)
      {:error, sentence} -> refuse(sentence)
    end
  end

  defp look(_options) do
    refuse("which application? --node NAME@HOST; in its own shell it is NetlinkPort.Top.run()")
  end

  defp view(node, options) do
    opts = [node: node, once: Map.get(options, :once, false)]
    opts = [interval: Map.get(options, :interval, 1_000)] ++ opts

    case terminal(opts[:once], fn -> Top.run([size: &size/0] ++ opts) end) do
      :ok -> :ok
      {:error, sentence} -> stop(sentence, 1)
    end
  end

  # The terminal hands on each key at once, and Control-C as a key: otherwise Erlang's own menu would take Control-C.
  defp terminal(true, run), do: run.()

  defp terminal(false, run) do
    saved = stty("-g")
    _set = saved && stty("-icanon -echo -isig")

    try do
      run.()
    after
      saved && stty(saved)
    end
  end

  # Erlang finds the size of its terminal only from OTP 26 on, if there is no shell.
  defp size do
    with text when is_binary(text) <- stty("size"),
         [rows, columns] when rows > "0" <- String.split(text) do
      {String.to_integer(rows), String.to_integer(columns)}
    else
      _no_terminal -> {24, 80}
    end
  end

  # A program that the VM starts has no /dev/tty, so stty(1) is given the terminal by its name.
  defp stty(arguments) do
    with {:ok, "/dev/" <> _ = terminal} <- File.read_link("/proc/self/fd/0"),
         command = ["-c", "exec stty $1 <\"$0\"", terminal, arguments],
         {output, 0} <- System.cmd("sh", command, stderr_to_stdout: true) do
      String.trim(output)
    else
      _no_terminal -> nil
    end
  end

  @spec refuse(String.t()) :: no_return()
  defp refuse(sentence), do: stop(sentence, 2)

  @spec stop(String.t(), 1 | 2) :: no_return()
  defp stop(sentence, code) do
    Mix.shell().error("netlink_port.top: " <> sentence)
    exit({:shutdown, code})
  end
end
