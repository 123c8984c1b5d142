//! Spinning (busy-waiting) instead of sleeping: a wake-up costs tens of microseconds, and a request that follows
//! an answer comes sooner than that. The server spins by the same rules (elixir/netlink_port/common/spin.ex).
//!
//! The loop spins only right after a command, and only while that pays. A command that comes while the loop spins
//! is a hit, and one that comes later is a miss. Misses in a row turn spinning off: the client is slow, or it has
//! to share the processor on which the loop spins, and every spin delays it. Then the loop tries a spin again
//! after a number of commands, which doubles with each miss. Events alone never make it spin, since nothing follows
//! them, and a loop that sleeps takes them in larger groups. Nothing here wakes a sleeping loop.
//!
//! While it spins the loop glances at its input, by read(2), which saves the question to epoll before each
//! command. It asks epoll for everything else every [`LOOK`].

use nix::sys::epoll::EpollTimeout;
use std::time::{Duration, Instant};

/// This many misses in a row turn spinning off.
const PATIENCE: u32 = 4;
/// While spinning is off, a command is soon up to this many times the limit after the last answer. Others are not
/// worth a try.
const SOON: u32 = 4;
/// After how many soon commands a spin is tried again: at first, and at most.
const PAUSE: (u32, u32) = (16, 256);
/// How often a spinning loop asks epoll: the longest delay of an event by it.
const LOOK: Duration = Duration::from_micros(20);

/// Decides for one loop whether it spins.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    /// When the last commands were answered, or have come if that was later.
    last: Option<Instant>,
    misses: u32,
    /// How many soon commands there will be before the next try, while spinning is off.
    skip: u32,
    /// The value of `skip` after the next miss.
    pause: u32,
    /// When epoll was last asked.
    looked: Option<Instant>,
}

/// What ended a wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// A glance at the input has found this.
    Input(T),
    /// epoll has found so many events.
    Events(usize),
}

