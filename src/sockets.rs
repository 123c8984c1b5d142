//! The open sockets by handle, and the windows that bound how much is read from them.

use crate::netlink::Socket;
use crate::protocol::Handle;
use std::collections::HashMap;

/// What a datagram costs beyond its length, in bytes: about the memory of its message in the VM.
pub const OVERHEAD: u64 = 300;

/// How many bytes may still be read: the bytes granted since the beginning, less those read. An open window
/// admits one datagram of any size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    granted: u64,
    charged: u64,
}

impl Window {
    /// A window with its first grant.
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

    /// Raises the grant. Grants count from the beginning, so that a grant which comes late changes nothing.
    pub fn grant(&mut self, granted: u64) {
        self.granted = self.granted.max(granted);
    }

    /// The bytes granted since the beginning.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// The bytes charged since the beginning.
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
    /// Whether epoll polls it: only while its window is open. Otherwise a socket with an error would wake the
    /// loop again and again, since EPOLLERR cannot be masked.
    pub watched: bool,
    /// Whether datagrams were read since the queue was last seen empty. Such a socket is due: losses are
    /// reported when the queue is seen empty, and epoll does not report a queue that has just been emptied.
    pub undrained: bool,
    /// Whether a request was sent on it and the answer is expected at once.
    pub answer_expected: bool,
    /// Whether its namespace is gone. The socket is closed once its queue is read, or its window used up.
    pub leaving: bool,
    /// Whether it is on the loop's list of sockets that are read before the next wait.
    pub due: bool,
}

/// The open sockets by handle.
#[derive(Debug, Default)]
pub struct Sockets {
    entries: HashMap<Handle, Entry>,
    newest: Option<Handle>,
}

impl Sockets {
    /// Whether a new socket may have `handle`: handles only go up.
    pub fn is_fresh(&self, handle: Handle) -> bool {
        self.newest.is_none_or(|newest| handle > newest)
    }

    /// Marks `handle` as used, also if its socket cannot be opened.
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

    /// Removes a socket. Dropping the entry closes the socket.
    pub fn remove(&mut self, handle: Handle) -> Option<Entry> {
        self.entries.remove(&handle)
    }

    /// How many sockets are open.
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
