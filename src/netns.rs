//! Network namespaces: finding one, entering it, and coming home. setns(2), network_namespaces(7).
//!
//! Invariant: outside [`Home::visit`] the one thread of this program is in its home namespace. A
//! visit that cannot return ends the program, since every later socket would be in the wrong place.

use crate::child;
use crate::error::{At, Exit, Failure, Stage};
use crate::privileges::Privileges;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{open, OFlag};
use nix::poll::{ppoll, PollFd, PollFlags};
use nix::sched::{setns, CloneFlags};
use nix::sys::stat::{fstat, FileStat, Mode};
use nix::sys::statfs::{fstatfs, FsType};
use nix::sys::time::TimeSpec;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The file system that namespace files live in (`NSFS_MAGIC`, include/uapi/linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);
/// Longest path the kernel takes, its NUL included (`PATH_MAX`, include/uapi/linux/limits.h).
const PATH_MAX: usize = 4096;

/// Which namespace a socket shall be opened in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The namespace this program was started in.
    Host,
    /// The namespace a file stands for.
    Path(Vec<u8>),
    /// The namespace of a process.
    Pid(i32),
}

/// What tells two namespaces apart: device and inode number of their file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl Identity {
    /// `fstat(2)` of a namespace file.
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        fstat(file).map(Self::from)
    }
}

impl From<FileStat> for Identity {
    // Inode numbers have 32 bits on some machines.
    #[allow(clippy::useless_conversion)]
    fn from(stat: FileStat) -> Self {
        Self {
            device: u64::from(stat.st_dev),
            inode: u64::from(stat.st_ino),
        }
    }
}

/// The namespace this program was started in, and the way back to it.
#[derive(Debug)]
pub struct Home {
    file: OwnedFd,
    identity: Identity,
    may_leave: bool,
    privileges: Privileges,
    /// The user namespace of this program, where others may be entered from it.
    user: Option<Identity>,
}

impl Home {
    /// Opens the home namespace and tries the way back. Where setns(2) into home is refused, this
    /// program never leaves it.
    pub fn find(privileges: Privileges, user_namespaces: bool) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let own = |path: &str| sys::retry(|| open(path, flags, Mode::empty()));
        let file = own("/proc/self/ns/net")?;
        let identity = Identity::of(&file)?;
        let may_leave = setns(&file, CloneFlags::CLONE_NEWNET).is_ok();
        let user = if user_namespaces {
            Some(Identity::of(own("/proc/self/ns/user")?)?)
        } else {
            None
        };
        Ok(Self {
            file,
            identity,
            may_leave,
            privileges,
            user,
        })
    }

    /// What this program may still do.
    pub fn privileges(&self) -> &Privileges {
        &self.privileges
    }

    /// The identity of the home namespace.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether this program may enter other namespaces at all.
    pub fn may_leave(&self) -> bool {
        self.may_leave
    }

    /// Makes a socket by `work` in `target` and comes home. Returns it with the identity of the
    /// namespace it was made in. Ends the program where the way home is closed.
    pub fn visit(
        &self,
        target: &Target,
        work: impl FnOnce() -> Result<OwnedFd, Failure>,
    ) -> Result<(OwnedFd, Identity), Failure> {
        let file = match target {
            Target::Host => return Ok((work()?, self.identity)),
            Target::Path(path) if is_of_process(path) => {
                self.privileges.with_ptrace(|| open_path(path))?
            }
            Target::Path(path) => open_path(path)?,
            Target::Pid(pid) => self.privileges.with_ptrace(|| open_pid(*pid))?,
        };
        let identity = Identity::of(&file).at(Stage::Setns)?;
        if identity == self.identity {
            // Which cannot always be entered, but need not be.
            return Ok((work()?, identity));
        }
        let entered = match self.may_leave {
            true => setns(&file, CloneFlags::CLONE_NEWNET),
            false => Err(Errno::EPERM),
        };
        let socket = match (entered, self.user) {
            (Ok(()), _) => {
                let socket = work();
                if setns(&self.file, CloneFlags::CLONE_NEWNET).is_err() {
                    sys::exit_now(Exit::LostHome as i32);
                }
                socket
            }
            (Err(Errno::EPERM), Some(user)) => {
                let owner = sys::namespace_owner(&file).at(Stage::Setns)?;
                let foreign = Identity::of(&owner).at(Stage::Setns)? != user;
                child::open(&file, foreign.then_some(&owner), work)
            }
            (Err(errno), _) => Err(Failure::new(Stage::Setns, errno)),
        };
        Ok((socket?, identity))
    }
}

