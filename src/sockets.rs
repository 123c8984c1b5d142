//! The open sockets by handle, and the windows that bound how much is read from them.

use crate::netlink_socket::Socket;
use crate::protocol::Handle;
use byteorder::{ByteOrder, NativeEndian};
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

/// Requests whose answers have not been read yet. It decides only whether a socket is read once more or left to
/// epoll, so that a wrong guess costs a system call and nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Requests that one datagram answers.
    plain: u32,
    /// Requests with `NLM_F_ACK`: NLMSG_ERROR, or NLMSG_DONE of a dump, is the last datagram of the answer.
    acked: u32,
    /// Whether a datagram had more than one message. The queue is read until it is empty.
    many: bool,
    /// Whether the last request was an `ask`: its caller spins for the answer, and the server need not.
    awaited: bool,
}

impl Asked {
    /// A datagram was sent, by an `ask` if it is `awaited`.
    pub fn sent(&mut self, datagram: &[u8], awaited: bool) {
        self.awaited = awaited;
        let header = Header::of(datagram);
        let count = match header.flags & NLM_F_ACK != 0 {
            true => &mut self.acked,
            false => &mut self.plain,
        };
        *count = count.saturating_add(1);
        self.many |= (1..datagram.len()).contains(&header.length);
    }

    /// A datagram was received.
    pub fn received(&mut self, datagram: &[u8]) {
        let header = Header::of(datagram);
        let ends = matches!(header.kind, NLMSG_ERROR | NLMSG_DONE);
        if !ends && header.flags & NLM_F_MULTI != 0 {
            return;
        }
        if self.acked == 0 || (!ends && self.plain > 0) {
            self.plain = self.plain.saturating_sub(1);
        } else if ends {
            self.acked -= 1;
        }
    }

    /// Whether the server is told that a datagram is an answer.
    pub fn announces(&self) -> bool {
        self.expects() && !self.awaited
    }

    /// Whether an answer, or a part of one, is expected at once.
    pub fn expects(&self) -> bool {
        self.plain > 0 || self.acked > 0 || self.many
    }
}

const NLM_F_MULTI: u16 = libc::NLM_F_MULTI as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// The first header of a datagram, struct nlmsghdr of include/uapi/linux/netlink.h. Zeroes if it is cut.
#[derive(Default)]
struct Header {
    length: usize,
    kind: u16,
    flags: u16,
}

impl Header {
    fn of(datagram: &[u8]) -> Self {
        let Some((header, _)) = datagram.split_at_checked(8) else {
            return Self::default();
        };
        let (length, rest) = header.split_at(4);
        let (kind, flags) = rest.split_at(2);
        Self {
            length: NativeEndian::read_u32(length) as usize,
            kind: NativeEndian::read_u16(kind),
            flags: NativeEndian::read_u16(flags),
        }
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
    /// The requests that were sent on it and whose answers are expected at once.
    pub asked: Asked,
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

    fn message(kind: u16, flags: u16) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[0..4].copy_from_slice(&16_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    /// Whether more is expected after each of the received messages.
    fn expects(sent: &[Vec<u8>], received: &[Vec<u8>]) -> Vec<bool> {
        let mut asked = Asked::default();
        for datagram in sent {
            asked.sent(datagram, false);
        }
        let mut expects = vec![asked.expects()];
        for datagram in received {
            asked.received(datagram);
            expects.push(asked.expects());
        }
        expects
    }

    #[test]
    fn the_answer_to_an_ask_is_not_announced() {
        let mut asked = Asked::default();
        for awaited in [true, false] {
            asked.sent(&message(18, 1), awaited);
            assert!(asked.expects());
            assert_eq!(asked.announces(), !awaited);
        }
    }

    #[test]
    fn an_answer_without_an_ack_is_one_datagram() {
        let (get, new) = (message(18, 1), message(16, 0));
        assert_eq!(expects(&[], std::slice::from_ref(&new)), [false, false]);
        let answers = [new.clone(), message(NLMSG_ERROR, 0), new];
        assert_eq!(
            expects(&[get.clone(), get], &answers),
            [true, true, false, false]
        );
    }

    #[test]
    fn an_answer_with_an_ack_ends_with_the_ack() {
        let get = message(18, 1 | NLM_F_ACK);
        let answers = [message(16, 0), message(NLMSG_ERROR, 0)];
        assert_eq!(expects(&[get], &answers), [true, true, false]);
    }

    #[test]
    fn answers_of_both_kinds_are_told_apart_by_their_last_datagram() {
        let asked = [message(18, 1 | NLM_F_ACK), message(18, 1)];
        let answers = [message(16, 0), message(16, 0), message(NLMSG_ERROR, 0)];
        assert_eq!(expects(&asked, &answers), [true, true, true, false]);
    }

    #[test]
    fn an_answer_of_several_datagrams_is_read_to_its_end() {
        let dump = message(18, 0x301);
        let part = message(16, NLM_F_MULTI);
        let answers = [part.clone(), part, message(NLMSG_DONE, NLM_F_MULTI)];
        assert_eq!(expects(&[dump], &answers), [true, true, true, false]);
    }

    #[test]
    fn the_answers_to_several_messages_are_read_until_there_are_no_more() {
        let both = [message(18, 1), message(18, 1 | NLM_F_ACK)].concat();
        let answers = [message(16, 0), message(16, 0), message(NLMSG_ERROR, 0)];
        assert_eq!(expects(&[both], &answers), [true; 4]);
    }

    #[test]
    fn a_datagram_without_a_whole_header_is_a_request_like_others() {
        assert_eq!(expects(&[vec![1, 2]], &[vec![]]), [true, false]);
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
