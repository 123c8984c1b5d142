defmodule Soak.World do
  @moduledoc false
  # The namespaces. Each has a bridge whose name identifies it, and a process.

  alias NetlinkPort.Rtnl

  # The index of the first link that is made.
  @marker 2

  @enforce_keys [:count]
  defstruct [:count]

  def name(index), do: "nlp-#{System.pid()}-s#{index}"
  def marker(index), do: "id#{index}"

  def build(count) do
    :ets.new(__MODULE__, [:named_table, :public])
    for index <- 1..count, do: create(index)
    %__MODULE__{count: count}
  end

  def demolish(world), do: for(index <- 1..world.count, do: delete(index))

  def create(index) do
    name = name(index)
    ip(["netns", "add", name])
    ip(["-n", name, "link", "add", marker(index), "type", "bridge"])
    ip(["-n", name, "link", "set", "lo", "up"])

    sleeper =
      Port.open({:spawn_executable, find("ip")}, args: ~w(netns exec #{name} sleep 100000))

    {:os_pid, pid} = Port.info(sleeper, :os_pid)
    settle(pid, "/run/netns/" <> name)
    :ets.insert(__MODULE__, {index, pid})
  end

  # Until the process has entered the namespace it is in the host's.
  defp settle(pid, path) do
    inode = File.stat!(path).inode

    unless match?({:ok, %{inode: ^inode}}, File.stat("/proc/#{pid}/ns/net")) do
      Process.sleep(1)
      settle(pid, path)
    end
  end

  def delete(index) do
    {_output, _status} = System.cmd("kill", ["-KILL", "#{pid(index)}"], stderr_to_stdout: true)
    {_output, _status} = System.cmd("ip", ["netns", "del", name(index)], stderr_to_stdout: true)
  end

  def pid(index), do: :ets.lookup_element(__MODULE__, index, 2)

  @doc "A random way to name a namespace."
  def netns(index) do
    case :rand.uniform(3) do
      1 -> {:name, name(index)}
      2 -> {:path, "/run/netns/" <> name(index)}
      3 -> {:pid, pid(index)}
    end
  end

  @doc "The request that every namespace answers with its own name."
  def question(sequence), do: Rtnl.getlink(@marker, sequence)

  @doc "The sequence number of an answer, and the namespace that it comes from."
  def read_answer(datagram) do
    case Rtnl.messages(datagram) do
      [{16, sequence, payload}] -> {sequence, Rtnl.link_name(payload)}
      # A namespace that is being made has no bridge yet: ENODEV.
      [{2, sequence, <<-19::32-signed-native, _::binary>>}] -> {sequence, :not_yet}
      other -> {:unexpected, other}
    end
  end

  def ip(arguments) do
    case System.cmd(find("ip"), arguments, stderr_to_stdout: true) do
      {_output, 0} -> :ok
      {output, status} -> raise "ip #{Enum.join(arguments, " ")}: #{status}: #{output}"
    end
  end

  defp find(program), do: System.find_executable(program)
end
