//! Commands and events, to and from terms, without input or output. docs/protocol.md is the specification; its
//! vectors are tested here and in Elixir.
//!
//! Frames that carry a datagram have a fixed prefix, so that neither side builds a term for them:
//!
//! ```text
//! send   131 104 4 97 1 98 <ref:32> 98 <handle:32> 109 <length:32> datagram
//! data   131 104 3 97 1 98 <handle:32> 109 <length:32> datagram
//! answer 131 104 3 97 3 98 <handle:32> 109 <length:32> datagram
//! data   131 104 6 97 2 98 <handle:32> 98 <group:32> 98 <nsid:32> 98 <sender:32> 109 <length:32> datagram
//! ```

use crate::error::Failure;
use crate::etf::{self, Malformed, Term};
use crate::frame::HEADER;
use crate::netlink::{Place, Queue, Spec, Tally};
use crate::netns::{Identity, Target};
use crate::options::{Name, Value};
use crate::privileges::Inherited;
use crate::process::Process;
use crate::sys::Received;
use byteorder::{BigEndian, ByteOrder};
use std::mem::take;
use std::os::fd::RawFd;

/// Version of the protocol, named in `hello`.
pub const VERSION: u8 = 4;
/// Length of the fixed prefix of a `send` frame.
const SEND_PREFIX: usize = 20;
/// The value of a metadata field that a datagram does not have.
const ABSENT: i32 = i32::MIN;

/// The name of a socket or a pin on the wire. The VM never uses a handle twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u32);

/// Matches an answer to its command. 0 asks for no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference(pub u32);

/// A command from standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// Open a socket, with its first window in bytes.
    Open(Handle, Box<Spec>, u64),
    /// Hold a namespace, so that messages can name it by a descriptor.
    Pin(Handle, Target),
    /// Close a socket, or end a pin.
    Close(Handle),
    /// Bind a socket to a port id and a mask of groups.
    Bind(Handle, u32, u32),
    /// Set an option.
    Set(Handle, Name, Value),
    /// Read an option.
    Get(Handle, Name),
    /// Send a datagram to the kernel.
    Send(Handle, &'a [u8]),
    /// Send a datagram to other processes, by port id or by a mask of groups.
    SendTo(Handle, u32, u32, Vec<u8>),
    /// Answer with the state of one socket.
    SocketInfo(Handle),
    /// Answer with the state of the program.
    Info,
    /// Raise the window of one socket to this many bytes, counted from its open.
    Grant(Handle, u64),
    /// Raise the window of the whole program to this many bytes, counted from its start.
    GrantAll(u64),
    /// Answer.
    Ping,
    /// Answer, and end the program.
    Stop,
}

/// Decodes one frame. A malformed term has no reference, and so no answer. A term that is no command is answered
/// if its second element is a reference.
pub fn parse(frame: &[u8]) -> Result<(Reference, Result<Command<'_>, Failure>), Malformed> {
    if let Some((reference, handle, datagram)) = parse_send(frame) {
        return Ok((reference, Ok(Command::Send(handle, datagram))));
    }
    let mut term = etf::decode(frame)?;
    let elements = etf::as_tuple_mut(&mut term).unwrap_or_default();
    let reference = match elements {
        [name, ..] if etf::as_atom(name) == Some("grant") => None,
        [_, reference, ..] => unsigned(reference).filter(|value| *value <= i32::MAX as u32),
        _ => None,
    };
    let command = command(elements);
    Ok((Reference(reference.unwrap_or(0)), command))
}

/// The fast path of [`parse`]: a frame that is exactly a `send`.
fn parse_send(frame: &[u8]) -> Option<(Reference, Handle, &[u8])> {
    let (prefix, datagram) = frame.split_at_checked(SEND_PREFIX)?;
    match prefix {
        [131, 104, 4, 97, 1, 98, reference @ .., 98, _, _, _, _, 109, _, _, _, _]
            if reference.len() == 4 =>
        {
            let [.., h0, h1, h2, h3, _, l0, l1, l2, l3] = *prefix else {
                return None;
            };
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            let reference = BigEndian::read_u32(reference);
            let handle = u32::from_be_bytes([h0, h1, h2, h3]);
            (length == datagram.len()).then_some((Reference(reference), Handle(handle), datagram))
        }
        _ => None,
    }
}

