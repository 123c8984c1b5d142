defmodule NetlinkPort.Witness do
  @moduledoc false
  # Outlives the server by a moment. Whatever ends the server, a brutal kill too, the witness tells
  # each owner once that its sockets are closed, and sees to it that the helper is gone.
  #
  # It is the heir of the server's board of sockets, and the only process that ever says
  # `:netlink_closed`, so that nobody hears it twice.

  alias NetlinkPort.{Helper, Link}

  # How long a helper may take to notice the end of its standard input before it is killed.
  @patience 500

  @doc "Starts a witness of the calling server."
  @spec start() :: pid()
  def start do
    server = self()
    :proc_lib.spawn(fn -> init(server) end)
  end

  @doc "Tells the witness which process the helper is."
  @spec helper(pid(), Helper.process() | nil) :: :ok
  def helper(witness, process) do
    Kernel.send(witness, {:helper, process})
    :ok
  end

  defp init(server) do
    monitor = Process.monitor(server)
    watch(monitor, nil)
  end

  defp watch(monitor, process) do
    receive do
      {:helper, process} -> watch(monitor, process)
      {:DOWN, ^monitor, :process, _server, reason} -> testify(reason, process)
    end
  end

  defp testify(reason, process) do
    # A server that has not got as far as its board has no owners to tell.
    receive do
      {:"ETS-TRANSFER", board, _server, :board} -> tell_owners(board, reason)
    after
      0 -> :ok
    end

    if process, do: see_to_it(process, System.monotonic_time(:millisecond) + @patience)
  end

  defp tell_owners(board, reason) do
    for {owner, socket} <- Link.sockets(board) do
      Kernel.send(owner, {:netlink_closed, socket, plain(reason)})
    end

    :ets.delete(board)
  end

  defp plain({:shutdown, reason}), do: reason
  defp plain(reason), do: reason

  defp see_to_it(process, deadline) do
    cond do
      not Helper.alive?(process) ->
        :ok

      System.monotonic_time(:millisecond) >= deadline ->
        Helper.kill(process)

      true ->
        Process.sleep(10)
        see_to_it(process, deadline)
    end
  end
end
