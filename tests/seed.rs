//! The seed's walk-through: `hello serve`, a client in a loop, another build put in place, `kill -USR2` by the
//! pidfile; `eee` becomes `fff`, and the client notices nothing but that.

mod support;

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use support::{Hello, client::Client, eventually, load::Load};

/// What this build says.
const GREETING: &str = env!("HELLO_GREETING");

/// What the next one does: as long, for it is written over the first in a copy of the executable.
fn next_greeting() -> String {
    GREETING
        .chars()
        .map(|c| if c == 'e' { 'f' } else { 'x' })
        .collect()
}

/// Another build: the same, but for the greeting.
fn next_build() -> Vec<u8> {
    let mut binary = fs::read(env!("CARGO_BIN_EXE_hello")).expect("read hello");
    let mut replaced = 0;
    for around in [("hello world ", "\n"), ("(", ")")] {
        let old = format!("{}{GREETING}{}", around.0, around.1);
        let new = format!("{}{}{}", around.0, next_greeting(), around.1);
        let mut from = 0;
        while let Some(at) = find(&binary[from..], old.as_bytes()) {
            binary[from + at..][..old.len()].copy_from_slice(new.as_bytes());
            from += at + old.len();
            replaced += 1;
        }
    }
    assert!(
        replaced >= 2,
        "the greeting is not where it was: {replaced}"
    );
    binary
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[test]
fn eee_becomes_fff_and_nobody_notices() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let (old, new) = (
        format!("hello world {GREETING}\n"),
        format!("hello world {}\n", next_greeting()),
    );
    let (changed, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let looped = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = Client::connect(hello.address());
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let text = client.get("/hello").text();
                changed.store(text == new, Ordering::Relaxed);
                answers.push(text);
            }
            answers
        });
        hello.replace_binary(&next_build());
        load.goes_on();
        assert!(!changed.load(Ordering::Relaxed), "before it was told to");
        let kill = format!("kill -USR2 $(cat '{}')", hello.pidfile().display());
        let status = Command::new("/bin/sh").args(["-c", &kill]).status();
        assert!(status.expect("sh").success());
        eventually("the answers change", || changed.load(Ordering::Relaxed));
        load.goes_on();
        stop.store(true, Ordering::Relaxed);
        client.join().expect("the loop goes on")
    });
    assert!(looped.iter().all(|answer| [&old, &new].contains(&answer)));
    assert!(
        looped.is_sorted_by_key(|answer| *answer == new),
        "from {old:?} to {new:?}, once"
    );
    let answered = load.finish() + looped.len() as u64;
    hello.settles();
    assert_eq!(hello.requests(), answered, "the counter goes on, exactly");
    assert_eq!(hello.generation(), 2);
    let version = Command::new(hello.binary()).arg("--version").output();
    let version = String::from_utf8(version.expect("--version").stdout).expect("UTF-8");
    assert!(
        version.ends_with(&format!("({})\n", next_greeting())),
        "{version}"
    );
}
