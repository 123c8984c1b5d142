//! Start-up: the command line, the private wire, limits and signals, and the start of the loop. Only this file
//! prints anything: once [`Reactor::run`] has begun, standard error may be a full pipe, and a write to it would
//! stop the loop.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::error::{Exit, Fatal, EXIT_CODES};
use crate::frame::MAX_FRAME;
use crate::kill;
use crate::netns::Home;
use crate::pins::Pins;
use crate::poller::Wire;
use crate::privileges::{self, KEEPABLE};
use crate::protocol::{self, event, event::Hello};
use crate::reactor::Reactor;
use crate::sandbox::{self, Owner};
use crate::seccomp;
use crate::sys;
use caps::Capability;
use nix::errno::Errno;
use nix::fcntl::{fcntl, open, FcntlArg, OFlag};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stdin, dup2_stdout, pipe};
use std::ffi::OsString;
use std::io::{stderr, stdin, stdout, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

/// The size that the pipe to the VM is given, in bytes: a larger pipe makes dumps no faster, and a smaller one makes
/// them slower (docs/decisions.md). The pipe from the VM keeps its size.
const PIPE: i32 = 512 << 10;
/// How many bytes each of the two pipes could get before the one is widened: a user beyond pipe-user-pages-soft
/// gets pipes of 8 KiB everywhere. It is the most that the kernel grants a user (pipe-max-size). pipe(7).
const PIPE_SPARE: i32 = 1 << 20;

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    /// Capabilities to keep beyond those that are always kept.
    keep: Vec<Capability>,
    /// Whether namespaces of other user namespaces may be entered, in a child.
    user_namespaces: bool,
    /// How long to spin before each sleep.
    spin: Duration,
}

/// The whole program, from its arguments to its exit code.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let exit = match arguments.as_slice() {
        [flag] if flag == "--help" || flag == "-h" => {
            print!("{}", help());
            Exit::Done
        }
        [flag] if flag == "--version" || flag == "-V" => {
            println!("netlink_port {}", env!("CARGO_PKG_VERSION"));
            Exit::Done
        }
        [flag, pid] if flag == "--kill" => end_process(pid),
        [flag, owner] if flag == "--sandbox" => hold_namespace(owner),
        _ => match parse(&arguments) {
            Ok(arguments) => port(&arguments),
            Err(reason) => {
                eprintln!("netlink_port: {reason}; try --help");
                Exit::Usage
            }
        },
    };
    ExitCode::from(exit as u8)
}

/// Kills a helper that is stuck (`--kill`).
fn end_process(pid: &OsString) -> Exit {
    let Some(pid) = pid.to_str().and_then(|pid| pid.parse().ok()) else {
        eprintln!("netlink_port: --kill takes a process id");
        return Exit::Usage;
    };
    ended(kill::kill(pid))
}

/// Holds a network namespace for a test (`--sandbox`).
fn hold_namespace(owner: &OsString) -> Exit {
    let owner = match owner.to_str() {
        Some("own") => Some(Owner::Own),
        Some("new") => Some(Owner::New),
        pid => pid.and_then(|pid| pid.parse().ok()).map(Owner::Of),
    };
    let Some(owner) = owner else {
        eprintln!("netlink_port: --sandbox takes own, new or a process id");
        return Exit::Usage;
    };
    ended(sandbox::hold(owner))
}

/// The exit code of a task that ends by itself.
fn ended(outcome: Result<(), Fatal>) -> Exit {
    match outcome {
        Ok(()) => Exit::Done,
        Err(fatal) => {
            eprintln!("netlink_port: {fatal}");
            fatal.exit
        }
    }
}

fn parse(arguments: &[OsString]) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("--user-namespaces") => parsed.user_namespaces = true,
            Some("--spin") => {
                let microseconds = rest.next().and_then(|number| number.to_str()?.parse().ok());
                let microseconds: u32 = microseconds.ok_or("--spin takes a number")?;
                parsed.spin = Duration::from_micros(microseconds.into());
            }
            Some("--keep") => {
                let name = rest.next().ok_or("--keep takes a capability")?;
                let known = KEEPABLE.iter().find(|(known, _)| name == known);
                let (_, capability) = known.ok_or_else(|| format!("cannot keep {name:?}"))?;
                parsed.keep.push(*capability);
            }
            _ => return Err(format!("unknown argument {argument:?}")),
        }
    }
    Ok(parsed)
}

