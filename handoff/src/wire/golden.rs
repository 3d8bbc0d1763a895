//! Every message of every version that this build speaks, byte by byte, against files in `tests/golden/`.
//!
//! Another build of this program, older or newer, is at the other end. A change of a struct that nobody meant to
//! send shows here, and not in production.

use std::{collections::BTreeMap, fs, io::Read, path::PathBuf, sync::Arc};

use super::*;
use crate::{
    control::message::{ConnectionCounts, Generation},
    listeners::{Described, FileId, Kind},
    state::{Counter, Delta, Section, Snapshot},
};

/// What a failure says.
const REMEDY: &str = "you changed the wire: bump VERSIONS, keep what the last version says, and read \
                      docs/protocol.md, \"Changing it\"";

/// Set, the test writes the files that do not exist: those of a new version. It never changes one.
const WRITE_MISSING: &str = "HANDOFF_WRITE_GOLDEN";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Bytes as text, and back: sixteen a line, so that a change can be read in a diff.
fn to_text(bytes: &[u8]) -> String {
    let line = |line: &[u8]| {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.join(" ") + "\n"
    };
    bytes.chunks(16).map(line).collect()
}

fn from_text(text: &str) -> Vec<u8> {
    text.split_ascii_whitespace()
        .map(|digits| u8::from_str_radix(digits, 16).expect("two digits"))
        .collect()
}

fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = folder().join(name).with_extension("hex");
    if !path.exists() && std::env::var_os(WRITE_MISSING).is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        fs::write(&path, to_text(bytes)).expect("write");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: run this test with {WRITE_MISSING}=1 for a new version",
            path.display()
        )
    });
    from_text(&text)
}

fn generation() -> Generation {
    Generation {
        generation: 41,
        pid: 4711,
    }
}

fn older() -> Vec<Older> {
    vec![Older {
        process: Generation {
            generation: 40,
            pid: 4000,
        },
        waiting_for: 2,
        named: vec!["127.0.0.1:5000 GET /slow".to_owned()],
    }]
}

fn changes() -> Changes {
    Changes::Inline(Deltas {
        sections: vec![Delta {
            name: "requests".to_owned(),
            version: 1,
            bytes: vec![1, 2, 3],
        }],
    })
}

fn offer() -> Offer {
    let tcp = Described {
        name: "http".to_owned(),
        kind: Kind::Tcp,
        address: "[::1]:8321".to_owned(),
        backlog: 4096,
        file: None,
    };
    let unix = Described {
        name: "admin".to_owned(),
        kind: Kind::Unix,
        address: "unix:/run/x.sock".to_owned(),
        backlog: 128,
        file: Some(FileId { dev: 2, ino: 3 }),
    };
    Offer {
        reload: 7,
        parent: generation(),
        listeners: vec![tcp, unix],
        pidfile: Some(b"/run/hello.pid".to_vec()),
        older: older(),
        ready_timeout_ms: 30_000,
        drain_timeout_ms: 10_000,
        probation_ms: 1_000,
        last_reload: Some(b"{}".to_vec()),
    }
}

fn batch() -> Batch {
    let entry = ConnectionEntry {
        kind: "http/1.1".to_owned(),
        listener: "http".to_owned(),
        peer: Some("127.0.0.1:5000".to_owned()),
        layers: vec![3, 1],
        timers: vec![("waited".to_owned(), 1500)],
        data: 2,
    };
    Batch {
        number: 3,
        connections: vec![entry, ConnectionEntry::default()],
        bytes: Some(b"GETxab".to_vec()),
        bytes_len: 6,
    }
}

fn inherited() -> Inherited {
    Inherited {
        number: 4,
        from: generation(),
        reload: 6,
        version: 1,
        sent: 10,
        received: 11,
        items: 2,
        waiting_for: 5,
        silent_for_ms: 250,
    }
}

fn counts() -> ConnectionCounts {
    ConnectionCounts {
        moved: 3,
        moved_as: BTreeMap::from([("idle".to_owned(), 2), ("upgraded".to_owned(), 1)]),
        drained: 4,
        cut: 1,
        named: vec!["127.0.0.1:5000 GET /slow".to_owned()],
    }
}

fn snapshot() -> (Manifest, Vec<u8>) {
    let counter = |name: &str, total| {
        let counter = Counter::new(name);
        counter.add(total);
        Arc::new(counter) as Arc<dyn Section>
    };
    let sections = [counter("requests", 0x0102_0304), counter("uploads", 5)];
    let (manifest, memfd) = Snapshot::take(&sections).expect("a snapshot");
    let mut bytes = Vec::new();
    // Written at offsets of its own: the file's own place is the beginning.
    fs::File::from(memfd).read_to_end(&mut bytes).expect("read");
    (manifest, bytes)
}

