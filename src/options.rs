//! Socket options by name: netlink(7), socket(7), include/uapi/linux/netlink.h.

use crate::error::{At, Failure, Stage};
use crate::sys;
use byteorder::{BigEndian, ByteOrder, NativeEndian};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// The bytes of one classic BPF instruction on the wire: code, jt, jf, k, big-endian.
const INSTRUCTION: usize = 8;
/// The most instructions that the kernel takes (`BPF_MAXINSNS`, include/uapi/linux/bpf_common.h). Checked
/// before the program is copied.
const MAX_INSTRUCTIONS: usize = 4096;

/// An option of a netlink socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `NETLINK_ADD_MEMBERSHIP`, write only.
    AddMembership,
    /// `NETLINK_DROP_MEMBERSHIP`, write only.
    DropMembership,
    /// `NETLINK_LIST_MEMBERSHIPS`, read only.
    Memberships,
    /// `NETLINK_PKTINFO`.
    Pktinfo,
    /// `NETLINK_BROADCAST_ERROR`.
    BroadcastError,
    /// `NETLINK_NO_ENOBUFS`.
    NoEnobufs,
    /// `NETLINK_LISTEN_ALL_NSID`. Needs CAP_NET_BROADCAST.
    ListenAllNsid,
    /// `NETLINK_EXT_ACK`.
    ExtAck,
    /// `NETLINK_CAP_ACK`.
    CapAck,
    /// `NETLINK_GET_STRICT_CHK`.
    GetStrictChk,
    /// `SO_RCVBUFFORCE`, then `SO_RCVBUF`; read back as the kernel's effective size in bytes.
    Rcvbuf,
    /// `SO_SNDBUFFORCE`, then `SO_SNDBUF`; read back as the kernel's effective size in bytes.
    Sndbuf,
    /// `SO_ATTACH_FILTER`, `SO_DETACH_FILTER`, `SO_GET_FILTER`: a classic BPF program.
    Filter,
}

/// All options, each with its atom on the wire.
pub const NAMES: [(&str, Name); 13] = [
    ("add_membership", Name::AddMembership),
    ("drop_membership", Name::DropMembership),
    ("memberships", Name::Memberships),
    ("pktinfo", Name::Pktinfo),
    ("broadcast_error", Name::BroadcastError),
    ("no_enobufs", Name::NoEnobufs),
    ("listen_all_nsid", Name::ListenAllNsid),
    ("ext_ack", Name::ExtAck),
    ("cap_ack", Name::CapAck),
    ("get_strict_chk", Name::GetStrictChk),
    ("rcvbuf", Name::Rcvbuf),
    ("sndbuf", Name::Sndbuf),
    ("filter", Name::Filter),
];

impl Name {
    /// The option that an atom stands for.
    pub fn from_atom(atom: &str) -> Option<Self> {
        NAMES
            .iter()
            .find_map(|(name, option)| (*name == atom).then_some(*option))
    }

    /// The atom that stands for the option.
    pub fn atom(self) -> &'static str {
        NAMES
            .iter()
            .find_map(|(name, option)| (*option == self).then_some(*name))
            .unwrap_or("")
    }

    /// The option of `SOL_NETLINK` behind a flag.
    fn flag(self) -> Option<i32> {
        match self {
            Self::Pktinfo => Some(libc::NETLINK_PKTINFO),
            Self::BroadcastError => Some(libc::NETLINK_BROADCAST_ERROR),
            Self::NoEnobufs => Some(libc::NETLINK_NO_ENOBUFS),
            Self::ListenAllNsid => Some(libc::NETLINK_LISTEN_ALL_NSID),
            Self::ExtAck => Some(libc::NETLINK_EXT_ACK),
            Self::CapAck => Some(libc::NETLINK_CAP_ACK),
            Self::GetStrictChk => Some(libc::NETLINK_GET_STRICT_CHK),
            _ => None,
        }
    }
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A flag (0 or 1), a group, or a size in bytes.
    Integer(u32),
    /// A classic BPF program in the form of the wire; empty detaches.
    Program(Vec<u8>),
    /// Group numbers.
    Groups(Vec<u32>),
}

