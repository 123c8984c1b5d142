//! Commands and events, to and from terms, without input or output. docs/protocol.md is the specification; its
//! vectors are tested here and in Elixir.

pub mod command;
pub mod datagram;
pub mod event;

/// Version of the protocol, named in `hello`.
pub const VERSION: u8 = 5;

/// The name of a socket or a pin on the wire. The VM never uses a handle twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u32);

/// Matches an answer to its command. 0 asks for no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference(pub u32);

/// One of the vectors of docs/vectors.txt: `name: hex`, one a line.
#[cfg(test)]
fn vector(wanted: &str) -> Vec<u8> {
    let line = include_str!("../../docs/vectors.txt")
        .lines()
        .find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no vector {wanted}"));
    let digits: Vec<u8> = line.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
    digits.chunks(2).map(|p| pair(p).unwrap()).collect()
}
