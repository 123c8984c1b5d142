//! When to look again instead of going to sleep: a wake-up costs tens of microseconds, and a request
//! that follows an answer comes sooner than that.
//!
//! Only right after traffic, and only while it pays: a few waits that were long turn it off, and
//! it looks at the clock twice a wait to see that it would pay again. Asleep is asleep: nothing
//! here wakes anything.

use std::time::{Duration, Instant};

/// So many more long waits than short ones turn spinning off.
const PATIENCE: u32 = 4;
/// A wait up to this many times the limit is short: had it been spun, it would nearly have paid.
const SHORT: u32 = 4;

/// Decides it for one loop.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    misses: u32,
}

impl Spin {
    /// Spins for up to `limit` before each sleep; never for zero.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            misses: PATIENCE,
        }
    }

    /// Waits: `look` returns at once with what there is, `sleep` when there is something.
    pub fn wait<E>(
        &mut self,
        mut look: impl FnMut() -> Result<usize, E>,
        sleep: impl FnOnce() -> Result<usize, E>,
    ) -> Result<usize, E> {
        if self.limit.is_zero() {
            return sleep();
        }
        let start = Instant::now();
        if self.misses < PATIENCE {
            while start.elapsed() < self.limit {
                let found = look()?;
                if found > 0 {
                    self.misses = 0;
                    return Ok(found);
                }
                std::hint::spin_loop();
            }
        }
        let found = sleep()?;
        self.misses = if start.elapsed() < self.limit * SHORT {
            self.misses.saturating_sub(1)
        } else {
            PATIENCE.min(self.misses + 1)
        };
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::thread::sleep;

    const LIMIT: Duration = Duration::from_millis(2);

    /// One wait that takes `asleep` where it sleeps; how often it has looked.
    fn looks(spin: &mut Spin, asleep: Duration) -> u32 {
        let count = Cell::new(0);
        let look = || {
            count.set(count.get() + 1);
            Ok::<_, ()>(0)
        };
        let found = spin.wait(look, || {
            sleep(asleep);
            Ok(1)
        });
        assert_eq!(found, Ok(1));
        count.get()
    }

    #[test]
    fn it_looks_only_after_short_waits_and_stops_after_long_ones() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(looks(&mut spin, Duration::ZERO), 0);
        assert!(looks(&mut spin, Duration::ZERO) > 0);
        // Each wait is longer than the limit allows, its own spinning included.
        let long = LIMIT * SHORT;
        let spun = (0..10).filter(|_| looks(&mut spin, long) > 0).count();
        assert!(spun <= PATIENCE as usize);
        assert_eq!(looks(&mut spin, long), 0);
    }

    #[test]
    fn what_it_finds_keeps_it_looking_and_it_does_not_sleep() {
        let mut spin = Spin::new(LIMIT);
        looks(&mut spin, Duration::ZERO);
        for _ in 0..100 {
            let found = spin.wait(|| Ok::<_, ()>(3), || panic!("asleep"));
            assert_eq!(found, Ok(3));
        }
    }

    #[test]
    fn a_limit_of_zero_never_looks() {
        let mut spin = Spin::new(Duration::ZERO);
        for _ in 0..10 {
            assert_eq!(looks(&mut spin, Duration::ZERO), 0);
        }
    }
}
