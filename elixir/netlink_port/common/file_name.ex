defmodule NetlinkPort.FileName do
  @moduledoc false
  # The system's file names are bytes. Elixir's functions take binaries as such, in every locale. But OTP returns some
  # names as charlists. Danger: under LC_ALL=C each character of these is a byte, which to_string/1 would encode
  # again.

  @doc "The bytes of a name that OTP has returned."
  @spec bytes(charlist() | binary()) :: binary()
  def bytes(name) when is_binary(name), do: name

  def bytes(name) when is_list(name),
    do: :unicode.characters_to_binary(name, :unicode, :file.native_name_encoding())

  @doc "The bytes of a path as `t:Path.t/0` has it, a charlist too."
  @spec chardata(term()) :: {:ok, binary()} | :error
  def chardata(path) when is_binary(path), do: {:ok, path}

  def chardata(path) when is_list(path) do
    {:ok, IO.chardata_to_string(path)}
  rescue
    _error in [ArgumentError, UnicodeConversionError] -> :error
  end

  def chardata(_other), do: :error

  @doc """
  An absolute path. A relative one is taken from the working directory. If that cannot be told, as when it was deleted,
  the path stays as it is.
  """
  @spec expand(Path.t()) :: Path.t()
  def expand(path), do: if(expanded?(path), do: path, else: from_here(path, &Path.expand/2))

  # Each start of a server asks, and the working directory costs it a call of OTP's file server.
  defp expanded?("/" <> _ = path),
    do: :binary.match(path <> "/", ["//", "/./", "/../"]) == :nomatch

  defp expanded?(_path), do: false

  @doc "As `expand/1`, but `..` stays."
  @spec absolute(Path.t()) :: Path.t()
  def absolute(path), do: from_here(path, &Path.absname/2)

  # Danger: without a working directory Path.expand/1 and Path.absname/1 raise, for absolute paths too.
  defp from_here(path, make) do
    case :file.get_cwd() do
      {:ok, directory} -> make.(path, bytes(directory))
      {:error, _reason} -> path
    end
  end

  @doc """
  The file name of a command line argument. Under LC_ALL=C the VM may have encoded it twice. An argument that was not
  encoded twice is returned as it is.
  """
  @spec argument(String.t()) :: Path.t()
  def argument(argument) do
    with :latin1 <- :file.native_name_encoding(),
         bytes when is_binary(bytes) <- :unicode.characters_to_binary(argument, :utf8, :latin1),
         true <- String.valid?(bytes) do
      bytes
    else
      _as_it_is -> argument
    end
  end
end
