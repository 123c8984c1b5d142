//! Letting events gather, where they come faster than it pays to be woken for each.
//!
//! A wake-up costs more than a datagram does. After some short waits in a row that brought nothing but
//! datagrams, the loop looks away from its sockets for [`PAUSE`], and then takes what there is. It keeps
//! looking at its pipes, so that a command is never late for it, and the first longer wait ends it.

use std::time::Duration;

/// How long it looks away: what an event may be late.
pub const PAUSE: Duration = Duration::from_micros(100);
/// So many short waits in a row begin it.
const BEGIN: u32 = 8;

/// Decides it for one loop.
#[derive(Debug, Default)]
pub struct Coalesce {
    short: u32,
}

impl Coalesce {
    /// A wait is over. `events` is whether it has brought datagrams, and nothing else.
    pub fn waited(&mut self, time: Duration, events: bool) {
        self.short = match events && time < PAUSE {
            true => BEGIN.min(self.short + 1),
            false => 0,
        };
    }

    /// Whether to look away first, the next time.
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
