//! Properties that hold for any bytes from outside. Tests check them with random input and with the corpus of the
//! fuzzer, and the fuzzer (fuzz/) with input of its own. A property panics if it does not hold.

use crate::error::Stage;
use crate::etf::{self, Malformed, Term, MAX_DEPTH, MAX_TERMS};
use crate::frame::{Inbox, TooLong, HEADER, MAX_REPLY};
use crate::protocol::command::{self, Command};
use crate::protocol::{event, Handle, Reference};
use crate::testing::commands;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, write};

/// The usual size of the inbox of [`frames`]: small, so that few bytes make it grow and shrink.
pub const USUAL: usize = 64;
/// The longest frame that this inbox takes.
pub const LONGEST: usize = 512;

/// An inbox returns exactly the frames of a stream, each as soon as it is whole, however the stream is cut into
/// chunks, and always has room for more. A script is a list of chunks. Each chunk begins with a byte, its length
/// less one.
pub fn frames(script: &[u8]) {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let mut inbox = Inbox::sized(USUAL, LONGEST);
    let mut stream = Vec::new();
    let mut from = 0;
    let mut script = script;
    while let Some((length, rest)) = script.split_first() {
        let (chunk, rest) = rest.split_at(rest.len().min(usize::from(*length) + 1));
        script = rest;
        assert_eq!(write(&writer, chunk), Ok(chunk.len()));
        stream.extend_from_slice(chunk);
        let mut unread = chunk.len();
        while unread > 0 {
            let count = inbox.fill(&reader).unwrap();
            assert!(0 < count && count <= unread, "{count} of {unread} bytes");
            unread -= count;
            let seen = &stream[..stream.len() - unread];
            loop {
                match first_frame(&seen[from..]) {
                    Err(TooLong) => {
                        assert_eq!(inbox.next(), Err(TooLong));
                        return;
                    }
                    Ok(None) => {
                        assert_eq!(inbox.next(), Ok(None));
                        break;
                    }
                    Ok(Some(frame)) => {
                        assert_eq!(inbox.next(), Ok(Some(frame)));
                        from += HEADER + frame.len();
                    }
                }
            }
        }
    }
}

/// The first frame of a stream: the definition of a frame.
fn first_frame(stream: &[u8]) -> Result<Option<&[u8]>, TooLong> {
    let Some((header, rest)) = stream.split_first_chunk() else {
        return Ok(None);
    };
    match u32::from_be_bytes(*header) as usize {
        length if length > LONGEST => Err(TooLong),
        length => Ok(rest.get(..length)),
    }
}

/// The check and the decoder accept the same frames. An accepted term is within the limits, and is the same after
/// it is encoded and decoded again.
pub fn term(frame: &[u8]) {
    match (etf::check(frame), etf::decode(frame)) {
        (Ok(()), Ok(term)) => {
            let mut terms = MAX_TERMS;
            assert_bounded(&term, MAX_DEPTH, &mut terms);
            let again = etf::encode(term.clone());
            assert_eq!(etf::decode(&again), Ok(term));
        }
        (Err(refused), Err(reason)) => assert_eq!(refused, reason),
        (checked, decoded) => panic!("checked {checked:?}, decoded {decoded:?}"),
    }
}

fn assert_bounded(term: &Term, depth: usize, terms: &mut usize) {
    assert!(depth > 0, "too deep");
    let count = match term {
        Term::String(bytes) => 1 + bytes.len(),
        _ => 1,
    };
    *terms = terms.checked_sub(count).expect("too many");
    match term {
        Term::SmallTuple(elements) | Term::List(elements) => {
            for element in elements {
                assert_bounded(element, depth - 1, terms);
            }
        }
        Term::SmallBigInt(integer) => assert!(integer.bits() <= 64),
        Term::Nil | Term::SmallInt(_) | Term::Int(_) => {}
        Term::SmallAtom(_) | Term::AtomDeprecated(_) => {}
        Term::Binary(_) | Term::String(_) => {}
        other => panic!("no term of a command: {other:?}"),
    }
}

