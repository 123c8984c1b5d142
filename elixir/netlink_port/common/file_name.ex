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
  The working directory. It is an error if it cannot be told, as when it was deleted. As `File.cwd/0`, without a call of
  OTP's file server (`NetlinkPort.RawFile`).
  """
  @spec cwd() :: {:ok, Path.t()} | {:error, File.posix()}
  def cwd do
    with {:ok, folder} <- :prim_file.get_cwd(), do: {:ok, bytes(folder)}
  end

  @doc """
  As `Path.expand/1`, which calls OTP's file server: an absolute path. A relative one is taken from the working directory.
  If that cannot be told, the path stays as it is.
  """
  @spec expand(Path.t()) :: Path.t()
  def expand(path) do
    case path |> IO.chardata_to_string() |> at_home() |> absolute() do
      "/" <> _ = path -> path |> Path.split() |> Enum.reduce([], &dots/2) |> joined()
      path -> path
    end
  end

  defp at_home("~"), do: System.user_home!()
  defp at_home("~/" <> path), do: Path.join(System.user_home!(), path)
  defp at_home(path), do: path

  defp dots(".", names), do: names
  defp dots("..", ["/"]), do: ["/"]
  defp dots("..", [_name | names]), do: names
  defp dots(name, names), do: [name | names]

  defp joined(names), do: names |> Enum.reverse() |> Path.join()

  @doc "As `expand/1`, but `~` and `..` stay."
  @spec absolute(Path.t()) :: Path.t()
  def absolute(path) do
    case cwd() do
      {:ok, folder} -> Path.absname(path, folder)
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
