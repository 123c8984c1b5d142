//! External Term Format, behind a check. Bytes in, values out, without input or output.
//!
//! The decoder, the crate `erlang-term`, panics on some malformed terms, recurses as deep as the term does, and
//! takes tags that no command uses. So [`decode`] first checks the bytes itself, and passes on only terms that are
//! safe to decode: tags of an allow-list, a bounded depth and number of terms, lengths within the frame, UTF-8
//! atoms, sign bytes of 0 or 1, integers of at most 64 bits, and one term with nothing behind it.

use byteorder::{BigEndian, ByteOrder};
pub use erlang_term::RawTerm as Term;

/// How deep terms may nest. Commands nest four deep.
pub const MAX_DEPTH: usize = 8;
/// How many terms one frame may hold; the elements of a STRING_EXT count. The longest command, an open that joins
/// many groups, stays far below.
pub const MAX_TERMS: usize = 16 * 1024;

const VERSION: u8 = 131;
const SMALL_INTEGER_EXT: u8 = 97;
const INTEGER_EXT: u8 = 98;
const ATOM_EXT: u8 = 100;
const SMALL_TUPLE_EXT: u8 = 104;
const NIL_EXT: u8 = 106;
const STRING_EXT: u8 = 107;
const LIST_EXT: u8 = 108;
const BINARY_EXT: u8 = 109;
const SMALL_BIG_EXT: u8 = 110;
const SMALL_ATOM_UTF8_EXT: u8 = 119;

/// Why a frame is refused before it reaches the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It has no bytes at all.
    Empty,
    /// It does not start with the version byte, 131.
    Version,
    /// It ends in the middle of a term.
    Truncated,
    /// A tag that no command uses, such as 80, a compressed term.
    Tag,
    /// Nested too deep.
    Depth,
    /// Too many terms.
    Count,
    /// An atom that is not UTF-8.
    Atom,
    /// An integer of more than 64 bits, or with a sign byte that is neither 0 nor 1.
    Integer,
    /// A list that does not end in `[]`.
    Improper,
    /// Bytes behind the term.
    Trailing,
}

impl Malformed {
    /// The atom that tells the reason on the wire.
    pub fn atom(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Version => "version",
            Self::Truncated => "truncated",
            Self::Tag => "tag",
            Self::Depth => "depth",
            Self::Count => "count",
            Self::Atom => "atom",
            Self::Integer => "integer",
            Self::Improper => "improper",
            Self::Trailing => "trailing",
        }
    }
}

/// Checks a frame and decodes the one term in it.
pub fn decode(frame: &[u8]) -> Result<Term, Malformed> {
    check(frame)?;
    Term::from_bytes(frame).map_err(|_| Malformed::Truncated)
}

/// Encodes a term with its version byte.
pub fn encode(term: Term) -> Vec<u8> {
    term.to_bytes()
}

/// Checks a frame without allocating anything.
pub fn check(frame: &[u8]) -> Result<(), Malformed> {
    let (version, rest) = frame.split_first().ok_or(Malformed::Empty)?;
    if *version != VERSION {
        return Err(Malformed::Version);
    }
    let mut walk = Walk {
        rest,
        terms: MAX_TERMS,
    };
    walk.term(MAX_DEPTH)?;
    match walk.rest {
        [] => Ok(()),
        _ => Err(Malformed::Trailing),
    }
}

/// The bytes of a frame that are left, and how many more terms it may hold.
struct Walk<'a> {
    rest: &'a [u8],
    terms: usize,
}

impl<'a> Walk<'a> {
    fn term(&mut self, depth: usize) -> Result<(), Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed::Depth)?;
        self.count(1)?;
        match self.byte()? {
            SMALL_INTEGER_EXT => self.take(1).map(drop),
            INTEGER_EXT => self.take(4).map(drop),
            SMALL_BIG_EXT => self.small_big(),
            ATOM_EXT => {
                let length = BigEndian::read_u16(self.take(2)?);
                self.atom(length.into())
            }
            SMALL_ATOM_UTF8_EXT => {
                let length = self.byte()?;
                self.atom(length.into())
            }
            BINARY_EXT => {
                let length = self.length()?;
                self.take(length).map(drop)
            }
            STRING_EXT => {
                let length = BigEndian::read_u16(self.take(2)?).into();
                self.count(length)?;
                self.take(length).map(drop)
            }
            NIL_EXT => Ok(()),
            SMALL_TUPLE_EXT => {
                let arity = self.byte()?;
                (0..arity).try_for_each(|_| self.term(depth))
            }
            LIST_EXT => {
                let length = self.length()?;
                if length > self.terms {
                    return Err(Malformed::Count);
                }
                (0..length).try_for_each(|_| self.term(depth))?;
                match self.byte()? {
                    NIL_EXT => Ok(()),
                    _ => Err(Malformed::Improper),
                }
            }
            _ => Err(Malformed::Tag),
        }
    }

    fn small_big(&mut self) -> Result<(), Malformed> {
        let length = self.byte()?;
        let sign = self.byte()?;
        if length > 8 || sign > 1 {
            return Err(Malformed::Integer);
        }
        self.take(length.into()).map(drop)
    }

    fn atom(&mut self, length: usize) -> Result<(), Malformed> {
        let name = self.take(length)?;
        std::str::from_utf8(name)
            .map(drop)
            .map_err(|_| Malformed::Atom)
    }

    fn count(&mut self, terms: usize) -> Result<(), Malformed> {
        self.terms = self.terms.checked_sub(terms).ok_or(Malformed::Count)?;
        Ok(())
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        Ok(BigEndian::read_u32(self.take(4)?) as usize)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (byte, rest) = self.rest.split_first().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*byte)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// An atom.
pub fn atom(name: &str) -> Term {
    Term::SmallAtom(name.to_owned())
}