/// Whether a path is that of a process's namespace, which takes CAP_SYS_PTRACE to open.
fn is_of_process(path: &[u8]) -> bool {
    path.starts_with(b"/proc/") && path.windows(4).any(|part| part == b"/ns/")
}

/// Opens a namespace file. Nothing but a file of nsfs is ever really opened: a device or a FIFO
/// named by mistake is looked at through O_PATH alone, so that its driver does not notice.
fn open_path(path: &[u8]) -> Result<OwnedFd, Failure> {
    if path.len() >= PATH_MAX {
        return Err(Failure::new(Stage::Open, Errno::ENAMETOOLONG));
    }
    let path = CString::new(path).map_err(|_| Failure::new(Stage::Open, Errno::EINVAL))?;
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let place = sys::retry(|| open(path.as_c_str(), flags, Mode::empty())).at(Stage::Open)?;
    if fstatfs(&place).at(Stage::Open)?.filesystem_type() != NSFS {
        return Err(Failure::new(Stage::Setns, Errno::EINVAL));
    }
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = sys::retry(|| open(again.as_str(), flags, Mode::empty())).at(Stage::Open)?;
    match sys::namespace_kind(&file) {
        Ok(kind) if kind != libc::CLONE_NEWNET => Err(Failure::new(Stage::Setns, Errno::EINVAL)),
        _ => Ok(file),
    }
}

/// Opens the network namespace of a process. The pidfd is held across the open: if the process is
/// still alive afterwards, `/proc/<pid>` was its own all the while and not that of a successor.
fn open_pid(pid: i32) -> Result<OwnedFd, Failure> {
    if pid < 1 {
        return Err(Failure::new(Stage::Open, Errno::ESRCH));
    }
    let process = sys::pidfd_open(pid).at(Stage::Open)?;
    let file = open_path(format!("/proc/{pid}/ns/net").as_bytes());
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let at_once = Some(TimeSpec::new(0, 0));
    let has_ended = sys::retry(|| ppoll(&mut ended, at_once, None)).at(Stage::Open)? > 0;
    match (has_ended, file) {
        // One that is about to end gives up its namespaces before it can be waited for.
        (false, Err(failure)) if failure.errno == Errno::ENOENT => {
            Err(Failure::new(Stage::Open, Errno::ESRCH))
        }
        (false, file) => file,
        (true, _) => Err(Failure::new(Stage::Open, Errno::ESRCH)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespace_files_are_opened() {
        let fails = |path: &[u8]| open_path(path).map(drop).map_err(|f| (f.stage, f.errno));
        assert_eq!(fails(b"/dev/null"), Err((Stage::Setns, Errno::EINVAL)));
        assert_eq!(fails(b"/"), Err((Stage::Setns, Errno::EINVAL)));
        assert_eq!(
            fails(b"/proc/self/ns/mnt"),
            Err((Stage::Setns, Errno::EINVAL))
        );
        assert_eq!(fails(b""), Err((Stage::Open, Errno::ENOENT)));
        assert_eq!(fails(b"/nowhere"), Err((Stage::Open, Errno::ENOENT)));
        assert_eq!(fails(b"/a\0b"), Err((Stage::Open, Errno::EINVAL)));
        let long = [b'a'; PATH_MAX];
        assert_eq!(fails(&long), Err((Stage::Open, Errno::ENAMETOOLONG)));
        assert_eq!(fails(b"/proc/self/ns/net"), Ok(()));
    }

    #[test]
    fn a_process_that_is_not_there_is_esrch() {
        for pid in [0, -1, i32::MAX] {
            let failure = open_pid(pid).map(drop);
            assert_eq!(failure, Err(Failure::new(Stage::Open, Errno::ESRCH)));
        }
        assert!(open_pid(std::process::id() as i32).is_ok());
    }
}
