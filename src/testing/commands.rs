//! Encodes commands as the VM does, for tests: the inverse of [`crate::protocol::command::parse`]. The vectors of
//! docs/vectors.txt prove that it agrees with the encoder of the Elixir library.

use crate::etf::{self, Term};
use crate::netlink_socket::Spec;
use crate::netns::Target;
use crate::options::{Name, Value};
use crate::protocol::command::Command;
use crate::protocol::{event, Handle, Reference};

/// The frame of a command, without its header.
pub fn encode(reference: Reference, command: &Command<'_>) -> Vec<u8> {
    let (name, arguments) = match command {
        Command::Send(handle, datagram) => return send(1, reference, *handle, datagram),
        Command::Ask(handle, datagram) => return send(4, reference, *handle, datagram),
        Command::Grant(handle, bytes) => {
            return named("grant", vec![of(*handle), etf::integer(*bytes)])
        }
        Command::GrantAll(bytes) => return named("grant", vec![etf::integer(*bytes)]),
        Command::Open(handle, spec, window) => ("open", open(*handle, spec, *window)),
        Command::Pin(handle, target) => ("pin", vec![of(*handle), place(target)]),
        Command::Close(handle) => ("close", vec![of(*handle)]),
        Command::Bind(handle, port_id, groups) => {
            let words = [*port_id, *groups].map(etf::integer);
            ("bind", [of(*handle)].into_iter().chain(words).collect())
        }
        Command::Set(handle, name, value) => {
            let value = event::value(value.clone());
            ("set", vec![of(*handle), etf::atom(name.atom()), value])
        }
        Command::Get(handle, name) => ("get", vec![of(*handle), etf::atom(name.atom())]),
        Command::SendTo(handle, port_id, groups, datagram) => {
            let words = [*port_id, *groups].map(etf::integer);
            let mut arguments: Vec<Term> = [of(*handle)].into_iter().chain(words).collect();
            arguments.push(etf::binary(datagram));
            ("send_to", arguments)
        }
        Command::SocketInfo(handle) => ("info", vec![of(*handle)]),
        Command::Info => ("info", vec![]),
        Command::Ping => ("ping", vec![]),
        Command::Stop => ("stop", vec![]),
    };
    let reference = [etf::integer(reference.0)];
    named(name, reference.into_iter().chain(arguments).collect())
}

fn named(name: &str, arguments: Vec<Term>) -> Vec<u8> {
    let name = [etf::atom(name)];
    etf::encode(etf::tuple(name.into_iter().chain(arguments).collect()))
}

fn of(handle: Handle) -> Term {
    etf::integer(handle.0)
}

fn send(kind: u8, reference: Reference, handle: Handle, datagram: &[u8]) -> Vec<u8> {
    let mut frame = vec![131, 104, 4, 97, kind, 98];
    frame.extend(reference.0.to_be_bytes());
    frame.push(98);
    frame.extend(handle.0.to_be_bytes());
    frame.push(109);
    frame.extend((datagram.len() as u32).to_be_bytes());
    frame.extend(datagram);
    frame
}

fn place(target: &Target) -> Term {
    match target {
        Target::Host => etf::atom("host"),
        Target::Path(path) => etf::tuple(vec![etf::atom("path"), etf::binary(path)]),
        Target::Pid(pid) => etf::tuple(vec![etf::atom("pid"), etf::integer(*pid)]),
    }
}

fn open(handle: Handle, spec: &Spec, window: u64) -> Vec<Term> {
    let target = match spec.known.as_slice() {
        [] => place(&spec.target),
        known => {
            let known = event::processes(known);
            etf::tuple(vec![etf::atom("known"), place(&spec.target), known])
        }
    };
    let target = match spec.watched {
        true => etf::tuple(vec![etf::atom("watched"), target]),
        false => target,
    };
    let option = |(name, value): &(Name, Value)| {
        etf::tuple(vec![etf::atom(name.atom()), event::value(value.clone())])
    };
    vec![
        of(handle),
        target,
        etf::integer(spec.protocol),
        spec.bind.map_or_else(|| etf::boolean(false), etf::integer),
        etf::boolean(spec.user_peers),
        etf::integer(window),
        etf::list(spec.options.iter().map(option).collect()),
    ]
}
