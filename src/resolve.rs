//! Where a path leads, step by step: path_resolution(7). The kernel opens the file of a path by itself. This file
//! finds the processes that the path leads through, and the step that failed.
//!
//! Invariant: CAP_SYS_PTRACE is raised only for steps out of folders of procfs. Links there, such as
//! `/proc/<pid>/ns/net` and `/proc/<pid>/root`, require it, and hidepid hides processes from a reader without it.

use crate::error::{At, Failure, Stage};
use crate::privileges::Privileges;
use crate::process::{self, Held};
use crate::procfs::{self, Kind};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{open, openat, readlinkat, OFlag};
use nix::sys::stat::Mode;
use nix::sys::statfs::{fstatfs, FsType, PROC_SUPER_MAGIC};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// How many symbolic links are followed, path_resolution(7).
const LINKS: usize = 40;
/// More descriptors than a walk ever has open.
const SPARE: usize = 16;
/// The flags of a step into a folder.
const STEP: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// The way that a path takes.
#[derive(Debug, Default)]
pub struct Way {
    /// The processes whose folders in procfs it leads through. `/proc/self` does not count: it is always this
    /// program.
    pub processes: Vec<Held>,
    /// Whether it leads through procfs.
    pub procfs: bool,
    /// Whether it leads through a folder of procfs of which the helper cannot tell whose it is.
    pub unknown: bool,
    /// The last number of a process in the path.
    number: Option<i32>,
    /// Whether that process is hidden: it is alive, and its folder cannot be read (hidepid, proc(5)).
    hidden: bool,
    /// Whether its last name is a symbolic link.
    linked: bool,
    /// The kind of its last step.
    pub end: End,
    /// The failure of a step, if the path does not lead to its end.
    pub lost: Option<Failure>,
}

/// The last step of a path.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A file in a folder that inotify(7) can watch.
    #[default]
    File,
    /// A file in `/proc/<pid>/ns`.
    Namespace,
    /// Another file of procfs.
    Proc,
}

/// Called before the last step, with the folder and the name in it. If that name is a symbolic link, it is called
/// again before the last step of the link's target.
pub type Visit<'a> = dyn FnMut(&OwnedFd, &[u8]) -> Result<(), Failure> + 'a;

/// Follows a path.
pub fn follow(path: &[u8], privileges: &Privileges, visit: &mut Visit<'_>) -> Way {
    let mut way = Way::default();
    let lost = way.walk(path, privileges, visit).err();
    let missing = Failure::new(Stage::Open, Errno::ENOENT);
    way.lost = lost.map(|lost| match way.linked && lost == missing {
        true => lost.because("dangling"),
        false => lost,
    });
    way
}

/// The file system of a file, by `fstatfs(2)`, which the kernel itself refuses to nobody.
pub fn file_system(file: impl AsFd) -> Result<FsType, Failure> {
    match fstatfs(file) {
        Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS)) => {
            Err(Failure::new(Stage::Open, errno).because("fstatfs"))
        }
        other => other.map(|kind| kind.filesystem_type()).at(Stage::Open),
    }
}

/// A folder of the path.
struct Folder {
    fd: OwnedFd,
    /// `None` outside of procfs.
    proc: Option<Proc>,
}

/// Where a folder of procfs is.
struct Proc {
    kind: Kind,
    /// Whether it is of a procfs of this program's pid namespace.
    own: bool,
    mount: Option<u64>,
    /// The numbers of the processes in whose entries it is.
    ids: Vec<i32>,
}

impl Way {
    /// Whether the walk can be trusted. Without free descriptors the helper cannot tell which processes it has led
    /// through, and a later process with the number of an earlier one would be taken for it.
    pub fn trust(&self) -> Result<(), Errno> {
        match &self.lost {
            Some(lost) if is_shortage(lost.errno) => return Err(lost.errno),
            _ => {}
        }
        let blind = self.processes.iter().any(|held| held.pidfd.is_err());
        if !self.procfs || !(self.unknown || self.lost.is_some() || blind) {
            return Ok(());
        }
        let spare: Result<Vec<OwnedFd>, Errno> = (0..SPARE)
            .map(|_| sys::retry(|| open("/", STEP, Mode::empty())))
            .collect();
        match spare {
            Err(errno) if is_shortage(errno) => Err(errno),
            _ => Ok(()),
        }
    }