/// Reads a command, and moves the binaries out of the term, which saves a copy of each.
fn command<'a>(elements: &mut [Term]) -> Result<Command<'a>, Failure> {
    let (name, arguments) = elements
        .split_first_mut()
        .ok_or(Failure::protocol("not a tuple"))?;
    let name = etf::as_atom(name).ok_or(Failure::protocol("no name"))?;
    let parsed = match (name, arguments) {
        ("open", [_, handle, target, protocol, bind, user_peers, window, options]) => {
            open(handle, target, protocol, bind, user_peers, window, options)
        }
        ("pin", [_, handle, target]) => {
            (|| Some(Command::Pin(handle_of(handle)?, target_of(target)?)))()
        }
        ("close", [_, handle]) => handle_of(handle).map(Command::Close),
        ("bind", [_, handle, port_id, groups]) => (|| {
            let handle = handle_of(handle)?;
            Some(Command::Bind(handle, unsigned(port_id)?, unsigned(groups)?))
        })(),
        ("set", [_, handle, name, value]) => (|| {
            let (name, value) = option(name, value)?;
            Some(Command::Set(handle_of(handle)?, name, value))
        })(),
        ("get", [_, handle, name]) => (|| {
            let name = Name::from_atom(etf::as_atom(name)?)?;
            Some(Command::Get(handle_of(handle)?, name))
        })(),
        ("send_to", [_, handle, port_id, groups, Term::Binary(datagram)]) => (|| {
            let (handle, port_id) = (handle_of(handle)?, unsigned(port_id)?);
            let groups = unsigned(groups)?;
            Some(Command::SendTo(handle, port_id, groups, take(datagram)))
        })(),
        ("info", [_, handle]) => handle_of(handle).map(Command::SocketInfo),
        ("info", [_]) => Some(Command::Info),
        ("grant", [handle, bytes]) => {
            (|| Some(Command::Grant(handle_of(handle)?, window_of(bytes)?)))()
        }
        ("grant", [bytes]) => window_of(bytes).map(Command::GrantAll),
        ("ping", [_]) => Some(Command::Ping),
        ("stop", [_]) => Some(Command::Stop),
        _ => return Err(Failure::protocol("unknown command")),
    };
    parsed.ok_or(Failure::protocol("wrong argument"))
}

fn open<'a>(
    handle: &Term,
    target: &mut Term,
    protocol: &Term,
    bind: &Term,
    user_peers: &Term,
    window: &Term,
    options: &mut Term,
) -> Option<Command<'a>> {
    let bind = match etf::as_atom(bind) {
        Some("false") => None,
        Some(_) => return None,
        None => Some(unsigned(bind)?),
    };
    let (target, watched) = watched_target_of(target)?;
    let (target, known) = known_target_of(target)?;
    let spec = Spec {
        target,
        known,
        watched,
        protocol: i32::try_from(etf::as_integer(protocol)?).ok()?,
        bind,
        user_peers: boolean(user_peers)?,
        options: options_of(options)?,
    };
    let window = window_of(window)?;
    Some(Command::Open(handle_of(handle)?, Box::new(spec), window))
}

/// A target, or `{watched, Target}`, which is not `host`.
fn watched_target_of(term: &mut Term) -> Option<(&mut Term, bool)> {
    if !matches!(etf::as_tuple_mut(term), Some([kind, _]) if etf::as_atom(kind) == Some("watched"))
    {
        return Some((term, false));
    }
    match etf::as_tuple_mut(term) {
        Some([_, target]) if etf::as_atom(target) != Some("host") => Some((target, true)),
        _ => None,
    }
}

/// A target, or `{known, Target, Processes}`.
fn known_target_of(term: &mut Term) -> Option<(Target, Vec<Process>)> {
    match etf::as_tuple_mut(term) {
        Some([kind, target, processes]) if etf::as_atom(kind) == Some("known") => {
            Some((target_of(target)?, processes_of(processes)?))
        }
        _ => Some((target_of(term)?, Vec::new())),
    }
}

