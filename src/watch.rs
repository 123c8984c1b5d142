//! Whether the network namespace of a socket is still there by the name it was opened by. Nothing
//! else tells: an open socket keeps its namespace alive.
//!
//! A file is watched by inotify(7) on the folder that holds it, through every symbolic link that
//! leads there; a process by its pidfd, which epoll(7) calls readable when it has ended.
//!
//! Invariants:
//! - A socket is watched before its namespace is opened, so that no end falls between the two.
//! - An event only says where to look; what counts is what the name stands for then.
//! - Whatever cannot be looked at, or not be watched any longer, is gone.

use crate::error::{At, Failure, Fatal, Stage};
use crate::netns::{Identity, Target};
use crate::protocol::Handle;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{open, readlinkat, AtFlags, OFlag, AT_FDCWD};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::stat::{fstatat, Mode};
use nix::sys::statfs::{fstatfs, PROC_SUPER_MAGIC};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// How the one inotify instance is made.
pub const INSTANCE: InitFlags = InitFlags::IN_CLOEXEC.union(InitFlags::IN_NONBLOCK);
/// What is told of a folder: that a name is gone or stands for another file, and its own end.
pub const FOLDER: AddWatchFlags = AddWatchFlags::IN_DELETE
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);
/// How many symbolic links lead on, path_resolution(7).
const LINKS: usize = 40;
/// How many events are taken at once; what is left wakes the loop again.
const EVENTS: usize = 64;
/// What the inotify instance is called in the epoll of this layer; a pidfd by its socket's handle.
const FOLDERS: u64 = u64::MAX;

/// The watched sockets. Has an epoll of its own, which is readable when one may be gone.
#[derive(Debug)]
pub struct Watches {
    epoll: Epoll,
    /// There while a folder is watched: a user has few of these.
    inotify: Option<Inotify>,
    /// The sockets by each name in each folder, so that an event finds them.
    folders: HashMap<WatchDescriptor, HashMap<OsString, BTreeSet<Handle>>>,
    watched: HashMap<Handle, Watched>,
}

#[derive(Debug)]
struct Watched {
    target: Target,
    /// Not known before it was entered.
    namespace: Option<Identity>,
    names: Vec<(WatchDescriptor, OsString)>,
    process: Option<OwnedFd>,
}

impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Watches {
    /// Watches nothing yet.
    pub fn new() -> Result<Self, Fatal> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        Ok(Self {
            epoll: epoll.map_err(Fatal::system("epoll_create1"))?,
            inotify: None,
            folders: HashMap::new(),
            watched: HashMap::new(),
        })
    }

    /// Watches what a socket's namespace is named by. Comes before it is opened, and
    /// [`Watches::entered`] or [`Watches::end`] after.
    pub fn begin(&mut self, handle: Handle, target: &Target) -> Result<(), Failure> {
        let watched = Watched {
            target: target.clone(),
            namespace: None,
            names: Vec::new(),
            process: None,
        };
        self.watched.insert(handle, watched);
        let begun = match target {
            Target::Host => Ok(()),
            Target::Path(path) => self.path(handle, path),
            Target::Pid(pid) => self.process(handle, *pid),
        };
        if begun.is_err() {
            self.end(handle);
        }
        begun
    }

    /// Says which namespace it was.
    pub fn entered(&mut self, handle: Handle, namespace: Identity) {
        if let Some(watched) = self.watched.get_mut(&handle) {
            watched.namespace = Some(namespace);
        }
    }

    /// Ends the watch of a socket, if there is one.
    pub fn end(&mut self, handle: Handle) {
        let Some(watched) = self.watched.remove(&handle) else {
            return;
        };
        for (folder, name) in watched.names {
            self.end_name(handle, folder, &name);
        }
        if self.folders.is_empty() {
            self.inotify = None;
        }
    }

    fn end_name(&mut self, handle: Handle, folder: WatchDescriptor, name: &OsStr) {
        let Some(names) = self.folders.get_mut(&folder) else {
            return;
        };
        if let Some(handles) = names.get_mut(name) {
            handles.remove(&handle);
            if handles.is_empty() {
                names.remove(name);
            }
        }
        if names.is_empty() {
            self.folders.remove(&folder);
            if let Some(inotify) = &self.inotify {
                // EINVAL: the folder has gone, and its watch with it.
                let _ = inotify.rm_watch(folder);
            }
        }
    }

    /// The sockets whose namespace is gone; they are watched no more.
    pub fn gone(&mut self) -> Vec<Handle> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        let mut ended = BTreeSet::new();
        let mut suspects = BTreeSet::new();
        for event in events.iter().take(count.unwrap_or(0)) {
            match u32::try_from(event.data()) {
                Ok(handle) => drop(ended.insert(Handle(handle))),
                Err(_) => suspects.append(&mut self.suspects()),
            }
        }
        for handle in &suspects {
            if !ended.contains(handle) && !self.still_there(*handle) {
                ended.insert(*handle);
            }
        }
        for handle in &ended {
            self.end(*handle);
        }
        ended.into_iter().collect()
    }

    /// The sockets that the next events of inotify are about.
    fn suspects(&mut self) -> BTreeSet<Handle> {
        let events = match self.inotify.as_ref().map(Inotify::read_events) {
            None | Some(Err(Errno::EAGAIN | Errno::EINTR)) => return BTreeSet::new(),
            Some(Ok(events)) => events,
            Some(Err(_)) => {
                // It tells nothing any more: another one is made for those that are still there.
                self.inotify = None;
                self.folders.clear();
                return self.of_files();
            }
        };
        let mut suspects = BTreeSet::new();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return self.of_files();
            }
            let Some(names) = self.folders.get(&event.wd) else {
                continue;
            };
            match event.name {
                Some(name) => suspects.extend(names.get(&name).into_iter().flatten()),
                // The folder itself: moved, deleted, unmounted.
                None => suspects.extend(names.values().flatten()),
            }
        }
        suspects
    }

    /// All that are watched through a folder; of a process its pidfd tells.
    fn of_files(&self) -> BTreeSet<Handle> {
        let files = self
            .watched
            .iter()
            .filter(|(_, watched)| !watched.names.is_empty());
        files.map(|(handle, _)| *handle).collect()
    }

    /// Watches a socket anew, since links and folders may lead elsewhere now, and only then looks
    /// what its name stands for.
    fn still_there(&mut self, handle: Handle) -> bool {
        let Some(watched) = self.watched.get(&handle) else {
            return true;
        };
        let (target, namespace) = (watched.target.clone(), watched.namespace);
        let (Target::Path(path), Some(namespace)) = (&target, namespace) else {
            return true;
        };
        self.end(handle);
        if self.begin(handle, &target).is_err() {
            return false;
        }
        self.entered(handle, namespace);
        let flags = AtFlags::AT_NO_AUTOMOUNT;
        let now = sys::retry(|| fstatat(AT_FDCWD, path.as_slice(), flags)).map(Identity::from);
        now == Ok(namespace)
    }

    fn process(&mut self, handle: Handle, pid: i32) -> Result<(), Failure> {
        let process = sys::pidfd_open(pid).at(Stage::Watch)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, handle.0.into());
        self.epoll.add(&process, event).at(Stage::Watch)?;
        if let Some(watched) = self.watched.get_mut(&handle) {
            watched.process = Some(process);
        }
        Ok(())
    }

    /// Each folder is watched before the link in it is read.
    fn path(&mut self, handle: Handle, path: &[u8]) -> Result<(), Failure> {
        let mut path = path.to_vec();
        for _ in 0..=LINKS {
            if let Some(pid) = process_of(&path) {
                return self.process(handle, pid);
            }
            let (folder, name) = split(&path);
            self.folder(handle, folder, name)?;
            path = match sys::retry(|| readlinkat(AT_FDCWD, path.as_slice())) {
                // It is no link.
                Err(Errno::EINVAL) => return Ok(()),
                Err(errno) => return Err(Failure::new(Stage::Open, errno)),
                Ok(target) if target.as_bytes().starts_with(b"/") => target.into_vec(),
                Ok(target) => [folder, target.as_bytes()].join(&b'/'),
            };
        }
        Err(Failure::new(Stage::Open, Errno::ELOOP))
    }

    fn folder(&mut self, handle: Handle, folder: &[u8], name: &[u8]) -> Result<(), Failure> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = sys::retry(|| open(folder, flags, Mode::empty())).at(Stage::Open)?;
        if fstatfs(&place).at(Stage::Open)?.filesystem_type() == PROC_SUPER_MAGIC {
            // inotify(7) would never tell of its files.
            return Err(Failure::new(Stage::Watch, Errno::EOPNOTSUPP));
        }
        let inotify = match self.inotify.take() {
            Some(inotify) => inotify,
            None => self.instance()?,
        };
        let inotify = self.inotify.insert(inotify);
        let place = format!("/proc/self/fd/{}", place.as_raw_fd());
        let folder = sys::retry(|| inotify.add_watch(place.as_str(), FOLDER)).at(Stage::Watch)?;
        let name = OsStr::from_bytes(name).to_owned();
        let names = self.folders.entry(folder).or_default();
        names.entry(name.clone()).or_default().insert(handle);
        if let Some(watched) = self.watched.get_mut(&handle) {
            watched.names.push((folder, name));
        }
        Ok(())
    }

    fn instance(&self) -> Result<Inotify, Failure> {
        let inotify = Inotify::init(INSTANCE).at(Stage::Watch)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, FOLDERS);
        self.epoll.add(&inotify, event).at(Stage::Watch)?;
        Ok(inotify)
    }
}

