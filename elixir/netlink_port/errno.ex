defmodule NetlinkPort.Errno do
  @moduledoc false
  # errno(3) numbers of Linux (include/uapi/asm-generic/errno-base.h and errno.h), their POSIX
  # atoms as in `t::file.posix/0`, and what strerror(3) says.

  @table [
    {1, :eperm, "operation not permitted"},
    {2, :enoent, "no such file or directory"},
    {3, :esrch, "no such process"},
    {4, :eintr, "interrupted system call"},
    {5, :eio, "input/output error"},
    {6, :enxio, "no such device or address"},
    {7, :e2big, "argument list too long"},
    {8, :enoexec, "exec format error"},
    {9, :ebadf, "bad file descriptor"},
    {10, :echild, "no child processes"},
    {11, :eagain, "resource temporarily unavailable"},
    {12, :enomem, "cannot allocate memory"},
    {13, :eacces, "permission denied"},
    {14, :efault, "bad address"},
    {15, :enotblk, "block device required"},
    {16, :ebusy, "device or resource busy"},
    {17, :eexist, "file exists"},
    {18, :exdev, "invalid cross-device link"},
    {19, :enodev, "no such device"},
    {20, :enotdir, "not a directory"},
    {21, :eisdir, "is a directory"},
    {22, :einval, "invalid argument"},
    {23, :enfile, "too many open files in system"},
    {24, :emfile, "too many open files"},
    {25, :enotty, "inappropriate ioctl for device"},
    {26, :etxtbsy, "text file busy"},
    {27, :efbig, "file too large"},
    {28, :enospc, "no space left on device"},
    {29, :espipe, "illegal seek"},
    {30, :erofs, "read-only file system"},
    {31, :emlink, "too many links"},
    {32, :epipe, "broken pipe"},
    {33, :edom, "numerical argument out of domain"},
    {34, :erange, "numerical result out of range"},
    {35, :edeadlk, "resource deadlock avoided"},
    {36, :enametoolong, "file name too long"},
    {37, :enolck, "no locks available"},
    {38, :enosys, "function not implemented"},
    {39, :enotempty, "directory not empty"},
    {40, :eloop, "too many levels of symbolic links"},
    {42, :enomsg, "no message of desired type"},
    {61, :enodata, "no data available"},
    {62, :etime, "timer expired"},
    {71, :eproto, "protocol error"},
    {74, :ebadmsg, "bad message"},
    {75, :eoverflow, "value too large for defined data type"},
    {84, :eilseq, "invalid or incomplete multibyte or wide character"},
    {87, :eusers, "too many users"},
    {88, :enotsock, "socket operation on non-socket"},
    {89, :edestaddrreq, "destination address required"},
    {90, :emsgsize, "message too long"},
    {91, :eprototype, "protocol wrong type for socket"},
    {92, :enoprotoopt, "protocol not available"},
    {93, :eprotonosupport, "protocol not supported"},
    {94, :esocktnosupport, "socket type not supported"},
    {95, :eopnotsupp, "operation not supported"},
    {96, :epfnosupport, "protocol family not supported"},
    {97, :eafnosupport, "address family not supported by protocol"},
    {98, :eaddrinuse, "address already in use"},
    {99, :eaddrnotavail, "cannot assign requested address"},
    {100, :enetdown, "network is down"},
    {101, :enetunreach, "network is unreachable"},
    {102, :enetreset, "network dropped connection on reset"},
    {103, :econnaborted, "software caused connection abort"},
    {104, :econnreset, "connection reset by peer"},
    {105, :enobufs, "no buffer space available"},
    {106, :eisconn, "transport endpoint is already connected"},
    {107, :enotconn, "transport endpoint is not connected"},
    {108, :eshutdown, "cannot send after transport endpoint shutdown"},
    {110, :etimedout, "connection timed out"},
    {111, :econnrefused, "connection refused"},
    {112, :ehostdown, "host is down"},
    {113, :ehostunreach, "no route to host"},
    {114, :ealready, "operation already in progress"},
    {115, :einprogress, "operation now in progress"},
    {116, :estale, "stale file handle"},
    {122, :edquot, "disk quota exceeded"},
    {125, :ecanceled, "operation canceled"}
  ]

  @doc "The POSIX atom of an errno; `:unknown` for one that is not in the table."
  @spec atom(integer()) :: atom()
  def atom(number)
  for {number, atom, _text} <- @table, do: def(atom(unquote(number)), do: unquote(atom))
  def atom(number) when is_integer(number), do: :unknown

  @doc "The errno of a POSIX atom."
  @spec number(atom()) :: pos_integer()
  def number(atom)
  for {number, atom, _text} <- @table, do: def(number(unquote(atom)), do: unquote(number))

  @doc "What strerror(3) says of an errno."
  @spec text(integer()) :: String.t()
  def text(number)
  for {number, _atom, text} <- @table, do: def(text(unquote(number)), do: unquote(text))
  def text(number) when is_integer(number), do: "error #{number}"
end
