//! Network namespaces: finding one, entering it, and coming home. setns(2), network_namespaces(7).
//!
//! Invariant: outside [`Home::enter`] the program's one thread is in its home namespace. If it cannot come home,
//! the program ends, since every later socket would be in the wrong namespace.

use crate::error::{At, Exit, Failure, Stage};
use crate::privileges::Privileges;
use crate::process::{self, Process};
use crate::resolve::{self, End};
use crate::sys;
use crate::userns;
use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::sched::{setns, CloneFlags};
use nix::sys::stat::{fstat, FileStat, Mode};
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The file system that namespace files live in (`NSFS_MAGIC`, include/uapi/linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);
/// Longest path that the kernel takes, its NUL included (`PATH_MAX`, include/uapi/linux/limits.h).
const PATH_MAX: usize = 4096;

/// The namespace to open a socket in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The namespace that this program was started in.
    Host,
    /// The namespace of a file.
    Path(Vec<u8>),
    /// The namespace of a process.
    Pid(i32),
}

/// The identity of a namespace: device and inode number of its file.
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

/// The namespace that this program was started in, and the way back to it.
#[derive(Debug)]
pub struct Home {
    file: OwnedFd,
    identity: Identity,
    may_leave: bool,
    privileges: Privileges,
    /// The user namespace of this program; `None` if the kernel has no user namespaces.
    user: Option<Identity>,
    /// Whether a child may join other user namespaces (`--user-namespaces`).
    by_child: bool,
}

impl Home {
    /// Opens the home namespace and tries the way back. If setns(2) into home is refused, the program never
    /// leaves it.
    pub fn find(privileges: Privileges, user_namespaces: bool) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let own = |path: &str| sys::retry(|| fcntl::open(path, flags, Mode::empty()));
        let file = own("/proc/self/ns/net")?;
        let identity = Identity::of(&file)?;
        let may_leave = setns(&file, CloneFlags::CLONE_NEWNET).is_ok();
        let user = match own("/proc/self/ns/user") {
            Ok(file) => Some(Identity::of(file)?),
            Err(_) => None,
        };
        Ok(Self {
            file: sys::out_of_the_way(file),
            identity,
            may_leave,
            privileges,
            user,
            by_child: user_namespaces,
        })
    }

    /// The capabilities that this program has kept.
    pub fn privileges(&self) -> &Privileges {
        &self.privileges
    }

    /// The identity of the home namespace.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The inode of this program's user namespace; 0 if the kernel has no user namespaces.
    pub fn user_namespace(&self) -> u64 {
        self.user.map_or(0, |user| user.inode)
    }

    /// Whether this program can enter other namespaces: it could not come back from them without setns(2) into
    /// home.
    pub fn may_leave(&self) -> bool {
        self.may_leave
    }

    /// Makes a socket by `work` in `target` and comes home. Returns the socket with the identity of the namespace
    /// it was made in. Ends the program if it cannot come home.
    pub fn visit(
        &self,
        target: &Target,
        known: &[Process],
        work: impl FnOnce() -> Result<OwnedFd, Failure>,
    ) -> Result<Visit, Failure> {
        let (socket, identity, id, processes) = match target {
            Target::Host => (work()?, self.identity, id(&self.file), Vec::new()),
            target => {
                let namespace = open(target, known, &self.privileges)?;
                let socket = self.enter(&namespace, work)?;
                let id = id(&namespace.file);
                (socket, namespace.identity, id, namespace.processes)
            }
        };
        Ok(Visit {
            socket: sys::out_of_the_way(socket),
            identity,
            id,
            processes,
        })
    }

    /// Makes a socket by `work` in an opened namespace and comes home. Ends the program if it cannot come home.
    pub fn enter(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> Result<OwnedFd, Failure>,
    ) -> Result<OwnedFd, Failure> {
        if namespace.identity == self.identity {
            // setns(2) into home may be refused, and is not needed here.
            return work();
        }
        let entered = match self.may_leave {
            true => setns(&namespace.file, CloneFlags::CLONE_NEWNET),
            false => Err(Errno::EPERM),
        };
        match entered {
            Ok(()) => {
                let socket = work();
                if setns(&self.file, CloneFlags::CLONE_NEWNET).is_err() {
                    sys::exit_now(Exit::LostHome as i32);
                }
                socket
            }
            Err(Errno::EPERM) => self.refused(&namespace.file, work),
            Err(errno) => Err(Failure::new(Stage::Setns, errno)),
        }
    }

    /// Called when setns(2) is EPERM. The owner of the namespace decides whether a child can enter it, and the
    /// detail of the error.
    fn refused(
        &self,
        file: &OwnedFd,
        work: impl FnOnce() -> Result<OwnedFd, Failure>,
    ) -> Result<OwnedFd, Failure> {
        let refused = Failure::new(Stage::Setns, Errno::EPERM);
        let (owner, word) = match self.owner(file).at(Stage::Setns)? {
            Owner::Elsewhere => return Err(refused.because("elsewhere")),
            Owner::Below(owner) => (Some(owner), "below"),
            Owner::Own => (None, "own"),
        };
        if self.by_child {
            let opened = userns::open(file, owner.as_ref(), work);
            return opened.map_err(|failure| match failure == refused {
                true => failure.because(word),
                false => failure,
            });
        }
        match self.may_leave || !matches!(self.owner(&self.file), Ok(Owner::Elsewhere)) {
            true => Err(refused.because(word)),
            false => Err(refused.because("home")),
        }
    }

    /// The user namespace that owns a network namespace. NS_GET_USERNS is EPERM if that is neither this program's
    /// user namespace nor below it.
    fn owner(&self, file: &OwnedFd) -> Result<Owner, Errno> {
        match sys::namespace_owner(file) {
            Err(Errno::EPERM) => Ok(Owner::Elsewhere),
            // A kernel without user namespaces, or without this ioctl.
            Err(Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(Owner::Own),
            Err(errno) => Err(errno),
            Ok(owner) if Some(Identity::of(&owner)?) == self.user => Ok(Owner::Own),
            Ok(owner) => Ok(Owner::Below(owner)),
        }
    }
}

