//! Where a folder of procfs is: in the entry of which process, and in a procfs of which pid namespace. proc(5).
//!
//! A bind mount shows a part of procfs under another name, and magic links such as `/proc/<pid>/cwd` and
//! `/proc/<pid>/fd/7` lead into procfs under no name. So the folder itself is asked, and not the path.
//!
//! Invariant: `..` is followed inside of one mount alone. At the root of a mount it leads to the folder in which the
//! mount hangs, which can be in the entry of another process.

use crate::process::{self, Held};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{open, openat, readlinkat, OFlag};
use nix::sys::stat::{fstat, Mode};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

const FOLDER: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);
/// The inode of the root of every procfs (`PROC_ROOT_INO`, include/linux/proc_fs.h).
const ROOT: u64 = 1;
/// Folders of procfs are less deep.
const DEPTH: usize = 32;

/// What a folder of procfs is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The root of procfs.
    Root,
    /// `/proc/<pid>`, or `/proc/<pid>/task/<tid>`.
    Process,
    /// `/proc/<pid>/task`.
    Tasks,
    /// `/proc/<pid>/ns`.
    Namespaces,
    /// Another one.
    Other,
}

impl Kind {
    /// Whether numbers in it are those of processes or threads.
    pub fn has_processes(self) -> bool {
        matches!(self, Self::Root | Self::Tasks)
    }
}

/// Where a folder is.
#[derive(Debug)]
pub struct Place {
    /// What it is.
    pub kind: Kind,
    /// Whether it is of a procfs of this program's pid namespace.
    pub own: bool,
    /// The processes and threads in whose entries it is.
    pub processes: Vec<Held>,
}

/// The id of the mount that a descriptor was opened in: `mnt_id` of proc_pid_fdinfo(5).
pub fn mount(folder: impl AsFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", folder.as_fd().as_raw_fd());
    let info = process::text(nix::fcntl::AT_FDCWD, &path).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id?.trim().parse().ok()
}

/// Finds out where a folder is. Its mount can be one of the mount namespace of the processes `others`. An error has
/// the number of the process whose entry it was, if the mount still says so.
pub fn place(folder: &OwnedFd, others: &[i32]) -> Result<Place, Option<i32>> {
    let mut folders = up(folder).ok_or(None)?;
    let top = folders.last().ok_or(None)?;
    if !is_root(top) {
        let whole = whole(top, others)?;
        folders.pop();
        folders.extend(whole);
    }
    let own = folders.last().is_some_and(process::is_own_proc);
    let numbers: Vec<Option<i32>> = folders.iter().map(process::number).collect();
    let processes = folders.iter().zip(&numbers);
    let processes = processes.filter_map(|(folder, id)| process::of(folder, (*id)?, own));
    Ok(Place {
        kind: kind(&folders, &numbers),
        own,
        processes: processes.collect(),
    })
}

fn kind(folders: &[OwnedFd], numbers: &[Option<i32>]) -> Kind {
    match (folders, numbers) {
        ([root], _) if is_root(root) => Kind::Root,
        (_, [Some(_), ..]) => Kind::Process,
        ([folder, entry, ..], [_, Some(_), ..]) if is_in(folder, entry, "ns") => Kind::Namespaces,
        ([folder, entry, ..], [_, Some(_), ..]) if is_in(folder, entry, "task") => Kind::Tasks,
        _ => Kind::Other,
    }
}

fn is_in(folder: &OwnedFd, above: &OwnedFd, name: &str) -> bool {
    into(above, name).is_ok_and(|found| is_same(&found, folder))
}

/// The folder and those above it, up to the root of its mount.
fn up(folder: &OwnedFd) -> Option<Vec<OwnedFd>> {
    let mut folders = vec![into(folder, ".").ok()?];
    let mount_id = mount(folder);
    while folders.len() < DEPTH {
        let last = folders.last()?;
        if is_root(last) {
            return Some(folders);
        }
        let next = into(last, "..").ok()?;
        if mount(&next) != Some(mount_id?) || is_same(&next, last) {
            return Some(folders);
        }
        folders.push(next);
    }
    None
}

