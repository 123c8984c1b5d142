defmodule NetlinkPort.ErrorTest do
  # Errors as values, as exceptions, and as sentences.
  use NetlinkPort.Case, async: true

  import Bitwise, only: [<<<: 2]

  alias NetlinkPort.Errno
  alias NetlinkPort.Helper.Privileges
  alias NetlinkPort.Server.Refusal

  doctest NetlinkPort.Error

  @install "; start it as root, or install it with capabilities by `mix netlink_port.install`"

  defp message(stage, errno, fields \\ []) do
    Exception.message(Error.new(stage, errno, fields))
  end

  describe "new" do
    test "knows an errno by number and by atom" do
      assert Error.new(:bind, 98) == Error.new(:bind, :eaddrinuse)
      assert %Error{stage: :bind, errno: 98, reason: :eaddrinuse} = Error.new(:bind, 98)
    end

    test "takes the other fields, and raises for unknown ones" do
      fields = [subject: "x", lacks: :net_admin, dropped: 1, length: 2]
      error = Error.new(:recv, 1, fields)
      assert error |> Map.take(Keyword.keys(fields)) |> Enum.sort() == Enum.sort(fields)
      assert_raise KeyError, fn -> Error.new(:recv, 1, colour: "blue") end
    end

    test "takes an unknown errno" do
      for errno <- [41, 135, 524, 4_095] do
        assert %Error{reason: :unknown, errno: ^errno} = error = Error.new(:send, errno)
        assert Exception.message(error) == "send: errno #{errno}: error #{errno}"
      end
    end

    test "raises for an unknown atom" do
      assert_raise FunctionClauseError, fn -> Error.new(:send, :ebroken) end
    end
  end

  test "an error can be raised and rescued" do
    error = Error.new(:setns, :einval, subject: "/etc/hostname")

    assert_raise Error,
                 "setns into /etc/hostname: EINVAL: it is not a network namespace",
                 fn -> raise error end
  end

  test "an error matches by stage and reason" do
    assert {:error, %Error{stage: :setns, reason: :eperm}} = {:error, Error.new(:setns, 1)}
  end

  test "inspect/1 leaves out fields that are nil" do
    assert inspect(Error.new(:setns, :eperm, lacks: :sys_admin)) ==
             "%NetlinkPort.Error{stage: :setns, errno: 1, reason: :eperm, lacks: :sys_admin}"

    assert inspect(Error.new(:send, :eagain)) ==
             "%NetlinkPort.Error{stage: :send, errno: 11, reason: :eagain}"
  end

  describe "the message" do
    # What the reader can do about it, for each failure with a remedy.
    @sentences [
      {{:capture, :ebusy, []}, "capture: EBUSY: the server has a capture already"},
      {{:capture, :esrch, []}, "capture: ESRCH: it has ended"},
      {{:capture, :einval, subject: "/dev/null"},
       "capture of /dev/null: EINVAL: it is not a regular file"},
      {{:open, :enoent, subject: "/run/netns/blue"},
       "open of /run/netns/blue: ENOENT: there is no such file; " <>
         "`ip netns list` shows the namespaces that have a name"},
      {{:open, :esrch, subject: "/proc/99/ns/net"},
       "open of /proc/99/ns/net: ESRCH: there is no such process"},
      {{:open, :eacces, subject: "/proc/99/ns/net"},
       "open of /proc/99/ns/net: EACCES: the helper may not open it; " <>
         "for a process of another user, or with more capabilities, it needs CAP_SYS_PTRACE"},
      {{:open, :eacces, subject: "/proc/99/ns/net", lacks: :sys_ptrace},
       "open of /proc/99/ns/net: EACCES: the helper lacks CAP_SYS_PTRACE" <>
         @install <> " with --capability sys_ptrace"},
      {{:open, :emfile, []},
       "open: EMFILE: the helper has no descriptor left; " <>
         "close sockets, end pins or raise its RLIMIT_NOFILE"},
      {{:setns, :einval, subject: "/dev/null"},
       "setns into /dev/null: EINVAL: it is not a network namespace"},
      {{:setns, :eperm, subject: "/run/netns/blue", lacks: :sys_admin},
       "setns into /run/netns/blue: EPERM: the helper lacks CAP_SYS_ADMIN" <> @install},
      {{:setns, :eperm, subject: "/run/netns/blue"},
       "setns into /run/netns/blue: EPERM: the helper needs CAP_SYS_ADMIN in its own user " <>
         "namespace and in the one that owns the target"},
      {{:socket, :emfile, []},
       "socket: EMFILE: the helper has no descriptor left; " <>
         "close sockets, end pins or raise its RLIMIT_NOFILE"},
      {{:socket, :eprotonosupport, []},
       "socket: EPROTONOSUPPORT: this kernel does not have the protocol"},
      {{:bind, :eaddrinuse, []}, "bind: EADDRINUSE: another socket has this port id"},
      {{:bind, :eperm, lacks: :net_admin},
       "bind: EPERM: the helper lacks CAP_NET_ADMIN" <> @install},
      {{:setsockopt, :eperm, subject: "listen_all_nsid", lacks: :net_broadcast},
       "setsockopt of listen_all_nsid: EPERM: the helper lacks CAP_NET_BROADCAST" <>
         "; start its server with keep: [:net_broadcast], and the helper with that capability"},
      {{:setsockopt, :enoprotoopt, subject: "get_strict_chk"},
       "setsockopt of get_strict_chk: ENOPROTOOPT: protocol not available"},
      {{:setsockopt, :enomem, subject: "filter"},
       "setsockopt of filter: ENOMEM: longer than net.core.optmem_max has room for, at 8 bytes an " <>
         "instruction (20480 by default before Linux 6.8); raise it"},
      {{:send, :eagain, []}, "send: EAGAIN: the helper is not keeping up; try again later"},
      {{:send, :emsgsize, []},
       "send: EMSGSIZE: longer than the socket's sndbuf or the helper's frame limit"},
      {{:recv, :einval, []},
       "recv: EINVAL: the socket is active: its datagrams come as messages; " <>
         "set active: false to use recv"},
      {{:recv, :etimedout, []}, "recv: ETIMEDOUT: nothing arrived in time"},
      {{:recv, :enobufs, dropped: 12},
       "recv: ENOBUFS: the kernel dropped 12 datagrams; read faster, or raise rcvbuf"},
      {{:recv, :emsgsize, length: 3_000_000},
       "recv: EMSGSIZE: a datagram of 3000000 bytes was cut and dropped; " <>
         "the next of its size fits"},
      {{:info, :ebadf, []}, "info: EBADF: the socket is closed"},
      {{:send, :ebadf, []}, "send: EBADF: the socket is closed"},
      {{:watch, :enospc, subject: "/run/netns/blue"},
       "watch of /run/netns/blue: ENOSPC: the helper's user has no watch left; " <>
         "raise fs.inotify.max_user_watches or fs.epoll.max_user_watches"},
      {{:watch, :emfile, subject: "/run/netns/blue"},
       "watch of /run/netns/blue: EMFILE: the helper has no descriptor left, or its user no " <>
         "instance of inotify; close sockets, or raise its RLIMIT_NOFILE or " <>
         "fs.inotify.max_user_instances"},
      {{:watch, :esrch, subject: "/proc/99/ns/net"},
       "watch of /proc/99/ns/net: ESRCH: there is no such process"},
      {{:watch, :eacces, subject: "/srv/blue"},
       "watch of /srv/blue: EACCES: the helper may not read the folder"},
      {{:watch, :eopnotsupp, subject: "/proc/self/ns/net"},
       "watch of /proc/self/ns/net: EOPNOTSUPP: of files in /proc nothing is told but the end " <>
         "of a process; name it by {:pid, pid} or a path to /proc/<pid>/ns/net"},
      {{:thread, :esrch, []},
       "helper: ESRCH: no such server is running, or its node cannot be reached; " <>
         "start one under a supervisor: {NetlinkPort, name: NetlinkPort}"},
      {{:thread, :epipe, []},
       "helper: EPIPE: it has ended, and with it all its sockets; " <>
         "open them again once it is restarted"},
      {{:thread, :etimedout, []}, "helper: ETIMEDOUT: it did not answer in time"},
      {{:thread, :enoent, subject: "/opt/netlink_port"},
       "helper /opt/netlink_port: ENOENT: there is no such file; the build makes " <>
         "priv/netlink_port, `mix netlink_port.install` installs it elsewhere"},
      {{:thread, :eacces, subject: "/opt/netlink_port"},
       "helper /opt/netlink_port: EACCES: this user may not run it; an installed one is for its " <>
         "group: `ls -l` shows which"},
      {{:thread, :eacces, subject: "/opt/netlink_port", hint: "do this"},
       "helper /opt/netlink_port: EACCES: do this"},
      {{:protocol, :einval, subject: "wrong argument"},
       "protocol of wrong argument: EINVAL: invalid argument"}
    ]

    test "has the operation, the errno and its meaning" do
      for {{stage, reason, fields}, sentence} <- @sentences do
        assert message(stage, reason, fields) == sentence
      end
    end

    test "is legible, whatever bytes a path or a program brings into it" do
      for {bytes, shown} <- [
            {"/a\xFFb", "/a\\xFFb"},
            {"/a\e[2Jb", "/a\\e[2Jb"},
            {"/a\0\r\tb", "/a\\0\\r\\tb"},
            {"/ä \"b\" \\c \#{d}", "/ä \"b\" \\c \#{d}"}
          ] do
        error = Error.new(:capture, :enoent, subject: bytes)

        assert Exception.message(error) ==
                 "capture of #{shown}: ENOENT: no such file or directory"

        assert Exception.message(%{error | hint: bytes}) =~ ": ENOENT: #{shown}"
      end
    end

    test "is the text of strerror(3) by default" do
      assert message(:connect, :econnrefused) == "connect: ECONNREFUSED: connection refused"
      assert message(:getsockopt, 92) == "getsockopt: ENOPROTOOPT: protocol not available"
    end

    test "is one line with a text, for every stage and errno" do
      stages = ~w(open setns socket bind connect setsockopt getsockopt send recv info watch thread
                  protocol request capture)a

      for stage <- stages, errno <- 1..135, subject <- [nil, "/run/netns/blue"] do
        message = message(stage, errno, subject: subject)
        assert message =~ ~r/\A[a-z][^\n]*: (E[A-Z0-9]+|errno \d+): [^\n]+[^.\n]\z/
        assert subject == nil or message =~ subject
      end
    end
  end

  describe "errnos" do
    test "have an atom, which leads back to the number, and a text" do
      for errno <- 1..4_095, atom = Errno.atom(errno), atom != :unknown do
        assert Errno.number(atom) == errno
        assert Errno.text(errno) =~ ~r/^[a-z][a-z0-9 \/-]+$/
        refute Errno.text(errno) =~ "error #{errno}"
      end
    end

    test "of the asm-generic headers have an atom" do
      # 41 and 58 are unused: EWOULDBLOCK and EDEADLOCK are other names of 11 and 35.
      for errno <- 1..133, errno not in [41, 58], do: assert(Errno.atom(errno) != :unknown)
      names = ~w(eidrm enonet enolink emultihop edotdot enotuniq erestart enokey ekeyrejected)a
      assert Enum.map(names, &Errno.number/1) == [43, 64, 67, 72, 73, 76, 85, 126, 129]
    end

    test "of subsystems, outside the asm-generic headers, are named when the kernel has refused a request" do
      for {errno, name} <- [
            {524, "ENOTSUPP"},
            {517, "EPROBE_DEFER"},
            {4097, "IPSET_ERR_PROTOCOL"},
            {4103, "IPSET_ERR_EXIST"},
            {4353, "IPSET_ERR_TYPE_SPECIFIC"}
          ] do
        assert %Error{reason: :unknown} = error = Error.new(:request, errno)
        assert Exception.message(error) =~ "request: errno #{errno}: #{name}: "
      end

      message = Exception.message(Error.new(:request, 600))
      assert message == "request: errno 600: error 600"
    end

    test "in answers of the kernel have the text of strerror(3), not that of the library's errors" do
      for {reason, words} <- [
            etimedout: "connection timed out",
            eintr: "interrupted system call",
            ebusy: "device or resource busy",
            emsgsize: "message too long",
            enobufs: "no buffer space available",
            ebadf: "a descriptor that is not open in the helper"
          ] do
        assert Exception.message(Error.new(:request, reason)) =~ words
      end
    end

    test "of newer kernels have their names on older ones, too" do
      message = Exception.message(Error.new(:request, 134))
      assert message =~ "EFTYPE: inappropriate file type or format"
    end

    # From the kernel's headers, if they are installed. An errno that is new in them is added to the table.
    test "match the headers of the system" do
      header = "/usr/include/asm-generic/errno.h"
      base = "/usr/include/asm-generic/errno-base.h"

      for path <- [header, base], {:ok, text} <- [File.read(path)] do
        for [_, name, number] <- Regex.scan(~r/^#define\s+(E\w+)\s+(\d+)/m, text),
            atom = number |> String.to_integer() |> Errno.atom() do
          assert atom |> Atom.to_string() |> String.upcase() == name
        end
      end
    end
  end

  describe "the helper's failures" do
    @admin 1 <<< 12
    @sys_admin 1 <<< 21

    test "name the missing capability, and only if it is missing" do
      for {stage, errno, detail, mask, lacks} <- [
            {:setns, 1, "", 0, :sys_admin},
            {:setns, 1, "", @admin, :sys_admin},
            {:setns, 1, "", @sys_admin, nil},
            {:setns, 1, "below", 0, :sys_admin},
            {:setns, 1, "elsewhere", 0, nil},
            {:open, 13, "process 7", 0, :sys_ptrace},
            {:open, 13, "hidden 7", 0, :sys_ptrace},
            {:open, 13, "process 7", 1 <<< 19, nil},
            {:open, 13, "", 0, :dac_read_search},
            {:open, 2, "", 0, nil},
            {:setsockopt, 1, "listen_all_nsid", 0, :net_broadcast},
            {:setsockopt, 1, "listen_all_nsid", 1 <<< 11, nil},
            {:setsockopt, 1, "add_membership", 0, :net_admin},
            {:setsockopt, 22, "add_membership", 0, nil},
            {:setsockopt, 1, "ext_ack", 0, nil},
            {:setsockopt, 1, "drop_membership", 0, :net_admin},
            {:bind, 1, "", 0, :net_admin},
            {:send, 1, "", 0, :net_admin},
            {:send, 1, "", @admin, nil},
            {:socket, 1, "", 0, nil}
          ] do
        error = failure({stage, errno, detail}, {:route, {:pid, 1}}, mask)
        assert {stage, errno, detail, mask, error.lacks} == {stage, errno, detail, mask, lacks}
      end
    end

    defp failure(failure, place, mask \\ 0),
      do: Refusal.error(failure, place, %Privileges{capabilities: mask})

    test "name the capability for the protocol, or for the path" do
      joined = {:setsockopt, 1, "add_membership"}
      assert failure(joined, {:audit, :host}).lacks == :audit_read
      assert failure({:bind, 1, ""}, {9, :host}).lacks == :audit_read

      for netns <- [path: "/proc/1/ns/net", path: "/run/user/1000/blue", name: "blue"] do
        assert failure({:open, 13, ""}, {:route, netns}).lacks == :dac_read_search
        assert failure({:open, 13, "process 1"}, {:route, netns}).lacks == :sys_ptrace
      end
    end

    test "name the capability that a refused request lacks, and only if it is missing" do
      for {mask, children, netns, wanted, lacks} <- [
            {0, false, {:name, "blue"}, :net_admin, :net_admin},
            {@admin, false, {:name, "blue"}, :net_admin, nil},
            {@admin, false, :host, :audit_control, :audit_control},
            {1 <<< 30, false, :host, :audit_control, nil},
            {0, true, :host, :net_admin, :net_admin},
            # The user of a rootless container has all capabilities there, and needs none here.
            {0, true, {:pid, 1}, :net_admin, nil},
            {0, true, {:pid, 1}, :audit_control, :audit_control},
            # It is not known how a helper of another node was started.
            {0, nil, {:pid, 1}, :net_admin, nil}
          ] do
        privileges = %Privileges{capabilities: mask, children: children}
        error = Refusal.request(Error.new(:request, 1), wanted, netns, privileges)

        assert {mask, children, netns, wanted, error.lacks} ==
                 {mask, children, netns, wanted, lacks}

        assert Exception.message(error) =~ if(lacks, do: "CAP_", else: "operation not permitted")
      end
    end

    test "name the namespace" do
      for {netns, subject} <- [
            {{:name, "blue"}, "/run/netns/blue"},
            {{:path, "/proc/1/ns/net"}, "/proc/1/ns/net"},
            {{:pid, 42}, "/proc/42/ns/net"},
            {:host, nil}
          ],
          stage <- [:open, :setns] do
        assert failure({stage, 2, ""}, {:route, netns}).subject == subject
      end

      # Later failures have nothing to do with the namespace.
      assert failure({:bind, 98, ""}, {:route, {:name, "blue"}}).subject == nil

      assert failure({:setsockopt, 22, "rcvbuf"}, {:route, {:name, "blue"}}).subject == "rcvbuf"
    end

    test "are valid UTF-8 for a path that is not" do
      for path <- [<<"/tmp/", 255>>, <<"/tmp/", 0xC3>>, <<"/tmp/", 0xED, 0xA0, 0x80>>] do
        for netns <- [{:path, path}, {:name, Path.basename(path)}] do
          message = Exception.message(failure({:open, 2, ""}, {:route, netns}))
          assert String.printable?(message)
          assert message =~ "ENOENT"
        end
      end
    end
  end
end
