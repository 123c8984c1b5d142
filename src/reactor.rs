//! The loop, on one thread: commands in, datagrams out.
//!
//! Rules that prevent deadlock and unbounded memory:
//! - A socket is read only while its window, the program's window and the arena have room.
//! - Commands are read, also while standard output is full, until the room for answers is used up.
//! - End of input ends the program at once, whatever else it is doing.

use crate::error::{At, Exit, Failure, Fatal, Stage};
use crate::etf;
use crate::frame::{Inbox, Outbox, MAX_FRAME};
use crate::netlink::{self, Arrival, Socket, Spec};
use crate::netns::{self, Home, Target};
use crate::pins::Pins;
use crate::poller::{pipes, Poller, Ready, Wire};
use crate::protocol::{self, Command, Form, Handle, Prefix, Reference, SocketInfo};
use crate::sockets::{Entry, Sockets, Window};
use crate::sys;
use crate::watch::Watches;
use nix::errno::Errno;
use std::time::Duration;

/// First size of the receive buffer. The kernel fits the datagrams of a dump to the reader's buffer, up to 32 KiB.
const DATAGRAM: usize = 1 << 20;
/// Largest size that the receive buffer grows to: a frame must not exceed the limit of the VM's side.
const MAX_DATAGRAM: usize = 16 << 20;
/// How many datagrams are read from one socket before the next socket has its turn.
const TURN: usize = 64;
/// The loop and its state.
#[derive(Debug)]
pub struct Reactor {
    wire: Wire,
    poller: Poller,
    inbox: Inbox,
    /// Whether whole frames wait in the inbox because the outbox has no room for their answers.
    stalled: bool,
    state: State,
}

/// The state that commands and datagrams change.
#[derive(Debug)]
struct State {
    home: Home,
    sockets: Sockets,
    pins: Pins,
    watches: Watches,
    window: Window,
    outbox: Outbox,
    /// Sockets to be read.
    due: Vec<Handle>,
    /// An empty list that becomes the next `due`: it saves an allocation a turn.
    spare: Vec<Handle>,
    stopping: bool,
}

impl Reactor {
    /// Sets up the loop. `hello` is the first frame.
    pub fn new(
        wire: Wire,
        home: Home,
        pins: Pins,
        spin: Duration,
        hello: &[u8],
    ) -> Result<Self, Fatal> {
        let watches = Watches::new()?;
        let poller = Poller::new(&wire, &watches, spin)?;
        let mut outbox = Outbox::new(DATAGRAM);
        outbox.push(hello);
        Ok(Self {
            wire,
            poller,
            inbox: Inbox::new(),
            stalled: false,
            state: State {
                home,
                sockets: Sockets::default(),
                pins,
                watches,
                window: Window::default(),
                outbox,
                due: Vec::new(),
                spare: Vec::new(),
                stopping: false,
            },
        })
    }

    /// Runs until the input ends, or until the command `stop`.
    pub fn run(&mut self) -> Exit {
        loop {
            if let Err(exit) = self.turn() {
                return exit;
            }
        }
    }

