//! Kills another process: for a VM that has neither a shell nor kill(1), and whose helper does not answer. kill(2)
//! requires the same user. The capabilities of this program's executable do not change that, since CAP_KILL is not
//! among them.

use crate::error::{Exit, Fatal};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::AsFd;

/// How long to wait for the end of the process, in ms.
const PATIENCE: u16 = 1_000;

/// Sends SIGKILL and waits until the process has ended. A process that does not exist has ended. From the open of
/// the pidfd on no later process with the same number can be hit, and no `/proc` is needed.
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
        // It has been waited for, so that no process has the number.
        assert!(kill(pid).is_ok());
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for pid in [0, -1, i32::MIN] {
            assert_eq!(kill(pid).unwrap_err().source, Some(Errno::EINVAL));
        }
    }
}
