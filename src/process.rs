//! Processes. A number alone does not identify a process: the kernel gives it to another process when the first
//! has ended. pidfd_open(2), proc(5).

use crate::error::{At, Failure, Stage};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{openat, readlinkat, OFlag, AT_FDCWD};
use nix::poll::{ppoll, PollFd, PollFlags};
use nix::sys::stat::{fstat, FileStat, Mode};
use nix::sys::time::TimeSpec;
use nix::unistd::read;
use std::os::fd::{AsFd, OwnedFd};

/// Identifies a process: earlier and later processes with the same number differ in the other fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number in procfs.
    pub id: i32,
    /// When it was started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub started: u64,
    /// `st_ino` of its pidfd: unique since Linux 6.9, before that the same for all; 0 without a pidfd.
    pub inode: u64,
}

/// A process, and a pidfd, which tells when it has ended.
#[derive(Debug)]
pub struct Held {
    /// Which process.
    pub process: Process,
    /// Its pidfd, or the reason why it has none: EOPNOTSUPP for a process of another pid namespace, EINVAL for a
    /// thread before Linux 6.9.
    pub pidfd: Result<OwnedFd, Errno>,
}

impl Held {
    /// Whether it has ended. False for a process without a pidfd.
    pub fn has_ended(&self) -> Result<bool, Errno> {
        self.pidfd.as_ref().map_or(Ok(false), has_ended)
    }
}

/// Whether the procfs with the root `folder` is of this program's pid namespace: `self` is a link to the reader's
/// number there.
pub fn is_own_proc(folder: impl AsFd) -> bool {
    is_own(folder, "self").unwrap_or(false)
}

/// The same for `/proc`. A seccomp profile that refuses readlinkat(2) says nothing of `/proc`: that is an error.
pub fn has_own_proc() -> Result<bool, Failure> {
    match is_own(AT_FDCWD, "/proc/self") {
        Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS)) => {
            Err(Failure::new(Stage::Open, errno).because("readlinkat"))
        }
        // In the procfs of a pid namespace that this program is not in, the link leads nowhere.
        own => Ok(own.unwrap_or(false)),
    }
}

fn is_own(folder: impl AsFd, name: &str) -> Result<bool, Errno> {
    let own = std::process::id().to_string();
    sys::retry(|| readlinkat(folder.as_fd(), name)).map(|number| number == own.as_str())
}

/// Whether the process of a pidfd has ended, with all its threads.
pub fn has_ended(pidfd: &OwnedFd) -> Result<bool, Errno> {
    let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let at_once = Some(TimeSpec::new(0, 0));
    sys::retry(|| ppoll(&mut ended, at_once, None)).map(|count| count > 0)
}

/// `pidfd_open(2)` of a process. The number of a thread is ESRCH, with its process in the detail. A number that
/// only a process group or a session has is ESRCH, too. Kernels differ in the errno of both.
pub fn find(id: i32, stage: Stage) -> Result<OwnedFd, Failure> {
    let missing = Failure::new(stage, Errno::ESRCH);
    if id < 1 {
        return Err(missing);
    }
    match sys::pidfd_open(id, 0) {
        Err(Errno::EINVAL | Errno::ENOENT) => Err(match leader(id) {
            Some(leader) if leader != id => missing.because(format!("thread {leader}")),
            _ => missing,
        }),
        Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS)) => {
            Err(Failure::new(stage, errno).because("pidfd_open"))
        }
        other => other.map(sys::out_of_the_way).at(stage),
    }
}

/// The process whose thread has this number: `Tgid` of `/proc/<pid>/status`.
fn leader(id: i32) -> Option<i32> {
    let status = text(AT_FDCWD, &format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line?.trim().parse().ok()
}

/// A thread that runs on in a process whose main thread has exited: `/proc/<pid>/ns` is empty then, and that of the
/// thread is not.
pub fn thread_of(id: i32) -> Option<i32> {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).ok()?;
    let mut numbers = threads
        .map_while(Result::ok)
        .filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    numbers.find(|thread| {
        let path = format!("/proc/{id}/task/{thread}/ns/net");
        *thread != id && sys::retry(|| readlinkat(AT_FDCWD, path.as_str())).is_ok()
    })
}

/// The number of the process or thread whose entry in procfs a folder is: the first field of its `stat`.
pub fn number(folder: &OwnedFd) -> Option<i32> {
    let stat = text(folder, "stat").ok()?;
    stat.split(' ').next()?.parse().ok()
}

/// The process or thread of a folder in procfs. `own`: the procfs is of this program's pid namespace.
pub fn of(folder: &OwnedFd, id: i32, own: bool) -> Option<Held> {
    let pidfd = match own {
        true => pidfd(id),
        false => Err(Errno::EOPNOTSUPP),
    };
    // After pidfd_open(2): while the folder can be read, the process of the pidfd is its process.
    let stat = text(folder, "stat").ok()?;
    let (number, fields) = (stat.split(' ').next()?, stat.rsplit(')').next()?);
    // Field 22, counted from the end of the name, which may contain spaces and parentheses.
    let started = fields.split_whitespace().nth(19)?.parse().ok()?;
    // Inode numbers have 32 bits on some machines.
    #[allow(clippy::useless_conversion)]
    let inode = |stat: FileStat| u64::from(stat.st_ino);
    let stat = pidfd.as_ref().ok().and_then(|pidfd| fstat(pidfd).ok());
    let process = Process {
        id,
        started,
        inode: stat.map_or(0, inode),
    };
    (number.parse() == Ok(id)).then_some(Held { process, pidfd })
}

fn pidfd(id: i32) -> Result<OwnedFd, Errno> {
    let pidfd = match sys::pidfd_open(id, 0) {
        // A thread: it has a pidfd of its own since Linux 6.9.
        Err(Errno::EINVAL | Errno::ENOENT) => sys::pidfd_open(id, sys::PIDFD_THREAD),
        other => other,
    };
    pidfd.map(sys::out_of_the_way)
}

/// The first 4,096 bytes of a file of procfs.
pub fn text(folder: impl AsFd, name: &str) -> Result<String, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = sys::retry(|| openat(folder.as_fd(), name, flags, Mode::empty()))?;
    let mut bytes = [0; 4096];
    let length = sys::retry(|| read(&file, &mut bytes))?;
    let bytes = bytes.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::open;

    fn folder(id: u32) -> OwnedFd {
        let path = format!("/proc/{id}");
        open(path.as_str(), OFlag::O_PATH, Mode::empty()).unwrap()
    }

    #[test]
    fn a_process_is_itself_and_no_other() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id() as i32;
        let look = || of(&folder(child.id()), id, true).unwrap();
        assert_eq!(look().process, look().process);
        let me = std::process::id();
        let own = of(&folder(me), me as i32, true).unwrap();
        assert_ne!(own.process.started, look().process.started);
        assert!(of(&folder(me), id, true).is_none());
        let held = look();
        assert_eq!(held.has_ended(), Ok(false));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(held.has_ended(), Ok(true));
    }

    #[test]
    fn the_number_of_a_thread_is_esrch_and_names_its_process() {
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let own = std::fs::read_link("/proc/thread-self").unwrap();
            tell.send(own).unwrap();
            std::thread::park();
        });
        let path = told.recv().unwrap();
        let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let failure = find(id, Stage::Open).unwrap_err();
        let detail = format!("thread {}", std::process::id());
        assert_eq!(
            failure,
            Failure::new(Stage::Open, Errno::ESRCH).because(detail)
        );
        thread.thread().unpark();
        thread.join().unwrap();
    }
}
