//! Whether the name that a socket was opened by still stands for its network namespace. The socket itself cannot
//! tell, since an open socket keeps its namespace alive.
//!
//! A file is watched by inotify(7) on its folder. If the file is a symbolic link, the folder of its target is
//! watched, too, and so on. A process is watched by its pidfd, which epoll(7) reports as readable when the process
//! has ended.
//!
//! Invariants:
//! - A watch begins before the namespace is opened, so that no end is missed between the two.
//! - An event says only where to look. What the name stands for at that time decides.
//! - A name that cannot be looked up, or can no longer be watched, is gone.

use crate::error::{At, Failure, Fatal, Stage};
use crate::netns::{Identity, Target};
use crate::privileges::Privileges;
use crate::process::{self, Held, Process};
use crate::protocol::Handle;
use crate::resolve::{self, End};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, AT_FDCWD};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::stat::fstatat;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// How the one inotify instance is made.
pub const INSTANCE: InitFlags = InitFlags::IN_CLOEXEC.union(InitFlags::IN_NONBLOCK);
/// The events of a folder: a name is gone or stands for another file, or the folder itself is gone.
pub const FOLDER: AddWatchFlags = AddWatchFlags::IN_DELETE
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);
/// How many events are taken at once. The rest wakes the loop again.
const EVENTS: usize = 64;
/// The data of inotify's events in the epoll of this file. Those of a pidfd have the handle of its socket.
const FOLDERS: u64 = u64::MAX;

/// The watched sockets. Their own epoll is readable when the namespace of one may be gone.
#[derive(Debug)]
pub struct Watches {
    epoll: Epoll,
    /// Made when the first folder is watched, and closed after the last: a user may have few inotify instances.
    inotify: Option<Inotify>,
    /// The sockets by folder and name, so that an event finds them.
    folders: HashMap<WatchDescriptor, HashMap<OsString, BTreeSet<Handle>>>,
    watched: HashMap<Handle, Watched>,
}

