//! The loop: one epoll over standard input, standard output and every socket, on one thread.
//!
//! Rules that keep it from deadlock and from unbounded memory:
//! - A socket is read only while its window, the program's window and the arena have room.
//! - Commands are read, also while standard output is full, until the room for answers is used up.
//! - End of input ends the program at once, whatever else is going on.

use crate::error::{At, Exit, Failure, Fatal, Stage};
use crate::etf;
use crate::frame::{Inbox, Outbox, MAX_FRAME};
use crate::gather::{Gather, PAUSE};
use crate::netlink::{Arrival, Socket, Spec};
use crate::netns::Home;
use crate::protocol::{self, Command, Form, Handle, Prefix, Reference};
use crate::sockets::{Entry, Sockets, Window};
use crate::spin::Spin;
use crate::sys;
use crate::watch::Watches;
use nix::errno::Errno;
use nix::poll::{ppoll, PollFd, PollFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// First size of the receive buffer. The kernel cuts dumps to the reader's buffer, up to 32 KiB.
const DATAGRAM: usize = 1 << 20;
/// Largest size the receive buffer grows to, so that a frame stays within the VM side's limit.
const MAX_DATAGRAM: usize = 16 << 20;
/// How many datagrams one socket may bring before the next has its turn.
const TURN: usize = 64;
/// How many events one epoll_wait(2) brings.
const EVENTS: usize = 256;

/// What an event belongs to. A handle's token stays valid after its socket is closed: it is not
/// found any more, and handles are never given twice.
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

/// What woke the loop.
#[derive(Debug, Default)]
struct Ready {
    input: bool,
    hangup: bool,
    watches: bool,
}

/// The loop and all it holds.
#[derive(Debug)]
pub struct Reactor {
    wire: Wire,
    watch: Watch,
    inbox: Inbox,
    /// Whole frames wait in the inbox for room for their answers.
    stalled: bool,
    state: State,
}

/// epoll, and what it is told to look for on the two pipes.
#[derive(Debug)]
struct Watch {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    spin: Spin,
    gather: Gather,
    reading: bool,
    writing: bool,
}

/// What commands and datagrams work on.
#[derive(Debug)]
struct State {
    home: Home,
    sockets: Sockets,
    watches: Watches,
    window: Window,
    outbox: Outbox,
    /// Sockets to be read.
    due: Vec<Handle>,
    /// An empty list, for the next `due`.
    spare: Vec<Handle>,
    stopping: bool,
}

impl Reactor {
    /// Sets up the loop. `hello` is the first frame.
    pub fn new(wire: Wire, home: Home, spin: Duration, hello: &[u8]) -> Result<Self, Fatal> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Fatal::system("epoll_create1"))?;
        let watching = EpollEvent::new(EpollFlags::EPOLLIN, Token::Input.data());
        epoll
            .add(&wire.input, watching)
            .map_err(unwatchable("standard input is neither a pipe nor a socket"))?;
        let waiting = EpollEvent::new(EpollFlags::empty(), Token::Output.data());
        epoll.add(&wire.output, waiting).map_err(unwatchable(
            "standard output is neither a pipe nor a socket",
        ))?;
        let watches = Watches::new()?;
        let watching = EpollEvent::new(EpollFlags::EPOLLIN, Token::Watches.data());
        epoll
            .add(&watches, watching)
            .map_err(Fatal::system("epoll_ctl"))?;
        let mut outbox = Outbox::new(DATAGRAM);
        outbox.push(hello);
        Ok(Self {
            wire,
            watch: Watch {
                epoll,
                events: vec![EpollEvent::empty(); EVENTS],
                spin: Spin::new(spin),
                gather: Gather::default(),
                reading: true,
                writing: false,
            },
            inbox: Inbox::new(),
            stalled: false,
            state: State {
                home,
                sockets: Sockets::default(),
                watches,
                window: Window::default(),
                outbox,
                due: Vec::new(),
                spare: Vec::new(),
                stopping: false,
            },
        })
    }

    /// Runs until the input ends, or until it is told to stop.
    pub fn run(&mut self) -> Exit {
        loop {
            if let Err(exit) = self.turn() {
                return exit;
            }
        }
    }

    /// Writes what is ready, waits, reads commands, reads sockets. `Err` is the end.
    fn turn(&mut self) -> Result<(), Exit> {
        self.flush()?;
        if self.state.stopping && self.state.outbox.pending() == 0 {
            return Err(Exit::Done);
        }
        let ready = self.wait()?;
        if ready.hangup {
            return Err(Exit::Done);
        }
        self.flush()?;
        if ready.input && !self.stalled {
            match self.inbox.fill(&self.wire.input) {
                Ok(0) => return Err(Exit::Done),
                Ok(_) => self.watch.spin.commanded(),
                Err(Errno::EAGAIN) => {}
                Err(_) => return Err(Exit::System),
            }
        }
        self.commands()?;
        if ready.watches {
            self.state.leave();
        }
        let mut due = self.state.take_due();
        for handle in due.drain(..) {
            if !self.state.may_read() {
                self.flush()?;
            }
            self.state.pump(&self.watch.epoll, handle);
        }
        self.state.spare = due;
        Ok(())
    }

    /// Carries out the whole frames in the inbox, as long as there is room for the answers.
    fn commands(&mut self) -> Result<(), Exit> {
        self.stalled = true;
        while self.state.outbox.has_room_for_reply() && !self.state.stopping {
            match self.inbox.next() {
                Ok(Some(frame)) => self.state.command(&self.watch.epoll, frame),
                Ok(None) => {
                    self.stalled = false;
                    break;
                }
                Err(_) => return Err(Exit::BadFrame),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Exit> {
        let outcome = self.state.outbox.flush(&self.wire.output);
        outcome.map_err(|_| Exit::Output)
    }

    /// Waits for something to do. While nothing may be read from any socket only the two pipes
    /// are looked at, so that sockets with datagrams do not keep the loop awake.
    fn wait(&mut self) -> Result<Ready, Exit> {
        let writing = self.state.outbox.pending() > 0;
        let reading = !self.stalled;
        if self.stalled && self.state.outbox.has_room_for_reply() && !self.state.stopping {
            return Ok(Ready::default());
        }
        if self.state.may_read() {
            self.watch
                .all(&self.wire, reading, writing, &mut self.state.due)
        } else {
            pipes(&self.wire, reading, writing, None)
        }
        .map_err(|_| Exit::System)
    }
}

impl Watch {
    /// Everything. Sockets that have something to read are added to those that are `due`; as long
    /// as there are any it does not sleep.
    fn all(
        &mut self,
        wire: &Wire,
        reading: bool,
        writing: bool,
        due: &mut Vec<Handle>,
    ) -> Result<Ready, Errno> {
        if !due.is_empty() {
            return self.look(wire, reading, writing, due);
        }
        if self.gather.is_on() {
            let ready = pipes(wire, reading, writing, Some(PAUSE))?;
            if ready.input || ready.hangup {
                return Ok(ready);
            }
        }
        let start = Instant::now();
        let ready = self.look(wire, reading, writing, due)?;
        let events = !due.is_empty() && !ready.input;
        self.gather.waited(start.elapsed(), events);
        Ok(ready)
    }

    fn look(
        &mut self,
        wire: &Wire,
        reading: bool,
        writing: bool,
        due: &mut Vec<Handle>,
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
        let count = match due.is_empty() {
            true => self.spin.wait(wait)?,
            false => wait(EpollTimeout::ZERO)?,
        };
        let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let mut ready = Ready::default();
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

/// ppoll(2) on the two pipes alone, for ever or for so long.
fn pipes(
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

impl State {
    /// Whether any socket may be read at all.
    fn may_read(&self) -> bool {
        self.window.is_open() && self.outbox.has_room_for_datagram()
    }

    /// Carries out one frame.
    fn command(&mut self, epoll: &Epoll, frame: &[u8]) {
        let (reference, outcome) = match protocol::parse(frame) {
            Ok((reference, Ok(command))) => {
                let handle = match command {
                    Command::Send(handle, _) | Command::SendTo(handle, ..) => Some(handle),
                    _ => None,
                };
                let outcome = self.perform(epoll, command);
                // Nobody waits for the answer of this one: its failure is an event.
                if let (Reference(0), Some(handle), Err(failure)) = (reference, handle, &outcome) {
                    self.outbox.push(&protocol::failed(handle, failure, 0));
                }
                (reference, outcome)
            }
            Ok((reference, Err(failure))) => (reference, Err(failure)),
            Err(reason) => return self.outbox.push(&protocol::malformed(reason)),
        };
        if reference != Reference(0) {
            self.outbox.push(&match outcome {
                Ok(value) => protocol::ok(reference, value),
                Err(failure) => protocol::error(reference, &failure),
            });
        }
    }

    fn perform(
        &mut self,
        epoll: &Epoll,
        command: Command<'_>,
    ) -> Result<Option<etf::Term>, Failure> {
        match command {
            Command::Send(handle, datagram) => {
                self.socket(handle)?.send(datagram, None)?;
                self.expect_answer(handle);
            }
            Command::SendTo(handle, port_id, groups, datagram) => {
                let to = Some((port_id, groups));
                self.socket(handle)?.send(&datagram, to)?;
            }
            Command::Grant(handle, bytes) => {
                if let Some(entry) = self.sockets.get_mut(handle) {
                    entry.window.grant(bytes);
                    watch(epoll, handle, entry);
                    self.read_again(handle);
                }
            }
            Command::GrantAll(bytes) => self.window.grant(bytes),
            Command::Open(handle, spec, window) => {
                if !self.sockets.is_fresh(handle) {
                    return Err(Failure::protocol("handle used before"));
                }
                self.sockets.reserve(handle);
                if spec.watched {
                    self.watches.begin(handle, &spec.target)?;
                }
                let opened = self.open(epoll, handle, &spec, window);
                if opened.is_err() {
                    self.watches.end(handle);
                }
                return opened.map(Some);
            }
            Command::Close(handle) => {
                self.watches.end(handle);
                drop(self.sockets.remove(handle).ok_or_else(closed)?);
            }
            Command::Bind(handle, port_id, groups) => {
                self.socket(handle)?.bind(port_id, groups)?;
            }
            Command::Set(handle, name, value) => self.socket(handle)?.set(name, &value)?,
            Command::Get(handle, name) => {
                let value = self.socket(handle)?.get(name)?;
                return Ok(Some(protocol::value(value)));
            }
            Command::SocketInfo(handle) => return self.socket_info(handle).map(Some),
            Command::Info => return Ok(Some(self.info())),
            Command::Ping => {}
            Command::Stop => self.stopping = true,
        }
        Ok(None)
    }

    fn open(
        &mut self,
        epoll: &Epoll,
        handle: Handle,
        spec: &Spec,
        window: u64,
    ) -> Result<etf::Term, Failure> {
        let window = Window::new(window);
        let entry = Entry {
            socket: Socket::open(&self.home, spec)?,
            watched: window.is_open(),
            window,
            undrained: false,
            asked: false,
            leaving: false,
            due: false,
        };
        // Only this can fail (ENOSPC, ENOMEM): what `watch` changes is there already.
        let event = interest(entry.watched, handle);
        epoll.add(&entry.socket, event).at(Stage::Socket)?;
        let place = entry.socket.place();
        self.watches.entered(handle, place.identity);
        let mut told = protocol::place(place);
        told.push(protocol::property(
            "port_id",
            etf::integer(entry.socket.port_id()),
        ));
        self.sockets.insert(handle, entry);
        Ok(etf::list(told))
    }

    fn socket(&mut self, handle: Handle) -> Result<&mut Socket, Failure> {
        let entry = self.sockets.get_mut(handle).ok_or_else(closed)?;
        Ok(&mut entry.socket)
    }

    fn socket_info(&mut self, handle: Handle) -> Result<etf::Term, Failure> {
        let entry = self.sockets.get_mut(handle).ok_or_else(closed)?;
        let number = |name, value| protocol::property(name, etf::integer(value));
        let mut told = protocol::place(entry.socket.place());
        told.extend([
            number("port_id", u64::from(entry.socket.port_id())),
            number("drops", entry.socket.drops().into()),
            number("foreign", entry.socket.foreign()),
            number("granted", entry.window.granted()),
            number("charged", entry.window.charged()),
        ]);
        Ok(etf::list(told))
    }

    fn info(&self) -> etf::Term {
        let number = |name, value: u64| protocol::property(name, etf::integer(value));
        // The listing itself holds one descriptor while it counts.
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count().saturating_sub(1));
        etf::list(vec![
            number("os_pid", std::process::id().into()),
            protocol::property("home", protocol::identity(self.home.identity())),
            number("sockets", self.sockets.len() as u64),
            number("fds", fds as u64),
            number("granted", self.window.granted()),
            number("charged", self.window.charged()),
        ])
    }

    /// Reads one socket until it is drained, has had its turn, or may not be read any more.
    fn pump(&mut self, epoll: &Epoll, handle: Handle) {
        for _ in 0..TURN {
            if !self.may_read() {
                break;
            }
            let Some(entry) = self.sockets.get_mut(handle) else {
                return;
            };
            if !entry.window.is_open() {
                return match entry.leaving {
                    true => self.close_gone(handle),
                    false => watch(epoll, handle, entry),
                };
            }
            let form = match (entry.socket.metadata(), entry.asked) {
                (true, _) => Form::Metadata,
                (false, true) => Form::Answer,
                (false, false) => Form::Plain,
            };
            let room = self.outbox.datagram_room(Prefix::length(form));
            entry.undrained = true;
            match entry.socket.receive(room) {
                Arrival::Datagram(received) => {
                    entry.window.charge(received.length);
                    self.window.charge(received.length);
                    let prefix = Prefix::of(handle, form, &received);
                    self.outbox.commit(prefix.bytes(), received.length);
                    // Most answers are alone: whether this one is, epoll tells.
                    let asked = std::mem::take(&mut entry.asked);
                    if asked && !entry.socket.in_doubt() && !entry.leaving {
                        entry.undrained = false;
                        return watch(epoll, handle, entry);
                    }
                }
                Arrival::Foreign | Arrival::Overrun => {}
                Arrival::Drained(lost) => {
                    entry.undrained = false;
                    entry.asked = false;
                    if lost > 0 {
                        self.outbox.push(&protocol::overrun(handle, lost));
                    }
                    if entry.leaving {
                        self.close_gone(handle);
                    }
                    return;
                }
                Arrival::Truncated(length) => {
                    let failure = Failure::new(Stage::Recv, Errno::EMSGSIZE);
                    self.outbox
                        .push(&protocol::failed(handle, &failure, length));
                    self.outbox
                        .grow(length.next_power_of_two().min(MAX_DATAGRAM));
                }
                Arrival::Failed(errno) => {
                    let failure = Failure::new(Stage::Recv, errno);
                    self.outbox.push(&protocol::failed(handle, &failure, 0));
                    if entry.leaving {
                        return self.close_gone(handle);
                    }
                }
            }
        }
        self.read_again(handle);
    }

    /// Sockets whose namespace is gone take in nothing more, and are read for the last time.
    fn leave(&mut self) {
        for handle in self.watches.gone() {
            if let Some(entry) = self.sockets.get_mut(handle) {
                entry.socket.shut();
                entry.leaving = true;
                entry.undrained = true;
            }
            self.read_again(handle);
        }
    }

    /// Behind all that came from the socket.
    fn close_gone(&mut self, handle: Handle) {
        drop(self.sockets.remove(handle));
        self.outbox.push(&protocol::gone(handle));
    }

    /// The kernel has answered most requests before sendmsg(2) returns: the socket is looked at
    /// before the next wait.
    fn expect_answer(&mut self, handle: Handle) {
        if let Some(entry) = self.sockets.get_mut(handle) {
            entry.undrained = true;
            entry.asked = true;
        }
        self.read_again(handle);
    }

    /// Puts a socket whose queue was not seen empty on the list of those to be read again.
    fn read_again(&mut self, handle: Handle) {
        if let Some(entry) = self.sockets.get_mut(handle) {
            let readable = entry.window.is_open() || entry.leaving;
            if entry.undrained && readable && !entry.due {
                entry.due = true;
                self.due.push(handle);
            }
        }
    }

    /// Takes that list, while sockets may be read.
    fn take_due(&mut self) -> Vec<Handle> {
        if !self.may_read() {
            return Vec::new();
        }
        let due = std::mem::replace(&mut self.due, std::mem::take(&mut self.spare));
        for handle in &due {
            if let Some(entry) = self.sockets.get_mut(*handle) {
                entry.due = false;
            }
        }
        due
    }
}

/// A descriptor that epoll does not take: EPERM is its word for a file or a device.
fn unwatchable(no_pipe: &'static str) -> impl Fn(Errno) -> Fatal {
    move |errno| match errno {
        Errno::EPERM => Fatal::system(no_pipe)(errno),
        _ => Fatal::system("epoll_ctl")(errno),
    }
}

/// A handle that no socket has.
fn closed() -> Failure {
    Failure::new(Stage::Info, Errno::EBADF)
}

/// Watches a socket exactly while its window is open. It stays with epoll all the while: taken out
/// and put in again, it could be refused, and would be deaf without anybody knowing.
fn watch(epoll: &Epoll, handle: Handle, entry: &mut Entry) {
    let open = entry.window.is_open();
    if open != entry.watched
        && epoll
            .modify(&entry.socket, &mut interest(open, handle))
            .is_ok()
    {
        entry.watched = open;
    }
}

/// What epoll tells of a socket: nothing, where it is not watched, but an error, and that once.
fn interest(watched: bool, handle: Handle) -> EpollEvent {
    let flags = match watched {
        true => EpollFlags::EPOLLIN,
        false => EpollFlags::EPOLLONESHOT,
    };
    EpollEvent::new(flags, Token::Socket(handle).data())
}

// Frames are bounded so that neither side allocates for a length alone.
const _: () = assert!(MAX_DATAGRAM + Prefix::LONGEST <= MAX_FRAME);

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
