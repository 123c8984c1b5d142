//! The system calls that no crate wraps in the form needed here, and all of the program's `unsafe`.
#![allow(unsafe_code)]

use crate::error::Exit;
use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use nix::unistd::ForkResult;
use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// `SO_MEMINFO` of include/uapi/asm-generic/socket.h.
pub const SO_MEMINFO: i32 = 55;
/// `SO_NETNS_COOKIE` of include/uapi/asm-generic/socket.h.
pub const SO_NETNS_COOKIE: i32 = 71;
/// `SIOCGSKNS` of include/uapi/linux/sockios.h.
pub const SIOCGSKNS: libc::Ioctl = 0x894C;
/// `NS_GET_NSTYPE` of include/uapi/linux/nsfs.h.
pub const NS_GET_NSTYPE: libc::Ioctl = 0xB703;
/// `NS_GET_USERNS` of include/uapi/linux/nsfs.h.
pub const NS_GET_USERNS: libc::Ioctl = 0xB701;
/// `NS_GET_ID` of include/uapi/linux/nsfs.h: `_IOR(0xb7, 13, __u64)`.
pub const NS_GET_ID: libc::Ioctl = 0x8008_B70D_u32 as libc::Ioctl;
/// `PIDFD_THREAD` of include/uapi/linux/pidfd.h: a thread instead of a process, since Linux 6.9.
pub const PIDFD_THREAD: u32 = libc::O_EXCL as u32;
/// The lowest number of descriptors that stay open. The kernel looks a descriptor in a message up in the table
/// of this program, which sends it. A small number, meant for the caller's table, must find nothing there.
pub const LOWEST_FD: RawFd = 1024;
/// `NETLINK_LISTEN_ALL_NSID`, also the type of the control message that carries the nsid.
const NETLINK_LISTEN_ALL_NSID: i32 = 8;

/// Repeats `call` while a signal interrupts it.
pub fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Takes ownership of a descriptor that a system call has just returned.
fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: every caller passes the return value of a call that creates a descriptor; it is not
    // negative (checked above), open, and known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol)`, netlink(7). Unlike
/// nix's, it takes any protocol number. The C library's would be socketcall(2) on s390x, where the filter cannot see
/// the family.
pub fn netlink_socket(protocol: i32) -> Result<OwnedFd, Errno> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes integers alone.
    let fd = unsafe { libc::syscall(libc::SYS_socket, libc::AF_NETLINK, kind, protocol) };
    owned(fd)
}

/// `pidfd_open(pid, flags)`, pidfd_open(2).
pub fn pidfd_open(pid: libc::pid_t, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open(2) takes integers alone.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    owned(fd)
}

/// Moves a descriptor to [`LOWEST_FD`] or above, by `fcntl(fd, F_DUPFD_CLOEXEC, LOWEST_FD)`. It keeps its number
/// if RLIMIT_NOFILE leaves no room there.
pub fn out_of_the_way(fd: OwnedFd) -> OwnedFd {
    // SAFETY: this command of fcntl(2) takes an integer.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, LOWEST_FD) };
    owned(high.into()).unwrap_or(fd)
}

/// `pidfd_send_signal(pidfd, SIGKILL, NULL, 0)`, pidfd_send_signal(2).
pub fn pidfd_kill(process: impl AsFd) -> Result<(), Errno> {
    let fd = process.as_fd().as_raw_fd();
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo_t there is no memory of ours that the kernel reads.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
    Errno::result(done).map(drop)
}

/// `ioctl(fd, SIOCGSKNS)`: a descriptor of the network namespace that a socket is in. Needs CAP_NET_ADMIN over
/// that namespace.
pub fn socket_namespace(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: this ioctl has no argument.
    let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
    owned(fd.into())
}

/// `ioctl(fd, NS_GET_NSTYPE)`: the flag of clone(2) for this kind of namespace. ioctl_ns(2).
pub fn namespace_kind(namespace: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: this ioctl has no argument.
    let kind = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    Errno::result(kind)
}

/// `ioctl(fd, NS_GET_USERNS)`: a descriptor of the user namespace that owns a namespace. EPERM unless that is this
/// program's own or one below it. ioctl_ns(2).
pub fn namespace_owner(namespace: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: this ioctl has no argument.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    owned(fd.into())
}

