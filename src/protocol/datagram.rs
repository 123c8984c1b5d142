//! Frames that carry a datagram. They have a fixed prefix, so that neither side builds a term for them:
//!
//! ```text
//! send   131 104 4 97 1 98 <ref:32> 98 <handle:32> 109 <length:32> datagram
//! ask    131 104 4 97 4 98 <ref:32> 98 <handle:32> 109 <length:32> datagram
//! data   131 104 3 97 1 98 <handle:32> 109 <length:32> datagram
//! answer 131 104 3 97 3 98 <handle:32> 109 <length:32> datagram
//! data   131 104 6 97 2 98 <handle:32> 98 <group:32> 98 <nsid:32> 98 <sender:32> 109 <length:32> datagram
//! ```

use super::command::Command;
use super::{Handle, Reference};
use crate::frame::HEADER;
use crate::sys::Received;
use byteorder::{BigEndian, ByteOrder};

/// Length of the fixed prefix of a `send` frame and of an `ask` frame.
const SEND_PREFIX: usize = 20;
/// The value of a metadata field that a datagram does not have.
const ABSENT: i32 = i32::MIN;

/// Decodes a frame that is exactly a `send` or an `ask`.
pub fn parse(frame: &[u8]) -> Option<(Reference, Command<'_>)> {
    let (prefix, datagram) = frame.split_at_checked(SEND_PREFIX)?;
    match prefix {
        [131, 104, 4, 97, kind @ (1 | 4), 98, reference @ .., 98, _, _, _, _, 109, _, _, _, _]
            if reference.len() == 4 =>
        {
            let [.., h0, h1, h2, h3, _, l0, l1, l2, l3] = *prefix else {
                return None;
            };
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            let reference = BigEndian::read_u32(reference);
            let handle = Handle(u32::from_be_bytes([h0, h1, h2, h3]));
            let command = match kind {
                1 => Command::Send(handle, datagram),
                _ => Command::Ask(handle, datagram),
            };
            (length == datagram.len()).then_some((Reference(reference), command))
        }
        _ => None,
    }
}

/// The three forms of a frame that carries a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The datagram alone.
    Plain,
    /// The datagram alone, probably an answer: the VM is likely to send the next request soon.
    Answer,
    /// With metadata.
    Metadata,
}

/// The prefix of a frame that carries a datagram, the frame's header included.
#[derive(Debug)]
pub struct Prefix {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl Prefix {
    /// Length of the longest prefix.
    pub const LONGEST: usize = HEADER + 30;

    /// The length of the prefix of a form.
    pub fn length(form: Form) -> usize {
        match form {
            Form::Plain | Form::Answer => HEADER + 15,
            Form::Metadata => Self::LONGEST,
        }
    }

    /// The prefix of one datagram.
    pub fn of(handle: Handle, form: Form, received: &Received) -> Self {
        let mut prefix = Self {
            bytes: [0; Self::LONGEST],
            length: 0,
        };
        let total = Self::length(form) - HEADER + received.length;
        prefix.put(&(total as u32).to_be_bytes());
        prefix.put(match form {
            Form::Plain => &[131, 104, 3, 97, 1],
            Form::Metadata => &[131, 104, 6, 97, 2],
            Form::Answer => &[131, 104, 3, 97, 3],
        });
        prefix.put_integer(handle.0 as i32);
        if form == Form::Metadata {
            prefix.put_integer(received.group.map_or(ABSENT, |group| group as i32));
            prefix.put_integer(received.nsid.unwrap_or(ABSENT));
            prefix.put_integer(received.sender as i32);
        }
        prefix.put(&[109]);
        prefix.put(&(received.length as u32).to_be_bytes());
        prefix
    }

    /// The bytes of the prefix.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn put_integer(&mut self, value: i32) {
        self.put(&[98]);
        self.put(&value.to_be_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(bytes);
            self.length = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::vector;

    #[test]
    fn datagrams_match_their_vectors() {
        let received = Received {
            length: 4,
            sender: 0,
            group: None,
            nsid: None,
        };
        let frame = |form, received: &Received| {
            let mut frame = Prefix::of(Handle(7), form, received).bytes().to_vec();
            assert_eq!(frame.len(), Prefix::length(form));
            frame.extend(b"\x00\x01\x02\xff");
            frame.split_off(HEADER)
        };
        assert_eq!(frame(Form::Plain, &received), vector("data"));
        assert_eq!(frame(Form::Answer, &received), vector("data answer"));
        let absent = vector("data metadata absent");
        assert_eq!(frame(Form::Metadata, &received), absent);
        let received = Received {
            length: 4,
            sender: 0xFFFF_FFFE,
            group: Some(33),
            nsid: Some(-1),
        };
        assert_eq!(frame(Form::Metadata, &received), vector("data metadata"));
    }
}
