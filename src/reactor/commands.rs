//! Carries out the commands of the VM, and answers them.

use super::State;
use crate::error::{At, Failure, Stage};
use crate::etf;
use crate::netlink_socket::{self, Socket, Spec};
use crate::netns::{self, Target};
use crate::poller::Poller;
use crate::protocol::command::{self, Command};
use crate::protocol::event::{self, SocketInfo};
use crate::protocol::{Handle, Reference};
use crate::sockets::{Asked, Entry, Window};
use crate::sys;
use nix::errno::Errno;

impl State {
    /// Carries out one frame.
    pub(super) fn command(&mut self, poller: &Poller, frame: &[u8]) {
        let (reference, outcome) = match command::parse(frame) {
            Ok((reference, Ok(command))) => {
                let handle = match command {
                    Command::Send(handle, _)
                    | Command::Ask(handle, _)
                    | Command::SendTo(handle, ..) => Some(handle),
                    _ => None,
                };
                let told = !matches!(command, Command::Ask(..));
                let outcome = self.perform(poller, command);
                // A send without a reference has no answer: its failure is an event.
                if let (Reference(0), Some(handle), Err(failure)) = (reference, handle, &outcome) {
                    self.outbox.push(&event::failed(handle, failure, 0));
                }
                if outcome.is_ok() && !told {
                    return;
                }
                (reference, outcome)
            }
            Ok((reference, Err(failure))) => (reference, Err(failure)),
            Err(reason) => return self.outbox.push(&event::malformed(reason)),
        };
        if reference != Reference(0) {
            self.outbox.push(&match outcome {
                Ok(value) => event::ok(reference, value),
                Err(failure) => event::error(reference, &failure),
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
                self.expect_answer(handle, datagram, false);
            }
            Command::Ask(handle, datagram) => {
                self.socket(handle)?.send(datagram, None)?;
                self.expect_answer(handle, datagram, true);
            }
            Command::SendTo(handle, port_id, groups, datagram) => {
                let to = Some((port_id, groups));
                self.socket(handle)?.send(&datagram, to)?;
            }
            Command::Grant(handle, bytes) => {
                if let Some(entry) = self.sockets.get_mut(handle) {
                    entry.window.grant(bytes);
                    poller.watch(handle, entry);
                    self.make_due(handle);
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
                return Ok(Some(event::value(value)));
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
            asked: Asked::default(),
            leaving: false,
            due: false,
        };
        poller.add(handle, &entry).at(Stage::Socket)?;
        let place = entry.socket.place();
        self.watches.entered(handle, place.identity);
        let mut properties = event::place(place);
        properties.push(event::property(
            "port_id",
            etf::integer(entry.socket.port_id()),
        ));
        properties.push(event::property("processes", event::processes(&processes)));
        self.sockets.insert(handle, entry);
        Ok(etf::list(properties))
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
        let cookie = socket
            .ok()
            .and_then(|socket| netlink_socket::cookie(&socket));
        let identity = namespace.identity;
        let descriptor = self.pins.hold(handle, namespace.file).at(Stage::Open)?;
        Ok(event::pin(descriptor, identity, cookie))
    }

    fn socket(&mut self, handle: Handle) -> Result<&mut Socket, Failure> {
        let entry = self.sockets.get_mut(handle).ok_or_else(closed)?;
        Ok(&mut entry.socket)
    }

    fn socket_info(&mut self, handle: Handle) -> Result<etf::Term, Failure> {
        let entry = self.sockets.get_mut(handle).ok_or_else(closed)?;
        Ok(event::socket(&SocketInfo {
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
        let number = |name, value: u64| event::property(name, etf::integer(value));
        // The listing itself has one descriptor open.
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count().saturating_sub(1));
        etf::list(vec![
            number("os_pid", std::process::id().into()),
            event::property("home", event::identity(self.home.identity())),
            number("sockets", self.sockets.len() as u64),
            number("pins", self.pins.len() as u64),
            number("fds", fds as u64),
            number("granted", self.window.granted()),
            number("charged", self.window.charged()),
        ])
    }
}

/// The failure of a command whose handle has no socket.
fn closed() -> Failure {
    Failure::new(Stage::Info, Errno::EBADF)
}
