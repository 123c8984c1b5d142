//! Fuzzes the check of a term, and the decoder behind the check.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_port_fuzz::testing::properties;
use netlink_port_fuzz::{etf, heap};

/// The heap that a byte of a frame may take: a byte can be an empty list, which is a term in a growing vector.
const PER_BYTE: usize = 4 * size_of::<etf::Term>();

fuzz_target!(|frame: &[u8]| {
    let _ = heap::within(PER_BYTE * (frame.len() + 4), || etf::decode(frame));
    properties::term(frame);
});
