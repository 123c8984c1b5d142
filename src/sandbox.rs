//! Holds a network namespace for a test, with a pid namespace for the programs in it, until standard input ends
//! (`--sandbox`). unshare(1), nsenter(1) and a shell would do the same, in three programs one after the other.
//!
//! Danger: an executable with file capabilities could enter the user namespaces of other users. So a caller other than
//! root keeps only ambient capabilities, which such an executable never has. capabilities(7).

use crate::error::Fatal;
use crate::sys;
use caps::CapSet;
use nix::errno::Errno;
use nix::fcntl::{open, OFlag};
use nix::sched::{setns, unshare, CloneFlags};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{getegid, geteuid, read, write, ForkResult};
use std::io::{stdin, stdout};
use std::os::fd::AsFd;

/// The user namespace that owns the namespaces which are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// That of this process, where it needs CAP_SYS_ADMIN.
    Own,
    /// A new one, in which the user is root.
    New,
    /// That of another process, by its id.
    Of(i32),
}

/// Prints `ready` when the namespaces exist, and returns when standard input has ended, or a line was read.
pub fn hold(owner: Owner) -> Result<(), Fatal> {
    let (user, group) = (geteuid(), getegid());
    if !user.is_root() {
        give_up().map_err(|_| {
            Fatal::at_start("capabilities could not be given up, capget(2) or capset(2)")
        })?;
        // A program whose file the user cannot read, or has capabilities, does not own its files in /proc.
        set_dumpable(true).map_err(Fatal::system("prctl(PR_SET_DUMPABLE)"))?;
    }
    let spaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    match owner {
        Owner::Own => make(spaces)?,
        Owner::New => {
            make(spaces | CloneFlags::CLONE_NEWUSER)?;
            map(user.as_raw(), group.as_raw()).map_err(Fatal::system("/proc/self/uid_map"))?;
        }
        Owner::Of(pid) => {
            enter(pid)?;
            make(spaces)?;
        }
    }
    // The child is the init process of the pid namespace: every process there ends with it.
    match sys::fork().map_err(Fatal::system("fork(2)"))? {
        ForkResult::Child => sys::exit_now(i32::from(be_init().is_err())),
        ForkResult::Parent { child } => sys::retry(|| waitpid(child, None))
            .map(drop)
            .map_err(Fatal::system("waitpid(2)")),
    }
}

fn give_up() -> Result<(), caps::errors::CapsError> {
    let ambient = caps::read(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, &ambient)?;
    caps::set(None, CapSet::Permitted, &ambient)
}

fn make(spaces: CloneFlags) -> Result<(), Fatal> {
    unshare(spaces).map_err(Fatal::system("unshare(2)"))
}

fn enter(pid: i32) -> Result<(), Fatal> {
    let path = format!("/proc/{pid}/ns/user");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = sys::retry(|| open(path.as_str(), flags, Mode::empty()))
        .map_err(Fatal::system("/proc/<pid>/ns/user"))?;
    setns(file, CloneFlags::CLONE_NEWUSER).map_err(Fatal::system("setns(2)"))
}

/// Makes the user root in the new user namespace. user_namespaces(7).
fn map(user: u32, group: u32) -> Result<(), Errno> {
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ] {
        std::fs::write(format!("/proc/self/{file}"), line)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    }
    Ok(())
}

fn be_init() -> Result<(), Errno> {
    set_pdeathsig(Signal::SIGKILL)?;
    sys::forget_children();
    sys::retry(|| write(stdout(), b"ready\n"))?;
    let mut line = [0; 1];
    sys::retry(|| read(stdin().as_fd(), &mut line)).map(drop)
}