fn help() -> String {
    let mut text = format!(
        "netlink_port {}\n\n\
         AF_NETLINK sockets in other network namespaces, for Erlang and Elixir.\n\n\
         This program is started by NetlinkPort.start_link/1 as an Erlang port and speaks\n\
         <packet,4> External Term Format (protocol {}) on standard input and output. It ends\n\
         when its standard input does. To enter namespaces it needs CAP_SYS_ADMIN; to change\n\
         anything there, CAP_NET_ADMIN. CAP_SYS_PTRACE serves to open namespaces of processes\n\
         of other users, or with more capabilities. It gives up every other one at start.\n\n\
         usage: netlink_port [--keep CAPABILITY]... [--spin MICROSECONDS] [--user-namespaces]\n       \
         netlink_port --kill PID | --sandbox OWNER | --help | --version\n\n\
         --keep CAPABILITY    keep this one, too: {}\n\
         --spin MICROSECONDS  look for more so long before each sleep, right after traffic\n\
         --user-namespaces    enter namespaces of other user namespaces, in a child that joins\n                     \
         those first\n\
         --kill PID           end a helper that does not answer, and wait for its end\n\
         --sandbox OWNER      hold a network namespace for a test until standard input ends; it belongs\n                     \
         to this user namespace (own), a new one (new) or that of a process (its id)\n\n\
         exit codes:\n",
        env!("CARGO_PKG_VERSION"),
        protocol::VERSION,
        KEEPABLE.map(|(name, _)| name).join(", "),
    );
    for (exit, meaning) in EXIT_CODES {
        text.push_str(&format!("  {:>2}  {meaning}\n", exit as u8));
    }
    text
}

/// Runs as a port.
fn port(arguments: &Arguments) -> Exit {
    if stdin().is_terminal() || stdout().is_terminal() {
        eprintln!(
            "netlink_port: this is an Erlang port program, to be started by \
             NetlinkPort.start_link/1 in Elixir and not by hand; try --help"
        );
        return Exit::Usage;
    }
    end_on_panic();
    match prepare(arguments) {
        // The standard library's clean-up makes system calls that the filter does not let through.
        Ok(mut reactor) => sys::exit_now(reactor.run() as i32),
        Err(fatal) => {
            eprintln!("netlink_port: {fatal}{}", refuser(&fatal));
            fatal.exit
        }
    }
}

/// Adds to a fatal error that a seccomp profile, not the kernel, may have refused the call.
fn refuser(fatal: &Fatal) -> &'static str {
    let refused = [Errno::EPERM, Errno::EACCES, Errno::ENOSYS];
    let by_kernel = fatal.source.is_some_and(|errno| !refused.contains(&errno));
    if by_kernel || fatal.doing.contains("seccomp") || privileges::inherited().seccomp == 0 {
        return "";
    }
    "; a seccomp profile can be what refuses it, that of the container or SystemCallFilter= of the \
     systemd unit"
}

/// Makes a panic, which is a bug, end the program with [`Exit::Software`]. One line goes to standard error, if
/// that can be written without waiting.
fn end_on_panic() {
    use nix::poll::{ppoll, PollFd, PollFlags};
    use nix::sys::time::TimeSpec;
    std::panic::set_hook(Box::new(|info| {
        let stderr = stderr();
        let mut writable = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        // ppoll, since poll(2) is another system call on some machines, and the filter may be on.
        let at_once = Some(TimeSpec::new(0, 0));
        if ppoll(&mut writable, at_once, None) == Ok(1) {
            let _ = writeln!(stderr.lock(), "netlink_port: bug: {info}");
        }
        sys::exit_now(Exit::Software as i32);
    }));
}

fn prepare(arguments: &Arguments) -> Result<Reactor, Fatal> {
    // First, since the pipes move to high descriptor numbers.
    let max_fds = raise_fd_limit().map_err(Fatal::system("setrlimit(RLIMIT_NOFILE)"))?;
    let wire = take_wire()?;
    sys::set_signals();
    sys::give_back_large_blocks();
    let inherited = privileges::inherited();
    let privileges = privileges::reduce(&arguments.keep)?;
    privileges.unprivileged(|| widen(&wire.output, &wire.input));
    // After the change of credentials, which can undo both.
    set_pdeathsig(Signal::SIGKILL).map_err(Fatal::system("prctl(PR_SET_PDEATHSIG)"))?;
    set_dumpable(false).map_err(Fatal::system("prctl(PR_SET_DUMPABLE)"))?;
    let needs = seccomp::Needs {
        capset: privileges.may_trace(),
        user_namespaces: arguments.user_namespaces,
    };
    let home = Home::find(privileges, arguments.user_namespaces).map_err(homeless)?;
    let hello = event::hello(&Hello {
        os_pid: std::process::id(),
        home: home.identity(),
        may_leave: home.may_leave(),
        capabilities: home.privileges().numbers(),
        max_frame: MAX_FRAME,
        max_fds,
        lowest_fd: lowest(&wire),
        user_namespace: home.user_namespace(),
        inherited,
    });
    let pins = Pins::new(max_fds);
    let reactor = Reactor::new(wire, home, pins, spin(arguments.spin), &hello)?;
    seccomp::install(needs, inherited.seccomp)?;
    Ok(reactor)
}