    /// One turn: writes frames, waits, reads commands, reads sockets. `Err` ends the loop.
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
                Ok(_) => self.poller.commanded(),
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
            self.state.pump(&self.poller, handle);
        }
        self.state.spare = due;
        Ok(())
    }

    /// Carries out the whole frames in the inbox while the outbox has room for the answers.
    fn commands(&mut self) -> Result<(), Exit> {
        self.stalled = true;
        while self.state.outbox.has_room_for_reply() && !self.state.stopping {
            match self.inbox.next() {
                Ok(Some(frame)) => self.state.command(&self.poller, frame),
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

    /// Waits for something to do. While no socket may be read only the two pipes are polled, so that sockets with
    /// datagrams do not keep the loop awake.
    fn wait(&mut self) -> Result<Ready, Exit> {
        let writing = self.state.outbox.pending() > 0;
        let reading = !self.stalled;
        if self.stalled && self.state.outbox.has_room_for_reply() && !self.state.stopping {
            return Ok(Ready::default());
        }
        if self.state.may_read() {
            self.poller
                .all(&self.wire, reading, writing, &mut self.state.due)
        } else {
            pipes(&self.wire, reading, writing, None)
        }
        .map_err(|_| Exit::System)
    }
}

impl State {
    /// Whether any socket may be read at all.
    fn may_read(&self) -> bool {
        self.window.is_open() && self.outbox.has_room_for_datagram()
    }

    /// Carries out one frame.
    fn command(&mut self, poller: &Poller, frame: &[u8]) {
        let (reference, outcome) = match protocol::parse(frame) {
            Ok((reference, Ok(command))) => {
                let handle = match command {
                    Command::Send(handle, _) | Command::SendTo(handle, ..) => Some(handle),
                    _ => None,
                };
                let outcome = self.perform(poller, command);
                // A send without a reference has no answer: its failure is an event.
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
        poller: &Poller,
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
                    poller.watch(handle, entry);
                    self.read_again(handle);
                }
            }
            Command::GrantAll(bytes) => self.window.grant(bytes),
            Command::Open(handle, spec, window) => {
                self.reserve(handle)?;
                if spec.watched {
                    let privileges = self.home.privileges();
                    self.watches.begin(handle, &spec.target, privileges)?;
                }
                let opened = self.open(poller, handle, &spec, window);
                if opened.is_err() {
                    self.watches.end(handle);
                }
                return opened.map(Some);
            }
            Command::Pin(handle, target) => {
                self.reserve(handle)?;
                return self.pin(handle, &target).map(Some);
            }
            Command::Close(handle) if self.pins.end(handle) => {}
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
        poller: &Poller,
        handle: Handle,
        spec: &Spec,
        window: u64,
    ) -> Result<etf::Term, Failure> {
        let window = Window::new(window);
        let (socket, processes) = Socket::open(&self.home, spec)?;
        let entry = Entry {
            socket,
            watched: window.is_open(),
            window,
            undrained: false,
            asked: false,
            leaving: false,
            due: false,
        };
        poller.add(handle, &entry).at(Stage::Socket)?;
        let place = entry.socket.place();
        self.watches.entered(handle, place.identity);
        let mut told = protocol::place(place);
        told.push(protocol::property(
            "port_id",
            etf::integer(entry.socket.port_id()),
        ));
        told.push(protocol::property(
            "processes",
            protocol::processes(&processes),
        ));
        self.sockets.insert(handle, entry);
        Ok(etf::list(told))
    }

    /// Marks a handle as used. A handle stands for one socket or one pin, and is never used again.
    fn reserve(&mut self, handle: Handle) -> Result<(), Failure> {
        if !self.sockets.is_fresh(handle) {
            return Err(Failure::protocol("handle used before"));
        }
        self.sockets.reserve(handle);
        Ok(())
    }

    fn pin(&mut self, handle: Handle, target: &Target) -> Result<etf::Term, Failure> {
        let namespace = netns::open(target, &[], self.home.privileges())?;
        // The kernel tells the cookie only of a socket. If the helper may not make a socket in there, it
        // holds the namespace without a cookie.
        let probe = || sys::netlink_socket(libc::NETLINK_ROUTE).at(Stage::Socket);
        let socket = self.home.enter(&namespace, probe);
        let cookie = socket.ok().and_then(|socket| netlink::cookie(&socket));
        let identity = namespace.identity;
        let descriptor = self.pins.hold(handle, namespace.file).at(Stage::Open)?;
        Ok(protocol::pin(descriptor, identity, cookie))
    }

    fn socket(&mut self, handle: Handle) -> Result<&mut Socket, Failure> {
        let entry = self.sockets.get_mut(handle).ok_or_else(closed)?;
        Ok(&mut entry.socket)
    }

    fn socket_info(&mut self, handle: Handle) -> Result<etf::Term, Failure> {
        let entry = self.sockets.get_mut(handle).ok_or_else(closed)?;
        Ok(protocol::socket(&SocketInfo {
            place: entry.socket.place(),
            port_id: entry.socket.port_id(),
            drops: entry.socket.drops(),
            foreign: entry.socket.foreign(),
            received: entry.socket.received(),
            sent: entry.socket.sent(),
            queue: entry.socket.queue(),
            granted: entry.window.granted(),
            charged: entry.window.charged(),
        }))
    }

    fn info(&self) -> etf::Term {
        let number = |name, value: u64| protocol::property(name, etf::integer(value));
        // The listing itself has one descriptor open.
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count().saturating_sub(1));
        etf::list(vec![
            number("os_pid", std::process::id().into()),
            protocol::property("home", protocol::identity(self.home.identity())),
            number("sockets", self.sockets.len() as u64),
            number("pins", self.pins.len() as u64),
            number("fds", fds as u64),
            number("granted", self.window.granted()),
            number("charged", self.window.charged()),
        ])
    }

    /// Reads one socket until it is empty, has had its turn, or may no longer be read.
    fn pump(&mut self, poller: &Poller, handle: Handle) {
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
                    false => poller.watch(handle, entry),
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
                    // Most answers come alone. Epoll tells if more follow, which is cheaper than a failing read.
                    let asked = std::mem::take(&mut entry.asked);
                    if asked && !entry.socket.in_doubt() && !entry.leaving {
                        entry.undrained = false;
                        return poller.watch(handle, entry);
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

    /// Makes sockets whose namespace is gone take in nothing more, and reads them for the last time.
    fn leave(&mut self) {
        for handle in self.watches.gone(self.home.privileges()) {
            if let Some(entry) = self.sockets.get_mut(handle) {
                entry.socket.shut();
                entry.leaving = true;
                entry.undrained = true;
            }
            self.read_again(handle);
        }
    }

    /// Closes a socket whose namespace is gone. The event comes after all datagrams of the socket.
    fn close_gone(&mut self, handle: Handle) {
        drop(self.sockets.remove(handle));
        self.outbox.push(&protocol::gone(handle));
    }

    /// Makes a socket due before the next wait: the kernel has answered most requests before sendmsg(2) returns.
    fn expect_answer(&mut self, handle: Handle) {
        if let Some(entry) = self.sockets.get_mut(handle) {
            entry.undrained = true;
            entry.asked = true;
        }
        self.read_again(handle);
    }

    /// Makes a socket due if it may be read and its queue has not been seen empty.
    fn read_again(&mut self, handle: Handle) {
        if let Some(entry) = self.sockets.get_mut(handle) {
            let readable = entry.window.is_open() || entry.leaving;
            if entry.undrained && readable && !entry.due {
                entry.due = true;
                self.due.push(handle);
            }
        }
    }

    /// Takes the list of due sockets, or none while no socket may be read.
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

/// The failure of a command whose handle has no socket.
fn closed() -> Failure {
    Failure::new(Stage::Info, Errno::EBADF)
}

// The largest datagram fits into a frame.
const _: () = assert!(MAX_DATAGRAM + Prefix::LONGEST <= MAX_FRAME);