/// Of each kind at least one, with every field set; with a name that is its file's.
fn samples() -> Vec<(&'static str, Message, usize)> {
    let words = || "why, in words".to_owned();
    let hello = Hello {
        oldest: 1,
        newest: 1,
        pid: 5835,
        build: "0.1.0 eee".to_owned(),
    };
    let prepared = Prepared {
        kept: vec!["http".to_owned()],
        added: vec!["admin".to_owned(), "metrics".to_owned()],
        removed: Vec::new(),
    };
    let commit = |changes| Commit {
        changes,
        waiting_for: 9,
        older: older(),
    };
    let sealed = Batch {
        bytes: None,
        bytes_len: 70_000,
        ..batch()
    };
    let draining = Message::Draining {
        waiting_for: 9,
        named: vec!["127.0.0.1:5000 GET /slow".to_owned()],
        older: older(),
    };
    let ack = BatchAck {
        number: 3,
        refused: vec![(1, words())],
    };
    let channel_ack = InheritedAck {
        number: 4,
        refused: Some(words()),
    };
    let answer = Health::Answer {
        number: 8,
        ill: Some(words()),
    };
    let rest = Rest {
        number: 2,
        changes: changes(),
    };
    let big = Changes::Sealed { length: 70_000 };
    vec![
        ("Hello", Message::Hello(hello), 0),
        ("Refuse", Message::Refuse(words()), 0),
        ("Abort", Message::Abort(words()), 0),
        ("Stop", Message::Stop(words()), 0),
        ("Offer", Message::Offer(offer()), 6),
        ("Prepared", Message::Prepared(prepared), 0),
        ("State", Message::State(snapshot().0), 1),
        ("Ready", Message::Ready, 0),
        ("Commit", Message::Commit(commit(changes())), 0),
        ("Commit-sealed", Message::Commit(commit(big)), 1),
        ("Accepting", Message::Accepting, 0),
        (
            "Health-ask",
            Message::Health(Health::Ask {
                number: 8,
                waiting_for: 9,
            }),
            0,
        ),
        ("Health-answer", Message::Health(answer), 0),
        ("Confirm", Message::Confirm { serving_us: 4574 }, 0),
        ("Revoke", Message::Revoke(words()), 0),
        ("Rest", Message::Rest(rest), 0),
        ("RestAck", Message::RestAck { number: 2 }, 0),
        ("Conn", Message::Conn(batch()), 2),
        ("Conn-sealed", Message::Conn(sealed), 3),
        ("ConnAck", Message::ConnAck(ack), 0),
        ("Channel", Message::Channel(inherited()), 2),
        ("ChannelAck", Message::ChannelAck(channel_ack), 0),
        ("Draining", draining, 0),
        ("Bye", Message::Bye(counts()), 0),
        ("Successor", Message::Successor(generation()), 1),
        ("Yielded", Message::Yielded, 0),
        ("Decide-confirm", Message::Decide(Decision::Confirm), 0),
        ("Decide-rollback", Message::Decide(Decision::Rollback), 0),
    ]
}

#[test]
fn every_message_is_what_it_was() {
    for version in VERSIONS {
        let mut kinds = Vec::new();
        for (number, (name, message, fds)) in (1..).zip(samples()) {
            let said = encode(&message, version, number, fds).expect("encode");
            let file = format!("v{version}/{name}");
            let written = golden(&file, &said);
            assert_eq!(to_text(&said), to_text(&written), "{file}: {REMEDY}");
            let (header, heard) = decode(&written, Some(version))
                .unwrap_or_else(|error| panic!("{file}: {error}: {REMEDY}"));
            assert_eq!(heard, message, "{file}: {REMEDY}");
            assert_eq!((header.number, usize::from(header.fds)), (number, fds));
            kinds.push(header.kind);
        }
        kinds.dedup();
        let all: Vec<u16> = (1..).take_while(|kind| name_of(*kind).is_some()).collect();
        assert_eq!(
            kinds, all,
            "a message has no golden file: add one to `samples`"
        );
    }
}

/// What is in the memory that `State` describes, and in that of changes that are too many for a message.
#[test]
fn the_state_and_its_changes_are_what_they_were() {
    let (_, bytes) = snapshot();
    let written = golden("v1/state-memfd", &bytes);
    assert_eq!(to_text(&bytes), to_text(&written), "{REMEDY}");
    let Changes::Inline(deltas) = changes() else {
        panic!("not inline")
    };
    let bytes = codec::encode_bounded(&deltas, 1 << 20).expect("encode");
    let written = golden("v1/changes-memfd", &bytes);
    assert_eq!(to_text(&bytes), to_text(&written), "{REMEDY}");
    let heard: Deltas = codec::decode_bounded(&written, 1 << 20).expect("decode");
    assert_eq!(heard, deltas, "{REMEDY}");
}

/// A file that no sample stands for would be a promise that nobody checks.
#[test]
fn every_file_is_of_a_message() {
    let mut names: Vec<String> = samples()
        .into_iter()
        .map(|(name, ..)| name.to_owned())
        .collect();
    names.extend(["state-memfd".to_owned(), "changes-memfd".to_owned()]);
    for version in VERSIONS {
        for file in fs::read_dir(folder().join(format!("v{version}"))).expect("a folder") {
            let path = file.expect("a file").path();
            let name = path.file_stem().expect("a name").to_string_lossy();
            assert!(names.contains(&name.into_owned()), "{}", path.display());
        }
    }
    let versions = fs::read_dir(folder()).expect("a folder").count();
    assert_eq!(versions, VERSIONS.count());
}