/// An integer, in the shortest of the three forms that Erlang writes.
pub fn integer(value: impl Into<i128>) -> Term {
    let value = value.into();
    match (u8::try_from(value), i32::try_from(value)) {
        (Ok(byte), _) => Term::SmallInt(byte),
        (_, Ok(int)) => Term::Int(int),
        _ => Term::SmallBigInt(value.into()),
    }
}

/// A binary.
pub fn binary(bytes: &[u8]) -> Term {
    Term::Binary(bytes.to_vec())
}

/// `true` or `false`.
pub fn boolean(value: bool) -> Term {
    atom(if value { "true" } else { "false" })
}

/// A tuple.
pub fn tuple(elements: Vec<Term>) -> Term {
    Term::SmallTuple(elements)
}

/// A list.
pub fn list(elements: Vec<Term>) -> Term {
    if elements.is_empty() {
        Term::Nil
    } else {
        Term::List(elements)
    }
}

/// Reads an atom.
pub fn as_atom(term: &Term) -> Option<&str> {
    match term {
        Term::SmallAtom(name) | Term::AtomDeprecated(name) => Some(name),
        _ => None,
    }
}

/// Reads an integer.
pub fn as_integer(term: &Term) -> Option<i128> {
    match term {
        Term::SmallInt(value) => Some((*value).into()),
        Term::Int(value) => Some((*value).into()),
        Term::SmallBigInt(value) => i128::try_from(value).ok(),
        _ => None,
    }
}

/// Reads a tuple's elements.
pub fn as_tuple_mut(term: &mut Term) -> Option<&mut [Term]> {
    match term {
        Term::SmallTuple(elements) => Some(elements),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(tail: &[u8]) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(tail);
        bytes
    }

    #[test]
    fn malformed_terms_are_told_apart() {
        let refused = |tail: &[u8]| decode(&bytes(tail)).unwrap_err();
        assert_eq!(decode(&[]), Err(Malformed::Empty));
        assert_eq!(decode(&[130, 106]), Err(Malformed::Version));
        assert_eq!(refused(&[]), Malformed::Truncated);
        assert_eq!(refused(&[98, 1, 2, 3]), Malformed::Truncated);
        assert_eq!(refused(&[109, 255, 255, 255, 255]), Malformed::Truncated);
        assert_eq!(refused(&[108, 255, 255, 255, 255]), Malformed::Count);
        assert_eq!(refused(&[119, 1, 200]), Malformed::Atom);
        assert_eq!(refused(&[100, 0, 1, 228]), Malformed::Atom);
        assert_eq!(refused(&[110, 1, 2, 1]), Malformed::Integer);
        assert_eq!(refused(&[110, 9, 0]), Malformed::Integer);
        assert_eq!(
            refused(&[108, 0, 0, 0, 1, 97, 1, 97, 2]),
            Malformed::Improper
        );
        assert_eq!(refused(&[106, 106]), Malformed::Trailing);
        assert_eq!(refused(&[80, 0, 0, 0, 1]), Malformed::Tag);
    }

    #[test]
    fn every_other_tag_is_refused() {
        let allowed = [97, 98, 100, 104, 106, 107, 108, 109, 110, 119];
        for tag in 0..=255 {
            let mut frame = bytes(&[tag]);
            frame.extend([0; 64]);
            let refused_for_its_tag = decode(&frame) == Err(Malformed::Tag);
            assert_eq!(refused_for_its_tag, !allowed.contains(&tag), "tag {tag}");
        }
    }

    #[test]
    fn a_nest_a_million_deep_overflows_nothing() {
        let mut frame = vec![VERSION];
        for _ in 0..1_000_000 {
            frame.extend([104, 1]);
        }
        assert_eq!(decode(&frame), Err(Malformed::Depth));
        let mut frame = vec![VERSION];
        for _ in 0..1_000_000 {
            frame.extend([108, 0, 0, 0, 1]);
        }
        assert_eq!(decode(&frame), Err(Malformed::Depth));
    }

    #[test]
    fn more_terms_than_any_command_has_are_refused() {
        let mut frame = bytes(&[108]);
        frame.extend((MAX_TERMS as u32).to_be_bytes());
        frame.extend(std::iter::repeat_n(106, MAX_TERMS + 1));
        assert_eq!(decode(&frame), Err(Malformed::Count));
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let term = tuple(vec![
            atom("ok"),
            integer(0),
            integer(-1),
            integer(255),
            integer(i32::MIN),
            integer(u64::MAX),
            integer(i64::MIN),
            binary(b"\0\xff"),
            list(vec![]),
            list(vec![boolean(true), boolean(false)]),
        ]);
        assert_eq!(decode(&encode(term.clone())), Ok(term));
    }
}
