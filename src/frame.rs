//! `<packet,4>` buffering in both directions: the inbox finds frames in the bytes that were read, and the outbox
//! is one arena of frames to be written. Its only system calls are read(2) and write(2).
//!
//! A datagram is received into the arena, behind room for its prefix. So it is never copied, and one write(2)
//! carries many frames.

use crate::sys;
use byteorder::{BigEndian, ByteOrder};
use nix::errno::Errno;
use nix::unistd::{read, write};
use std::os::fd::AsFd;

/// Length of the header of a frame: its length, big-endian.
pub const HEADER: usize = 4;
/// Longest frame that is taken from standard input, without its header. Checked before anything is allocated.
pub const MAX_FRAME: usize = 16 * 1024 * 1024 + 64;
/// How many bytes one read(2) takes from standard input.
const READ: usize = 256 * 1024;
/// The inbox keeps up to this many times its usual size, so that frames of about a megabyte do not cost new pages
/// each. A larger buffer shrinks after its frame.
const KEPT: usize = 5;
/// The bytes of the arena that are kept free for answers to commands, so that a flood of datagrams does not stop
/// them. No answer is longer than [`MAX_REPLY`].
const REPLIES: usize = 512 * 1024;
/// Longest answer to a command.
pub const MAX_REPLY: usize = 128 * 1024;

/// A frame announces more than [`MAX_FRAME`] bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

/// Bytes read from standard input, and the frames in them.
#[derive(Debug)]
pub struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The size of the buffer while no longer frame comes in.
    usual: usize,
    /// The longest frame that it takes, without its header.
    longest: usize,
}

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Self {
        Self::sized(READ, MAX_FRAME)
    }

    /// An empty inbox of the size `usual`, which takes frames of up to `longest` bytes.
    pub fn sized(usual: usize, longest: usize) -> Self {
        Self {
            buffer: vec![0; usual],
            start: 0,
            end: 0,
            usual,
            longest,
        }
    }

    /// One `read(2)`; returns how many bytes came, 0 at the end of the input. The caller has taken all whole
    /// frames, so that there is room.
    pub fn fill(&mut self, from: impl AsFd) -> Result<usize, Errno> {
        self.make_room();
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let count = sys::retry(|| read(from.as_fd(), room))?;
        self.end += count;
        Ok(count)
    }

    /// The next whole frame, without its header.
    pub fn next(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let Some(length) = self.announced()? else {
            return Ok(None);
        };
        if self.end - self.start < HEADER + length {
            return Ok(None);
        }
        let from = self.start + HEADER;
        self.start = from + length;
        Ok(self.buffer.get(from..self.start))
    }

    /// The length of the frame at the front, if its whole header has come.
    fn announced(&self) -> Result<Option<usize>, TooLong> {
        match self.buffer.get(self.start..self.end) {
            Some(bytes) if bytes.len() >= HEADER => {
                let length = BigEndian::read_u32(bytes) as usize;
                if length > self.longest {
                    return Err(TooLong);
                }
                Ok(Some(length))
            }
            _ => Ok(None),
        }
    }

    /// Moves the remaining bytes to the front, and fits the buffer to the frame that is coming in.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let wanted = match self.announced() {
            Ok(Some(length)) => self.usual.max(HEADER + length),
            _ => self.usual,
        };
        if self.buffer.len() < wanted {
            self.buffer.reserve_exact(wanted - self.buffer.len());
            self.buffer.resize(wanted, 0);
        } else if self.end <= self.usual && self.buffer.len() > wanted.max(KEPT * self.usual) {
            self.buffer.truncate(wanted);
            self.buffer.shrink_to_fit();
        }
    }
}

/// The arena of frames to be written to standard output.
#[derive(Debug)]
pub struct Outbox {
    buffer: Vec<u8>,
    head: usize,
    tail: usize,
    datagram: usize,
}

impl Outbox {
    /// An empty arena that takes datagrams of up to `datagram` bytes. Its pages take no memory before they are
    /// first written.
    pub fn new(datagram: usize) -> Self {
        Self {
            buffer: vec![0; Self::size(datagram)],
            head: 0,
            tail: 0,
            datagram,
        }
    }

    /// The size of an arena: two datagrams of the largest size, their prefixes, and the answers.
    fn size(datagram: usize) -> usize {
        2 * datagram + 4096 + REPLIES
    }

    /// How many bytes wait to be written.
    pub fn pending(&self) -> usize {
        self.tail - self.head
    }

    /// Whether one more answer fits.
    pub fn has_room_for_reply(&self) -> bool {
        self.pending() + MAX_REPLY + HEADER <= self.buffer.len()
    }

    /// Whether one more datagram of the largest size fits without the room that is kept for answers.
    pub fn has_room_for_datagram(&self) -> bool {
        self.pending() + self.datagram + 2048 + REPLIES <= self.buffer.len()
    }

