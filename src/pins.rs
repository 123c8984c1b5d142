//! Pins: namespace files that are held open, so that a netlink message can name a namespace by a descriptor, as
//! IFLA_NET_NS_FD does. The kernel looks the number up in the descriptor table of the process that calls
//! sendmsg(2), which is this program. rtnetlink(7), namespaces(7).
//!
//! Invariant: the numbers of pins go up, so that the number of an ended pin is EBADF to the kernel and not
//! another namespace. The numbers start again only at the end of their range.

use crate::protocol::Handle;
use crate::sys;
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The lowest number of a pin, above the small numbers that messages contain by mistake.
const FIRST: RawFd = 4096;
/// The numbers of pins stay below this, since the kernel's table of descriptors takes eight bytes for each number
/// up to the highest.
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
    /// No pins, in a program whose limit of descriptors is `max_fds`.
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

    /// Holds a namespace file. Returns the descriptor that stands for it from now on.
    pub fn hold(&mut self, handle: Handle, file: OwnedFd) -> Result<RawFd, Errno> {
        let pin = self.numbered(&file)?;
        let descriptor = pin.as_raw_fd();
        self.next = descriptor + 1;
        self.held.insert(handle, pin);
        Ok(descriptor)
    }

    /// Duplicates the file to the next number, else to the lowest free one of the range, else to any free one.
    fn numbered(&self, file: &OwnedFd) -> Result<OwnedFd, Errno> {
        let numbered = |least: RawFd| match least < self.end {
            true => sys::duplicate(file, least),
            false => Err(Errno::EMFILE),
        };
        numbered(self.next)
            .or_else(|_| numbered(self.first))
            .or_else(|_| numbered(0))
    }

    /// Ends the pin of a handle. Returns whether there was one.
    pub fn end(&mut self, handle: Handle) -> bool {
        self.held.remove(&handle).is_some()
    }

    /// How many pins there are.
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