/// `setsockopt(2)` by name.
pub fn set(socket: impl AsFd, name: Name, value: &Value) -> Result<(), Failure> {
    let socket = socket.as_fd();
    let outcome = match (name, value) {
        (Name::AddMembership, Value::Integer(group)) => {
            netlink_option(socket, libc::NETLINK_ADD_MEMBERSHIP, *group)
        }
        (Name::DropMembership, Value::Integer(group)) => {
            netlink_option(socket, libc::NETLINK_DROP_MEMBERSHIP, *group)
        }
        (Name::Rcvbuf, Value::Integer(bytes)) => {
            buffer_size(socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, *bytes)
        }
        (Name::Sndbuf, Value::Integer(bytes)) => {
            buffer_size(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, *bytes)
        }
        (Name::Filter, Value::Program(program)) => filter(socket, program),
        (name, Value::Integer(value)) => match name.flag() {
            Some(option) => netlink_option(socket, option, *value),
            None => Err(Errno::EINVAL),
        },
        _ => Err(Errno::EINVAL),
    };
    named(outcome.at(Stage::Setsockopt), name)
}

/// `getsockopt(2)` by name.
pub fn get(socket: impl AsFd, name: Name) -> Result<Value, Failure> {
    let socket = socket.as_fd();
    let word = |level, option| {
        let mut bytes = [0; 4];
        sys::getsockopt(socket, level, option, &mut bytes)?;
        Ok(Value::Integer(NativeEndian::read_u32(&bytes)))
    };
    let outcome = match name {
        Name::Memberships => {
            let option = libc::NETLINK_LIST_MEMBERSHIPS;
            let list =
                |bitmap: &mut [u8]| sys::getsockopt(socket, libc::SOL_NETLINK, option, bitmap);
            memberships(list).map(Value::Groups)
        }
        Name::Rcvbuf => word(libc::SOL_SOCKET, libc::SO_RCVBUF),
        Name::Sndbuf => word(libc::SOL_SOCKET, libc::SO_SNDBUF),
        Name::Filter => sys::attached_filter(socket).map(|program| Value::Program(pack(&program))),
        name => match name.flag() {
            Some(option) => word(libc::SOL_NETLINK, option),
            None => Err(Errno::EINVAL),
        },
    };
    named(outcome.at(Stage::Getsockopt), name)
}

fn named<T>(outcome: Result<T, Failure>, name: Name) -> Result<T, Failure> {
    outcome.map_err(|failure| failure.because(name.atom()))
}

fn netlink_option(socket: BorrowedFd<'_>, option: i32, value: u32) -> Result<(), Errno> {
    sys::setsockopt(socket, libc::SOL_NETLINK, option, &value.to_ne_bytes())
}

/// The FORCE form is not bound by net.core.*mem_max, and needs CAP_NET_ADMIN in the initial user namespace.
/// Without that capability the plain form is used.
fn buffer_size(socket: BorrowedFd<'_>, forced: i32, plain: i32, bytes: u32) -> Result<(), Errno> {
    let bytes = bytes.to_ne_bytes();
    match sys::setsockopt(socket, libc::SOL_SOCKET, forced, &bytes) {
        Err(Errno::EPERM) => sys::setsockopt(socket, libc::SOL_SOCKET, plain, &bytes),
        other => other,
    }
}