    /// Adds to the failure of an open which process in the path it failed at.
    pub fn explain(&self, failure: Failure) -> Failure {
        match &self.lost {
            _ if failure.stage != Stage::Open => failure,
            Some(lost) if !lost.detail.is_empty() => lost.clone(),
            None if self.end != End::File => self.refused(failure.errno),
            _ => failure,
        }
    }

    /// The thread that runs on, as a detail, if the path fails since the main thread of its process has exited.
    pub fn exited(&self, privileges: &Privileges, errno: Errno) -> Option<String> {
        let held = self.processes.last().filter(|_| errno == Errno::ENOENT)?;
        let alive = held
            .pidfd
            .as_ref()
            .ok()
            .filter(|_| self.end == End::Namespace)?;
        let id = held.process.id;
        let thread = privileges.with_ptrace(|| process::thread_of(id))?;
        // The pidfd of a process reports the end of all its threads.
        let ended = process::has_ended(alive) != Ok(false);
        (!ended).then(|| format!("exited {id}/task/{thread}"))
    }

    /// Why a step out of a folder of procfs failed.
    fn refused(&self, errno: Errno) -> Failure {
        let Some(id) = self.number else {
            return Failure::new(Stage::Open, errno);
        };
        match (self.hidden, errno) {
            (true, Errno::ENOENT | Errno::EPERM | Errno::EACCES) => {
                Failure::new(Stage::Open, Errno::EACCES).because(format!("hidden {id}"))
            }
            // A process of another pid namespace: hidepid=1 answers with EPERM.
            (false, Errno::EPERM) => {
                Failure::new(Stage::Open, Errno::EACCES).because(format!("process {id}"))
            }
            (_, errno) => Failure::new(Stage::Open, errno).because(format!("process {id}")),
        }
    }