    /// Appends a whole frame. The caller has checked [`Self::has_room_for_reply`].
    pub fn push(&mut self, payload: &[u8]) {
        self.compact(HEADER + payload.len());
        let tail = self.tail;
        if let Some(room) = self.buffer.get_mut(tail..tail + HEADER + payload.len()) {
            let (header, body) = room.split_at_mut(HEADER);
            BigEndian::write_u32(header, payload.len() as u32);
            body.copy_from_slice(payload);
            self.tail += HEADER + payload.len();
        }
    }

    /// Room for the largest datagram, behind `prefix` bytes that are left free for the prefix of its frame.
    pub fn datagram_room(&mut self, prefix: usize) -> &mut [u8] {
        self.compact(prefix + self.datagram);
        let from = self.tail + prefix;
        self.buffer
            .get_mut(from..from + self.datagram)
            .unwrap_or_default()
    }

    /// Makes a frame of the datagram that was received into [`Self::datagram_room`]. `prefix` is the frame up to
    /// the datagram, its header included.
    pub fn commit(&mut self, prefix: &[u8], length: usize) {
        let tail = self.tail;
        if let Some(room) = self.buffer.get_mut(tail..tail + prefix.len()) {
            room.copy_from_slice(prefix);
            self.tail += prefix.len() + length;
        }
    }

    /// Grows the arena for datagrams of up to `datagram` bytes.
    pub fn grow(&mut self, datagram: usize) {
        if datagram > self.datagram {
            self.datagram = datagram;
            self.buffer.resize(Self::size(datagram), 0);
        }
    }

    /// Writes as much as the pipe takes.
    pub fn flush(&mut self, to: impl AsFd) -> Result<(), Errno> {
        while self.pending() > 0 {
            let bytes = self.buffer.get(self.head..self.tail).unwrap_or_default();
            match sys::retry(|| write(to.as_fd(), bytes)) {
                Ok(count) => self.head += count,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        self.head = 0;
        self.tail = 0;
        Ok(())
    }

    /// Moves the remaining bytes to the front if `wanted` more do not fit behind them.
    fn compact(&mut self, wanted: usize) {
        if self.tail + wanted > self.buffer.len() {
            self.buffer.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        BigEndian::write_u32(&mut bytes, payload.len() as u32);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn frames_survive_any_split() {
        let frames: [&[u8]; 4] = [b"", b"a", b"four", &[7; 300]];
        let bytes: Vec<u8> = frames.iter().flat_map(|f| framed(f)).collect();
        for step in 1..=bytes.len() {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let mut inbox = Inbox::new();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(step) {
                write(&writer, chunk).unwrap();
                inbox.fill(&reader).unwrap();
                while let Some(frame) = inbox.next().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            assert_eq!(seen, frames);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_allocates_nothing() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut inbox = Inbox::new();
        write(&writer, &[255; 8]).unwrap();
        inbox.fill(&reader).unwrap();
        assert_eq!(inbox.next(), Err(TooLong));
        inbox.make_room();
        assert_eq!(inbox.buffer.len(), READ);
    }

    #[test]
    fn a_large_frame_is_taken_and_its_room_given_back() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let payload = vec![9; (KEPT + 1) * READ];
        let bytes = framed(&payload);
        let feeder = std::thread::spawn(move || {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let count = write(&writer, rest).unwrap();
                rest = &rest[count..];
            }
        });
        let mut inbox = Inbox::new();
        loop {
            assert!(inbox.fill(&reader).unwrap() > 0);
            if let Some(frame) = inbox.next().unwrap() {
                assert_eq!(frame, payload);
                break;
            }
        }
        feeder.join().unwrap();
        inbox.make_room();
        assert_eq!(inbox.buffer.len(), READ);
    }

    #[test]
    fn answers_have_room_when_datagrams_have_none() {
        let mut outbox = Outbox::new(64 * 1024);
        let prefix = [0; 19];
        while outbox.has_room_for_datagram() {
            assert_eq!(outbox.datagram_room(prefix.len()).len(), 64 * 1024);
            outbox.commit(&prefix, 60 * 1024);
        }
        assert!(outbox.has_room_for_reply());
        let before = outbox.pending();
        outbox.push(b"answer");
        assert_eq!(outbox.pending(), before + HEADER + 6);
    }

    #[test]
    fn what_is_written_is_what_was_put_in() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut outbox = Outbox::new(100);
        let mut expected = Vec::new();
        let mut seen = Vec::new();
        for round in 0..2000_usize {
            let payload = vec![round as u8; round];
            outbox.push(&payload);
            expected.extend(framed(&payload));
            outbox.flush(&writer).unwrap();
            let mut chunk = [0; 1500];
            if let Ok(count) = read(&reader, &mut chunk) {
                seen.extend_from_slice(&chunk[..count]);
            }
            if !outbox.has_room_for_reply() {
                break;
            }
        }
        while seen.len() < expected.len() {
            outbox.flush(&writer).unwrap();
            let mut chunk = [0; 65536];
            let count = read(&reader, &mut chunk).unwrap();
            seen.extend_from_slice(&chunk[..count]);
        }
        assert_eq!(seen, expected);
    }
}
