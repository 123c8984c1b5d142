//! Spinning (busy-waiting) instead of sleeping: a wake-up costs tens of microseconds, and a request that follows
//! an answer comes sooner than that. The server spins by the same rules (elixir/netlink_port/common/spin.ex).
//!
//! The loop spins only right after a command, and only while that pays: commands that come late turn spinning
//! off, commands that come soon turn it on again. Events alone never make it spin, since nothing follows them,
//! and a loop that sleeps takes them in larger groups. Nothing here wakes a sleeping loop.

use nix::sys::epoll::EpollTimeout;
use std::time::{Duration, Instant};

/// This many more late commands than soon ones turn spinning off.
const PATIENCE: u32 = 4;
/// A command is soon up to this many times the limit after the command before: spinning for it would nearly
/// have paid.
const SOON: u32 = 4;

/// Decides for one loop whether it spins.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    last: Option<Instant>,
    misses: u32,
}

impl Spin {
    /// Spins for up to `limit` after each command; never for zero.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: None,
            misses: PATIENCE,
        }
    }

    /// Commands have come.
    pub fn commanded(&mut self) {
        if !self.limit.is_zero() {
            self.commanded_at(Instant::now());
        }
    }

    fn commanded_at(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last);
            self.misses = if gap <= self.limit {
                0
            } else if gap <= self.limit * SOON {
                self.misses.saturating_sub(1)
            } else {
                PATIENCE.min(self.misses + 1)
            };
        }
        self.last = Some(now);
    }

    /// Until when the loop spins.
    fn until(&self) -> Option<Instant> {
        match self.last {
            Some(last) if self.misses < PATIENCE => Some(last + self.limit),
            _ => None,
        }
    }

    /// Waits: `wait` is epoll_wait(2), with how long it may sleep.
    pub fn wait<E>(
        &self,
        mut wait: impl FnMut(EpollTimeout) -> Result<usize, E>,
    ) -> Result<usize, E> {
        if let Some(until) = self.until() {
            while Instant::now() < until {
                let found = wait(EpollTimeout::ZERO)?;
                if found > 0 {
                    return Ok(found);
                }
                std::hint::spin_loop();
            }
        }
        wait(EpollTimeout::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    /// A spin after commands with these gaps between them, and the time of the last.
    fn after(limit: Duration, gaps: &[Duration]) -> (Spin, Instant) {
        let mut spin = Spin::new(limit);
        let mut now = Instant::now();
        spin.commanded_at(now);
        for gap in gaps {
            now += *gap;
            spin.commanded_at(now);
        }
        (spin, now)
    }

    #[test]
    fn it_does_not_look_before_commands_come_soon_after_each_other() {
        assert_eq!(Spin::new(LIMIT).until(), None);
        let (spin, _now) = after(LIMIT, &[]);
        assert_eq!(spin.until(), None);
        let (spin, now) = after(LIMIT, &[LIMIT * SOON]);
        assert_eq!(spin.until(), Some(now + LIMIT));
    }

    #[test]
    fn a_few_late_commands_turn_it_off_and_a_soon_one_turns_it_on() {
        let late = LIMIT * (SOON + 1);
        let (spin, now) = after(LIMIT, &[LIMIT, late, late, late]);
        assert_eq!(spin.until(), Some(now + LIMIT));
        let (spin, _now) = after(LIMIT, &[LIMIT, late, late, late, late]);
        assert_eq!(spin.until(), None);
        let (spin, now) = after(LIMIT, &[late, late, late, late, LIMIT]);
        assert_eq!(spin.until(), Some(now + LIMIT));
    }

    #[test]
    fn it_sleeps_when_its_time_is_over_however_often_it_is_woken() {
        let (spin, _now) = after(Duration::from_millis(1), &[Duration::ZERO]);
        let looks = || {
            let mut looks = 0;
            let found = spin.wait(|patience| {
                looks += 1;
                Ok::<_, ()>(usize::from(patience == EpollTimeout::NONE))
            });
            assert_eq!(found, Ok(1));
            looks
        };
        assert!(looks() > 1);
        assert_eq!(looks(), 1);
    }

    #[test]
    fn what_it_finds_keeps_it_from_sleeping() {
        let (spin, _now) = after(Duration::from_secs(60), &[Duration::ZERO]);
        let found = spin.wait(|patience| {
            assert_eq!(patience, EpollTimeout::ZERO);
            Ok::<_, ()>(3)
        });
        assert_eq!(found, Ok(3));
    }

    #[test]
    fn a_limit_of_zero_never_looks() {
        let mut spin = Spin::new(Duration::ZERO);
        for _ in 0..10 {
            spin.commanded();
        }
        assert_eq!(spin.until(), None);
    }
}