/// The folder of a path, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => path.split_at(at + 1),
        None => (b".", path),
    }
}

/// The process of a path `/proc/<pid>/ns/net`.
fn process_of(path: &[u8]) -> Option<i32> {
    let pid = path.strip_prefix(b"/proc/")?.strip_suffix(b"/ns/net")?;
    let digits = pid.iter().all(u8::is_ascii_digit);
    let pid = digits.then(|| std::str::from_utf8(pid).ok()?.parse().ok());
    pid.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_one_path_alone() {
        assert_eq!(process_of(b"/proc/42/ns/net"), Some(42));
        for path in [
            &b"/proc/self/ns/net"[..],
            b"/proc//ns/net",
            b"/proc/ns/net",
            b"/proc/-1/ns/net",
            b"/proc/42/task/43/ns/net",
            b"/proc/42/ns/net/",
            b"/proc/42/ns/mnt",
            b"/proc/99999999999/ns/net",
            b"/srv/proc/42/ns/net",
            b"",
        ] {
            assert_eq!(process_of(path), None, "{path:?}");
        }
    }

    #[test]
    fn every_path_has_a_folder() {
        for (path, folder, name) in [
            ("/run/netns/blue", "/run/netns/", "blue"),
            ("/blue", "/", "blue"),
            ("blue", ".", "blue"),
            ("/", "/", ""),
            ("", ".", ""),
        ] {
            let parts = (folder.as_bytes(), name.as_bytes());
            assert_eq!(split(path.as_bytes()), parts, "{path}");
        }
    }

    #[test]
    fn a_watch_that_fails_leaves_nothing_behind() {
        let mut watches = Watches::new().unwrap();
        let nowhere = Target::Path(b"/nowhere/blue".to_vec());
        let failure = watches.begin(Handle(1), &nowhere).unwrap_err();
        assert_eq!((failure.stage, failure.errno), (Stage::Open, Errno::ENOENT));
        let failure = watches
            .begin(Handle(2), &Target::Pid(i32::MAX))
            .unwrap_err();
        assert_eq!((failure.stage, failure.errno), (Stage::Watch, Errno::ESRCH));
        assert!(watches.inotify.is_none() && watches.folders.is_empty());
        assert!(watches.watched.is_empty() && watches.gone().is_empty());
    }
}
