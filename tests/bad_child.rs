//! A new build that is no good: the old one serves every request, whoever asked is told why, nothing is left behind,
//! and a build that is good takes over at once afterwards.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::{Duration, Instant},
};

use support::{Hello, LONG, Start, eventually, load::Load};

const REAL: &str = env!("CARGO_BIN_EXE_hello");

/// Reloads into what `spoil` leaves in place of the binary, twice, and then into the real one, all under
/// traffic. What the first attempt said.
fn refused(start: Start, spoil: impl FnOnce(&Hello)) -> String {
    refused_with(start, spoil, |_| ())
}

/// With something to do after each failure, before the server must be as it was.
fn refused_with(start: Start, spoil: impl FnOnce(&Hello), clean: impl Fn(&Hello)) -> String {
    let hello = start.start();
    let before = hello.at_rest();
    spoil(&hello);

    let load = Load::start(hello.address());
    let said = hello.reload_fails(1);
    load.goes_on();
    let mut answered = load.finish();
    let survivor = format!("generation 1, pid {}, serves on", before.pid);
    assert_eq!(said.trim_end().lines().last(), Some(&*survivor), "{said}");
    clean(&hello);
    hello.is_again(&before);
    let last = hello.status()["last_reload"].clone();
    assert_eq!(last["result"], "failed", "{last}");
    let reason = last["reason"].as_str().expect("a reason");
    assert!(said.contains(reason), "status: {reason}\nreload: {said}");
    // Written by a thread of its own.
    eventually("the log says so, too", || {
        hello.log().contains("this generation serves on")
    });

    let load = Load::start(hello.address());
    hello.reload_fails(1);
    hello.restore_binary();
    let line = hello.reload();
    assert!(line.starts_with("generation 1 → 2, pid "), "{line}");
    load.goes_on();
    answered += load.finish();
    clean(&hello);
    assert_eq!(hello.requests(), answered, "the counter is exact");
    hello.holds_what_it_held(&before);
    eprintln!("--- what the operator reads\n{said}");
    said
}

/// What was said contains all this.
#[track_caller]
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "`{word}` is missing:\n{said}");
    }
}

fn default() -> Start {
    Hello::with()
}

fn impatient() -> Start {
    Hello::with().arg("--ready-timeout").arg("4s")
}

#[test]
fn that_does_not_exist() {
    let said = refused(default(), |hello| {
        fs::remove_file(hello.binary()).expect("remove");
    });
    assert_says(
        &said,
        &[
            "reload 1 failed while starting: cannot execute `",
            "/hello`",
            "it does not exist: deploy it",
        ],
    );
}

#[test]
fn that_is_not_executable() {
    let said = refused(default(), |hello| {
        fs::set_permissions(hello.binary(), fs::Permissions::from_mode(0o644)).expect("chmod");
    });
    assert_says(
        &said,
        &[
            "failed while starting: cannot execute `",
            "not executable for this user: chmod +x",
        ],
    );
}

#[test]
fn that_is_a_directory() {
    let said = refused_with(
        default(),
        |hello| {
            fs::remove_file(hello.binary()).expect("remove");
            fs::create_dir(hello.binary()).expect("mkdir");
        },
        |hello| drop(fs::remove_dir(hello.binary())),
    );
    assert_says(
        &said,
        &[
            "failed while starting: cannot execute `",
            "it is a directory: deploy",
        ],
    );
}

#[test]
fn that_is_half_a_binary() {
    let real = fs::read(REAL).expect("read");
    // An empty file, less than a header, headers only, and a copy that was interrupted (the second
    // half of an unoptimized build is needed by debuggers only).
    for (length, words) in [
        (
            0,
            "it is not a program of this machine: half a file, perhaps",
        ),
        (
            20,
            "it is not a program of this machine: half a file, perhaps",
        ),
        (4096, "the child was killed by signal"),
        (real.len() / 8, "the child was killed by signal"),
    ] {
        let said = refused(default(), |hello| hello.replace_binary(&real[..length]));
        assert_says(&said, &[words]);
    }
}

