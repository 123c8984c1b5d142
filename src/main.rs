//! `netlink_port`, the helper: an Erlang port program that opens AF_NETLINK sockets in other network namespaces
//! and forwards their datagrams. It speaks `<packet,4>` External Term Format on standard input and output;
//! docs/protocol.md is the specification.

mod bpf;
mod coalesce;
mod error;
mod etf;
mod frame;
mod kill;
mod libc_calls;
mod namespace_watch;
mod netlink_socket;
mod netns;
mod options;
mod pins;
mod poller;
mod privileges;
mod process;
mod procfs;
mod protocol;
mod reactor;
mod resolve;
mod sandbox;
mod seccomp;
mod sockets;
mod spin;
mod start;
mod sys;
#[cfg(test)]
mod testing;
mod userns;

use std::process::ExitCode;

#[global_allocator]
static MEMORY: sys::Memory = sys::Memory;

fn main() -> ExitCode {
    start::main(std::env::args_os().skip(1))
}
