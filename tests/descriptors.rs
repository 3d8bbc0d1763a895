//! Limits on descriptors: of a process (RLIMIT_NOFILE), and of what a user has on its way between processes.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, IoSlice, Read},
    os::{
        fd::AsRawFd,
        unix::{net::UnixDatagram, process::CommandExt},
    },
    process::{Child, ChildStdout, Command, Stdio},
};

use nix::sys::{
    signal::Signal,
    socket::{ControlMessage, MsgFlags, sendmsg},
};
use support::{
    Hello, Start,
    at_rest::{descriptors, freezes},
    cells::{child_of, end_of, reloading},
    client::{Answer, Client, request},
    eventually, raise_descriptors, text,
};

fn is_plain(answer: &Answer, generation: u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.closes(), "{answer:?}");
    assert_eq!(answer.generation(), generation);
}

/// Connections that have been answered once.
fn connect(hello: &Hello, number: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..number)
        .map(|_| Client::connect(hello.address()))
        .collect();
    for client in &mut clients {
        is_plain(&client.get("/hello"), 1);
    }
    clients
}

/// Of a process: its soft and its hard limit.
fn limits(pid: u32) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut words = line.expect("a line").split_ascii_whitespace().skip(3);
    let mut next = || words.next().expect("a limit").to_owned();
    (next(), next())
}

#[test]
fn the_soft_limit_is_raised_in_every_generation() {
    raise_descriptors();
    let hello = Hello::with().soft_descriptors(40).start();
    let mut clients = connect(&hello, 100);
    for generation in 2..=3 {
        let (soft, hard) = limits(hello.pid());
        assert_eq!(soft, hard);
        assert_ne!(soft, "40");
        hello.reload();
        for client in &mut clients {
            is_plain(&client.get("/hello"), generation);
        }
    }
}

/// Nobody's, and nobody else's: what is on its way is counted for each user.
fn user() -> u32 {
    60_000 + std::process::id() % 5_000
}

/// Another process of the same user, which has descriptors on their way until it is dropped.
struct Crowd {
    process: Child,
    /// Open as long as it may write.
    output: BufReader<ChildStdout>,
}

/// Set where this program runs as that process: to how many descriptors in each of two messages.
const CROWD: &str = "HELLO_TEST_CROWD";