#[test]
fn that_is_no_program() {
    let said = refused(default(), |hello| {
        hello.replace_binary(b"This is the release notes.\n");
    });
    assert_says(
        &said,
        &[
            "failed while starting",
            "it is not a program of this machine",
        ],
    );
}

#[test]
fn whose_interpreter_is_missing() {
    let said = refused(default(), |hello| {
        hello.replace_binary(b"#!/opt/no/such/interpreter\n");
    });
    assert_says(
        &said,
        &[
            "failed while starting",
            "its interpreter or loader does not exist",
        ],
    );
}

#[test]
fn that_exits_at_once_with_a_message() {
    let said = refused(default(), |hello| {
        hello.replace_binary_by_script("echo 'cannot reach the database' >&2; exit 7");
    });
    assert_says(
        &said,
        &[
            "child: cannot reach the database",
            "reload 1 failed while joining: the child exited with status 7",
        ],
    );
}

#[test]
fn that_exits_at_once_without_a_word() {
    let said = refused(default(), |hello| hello.replace_binary_by_script("exit 0"));
    assert_says(
        &said,
        &["failed while joining: the child exited with status 0"],
    );
}

#[test]
fn that_says_more_than_anybody_wants_to_read() {
    let said = refused(default(), |hello| {
        hello.replace_binary_by_script("seq 1 200000 >&2; echo 'the last word' >&2; exit 1");
    });
    assert_says(
        &said,
        &["child: the last word", "the child exited with status 1"],
    );
}

#[test]
fn that_crashes() {
    let said = refused(default(), |hello| {
        hello.replace_binary_by_script("kill -SEGV $$");
    });
    assert_says(
        &said,
        &["failed while joining: the child was killed by signal 11 (SIGSEGV)"],
    );
}

#[test]
fn that_panics() {
    for (point, phase) in [
        ("before-say/Hello", "joining"),
        ("before-say/Ready", "restoring"),
    ] {
        let said = refused(default(), |hello| {
            hello.replace_binary_by_script(&format!(
                "HANDOFF_FAILPOINTS=child/{point}=panic exec {REAL} \"$@\""
            ));
        });
        assert_says(
            &said,
            &[
                &format!("failed while {phase}"),
                &format!("child: failpoint child/{point}"),
                "the child exited with status",
            ],
        );
    }
}

#[test]
fn that_hangs_before_hello() {
    let start = Instant::now();
    let said = refused(impatient(), |hello| {
        hello.replace_binary_by_script("echo 'waiting for the network' >&2; exec sleep 1000");
    });
    assert_says(
        &said,
        &[
            "child: waiting for the network",
            "failed while joining: the child did not say Hello in time: is it this program? (limit: 4s)",
        ],
    );
    assert!(
        start.elapsed() > Duration::from_secs(4),
        "it was waited for"
    );
}

#[test]
fn that_hangs_after_hello() {
    let said = refused(impatient(), |hello| {
        hello.replace_binary_by_script(&format!(
            "HANDOFF_FAILPOINTS=child/after-say/Hello=stop exec {REAL} \"$@\""
        ));
    });
    assert_says(
        &said,
        &["failed while booting: the child was not prepared in time (limit: 4s)"],
    );
}

#[test]
fn that_ignores_every_signal_it_can_and_has_a_child_of_its_own() {
    let said = refused(impatient(), |hello| {
        hello.replace_binary_by_script(
            "trap '' TERM INT HUP QUIT USR1 USR2 PIPE; sleep 1000; exit 0",
        );
    });
    assert_says(
        &said,
        &["failed while joining: the child did not say Hello in time"],
    );
}

/// What the shell starts is not our child, and could outlive the shell.
#[test]
fn that_is_started_by_a_script_without_exec() {
    let said = refused(default(), |hello| {
        hello.replace_binary_by_script(&format!("{REAL} \"$@\"; exit $?"));
    });
    assert_says(
        &said,
        &[
            "a script between them must end in `exec`",
            "failed while joining: the child exited with status 1",
        ],
    );
}

#[test]
fn that_is_not_healthy() {
    let said = refused(default(), |hello| {
        hello.replace_binary_by_script(&format!("HELLO_PROBE=/nonexistent exec {REAL} \"$@\""));
    });
    assert_says(
        &said,
        &[
            "failed while restoring: not healthy: GET /nonexistent",
            "404",
        ],
    );
}