/// Says why the home namespace cannot be opened: without CONFIG_NET_NS there is no file that names it.
fn homeless(errno: Errno) -> Fatal {
    let doing = match (errno, Path::new("/proc/self/stat").exists()) {
        (Errno::ENOENT, true) => {
            "this kernel has no network namespaces, CONFIG_NET_NS: there is no /proc/self/ns/net"
        }
        _ => "cannot open /proc/self/ns/net",
    };
    Fatal::system(doing)(errno)
}

/// The lowest number of the descriptors that stay open. The pipes are the first of them.
fn lowest(wire: &Wire) -> u32 {
    match wire.input.as_raw_fd() {
        low @ ..sys::LOWEST_FD => low as u32,
        _ => sys::LOWEST_FD as u32,
    }
}

/// How long the loop spins. Never on one processor, where spinning would keep the VM from running.
fn spin(wanted: Duration) -> Duration {
    match available_parallelism() {
        Ok(processors) if processors.get() > 1 => wanted,
        _ => Duration::ZERO,
    }
}

/// Moves the two pipes off descriptors 0 and 1, so that only the loop can reach them: the VM would take four
/// stray bytes on the wire for the length of a frame.
fn take_wire() -> Result<Wire, Fatal> {
    let system = Fatal::system;
    let private = |fd: std::os::fd::BorrowedFd<'_>| {
        let made = fd.try_clone_to_owned();
        made.map_err(|error| match error.raw_os_error() {
            // The descriptor is valid, so it is RLIMIT_NOFILE that leaves no number from 3 up.
            Some(libc::EINVAL) => Errno::EMFILE,
            errno => Errno::from_raw(errno.unwrap_or(0)),
        })
    };
    let input =
        private(stdin().as_fd()).map_err(system("fcntl(F_DUPFD_CLOEXEC) of standard input"))?;
    let output =
        private(stdout().as_fd()).map_err(system("fcntl(F_DUPFD_CLOEXEC) of standard output"))?;
    let (input, output) = (sys::out_of_the_way(input), sys::out_of_the_way(output));
    dup2_stdin(nothing().map_err(system("/dev/null"))?).map_err(system("dup2"))?;
    dup2_stdout(stderr()).map_err(system("dup2"))?;
    for pipe in [&input, &output] {
        let flags = fcntl(pipe, FcntlArg::F_GETFL).map_err(system("fcntl(F_GETFL)"))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(pipe, FcntlArg::F_SETFL(flags)).map_err(system("fcntl(F_SETFL)"))?;
    }
    Ok(Wire { input, output })
}

/// Widens a pipe, if the user has [`PIPE_SPARE`] bytes of pipes left for each of both: the kernel tells that only
/// by granting them. Does nothing to a socket.
fn widen(pipe: &OwnedFd, other: &OwnedFd) {
    let size = |pipe, size| fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size)).is_ok();
    let Ok(usual) = fcntl(pipe, FcntlArg::F_GETPIPE_SZ) else {
        return;
    };
    if size(pipe, PIPE_SPARE) {
        let granted = size(other, PIPE_SPARE);
        size(pipe, if granted { PIPE } else { usual });
        size(other, usual);
    }
}

/// A descriptor that reads as empty: /dev/null, or a pipe without a writer where there is no /dev/null.
fn nothing() -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    open("/dev/null", flags, Mode::empty()).or_else(|_| pipe().map(|(reader, _)| reader))
}

/// Raises the soft limit of descriptors to the hard limit.
// Limits have 32 bits on some machines.
#[allow(clippy::useless_conversion)]
fn raise_fd_limit() -> Result<u64, Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(u64::from(hard))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{waitpid, WaitStatus};
    use nix::unistd::{dup2_stderr, ForkResult};

    #[test]
    fn a_panic_under_the_filter_ends_by_its_exit_code() {
        match sys::fork().unwrap() {
            ForkResult::Child => {
                dup2_stderr(nothing().unwrap()).unwrap();
                end_on_panic();
                let needs = seccomp::Needs {
                    capset: false,
                    user_namespaces: false,
                };
                seccomp::install(needs, 0).unwrap();
                panic!("a bug")
            }
            ForkResult::Parent { child } => {
                let ended = WaitStatus::Exited(child, Exit::Software as i32);
                assert_eq!(waitpid(child, None), Ok(ended));
            }
        }
    }
}