impl Crowd {
    /// Twice so many.
    fn new(user: u32, half: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        if nix::unistd::geteuid().is_root() {
            command.uid(user).gid(user);
        }
        let mut process = command
            .args(["--exact", "--nocapture", "the_crowd"])
            .env(CROWD, half.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the crowd");
        let mut output = BufReader::new(process.stdout.take().expect("a pipe"));
        let is_there = output
            .by_ref()
            .lines()
            .any(|line| line.expect("a line").contains(CROWD));
        assert!(is_there, "the crowd has ended");
        Self { process, output }
    }

    /// Closes its channel, and what waits in it.
    fn leaves(mut self) {
        drop(self.process.stdin.take());
        self.process.wait().expect("wait");
        drop(self.output);
    }
}

#[test]
fn the_crowd() {
    let Ok(half) = std::env::var(CROWD) else {
        return;
    };
    let (near, _far) = UnixDatagram::pair().expect("a pair");
    let many = vec![0; half.parse().expect("a number")];
    for _ in 0..2 {
        sendmsg::<()>(
            near.as_raw_fd(),
            &[IoSlice::new(b"crowd")],
            &[ControlMessage::ScmRights(&many)],
            MsgFlags::empty(),
            None,
        )
        .expect("send");
    }
    println!("{CROWD}");
    // Until it is told to leave.
    let _ = std::io::stdin().read(&mut [0]);
}

/// Twice this is more than a user may have on their way.
const MANY: usize = 253;

fn near_its_limit(user: u32) -> Start {
    raise_descriptors();
    Hello::with().descriptors(256).user(user)
}

#[test]
fn a_user_near_its_limit_loses_nobody() {
    let hello = near_its_limit(user()).start();
    let mut clients = connect(&hello, 200);
    for generation in 2..=5 {
        hello.reload();
        for client in &mut clients {
            is_plain(&client.get("/hello"), generation);
        }
    }
}

/// The kernel takes no listener of it (ETOOMANYREFS): the offer waits.
#[test]
fn an_offer_waits_until_the_user_has_fewer_descriptors_on_their_way() {
    let user = user() + 5_000;
    let hello = near_its_limit(user).start();
    let mut clients = connect(&hello, 200);
    let crowd = Crowd::new(user, MANY);
    let mut reloading = reloading(&hello);
    eventually("the child is waiting for its listeners", || {
        hello.status()["reload"]["phase"] == "booting"
    });
    // A moment, by the server's own clock.
    is_plain(&clients[0].get("/slow?ms=300"), 1);
    if nix::unistd::geteuid().is_root() {
        assert!(reloading.try_wait().expect("wait").is_none(), "not crowded");
    }
    crowd.leaves();
    let output = end_of(reloading);
    assert!(output.status.success(), "{}", text(&output));
    for client in &mut clients {
        is_plain(&client.get("/hello"), 2);
    }
}

/// Nor a connection: they wait, and their clients' requests with them.
#[test]
fn connections_wait_until_the_user_has_fewer_descriptors_on_their_way() {
    let user = user() + 10_000;
    let hello = near_its_limit(user)
        .env("HANDOFF_FAILPOINTS", "parent/before-say/Conn#1=stop")
        .start();
    let parent = hello.pid();
    let mut clients = connect(&hello, 200);
    let mut reloading = reloading(&hello);
    freezes(parent);
    let crowd = Crowd::new(user, MANY);
    for client in &mut clients {
        client.send(request("/hello"));
    }
    hello.signal(parent, Signal::SIGCONT);
    is_plain(&Client::connect(hello.address()).get("/slow?ms=300"), 2);
    if nix::unistd::geteuid().is_root() {
        assert!(reloading.try_wait().expect("wait").is_none(), "not crowded");
    }
    crowd.leaves();
    for client in &mut clients {
        let answer = client.answer();
        assert_eq!((answer.status, answer.closes()), (200, false));
    }
    let output = end_of(reloading);
    assert!(output.status.success(), "{}", text(&output));
    for client in &mut clients {
        is_plain(&client.get("/hello"), 2);
    }
}

/// The kernel looks at what is on its way already, not at what comes with this message (unix(7), `ETOOMANYREFS`): a batch of more
/// connections than the user has left moves, and so does one under a limit that is lower than the largest batch.
#[test]
fn connections_move_though_more_come_at_once_than_the_user_has_left() {
    const LIMIT: u32 = 128;
    let user = user() + 15_000;
    raise_descriptors();
    let hello = Hello::with().descriptors(LIMIT).user(user).start();
    let mut clients = connect(&hello, 80);
    // All but a few of the limit, for as long as the test takes.
    let crowd = Crowd::new(user, (LIMIT / 2 - 4) as usize);
    for generation in 2..=4 {
        hello.reload();
        for client in &mut clients {
            is_plain(&client.get("/hello"), generation);
        }
    }
    crowd.leaves();
}

/// The last holder of a memfd waits until the kernel has freed it, 0.4 s for each GiB: that must not be a process
/// which is to accept.
#[test]
fn a_child_has_let_go_of_the_state_before_it_is_ready() {
    let points = "child/heard/State=stop,child/before-say/Ready=stop";
    let hello = Hello::with().env("HANDOFF_FAILPOINTS", points).start();
    let reloading = reloading(&hello);
    let child = child_of(&hello, hello.pid(), &reloading);
    let has_state = || descriptors(child).contains_key("/memfd:handoff-state (deleted)");
    freezes(child);
    assert!(has_state(), "{:?}", descriptors(child));
    hello.signal(child, Signal::SIGCONT);
    freezes(child);
    assert!(!has_state(), "{:?}", descriptors(child));
    hello.signal(child, Signal::SIGCONT);
    let output = end_of(reloading);
    assert!(output.status.success(), "{}", text(&output));
}
