//! The check of a term, and the decoder behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_port_fuzz::testing::properties;
use netlink_port_fuzz::{etf, heap};

/// What a byte of a frame may cost: one is an empty list, a term of its own in a growing vector.
const PER_BYTE: usize = 4 * size_of::<etf::Term>();

fuzz_target!(|frame: &[u8]| {
    let _ = heap::within(PER_BYTE * (frame.len() + 4), || etf::decode(frame));
    properties::term(frame);
});