/// `ioctl(fd, NS_GET_ID)`: the number of a namespace, which no other namespace gets until the next boot. ENOTTY before
/// Linux 6.18.
pub fn namespace_id(namespace: impl AsFd) -> Result<u64, Errno> {
    let mut id = 0_u64;
    let fd = namespace.as_fd().as_raw_fd();
    // SAFETY: this ioctl stores eight bytes in `id`, a u64 of this frame.
    let done = unsafe { libc::ioctl(fd, NS_GET_ID, ptr::from_mut(&mut id)) };
    Errno::result(done)?;
    Ok(id)
}

/// `fcntl(fd, F_DUPFD_CLOEXEC, least)`, fcntl(2): the same file under the lowest free number from `least` on.
pub fn duplicate(file: impl AsFd, least: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: this command of fcntl(2) takes integers alone.
    let fd = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    owned(fd.into())
}

/// `fork(2)`.
pub fn fork() -> Result<ForkResult, Errno> {
    // SAFETY: this program has one thread, so that no lock is held in the child.
    unsafe { nix::unistd::fork() }
}

/// Takes a descriptor that recvmsg(2) has brought by SCM_RIGHTS, unix(7).
pub fn passed(fd: RawFd) -> Result<OwnedFd, Errno> {
    owned(fd.into())
}

/// `inotify_init1(flags)`, inotify(7).
pub fn inotify(flags: InitFlags) -> Result<Inotify, Errno> {
    let fd = out_of_the_way(Inotify::init(flags)?.into());
    // SAFETY: `fd` is a duplicate of the descriptor that Inotify::init has made.
    Ok(unsafe { Inotify::from_owned_fd(fd) })
}

/// `setsockopt(2)` with the bytes of the option's value.
pub fn setsockopt(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `value` is readable for `length` bytes, which is its own length.
    let done = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), length) };
    Errno::result(done).map(drop)
}

/// `getsockopt(2)` into `value`; returns the length that the kernel reports. For lists it may exceed the length of
/// `value`.
pub fn getsockopt(
    socket: impl AsFd,
    level: i32,
    name: i32,
    value: &mut [u8],
) -> Result<usize, Errno> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `value` is writable for `length` bytes, which is its own length, and `length` is a
    // socklen_t of this frame.
    let done = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &mut length) };
    Errno::result(done)?;
    Ok(length as usize)
}

/// `seccomp(SECCOMP_SET_MODE_FILTER, 0, …)` with a classic BPF program, seccomp(2).
pub fn install_filter(program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let prog = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_mut_ptr(),
    };
    let (mode, pointer) = (libc::SECCOMP_SET_MODE_FILTER, ptr::from_ref(&prog));
    // SAFETY: `prog` points to `prog.len` instructions of `program`, which outlives the call; the
    // kernel copies them.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, pointer) };
    Errno::result(done).map(drop)
}

/// `setsockopt(SOL_SOCKET, SO_ATTACH_FILTER)` with a classic BPF program, socket(7).
pub fn attach_filter(socket: impl AsFd, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let prog = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_mut_ptr(),
    };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `prog` points to `prog.len` instructions of `program`, which outlives the call; the
    // kernel copies them.
    let done = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            ptr::from_ref(&prog).cast(),
            length,
        )
    };
    Errno::result(done).map(drop)
}

/// `getsockopt(SOL_SOCKET, SO_GET_FILTER)`: the attached classic BPF program, empty if none is attached. The
/// length of this option counts instructions, not bytes.
pub fn attached_filter(socket: impl AsFd) -> Result<Vec<libc::sock_filter>, Errno> {
    let fd = socket.as_fd().as_raw_fd();
    let mut count: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel only stores the number of instructions in `count`.
    let done = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            ptr::null_mut(),
            &mut count,
        )
    };
    Errno::result(done)?;
    let empty = libc::sock_filter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let mut program = vec![empty; count as usize];
    if !program.is_empty() {
        // SAFETY: `program` has room for `count` instructions, the unit this option counts in.
        let done = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_GET_FILTER,
                program.as_mut_ptr().cast(),
                &mut count,
            )
        };
        Errno::result(done)?;
    }
    Ok(program)
}

/// What recvmsg(2) says about one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The datagram's real length, also if it did not fit.
    pub length: usize,
    /// The sender's port id; 0 is the kernel.
    pub sender: u32,
    /// The multicast group, with NETLINK_PKTINFO on; 0 for unicast.
    pub group: Option<u32>,
    /// The namespace id of the origin, with NETLINK_LISTEN_ALL_NSID on; `None` for the socket's own namespace.
    pub nsid: Option<i32>,
}

