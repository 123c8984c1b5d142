//! Pins: namespace files that are held open, so that a message of this program can name a namespace
//! by a descriptor, as IFLA_NET_NS_FD does. The kernel looks the number up in the table of whoever
//! calls sendmsg(2). rtnetlink(7), namespaces(7).
//!
//! Invariant: numbers go up, so that the number of a pin that has ended is EBADF to the kernel and not
//! another namespace. Only when they have reached the end of their range do they begin anew.

use crate::protocol::Handle;
use crate::sys;
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The lowest number of a pin, above what is written by mistake.
const FIRST: RawFd = 4096;
/// The numbers of pins stay below this. The kernel's table of descriptors has eight bytes for each
/// number up to the highest.
const END: RawFd = 1 << 20;

/// The namespace files that are held, by handle.
#[derive(Debug)]
pub struct Pins {
    held: HashMap<Handle, OwnedFd>,
    first: RawFd,
    next: RawFd,
    end: RawFd,
}

impl Pins {
    /// No pins, in a program that may have so many descriptors.
    pub fn new(max_fds: u64) -> Self {
        let end = RawFd::try_from(max_fds).unwrap_or(END).min(END);
        let first = if end >= 2 * FIRST { FIRST } else { end / 2 };
        Self {
            held: HashMap::new(),
            first,
            next: first,
            end,
        }
    }

    /// Holds a namespace file, and tells the descriptor that stands for it from now on.
    pub fn hold(&mut self, handle: Handle, file: OwnedFd) -> Result<RawFd, Errno> {
        let pin = self.numbered(&file)?;
        let descriptor = pin.as_raw_fd();
        self.next = descriptor + 1;
        self.held.insert(handle, pin);
        Ok(descriptor)
    }

    /// At the next number, else at the first of the range, else at any that is free.
    fn numbered(&self, file: &OwnedFd) -> Result<OwnedFd, Errno> {
        let numbered = |least: RawFd| match least < self.end {
            true => sys::duplicate(file, least),
            false => Err(Errno::EMFILE),
        };
        numbered(self.next)
            .or_else(|_| numbered(self.first))
            .or_else(|_| numbered(0))
    }

    /// Ends a pin, if the handle is that of one.
    pub fn end(&mut self, handle: Handle) -> bool {
        self.held.remove(&handle).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn file() -> OwnedFd {
        File::open("/proc/self/ns/net").unwrap().into()
    }

    #[test]
    fn a_number_is_not_used_again_before_the_range_ends() {
        let mut pins = Pins::new(1024);
        let mut hold = |handle| {
            let descriptor = pins.hold(Handle(handle), file()).unwrap();
            assert!(pins.end(Handle(handle)));
            descriptor
        };
        let descriptors: Vec<RawFd> = (0..512).map(&mut hold).collect();
        assert_eq!(descriptors, (512..1024).collect::<Vec<_>>());
        assert_eq!(hold(512), 512);
    }

    #[test]
    fn numbers_begin_above_those_written_by_mistake() {
        let first = |max_fds| Pins::new(max_fds).first;
        assert_eq!(first(1 << 30), FIRST);
        assert_eq!(first(u64::MAX), FIRST);
        assert_eq!(first(64), 32);
    }

    #[test]
    fn what_is_full_above_is_looked_for_below() {
        let mut pins = Pins::new(1024);
        pins.next = 1024;
        pins.first = 1024;
        assert!(pins.hold(Handle(1), file()).unwrap() < 1024);
        assert_eq!(pins.len(), 1);
        assert!(!pins.end(Handle(2)));
    }
}
