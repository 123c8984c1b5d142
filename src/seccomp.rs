//! The system calls this program may make once it runs: those of its loop and no other. Anything
//! else ends it with SIGSYS. seccomp(2).
//!
//! The filter sees numbers and not what pointers point to: neither paths nor socket addresses. What
//! can be said about the arguments that are numbers is said.

use crate::error::Fatal;
use crate::sys::{NS_GET_NSTYPE, NS_GET_USERNS, SIOCGSKNS};
use crate::watch;
use nix::errno::Errno;
use seccompiler::SeccompCmpOp::{self, Eq, MaskedEq};
use seccompiler::{apply_filter, BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen};
use seccompiler::{SeccompCondition, SeccompFilter, SeccompRule, TargetArch};
use std::collections::BTreeMap;

/// What this run of the program may need beyond the loop.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// To raise CAP_SYS_PTRACE around the opening of a namespace file.
    pub capset: bool,
    /// To enter other user namespaces in a child.
    pub user_namespaces: bool,
}

#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
compile_error!("the system call filter is written for x86_64, aarch64 and riscv64");

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Installs the filter. There is no way to take it off again. `outer` is the mode of one from outside.
pub fn install(needs: Needs, outer: u8) -> Result<(), Fatal> {
    let program = program(needs).map_err(|_| Fatal::at_start("the seccomp filter is malformed"))?;
    apply_filter(&program).map_err(|error| refused(&error, outer))
}

/// An errno that the kernel does not give here is another filter's, or an emulator's.
fn refused(error: &seccompiler::Error, outer: u8) -> Fatal {
    use seccompiler::Error::{Prctl, Seccomp};
    let errno = match error {
        Prctl(error) | Seccomp(error) => error.raw_os_error().map(Errno::from_raw),
        _ => None,
    };
    let doing = match (errno, outer) {
        (Some(Errno::ENOMEM), _) => "seccomp(2)",
        (_, 1..) => {
            "seccomp(2) was refused: the seccomp profile of the container, or SystemCallFilter= of the \
             systemd unit, has to allow it"
        }
        (Some(Errno::EINVAL | Errno::ENOSYS), _) => {
            "seccomp(2) was refused: the kernel needs CONFIG_SECCOMP_FILTER, and an emulator of another \
             machine (qemu-user) has no seccomp(2)"
        }
        _ => "seccomp(2) was refused",
    };
    Fatal {
        source: errno,
        ..Fatal::at_start(doing)
    }
}