/// Room for the control messages of one datagram, aligned as CMSG_FIRSTHDR(3) wants it.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// `recvmsg(fd, …, MSG_TRUNC)`: one datagram into `buffer`, with its sender and its control messages. A datagram
/// longer than `buffer` is cut; `length` is its real length.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let fd = socket.as_fd().as_raw_fd();
    let mut sender = MaybeUninit::<libc::sockaddr_nl>::zeroed();
    let mut control = Control([0; 128]);
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr: null pointers with lengths of 0.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = sender.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: `message` points to the sender, the vector over `buffer` and the control room of
    // this frame, each with its own length.
    let length = unsafe { libc::recvmsg(fd, &mut message, libc::MSG_TRUNC) };
    let length = usize::try_from(Errno::result(length)?).map_err(|_| Errno::EIO)?;
    // SAFETY: it was zeroed, and all zeroes is a valid sockaddr_nl; the kernel only adds to it.
    let sender = unsafe { sender.assume_init() };
    let mut received = Received {
        length,
        sender: sender.nl_pid,
        group: None,
        nsid: None,
    };
    // SAFETY: `message` describes the control room that recvmsg(2) has filled.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or an aligned header within the room.
        let cmsg = unsafe { ptr::read_unaligned(header) };
        // SAFETY: `header` is a header within the room, as above.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: it takes an integer alone.
        let wanted = unsafe { libc::CMSG_LEN(4) };
        if cmsg.cmsg_level == libc::SOL_NETLINK && cmsg.cmsg_len as usize >= wanted as usize {
            // SAFETY: the header says that four bytes of data follow it in the room.
            let word = unsafe { ptr::read_unaligned(data.cast::<u32>()) };
            match cmsg.cmsg_type {
                libc::NETLINK_PKTINFO => received.group = Some(word),
                NETLINK_LISTEN_ALL_NSID => received.nsid = Some(word as i32),
                _ => {}
            }
        }
        // SAFETY: `message` and `header` are those of this loop.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(received)
}

/// Sets the dispositions of signals, signal(7). SIGTERM, SIGINT, SIGHUP and SIGPIPE are ignored: init systems and
/// terminals signal the whole group, and this program ends when its standard input does. SIGSEGV and SIGBUS get
/// their default, which ends the program: Rust's handlers would ignore the first one that a process sends.
pub fn set_signals() {
    let ignored = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE];
    let deadly = [libc::SIGSEGV, libc::SIGBUS];
    let ignored = ignored.map(|signal| (signal, libc::SIG_IGN));
    let deadly = deadly.map(|signal| (signal, libc::SIG_DFL));
    for (signal, action) in ignored.into_iter().chain(deadly) {
        // SAFETY: neither SIG_IGN nor SIG_DFL installs a handler, so that no code of ours runs in
        // signal context.
        unsafe { libc::signal(signal, action) };
    }
}

/// Ignores SIGCHLD, so that the kernel removes children that have ended, also those of an init process that it did not
/// start. wait(2).
pub fn forget_children() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// `mallopt(M_MMAP_THRESHOLD, …)`, mallopt(3): large blocks have pages of their own, which free(3) gives back at
/// once. Without this call glibc raises the threshold to the largest block that was freed, and keeps the memory of
/// one long frame for ever.
#[cfg(target_env = "gnu")]
pub fn give_back_large_blocks() {
    // SAFETY: mallopt(3) takes two integers, and no other thread allocates meanwhile.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024) };
}

/// Does nothing: only glibc has mallopt(3).
#[cfg(not(target_env = "gnu"))]
pub fn give_back_large_blocks() {}

/// `_exit(2)`: ends at once, without destructors, output or unwinding.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// The system's allocator, which ends the program with [`Exit::System`] when there is no memory. Rust would call
/// abort(3), whose system calls the filter does not allow: the end by SIGSYS would look like an attack.
#[derive(Debug)]
pub struct Memory;

impl Memory {
    fn or_end(memory: *mut u8) -> *mut u8 {
        if memory.is_null() {
            exit_now(Exit::System as i32);
        }
        memory
    }
}

// SAFETY: all calls are passed on unchanged, and every pointer that is not null is the system allocator's.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the same contract that System requires.
        Self::or_end(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        Self::or_end(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        Self::or_end(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// `syscall(2)` with integers and null pointers alone, for tests of the filter.
#[cfg(test)]
pub fn attempt(number: libc::c_long, arguments: [libc::c_long; 5]) {
    let [a, b, c, d, e] = arguments;
    // SAFETY: no argument is a pointer to memory of ours, so that the kernel touches none.
    unsafe { libc::syscall(number, a, b, c, d, e) };
}