#[test]
fn that_cannot_bind_a_new_listener() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("an address");
    let said = refused(default(), |hello| {
        hello.replace_binary_by_script(&format!("exec {REAL} \"$@\" --listen admin={address}"));
    });
    assert_says(
        &said,
        &[
            "failed while booting",
            &address.to_string(),
            "admin",
            "in use",
        ],
    );
}

#[test]
fn that_does_not_understand_its_configuration() {
    let said = refused(default(), |hello| {
        hello.replace_binary_by_script(&format!("exec {REAL} \"$@\" --backlog 0"));
    });
    assert_says(
        &said,
        &[
            "child: error: invalid value '0' for '--backlog <N>'",
            "reload 1 failed while joining: error: invalid value '0' for '--backlog <N>'",
        ],
    );
}

#[test]
fn that_would_have_another_pidfile() {
    let said = refused(default(), |hello| {
        let other = hello.dir().join("other.pid");
        hello.replace_binary_by_script(&format!(
            "shift; exec {REAL} serve --listen 127.0.0.1:0 --pidfile {}",
            other.display()
        ));
    });
    assert_says(
        &said,
        &[
            "failed while booting: the pidfile would change from ",
            "other.pid",
            "stop the service and start it anew",
        ],
    );
}

/// Dead is who is dead: what its own child still holds says nothing.
#[test]
fn whose_own_child_keeps_channel_and_stderr() {
    let start = Instant::now();
    let said = refused_with(
        default(),
        |hello| {
            // In the background, stdin is /dev/null: the channel is kept as 3.
            hello.replace_binary_by_script("exec 3<&0; sleep 1000 & echo $! >>sleepers; exit 3");
        },
        |hello| {
            for pid in fs::read_to_string(hello.dir().join("sleepers"))
                .expect("read")
                .lines()
            {
                let fd = fs::read_link(format!("/proc/{pid}/fd/3"));
                let Ok(fd) = fd else { continue };
                assert!(fd.to_string_lossy().starts_with("socket:"), "{fd:?}");
                hello.signal(
                    pid.parse().expect("a pid"),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        },
    );
    assert_says(
        &said,
        &["failed while joining: the child exited with status 3"],
    );
    assert!(
        start.elapsed() < Duration::from_secs(25),
        "a deadline was waited for"
    );
}

// Children that speak the protocol wrongly.

/// This program itself as the child.
fn rogue(hello: &Hello, part: &str) {
    let program = std::env::current_exe().expect("a path");
    hello.replace_binary_by_script(&format!(
        "ROGUE={part} PIDFILE={} exec {} --exact rogue_child --ignored --nocapture --test-threads=1",
        hello.pidfile().display(),
        program.display(),
    ));
}

#[test]
fn that_speaks_another_version() {
    let said = refused(default(), |hello| rogue(hello, "newer"));
    assert_says(
        &said,
        &[
            "failed while joining",
            "the new build speaks protocol versions 7..=9, this one 1..=1: go by way of a build that speaks both",
        ],
    );
    let said = refused(default(), |hello| rogue(hello, "older"));
    assert_says(&said, &["protocol versions 0..=0, this one 1..=1"]);
}

#[test]
fn that_speaks_nonsense() {
    let hello = Hello::start();
    let before = hello.at_rest();
    let load = Load::start(hello.address());
    for (part, phase, words) in [
        (
            "garbage",
            "joining",
            "not a message of this protocol (64 bytes)",
        ),
        (
            "half-a-header",
            "joining",
            "not a message of this protocol (10 bytes)",
        ),
        ("half-a-body", "joining", "not a message of this protocol"),
        ("another-magic", "joining", "not a message of this protocol"),
        (
            "nothing",
            "joining",
            "it closed its end of the channel and lives on",
        ),
        (
            "closed",
            "joining",
            "it closed its end of the channel and lives on",
        ),
        ("unknown-kind", "joining", "unknown message kind 99"),
        (
            "unknown-version",
            "joining",
            "a message of protocol version 2, where 1 was agreed on",
        ),
        ("wrong-number", "joining", "message 2 where 1 was due"),
        ("malformed", "joining", "malformed Hello"),
        (
            "no-version-at-all",
            "joining",
            "malformed Hello: protocol versions 2..=1",
        ),
        ("too-long", "joining", "longer than a message may be"),
        (
            "with-descriptors",
            "joining",
            "descriptors that do not belong to it",
        ),
        (
            "with-more-than-announced",
            "joining",
            "253 descriptors where 1 were announced",
        ),
        (
            "with-fewer-than-announced",
            "joining",
            "0 descriptors where 1 were announced",
        ),
        ("ready-at-once", "joining", "the child said Ready"),
        ("twice", "booting", "the child said Hello"),
        ("of-the-parents", "booting", "the child said Commit"),
        ("accepting-too-early", "booting", "the child said Accepting"),
        (
            "an-ack-of-nothing",
            "booting",
            "an ack where nothing was sent",
        ),
        (
            "ready-without-the-state",
            "restoring",
            "the child said Ready",
        ),
        ("talks-without-end", "booting", "the child said Hello"),
    ] {
        rogue(&hello, part);
        let said = hello.reload_fails(1);
        let expected = [
            &*format!("failed while {phase}: "),
            words,
            "generation 1, pid",
        ];
        for expected in expected {
            assert!(
                said.contains(expected),
                "{part}: `{expected}` is missing:\n{said}"
            );
        }
        load.goes_on();
        hello.settles();
    }
    let mut answered = load.finish();
    hello.is_again(&before);
    hello.restore_binary();
    let load = Load::start(hello.address());
    hello.reload();
    load.goes_on();
    answered += load.finish();
    assert_eq!(hello.requests(), answered, "the counter is exact");
    hello.holds_what_it_held(&before);
}

#[test]
fn that_refuses_in_words() {
    let said = refused(default(), |hello| rogue(hello, "refuses"));
    assert_says(
        &said,
        &["reload 1 failed while booting: the licence has expired"],
    );
}

/// The commit cannot be taken back by waiting: the child is killed first.
#[test]
fn that_does_not_accept_after_the_commit() {
    let said = refused(default(), |hello| rogue(hello, "never-accepts"));
    assert_says(
        &said,
        &["failed while committing: the child did not accept in time after the commit (limit: 5s)"],
    );
}

#[test]
fn that_dies_between_commit_and_accepting() {
    let said = refused(default(), |hello| rogue(hello, "dies-at-the-commit"));
    assert_says(
        &said,
        &["failed while committing: the child exited with status 9"],
    );
}

#[test]
fn that_cannot_decode_the_state() {
    let said = refused(default(), |hello| rogue(hello, "other-state"));
    assert_says(
        &said,
        &[
            "failed while restoring",
            "`requests`",
            "this build reads versions 7 to 9",
        ],
    );
}

#[test]
fn whose_application_gives_up() {
    let said = refused(default(), |hello| rogue(hello, "gives-up"));
    assert_says(&said, &["failed while booting: no route to the database"]);
}

/// Not a test of its own: what the child does in those above.
#[test]
#[ignore = "the child of other tests"]
fn rogue_child() {
    if let Ok(part) = std::env::var("ROGUE") {
        rogue::play(&part)
    }
}

mod rogue {
    use std::{
        io::{IoSlice, Read, Write},
        mem::MaybeUninit,
        os::fd::BorrowedFd,
        path::PathBuf,
    };

    use handoff::state::{Section, SectionError};
    use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    // As in handoff/src/wire.rs.
    const HELLO: u16 = 1;
    const REFUSE: u16 = 2;
    const PREPARED: u16 = 6;
    const STATE: u16 = 7;
    const READY: u16 = 8;
    const COMMIT: u16 = 9;
    const ACCEPTING: u16 = 10;
    const REST_ACK: u16 = 15;

    /// Everything of a record that can be wrong.
    struct Record {
        magic: [u8; 4],
        version: u16,
        kind: u16,
        number: u64,
        body: Vec<u8>,
        /// How many descriptors the header announces, and how many there are.
        fds: (u16, usize),
    }

    impl Record {
        fn new(number: u64, kind: u16, body: Vec<u8>) -> Self {
            Self {
                magic: *b"HOFF",
                version: u16::from(kind > 4),
                kind,
                number,
                body,
                fds: (0, 0),
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = self.magic.to_vec();
            bytes.extend(self.version.to_le_bytes());
            bytes.extend(self.kind.to_le_bytes());
            bytes.extend(self.number.to_le_bytes());
            bytes.extend(
                u32::try_from(self.body.len())
                    .expect("a length")
                    .to_le_bytes(),
            );
            bytes.extend(self.fds.0.to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(&self.body);
            bytes
        }

        fn send(&self) {
            send(&self.bytes(), self.fds.1);
        }
    }

    fn hello(oldest: u16, newest: u16) -> Record {
        let mut body = Vec::new();
        body.extend(oldest.to_le_bytes());
        body.extend(newest.to_le_bytes());
        body.extend(std::process::id().to_le_bytes());
        body.extend(text("rogue"));
        Record::new(1, HELLO, body)
    }

    fn text(words: &str) -> Vec<u8> {
        let mut bytes = u16::try_from(words.len())
            .expect("short")
            .to_le_bytes()
            .to_vec();
        bytes.extend(words.as_bytes());
        bytes
    }

    /// Three empty lists.
    fn prepared(number: u64) -> Record {
        Record::new(number, PREPARED, vec![0; 24])
    }

    fn send(bytes: &[u8], fds: usize) {
        let stdin = std::io::stdin();
        let fds: Vec<BorrowedFd<'_>> = vec![rustix::stdio::stdin(); fds];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(
            &stdin,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::empty(),
        )
        .expect("send");
    }

    /// The next message's kind; its descriptors close themselves.
    fn hear() -> u16 {
        let mut record = vec![0; 256 * 1024];
        let (length, _) =
            rustix::net::recv(std::io::stdin(), &mut *record, RecvFlags::empty()).expect("receive");
        assert!(length >= 24, "the parent has closed the channel");
        u16::from_le_bytes([record[6], record[7]])
    }

    fn until(kind: u16) {
        while hear() != kind {}
    }

    /// Until the parent kills us.
    fn live_on() -> ! {
        loop {
            std::thread::park();
        }
    }

    pub(crate) fn play(part: &str) -> ! {
        match part {
            "newer" => hello(7, 9).send(),
            "older" => hello(0, 0).send(),
            "garbage" => send(&[0xa5; 64], 0),
            "half-a-header" => send(&hello(1, 1).bytes()[..10], 0),
            "half-a-body" => send(&hello(1, 1).bytes()[..30], 0),
            "another-magic" => Record {
                magic: *b"HTTP",
                ..hello(1, 1)
            }
            .send(),
            "nothing" => send(&[], 0),
            "closed" => {
                let null = std::fs::File::open("/dev/null").expect("open");
                rustix::stdio::dup2_stdin(&null).expect("dup");
            }
            "unknown-kind" => Record::new(1, 99, vec![]).send(),
            "unknown-version" => Record {
                version: 2,
                ..Record::new(1, READY, vec![])
            }
            .send(),
            "wrong-number" => Record {
                number: 2,
                ..hello(1, 1)
            }
            .send(),
            "malformed" => Record {
                body: vec![1],
                ..hello(1, 1)
            }
            .send(),
            "no-version-at-all" => hello(2, 1).send(),
            "too-long" => Record {
                body: vec![0; 200_000],
                ..hello(1, 1)
            }
            .send(),
            "with-descriptors" => Record {
                fds: (253, 253),
                ..hello(1, 1)
            }
            .send(),
            "with-more-than-announced" => Record {
                fds: (1, 253),
                ..hello(1, 1)
            }
            .send(),
            "with-fewer-than-announced" => Record {
                fds: (1, 0),
                ..hello(1, 1)
            }
            .send(),
            "ready-at-once" => Record::new(1, READY, vec![]).send(),
            "twice" => {
                hello(1, 1).send();
                Record {
                    number: 2,
                    ..hello(1, 1)
                }
                .send();
            }
            "of-the-parents" => {
                hello(1, 1).send();
                // No changes, inline: the variant and an empty list.
                Record::new(2, COMMIT, vec![0; 28]).send();
            }
            "accepting-too-early" => {
                hello(1, 1).send();
                Record::new(2, ACCEPTING, vec![]).send();
            }
            "an-ack-of-nothing" => {
                hello(1, 1).send();
                Record::new(2, REST_ACK, 1_u64.to_le_bytes().to_vec()).send();
            }
            "ready-without-the-state" => {
                hello(1, 1).send();
                prepared(2).send();
                Record::new(3, READY, vec![]).send();
            }
            "talks-without-end" => {
                for number in 1.. {
                    Record {
                        number,
                        ..hello(1, 1)
                    }
                    .send();
                }
            }
            "refuses" => {
                hello(1, 1).send();
                Record::new(2, REFUSE, text("the licence has expired")).send();
            }
            "never-accepts" => until_commit(),
            "dies-at-the-commit" => {
                until_commit();
                std::process::exit(9);
            }
            "other-state" => another_build(true),
            "gives-up" => another_build(false),
            part => panic!("no part is named {part}"),
        }
        live_on()
    }

    fn until_commit() {
        hello(1, 1).send();
        prepared(2).send();
        until(STATE);
        Record::new(3, READY, vec![]).send();
        until(COMMIT);
    }

    /// Another program with the same listener, made with the library itself.
    fn another_build(wants_the_state: bool) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let pidfile = PathBuf::from(std::env::var_os("PIDFILE").expect("set"));
            let builder = handoff::Builder::new("hello").pidfile(pidfile);
            let builder = builder.listen("http", "127.0.0.1:0".parse().expect("an address"));
            let mut starting = builder.start().await.expect("a parent");
            if wants_the_state {
                let error = starting.state(Reformed).await.map(drop);
                assert!(error.is_err(), "it was decoded");
            } else {
                starting.refuse("no route to the database").await;
            }
        });
        std::process::exit(8);
    }

    /// The counter of a build whose format is younger, and not compatible.
    struct Reformed;

    impl Section for Reformed {
        fn name(&self) -> &str {
            "requests"
        }

        fn version(&self) -> u32 {
            9
        }

        fn snapshot(&self, _: &mut dyn Write) -> std::io::Result<()> {
            Ok(())
        }

        fn delta(&self) -> Option<Vec<u8>> {
            None
        }

        fn restore(&self, version: u32, _: &mut dyn Read) -> Result<(), SectionError> {
            assert_eq!(version, 1);
            Err(SectionError::Version { supported: 7..=9 })
        }

        fn absorb(&self, _: u32, _: &[u8]) -> Result<(), SectionError> {
            Ok(())
        }
    }
}

