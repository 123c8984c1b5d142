defmodule NetlinkPort.Errno do
  @moduledoc false
  # The errno(3) numbers of Linux (include/uapi/asm-generic/errno-base.h and errno.h), their POSIX atoms as in
  # `t::file.posix/0`, and texts close to those of strerror(3). Also numbers beyond these that some subsystems return.

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
    {43, :eidrm, "identifier removed"},
    {44, :echrng, "channel number out of range"},
    {45, :el2nsync, "level 2 not synchronized"},
    {46, :el3hlt, "level 3 halted"},
    {47, :el3rst, "level 3 reset"},
    {48, :elnrng, "link number out of range"},
    {49, :eunatch, "protocol driver not attached"},
    {50, :enocsi, "no csi structure available"},
    {51, :el2hlt, "level 2 halted"},
    {52, :ebade, "invalid exchange"},
    {53, :ebadr, "invalid request descriptor"},
    {54, :exfull, "exchange full"},
    {55, :enoano, "no anode"},
    {56, :ebadrqc, "invalid request code"},
    {57, :ebadslt, "invalid slot"},
    {59, :ebfont, "bad font file format"},
    {60, :enostr, "device not a stream"},
    {61, :enodata, "no data available"},
    {62, :etime, "timer expired"},
    {63, :enosr, "out of streams resources"},
    {64, :enonet, "machine is not on the network"},
    {65, :enopkg, "package not installed"},
    {66, :eremote, "object is remote"},
    {67, :enolink, "link has been severed"},
    {68, :eadv, "advertise error"},
    {69, :esrmnt, "srmount error"},
    {70, :ecomm, "communication error on send"},
    {71, :eproto, "protocol error"},
    {72, :emultihop, "multihop attempted"},
    {73, :edotdot, "rfs specific error"},
    {74, :ebadmsg, "bad message"},
    {75, :eoverflow, "value too large for defined data type"},
    {76, :enotuniq, "name not unique on network"},
    {77, :ebadfd, "file descriptor in bad state"},
    {78, :eremchg, "remote address changed"},
    {79, :elibacc, "can not access a needed shared library"},
    {80, :elibbad, "accessing a corrupted shared library"},
    {81, :elibscn, "lib section in executable corrupted"},
    {82, :elibmax, "attempting to link in too many shared libraries"},
    {83, :elibexec, "cannot exec a shared library directly"},
    {84, :eilseq, "invalid or incomplete multibyte or wide character"},
    {85, :erestart, "interrupted system call should be restarted"},
    {86, :estrpipe, "streams pipe error"},
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
    {109, :etoomanyrefs, "too many references to splice"},
    {110, :etimedout, "connection timed out"},
    {111, :econnrefused, "connection refused"},
    {112, :ehostdown, "host is down"},
    {113, :ehostunreach, "no route to host"},
    {114, :ealready, "operation already in progress"},
    {115, :einprogress, "operation now in progress"},
    {116, :estale, "stale file handle"},
    {117, :euclean, "structure needs cleaning"},
    {118, :enotnam, "not a xenix named type file"},
    {119, :enavail, "no xenix semaphores available"},
    {120, :eisnam, "is a named type file"},
    {121, :eremoteio, "remote i/o error"},
    {122, :edquot, "disk quota exceeded"},
    {123, :enomedium, "no medium found"},
    {124, :emediumtype, "wrong medium type"},
    {125, :ecanceled, "operation canceled"},
    {126, :enokey, "required key not available"},
    {127, :ekeyexpired, "key has expired"},
    {128, :ekeyrevoked, "key has been revoked"},
    {129, :ekeyrejected, "key was rejected by service"},
    {130, :eownerdead, "owner died"},
    {131, :enotrecoverable, "state not recoverable"},
    {132, :erfkill, "operation not possible due to rf-kill"},
    {133, :ehwpoison, "memory page has hardware error"},
    {134, :eftype, "inappropriate file type or format"}
  ]

  # include/linux/errno.h: meant for use inside the kernel, but some subsystems return them to user space.
  @beyond [
    {512, "ERESTARTSYS", "interrupted by a signal, to be restarted"},
    {513, "ERESTARTNOINTR", "interrupted by a signal, to be restarted"},
    {514, "ERESTARTNOHAND", "interrupted by a signal without a handler"},
    {515, "ENOIOCTLCMD", "no such ioctl command"},
    {516, "ERESTART_RESTARTBLOCK", "interrupted by a signal, to be restarted by restart_syscall"},
    {517, "EPROBE_DEFER", "the driver asks to be probed later"},
    {518, "EOPENSTALE", "a stale dentry was opened"},
    {519, "ENOPARAM", "parameter not supported"},
    {521, "EBADHANDLE", "illegal NFS file handle"},
    {522, "ENOTSYNC", "update synchronization mismatch"},
    {523, "EBADCOOKIE", "cookie is stale"},
    {524, "ENOTSUPP", "operation is not supported"},
    {525, "ETOOSMALL", "buffer or request is too small"},
    {526, "ESERVERFAULT", "an untranslatable error occurred"},
    {527, "EBADTYPE", "type not supported by server"},
    {528, "EJUKEBOX", "request initiated, but will not complete before timeout"},
    {529, "EIOCBQUEUED", "queued, the event is told later"},
    {530, "ERECALLCONFLICT", "conflict with recalled state"},
    {531, "ENOGRACE", "NFS file lock reclaim refused"},
    # include/uapi/linux/netfilter/ipset/ip_set.h: IPSET_ERR_PRIVATE and up. From 4352 on, each type of set has
    # its own.
    {4097, "IPSET_ERR_PROTOCOL", "of another version of the protocol"},
    {4098, "IPSET_ERR_FIND_TYPE", "the kernel has no such type of set"},
    {4099, "IPSET_ERR_MAX_SETS", "no more sets can be made"},
    {4100, "IPSET_ERR_BUSY", "the set is in use"},
    {4101, "IPSET_ERR_EXIST_SETNAME2", "a set of the second name is there already"},
    {4102, "IPSET_ERR_TYPE_MISMATCH", "the two sets are of different types"},
    {4103, "IPSET_ERR_EXIST", "the element is there already, or is not there"},
    {4104, "IPSET_ERR_INVALID_CIDR", "invalid CIDR value"},
    {4105, "IPSET_ERR_INVALID_NETMASK", "invalid netmask"},
    {4106, "IPSET_ERR_INVALID_FAMILY", "invalid protocol family"},
    {4107, "IPSET_ERR_TIMEOUT", "the set was made without timeout support"},
    {4108, "IPSET_ERR_REFERENCED", "the set is referred to"},
    {4109, "IPSET_ERR_IPADDR_IPV4", "an IPv4 address is expected"},
    {4110, "IPSET_ERR_IPADDR_IPV6", "an IPv6 address is expected"},
    {4111, "IPSET_ERR_COUNTER", "the set was made without packet and byte counters"},
    {4112, "IPSET_ERR_COMMENT", "the set was made without comments"},
    {4113, "IPSET_ERR_INVALID_MARKMASK", "invalid markmask"},
    {4114, "IPSET_ERR_SKBINFO", "the set was made without skbinfo"},
    {4115, "IPSET_ERR_BITMASK_NETMASK_EXCL", "bitmask and netmask exclude each other"}
  ]

  @doc "The POSIX atom of an errno; `:unknown` if the table lacks it."
  @spec atom(integer()) :: atom()
  def atom(number)
  for {number, atom, _text} <- @table, do: def(atom(unquote(number)), do: unquote(atom))
  def atom(number) when is_integer(number), do: :unknown

  @doc "The errno of a POSIX atom."
  @spec number(atom()) :: pos_integer()
  def number(atom)
  for {number, atom, _text} <- @table, do: def(number(unquote(atom)), do: unquote(number))

  @doc "The text of an errno, close to that of strerror(3)."
  @spec text(integer()) :: String.t()
  def text(number)
  for {number, _atom, text} <- @table, do: def(text(unquote(number)), do: unquote(text))
  def text(number) when is_integer(number), do: "error #{number}"

  @doc "The name and meaning of an errno that is not POSIX, as some subsystems return it; `nil` if it is unknown."
  @spec beyond(integer()) :: {String.t(), String.t()} | nil
  def beyond(number)

  for {number, name, text} <- @beyond,
      do: def(beyond(unquote(number)), do: {unquote(name), unquote(text)})

  def beyond(number) when number in 4352..8191,
    do: {"IPSET_ERR_TYPE_SPECIFIC", "an error of that type of set"}

  def beyond(number) when is_integer(number), do: nil
end
