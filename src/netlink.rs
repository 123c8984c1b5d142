//! One netlink socket: made, bound, tied to the kernel; options; datagrams out and in. netlink(7).

use crate::error::{At, Failure, Stage};
use crate::netns::{Home, Identity, Target};
use crate::options::{self, Name, Value};
use crate::process::Process;
use crate::sys;
use byteorder::{ByteOrder, NativeEndian};
use nix::errno::Errno;
use nix::sys::socket::{bind, connect, getsockname, send, sendto, MsgFlags, NetlinkAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Words of `SO_MEMINFO`, include/uapi/linux/sock_diag.h: `SK_MEMINFO_RMEM_ALLOC`, what the receive
/// queue takes, `SK_MEMINFO_RCVBUF`, what it may take, and `SK_MEMINFO_DROPS`, dropped datagrams.
const MEMINFO_RMEM_ALLOC: usize = 0;
const MEMINFO_RCVBUF: usize = 1;
const MEMINFO_DROPS: usize = 8;

/// How a socket shall be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Where.
    pub target: Target,
    /// Processes that `target` has led through before: their numbers are to be theirs still.
    pub known: Vec<Process>,
    /// Whether it is closed when its namespace is gone by the name in `target`.
    pub watched: bool,
    /// `NETLINK_ROUTE` and so on.
    pub protocol: i32,
    /// The port id to bind to, 0 for one the kernel picks; `None` for no bind(2).
    pub bind: Option<u32>,
    /// Whether processes of user space may speak to it, too.
    pub user_peers: bool,
    /// Options set after it is bound, in this order.
    pub options: Vec<(Name, Value)>,
}

/// Where a socket really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The namespace it was opened for.
    pub identity: Identity,
    /// `SO_NETNS_COOKIE`, where the kernel has it.
    pub cookie: Option<u64>,
    /// Whether the kernel has confirmed the namespace (`SIOCGSKNS`).
    pub verified: bool,
}

/// One datagram's story, as the loop needs it.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A datagram lies in the buffer.
    Datagram(sys::Received),
    /// It came from user space, and was dropped and counted.
    Foreign,
    /// It was longer than the buffer; this is its real length.
    Truncated(usize),
    /// Nothing waits any more. This many were lost since the last time, before what comes next.
    Drained(u32),
    /// The kernel has begun to drop; what waits is older than the gap.
    Overrun,
    /// recvmsg(2) failed.
    Failed(Errno),
}

/// What has passed one way.
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
    /// What waits.
    pub queued: u32,
    /// What may wait before datagrams are dropped.
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
    /// Whether there may be drops that were not told yet.
    doubt: bool,
    /// How many datagrams were read since the queue was last seen empty.
    run: u32,
    foreign: u64,
    /// Datagrams that were handed on.
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
    /// Makes a socket in its namespace, proves where it is, and binds, connects and sets it up. Tells by way
    /// of which processes it was found.
    pub fn open(home: &Home, spec: &Spec) -> Result<(Self, Vec<Process>), Failure> {
        let visit = home.visit(&spec.target, &spec.known, || {
            sys::netlink_socket(spec.protocol).at(Stage::Socket)
        })?;
        let place = prove(&visit.socket, visit.identity)?;
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
        // After bind(2), which would take back the memberships.
        for (name, value) in &spec.options {
            socket.set(*name, value)?;
        }
        Ok((socket, visit.processes))
    }

    /// `bind(2)`. A socket the kernel has already bound is bound again to its own port id, since a
    /// second bind to 0 is EINVAL.
    pub fn bind(&mut self, port_id: u32, groups: u32) -> Result<(), Failure> {
        let port_id = match port_id {
            0 => self.name()?,
            other => other,
        };
        bind(self.fd.as_raw_fd(), &NetlinkAddr::new(port_id, groups)).at(Stage::Bind)?;
        self.port_id = self.name()?;
        Ok(())
    }

    /// `getsockname(2)`: the port id the socket is bound to, 0 for none.
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
            // Not every kernel lets this one be read back.
            Err(_) if name == Name::ListenAllNsid => Ok(Value::Integer(self.all_nsid.into())),
            other => other,
        }
    }

    /// Takes in nothing more: what the kernel has queued can be read to its end.
    pub fn shut(&self) {
        let nothing = libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        };
        // Without memory for it the end comes when nothing is queued for once.
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

    /// Whether the queue must be seen empty soon, since only then what was dropped is told. The
    /// first drop since it was last empty is told by ENOBUFS, unless that is turned off.
    pub fn in_doubt(&self) -> bool {
        self.doubt || self.no_enobufs
    }

    /// How many were dropped since it was last told; the queue is empty. Asking is a call, and is
    /// left out where no more than one datagram came, without ENOBUFS.
    fn lost(&mut self) -> u32 {
        let run = std::mem::take(&mut self.run);
        if run < 2 && !self.in_doubt() {
            return 0;
        }
        // As long as the kernel does not tell, it is asked again.
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

    /// The kernel's receive queue, where it tells of it.
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

    /// Whether datagrams are told with metadata: where someone has asked for it, and where the
    /// sender matters.
    pub fn metadata(&self) -> bool {
        self.pktinfo || self.all_nsid || self.user_peers
    }

    /// Where the socket is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The port id it is bound to.
    pub fn port_id(&self) -> u32 {
        self.port_id
    }

    /// How many datagrams the kernel has dropped, as far as has been told.
    pub fn drops(&self) -> u32 {
        self.drops
    }

    /// How many datagrams from user space were refused.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// What was received and handed on.
    pub fn received(&self) -> Tally {
        self.received
    }

    /// What was sent, and not refused.
    pub fn sent(&self) -> Tally {
        self.sent
    }
}

/// Asks the kernel which namespace a new socket is in. Where it may not tell (EPERM) or cannot
/// (an old kernel), the socket is taken on trust and says so.
fn prove(fd: &OwnedFd, wanted: Identity) -> Result<Place, Failure> {
    let verified = match sys::socket_namespace(fd) {
        Ok(file) if Identity::of(&file).at(Stage::Info)? == wanted => true,
        Ok(_) => {
            let failure = Failure::new(Stage::Socket, Errno::EXDEV);
            return Err(failure.because("opened in another namespace"));
        }
        Err(Errno::EPERM | Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP) => false,
        Err(errno) => return Err(Failure::new(Stage::Socket, errno)),
    };
    Ok(Place {
        identity: wanted,
        cookie: cookie(fd),
        verified,
    })
}

/// The cookie of the namespace a socket is in (`SO_NETNS_COOKIE`), where the kernel has it.
pub fn cookie(socket: &OwnedFd) -> Option<u64> {
    let mut cookie = [0; 8];
    sys::getsockopt(socket, libc::SOL_SOCKET, sys::SO_NETNS_COOKIE, &mut cookie).ok()?;
    Some(NativeEndian::read_u64(&cookie))
}