/// A socket that was made in a namespace.
#[derive(Debug)]
pub struct Visit {
    /// The socket.
    pub socket: OwnedFd,
    /// The namespace.
    pub identity: Identity,
    /// The number of the namespace (`NS_GET_ID`), since Linux 6.18.
    pub id: Option<u64>,
    /// The processes that its path led through.
    pub processes: Vec<Process>,
}

fn id(namespace: &OwnedFd) -> Option<u64> {
    sys::namespace_id(namespace).ok()
}

/// Which user namespace owns a network namespace: this program's own, one below it, or another.
enum Owner {
    Own,
    Below(OwnedFd),
    Elsewhere,
}

/// A namespace file that was opened.
#[derive(Debug)]
pub struct Namespace {
    /// The file.
    pub file: OwnedFd,
    /// Which namespace it is.
    pub identity: Identity,
    /// The processes that its path led through.
    pub processes: Vec<Process>,
}

/// Opens the file of a namespace. The file must be a network namespace, its process must be alive, and if the
/// number of a process on the way is in `known`, that process must be the same.
pub fn open(
    target: &Target,
    known: &[Process],
    privileges: &Privileges,
) -> Result<Namespace, Failure> {
    let namespace = match target {
        Target::Host => open_host(),
        Target::Path(path) => open_path(path, privileges),
        Target::Pid(pid) => open_pid(*pid, privileges),
    }?;
    let successor = |process: &&Process| {
        let same_number = known.iter().find(|known| known.id == process.id);
        same_number.is_some_and(|known| known != *process)
    };
    match namespace.processes.iter().find(successor) {
        Some(process) => {
            let failure = Failure::new(Stage::Open, Errno::ESRCH);
            Err(failure.because(format!("successor {}", process.id)))
        }
        None => Ok(namespace),
    }
}

fn open_host() -> Result<Namespace, Failure> {
    let file = open_file(c"/proc/self/ns/net")?;
    Ok(Namespace {
        identity: Identity::of(&file).at(Stage::Setns)?,
        file,
        processes: Vec::new(),
    })
}

fn open_path(path: &[u8], privileges: &Privileges) -> Result<Namespace, Failure> {
    if path.len() >= PATH_MAX {
        return Err(Failure::new(Stage::Open, Errno::ENAMETOOLONG));
    }
    let name = CString::new(path).map_err(|_| Failure::new(Stage::Open, Errno::EINVAL))?;
    let way = resolve::follow(path, privileges, &mut |_folder, _name| Ok(()));
    way.trust().at(Stage::Open)?;
    let opened = match way.procfs {
        true => privileges.with_ptrace(|| open_file(&name)),
        false => open_file(&name),
    };
    let file = opened.map_err(|failure| match way.end {
        // Linux 5.10.262 leads a link of `/proc/<pid>/ns` that is closed to this program to that folder.
        End::Namespace if failure == Failure::new(Stage::Setns, Errno::EINVAL) => {
            way.explain(Failure::new(Stage::Open, Errno::EACCES))
        }
        _ => match way.exited(privileges, failure.errno) {
            Some(thread) => failure.because(thread),
            None => way.explain(failure),
        },
    })?;
    for held in &way.processes {
        if held.has_ended().at(Stage::Open)? {
            // The number may have been another process's at the time of the open.
            return Err(Failure::new(Stage::Open, Errno::ESRCH));
        }
    }
    Ok(Namespace {
        identity: Identity::of(&file).at(Stage::Setns)?,
        file,
        processes: way.processes.iter().map(|held| held.process).collect(),
    })
}

