defmodule NetlinkPort.Sandbox.TemporaryFolder do
  @moduledoc false
  # The folder of a sandbox with `path:` or `stand_in:`. It is a tmpfs(5) in the mount namespace of a shell of its own,
  # which has it as its working directory. Others reach it by `/proc/<pid>/cwd`.
  #
  # Invariants:
  # - No file system of the machine has the folder, so it vanishes with the shell, however that ends.
  # - The shell reads its standard input, a pipe from the VM, and ends at the end of file.
  # - The shell is not the holder of the namespace: the path stays the same when the namespace is gone and back.

  alias NetlinkPort.Sandbox.{Holder, Refusal}

  # $1 is any folder, which the mount hides from this shell alone. The FIFOs are those of the stand-in: a copier waits
  # in open(2) until the other end is opened, for ever if the VM is killed before. Opening both ends wakes it, and after
  # rm(1) no other copier begins to wait.
  @init ~S(mount -t tmpfs -o mode=0700 tmpfs "$1" && cd "$1" && echo ready && {
    read -r _
    for fifo in */[abcd]; do
      [ ! -p "$fifo" ] || { exec 4<>"$fifo"; rm "$fifo"; exec 4>&-; }
    done
  })

  @enforce_keys [:holder, :path]
  defstruct @enforce_keys

  @type t :: %__MODULE__{holder: Holder.t(), path: Path.t()}

  @spec start(Refusal.way()) :: {:ok, t()} | {:error, String.t()}
  def start(way) do
    user = if way == :user, do: ["--user", "--map-root-user"], else: []
    arguments = user ++ ["--mount", "sh", "-c", @init, "sh", System.tmp_dir() || "/proc"]

    unshare = System.find_executable("unshare") || "unshare"

    with {:ok, port} <- Holder.spawn_program(unshare, arguments) do
      case Holder.await(port) do
        {:ok, {_port, os_pid} = holder} ->
          {:ok, %__MODULE__{holder: holder, path: "/proc/#{os_pid}/cwd"}}

        {:late, reason} ->
          {:error, reason}

        {:error, printed} ->
          {:error, Refusal.mount(printed)}
      end
    end
  end

  @spec stop(t()) :: :ok
  def stop(folder), do: Holder.stop(folder.holder)
end
