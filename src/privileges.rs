//! The capabilities of this program: those that its work needs, and no others. capabilities(7).

use crate::error::{Exit, Fatal};
use crate::sys;
use caps::errors::CapsError;
use caps::{Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;

/// The capabilities that can be kept beyond the two that are always kept, by their names in `--keep`.
pub const KEEPABLE: [(&str, Capability); 5] = [
    // NETLINK_LISTEN_ALL_NSID.
    ("net_broadcast", Capability::CAP_NET_BROADCAST),
    // The group of NETLINK_AUDIT, its commands, and records of user space.
    ("audit_read", Capability::CAP_AUDIT_READ),
    ("audit_control", Capability::CAP_AUDIT_CONTROL),
    ("audit_write", Capability::CAP_AUDIT_WRITE),
    // Namespace files in directories of other users.
    ("dac_read_search", Capability::CAP_DAC_READ_SEARCH),
];

/// The restrictions that this program was started with. It changes them itself later. proc_pid_status(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inherited {
    /// The bounding set, a bit for each capability. execve(2) gives no capability outside it.
    pub bounding: u64,
    /// Whether no_new_privs was set, so that the capabilities of the executable had no effect.
    pub no_new_privs: bool,
    /// `SECCOMP_MODE_*` of a filter that was there at start, 0 for none.
    pub seccomp: u8,
}

/// Reads the restrictions, before [`reduce`]. A field that `/proc` does not have counts as no restriction.
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

/// The capabilities that are left after [`reduce`].
#[derive(Debug)]
pub struct Privileges {
    effective: CapsHashSet,
    ptrace: bool,
}

/// Gives up every capability except CAP_SYS_ADMIN, CAP_NET_ADMIN and `keep`, for good: no_new_privs is set, and
/// the bounding set is emptied if CAP_SETPCAP allows it. CAP_SYS_PTRACE stays permitted, and only
/// [`Privileges::with_ptrace`] raises it.
pub fn reduce(keep: &[Capability]) -> Result<Privileges, Fatal> {
    set_no_new_privs().map_err(Fatal::system("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    give_up(keep)
        .map_err(|_| Fatal::at_start("capabilities could not be given up, capget(2) or capset(2)"))
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
    /// No capabilities.
    #[cfg(test)]
    pub fn none() -> Self {
        Self {
            effective: CapsHashSet::new(),
            ptrace: false,
        }
    }

    /// The numbers of the usable capabilities, in order.
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

    /// Runs `work` with CAP_SYS_PTRACE, if it is permitted. Without it `/proc/<pid>/ns/*` cannot be opened if the
    /// process has another user, or more capabilities than this program. Ends the program if CAP_SYS_PTRACE cannot
    /// be lowered again.
    pub fn with_ptrace<T>(&self, work: impl FnOnce() -> T) -> T {
        use caps::CapSet::Effective;
        // If it cannot be raised, the error of the open says what is missing.
        let raised =
            self.ptrace && caps::raise(None, Effective, Capability::CAP_SYS_PTRACE).is_ok();
        let result = work();
        if raised && caps::drop(None, Effective, Capability::CAP_SYS_PTRACE).is_err() {
            sys::exit_now(Exit::System as i32);
        }
        result
    }

    /// Runs `work` without capabilities, so that the limits of the user apply. Ends the program if the
    /// capabilities cannot be raised again.
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
