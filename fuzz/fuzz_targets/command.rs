//! The whole decoder of commands.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_port_fuzz::testing::properties;
use netlink_port_fuzz::{etf, heap, protocol};

/// As that of a term, and a command beside it.
const PER_BYTE: usize = 6 * size_of::<etf::Term>();

fuzz_target!(|frame: &[u8]| {
    let _ = heap::within(PER_BYTE * (frame.len() + 4), || {
        protocol::parse(frame).is_ok()
    });
    properties::command(frame);
});
