//! The way into a network namespace of another user namespace. A child process joins the user namespace, which
//! gives it every capability there. Then it enters the network namespace, makes the socket, passes it back and
//! ends. user_namespaces(7).
//!
//! The parent joins nothing and gains no capability.

use crate::error::{At, Failure, Stage};
use crate::sys;
use byteorder::{ByteOrder, NativeEndian};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sched::{setns, CloneFlags};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
    SockFlag, SockType,
};
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Makes a socket by `work` in the network namespace `netns`, after joining the user namespace `owner`. Without
/// `owner` the child stays in its own user namespace.
pub fn open(
    netns: &OwnedFd,
    owner: Option<&OwnedFd>,
    work: impl FnOnce() -> Result<OwnedFd, Failure>,
) -> Result<OwnedFd, Failure> {
    let family = AddressFamily::Unix;
    let (here, there) =
        socketpair(family, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).at(Stage::Setns)?;
    match sys::fork().at(Stage::Setns)? {
        ForkResult::Child => {
            let told = tell(&there, join(netns, owner).and_then(|()| work()));
            sys::exit_now(i32::from(told.is_err()));
        }
        ForkResult::Parent { child } => {
            // So that recvmsg(2) ends when the child does.
            drop(there);
            let heard = hear(&here);
            let _status = sys::retry(|| waitpid(child, None));
            heard
        }
    }
}

fn join(netns: &OwnedFd, owner: Option<&OwnedFd>) -> Result<(), Failure> {
    // The owner of the user namespace can stop this child, and it must not outlive the helper.
    set_pdeathsig(Signal::SIGKILL).at(Stage::Setns)?;
    if let Some(owner) = owner {
        setns(owner, CloneFlags::CLONE_NEWUSER).at(Stage::Setns)?;
        // The new credentials may have undone it.
        set_pdeathsig(Signal::SIGKILL).at(Stage::Setns)?;
    }
    setns(netns, CloneFlags::CLONE_NEWNET).at(Stage::Setns)
}

/// Sends one message: the errno, or 0 and the socket by SCM_RIGHTS; and whether it was socket(2) that failed.
fn tell(to: &OwnedFd, outcome: Result<OwnedFd, Failure>) -> Result<(), Errno> {
    let (stage, errno) = match &outcome {
        Ok(_) => (Stage::Setns, 0),
        Err(failure) => (failure.stage, failure.errno as i32),
    };
    let mut message = [0, 0, 0, 0, u8::from(stage == Stage::Socket)];
    NativeEndian::write_i32(&mut message, errno);
    let socket: Vec<RawFd> = outcome.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&socket)];
    let rights = if socket.is_empty() { &[][..] } else { &rights };
    let (fd, none) = (to.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
    sendmsg::<()>(fd, &[IoSlice::new(&message)], rights, none, None).map(drop)
}

fn hear(from: &OwnedFd) -> Result<OwnedFd, Failure> {
    let mut message = [0; 5];
    let mut vector = [IoSliceMut::new(&mut message)];
    let mut room = cmsg_space!(RawFd);
    let (fd, flags) = (from.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
    let received = loop {
        match recvmsg::<()>(fd, &mut vector, Some(&mut room), flags) {
            Err(Errno::EINTR) => {}
            other => break other.at(Stage::Setns)?,
        }
    };
    let length = received.bytes;
    let mut passed = None;
    for control in received.cmsgs().at(Stage::Setns)? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            passed = fds.first().copied();
        }
    }
    let [errno @ .., in_socket] = message;
    match (length, NativeEndian::read_i32(&errno), passed) {
        (5, 0, Some(fd)) => sys::passed(fd).at(Stage::Socket),
        (5, errno, None) if errno != 0 => {
            let stage = match in_socket {
                0 => Stage::Setns,
                _ => Stage::Socket,
            };
            Err(Failure::new(stage, Errno::from_raw(errno)))
        }
        // The child ended without a message.
        _ => Err(Failure::new(Stage::Setns, Errno::ECHILD)),
    }
}
