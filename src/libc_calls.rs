//! The system calls that functions of the C library make, where machines and C libraries differ. syscall(2). The
//! lists follow the sources of glibc and musl, and observation.

use libc::c_long;

/// Calls that are allowed with any arguments.
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
pub const OWN: &[c_long] = &[libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_fstatfs];
/// Older machines also have epoll_wait(2), and glibc calls it there.
#[cfg(target_arch = "x86_64")]
pub const OWN: &[c_long] = &[
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_epoll_wait,
];
/// glibc's fstatfs(3) is fstatfs64(2) there.
#[cfg(target_arch = "s390x")]
pub const OWN: &[c_long] = &[
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs64,
    libc::SYS_epoll_wait,
];
/// 32-bit machines have other calls for 64-bit sizes, and since Linux 5.1 for 64-bit times. The C library tries
/// those first. For stat(2) that is statx(2).
#[cfg(target_arch = "arm")]
pub const OWN: &[c_long] = &[
    libc::SYS_fstat64,
    libc::SYS_fstatat64,
    libc::SYS_statx,
    libc::SYS_fstatfs64,
    libc::SYS_epoll_wait,
    // Other machines have sendto(2) alone.
    libc::SYS_send,
    CLOCK_GETTIME64,
    PPOLL_TIME64,
];
/// `__NR_clock_gettime64` of include/uapi/asm-generic/unistd.h, the same on all 32-bit machines.
#[cfg(target_arch = "arm")]
const CLOCK_GETTIME64: c_long = 403;
/// `__NR_ppoll_time64`, likewise.
#[cfg(target_arch = "arm")]
const PPOLL_TIME64: c_long = 414;

/// mmap(2).
#[cfg(not(target_arch = "arm"))]
pub const MMAP: c_long = libc::SYS_mmap;
/// mmap2(2), whose offset counts pages.
#[cfg(target_arch = "arm")]
pub const MMAP: c_long = libc::SYS_mmap2;
/// Whether a filter sees the protection of mmap(2). On s390x the call has one argument, a pointer to all six.
pub const MMAP_IS_SEEN: bool = !cfg!(target_arch = "s390x");

/// The socket calls that the C library makes by socketcall(2), as glibc does on s390x, by their numbers
/// (include/uapi/linux/net.h): bind, connect, getsockname, send, sendto, setsockopt, getsockopt, recvmsg. A filter sees
/// that number alone. socket(2) is not among them: its family has to be seen.
pub const SOCKETCALLS: &[u32] = if cfg!(target_arch = "s390x") {
    &[2, 3, 6, 9, 11, 14, 15, 17]
} else {
    &[]
};
/// Likewise, those of the child that passes a socket back: socketpair, sendmsg.
pub const CHILD_SOCKETCALLS: &[u32] = if cfg!(target_arch = "s390x") {
    &[8, 16]
} else {
    &[]
};
/// socketcall(2), which these machines do not have or need.
#[cfg(not(target_arch = "s390x"))]
pub const SOCKETCALL: c_long = -1;
/// socketcall(2).
#[cfg(target_arch = "s390x")]
pub const SOCKETCALL: c_long = libc::SYS_socketcall;

/// The position of the flags among the arguments of clone(2).
pub const CLONE_FLAGS: u8 = if cfg!(target_arch = "s390x") { 1 } else { 0 };

/// The calls that open(3) makes, each with the position of its flags.
#[cfg(not(all(target_env = "musl", any(target_arch = "x86_64", target_arch = "arm"))))]
pub const OPEN: &[(c_long, u8)] = &[(libc::SYS_openat, 2)];
/// musl calls open(2) on machines that have it.
#[cfg(all(target_env = "musl", any(target_arch = "x86_64", target_arch = "arm")))]
pub const OPEN: &[(c_long, u8)] = &[(libc::SYS_openat, 2), (libc::SYS_open, 1)];

/// fcntl(2).
#[cfg(not(target_arch = "arm"))]
pub const FCNTL: c_long = libc::SYS_fcntl;
/// fcntl(2) on 32-bit machines.
#[cfg(target_arch = "arm")]
pub const FCNTL: c_long = libc::SYS_fcntl64;
/// Whether open(3) sets O_CLOEXEC by another fcntl(2). musl does, and its fcntl(3) does the same for
/// F_DUPFD_CLOEXEC.
pub const OPEN_SETS_CLOEXEC: bool = cfg!(target_env = "musl");

/// The call by which musl's malloc(3) makes pages of a reserved range accessible. glibc needs it only with threads.
#[cfg(target_env = "musl")]
pub const MPROTECT: Option<c_long> = Some(libc::SYS_mprotect);
/// glibc with one thread needs no such call.
#[cfg(not(target_env = "musl"))]
pub const MPROTECT: Option<c_long> = None;

/// The calls that fork(3) makes beside clone(2).
#[cfg(not(target_env = "musl"))]
pub const FORK: &[c_long] = &[libc::SYS_set_robust_list, libc::SYS_rt_sigprocmask];
/// musl asks for the number of its thread, by set_tid_address(2) since 1.2.4, and calls fork(2) on machines that
/// have it.
#[cfg(all(target_env = "musl", any(target_arch = "x86_64", target_arch = "arm")))]
pub const FORK: &[c_long] = &[
    libc::SYS_rt_sigprocmask,
    libc::SYS_gettid,
    libc::SYS_set_tid_address,
    libc::SYS_fork,
];
/// musl on machines without fork(2).
#[cfg(all(
    target_env = "musl",
    not(any(target_arch = "x86_64", target_arch = "arm"))
))]
pub const FORK: &[c_long] = &[
    libc::SYS_rt_sigprocmask,
    libc::SYS_gettid,
    libc::SYS_set_tid_address,
];