    fn walk(
        &mut self,
        path: &[u8],
        privileges: &Privileges,
        visit: &mut Visit<'_>,
    ) -> Result<(), Failure> {
        // The next name is the last element.
        let mut rest = names(path);
        let mut folder = self.begin(path, &mut rest, privileges)?;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            let last = rest.is_empty();
            if let (true, Some(proc)) = (last, &folder.proc) {
                self.end = match proc.kind {
                    Kind::Namespaces if name != b".." => End::Namespace,
                    _ => End::Proc,
                };
                return Ok(());
            }
            if last {
                visit(&folder.fd, &name)?;
            }
            folder = match self.step(&folder, &name, last, privileges)? {
                Step::Into(next) => next,
                Step::File => return Ok(()),
                Step::Link(_) if links == LINKS => {
                    return Err(Failure::new(Stage::Open, Errno::ELOOP))
                }
                Step::Link(target) => {
                    links += 1;
                    self.linked |= last;
                    rest.append(&mut names(&target));
                    match target.starts_with(b"/") {
                        true => self.begin(&target, &mut rest, privileges)?,
                        false => folder,
                    }
                }
            };
        }
        Ok(())
    }

    /// The folder that a path begins in. With `/run/netns/blue` that is `/run`, which saves three calls, and `run` is
    /// taken off `rest`.
    fn begin(
        &mut self,
        path: &[u8],
        rest: &mut Vec<Vec<u8>>,
        privileges: &Privileges,
    ) -> Result<Folder, Failure> {
        let start = if path.starts_with(b"/") { "/" } else { "." };
        if let ("/", [_, .., first]) = (start, &rest[..]) {
            let first = [b"/", &first[..]].concat();
            // If this fails, the step from `/` finds out why: a link, perhaps.
            let folder = sys::retry(|| open(&first[..], STEP | OFlag::O_NOFOLLOW, Mode::empty()));
            if let Ok(fd) = folder {
                rest.pop();
                return self.enter(fd, privileges);
            }
        }
        let fd = sys::retry(|| open(start, STEP, Mode::empty())).at(Stage::Open)?;
        self.enter(fd, privileges)
    }

    fn step(
        &mut self,
        folder: &Folder,
        name: &[u8],
        last: bool,
        privileges: &Privileges,
    ) -> Result<Step, Failure> {
        if let Some(proc) = &folder.proc {
            let outcome = privileges.with_ptrace(|| self.step_in_proc(folder, proc, name));
            return outcome.map(Step::Into);
        }
        if !last {
            let flags = STEP | OFlag::O_NOFOLLOW;
            match sys::retry(|| openat(&folder.fd, name, flags, Mode::empty())) {
                Ok(fd) => return self.enter(fd, privileges).map(Step::Into),
                Err(Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(Failure::new(Stage::Open, errno)),
            }
        }
        match sys::retry(|| readlinkat(&folder.fd, name)) {
            Ok(target) => Ok(Step::Link(target.into_vec())),
            // Not a symbolic link.
            Err(Errno::EINVAL) if last => Ok(Step::File),
            Err(Errno::EINVAL) => Err(Failure::new(Stage::Open, Errno::ENOTDIR)),
            // The kernel itself returns none of these two.
            Err(errno @ (Errno::EPERM | Errno::ENOSYS)) => {
                Err(Failure::new(Stage::Open, errno).because("readlinkat"))
            }
            Err(errno) => Err(Failure::new(Stage::Open, errno)),
        }
    }

    /// A step out of a folder of procfs. The kernel follows the links there, since most of them are no paths.
    fn step_in_proc(
        &mut self,
        folder: &Folder,
        proc: &Proc,
        name: &[u8],
    ) -> Result<Folder, Failure> {
        let number = number(name).filter(|_| proc.kind.has_processes());
        if number.is_some() {
            // Before the step, which fails under hidepid=4: a pidfd shows that the hidden process is alive.
            self.number = number;
            self.hidden = proc.own && number.is_some_and(|id| sys::pidfd_open(id, 0).is_ok());
        }
        let fd = sys::retry(|| openat(&folder.fd, name, STEP, Mode::empty()))
            .map_err(|errno| self.refused(errno))?;
        if !self.is_procfs(&fd)? {
            return Ok(Folder { fd, proc: None });
        }
        let mount = procfs::mount(&fd);
        let own_entry = proc.kind == Kind::Root && [&b"self"[..], b"thread-self"].contains(&name);
        let kind = match (proc.kind, name) {
            // A mount over the name, or a link that leads elsewhere.
            _ if mount != proc.mount => None,
            _ if own_entry || number.is_some() => Some(Kind::Process),
            (Kind::Process, b"ns") => Some(Kind::Namespaces),
            (Kind::Process, b"task") => Some(Kind::Tasks),
            (Kind::Namespaces | Kind::Tasks, b"..") => Some(Kind::Process),
            _ => None,
        };
        let Some(kind) = kind else {
            let proc = self.arrive(&fd, &proc.ids);
            let proc = Some(proc);
            return Ok(Folder { fd, proc });
        };
        let mut ids = proc.ids.clone();
        if own_entry {
            ids.extend(process::number(&fd));
        }
        if let Some(id) = number {
            ids.push(id);
            match process::of(&fd, id, proc.own) {
                Some(held) => self.through(held),
                None => self.unknown = true,
            }
        }
        let own = proc.own;
        let proc = Some(Proc {
            kind,
            own,
            mount,
            ids,
        });
        Ok(Folder { fd, proc })
    }

    fn enter(&mut self, fd: OwnedFd, privileges: &Privileges) -> Result<Folder, Failure> {
        let proc = match self.is_procfs(&fd)? {
            true => Some(privileges.with_ptrace(|| self.arrive(&fd, &[]))),
            false => None,
        };
        Ok(Folder { fd, proc })
    }

    fn is_procfs(&mut self, fd: &OwnedFd) -> Result<bool, Failure> {
        let procfs = file_system(fd)? == PROC_SUPER_MAGIC;
        self.procfs |= procfs;
        Ok(procfs)
    }

    /// Finds out where the path has led to in procfs. `known`: the processes of the folder that it came from.
    fn arrive(&mut self, fd: &OwnedFd, known: &[i32]) -> Proc {
        let passed: Vec<i32> = self.processes.iter().map(|held| held.process.id).collect();
        let mount = procfs::mount(fd);
        let place = match procfs::place(fd, &passed) {
            Ok(place) => place,
            Err(number) => {
                self.unknown = true;
                self.number = number.or(self.number);
                let (kind, own, ids) = (Kind::Other, false, Vec::new());
                return Proc {
                    kind,
                    own,
                    mount,
                    ids,
                };
            }
        };
        let (kind, own) = (place.kind, place.own);
        let ids = place.processes.iter().map(|held| held.process.id).collect();
        for held in place.processes {
            if !known.contains(&held.process.id) {
                self.number = Some(held.process.id);
                self.through(held);
            }
        }
        Proc {
            kind,
            own,
            mount,
            ids,
        }
    }

    fn through(&mut self, held: Held) {
        self.hidden = false;
        let mut known = self.processes.iter();
        if !known.any(|known| known.process == held.process) {
            self.processes.push(held);
        }
    }
}

fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

/// The result of a step.
enum Step {
    Into(Folder),
    Link(Vec<u8>),
    File,
}

/// The names of a path in reverse order.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.rsplit(|byte| *byte == b'/');
    let names = names.filter(|name| !name.is_empty() && *name != b".");
    names.map(<[u8]>::to_vec).collect()
}

/// The number of a process, if the name is one. proc(5) has no names with a leading zero.
fn number(name: &[u8]) -> Option<i32> {
    let digits = name.iter().all(u8::is_ascii_digit) && !matches!(name.first(), None | Some(b'0'));
    digits.then(|| std::str::from_utf8(name).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(path: &str) -> (Way, Vec<String>) {
        let mut seen = Vec::new();
        let way = follow(
            path.as_bytes(),
            &Privileges::none(),
            &mut |_folder, name| {
                seen.push(String::from_utf8_lossy(name).into_owned());
                Ok(())
            },
        );
        (way, seen)
    }

    #[test]
    fn every_spelling_leads_to_the_process() {
        let id = std::process::id();
        let link = std::env::temp_dir().join(format!("netlink_port-resolve-{id}"));
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(format!("/proc/{id}/ns/net"), &link).unwrap();
        let link = link.to_str().unwrap();
        let up = "../".repeat(40);
        for path in [
            format!("/proc/{id}/ns/net"),
            format!("/proc//./{id}/ns/../ns/net"),
            format!("/proc/{id}/task/../ns/net"),
            format!("/proc/{id}/task/{id}/ns/net"),
            format!("/proc/self/root/proc/{id}/ns/net"),
            format!("{up}proc/{id}/ns/net"),
            link.to_string(),
        ] {
            let (way, _seen) = way(&path);
            assert_eq!((way.lost, way.end), (None, End::Namespace), "{path}");
            let ids: Vec<i32> = way.processes.iter().map(|held| held.process.id).collect();
            assert_eq!(ids, [id as i32], "{path}");
            assert!(way.processes[0].pidfd.is_ok(), "{path}");
        }
        std::fs::remove_file(link).unwrap();
    }

    #[test]
    fn who_looks_is_no_process_that_was_named() {
        for path in [
            "/proc/self/ns/net",
            "/proc/thread-self/ns/net",
            "/proc/self/task/../ns/net",
        ] {
            let (way, seen) = way(path);
            assert_eq!((way.lost, way.end), (None, End::Namespace), "{path}");
            assert!(way.processes.is_empty() && seen.is_empty(), "{path}");
        }
    }

    #[test]
    fn files_are_visited_in_their_folders() {
        let (found, seen) = way("/etc/hostname");
        assert_eq!(
            (found.lost, found.end, found.procfs),
            (None, End::File, false)
        );
        assert_eq!(seen, ["hostname"]);
        assert_eq!(way("/../etc/./hostname").1, ["hostname"]);
        // The first step is the last, or a link where /usr is merged.
        assert_eq!(way("/etc").1, ["etc"]);
        assert_eq!(way("/bin/sh").0.lost, None);
        assert_eq!(way("/proc/self/fd/0").0.end, End::Proc);
        assert_eq!(way("/proc/uptime").0.end, End::Proc);
    }

    #[test]
    fn a_step_that_fails_says_where() {
        for (path, errno, detail) in [
            ("/nowhere/blue", Errno::ENOENT, ""),
            ("/etc/hostname/blue", Errno::ENOTDIR, ""),
            (
                "/proc/2147483647/ns/net",
                Errno::ENOENT,
                "process 2147483647",
            ),
        ] {
            let failure = way(path).0.lost.unwrap();
            let expected = Failure::new(Stage::Open, errno).because(detail);
            assert_eq!(failure, expected, "{path}");
        }
    }
}