/// Whatever a child says, its reload comes to an end, and the others have their turn.
#[test]
fn a_child_that_writes_without_end_is_killed_in_time() {
    let start = Hello::with().arg("--ready-timeout").arg("1s");
    let said = refused(start, |hello| {
        hello.replace_binary_by_script("exec yes a line of the child >&2");
    });
    assert_says(&said, &["(limit: 1s)", "a line of the child"]);
}

/// Each of its bytes is six in JSON.
#[test]
fn a_child_that_says_control_characters_fails_the_reload_as_any_other() {
    let said = refused(Hello::with(), |hello| {
        let line = "\\033".repeat(2048);
        hello.replace_binary_by_script(&format!(
            "for i in $(seq 60); do printf '{line}\\n' >&2; done; exit 7"
        ));
    });
    assert_says(&said, &["exited with status 7", "bytes cut]"]);
    // It is shown to a terminal.
    assert!(!said.contains('\x1b'), "{said}");
}

/// A question after a reload that has failed is answered once, and that is all.
#[test]
fn the_outcome_of_a_failed_reload_is_the_last_word() {
    let hello = Hello::start();
    hello.replace_binary_by_script("exit 7");
    hello.reload_fails(1);
    let mut control = UnixStream::connect(hello.control()).expect("connect");
    control.set_read_timeout(Some(LONG)).expect("timeout");
    control
        .write_all(b"{\"verb\":\"outcome\",\"reload\":1}\n")
        .expect("ask");
    let mut said = String::new();
    control.read_to_string(&mut said).expect("an end");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("exited with status 7"), "{said}");
}
