//! Commands: the VM to the helper.

use super::{datagram, Handle, Reference};
use crate::error::Failure;
use crate::etf::{self, Malformed, Term};
use crate::netlink_socket::Spec;
use crate::netns::Target;
use crate::options::{Name, Value};
use crate::process::Process;
use std::mem::take;

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
    /// Send a datagram to the kernel, and answer only if that fails.
    Ask(Handle, &'a [u8]),
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
    if let Some((reference, command)) = datagram::parse(frame) {
        return Ok((reference, Ok(command)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::vector;
    use crate::testing::commands;

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
        parsed("ask", 9, Command::Ask(Handle(7), b"\x00\x01\x02\xff"));
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
