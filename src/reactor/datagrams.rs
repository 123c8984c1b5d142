//! Reads the sockets that are due, and forwards their datagrams, losses and errors to the VM.

use super::State;
use crate::error::{Failure, Stage};
use crate::frame::MAX_FRAME;
use crate::netlink_socket::Arrival;
use crate::poller::Poller;
use crate::protocol::datagram::{Form, Prefix};
use crate::protocol::{event, Handle};
use crate::sockets::Asked;
use nix::errno::Errno;

/// Largest size that the receive buffer grows to: a frame must not exceed the limit of the VM's side.
const MAX_DATAGRAM: usize = 16 << 20;
/// How many datagrams are read from one socket before the next socket has its turn.
const TURN: usize = 64;
// The largest datagram fits into a frame.
const _: () = assert!(MAX_DATAGRAM + Prefix::LONGEST <= MAX_FRAME);

impl State {
    /// Reads one socket until it is empty, has had its turn, or may no longer be read.
    pub(super) fn read(&mut self, poller: &Poller, handle: Handle) {
        for _ in 0..TURN {
            if !self.may_read() {
                break;
            }
            let Some(entry) = self.sockets.get_mut(handle) else {
                return;
            };
            if !entry.window.is_open() {
                return match entry.leaving {
                    true => self.close_gone(handle),
                    false => poller.watch(handle, entry),
                };
            }
            let asked = entry.asked.expects();
            let form = match (entry.socket.metadata(), entry.asked.announces()) {
                (true, _) => Form::Metadata,
                (false, true) => Form::Answer,
                (false, false) => Form::Plain,
            };
            let room = self.outbox.datagram_room(Prefix::length(form));
            entry.undrained = true;
            match entry.socket.receive(room) {
                Arrival::Datagram(received) => {
                    entry.window.charge(received.length);
                    self.window.charge(received.length);
                    let datagram = room.get(..received.length).unwrap_or_default();
                    entry.asked.received(datagram);
                    let prefix = Prefix::of(handle, form, &received);
                    self.outbox.commit(prefix.bytes(), received.length);
                    // Epoll tells if more follow than was expected, which is cheaper than a failing read.
                    let last = asked && !entry.asked.expects();
                    if last && !entry.socket.in_doubt() && !entry.leaving {
                        entry.undrained = false;
                        return poller.watch(handle, entry);
                    }
                }
                Arrival::Foreign | Arrival::Overrun => {}
                Arrival::Drained(lost) => {
                    entry.undrained = false;
                    entry.asked = Asked::default();
                    if lost > 0 {
                        self.outbox.push(&event::overrun(handle, lost));
                    }
                    if entry.leaving {
                        self.close_gone(handle);
                    }
                    return;
                }
                // A failure costs as an empty datagram does: without a bound a receive that fails again and again would
                // fill the VM's memory.
                Arrival::Truncated(length) => {
                    entry.window.charge(0);
                    self.window.charge(0);
                    let failure = Failure::new(Stage::Recv, Errno::EMSGSIZE);
                    self.outbox.push(&event::failed(handle, &failure, length));
                    self.outbox
                        .grow(length.next_power_of_two().min(MAX_DATAGRAM));
                }
                Arrival::Failed(errno) => {
                    entry.window.charge(0);
                    self.window.charge(0);
                    let failure = Failure::new(Stage::Recv, errno);
                    self.outbox.push(&event::failed(handle, &failure, 0));
                    if entry.leaving {
                        return self.close_gone(handle);
                    }
                }
            }
        }
        self.make_due(handle);
    }

    /// Makes sockets whose namespace is gone take in nothing more, and reads them for the last time.
    pub(super) fn shut_gone(&mut self) {
        for handle in self.watches.gone(self.home.privileges()) {
            if let Some(entry) = self.sockets.get_mut(handle) {
                entry.socket.shut();
                entry.leaving = true;
                entry.undrained = true;
            }
            self.make_due(handle);
        }
    }

    /// Closes a socket whose namespace is gone. The event comes after all datagrams of the socket.
    fn close_gone(&mut self, handle: Handle) {
        drop(self.sockets.remove(handle));
        self.outbox.push(&event::gone(handle));
    }

    /// Makes a socket due before the next wait: the kernel has answered most requests before sendmsg(2) returns.
    pub(super) fn expect_answer(&mut self, handle: Handle, datagram: &[u8], awaited: bool) {
        if let Some(entry) = self.sockets.get_mut(handle) {
            entry.undrained = true;
            entry.asked.sent(datagram, awaited);
        }
        self.make_due(handle);
    }

    /// Makes a socket due if it may be read and its queue has not been seen empty.
    pub(super) fn make_due(&mut self, handle: Handle) {
        if let Some(entry) = self.sockets.get_mut(handle) {
            let readable = entry.window.is_open() || entry.leaving;
            if entry.undrained && readable && !entry.due {
                entry.due = true;
                self.due.push(handle);
            }
        }
    }

    /// Takes the list of due sockets, or none while no socket may be read.
    pub(super) fn take_due(&mut self) -> Vec<Handle> {
        if !self.may_read() {
            return Vec::new();
        }
        let due = std::mem::replace(&mut self.due, std::mem::take(&mut self.spare));
        for handle in &due {
            if let Some(entry) = self.sockets.get_mut(*handle) {
                entry.due = false;
            }
        }
        due
    }
}