fn program(needs: Needs) -> Result<BpfProgram, BackendError> {
    let mut rules = Rules::new();
    for call in plain() {
        // Without conditions it is allowed whatever its arguments are.
        rules.insert(call, Vec::new());
    }
    for (call, argument, operator, value) in conditional() {
        allow(&mut rules, call, argument, operator, value)?;
    }
    if needs.capset {
        rules.insert(libc::SYS_capget, Vec::new());
        rules.insert(libc::SYS_capset, Vec::new());
    }
    if needs.user_namespaces {
        for call in [
            libc::SYS_wait4,
            libc::SYS_sendmsg,
            libc::SYS_set_robust_list,
            // fork(3) of newer glibcs blocks signals meanwhile (seen: 2.43).
            libc::SYS_rt_sigprocmask,
        ] {
            rules.insert(call, Vec::new());
        }
        for (call, argument, operator, value) in child() {
            allow(&mut rules, call, argument, operator, value)?;
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()
}

fn allow(
    rules: &mut Rules,
    call: i64,
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<(), BackendError> {
    let length = SeccompCmpArgLen::Dword;
    let condition = SeccompCondition::new(argument, length, operator, value)?;
    let rule = SeccompRule::new(vec![condition])?;
    rules.entry(call).or_default().push(rule);
    Ok(())
}

/// Calls that are allowed whatever their arguments are.
fn plain() -> Vec<i64> {
    let mut calls = vec![
        // The wire.
        libc::SYS_read,
        libc::SYS_write,
        // Waiting.
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_ppoll,
        // Where the clock cannot be read without a system call, vdso(7).
        libc::SYS_clock_gettime,
        // Sockets. Options of other levels than these two do not exist for netlink(7).
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_sendto,
        libc::SYS_recvmsg,
        // Namespace files, and /proc/self/fd, which is counted.
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_fstatfs,
        libc::SYS_getdents64,
        libc::SYS_pidfd_open,
        libc::SYS_getpid,
        // What namespaces were named by.
        libc::SYS_readlinkat,
        libc::SYS_inotify_rm_watch,
        // Memory.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_getrandom,
        // The end.
        libc::SYS_exit_group,
    ];
    calls.extend(OLDER);
    calls
}

/// Calls that the older of the architectures alone has, beside their successors.
#[cfg(target_arch = "x86_64")]
const OLDER: [i64; 1] = [libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: [i64; 0] = [];

type Condition = (i64, u8, SeccompCmpOp, u64);

/// Calls with an argument that must be this.
fn conditional() -> [Condition; 10] {
    // No bit of these means to write, or to make a file.
    let open_flags =
        libc::O_PATH | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    [
        (libc::SYS_socket, 0, Eq, libc::AF_NETLINK as u64),
        // Away from small numbers, and pins to numbers that only go up.
        (libc::SYS_fcntl, 1, Eq, libc::F_DUPFD_CLOEXEC as u64),
        (libc::SYS_setns, 1, Eq, libc::CLONE_NEWNET as u64),
        (libc::SYS_ioctl, 1, Eq, SIOCGSKNS),
        (libc::SYS_ioctl, 1, Eq, NS_GET_NSTYPE),
        // Whose user namespace refuses, for the error; and whose a child has to join.
        (libc::SYS_ioctl, 1, Eq, NS_GET_USERNS),
        (libc::SYS_openat, 2, none_but(open_flags), 0),
        (
            libc::SYS_inotify_init1,
            0,
            Eq,
            watch::INSTANCE.bits() as u64,
        ),
        (
            libc::SYS_inotify_add_watch,
            2,
            Eq,
            watch::FOLDER.bits().into(),
        ),
        // PROT_EXEC would be code from outside.
        (libc::SYS_mmap, 2, MaskedEq(libc::PROT_EXEC as u64), 0),
    ]
}

/// What the child that enters another user namespace takes: fork(2), and its way to hand the socket
/// back. A thread or a namespace of its own it may not make.
fn child() -> [Condition; 4] {
    let fork_flags = libc::CLONE_CHILD_CLEARTID | libc::CLONE_CHILD_SETTID | 0xff;
    [
        (libc::SYS_clone, 0, none_but(fork_flags), 0),
        (libc::SYS_prctl, 0, Eq, libc::PR_SET_PDEATHSIG as u64),
        (libc::SYS_socketpair, 0, Eq, libc::AF_UNIX as u64),
        (libc::SYS_setns, 1, Eq, libc::CLONE_NEWUSER as u64),
    ]
}

/// No bit but these is set, in 32 bits.
fn none_but(bits: i32) -> SeccompCmpOp {
    MaskedEq(u64::from(!(bits as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use libc::c_long;
    use nix::sys::signal::Signal;
    use nix::sys::wait::{waitpid, WaitStatus};
    use nix::unistd::ForkResult;

    const LOOP: Needs = Needs {
        capset: false,
        user_namespaces: false,
    };
    const EVERYTHING: Needs = Needs {
        capset: true,
        user_namespaces: true,
    };

    /// Whether a child under the filter may make this call, whatever comes of it.
    fn may(needs: Needs, number: c_long, arguments: [c_long; 5]) -> bool {
        match sys::fork().unwrap() {
            ForkResult::Child => {
                install(needs, 0).unwrap();
                sys::attempt(number, arguments);
                sys::exit_now(0)
            }
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, 0) => true,
                WaitStatus::Signaled(_, Signal::SIGSYS, _) => false,
                other => panic!("{other:?}"),
            },
        }
    }

    fn opening(flags: i32) -> [c_long; 5] {
        [libc::AT_FDCWD.into(), 0, flags.into(), 0, 0]
    }

    #[test]
    fn what_the_loop_does_is_let_through() {
        let instance = [watch::INSTANCE.bits().into(), 0, 0, 0, 0];
        let folder = [-1, 0, watch::FOLDER.bits().into(), 0, 0];
        let netlink = [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0, 0];
        for (number, arguments) in [
            (libc::SYS_socket, netlink),
            (libc::SYS_setns, [-1, libc::CLONE_NEWNET.into(), 0, 0, 0]),
            (libc::SYS_ioctl, [-1, SIOCGSKNS as c_long, 0, 0, 0]),
            (libc::SYS_ioctl, [-1, NS_GET_USERNS as c_long, 0, 0, 0]),
            (libc::SYS_fcntl, [-1, libc::F_DUPFD_CLOEXEC.into(), 0, 0, 0]),
            (libc::SYS_openat, opening(libc::O_PATH | libc::O_CLOEXEC)),
            (libc::SYS_openat, opening(libc::O_PATH | libc::O_NOFOLLOW)),
            (libc::SYS_openat, opening(libc::O_RDONLY | libc::O_NONBLOCK)),
            (libc::SYS_read, [-1, 0, 0, 0, 0]),
            (libc::SYS_recvmsg, [-1, 0, 0, 0, 0]),
            (libc::SYS_getpid, [0; 5]),
            (libc::SYS_readlinkat, [-1, 0, 0, 0, 0]),
            (libc::SYS_inotify_init1, instance),
            (libc::SYS_inotify_add_watch, folder),
            (libc::SYS_inotify_rm_watch, [-1, 0, 0, 0, 0]),
        ] {
            assert!(may(LOOP, number, arguments), "{number} {arguments:?}");
        }
    }

    #[test]
    fn everything_else_is_sigsys() {
        let family = |family: i32| [family.into(), libc::SOCK_STREAM.into(), 0, 0, 0];
        let flag = |flag: i32| [-1, flag.into(), 0, 0, 0];
        for (number, arguments) in [
            (libc::SYS_socket, family(libc::AF_INET)),
            (libc::SYS_socket, family(libc::AF_UNIX)),
            (libc::SYS_socket, family(libc::AF_PACKET)),
            (libc::SYS_openat, opening(libc::O_WRONLY)),
            (libc::SYS_openat, opening(libc::O_RDWR)),
            (libc::SYS_openat, opening(libc::O_CREAT)),
            (libc::SYS_openat, opening(libc::O_TRUNC)),
            (libc::SYS_openat, opening(libc::O_TMPFILE)),
            (libc::SYS_openat2, [0; 5]),
            // Whoever would be told of signals, or of locks, is none of its business.
            (libc::SYS_fcntl, flag(libc::F_SETOWN)),
            (libc::SYS_fcntl, flag(libc::F_DUPFD)),
            (libc::SYS_fcntl, flag(libc::F_SETFL)),
            (libc::SYS_execve, [0; 5]),
            (libc::SYS_execveat, [0; 5]),
            (libc::SYS_clone3, [0; 5]),
            (libc::SYS_ptrace, [0; 5]),
            (libc::SYS_process_vm_readv, [0; 5]),
            (libc::SYS_pidfd_getfd, [-1, 0, 0, 0, 0]),
            (libc::SYS_setns, flag(libc::CLONE_NEWNS)),
            (libc::SYS_setns, flag(libc::CLONE_NEWPID)),
            // 0 would be any kind of namespace.
            (libc::SYS_setns, flag(0)),
            (libc::SYS_unshare, [0; 5]),
            (libc::SYS_mount, [0; 5]),
            (libc::SYS_bpf, [0; 5]),
            (libc::SYS_inotify_init1, [0; 5]),
            // What others read and write is none of its business.
            (
                libc::SYS_inotify_add_watch,
                [-1, 0, libc::IN_ALL_EVENTS.into(), 0, 0],
            ),
            (libc::SYS_fanotify_init, [0; 5]),
            (libc::SYS_io_uring_setup, [0; 5]),
            (libc::SYS_ioctl, [-1, libc::TIOCSTI as c_long, 0, 0, 0]),
            (libc::SYS_fcntl, flag(libc::F_SETFL)),
            (libc::SYS_fcntl, flag(libc::F_SETOWN)),
            (libc::SYS_mmap, [0, 4096, libc::PROT_EXEC.into(), 0, 0]),
            (libc::SYS_mprotect, [0; 5]),
            (libc::SYS_kill, [0; 5]),
            (libc::SYS_prctl, [0; 5]),
            (libc::SYS_setuid, [0; 5]),
            // A number no kernel has, and the same through the x32 ABI.
            (9999, [0; 5]),
            (0x4000_0000 + libc::SYS_read, [-1, 0, 0, 0, 0]),
        ] {
            assert!(
                !may(EVERYTHING, number, arguments),
                "{number} {arguments:?}"
            );
        }
    }

    #[test]
    fn options_let_through_what_they_take_and_no_more() {
        let fork = [libc::SIGCHLD.into(), 0, 0, 0, 0];
        let thread = [(libc::CLONE_VM | libc::CLONE_THREAD).into(), 0, 0, 0, 0];
        let namespace = [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0];
        for needs in [LOOP, EVERYTHING] {
            let user = [-1, libc::CLONE_NEWUSER.into(), 0, 0, 0];
            let unix = [libc::AF_UNIX.into(), libc::SOCK_SEQPACKET.into(), 0, 0, 0];
            assert_eq!(may(needs, libc::SYS_setns, user), needs.user_namespaces);
            assert_eq!(
                may(needs, libc::SYS_sendmsg, [-1, 0, 0, 0, 0]),
                needs.user_namespaces
            );
            assert_eq!(
                may(needs, libc::SYS_socketpair, unix),
                needs.user_namespaces
            );
            assert_eq!(may(needs, libc::SYS_clone, fork), needs.user_namespaces);
            assert_eq!(
                may(needs, libc::SYS_rt_sigprocmask, [0; 5]),
                needs.user_namespaces
            );
            let end = [libc::PR_SET_PDEATHSIG.into(), 0, 0, 0, 0];
            assert_eq!(may(needs, libc::SYS_prctl, end), needs.user_namespaces);
            let dump = [libc::PR_SET_DUMPABLE.into(), 1, 0, 0, 0];
            assert!(!may(needs, libc::SYS_prctl, dump));
            assert!(!may(needs, libc::SYS_clone, thread));
            assert!(!may(needs, libc::SYS_clone, namespace));
            assert_eq!(may(needs, libc::SYS_capset, [0; 5]), needs.capset);
        }
    }
}
