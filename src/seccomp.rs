//! The system calls that this program may make once the loop runs. Any other call ends the program with SIGSYS.
//! seccomp(2).
//!
//! A filter sees the arguments of a call, but not the memory that pointers point to: neither paths nor socket
//! addresses. Arguments that are numbers are restricted as far as possible.

use crate::bpf::{Rules, Test};
use crate::error::Fatal;
use crate::libc_calls;
use crate::namespace_watch;
use crate::sys::{self, NS_GET_ID, NS_GET_NSTYPE, NS_GET_USERNS, SIOCGSKNS};
use libc::c_long;
use nix::errno::Errno;

/// What this run of the program needs beyond the calls of the loop.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Whether it raises CAP_SYS_PTRACE to open namespace files.
    pub capset: bool,
    /// Whether it enters other user namespaces in a child.
    pub user_namespaces: bool,
}

/// Installs the filter, which cannot be removed again. `outer` is the mode of a filter that was there at start.
pub fn install(needs: Needs, outer: u8) -> Result<(), Fatal> {
    let mut program = rules(needs).assemble();
    sys::install_filter(&mut program).map_err(|errno| refused(errno, outer))
}

/// Explains why seccomp(2) failed: another filter, an emulator, or the kernel's configuration.
fn refused(errno: Errno, outer: u8) -> Fatal {
    let doing = match (errno, outer) {
        (Errno::ENOMEM, _) => "seccomp(2)",
        (_, 1..) => {
            "seccomp(2) was refused: the seccomp profile of the container, or SystemCallFilter= of the \
             systemd unit, has to allow it"
        }
        (Errno::EINVAL | Errno::ENOSYS, _) => {
            "seccomp(2) was refused: the kernel needs CONFIG_SECCOMP_FILTER, and an emulator of another \
             machine (qemu-user) has no seccomp(2)"
        }
        _ => "seccomp(2) was refused",
    };
    Fatal {
        source: Some(errno),
        ..Fatal::at_start(doing)
    }
}

fn rules(needs: Needs) -> Rules {
    let mut rules = Rules::default();
    for call in plain() {
        rules.allow(call);
    }
    for (call, argument, test) in conditional() {
        rules.allow_if(call, argument, test);
    }
    if needs.capset {
        rules.allow(libc::SYS_capget);
        rules.allow(libc::SYS_capset);
    }
    if needs.user_namespaces {
        for call in [libc::SYS_wait4, libc::SYS_sendmsg] {
            rules.allow(call);
        }
        for call in libc_calls::FORK {
            rules.allow(*call);
        }
        for (call, argument, test) in child() {
            rules.allow_if(call, argument, test);
        }
        for number in libc_calls::CHILD_SOCKETCALLS {
            rules.allow_if(libc_calls::SOCKETCALL, 0, Test::Equal(*number));
        }
    }
    rules
}

