//! The system calls behind functions of the C library where machines, and C libraries, differ.
//! syscall(2); glibc and musl, by their sources and by what was seen.

use libc::c_long;

/// Calls without a pointer to what they say, which are let through whatever their arguments are.
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
pub const OWN: &[c_long] = &[libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_fstatfs];
/// Older machines have epoll_wait(2), which glibc calls there.
#[cfg(any(target_arch = "x86_64", target_arch = "s390x"))]
pub const OWN: &[c_long] = &[
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_epoll_wait,
];
/// On 32 bits there are calls with longer sizes, and since Linux 5.1 with longer times, which the C
/// library tries first. For stat(2) that is statx(2).
#[cfg(target_arch = "arm")]
pub const OWN: &[c_long] = &[
    libc::SYS_fstat64,
    libc::SYS_fstatat64,
    libc::SYS_statx,
    libc::SYS_fstatfs64,
    libc::SYS_epoll_wait,
    // send(2) is sendto(2) elsewhere.
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
/// mmap2(2): its offset counts pages.
#[cfg(target_arch = "arm")]
pub const MMAP: c_long = libc::SYS_mmap2;
/// Whether the protection is an argument of mmap(2). On s390x there is one argument, a pointer to
/// all six, which a filter does not see.
pub const MMAP_IS_SEEN: bool = !cfg!(target_arch = "s390x");

/// Which argument of clone(2) the flags are.
pub const CLONE_FLAGS: u8 = if cfg!(target_arch = "s390x") { 1 } else { 0 };

/// Calls that open(3) makes, with the argument that the flags are.
#[cfg(not(all(target_env = "musl", any(target_arch = "x86_64", target_arch = "arm"))))]
pub const OPEN: &[(c_long, u8)] = &[(libc::SYS_openat, 2)];
/// musl calls open(2) where there is one.
#[cfg(all(target_env = "musl", any(target_arch = "x86_64", target_arch = "arm")))]
pub const OPEN: &[(c_long, u8)] = &[(libc::SYS_openat, 2), (libc::SYS_open, 1)];

/// fcntl(2).
#[cfg(not(target_arch = "arm"))]
pub const FCNTL: c_long = libc::SYS_fcntl;
/// On 32 bits.
#[cfg(target_arch = "arm")]
pub const FCNTL: c_long = libc::SYS_fcntl64;
/// Whether open(3) calls fcntl(2) once more for O_CLOEXEC, as that of musl does; so does its fcntl(3)
/// for F_DUPFD_CLOEXEC.
pub const OPEN_SETS_CLOEXEC: bool = cfg!(target_env = "musl");

/// What musl's malloc(3) makes pages of a reserved range accessible by. glibc's does so for threads
/// alone.
#[cfg(target_env = "musl")]
pub const MPROTECT: Option<c_long> = Some(libc::SYS_mprotect);
/// None is needed.
#[cfg(not(target_env = "musl"))]
pub const MPROTECT: Option<c_long> = None;

/// What fork(3) calls beside clone(2).
#[cfg(not(target_env = "musl"))]
pub const FORK: &[c_long] = &[libc::SYS_set_robust_list, libc::SYS_rt_sigprocmask];
/// musl looks its thread's number up, by set_tid_address(2) since 1.2.4, and calls fork(2) where there is one.
#[cfg(all(target_env = "musl", any(target_arch = "x86_64", target_arch = "arm")))]
pub const FORK: &[c_long] = &[
    libc::SYS_rt_sigprocmask,
    libc::SYS_gettid,
    libc::SYS_set_tid_address,
    libc::SYS_fork,
];
/// musl on newer machines.
#[cfg(all(
    target_env = "musl",
    not(any(target_arch = "x86_64", target_arch = "arm"))
))]
pub const FORK: &[c_long] = &[
    libc::SYS_rt_sigprocmask,
    libc::SYS_gettid,
    libc::SYS_set_tid_address,
];
