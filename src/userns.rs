//! The way into a network namespace whose user namespace is not this program's: a child of one
//! thread joins the user namespace first, which gives it every capability there, makes the socket
//! and passes it back. user_namespaces(7).
//!
//! The parent stays where it is and gains nothing; what the child has become ends with it.

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

/// Makes a socket by `work` in the network namespace `netns`, after joining `owner`.
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
            // So that the end of the child is the end of what it has to say.
            drop(there);
            let heard = hear(&here);
            let _status = sys::retry(|| waitpid(child, None));
            heard
        }
    }
}

fn join(netns: &OwnedFd, owner: Option<&OwnedFd>) -> Result<(), Failure> {
    // Whoever rules the user namespace may stop this child, which must not stay behind so.
    set_pdeathsig(Signal::SIGKILL).at(Stage::Setns)?;
    if let Some(owner) = owner {
        setns(owner, CloneFlags::CLONE_NEWUSER).at(Stage::Setns)?;
        // New credentials can have undone it.
        set_pdeathsig(Signal::SIGKILL).at(Stage::Setns)?;
    }
    setns(netns, CloneFlags::CLONE_NEWNET).at(Stage::Setns)
}

/// One message: the errno, 0 with the socket beside it, and whether it was socket(2) that failed.
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
        // The child ended without a word.
        _ => Err(Failure::new(Stage::Setns, Errno::ECHILD)),
    }
}
