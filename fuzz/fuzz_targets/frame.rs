//! The frame reader, over a real pipe.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_port_fuzz::{checks, frame, heap};

fuzz_target!(|script: &[u8]| {
    // The inbox, and the stream the check compares it with, in a growing vector.
    let limit = frame::HEADER + checks::LONGEST + 2 * script.len() + 64;
    heap::within(limit, || checks::frames(script));
});
