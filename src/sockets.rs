//! The open sockets by handle, and the windows that bound how much is read from them.

use crate::netlink::Socket;
use crate::protocol::Handle;
use std::collections::HashMap;

/// What a datagram costs beyond its length: about what it takes in the VM.
pub const OVERHEAD: u64 = 300;

/// How much may still be read: what was granted since the beginning, less what was read. While it
/// is open it admits one datagram of any size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    granted: u64,
    charged: u64,
}

impl Window {
    /// A window of its first grant.
    pub fn new(granted: u64) -> Self {
        Self {
            granted,
            charged: 0,
        }
    }

    /// Whether one more datagram may be read.
    pub fn is_open(&self) -> bool {
        self.charged < self.granted
    }

    /// Charges a datagram of `length` bytes.
    pub fn charge(&mut self, length: usize) {
        self.charged = self.charged.saturating_add(length as u64 + OVERHEAD);
    }

    /// Raises the grant. It is cumulative, so one that comes late changes nothing.
    pub fn grant(&mut self, granted: u64) {
        self.granted = self.granted.max(granted);
    }

    /// What was granted since the beginning.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// What was charged since the beginning.
    pub fn charged(&self) -> u64 {
        self.charged
    }
}

/// A socket in the table.
#[derive(Debug)]
pub struct Entry {
    /// The socket.
    pub socket: Socket,
    /// Its window.
    pub window: Window,
    /// Whether epoll watches it: only while its window is open. A socket with nothing to read but
    /// an error would wake the loop again and again, since EPOLLERR cannot be masked.
    pub watched: bool,
    /// Whether datagrams were read since the queue was last seen empty. Only then are losses told;
    /// and epoll says nothing of a queue that has just been emptied, so such a socket is due.
    pub undrained: bool,
    /// Whether a request was sent on it whose answer is about to be there.
    pub asked: bool,
    /// Whether its namespace is gone: it is closed once what the kernel has queued is read, or its
    /// window is used up.
    pub leaving: bool,
    /// Whether the loop has it on its list of those to be read again without being woken.
    pub due: bool,
}

/// The open sockets by handle.
#[derive(Debug, Default)]
pub struct Sockets {
    entries: HashMap<Handle, Entry>,
    newest: Option<Handle>,
}

impl Sockets {
    /// Whether `handle` may be given to a new socket: handles only ever go up.
    pub fn is_fresh(&self, handle: Handle) -> bool {
        self.newest.is_none_or(|newest| handle > newest)
    }

    /// Marks `handle` as used, whether its socket comes to be or not.
    pub fn reserve(&mut self, handle: Handle) {
        self.newest = Some(handle);
    }

    /// Adds a socket.
    pub fn insert(&mut self, handle: Handle, entry: Entry) {
        self.entries.insert(handle, entry);
    }

    /// Finds a socket.
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut Entry> {
        self.entries.get_mut(&handle)
    }

    /// Takes a socket out; dropping it closes it.
    pub fn remove(&mut self, handle: Handle) -> Option<Entry> {
        self.entries.remove(&handle)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_window_admits_one_datagram_of_any_size() {
        let mut window = Window::new(1);
        assert!(window.is_open());
        window.charge(1 << 20);
        assert!(!window.is_open());
        window.grant((1 << 20) + OVERHEAD);
        assert!(!window.is_open());
        window.grant((1 << 20) + OVERHEAD + 1);
        assert!(window.is_open());
    }

    #[test]
    fn a_late_grant_changes_nothing() {
        let mut window = Window::new(1000);
        window.grant(10);
        assert_eq!(window.granted(), 1000);
    }

    #[test]
    fn handles_only_go_up() {
        let mut sockets = Sockets::default();
        assert!(sockets.is_fresh(Handle(0)));
        sockets.reserve(Handle(5));
        assert!(!sockets.is_fresh(Handle(5)));
        assert!(!sockets.is_fresh(Handle(4)));
        assert!(sockets.is_fresh(Handle(6)));
    }
}
