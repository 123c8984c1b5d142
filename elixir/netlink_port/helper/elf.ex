defmodule NetlinkPort.Helper.Elf do
  @moduledoc false
  # Reads as much of an ELF header as explains why a machine does not run the file. elf(5).

  alias NetlinkPort.RawFile

  @typedoc "The machine that the file is built for, and its dynamic loader, `nil` for a static executable."
  @type t :: %{machine: String.t(), loader: Path.t() | nil}

  # EM_* of include/uapi/linux/elf-em.h, by the names that uname(1) has.
  @machines %{
    3 => "i386",
    8 => "mips",
    20 => "ppc",
    21 => "ppc64",
    22 => "s390x",
    40 => "arm",
    62 => "x86_64",
    183 => "aarch64",
    243 => "riscv",
    258 => "loongarch64"
  }

  # The headers and the name of the loader lie within these first bytes.
  @head 65_536
  @pt_interp 3

  @doc "Reads the header of a file. `:error` if the file cannot be read, or is no ELF file."
  @spec read(Path.t()) :: {:ok, t()} | :error
  def read(path) do
    with {:ok, head} <- beginning(path, @head), do: parse(head)
  end

  @doc "The first bytes of a regular file, so many at most."
  @spec beginning(Path.t(), pos_integer()) :: {:ok, binary()} | :error
  def beginning(path, size) do
    # Danger: the open of a FIFO waits for a writer.
    with {:ok, %{type: :regular}} <- RawFile.stat(path),
         {:ok, head} <- RawFile.beginning(path, size),
         do: {:ok, head},
         else: (_not_read -> :error)
  end

  @doc "As `read/1`, for the first bytes of a file."
  @spec parse(binary()) :: {:ok, t()} | :error
  # Class 2 is 64 bits, data 1 little-endian.
  def parse(<<0x7F, "ELF", class, data, _::binary>> = head) when class in 1..2 and data in 1..2 do
    endianness = if data == 1, do: :little, else: :big
    number = fn at, size -> number(head, at, size, endianness) end
    machine = number.(18, 2)

    {:ok,
     %{
       machine: Map.get(@machines, machine, "machine #{machine} of elf(5)"),
       loader: loader(head, class, number)
     }}
  end

  def parse(_no_elf), do: :error

  defp loader(head, class, number) do
    # e_phoff, e_phentsize and e_phnum; p_offset and p_filesz of a program header; the size of an address.
    {phoff, phentsize, phnum, offset, filesz, word} =
      if class == 2, do: {32, 54, 56, 8, 32, 8}, else: {28, 42, 44, 4, 16, 4}

    first = number.(phoff, word)
    step = number.(phentsize, 2)

    Enum.find_value(0..max(number.(phnum, 2) - 1, 0), fn index ->
      at = first + index * step

      if number.(at, 4) == @pt_interp,
        do: name(head, number.(at + offset, word), number.(at + filesz, word))
    end)
  end

  # The name ends at a NUL.
  defp name(head, at, size) when at + size <= byte_size(head) and size > 0,
    do: head |> binary_part(at, size) |> String.split(<<0>>) |> hd()

  defp name(_head, _at, _size), do: nil

  # Beyond the end a number is 0, so that a truncated file raises nothing.
  defp number(head, at, size, endianness) when at + size <= byte_size(head),
    do: head |> binary_part(at, size) |> :binary.decode_unsigned(endianness)

  defp number(_head, _at, _size, _endianness), do: 0
end
