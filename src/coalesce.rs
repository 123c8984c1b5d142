//! Coalescing of events, as network cards coalesce interrupts: a wake-up costs more than a datagram.
//!
//! After several short waits in a row that brought only datagrams, the loop polls its two pipes alone for
//! [`PAUSE`], and then takes all datagrams that have come. Commands are never delayed. The first longer wait,
//! and the first command, end it.

use std::time::Duration;

/// How long sockets are not polled: the longest delay of an event.
pub const PAUSE: Duration = Duration::from_micros(100);
/// This many short waits in a row begin it.
const BEGIN: u32 = 8;

/// Decides for one loop whether events are coalesced.
#[derive(Debug, Default)]
pub struct Coalesce {
    short: u32,
}

impl Coalesce {
    /// A wait has taken `time`. `events` is whether it brought datagrams and nothing else.
    pub fn waited(&mut self, time: Duration, events: bool) {
        self.short = match events && time < PAUSE {
            true => BEGIN.min(self.short + 1),
            false => 0,
        };
    }

    /// Whether the next wait begins with a pause.
    pub fn is_on(&self) -> bool {
        self.short >= BEGIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_for_datagrams_begin_it_and_any_other_ends_it() {
        for (time, events) in [(PAUSE, true), (Duration::ZERO, false)] {
            let mut coalesce = Coalesce::default();
            for _ in 0..BEGIN {
                assert!(!coalesce.is_on());
                coalesce.waited(Duration::ZERO, true);
            }
            assert!(coalesce.is_on());
            coalesce.waited(Duration::ZERO, true);
            assert!(coalesce.is_on());
            coalesce.waited(time, events);
            assert!(!coalesce.is_on());
        }
    }
}
