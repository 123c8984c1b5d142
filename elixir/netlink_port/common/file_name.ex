defmodule NetlinkPort.FileName do
  @moduledoc false
  # Names of files as the system has them: bytes. Elixir's functions take binaries so, whatever the locale.
  # What OTP hands out as a list is another matter: under LC_ALL=C each character of it stands for a byte,
  # and to_string/1 would encode that once more.

  @doc "The bytes of a name that OTP has handed out."
  @spec bytes(charlist() | binary()) :: binary()
  def bytes(name) when is_binary(name), do: name

  def bytes(name) when is_list(name),
    do: :unicode.characters_to_binary(name, :unicode, :file.native_name_encoding())

  @doc "An absolute path, from the working directory where it is relative."
  @spec expand(Path.t()) :: Path.t()
  def expand(path) do
    {:ok, directory} = :file.get_cwd()
    Path.expand(path, bytes(directory))
  end

  @doc """
  An argument of a command line that names a file. Under LC_ALL=C it may have been encoded twice; what has not
  is left as it is.
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