/// Opens a file of nsfs and nothing else. A device or a FIFO that was named by mistake is opened with O_PATH alone,
/// which does not reach its driver.
fn open_file(path: &CStr) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let place = sys::retry(|| fcntl::open(path, flags, Mode::empty())).at(Stage::Open)?;
    let no_namespace = Failure::new(Stage::Setns, Errno::EINVAL);
    let kind = resolve::file_system(&place)?;
    if kind != NSFS {
        let stat = fstat(&place).at(Stage::Open)?;
        let empty = stat.st_size == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        // Files of procfs and sysfs have no size.
        let empty = empty && kind != PROC_SUPER_MAGIC && kind != SYSFS_MAGIC;
        return Err(no_namespace.because(if empty { "empty" } else { "" }));
    }
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = sys::retry(|| fcntl::open(again.as_str(), flags, Mode::empty())).at(Stage::Open)?;
    match sys::namespace_kind(&file) {
        Ok(kind) if kind != libc::CLONE_NEWNET => Err(no_namespace.because("another kind")),
        _ => Ok(file),
    }
}

/// The pidfd is held across the open. If the process is still alive afterwards, `/proc/<pid>` has been its own
/// all the time, and not that of a later process.
fn open_pid(pid: i32, privileges: &Privileges) -> Result<Namespace, Failure> {
    if !process::has_own_proc()? {
        // This procfs is of another pid namespace, where the number is another process's.
        return Err(Failure::new(Stage::Open, Errno::EOPNOTSUPP).because("foreign"));
    }
    let found = privileges.with_ptrace(|| process::find(pid, Stage::Open))?;
    let namespace = open_path(format!("/proc/{pid}/ns/net").as_bytes(), privileges);
    match (process::has_ended(&found).at(Stage::Open)?, namespace) {
        // A process that is ending has no namespaces any more, some time before its pidfd says so.
        (false, Err(failure)) if failure.errno == Errno::ENOENT => {
            let missing = Failure::new(Stage::Open, Errno::ESRCH);
            Err(match failure.detail.starts_with("exited") {
                true => missing.because(failure.detail),
                false => missing,
            })
        }
        (false, namespace) => namespace,
        (true, _) => Err(Failure::new(Stage::Open, Errno::ESRCH)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(target: Target, known: &[Process]) -> Result<(), Failure> {
        open(&target, known, &Privileges::none()).map(drop)
    }

    #[test]
    fn only_namespace_files_are_opened() {
        let fails = |path: &[u8]| {
            let failed = fails(Target::Path(path.to_vec()), &[]);
            failed.map_err(|f| (f.stage, f.errno, f.detail.into_owned()))
        };
        let no_namespace = |why: &str| Err((Stage::Setns, Errno::EINVAL, why.to_string()));
        let cannot_open = |errno| Err((Stage::Open, errno, String::new()));
        assert_eq!(fails(b"/dev/null"), no_namespace(""));
        assert_eq!(fails(b"/"), no_namespace(""));
        assert_eq!(fails(b"/proc/self/ns"), no_namespace(""));
        assert_eq!(fails(b"/proc/self/ns/.."), no_namespace(""));
        assert_eq!(fails(b"/proc/self/ns/mnt"), no_namespace("another kind"));
        assert_eq!(fails(b""), cannot_open(Errno::ENOENT));
        assert_eq!(fails(b"/nowhere"), cannot_open(Errno::ENOENT));
        assert_eq!(fails(b"/a\0b"), cannot_open(Errno::EINVAL));
        let long = [b'a'; PATH_MAX];
        assert_eq!(fails(&long), cannot_open(Errno::ENAMETOOLONG));
        assert_eq!(fails(b"/proc/self/ns/net"), Ok(()));
    }

    #[test]
    fn a_process_that_is_not_there_is_esrch() {
        for pid in [0, -1, i32::MAX] {
            let missing = Failure::new(Stage::Open, Errno::ESRCH);
            assert_eq!(fails(Target::Pid(pid), &[]), Err(missing));
        }
        assert_eq!(fails(Target::Pid(std::process::id() as i32), &[]), Ok(()));
    }

    #[test]
    fn a_number_that_another_process_has_had_is_esrch() {
        let pid = std::process::id() as i32;
        let opened = open(&Target::Pid(pid), &[], &Privileges::none()).unwrap();
        let [own] = opened.processes[..] else {
            panic!("{opened:?}")
        };
        assert_eq!(fails(Target::Pid(pid), &[own]), Ok(()));
        let successor = Failure::new(Stage::Open, Errno::ESRCH).because(format!("successor {pid}"));
        let earlier = Process {
            started: own.started - 1,
            ..own
        };
        let unequal = Process {
            inode: own.inode + 1,
            ..own
        };
        for other in [earlier, unequal] {
            assert_eq!(fails(Target::Pid(pid), &[other]), Err(successor.clone()));
            let path = format!("/proc/{pid}/ns/net").into_bytes();
            assert_eq!(fails(Target::Path(path), &[other]), Err(successor.clone()));
        }
        // Another number is no error: the link leads to another process now.
        let elsewhere = Process { id: pid + 1, ..own };
        assert_eq!(fails(Target::Pid(pid), &[elsewhere]), Ok(()));
    }
}
