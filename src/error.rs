//! Errors as the wire has them: a stage, an errno, a detail.

use nix::errno::Errno;
use std::borrow::Cow;
use std::fmt;

/// The step of an operation that failed. Each is an atom on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// open(2) of the namespace file, or pidfd_open(2) of its process.
    Open,
    /// setns(2), or the file is no network namespace.
    Setns,
    /// socket(2).
    Socket,
    /// bind(2).
    Bind,
    /// connect(2).
    Connect,
    /// setsockopt(2).
    Setsockopt,
    /// getsockopt(2).
    Getsockopt,
    /// sendmsg(2).
    Send,
    /// recvmsg(2).
    Recv,
    /// A system call that looks at a socket or the program itself.
    Info,
    /// inotify(7) or pidfd_open(2), for a socket whose namespace is watched.
    Watch,
    /// The command itself is malformed.
    Protocol,
}

impl Stage {
    /// The atom that stands for the stage on the wire.
    pub fn atom(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Setns => "setns",
            Self::Socket => "socket",
            Self::Bind => "bind",
            Self::Connect => "connect",
            Self::Setsockopt => "setsockopt",
            Self::Getsockopt => "getsockopt",
            Self::Send => "send",
            Self::Recv => "recv",
            Self::Info => "info",
            Self::Watch => "watch",
            Self::Protocol => "protocol",
        }
    }
}

/// A failed operation: it becomes the answer to the command that asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Where it failed.
    pub stage: Stage,
    /// The errno(3) of the failed call.
    pub errno: Errno,
    /// More about the cause, as docs/protocol.md lists it; may be empty.
    pub detail: Cow<'static, str>,
}

impl Failure {
    /// A failure of `stage` without a detail.
    pub fn new(stage: Stage, errno: Errno) -> Self {
        Self {
            stage,
            errno,
            detail: Cow::Borrowed(""),
        }
    }

    /// The same, with a detail.
    pub fn because(self, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            detail: detail.into(),
            ..self
        }
    }

    /// A command that cannot be carried out because of its own form.
    pub fn protocol(detail: &'static str) -> Self {
        Self::new(Stage::Protocol, Errno::EINVAL).because(detail)
    }
}

/// Turns an errno into a [`Failure`] of a stage, for use with `?`.
pub trait At<T> {
    /// Names the stage of an errno.
    fn at(self, stage: Stage) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, stage: Stage) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(stage, errno))
    }
}

/// Why the program ends. The numbers are its exit codes, after sysexits.h where a name fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Standard input closed, or the `stop` command: the normal end.
    Done = 0,
    /// `EX_USAGE`: wrong arguments, or not started as a port.
    Usage = 64,
    /// `EX_DATAERR`: a frame longer than the limit. Where the next frame begins is unknown.
    BadFrame = 65,
    /// `EX_SOFTWARE`: a panic; a bug of this program.
    Software = 70,
    /// `EX_OSERR`: the system refused something that the program needs to run, memory included.
    System = 71,
    /// `EX_IOERR`: standard output is gone or cannot be written.
    Output = 74,
    /// The way back into the home namespace failed: later sockets would be in the wrong namespace.
    LostHome = 80,
}

/// All exit codes with their meaning, as `--help` prints them.
pub const EXIT_CODES: [(Exit, &str); 7] = [
    (Exit::Done, "standard input closed, or told to stop"),
    (Exit::Usage, "wrong arguments, or not started as a port"),
    (Exit::BadFrame, "a frame longer than the limit"),
    (Exit::Software, "a bug in this program"),
    (
        Exit::System,
        "the system refused something indispensable, memory included",
    ),
    (Exit::Output, "standard output cannot be written"),
    (
        Exit::LostHome,
        "the way back to the home namespace failed; ended for safety",
    ),
];

/// The failure of a step without which the program cannot run.
#[derive(Debug)]
pub struct Fatal {
    /// The exit code.
    pub exit: Exit,
    /// What was being done.
    pub doing: &'static str,
    /// The errno(3), if there is one.
    pub source: Option<Errno>,
}

impl Fatal {
    /// A failure at start for which there is no errno(3).
    pub fn at_start(doing: &'static str) -> Self {
        Self {
            exit: Exit::System,
            doing,
            source: None,
        }
    }

    /// A fatal failure of a system call at start.
    pub fn system(doing: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self {
            exit: Exit::System,
            doing,
            source: Some(errno),
        }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(errno) => write!(f, "{}: {}", self.doing, errno),
            None => f.write_str(self.doing),
        }
    }
}

impl std::error::Error for Fatal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|errno| errno as _)
    }
}
