//! Events: the helper to the VM. Those that carry a datagram are in datagram.rs.

use super::{Handle, Reference, VERSION};
use crate::error::Failure;
use crate::etf::{self, Malformed, Term};
use crate::netlink_socket::{Place, Queue, Tally};
use crate::netns::Identity;
use crate::options::Value;
use crate::privileges::Inherited;
use crate::process::Process;
use std::os::fd::RawFd;

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
    let mut properties = namespace(place.identity, place.cookie);
    properties.push(property("verified", etf::boolean(place.verified)));
    properties
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
    let mut properties = namespace(of, cookie);
    properties.push(property("descriptor", etf::integer(descriptor)));
    etf::list(properties)
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
    let mut properties = place(info.place);
    properties.extend([
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
    etf::list(properties)
}

/// The value of an option, as a term.
pub fn value(value: Value) -> Term {
    match value {
        Value::Integer(value) => etf::integer(value),
        Value::Program(program) => etf::binary(&program),
        Value::Groups(groups) => etf::list(groups.into_iter().map(etf::integer).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Stage;
    use crate::protocol::vector;
    use nix::errno::Errno;

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
        let properties = socket(&SocketInfo {
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
        assert_eq!(ok(reference, Some(properties)), vector("ok socket"));
        let home = Identity {
            device: 4,
            inode: 4_026_531_840,
        };
        let properties = pin(4096, home, Some(1 << 40));
        assert_eq!(ok(reference, Some(properties)), vector("ok pin"));
        let failure = Failure::new(Stage::Recv, Errno::EMSGSIZE);
        assert_eq!(failed(Handle(7), &failure, 5_000_000), vector("failed"));
        assert_eq!(overrun(Handle(7), 3_000_000_000), vector("overrun"));
        assert_eq!(gone(Handle(7)), vector("gone"));
        assert_eq!(malformed(Malformed::Tag), vector("malformed"));
    }

    #[test]
    fn hello_matches_its_vector() {
        let frame = hello(&Hello {
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
        assert_eq!(frame, vector("hello"));
    }
}
