//! Waiting for events: one epoll over standard input, standard output and every socket. The poller spins
//! ([`crate::spin`]), lets events coalesce ([`crate::coalesce`]), or sleeps.

use crate::coalesce::{Coalesce, PAUSE};
use crate::error::Fatal;
use crate::protocol::Handle;
use crate::sockets::Entry;
use crate::spin::{Found, Spin};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{ppoll, PollFd, PollFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::{fstat, SFlag};
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How many events one epoll_wait(2) brings.
const EVENTS: usize = 256;

/// What an event belongs to. The token of a closed socket finds nothing, since handles are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Input,
    Output,
    Watches,
    Socket(Handle),
}

impl Token {
    fn data(self) -> u64 {
        match self {
            Self::Input => u64::MAX,
            Self::Output => u64::MAX - 1,
            Self::Watches => u64::MAX - 2,
            Self::Socket(handle) => handle.0.into(),
        }
    }

    fn from_data(data: u64) -> Self {
        match u32::try_from(data) {
            Ok(handle) => Self::Socket(Handle(handle)),
            Err(_) if data == u64::MAX => Self::Input,
            Err(_) if data == u64::MAX - 1 => Self::Output,
            Err(_) => Self::Watches,
        }
    }
}

/// The private ends of the pipes to the VM.
#[derive(Debug)]
pub struct Wire {
    /// What was standard input.
    pub input: OwnedFd,
    /// What was standard output.
    pub output: OwnedFd,
}

/// What the poller found.
#[derive(Debug, Default)]
pub struct Ready {
    /// Commands have come.
    pub input: bool,
    /// So many bytes of them were read already. 0 is the end of the input.
    pub read: Option<usize>,
    /// The VM has closed a pipe.
    pub hangup: bool,
    /// A watched namespace may be gone.
    pub watches: bool,
}

/// The epoll, and whether it waits for input and for output on the two pipes.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    spin: Spin,
    coalesce: Coalesce,
    reading: bool,
    writing: bool,
}

impl Poller {
    /// Polls the two pipes and `watches`, and spins for up to `spin` after a command.
    pub fn new(wire: &Wire, watches: impl AsFd, spin: Duration) -> Result<Self, Fatal> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Fatal::system("epoll_create1"))?;
        let epoll = Epoll(sys::out_of_the_way(epoll.0));
        let watching = |token: Token| EpollEvent::new(EpollFlags::EPOLLIN, token.data());
        epoll
            .add(&wire.input, watching(Token::Input))
            .map_err(unwatchable(
                &wire.input,
                "standard input is neither a pipe nor a socket",
            ))?;
        let waiting = EpollEvent::new(EpollFlags::empty(), Token::Output.data());
        epoll.add(&wire.output, waiting).map_err(unwatchable(
            &wire.output,
            "standard output is neither a pipe nor a socket",
        ))?;
        epoll
            .add(watches, watching(Token::Watches))
            .map_err(Fatal::system("epoll_ctl"))?;
        Ok(Self {
            epoll,
            events: vec![EpollEvent::empty(); EVENTS],
            spin: Spin::new(spin),
            coalesce: Coalesce::default(),
            reading: true,
            writing: false,
        })
    }

    /// Commands have come, and more are likely to follow.
    pub fn commanded(&mut self) {
        self.spin.commanded();
    }

    /// Commands were carried out.
    pub fn answered(&mut self) {
        self.spin.answered();
    }

    /// Adds a new socket. This can fail (ENOSPC, ENOMEM); [`Self::watch`] cannot, since it changes what is
    /// there already.
    pub fn add(&self, handle: Handle, entry: &Entry) -> Result<(), Errno> {
        self.epoll
            .add(&entry.socket, interest(entry.watched, handle))
    }

    /// Polls a socket exactly while its window is open. The socket stays in the epoll all the time: if it were
    /// removed, adding it again could fail, and nobody would know that it is deaf.
    pub fn watch(&self, handle: Handle, entry: &mut Entry) {
        let open = entry.window.is_open();
        let mut event = interest(open, handle);
        if open != entry.watched && self.epoll.modify(&entry.socket, &mut event).is_ok() {
            entry.watched = open;
        }
    }

    /// Waits for anything. Adds readable sockets to `due`, and does not sleep while `due` has any. While it spins it
    /// tries the input by `fill`, a read(2).
    pub fn all(
        &mut self,
        wire: &Wire,
        reading: bool,
        writing: bool,
        due: &mut Vec<Handle>,
        fill: impl FnMut() -> Result<usize, Errno>,
    ) -> Result<Ready, Errno> {
        if !due.is_empty() {
            return self.look(wire, reading, writing, due, fill);
        }
        if self.coalesce.is_on() {
            let ready = pipes(wire, reading, writing, Some(PAUSE))?;
            if ready.input || ready.hangup {
                return Ok(ready);
            }
        }
        let start = Instant::now();
        let ready = self.look(wire, reading, writing, due, fill)?;
        let events = !due.is_empty() && !ready.input;
        self.coalesce.waited(start.elapsed(), events);
        Ok(ready)
    }

    fn look(
        &mut self,
        wire: &Wire,
        reading: bool,
        writing: bool,
        due: &mut Vec<Handle>,
        mut fill: impl FnMut() -> Result<usize, Errno>,
    ) -> Result<Ready, Errno> {
        let interest = |wanted, flag| if wanted { flag } else { EpollFlags::empty() };
        if reading != self.reading {
            let flags = interest(reading, EpollFlags::EPOLLIN);
            let mut event = EpollEvent::new(flags, Token::Input.data());
            self.epoll.modify(&wire.input, &mut event)?;
            self.reading = reading;
        }
        if writing != self.writing {
            let flags = interest(writing, EpollFlags::EPOLLOUT);
            let mut event = EpollEvent::new(flags, Token::Output.data());
            self.epoll.modify(&wire.output, &mut event)?;
            self.writing = writing;
        }
        let (epoll, events) = (&self.epoll, &mut self.events);
        let mut wait = |patience| sys::retry(|| epoll.wait(events, patience));
        let glance = || match if reading { fill() } else { Err(Errno::EAGAIN) } {
            Ok(count) => Ok(Some(count)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno),
        };
        let found = match due.is_empty() {
            true => self.spin.wait(glance, wait)?,
            false => Found::Events(wait(EpollTimeout::ZERO)?),
        };
        let mut ready = Ready::default();
        let count = match found {
            Found::Events(count) => count,
            Found::Input(count) => {
                ready.input = true;
                ready.read = Some(count);
                return Ok(ready);
            }
        };
        let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        for event in self.events.iter().take(count) {
            match Token::from_data(event.data()) {
                Token::Input => {
                    ready.input = event.events().contains(EpollFlags::EPOLLIN);
                    ready.hangup |= event.events().intersects(gone);
                }
                Token::Output => ready.hangup |= event.events().intersects(gone),
                Token::Watches => ready.watches = true,
                Token::Socket(handle) => due.push(handle),
            }
        }
        Ok(ready)
    }
}

