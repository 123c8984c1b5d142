//! One netlink socket: made, bound, connected to the kernel; its options; datagrams out and in. netlink(7).

use crate::error::{At, Failure, Stage};
use crate::netns::{Home, Identity, Target};
use crate::options::{self, Name, Value};
use crate::process::Process;
use crate::sys;
use byteorder::{ByteOrder, NativeEndian};
use nix::errno::Errno;
use nix::sys::socket::{bind, connect, getsockname, send, sendto, MsgFlags, NetlinkAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Words of `SO_MEMINFO`, include/uapi/linux/sock_diag.h: `SK_MEMINFO_RMEM_ALLOC`, the bytes of the receive
/// queue; `SK_MEMINFO_RCVBUF`, its limit; `SK_MEMINFO_DROPS`, the number of dropped datagrams.
const MEMINFO_RMEM_ALLOC: usize = 0;
const MEMINFO_RCVBUF: usize = 1;
const MEMINFO_DROPS: usize = 8;

/// What the command `open` says of the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The namespace to open it in.
    pub target: Target,
    /// The processes that `target` led through at an earlier open. The open fails if another process has the
    /// number of one of them.
    pub known: Vec<Process>,
    /// Whether the socket is closed when `target` no longer names its namespace.
    pub watched: bool,
    /// `NETLINK_ROUTE` and so on.
    pub protocol: i32,
    /// The port id to bind to, or 0 for a number that the kernel picks; `None` for no bind(2).
    pub bind: Option<u32>,
    /// Whether datagrams from other processes are accepted, and not the kernel's alone.
    pub user_peers: bool,
    /// Options to set after bind(2), in this order.
    pub options: Vec<(Name, Value)>,
}

/// The namespace that a socket is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The namespace it was opened for.
    pub identity: Identity,
    /// `SO_NETNS_COOKIE`, where the kernel has it.
    pub cookie: Option<u64>,
    /// Whether the kernel has confirmed the namespace (`SIOCGSKNS`, `NS_GET_ID`).
    pub verified: bool,
}

/// The outcome of one recvmsg(2).
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A datagram is in the buffer.
    Datagram(sys::Received),
    /// A datagram came from user space. It was counted and dropped.
    Foreign,
    /// A datagram was longer than the buffer; this is its real length.
    Truncated(usize),
    /// The queue is empty. This many datagrams were lost since it was last empty.
    Drained(u32),
    /// The kernel has begun to drop datagrams. Those in the queue are older than the dropped ones.
    Overrun,
    /// recvmsg(2) failed.
    Failed(Errno),
}

/// The datagrams that have passed in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many datagrams.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    fn count(&mut self, length: usize) {
        self.datagrams += 1;
        self.bytes += length as u64;
    }
}

