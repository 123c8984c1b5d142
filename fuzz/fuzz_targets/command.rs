//! Fuzzes the decoder of commands.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_port_fuzz::testing::properties;
use netlink_port_fuzz::protocol::command;
use netlink_port_fuzz::{etf, heap};

/// The heap that a byte of a frame may take: the four terms of term.rs, and the command beside them.
const PER_BYTE: usize = 6 * size_of::<etf::Term>();

fuzz_target!(|frame: &[u8]| {
    let _ = heap::within(PER_BYTE * (frame.len() + 4), || {
        command::parse(frame).is_ok()
    });
    properties::command(frame);
});