impl Spin {
    /// Spins for up to `limit` after each command; never for zero.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: None,
            misses: PATIENCE,
            skip: 0,
            pause: PAUSE.0,
            looked: None,
        }
    }

    /// Commands have come.
    pub fn commanded(&mut self) {
        if !self.limit.is_zero() {
            self.commanded_at(Instant::now());
        }
    }

    /// Commands were carried out.
    pub fn answered(&mut self) {
        if self.last.is_some() {
            self.last = Some(Instant::now());
        }
    }

    fn commanded_at(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last);
            if self.misses < PATIENCE {
                self.judge(gap <= self.limit);
            } else if gap <= self.limit * SOON {
                self.try_again();
            }
        }
        self.last = Some(now);
    }

    /// A spin was a hit or a miss.
    fn judge(&mut self, hit: bool) {
        if hit {
            (self.misses, self.pause) = (0, PAUSE.0);
            return;
        }
        self.misses += 1;
        if self.misses == PATIENCE {
            self.skip = self.pause;
            self.pause = PAUSE.1.min(2 * self.pause);
        }
    }

    /// Turns spinning on for a try, which one miss ends, if it is time.
    fn try_again(&mut self) {
        match self.skip {
            0 => self.misses = PATIENCE - 1,
            skip => self.skip = skip - 1,
        }
    }

    /// Until when the loop spins.
    fn until(&self) -> Option<Instant> {
        match self.last {
            Some(last) if self.misses < PATIENCE => Some(last + self.limit),
            _ => None,
        }
    }

    /// Waits: `glance` tries the input, and `look` is epoll_wait(2), with how long it may sleep.
    pub fn wait<T, E>(
        &mut self,
        mut glance: impl FnMut() -> Result<Option<T>, E>,
        mut look: impl FnMut(EpollTimeout) -> Result<usize, E>,
    ) -> Result<Found<T>, E> {
        if let Some(until) = self.until() {
            loop {
                let now = Instant::now();
                if now >= until {
                    break;
                }
                let recent = |looked| now.saturating_duration_since(looked) < LOOK;
                if self.looked.is_some_and(recent) {
                    if let Some(input) = glance()? {
                        return Ok(Found::Input(input));
                    }
                } else {
                    self.looked = Some(now);
                    let events = look(EpollTimeout::ZERO)?;
                    if events > 0 {
                        return Ok(Found::Events(events));
                    }
                }
                std::hint::spin_loop();
            }
        }
        look(EpollTimeout::NONE).map(Found::Events)
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
    fn misses_in_a_row_turn_it_off() {
        let late = LIMIT + Duration::from_micros(1);
        let (spin, now) = after(LIMIT, &[LIMIT, LIMIT, late, late, late]);
        assert_eq!(spin.until(), Some(now + LIMIT));
        let (spin, _now) = after(LIMIT, &[LIMIT, LIMIT, late, late, late, late]);
        assert_eq!(spin.until(), None);
    }

    #[test]
    fn it_is_tried_again_after_more_and_more_commands_and_a_hit_turns_it_on() {
        let (mut spin, mut now) = after(LIMIT, &[LIMIT]);
        for pause in [16, 32, 64, 128, 256, 256] {
            // The miss of the last try, and the commands until the next.
            for _ in 0..=pause {
                now += 2 * LIMIT;
                spin.commanded_at(now);
                assert_eq!(spin.until(), None);
            }
            now += 2 * LIMIT;
            spin.commanded_at(now);
            assert!(spin.until().is_some());
        }
        now += LIMIT;
        spin.commanded_at(now);
        assert_eq!((spin.misses, spin.pause), (0, PAUSE.0));
    }

    #[test]
    fn late_commands_make_it_try_nothing() {
        let (spin, _now) = after(LIMIT, &[LIMIT * SOON + Duration::from_micros(1); 1000]);
        assert_eq!(spin.until(), None);
    }

    /// Waits with these answers of glances and of epoll.
    fn waited(
        spin: &mut Spin,
        mut glance: impl FnMut() -> Option<u8>,
        mut look: impl FnMut(EpollTimeout) -> usize,
    ) -> Found<u8> {
        let found = spin.wait(|| Ok::<_, ()>(glance()), |patience| Ok(look(patience)));
        found.unwrap()
    }

    #[test]
    fn it_sleeps_when_its_time_is_over_however_often_it_is_woken() {
        let (mut spin, _now) = after(Duration::from_millis(1), &[Duration::ZERO]);
        let mut looks = || {
            let mut looks = 0;
            let look = |patience| {
                looks += 1;
                usize::from(patience == EpollTimeout::NONE)
            };
            assert_eq!(waited(&mut spin, || None, look), Found::Events(1));
            looks
        };
        assert!(looks() > 1);
        assert_eq!(looks(), 1);
    }

    #[test]
    fn what_epoll_finds_keeps_it_from_sleeping() {
        let (mut spin, _now) = after(Duration::from_secs(60), &[Duration::ZERO]);
        let look = |patience| {
            assert_eq!(patience, EpollTimeout::ZERO);
            3
        };
        assert_eq!(waited(&mut spin, || None, look), Found::Events(3));
    }

    #[test]
    fn input_is_found_by_a_glance_and_events_are_asked_for_between_glances() {
        let (mut spin, _now) = after(Duration::from_secs(60), &[Duration::ZERO]);
        spin.looked = Some(Instant::now() + Duration::from_secs(1));
        let never = |_patience| panic!("epoll was asked");
        assert_eq!(waited(&mut spin, || Some(7), never), Found::Input(7));
        spin.looked = Some(Instant::now());
        assert_eq!(waited(&mut spin, || None, |_patience| 1), Found::Events(1));
    }

    #[test]
    fn the_time_counts_from_the_end_of_what_was_commanded() {
        let mut spin = Spin::new(LIMIT);
        spin.answered();
        assert_eq!(spin.last, None);
        let long_ago = Instant::now() - Duration::from_secs(1);
        spin.commanded_at(long_ago);
        spin.answered();
        assert!(spin.last > Some(long_ago));
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