#[derive(Debug)]
struct Watched {
    target: Target,
    /// `None` until it has been entered.
    namespace: Option<Identity>,
    names: Vec<(WatchDescriptor, OsString)>,
    /// The processes that its path leads through.
    processes: Vec<Process>,
    pidfds: Vec<OwnedFd>,
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
        let epoll = epoll.map_err(Fatal::system("epoll_create1"))?;
        Ok(Self {
            epoll: Epoll(sys::out_of_the_way(epoll.0)),
            inotify: None,
            folders: HashMap::new(),
            watched: HashMap::new(),
        })
    }

    /// Begins the watch of a socket, before its namespace is opened. [`Watches::entered`] or [`Watches::end`]
    /// follows.
    pub fn begin(
        &mut self,
        handle: Handle,
        target: &Target,
        privileges: &Privileges,
    ) -> Result<(), Failure> {
        let watched = Watched {
            target: target.clone(),
            namespace: None,
            names: Vec::new(),
            processes: Vec::new(),
            pidfds: Vec::new(),
        };
        self.watched.insert(handle, watched);
        let begun = match target {
            Target::Host => Ok(()),
            Target::Path(path) => self.path(handle, path, privileges),
            Target::Pid(pid) => {
                let found = privileges.with_ptrace(|| process::find(*pid, Stage::Watch));
                found.and_then(|pidfd| self.pidfd(handle, pidfd))
            }
        };
        if begun.is_err() {
            self.end(handle);
        }
        begun
    }

    /// Says which namespace the socket was opened in.
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

    /// The sockets whose namespace is gone. Their watches end.
    pub fn gone(&mut self, privileges: &Privileges) -> Vec<Handle> {
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
            if !ended.contains(handle) && !self.still_there(*handle, privileges) {
                ended.insert(*handle);
            }
        }
        for handle in &ended {
            self.end(*handle);
        }
        ended.into_iter().collect()
    }

    /// The sockets that the next inotify events are about.
    fn suspects(&mut self) -> BTreeSet<Handle> {
        let events = match self.inotify.as_ref().map(Inotify::read_events) {
            None | Some(Err(Errno::EAGAIN | Errno::EINTR)) => return BTreeSet::new(),
            Some(Ok(events)) => events,
            Some(Err(_)) => {
                // The instance is unusable. The next watch of a folder makes another one.
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
                // The folder itself was moved, deleted or unmounted.
                None => suspects.extend(names.values().flatten()),
            }
        }
        suspects
    }

    /// All sockets that are watched through a folder. The others have a pidfd alone.
    fn of_files(&self) -> BTreeSet<Handle> {
        let files = self
            .watched
            .iter()
            .filter(|(_, watched)| !watched.names.is_empty());
        files.map(|(handle, _)| *handle).collect()
    }

    /// Watches a socket anew, since links and folders may lead elsewhere now. Then looks what its name stands
    /// for.
    fn still_there(&mut self, handle: Handle, privileges: &Privileges) -> bool {
        let Some(watched) = self.watched.get(&handle) else {
            return true;
        };
        let (target, namespace) = (watched.target.clone(), watched.namespace);
        let (Target::Path(path), Some(namespace)) = (&target, namespace) else {
            return true;
        };
        let before = watched.processes.clone();
        self.end(handle);
        if self.begin(handle, &target, privileges).is_err() {
            return false;
        }
        self.entered(handle, namespace);
        let through = self.watched.get(&handle).map(|watched| &watched.processes);
        let successor = |process: &Process| {
            before
                .iter()
                .any(|known| known.id == process.id && known != process)
        };
        if through.is_some_and(|processes| processes.iter().any(successor)) {
            return false;
        }
        let flags = AtFlags::AT_NO_AUTOMOUNT;
        let look = || sys::retry(|| fstatat(AT_FDCWD, path.as_slice(), flags));
        let now = match through.is_some_and(|processes| !processes.is_empty()) {
            true => privileges.with_ptrace(look),
            false => look(),
        };
        now.map(Identity::from) == Ok(namespace)
    }

    fn pidfd(&mut self, handle: Handle, pidfd: OwnedFd) -> Result<(), Failure> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, handle.0.into());
        self.epoll.add(&pidfd, event).at(Stage::Watch)?;
        if let Some(watched) = self.watched.get_mut(&handle) {
            watched.pidfds.push(pidfd);
        }
        Ok(())
    }

    /// Watches the folders of a path. Each is watched before the symbolic link in it is read.
    fn path(
        &mut self,
        handle: Handle,
        path: &[u8],
        privileges: &Privileges,
    ) -> Result<(), Failure> {
        let way = resolve::follow(path, privileges, &mut |folder, name| {
            self.folder(handle, folder, name)
        });
        if let Some(failure) = way.lost {
            return Err(failure);
        }
        way.trust().at(Stage::Watch)?;
        if way.unknown {
            let untold = Failure::new(Stage::Watch, Errno::EOPNOTSUPP);
            return Err(untold.because("unknown"));
        }
        if way.end == End::Proc {
            // inotify(7) reports nothing of procfs.
            return Err(Failure::new(Stage::Watch, Errno::EOPNOTSUPP));
        }
        way.processes
            .into_iter()
            .try_for_each(|held| self.process(handle, held))
    }

    fn process(&mut self, handle: Handle, held: Held) -> Result<(), Failure> {
        let pidfd = held.pidfd.map_err(|errno| {
            let failure = Failure::new(Stage::Watch, errno);
            let untold = Failure::new(Stage::Watch, Errno::EOPNOTSUPP);
            match errno {
                Errno::EOPNOTSUPP => match process::has_own_proc() {
                    Err(refused) => Failure {
                        stage: Stage::Watch,
                        ..refused
                    },
                    Ok(_) => untold.because("foreign"),
                },
                Errno::EINVAL => untold.because("thread"),
                Errno::EPERM | Errno::EACCES | Errno::ENOSYS => failure.because("pidfd_open"),
                _ => failure,
            }
        })?;
        if let Some(watched) = self.watched.get_mut(&handle) {
            watched.processes.push(held.process);
        }
        self.pidfd(handle, pidfd)
    }

    fn folder(&mut self, handle: Handle, place: &OwnedFd, name: &[u8]) -> Result<(), Failure> {
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
        let inotify = sys::inotify(INSTANCE).at(Stage::Watch)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, FOLDERS);
        self.epoll.add(&inotify, event).at(Stage::Watch)?;
        Ok(inotify)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_fails_leaves_nothing_behind() {
        let mut watches = Watches::new().unwrap();
        let privileges = Privileges::none();
        let nowhere = Target::Path(b"/nowhere/blue".to_vec());
        let failure = watches.begin(Handle(1), &nowhere, &privileges).unwrap_err();
        assert_eq!((failure.stage, failure.errno), (Stage::Open, Errno::ENOENT));
        let failure = watches
            .begin(Handle(2), &Target::Pid(i32::MAX), &privileges)
            .unwrap_err();
        assert_eq!((failure.stage, failure.errno), (Stage::Watch, Errno::ESRCH));
        assert!(watches.inotify.is_none() && watches.folders.is_empty());
        assert!(watches.watched.is_empty() && watches.gone(&privileges).is_empty());
    }
}
