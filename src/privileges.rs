//! The capabilities this program runs with: as few as its work takes. capabilities(7).

use crate::error::{Exit, Fatal};
use crate::sys;
use caps::errors::CapsError;
use caps::{Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;

/// What may be kept beyond the two that the work takes, by the names of the `--keep` argument.
pub const KEEPABLE: [(&str, Capability); 4] = [
    // NETLINK_LISTEN_ALL_NSID.
    ("net_broadcast", Capability::CAP_NET_BROADCAST),
    // The group of NETLINK_AUDIT, and its commands.
    ("audit_read", Capability::CAP_AUDIT_READ),
    ("audit_control", Capability::CAP_AUDIT_CONTROL),
    // Namespace files in directories of other users.
    ("dac_read_search", Capability::CAP_DAC_READ_SEARCH),
];

/// What this program was started with, which it gives up or changes itself: proc_pid_status(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inherited {
    /// The bounding set, a bit for each capability: no execve(2) gives more than these.
    pub bounding: u64,
    /// Whether no_new_privs was set, so that capabilities of its file did not count.
    pub no_new_privs: bool,
    /// `SECCOMP_MODE_*` of a filter from outside, 0 for none.
    pub seccomp: u8,
}

/// Reads it, before [`reduce`]. What `/proc` does not tell is as on a machine that restricts nothing.
pub fn inherited() -> Inherited {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let bounding = field("CapBnd:").and_then(|set| u64::from_str_radix(set, 16).ok());
    let number = |name| field(name).and_then(|number| number.parse().ok());
    Inherited {
        bounding: bounding.unwrap_or(u64::MAX),
        no_new_privs: number("NoNewPrivs:") == Some(1),
        seccomp: number("Seccomp:").unwrap_or(0),
    }
}

/// What is left after [`reduce`].
#[derive(Debug)]
pub struct Privileges {
    effective: CapsHashSet,
    ptrace: bool,
}

/// Gives up every capability but CAP_SYS_ADMIN, CAP_NET_ADMIN and `keep`, for good: the bounding
/// set is emptied where that is allowed, and no execve(2) can bring any back. CAP_SYS_PTRACE stays
/// permitted, to be raised by [`Privileges::with_ptrace`] alone.
pub fn reduce(keep: &[Capability]) -> Result<Privileges, Fatal> {
    set_no_new_privs().map_err(Fatal::system("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    give_up(keep).map_err(|_| Fatal::at_start("capabilities could not be given up, capset(2)"))
}

fn give_up(keep: &[Capability]) -> Result<Privileges, CapsError> {
    use caps::CapSet::{Ambient, Bounding, Effective, Inheritable, Permitted};
    if caps::has_cap(None, Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, Bounding)? {
            caps::drop(None, Bounding, capability)?;
        }
    }
    let held = caps::read(None, Permitted)?;
    let wanted = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];
    let wanted = wanted.iter().chain(keep);
    let effective: CapsHashSet = wanted.filter(|c| held.contains(c)).copied().collect();
    let ptrace = held.contains(&Capability::CAP_SYS_PTRACE);
    let mut permitted = effective.clone();
    if ptrace {
        permitted.insert(Capability::CAP_SYS_PTRACE);
    }
    caps::clear(None, Ambient)?;
    caps::clear(None, Inheritable)?;
    caps::set(None, Effective, &effective)?;
    caps::set(None, Permitted, &permitted)?;
    Ok(Privileges { effective, ptrace })
}

impl Privileges {
    /// None at all.
    #[cfg(test)]
    pub fn none() -> Self {
        Self {
            effective: CapsHashSet::new(),
            ptrace: false,
        }
    }

    /// The numbers of the capabilities that can be used, in order.
    pub fn numbers(&self) -> Vec<u8> {
        let ptrace = self.ptrace.then_some(Capability::CAP_SYS_PTRACE);
        let usable = self.effective.iter().copied().chain(ptrace);
        let mut numbers: Vec<u8> = usable.map(|capability| capability.index()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Whether CAP_SYS_PTRACE can be raised.
    pub fn may_trace(&self) -> bool {
        self.ptrace
    }

    /// Runs `work` with CAP_SYS_PTRACE, where it is permitted: `/proc/<pid>/ns/*` of a process
    /// of another user, or with more capabilities than this one, is closed without it. Ends the program where it cannot
    /// be given up again.
    pub fn with_ptrace<T>(&self, work: impl FnOnce() -> T) -> T {
        use caps::CapSet::Effective;
        // Where it cannot be raised, the open says what is missing.
        let raised =
            self.ptrace && caps::raise(None, Effective, Capability::CAP_SYS_PTRACE).is_ok();
        let result = work();
        if raised && caps::drop(None, Effective, Capability::CAP_SYS_PTRACE).is_err() {
            sys::exit_now(Exit::System as i32);
        }
        result
    }

    /// Runs `work` as one without capabilities, whom limits of a user are for. Ends the program
    /// where they do not come back.
    pub fn unprivileged(&self, work: impl FnOnce()) {
        use caps::CapSet::Effective;
        if caps::clear(None, Effective).is_err() {
            return;
        }
        work();
        if caps::set(None, Effective, &self.effective).is_err() {
            sys::exit_now(Exit::System as i32);
        }
    }
}