/// A frame is one of three things. A command: it is the same when it is encoded and parsed again, and a `send`,
/// which is read without a term, agrees with its term. A refusal: it fits into an answer. Malformed: the check
/// gives the same reason.
pub fn command(frame: &[u8]) {
    match command::parse(frame) {
        Ok((reference, Ok(command))) => {
            if let Command::Send(handle, datagram) = command {
                assert_eq!(etf::decode(frame), Ok(send(1, reference, handle, datagram)));
            }
            if let Command::Ask(handle, datagram) = command {
                assert_eq!(etf::decode(frame), Ok(send(4, reference, handle, datagram)));
            }
            let again = commands::encode(reference, &command);
            assert_eq!(command::parse(&again), Ok((reference, Ok(command.clone()))));
        }
        Ok((reference, Err(failure))) => {
            assert_eq!(failure.stage, Stage::Protocol);
            assert_reply(&event::error(reference, &failure));
        }
        Err(reason) => {
            assert_eq!(etf::check(frame), Err(reason));
            assert_reply(&event::malformed(reason));
        }
    }
}

fn send(kind: u8, reference: Reference, handle: Handle, datagram: &[u8]) -> Term {
    etf::tuple(vec![
        Term::SmallInt(kind),
        Term::Int(reference.0 as i32),
        Term::Int(handle.0 as i32),
        etf::binary(datagram),
    ])
}

