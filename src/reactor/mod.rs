//! The loop, on one thread: commands in, datagrams out.
//!
//! Rules that prevent deadlock and unbounded memory:
//! - A socket is read only while its window, the program's window and the arena have room.
//! - Commands are read, also while standard output is full, until the room for answers is used up.
//! - End of input ends the program at once, whatever else it is doing.

mod commands;
mod datagrams;

use crate::error::{Exit, Fatal};
use crate::frame::{Inbox, Outbox};
use crate::namespace_watch::Watches;
use crate::netns::Home;
use crate::pins::Pins;
use crate::poller::{pipes, Poller, Ready, Wire};
use crate::protocol::Handle;
use crate::sockets::{Sockets, Window};
use nix::errno::Errno;
use std::time::Duration;

/// First size of the receive buffer. The kernel fits the datagrams of a dump to the reader's buffer, up to 32 KiB.
const DATAGRAM: usize = 1 << 20;

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
        let read = match ready.read {
            None if ready.input && !self.stalled => Some(self.inbox.fill(&self.wire.input)),
            read => read.map(Ok),
        };
        let commanded = match read {
            Some(Ok(0)) => return Err(Exit::Done),
            Some(Ok(_)) => true,
            None | Some(Err(Errno::EAGAIN)) => false,
            Some(Err(_)) => return Err(Exit::System),
        };
        if commanded {
            self.poller.commanded();
        }
        self.commands()?;
        if ready.watches {
            self.state.shut_gone();
        }
        let mut due = self.state.take_due();
        for handle in due.drain(..) {
            if !self.state.may_read() {
                self.flush()?;
            }
            self.state.read(&self.poller, handle);
        }
        self.state.spare = due;
        if commanded {
            self.poller.answered();
        }
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
            let input = &self.wire.input;
            let fill = || self.inbox.fill(input);
            self.poller
                .all(&self.wire, reading, writing, &mut self.state.due, fill)
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
}