/// `NETLINK_LIST_MEMBERSHIPS`: a bitmap in 32-bit words. If the number of groups is no multiple of 32, kernels
/// before 6.4 report one word too few, but fill a longer buffer.
fn memberships(list: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u32>, Errno> {
    let reported = list(&mut [])?;
    let mut bitmap = vec![0; reported.next_multiple_of(4) + 4];
    list(&mut bitmap)?;
    let words = bitmap.chunks_exact(4).map(NativeEndian::read_u32);
    let groups = words.zip(0_u32..).flat_map(|(word, index)| {
        (0..32)
            .filter(move |bit| word & (1 << bit) != 0)
            .map(move |bit| 32 * index + bit + 1)
    });
    Ok(groups.collect())
}

fn filter(socket: BorrowedFd<'_>, program: &[u8]) -> Result<(), Errno> {
    if program.is_empty() {
        let nothing = 0_u32.to_ne_bytes();
        return match sys::setsockopt(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &nothing) {
            // None was attached.
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        };
    }
    if program.len() % INSTRUCTION != 0 || program.len() > MAX_INSTRUCTIONS * INSTRUCTION {
        return Err(Errno::EINVAL);
    }
    let instructions = program.chunks_exact(INSTRUCTION).map(|bytes| {
        let word = BigEndian::read_u64(bytes);
        libc::sock_filter {
            code: (word >> 48) as u16,
            jt: (word >> 40) as u8,
            jf: (word >> 32) as u8,
            k: word as u32,
        }
    });
    sys::attach_filter(socket, &mut instructions.collect::<Vec<_>>())
}

fn pack(program: &[libc::sock_filter]) -> Vec<u8> {
    let words = program.iter().map(|instruction| {
        let head = [instruction.jt, instruction.jf];
        u64::from(instruction.code) << 48
            | u64::from(u16::from_be_bytes(head)) << 32
            | u64::from(instruction.k)
    });
    words.flat_map(u64::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_one_atom() {
        for (atom, name) in NAMES {
            assert_eq!(Name::from_atom(atom), Some(name));
            assert_eq!(name.atom(), atom);
        }
        assert_eq!(Name::from_atom("frobnicate"), None);
    }

    #[test]
    fn flags_and_sizes_are_read_back() {
        let socket = sys::netlink_socket(0).unwrap();
        for name in [
            Name::Pktinfo,
            Name::BroadcastError,
            Name::NoEnobufs,
            Name::ExtAck,
            Name::CapAck,
            Name::GetStrictChk,
        ] {
            for value in [1, 0] {
                set(&socket, name, &Value::Integer(value)).unwrap();
                assert_eq!(get(&socket, name), Ok(Value::Integer(value)), "{name:?}");
            }
        }
        set(&socket, Name::Rcvbuf, &Value::Integer(100_000)).unwrap();
        assert_eq!(get(&socket, Name::Rcvbuf), Ok(Value::Integer(200_000)));
    }

    #[test]
    fn groups_above_32_are_joined_listed_and_left() {
        let socket = sys::netlink_socket(0).unwrap();
        for group in [1, 32, 33] {
            set(&socket, Name::AddMembership, &Value::Integer(group)).unwrap();
        }
        let groups = get(&socket, Name::Memberships);
        assert_eq!(groups, Ok(Value::Groups(vec![1, 32, 33])));
        set(&socket, Name::DropMembership, &Value::Integer(33)).unwrap();
        let groups = get(&socket, Name::Memberships);
        assert_eq!(groups, Ok(Value::Groups(vec![1, 32])));
    }

    #[test]
    fn groups_beyond_the_length_that_older_kernels_report_are_listed() {
        // 33 groups, of which 1 and 33 are joined: two words, of which the kernel reports one.
        let list = |bitmap: &mut [u8]| {
            let words = [1_u32, 1].map(u32::to_ne_bytes).concat();
            let room = bitmap.len().min(words.len());
            bitmap[..room].copy_from_slice(&words[..room]);
            Ok(4)
        };
        assert_eq!(memberships(list), Ok(vec![1, 33]));
    }

    #[test]
    fn a_filter_is_attached_read_back_and_detached() {
        let socket = sys::netlink_socket(0).unwrap();
        // BPF_RET | BPF_K, all of the datagram.
        let accept = [0, 6, 0, 0, 0, 4, 0, 0].to_vec();
        set(&socket, Name::Filter, &Value::Program(accept.clone())).unwrap();
        let attached = get(&socket, Name::Filter);
        assert_eq!(attached, Ok(Value::Program(accept)));
        for _twice in 0..2 {
            set(&socket, Name::Filter, &Value::Program(vec![])).unwrap();
        }
        let attached = get(&socket, Name::Filter);
        assert_eq!(attached, Ok(Value::Program(vec![])));
        let cut = set(&socket, Name::Filter, &Value::Program(vec![0; 7]));
        assert_eq!(cut.unwrap_err().errno, Errno::EINVAL);
        // BPF_RET | BPF_K at the end, and BPF_LD | BPF_IMM before it.
        // Linux before 6.8 has room for 2,548 by default.
        let room = std::fs::read_to_string("/proc/sys/net/core/optmem_max");
        let room: usize = room.map_or(131_072, |text| text.trim().parse().unwrap());
        let longest = (room < 96 + 4096 * INSTRUCTION).then_some(Errno::ENOMEM);
        for (count, outcome) in [(4096, longest), (4097, Some(Errno::EINVAL))] {
            let mut longest = vec![0; (count - 1) * INSTRUCTION];
            longest.extend([0, 6, 0, 0, 0, 4, 0, 0]);
            let set = set(&socket, Name::Filter, &Value::Program(longest));
            assert_eq!(set.err().map(|failure| failure.errno), outcome, "{count}");
        }
    }

    #[test]
    fn what_cannot_be_set_or_read_is_an_error() {
        let socket = sys::netlink_socket(0).unwrap();
        let failure = get(&socket, Name::AddMembership).unwrap_err();
        assert_eq!(
            (failure.stage, &*failure.detail),
            (Stage::Getsockopt, "add_membership")
        );
        let failure = set(&socket, Name::Memberships, &Value::Integer(1)).unwrap_err();
        assert_eq!(
            (failure.stage, &*failure.detail),
            (Stage::Setsockopt, "memberships")
        );
    }
}
