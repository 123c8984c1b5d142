defmodule NetlinkPort.RawFile do
  @moduledoc false
  # Files, read by the calling process itself.
  #
  # Danger: almost all functions of `File`, `:file` and `:os.find_executable/1` are calls of `:file_server_2`, without
  # a limit. It is one process of the whole VM, and carries out one call after the other: while a call of any other
  # process waits for a file system that does not answer (NFS, FUSE, autofs), all wait. So a server, and what a user calls,
  # has to use this module. raw_file_test.exs has the list of those that need not.
  #
  # `:file` has `:raw` for some of this; `:prim_file` is what it uses for these, and for the rest.

  alias NetlinkPort.FileName

  @chunk 65_536

  @doc "As `File.read/1`, also for the files of /proc, whose size is 0."
  @spec read(Path.t()) :: {:ok, binary()} | {:error, File.posix()}
  def read(path), do: with_file(path, &read_on(&1, []))

  defp read_on(file, chunks) do
    case :file.read(file, @chunk) do
      {:ok, chunk} -> read_on(file, [chunks | chunk])
      :eof -> {:ok, IO.iodata_to_binary(chunks)}
      {:error, reason} -> {:error, reason}
    end
  end

  @doc "The first bytes of a file, so many at most; `:eof` for an empty one."
  @spec beginning(Path.t(), pos_integer()) :: {:ok, binary()} | :eof | {:error, File.posix()}
  def beginning(path, size), do: with_file(path, &:file.read(&1, size))

  defp with_file(path, read) do
    with {:ok, file} <- :file.open(path, [:raw, :read, :binary]) do
      result = read.(file)
      _closed = :file.close(file)
      result
    end
  end

  @doc "As `File.stat/1`."
  @spec stat(Path.t()) :: {:ok, File.Stat.t()} | {:error, File.posix()}
  def stat(path) do
    with {:ok, info} <- :file.read_file_info(path, [:raw, {:time, :universal}]),
         do: {:ok, File.Stat.from_record(info)}
  end

  @doc "As `File.exists?/1`."
  @spec exists?(Path.t()) :: boolean()
  def exists?(path), do: match?({:ok, _stat}, stat(path))

  @doc "As `File.dir?/1`."
  @spec dir?(Path.t()) :: boolean()
  def dir?(path), do: match?({:ok, %{type: :directory}}, stat(path))

  @doc "The target of a symbolic link."
  @spec read_link(Path.t()) :: {:ok, binary()} | {:error, File.posix()}
  def read_link(path) do
    with {:ok, target} <- :prim_file.read_link_all(path), do: {:ok, FileName.bytes(target)}
  end

  @doc "As `System.find_executable/1`, for the name of a program."
  @spec find_executable(String.t()) :: Path.t() | nil
  def find_executable(name) do
    folders = String.split(System.get_env("PATH", ""), ":", trim: true)
    Enum.find(Enum.map(folders, &Path.join(&1, name)), &executable?/1)
  end

  defp executable?(path) do
    case stat(path) do
      {:ok, %{type: :regular, mode: mode}} -> Bitwise.band(mode, 0o111) != 0
      _other -> false
    end
  end
end
