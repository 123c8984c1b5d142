//! Ends another process: for a VM that has neither a shell nor kill(1) to do it with, and whose own
//! helper does not answer. kill(2) asks for the same user; the capabilities of this program's file
//! add nothing to that, as CAP_KILL is not among them.

use crate::error::{Exit, Fatal};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::AsFd;

/// How long the end is waited for, in ms.
const PATIENCE: u16 = 1_000;

/// Sends SIGKILL and waits until the process has ended. One that is not there has. The pidfd tells
/// it from a successor with its number from here on, and needs no `/proc`.
pub fn kill(pid: i32) -> Result<(), Fatal> {
    let process = match sys::pidfd_open(pid, 0) {
        Err(Errno::ESRCH) => return Ok(()),
        other => other.map_err(Fatal::system("pidfd_open(2)"))?,
    };
    match sys::pidfd_kill(&process) {
        Err(Errno::ESRCH) => return Ok(()),
        other => other.map_err(Fatal::system("pidfd_send_signal(2)"))?,
    }
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::from(PATIENCE);
    match sys::retry(|| poll(&mut ended, patience)) {
        Ok(0) => Err(Fatal {
            exit: Exit::System,
            doing: "SIGKILL was sent, and it has not ended yet",
            source: None,
        }),
        other => other.map(drop).map_err(Fatal::system("poll(2)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_process_has_ended_when_it_says_so() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(kill(pid).is_ok());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        // It is waited for now, so that nobody has the number.
        assert!(kill(pid).is_ok());
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for pid in [0, -1, i32::MIN] {
            assert_eq!(kill(pid).unwrap_err().source, Some(Errno::EINVAL));
        }
    }
}