/// Calls that are allowed whatever their arguments are.
fn plain() -> Vec<c_long> {
    let mut calls = vec![
        // The wire.
        libc::SYS_read,
        libc::SYS_write,
        // Waiting.
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_ppoll,
        // The clock, on machines where vdso(7) cannot read it.
        libc::SYS_clock_gettime,
        // Sockets. netlink(7) has options of the levels SOL_SOCKET and SOL_NETLINK alone.
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_sendto,
        libc::SYS_recvmsg,
        // Namespace files, and /proc/self/fd, whose entries `info` counts.
        libc::SYS_close,
        libc::SYS_getdents64,
        libc::SYS_pidfd_open,
        libc::SYS_getpid,
        // The paths of namespaces, and their watches.
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
    calls.extend(libc_calls::OWN);
    if !libc_calls::MMAP_IS_SEEN {
        calls.push(libc_calls::MMAP);
    }
    calls
}

type Condition = (c_long, u8, Test);

/// Calls that are allowed if an argument passes a test.
fn conditional() -> Vec<Condition> {
    let mut conditions = vec![
        (libc::SYS_socket, 0, Test::Equal(libc::AF_NETLINK as u32)),
        // Moves descriptors to high numbers, and pins to numbers that only go up.
        (
            libc_calls::FCNTL,
            1,
            Test::Equal(libc::F_DUPFD_CLOEXEC as u32),
        ),
        (libc::SYS_setns, 1, Test::Equal(libc::CLONE_NEWNET as u32)),
        (libc::SYS_ioctl, 1, Test::Equal(SIOCGSKNS as u32)),
        (libc::SYS_ioctl, 1, Test::Equal(NS_GET_ID as u32)),
        (libc::SYS_ioctl, 1, Test::Equal(NS_GET_NSTYPE as u32)),
        // The user namespace that owns a namespace: for the error, and for the child that joins it.
        (libc::SYS_ioctl, 1, Test::Equal(NS_GET_USERNS as u32)),
        (
            libc::SYS_inotify_init1,
            0,
            Test::Equal(namespace_watch::INSTANCE.bits() as u32),
        ),
        (
            libc::SYS_inotify_add_watch,
            2,
            Test::Equal(namespace_watch::FOLDER.bits()),
        ),
    ];
    let numbers = libc_calls::SOCKETCALLS.iter();
    conditions.extend(numbers.map(|number| (libc_calls::SOCKETCALL, 0, Test::Equal(*number))));
    // No flag to write, or to make a file. The C library adds O_LARGEFILE.
    let open_flags = libc::O_PATH | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_DIRECTORY;
    let open_flags = none_but(open_flags | libc::O_NOFOLLOW | libc::O_LARGEFILE);
    let opening = libc_calls::OPEN.iter();
    conditions.extend(opening.map(|(call, argument)| (*call, *argument, open_flags)));
    // Without PROT_EXEC no memory becomes code.
    let data = Test::NoneOf(libc::PROT_EXEC as u32);
    if libc_calls::MMAP_IS_SEEN {
        conditions.push((libc_calls::MMAP, 2, data));
    }
    conditions.extend(libc_calls::MPROTECT.map(|call| (call, 2, data)));
    if libc_calls::OPEN_SETS_CLOEXEC {
        conditions.push((libc_calls::FCNTL, 1, Test::Equal(libc::F_SETFD as u32)));
    }
    conditions
}

/// The calls of the child that enters another user namespace: fork(2), and those that pass the socket back. It
/// may make neither a thread nor a namespace.
fn child() -> [Condition; 4] {
    let fork_flags = libc::CLONE_CHILD_CLEARTID | libc::CLONE_CHILD_SETTID | 0xff;
    [
        (
            libc::SYS_clone,
            libc_calls::CLONE_FLAGS,
            none_but(fork_flags),
        ),
        (
            libc::SYS_prctl,
            0,
            Test::Equal(libc::PR_SET_PDEATHSIG as u32),
        ),
        (libc::SYS_socketpair, 0, Test::Equal(libc::AF_UNIX as u32)),
        (libc::SYS_setns, 1, Test::Equal(libc::CLONE_NEWUSER as u32)),
    ]
}

/// No bits other than these are set.
fn none_but(bits: i32) -> Test {
    Test::NoneOf(!(bits as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// Whether a child under the filter may make this call. Its result does not matter.
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
        let instance = [namespace_watch::INSTANCE.bits().into(), 0, 0, 0, 0];
        let folder = [-1, 0, namespace_watch::FOLDER.bits() as c_long, 0, 0];
        let netlink = [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0, 0];
        for (number, arguments) in [
            (libc::SYS_socket, netlink),
            (libc::SYS_setns, [-1, libc::CLONE_NEWNET.into(), 0, 0, 0]),
            (libc::SYS_ioctl, [-1, SIOCGSKNS as c_long, 0, 0, 0]),
            (libc::SYS_ioctl, [-1, NS_GET_ID as c_long, 0, 0, 0]),
            (libc::SYS_ioctl, [-1, NS_GET_USERNS as c_long, 0, 0, 0]),
            (
                libc_calls::FCNTL,
                [-1, libc::F_DUPFD_CLOEXEC.into(), 0, 0, 0],
            ),
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
            (libc::SYS_execve, [0; 5]),
            (libc::SYS_execveat, [0; 5]),
            (libc::SYS_clone3, [0; 5]),
            (libc::SYS_ptrace, [0; 5]),
            (libc::SYS_process_vm_readv, [0; 5]),
            (libc::SYS_pidfd_getfd, [-1, 0, 0, 0, 0]),
            (libc::SYS_setns, flag(libc::CLONE_NEWNS)),
            (libc::SYS_setns, flag(libc::CLONE_NEWPID)),
            // 0 stands for any kind of namespace.
            (libc::SYS_setns, flag(0)),
            (libc::SYS_unshare, [0; 5]),
            (libc::SYS_mount, [0; 5]),
            (libc::SYS_bpf, [0; 5]),
            (libc::SYS_inotify_init1, [0; 5]),
            // Events that the program does not need: reads and writes of other processes.
            (
                libc::SYS_inotify_add_watch,
                [-1, 0, libc::IN_ALL_EVENTS as c_long, 0, 0],
            ),
            (libc::SYS_fanotify_init, [0; 5]),
            (libc::SYS_io_uring_setup, [0; 5]),
            (libc::SYS_ioctl, [-1, libc::TIOCSTI as c_long, 0, 0, 0]),
            // Commands of fcntl(2) that the program does not need.
            (libc_calls::FCNTL, flag(libc::F_SETOWN)),
            (libc_calls::FCNTL, flag(libc::F_DUPFD)),
            (libc_calls::FCNTL, flag(libc::F_SETFL)),
            (
                libc::SYS_mprotect,
                [0, 0, (libc::PROT_READ | libc::PROT_EXEC).into(), 0, 0],
            ),
            (libc::SYS_kill, [0; 5]),
            (libc::SYS_prctl, [0; 5]),
            (libc::SYS_setuid, [0; 5]),
            // A number that no kernel has, and one of the x32 ABI. s390x cuts a number to 16 bits before the
            // filter sees it.
            (9999, [0; 5]),
            #[cfg(not(target_arch = "s390x"))]
            (0x4000_0000 + libc::SYS_read, [-1, 0, 0, 0, 0]),
        ] {
            assert!(
                !may(EVERYTHING, number, arguments),
                "{number} {arguments:?}"
            );
        }
    }

    #[test]
    fn memory_is_for_data() {
        let mapping = |protection: i32| [0, 4096, protection.into(), 0, 0];
        for needs in [LOOP, EVERYTHING] {
            assert!(may(needs, libc_calls::MMAP, mapping(libc::PROT_READ)));
            let code = mapping(libc::PROT_READ | libc::PROT_EXEC);
            assert_eq!(
                may(needs, libc_calls::MMAP, code),
                !libc_calls::MMAP_IS_SEEN
            );
            let data = mapping(libc::PROT_READ);
            assert_eq!(
                may(needs, libc::SYS_mprotect, data),
                libc_calls::MPROTECT.is_some()
            );
        }
    }

    #[test]
    fn what_the_c_library_adds_is_let_through() {
        for (call, flags_at) in libc_calls::OPEN {
            for (flags, expected) in [
                (libc::O_RDONLY | libc::O_LARGEFILE, true),
                (libc::O_RDWR | libc::O_LARGEFILE, false),
                (libc::O_CREAT | libc::O_LARGEFILE, false),
            ] {
                let mut arguments = [0; 5];
                arguments[usize::from(*flags_at)] = flags.into();
                assert_eq!(
                    may(EVERYTHING, *call, arguments),
                    expected,
                    "{call} {flags:#x}"
                );
            }
        }
        let set_fd = [-1, libc::F_SETFD.into(), 1, 0, 0];
        assert_eq!(
            may(LOOP, libc_calls::FCNTL, set_fd),
            libc_calls::OPEN_SETS_CLOEXEC
        );
    }

    #[cfg(target_arch = "s390x")]
    #[test]
    fn socketcall_is_let_through_for_calls_without_a_family() {
        // SYS_SOCKET 1, SYS_LISTEN 4, SYS_ACCEPT 5, SYS_SOCKETPAIR 8, SYS_SENDMSG 16
        for number in [1, 2, 3, 4, 5, 8, 11, 16, 17] {
            for needs in [LOOP, EVERYTHING] {
                let of_child = needs.user_namespaces && [8, 16].contains(&number);
                let expected = of_child || [2, 3, 11, 17].contains(&number);
                let arguments = [number, 0, 0, 0, 0];
                assert_eq!(
                    may(needs, libc_calls::SOCKETCALL, arguments),
                    expected,
                    "{number}"
                );
            }
        }
    }

    #[test]
    fn options_let_through_what_they_take_and_no_more() {
        let clone = |flags: i32| {
            let mut arguments = [0; 5];
            arguments[usize::from(libc_calls::CLONE_FLAGS)] = flags.into();
            arguments
        };
        let fork = clone(libc::SIGCHLD);
        let thread = clone(libc::CLONE_VM | libc::CLONE_THREAD);
        let namespace = clone(libc::CLONE_NEWUSER);
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