fn processes_of(term: &mut Term) -> Option<Vec<Process>> {
    match term {
        Term::Nil => Some(Vec::new()),
        Term::List(processes) => processes.iter_mut().map(process_of).collect(),
        _ => None,
    }
}

fn process_of(term: &mut Term) -> Option<Process> {
    match etf::as_tuple_mut(term)? {
        [id, started, inode] => Some(Process {
            id: i32::try_from(etf::as_integer(id)?).ok()?,
            started: window_of(started)?,
            inode: window_of(inode)?,
        }),
        _ => None,
    }
}

fn target_of(term: &mut Term) -> Option<Target> {
    if etf::as_atom(term) == Some("host") {
        return Some(Target::Host);
    }
    match etf::as_tuple_mut(term)? {
        [kind, Term::Binary(path)] if etf::as_atom(kind) == Some("path") => {
            Some(Target::Path(take(path)))
        }
        [kind, pid] if etf::as_atom(kind) == Some("pid") => {
            let pid = i32::try_from(etf::as_integer(pid)?).ok()?;
            Some(Target::Pid(pid))
        }
        _ => None,
    }
}

fn options_of(term: &mut Term) -> Option<Vec<(Name, Value)>> {
    match term {
        Term::Nil => Some(Vec::new()),
        Term::List(pairs) => pairs
            .iter_mut()
            .map(|pair| match etf::as_tuple_mut(pair)? {
                [name, value] => option(name, value),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn option(name: &Term, value: &mut Term) -> Option<(Name, Value)> {
    let value = match value {
        Term::Binary(program) => Value::Program(take(program)),
        other => match etf::as_atom(other) {
            Some(_) => Value::Integer(boolean(other)?.into()),
            None => Value::Integer(unsigned(other)?),
        },
    };
    Some((Name::from_atom(etf::as_atom(name)?)?, value))
}

fn boolean(term: &Term) -> Option<bool> {
    match etf::as_atom(term)? {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn unsigned(term: &Term) -> Option<u32> {
    u32::try_from(etf::as_integer(term)?).ok()
}

fn handle_of(term: &Term) -> Option<Handle> {
    let handle = unsigned(term)?;
    (handle <= i32::MAX as u32).then_some(Handle(handle))
}

fn window_of(term: &Term) -> Option<u64> {
    u64::try_from(etf::as_integer(term)?).ok()
}

/// The answer to a command that has succeeded.
pub fn ok(reference: Reference, value: Option<Term>) -> Vec<u8> {
    let mut elements = vec![etf::atom("ok"), etf::integer(reference.0)];
    elements.extend(value);
    etf::encode(etf::tuple(elements))
}

/// The answer to a command that has failed.
pub fn error(reference: Reference, failure: &Failure) -> Vec<u8> {
    etf::encode(etf::tuple(vec![
        etf::atom("error"),
        etf::integer(reference.0),
        etf::atom(failure.stage.atom()),
        etf::integer(failure.errno as i32),
        etf::binary(failure.detail.as_bytes()),
    ]))
}

/// The event of a failure on a socket that is the answer to no command. `length` is the real length of a
/// datagram that was cut, and otherwise 0.
pub fn failed(handle: Handle, failure: &Failure, length: usize) -> Vec<u8> {
    etf::encode(etf::tuple(vec![
        etf::atom("failed"),
        etf::integer(handle.0),
        etf::atom(failure.stage.atom()),
        etf::integer(failure.errno as i32),
        etf::integer(length as u64),
    ]))
}

/// The event that a socket has lost this many datagrams before the next one.
pub fn overrun(handle: Handle, dropped: u32) -> Vec<u8> {
    etf::encode(etf::tuple(vec![
        etf::atom("overrun"),
        etf::integer(handle.0),
        etf::integer(dropped),
    ]))
}

/// The event that the namespace of a socket is gone, and the socket closed.
pub fn gone(handle: Handle) -> Vec<u8> {
    let elements = vec![etf::atom("gone"), etf::integer(handle.0)];
    etf::encode(etf::tuple(elements))
}

/// The event that a frame was no term of this protocol.
pub fn malformed(reason: Malformed) -> Vec<u8> {
    etf::encode(etf::tuple(vec![
        etf::atom("malformed"),
        etf::atom(reason.atom()),
    ]))
}

/// What the first frame says about the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its process id.
    pub os_pid: u32,
    /// Its home namespace.
    pub home: Identity,
    /// Whether it can enter other namespaces.
    pub may_leave: bool,
    /// The numbers of its usable capabilities, include/uapi/linux/capability.h.
    pub capabilities: Vec<u8>,
    /// The longest frame that it takes.
    pub max_frame: usize,
    /// How many descriptors it may have open (RLIMIT_NOFILE).
    pub max_fds: u64,
    /// The lowest number of the descriptors that it keeps open, apart from 0, 1 and 2.
    pub lowest_fd: u32,
    /// The inode of its user namespace; 0 if the kernel has no user namespaces.
    pub user_namespace: u64,
    /// The restrictions that it was started with.
    pub inherited: Inherited,
}

/// The first frame.
pub fn hello(hello: &Hello) -> Vec<u8> {
    let capabilities = hello.capabilities.iter().map(|c| etf::integer(*c));
    etf::encode(etf::tuple(vec![
        etf::atom("hello"),
        etf::integer(VERSION),
        etf::list(vec![
            property("program", etf::binary(env!("CARGO_PKG_VERSION").as_bytes())),
            property("os_pid", etf::integer(hello.os_pid)),
            property("home", identity(hello.home)),
            property("may_leave", etf::boolean(hello.may_leave)),
            property("capabilities", etf::list(capabilities.collect())),
            property("max_frame", etf::integer(hello.max_frame as u64)),
            property("max_fds", etf::integer(hello.max_fds)),
            property("lowest_fd", etf::integer(hello.lowest_fd)),
            property("user_namespace", etf::integer(hello.user_namespace)),
            property("bounding", etf::integer(hello.inherited.bounding)),
            property("no_new_privs", etf::boolean(hello.inherited.no_new_privs)),
            property("seccomp", etf::integer(hello.inherited.seccomp)),
        ]),
    ]))
}

/// One property of a list of properties.
pub fn property(name: &str, value: Term) -> Term {
    etf::tuple(vec![etf::atom(name), value])
}

/// A namespace, as `{Device, Inode}`.
pub fn identity(identity: Identity) -> Term {
    let Identity { device, inode } = identity;
    etf::tuple(vec![etf::integer(device), etf::integer(inode)])
}

/// The place of a socket, as properties.
pub fn place(place: Place) -> Vec<Term> {
    let mut told = namespace(place.identity, place.cookie);
    told.push(property("verified", etf::boolean(place.verified)));
    told
}

/// A namespace and its cookie, `nil` if the kernel does not tell it, as properties.
fn namespace(of: Identity, cookie: Option<u64>) -> Vec<Term> {
    let cookie = cookie.map_or_else(|| etf::atom("nil"), etf::integer);
    vec![
        property("namespace", identity(of)),
        property("cookie", cookie),
    ]
}

/// The answer to `pin`.
pub fn pin(descriptor: RawFd, of: Identity, cookie: Option<u64>) -> Term {
    let mut told = namespace(of, cookie);
    told.push(property("descriptor", etf::integer(descriptor)));
    etf::list(told)
}

/// The processes that a target has led through, as in `{known, Target, Processes}`.
pub fn processes(processes: &[Process]) -> Term {
    let process = |process: &Process| {
        let Process { id, started, inode } = *process;
        etf::tuple(vec![
            etf::integer(id),
            etf::integer(started),
            etf::integer(inode),
        ])
    };
    etf::list(processes.iter().map(process).collect())
}

/// What `info` says about a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketInfo {
    /// Where it is.
    pub place: Place,
    /// The port id it is bound to.
    pub port_id: u32,
    /// Datagrams that the kernel has dropped, as far as reported.
    pub drops: u32,
    /// Datagrams from user space that were dropped.
    pub foreign: u64,
    /// The datagrams that were forwarded.
    pub received: Tally,
    /// The datagrams that were sent.
    pub sent: Tally,
    /// The kernel's receive queue, if the kernel reports it.
    pub queue: Option<Queue>,
    /// The bytes granted to its window since its open.
    pub granted: u64,
    /// The bytes charged to its window since its open.
    pub charged: u64,
}

/// The answer to `info` of a socket.
pub fn socket(info: &SocketInfo) -> Term {
    let number = |name, value: u64| property(name, etf::integer(value));
    let (queued, limit) = info
        .queue
        .map_or((0, 0), |queue| (queue.queued, queue.limit));
    let mut told = place(info.place);
    told.extend([
        number("port_id", info.port_id.into()),
        number("drops", info.drops.into()),
        number("foreign", info.foreign),
        number("received", info.received.datagrams),
        number("received_bytes", info.received.bytes),
        number("sent", info.sent.datagrams),
        number("sent_bytes", info.sent.bytes),
        number("queued_bytes", queued.into()),
        number("queue_limit", limit.into()),
        number("granted", info.granted),
        number("charged", info.charged),
    ]);
    etf::list(told)
}

/// The value of an option, as a term.
pub fn value(value: Value) -> Term {
    match value {
        Value::Integer(value) => etf::integer(value),
        Value::Program(program) => etf::binary(&program),
        Value::Groups(groups) => etf::list(groups.into_iter().map(etf::integer).collect()),
    }
}

/// The three forms of a frame that carries a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The datagram alone.
    Plain,
    /// The datagram alone, probably an answer: the VM is likely to send the next request soon.
    Answer,
    /// With metadata.
    Metadata,
}

/// The prefix of a frame that carries a datagram, the frame's header included.
#[derive(Debug)]
pub struct Prefix {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl Prefix {
    /// Length of the longest prefix.
    pub const LONGEST: usize = HEADER + 30;

    /// The length of the prefix of a form.
    pub fn length(form: Form) -> usize {
        match form {
            Form::Plain | Form::Answer => HEADER + 15,
            Form::Metadata => Self::LONGEST,
        }
    }

    /// The prefix of one datagram.
    pub fn of(handle: Handle, form: Form, received: &Received) -> Self {
        let mut prefix = Self {
            bytes: [0; Self::LONGEST],
            length: 0,
        };
        let total = Self::length(form) - HEADER + received.length;
        prefix.put(&(total as u32).to_be_bytes());
        prefix.put(match form {
            Form::Plain => &[131, 104, 3, 97, 1],
            Form::Metadata => &[131, 104, 6, 97, 2],
            Form::Answer => &[131, 104, 3, 97, 3],
        });
        prefix.put_integer(handle.0 as i32);
        if form == Form::Metadata {
            prefix.put_integer(received.group.map_or(ABSENT, |group| group as i32));
            prefix.put_integer(received.nsid.unwrap_or(ABSENT));
            prefix.put_integer(received.sender as i32);
        }
        prefix.put(&[109]);
        prefix.put(&(received.length as u32).to_be_bytes());
        prefix
    }

    /// The bytes of the prefix.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn put_integer(&mut self, value: i32) {
        self.put(&[98]);
        self.put(&value.to_be_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(bytes);
            self.length = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Stage;
    use crate::testing::commands;
    use nix::errno::Errno;

    /// The vectors of docs/vectors.txt: `name: hex`, one a line.
    fn vector(wanted: &str) -> Vec<u8> {
        let line = include_str!("../docs/vectors.txt")
            .lines()
            .find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))
            .unwrap_or_else(|| panic!("no vector {wanted}"));
        let digits: Vec<u8> = line.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        digits.chunks(2).map(|p| pair(p).unwrap()).collect()
    }

    fn parsed(name: &str, reference: u32, expected: Command<'_>) {
        let frame = vector(name);
        let reference = Reference(reference);
        let answer = parse(&frame).unwrap();
        assert_eq!(answer, (reference, Ok(expected.clone())), "{name}");
        // That one has a `true`, which is a 1 once it is read.
        if name != "open path" {
            assert_eq!(commands::encode(reference, &expected), frame, "{name}");
        }
    }

    #[test]
    fn commands_match_their_vectors() {
        let spec = Spec {
            target: Target::Path(b"/run/netns/blue".to_vec()),
            known: vec![],
            watched: false,
            protocol: 0,
            bind: Some(0),
            user_peers: false,
            options: vec![
                (Name::ExtAck, Value::Integer(1)),
                (Name::AddMembership, Value::Integer(33)),
                (Name::Filter, Value::Program(vec![0, 6, 0, 0, 0, 4, 0, 0])),
            ],
        };
        parsed(
            "open path",
            1,
            Command::Open(Handle(7), Box::new(spec.clone()), 1 << 20),
        );
        let spec = Spec {
            target: Target::Pid(4242),
            known: vec![],
            watched: false,
            protocol: 16,
            bind: None,
            user_peers: true,
            options: vec![],
        };
        parsed(
            "open pid",
            2,
            Command::Open(Handle(8), Box::new(spec.clone()), 1 << 40),
        );
        let spec = Spec {
            watched: true,
            ..spec
        };
        parsed(
            "open watched",
            13,
            Command::Open(Handle(10), Box::new(spec.clone()), 1 << 20),
        );
        let spec = Spec {
            known: vec![Process {
                id: 4242,
                started: 8_639_017,
                inode: 1 << 40,
            }],
            ..spec
        };
        parsed(
            "open known",
            14,
            Command::Open(Handle(11), Box::new(spec.clone()), 1 << 20),
        );
        let spec = Spec {
            known: vec![],
            target: Target::Host,
            watched: false,
            bind: Some(0xFFFF_FFFF),
            protocol: -1,
            user_peers: false,
            ..spec
        };
        parsed("open host", 3, Command::Open(Handle(9), Box::new(spec), 0));
        let target = Target::Path(b"/run/netns/blue".to_vec());
        parsed("pin", 14, Command::Pin(Handle(11), target));
        parsed("pin pid", 15, Command::Pin(Handle(12), Target::Pid(4242)));
        parsed("pin host", 16, Command::Pin(Handle(13), Target::Host));
        parsed("close", 4, Command::Close(Handle(7)));
        parsed("bind", 5, Command::Bind(Handle(7), 0, 0x8000_0001));
        parsed(
            "set",
            6,
            Command::Set(Handle(7), Name::Rcvbuf, Value::Integer(1 << 20)),
        );
        parsed("get", 7, Command::Get(Handle(7), Name::Memberships));
        parsed("send", 0, Command::Send(Handle(7), b"\x00\x01\x02\xff"));
        parsed(
            "send answered",
            0x7FFF_FFFF,
            Command::Send(Handle(0x7FFF_FFFF), b""),
        );
        parsed(
            "send_to",
            8,
            Command::SendTo(Handle(7), 0, 1, b"hi".to_vec()),
        );
        parsed("info socket", 9, Command::SocketInfo(Handle(7)));
        parsed("info", 10, Command::Info);
        parsed("grant", 0, Command::Grant(Handle(7), 1 << 33));
        parsed("grant all", 0, Command::GrantAll(1 << 23));
        parsed("ping", 11, Command::Ping);
        parsed("stop", 12, Command::Stop);
    }

    #[test]
    fn events_match_their_vectors() {
        let failure = Failure {
            stage: Stage::Setsockopt,
            errno: Errno::EPERM,
            detail: "listen_all_nsid".into(),
        };
        let reference = Reference(300);
        assert_eq!(ok(reference, None), vector("ok"));
        let listed = value(Value::Groups(vec![1, 33, 70_000]));
        assert_eq!(ok(reference, Some(listed)), vector("ok groups"));
        assert_eq!(error(reference, &failure), vector("error"));
        let told = socket(&SocketInfo {
            place: Place {
                identity: Identity {
                    device: 4,
                    inode: 4_026_531_840,
                },
                cookie: None,
                verified: true,
            },
            port_id: 4_242,
            drops: 3_000_000_000,
            foreign: 1,
            received: Tally {
                datagrams: 300,
                bytes: 1 << 40,
            },
            sent: Tally {
                datagrams: 7,
                bytes: 140,
            },
            queue: Some(Queue {
                queued: 768,
                limit: 212_992,
            }),
            granted: 1_048_576,
            charged: 440,
        });
        assert_eq!(ok(reference, Some(told)), vector("ok socket"));
        let home = Identity {
            device: 4,
            inode: 4_026_531_840,
        };
        let told = pin(4096, home, Some(1 << 40));
        assert_eq!(ok(reference, Some(told)), vector("ok pin"));
        let failure = Failure::new(Stage::Recv, Errno::EMSGSIZE);
        assert_eq!(failed(Handle(7), &failure, 5_000_000), vector("failed"));
        assert_eq!(overrun(Handle(7), 3_000_000_000), vector("overrun"));
        assert_eq!(gone(Handle(7)), vector("gone"));
        assert_eq!(malformed(Malformed::Tag), vector("malformed"));
    }

    #[test]
    fn datagrams_match_their_vectors() {
        let received = Received {
            length: 4,
            sender: 0,
            group: None,
            nsid: None,
        };
        let frame = |form, received: &Received| {
            let mut frame = Prefix::of(Handle(7), form, received).bytes().to_vec();
            assert_eq!(frame.len(), Prefix::length(form));
            frame.extend(b"\x00\x01\x02\xff");
            frame.split_off(HEADER)
        };
        assert_eq!(frame(Form::Plain, &received), vector("data"));
        assert_eq!(frame(Form::Answer, &received), vector("data answer"));
        let absent = vector("data metadata absent");
        assert_eq!(frame(Form::Metadata, &received), absent);
        let received = Received {
            length: 4,
            sender: 0xFFFF_FFFE,
            group: Some(33),
            nsid: Some(-1),
        };
        assert_eq!(frame(Form::Metadata, &received), vector("data metadata"));
    }

    #[test]
    fn hello_matches_its_vector() {
        let told = hello(&Hello {
            os_pid: 4242,
            home: Identity {
                device: 4,
                inode: 4_026_531_840,
            },
            may_leave: true,
            capabilities: vec![12, 21],
            max_frame: 16_777_280,
            max_fds: 4096,
            lowest_fd: 1024,
            user_namespace: 4_026_531_837,
            inherited: Inherited {
                bounding: 0x1ff_ffff_ffff,
                no_new_privs: true,
                seccomp: 2,
            },
        });
        assert_eq!(told, vector("hello"));
    }

    #[test]
    fn what_is_no_command_is_refused_with_its_reference() {
        let refused = |term: Term| {
            let frame = etf::encode(term);
            let (reference, outcome) = parse(&frame).unwrap();
            (reference.0, outcome.unwrap_err().detail)
        };
        let named = |name, rest: Vec<Term>| {
            let mut elements = vec![etf::atom(name), etf::integer(5)];
            elements.extend(rest);
            etf::tuple(elements)
        };
        assert_eq!(refused(etf::integer(1)), (0, "not a tuple".into()));
        assert_eq!(refused(etf::tuple(vec![])), (0, "not a tuple".into()));
        assert_eq!(
            refused(named("dance", vec![])),
            (5, "unknown command".into())
        );
        assert_eq!(
            refused(named("close", vec![])),
            (5, "unknown command".into())
        );
        let watched = etf::tuple(vec![etf::atom("watched"), etf::atom("host")]);
        let pin = vec![etf::integer(7), watched];
        assert_eq!(refused(named("pin", pin)), (5, "wrong argument".into()));
        let too_large = vec![etf::integer(1_u64 << 31)];
        assert_eq!(
            refused(named("close", too_large)),
            (5, "wrong argument".into())
        );
        let watched_host = etf::tuple(vec![etf::atom("watched"), etf::atom("host")]);
        let rest = [0, 0].map(etf::integer).into_iter();
        let mut open = vec![etf::integer(7), watched_host];
        open.extend(rest.chain([etf::boolean(false), etf::integer(1), etf::list(vec![])]));
        assert_eq!(refused(named("open", open)), (5, "wrong argument".into()));
        let unknown = vec![etf::integer(7), etf::atom("frobnicate"), etf::integer(1)];
        assert_eq!(refused(named("set", unknown)), (5, "wrong argument".into()));
    }

    #[test]
    fn a_send_frame_with_a_wrong_length_is_no_send() {
        let mut frame = vector("send");
        frame.pop();
        assert_eq!(parse(&frame), Err(Malformed::Truncated));
        let mut frame = vector("send");
        frame.push(0);
        assert_eq!(parse(&frame), Err(Malformed::Trailing));
    }
}