/// ppoll(2) on the two pipes alone, for at most `patience`.
pub fn pipes(
    wire: &Wire,
    reading: bool,
    writing: bool,
    patience: Option<Duration>,
) -> Result<Ready, Errno> {
    let interest = |wanted, flag| if wanted { flag } else { PollFlags::empty() };
    let mut both = [
        PollFd::new(wire.input.as_fd(), interest(reading, PollFlags::POLLIN)),
        PollFd::new(wire.output.as_fd(), interest(writing, PollFlags::POLLOUT)),
    ];
    sys::retry(|| ppoll(&mut both, patience.map(TimeSpec::from), None))?;
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    let [input, output] = both.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
    Ok(Ready {
        input: input.contains(PollFlags::POLLIN),
        hangup: input.intersects(gone) || output.intersects(gone),
        ..Ready::default()
    })
}

/// The error of a descriptor that epoll does not take: EPERM means a file or a device, unless a seccomp profile
/// refuses epoll_ctl(2).
fn unwatchable(fd: &OwnedFd, no_pipe: &'static str) -> impl Fn(Errno) -> Fatal {
    let kind = fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    let wire = matches!(kind, Ok(SFlag::S_IFIFO | SFlag::S_IFSOCK));
    move |errno| match (errno, wire) {
        (Errno::EPERM, false) => Fatal::system(no_pipe)(errno),
        _ => Fatal::system("epoll_ctl")(errno),
    }
}

/// The events of a socket. For a socket that is not polled epoll reports an error alone, and that once.
fn interest(watched: bool, handle: Handle) -> EpollEvent {
    let flags = match watched {
        true => EpollFlags::EPOLLIN,
        false => EpollFlags::EPOLLONESHOT,
    };
    EpollEvent::new(flags, Token::Socket(handle).data())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Input,
            Token::Output,
            Token::Watches,
            Token::Socket(Handle(0)),
            Token::Socket(Handle(i32::MAX as u32)),
        ] {
            assert_eq!(Token::from_data(token.data()), token);
        }
    }
}
