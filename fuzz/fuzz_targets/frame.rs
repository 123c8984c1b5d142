//! Fuzzes the inbox, which reads frames from a real pipe.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_port_fuzz::testing::properties;
use netlink_port_fuzz::{frame, heap};

fuzz_target!(|script: &[u8]| {
    // The inbox, and the growing vector with the stream that the property compares it with.
    let limit = frame::HEADER + properties::LONGEST + 2 * script.len() + 64;
    heap::within(limit, || properties::frames(script));
});