fn assert_reply(frame: &[u8]) {
    assert!(frame.len() <= MAX_REPLY);
    assert_ne!(etf::decode(frame), Err(Malformed::Truncated));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink_socket::Spec;
    use crate::netns::Target;
    use crate::options::{Name, Value, NAMES};
    use crate::process::Process;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::path::Path;

    /// Configures proptest to keep no files: a failure prints its smallest case.
    fn cases(cases: u32) -> ProptestConfig {
        ProptestConfig {
            cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        }
    }

    /// Runs a property on every input of a target's corpus, lines of `name: hexadecimal digits`.
    fn replay(target: &str, check: fn(&[u8])) {
        // Cargo runs tests in the package's folder, which may have moved since they were built.
        let corpus = Path::new("fuzz/corpus").join(target);
        let corpus = std::fs::read_to_string(corpus).unwrap();
        let mut count = 0;
        for line in corpus.lines() {
            let (name, digits) = line.split_once(": ").unwrap();
            let bytes = from_hex(digits);
            let outcome = std::panic::catch_unwind(|| check(&bytes));
            assert!(outcome.is_ok(), "{target}: {name}");
            count += 1;
        }
        assert!(count >= 10, "{target}: {count} inputs");
    }

    fn from_hex(digits: &str) -> Vec<u8> {
        let pairs = digits.as_bytes().chunks_exact(2);
        assert!(pairs.remainder().is_empty(), "{digits}");
        pairs
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn the_corpus_of_frames_is_replayed() {
        replay("frame", frames);
    }

    #[test]
    fn the_corpus_of_terms_is_replayed() {
        replay("term", term);
    }

    #[test]
    fn the_corpus_of_commands_is_replayed() {
        replay("command", command);
    }

    fn handle() -> impl Strategy<Value = Handle> {
        (0..=i32::MAX as u32).prop_map(Handle)
    }

    fn reference() -> impl Strategy<Value = Reference> {
        (0..=i32::MAX as u32).prop_map(Reference)
    }

    fn name() -> impl Strategy<Value = Name> {
        (0..NAMES.len()).prop_map(|index| NAMES[index].1)
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..300)
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            (0..2_u32).prop_map(Value::Integer),
            any::<u32>().prop_map(Value::Integer),
            bytes().prop_map(Value::Program),
        ]
    }

    fn known() -> impl Strategy<Value = Vec<Process>> {
        let process = (any::<i32>(), any::<u64>(), any::<u64>());
        let process = process.prop_map(|(id, started, inode)| Process { id, started, inode });
        vec(process, 0..3)
    }

    fn spec() -> impl Strategy<Value = Spec> {
        let target = prop_oneof![
            Just((Target::Host, false)),
            (bytes().prop_map(Target::Path), any::<bool>()),
            (any::<i32>().prop_map(Target::Pid), any::<bool>()),
        ];
        let bind = proptest::option::of(any::<u32>());
        let options = vec((name(), value()), 0..20);
        (target, known(), any::<i32>(), bind, any::<bool>(), options).prop_map(
            |((target, watched), known, protocol, bind, user_peers, options)| Spec {
                target,
                known,
                watched,
                protocol,
                bind,
                user_peers,
                options,
            },
        )
    }

    /// Commands that are answered, except `send`.
    fn answered() -> impl Strategy<Value = Command<'static>> {
        let word = any::<u32>;
        prop_oneof![
            (handle(), spec(), any::<u64>()).prop_map(|(h, s, w)| Command::Open(h, Box::new(s), w)),
            (handle(), spec()).prop_map(|(h, s)| Command::Pin(h, s.target)),
            handle().prop_map(Command::Close),
            (handle(), word(), word()).prop_map(|(h, p, g)| Command::Bind(h, p, g)),
            (handle(), name(), value()).prop_map(|(h, n, v)| Command::Set(h, n, v)),
            (handle(), name()).prop_map(|(h, n)| Command::Get(h, n)),
            (handle(), word(), word(), bytes())
                .prop_map(|(h, p, g, d)| Command::SendTo(h, p, g, d)),
            handle().prop_map(Command::SocketInfo),
            Just(Command::Info),
            Just(Command::Ping),
            Just(Command::Stop),
        ]
    }

    fn grant() -> impl Strategy<Value = Command<'static>> {
        prop_oneof![
            (handle(), any::<u64>()).prop_map(|(handle, bytes)| Command::Grant(handle, bytes)),
            any::<u64>().prop_map(Command::GrantAll),
        ]
    }

    fn assert_read_back(reference: Reference, command: Command<'_>) {
        let frame = commands::encode(reference, &command);
        assert_eq!(command::parse(&frame), Ok((reference, Ok(command))));
    }

    proptest! {
        #![proptest_config(cases(2_000))]

        #[test]
        fn a_command_is_read_as_it_was_written(reference in reference(), command in answered()) {
            assert_read_back(reference, command);
        }

        #[test]
        fn a_grant_is_read_as_it_was_written(command in grant()) {
            assert_read_back(Reference(0), command);
        }

        #[test]
        fn a_send_is_read_as_it_was_written(
            reference in reference(),
            handle in handle(),
            datagram in bytes(),
        ) {
            assert_read_back(reference, Command::Send(handle, &datagram));
            assert_read_back(reference, Command::Ask(handle, &datagram));
        }

        #[test]
        fn frames_are_the_same_however_they_are_cut(
            lengths in vec(prop_oneof![0..40_usize, 0..=LONGEST], 0..40),
            cuts in vec(any::<u8>(), 1..40),
        ) {
            let stream = lengths.iter().flat_map(|length| {
                let frame = (0..*length).map(|at| at as u8);
                (*length as u32).to_be_bytes().into_iter().chain(frame)
            });
            let stream: Vec<u8> = stream.collect();
            let mut script = Vec::new();
            let mut rest = stream.as_slice();
            for cut in cuts.iter().cycle() {
                let (chunk, tail) = rest.split_at(rest.len().min(usize::from(*cut) + 1));
                script.push(*cut);
                script.extend(chunk);
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            frames(&script);
        }

        #[test]
        fn any_bytes_are_some_stream(script in vec(any::<u8>(), 0..200)) {
            frames(&script);
        }
    }

    proptest! {
        #![proptest_config(cases(20_000))]

        #[test]
        fn any_bytes_are_a_term_or_malformed(tail in vec(tag_or_byte(), 0..200)) {
            let frame: Vec<u8> = std::iter::once(131).chain(tail).collect();
            term(&frame);
            command(&frame);
        }

        #[test]
        fn a_changed_command_is_one_or_is_refused(
            reference in reference(),
            original in prop_oneof![answered(), grant()],
            changes in vec((any::<prop::sample::Index>(), tag_or_byte()), 1..5),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut frame = commands::encode(reference, &original);
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            term(&frame);
            command(&frame);
        }
    }

    /// Bytes that are tags of terms more often than by chance.
    fn tag_or_byte() -> impl Strategy<Value = u8> {
        let tags = [97, 98, 100, 104, 106, 107, 108, 109, 110, 119];
        prop_oneof![prop::sample::select(tags.to_vec()), 0..4_u8, any::<u8>(),]
    }
}
