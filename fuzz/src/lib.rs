//! The helper's modules, included as files: the helper is a program, and cannot be a dependency.

pub mod heap;

#[path = "../../src/error.rs"]
pub mod error;
#[path = "../../src/etf.rs"]
pub mod etf;
#[path = "../../src/frame.rs"]
pub mod frame;
#[path = "../../src/netlink_socket.rs"]
pub mod netlink_socket;
#[path = "../../src/netns.rs"]
pub mod netns;
#[path = "../../src/options.rs"]
pub mod options;
#[path = "../../src/privileges.rs"]
pub mod privileges;
#[path = "../../src/process.rs"]
pub mod process;
#[path = "../../src/procfs.rs"]
pub mod procfs;
#[path = "../../src/protocol/mod.rs"]
pub mod protocol;
#[path = "../../src/resolve.rs"]
pub mod resolve;
#[path = "../../src/sys.rs"]
pub mod sys;
#[path = "../../src/testing/mod.rs"]
pub mod testing;
#[path = "../../src/userns.rs"]
pub mod userns;