/// The kernel's receive queue, in bytes as it counts them: a datagram costs more than its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// The bytes that wait.
    pub queued: u32,
    /// The bytes that may wait before datagrams are dropped.
    pub limit: u32,
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    place: Place,
    port_id: u32,
    user_peers: bool,
    pktinfo: bool,
    all_nsid: bool,
    no_enobufs: bool,
    drops: u32,
    /// Whether there may be drops that were not reported yet.
    doubt: bool,
    /// How many datagrams were read since the queue was last seen empty.
    run: u32,
    foreign: u64,
    /// Datagrams that were forwarded to the VM.
    received: Tally,
    /// Datagrams that the kernel has taken.
    sent: Tally,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// Makes a socket in its namespace, checks that it is there, binds it, connects it and sets its options.
    /// Returns it with the processes that the target led through.
    pub fn open(home: &Home, spec: &Spec) -> Result<(Self, Vec<Process>), Failure> {
        let visit = home.visit(&spec.target, &spec.known, || {
            sys::netlink_socket(spec.protocol).at(Stage::Socket)
        })?;
        let place = prove(&visit.socket, visit.identity, visit.id)?;
        let mut socket = Self {
            fd: visit.socket,
            place,
            port_id: 0,
            user_peers: spec.user_peers,
            pktinfo: false,
            all_nsid: false,
            no_enobufs: false,
            drops: 0,
            doubt: false,
            run: 0,
            foreign: 0,
            received: Tally::default(),
            sent: Tally::default(),
        };
        if let Some(port_id) = spec.bind {
            let address = NetlinkAddr::new(port_id, 0);
            bind(socket.fd.as_raw_fd(), &address).at(Stage::Bind)?;
        }
        if !socket.user_peers {
            connect(socket.fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).at(Stage::Connect)?;
        }
        socket.port_id = socket.name()?;
        // After bind(2), which would undo the memberships.
        for (name, value) in &spec.options {
            socket.set(*name, value)?;
        }
        Ok((socket, visit.processes))
    }

    /// `bind(2)`. A port id of 0 stands for the one that the socket has already, since a second bind(2) to 0 is
    /// EINVAL.
    pub fn bind(&mut self, port_id: u32, groups: u32) -> Result<(), Failure> {
        let port_id = match port_id {
            0 => self.name()?,
            other => other,
        };
        bind(self.fd.as_raw_fd(), &NetlinkAddr::new(port_id, groups)).at(Stage::Bind)?;
        self.port_id = self.name()?;
        Ok(())
    }

    /// `getsockname(2)`: the port id that the socket is bound to, 0 for none.
    fn name(&self) -> Result<u32, Failure> {
        let address: NetlinkAddr = getsockname(self.fd.as_raw_fd()).at(Stage::Info)?;
        Ok(address.pid())
    }

    /// `setsockopt(2)` by name.
    pub fn set(&mut self, name: Name, value: &Value) -> Result<(), Failure> {
        options::set(&self.fd, name, value)?;
        let on = *value != Value::Integer(0);
        match name {
            Name::Pktinfo => self.pktinfo = on,
            Name::ListenAllNsid => self.all_nsid = on,
            Name::NoEnobufs => self.no_enobufs = on,
            _ => {}
        }
        Ok(())
    }

    /// `getsockopt(2)` by name.
    pub fn get(&self, name: Name) -> Result<Value, Failure> {
        match options::get(&self.fd, name) {
            // Not every kernel lets this option be read.
            Err(_) if name == Name::ListenAllNsid => Ok(Value::Integer(self.all_nsid.into())),
            other => other,
        }
    }

    /// Makes the socket take in nothing more, so that reading comes to the end of its queue.
    pub fn shut(&self) {
        let nothing = libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        };
        // If the kernel has no memory for the filter, reading ends the first time that the queue is empty.
        let _ = sys::attach_filter(&self.fd, &mut [nothing]);
    }

    /// `sendmsg(2)` of one datagram to the kernel, or to `peer`.
    pub fn send(&mut self, datagram: &[u8], peer: Option<(u32, u32)>) -> Result<(), Failure> {
        let fd = self.fd.as_raw_fd();
        let (port_id, groups) = peer.unwrap_or((0, 0));
        sys::retry(|| {
            if self.user_peers {
                let to = NetlinkAddr::new(port_id, groups);
                sendto(fd, datagram, &to, MsgFlags::empty())
            } else if (port_id, groups) == (0, 0) {
                send(fd, datagram, MsgFlags::empty())
            } else {
                Err(Errno::EISCONN)
            }
        })
        .at(Stage::Send)?;
        self.sent.count(datagram.len());
        Ok(())
    }

    /// `recvmsg(2)` of one datagram into `buffer`.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Arrival {
        let room = buffer.len();
        match sys::retry(|| sys::receive(&self.fd, buffer)) {
            Ok(received) => {
                self.run = self.run.saturating_add(1);
                if received.sender != 0 && !self.user_peers {
                    self.foreign += 1;
                    Arrival::Foreign
                } else if received.length > room {
                    Arrival::Truncated(received.length)
                } else {
                    self.received.count(received.length);
                    Arrival::Datagram(received)
                }
            }
            Err(Errno::EAGAIN) => Arrival::Drained(self.lost()),
            Err(Errno::ENOBUFS) => {
                self.doubt = true;
                Arrival::Overrun
            }
            Err(errno) => Arrival::Failed(errno),
        }
    }

    /// Whether the queue must soon be read until it is empty, since drops are reported only then. ENOBUFS tells
    /// of the first drop since the queue was last empty, unless the option `no_enobufs` is set.
    pub fn in_doubt(&self) -> bool {
        self.doubt || self.no_enobufs
    }

    /// How many datagrams were dropped since the last report. The queue is empty. The kernel is not asked, which
    /// would cost a system call, after at most one datagram without ENOBUFS.
    fn lost(&mut self) -> u32 {
        let run = std::mem::take(&mut self.run);
        if run < 2 && !self.in_doubt() {
            return 0;
        }
        // If the kernel does not tell, the doubt stays, and it is asked again.
        let Some(dropped) = self.dropped() else {
            return 0;
        };
        let lost = dropped.wrapping_sub(self.drops);
        self.drops = dropped;
        self.doubt = false;
        lost
    }

    /// The kernel's count of datagrams dropped on this socket; it wraps.
    fn dropped(&self) -> Option<u32> {
        let [dropped] = self.memory([MEMINFO_DROPS])?;
        Some(dropped)
    }

    /// The kernel's receive queue; `None` if the kernel does not report it.
    pub fn queue(&self) -> Option<Queue> {
        let [queued, limit] = self.memory([MEMINFO_RMEM_ALLOC, MEMINFO_RCVBUF])?;
        Some(Queue { queued, limit })
    }

    /// Words of `SO_MEMINFO`, socket(7).
    fn memory<const N: usize>(&self, words: [usize; N]) -> Option<[u32; N]> {
        let mut told = [0; 4 * 16];
        let length =
            sys::getsockopt(&self.fd, libc::SOL_SOCKET, sys::SO_MEMINFO, &mut told).ok()?;
        let told = told.get(..length)?;
        let mut read = [0; N];
        for (word, value) in words.into_iter().zip(&mut read) {
            *value = NativeEndian::read_u32(told.get(4 * word..4 * (word + 1))?);
        }
        Some(read)
    }

    /// Whether datagrams carry metadata: if an option asks for it, or if the sender may be another process.
    pub fn metadata(&self) -> bool {
        self.pktinfo || self.all_nsid || self.user_peers
    }

    /// The namespace that the socket is in.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The port id that the socket is bound to.
    pub fn port_id(&self) -> u32 {
        self.port_id
    }

    /// How many dropped datagrams have been reported.
    pub fn drops(&self) -> u32 {
        self.drops
    }

    /// How many datagrams from user space were dropped.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// The datagrams that were forwarded to the VM.
    pub fn received(&self) -> Tally {
        self.received
    }

    /// The datagrams that the kernel has taken.
    pub fn sent(&self) -> Tally {
        self.sent
    }
}

