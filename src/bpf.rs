//! The system call filter as the kernel takes it: a classic BPF program over a struct seccomp_data,
//! include/uapi/linux/seccomp.h.
//!
//!     0    4     8        16       24           64
//!     | nr | arch | ip     | args[0] | …          |     each argument 64 bits, in the machine's byte order
//!
//! Invariant: a call that no rule lists ends the program, and so does every call through another ABI of the same
//! machine (32 bits on a 64-bit kernel), where the numbers mean other calls.

use libc::{c_long, sock_filter};
use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS};
use std::collections::BTreeMap;

#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64",
    target_arch = "s390x"
)))]
compile_error!(
    "the system call filter is written for x86_64, aarch64, arm, riscv64 and s390x; another machine \
     takes its number in src/bpf.rs, and in src/libc_calls.rs the calls that its C library makes"
);

#[cfg(all(
    target_env = "musl",
    not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    ))
))]
compile_error!(
    "what musl calls on this machine has not been tried with the system call filter; take the static \
     executable that `make dist` makes, which needs no C library, by NETLINK_PORT_EXECUTABLE"
);

/// `EM_*` of include/uapi/linux/elf-em.h.
const MACHINE: u32 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else if cfg!(target_arch = "arm") {
    40
} else if cfg!(target_arch = "riscv64") {
    243
} else {
    22
};
/// `AUDIT_ARCH_*` of include/uapi/linux/audit.h: the machine, `__AUDIT_ARCH_64BIT` and
/// `__AUDIT_ARCH_LE`.
const ARCH: u32 = MACHINE
    | if cfg!(target_pointer_width = "64") {
        0x8000_0000
    } else {
        0
    }
    | if cfg!(target_endian = "little") {
        0x4000_0000
    } else {
        0
    };

const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// A test of an argument. It sees the lower 32 bits, which are all that the kernel takes of an int.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// The argument is this.
    Equal(u32),
    /// None of these bits is set.
    NoneOf(u32),
}

/// The calls that are allowed: with any arguments (`None`), or if one of the tests passes.
#[derive(Debug, Default)]
pub struct Rules(BTreeMap<c_long, Option<Vec<(u8, Test)>>>);

impl Rules {
    /// Allows a call with any arguments.
    pub fn allow(&mut self, call: c_long) {
        self.0.insert(call, None);
    }

    /// Allows a call if an argument, counted from 0, passes `test`. Earlier tests of the call still count.
    pub fn allow_if(&mut self, call: c_long, argument: u8, test: Test) {
        if let Some(tests) = self.0.entry(call).or_insert_with(|| Some(Vec::new())) {
            tests.push((argument, test));
        }
    }

    /// The program. It compares the number of a call with that of one rule after the other.
    pub fn assemble(&self) -> Vec<sock_filter> {
        let mut program = vec![
            load(ARCH_AT),
            skip_if_equal(ARCH, 1, 0),
            end(SECCOMP_RET_KILL_PROCESS),
            load(NUMBER_AT),
        ];
        for (call, tests) in &self.0 {
            let verdict = match tests {
                None => vec![end(SECCOMP_RET_ALLOW)],
                Some(tests) => {
                    let tests = tests.iter();
                    let each = tests.flat_map(|(argument, test)| let_through(*argument, *test));
                    each.chain([end(SECCOMP_RET_KILL_PROCESS)]).collect()
                }
            };
            // A call has few tests, far below the 255 instructions that a jump reaches.
            program.push(skip_if_equal(*call as u32, 0, verdict.len() as u8));
            program.extend(verdict);
        }
        program.push(end(SECCOMP_RET_KILL_PROCESS));
        program
    }
}

/// Instructions that allow the call if the argument passes, and otherwise go on behind themselves.
fn let_through(argument: u8, test: Test) -> Vec<sock_filter> {
    let low = if cfg!(target_endian = "little") { 0 } else { 4 };
    let mut program = vec![load(ARGUMENTS_AT + 8 * u32::from(argument) + low)];
    match test {
        Test::Equal(value) => program.push(skip_if_equal(value, 0, 1)),
        Test::NoneOf(bits) => {
            program.push(instruction(BPF_ALU | BPF_AND | BPF_K, bits, 0, 0));
            program.push(skip_if_equal(0, 0, 1));
        }
    }
    program.push(end(SECCOMP_RET_ALLOW));
    program
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

fn skip_if_equal(value: u32, equal: u8, unequal: u8) -> sock_filter {
    instruction(BPF_JMP | BPF_JEQ | BPF_K, value, equal, unequal)
}

fn end(verdict: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, verdict, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program over a struct seccomp_data as the kernel does.
    fn verdict(program: &[sock_filter], arch: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [call.to_ne_bytes(), arch.to_ne_bytes()].concat();
        data.extend([0; 8]);
        data.extend(arguments.into_iter().flat_map(u64::to_ne_bytes));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    let word = data[k as usize..][..4].try_into().unwrap();
                    accumulator = u32::from_ne_bytes(word);
                }
                code if code == BPF_ALU | BPF_AND | BPF_K => accumulator &= k,
                code if code == BPF_JMP | BPF_JEQ | BPF_K => {
                    at += usize::from(if accumulator == k { jt } else { jf });
                }
                code if code == BPF_RET | BPF_K => return k,
                code => panic!("{code}"),
            }
        }
    }

    #[test]
    fn listed_calls_pass_with_the_arguments_they_are_listed_with() {
        let mut rules = Rules::default();
        rules.allow(7);
        rules.allow_if(9, 2, Test::Equal(5));
        rules.allow_if(9, 1, Test::NoneOf(0xf0));
        // A test added to a call that is allowed with any arguments changes nothing.
        rules.allow(11);
        rules.allow_if(11, 0, Test::Equal(1));
        let program = rules.assemble();
        let passes = |call: u32, arguments| match verdict(&program, ARCH, call, arguments) {
            SECCOMP_RET_ALLOW => true,
            SECCOMP_RET_KILL_PROCESS => false,
            other => panic!("{other:#x}"),
        };
        let high = 1 << 32;
        for (call, arguments, expected) in [
            (7, [u64::MAX; 6], true),
            (8, [0; 6], false),
            (9, [0, 0xff, 5, 0, 0, 0], true),
            (9, [0, 0xff, 5 + high, 0, 0, 0], true),
            (9, [0, 0xff, 4, 0, 0, 0], false),
            (9, [0, 0x0f, 4, 0, 0, 0], true),
            (9, [0xf0, high, 4, 0, 0, 0], true),
            (9, [0, 0x10, 4, 5, 0, 0], false),
            (11, [0; 6], true),
            (0x4000_0007, [0; 6], false),
            (u32::MAX, [0; 6], false),
        ] {
            assert_eq!(passes(call, arguments), expected, "{call} {arguments:x?}");
        }
    }

    #[test]
    fn calls_through_another_abi_end_the_program() {
        let mut rules = Rules::default();
        rules.allow(7);
        let program = rules.assemble();
        let verdict = |arch| verdict(&program, arch, 7, [0; 6]);
        assert_eq!(verdict(ARCH), SECCOMP_RET_ALLOW);
        for arch in [
            ARCH ^ 0x8000_0000,
            ARCH ^ 0x4000_0000,
            MACHINE,
            3 | 0x4000_0000,
        ] {
            assert_eq!(verdict(arch), SECCOMP_RET_KILL_PROCESS, "{arch:#x}");
        }
    }
}