/// The same folder by a mount of the whole procfs, and the folders above it. `top` is the root of a mount that shows
/// a part of it.
fn whole(top: &OwnedFd, others: &[i32]) -> Result<Vec<OwnedFd>, Option<i32>> {
    let id = mount(top).ok_or(None)?;
    let own = mounts("/proc/self/mountinfo");
    let mut tables = others.iter().map(|id| format!("/proc/{id}/mountinfo"));
    let part = own.iter().find(|mount| mount.id == id).cloned();
    let part = part.or_else(|| {
        let find = |table: String| mounts(&table).into_iter().find(|mount| mount.id == id);
        tables.find_map(find)
    });
    let Mount { device, root, .. } = part.ok_or(None)?;
    let inside = root.strip_prefix('/').unwrap_or(&root);
    let inside = inside.strip_suffix("//deleted").unwrap_or(inside);
    for mount in own
        .iter()
        .filter(|mount| mount.device == device && mount.root == "/")
    {
        let root = sys::retry(|| open(mount.point.as_slice(), FOLDER, Mode::empty()));
        let same = root.and_then(|root| into(&root, inside));
        // Another file system can be mounted over it.
        if let Some(same) = same.ok().filter(|same| is_same(same, top)) {
            return up(&same)
                .filter(|folders| folders.last().is_some_and(is_root))
                .ok_or(None);
        }
    }
    let first = inside.split('/').next();
    Err(first.and_then(|number| number.parse().ok()))
}

/// A line of proc_pid_mountinfo(5).
#[derive(Clone)]
struct Mount {
    id: u64,
    device: String,
    root: String,
    point: Vec<u8>,
}

/// The mounts of a table that has them; none if it cannot be read.
fn mounts(path: &str) -> Vec<Mount> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Ok(file) = sys::retry(|| open(path, flags, Mode::empty())) else {
        return Vec::new();
    };
    let lines = BufReader::new(File::from(file))
        .split(b'\n')
        .map_while(Result::ok);
    lines.filter_map(|line| parse(&line)).collect()
}

/// `36 35 0:22 /1234/ns /mnt/a\040folder rw,relatime shared:1 - proc proc rw`
fn parse(line: &[u8]) -> Option<Mount> {
    let is_proc = line.windows(8).any(|part| part == b" - proc ");
    let mut fields = line.split(|byte| *byte == b' ').filter(|_| is_proc);
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
    Some(Mount {
        id: text(fields.next()?)?.parse().ok()?,
        device: fields.nth(1).and_then(text)?,
        root: fields.next().and_then(text)?,
        point: unescaped(fields.next()?),
    })
}

/// Spaces, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        let octal = after.first_chunk::<3>().and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => bytes.push(*first),
        }
    }
    bytes
}

fn into(folder: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    sys::retry(|| openat(folder, name, FOLDER, Mode::empty()))
}

// Inode numbers have 32 bits on some machines.
#[allow(clippy::useless_conversion)]
fn is_root(folder: &OwnedFd) -> bool {
    fstat(folder).is_ok_and(|stat| u64::from(stat.st_ino) == ROOT)
        // Another implementation of proc(5), in which the root is known by its link.
        || sys::retry(|| readlinkat(folder, "self")).is_ok_and(|link| !link.into_vec().is_empty())
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let identity = |fd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(path: &str) -> OwnedFd {
        open(path, FOLDER, Mode::empty()).unwrap()
    }

    #[test]
    fn a_folder_says_itself_what_it_is() {
        let id = std::process::id() as i32;
        for (path, kind, ids) in [
            ("/proc".to_string(), Kind::Root, vec![]),
            (format!("/proc/{id}"), Kind::Process, vec![id]),
            (format!("/proc/{id}/ns"), Kind::Namespaces, vec![id]),
            (format!("/proc/{id}/task"), Kind::Tasks, vec![id]),
            (format!("/proc/{id}/task/{id}"), Kind::Process, vec![id, id]),
            (format!("/proc/{id}/fd"), Kind::Other, vec![id]),
            ("/proc/sys/net".to_string(), Kind::Other, vec![]),
        ] {
            let place = place(&folder(&path), &[]).unwrap();
            assert_eq!((place.kind, place.own), (kind, true), "{path}");
            let found: Vec<i32> = place.processes.iter().map(|held| held.process.id).collect();
            assert_eq!(found, ids, "{path}");
        }
    }

    #[test]
    fn a_line_of_mountinfo() {
        let line = br"36 35 0:22 /1234/ns /mnt/a\040folder\134 rw shared:1 - proc proc rw";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.device.as_str()), (36, "0:22"));
        assert_eq!(mount.root, "/1234/ns");
        assert_eq!(mount.point, br"/mnt/a folder\");
        assert!(parse(b"36 35 0:22 / /mnt rw - tmpfs tmpfs rw").is_none());
        assert!(parse(b"36 - proc ").is_none());
    }
}