/// Asks the kernel which namespace a new socket is in. SIOCGSKNS takes CAP_NET_ADMIN. Where it is refused, the
/// namespace is confirmed if its number, `id`, is the cookie of the socket: since Linux 6.18 the two are equal. If the
/// kernel does not tell, the socket is accepted with `verified: false`.
fn prove(fd: &OwnedFd, wanted: Identity, id: Option<u64>) -> Result<Place, Failure> {
    let cookie = cookie(fd);
    let verified = match sys::socket_namespace(fd) {
        Ok(file) if Identity::of(&file).at(Stage::Info)? == wanted => true,
        Ok(_) => {
            let failure = Failure::new(Stage::Socket, Errno::EXDEV);
            return Err(failure.because("opened in another namespace"));
        }
        Err(Errno::EPERM | Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP) => {
            id.is_some() && id == cookie
        }
        Err(errno) => return Err(Failure::new(Stage::Socket, errno)),
    };
    Ok(Place {
        identity: wanted,
        cookie,
        verified,
    })
}

/// The cookie of the namespace that a socket is in (`SO_NETNS_COOKIE`), if the kernel has it.
pub fn cookie(socket: &OwnedFd) -> Option<u64> {
    let mut cookie = [0; 8];
    sys::getsockopt(socket, libc::SOL_SOCKET, sys::SO_NETNS_COOKIE, &mut cookie).ok()?;
    Some(NativeEndian::read_u64(&cookie))
}
