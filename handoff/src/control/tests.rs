//! Both ends, on real sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::message::Generation;
use super::*;

mod conversation;

/// Longer than anything takes, even on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(60);

const PARENT: Generation = Generation {
    generation: 1,
    pid: 11,
};
/// A server whose requests the test answers.
struct World {
    _dir: tempfile::TempDir,
    path: PathBuf,
    server: Arc<Server>,
    requests: mpsc::Receiver<Incoming>,
    running: JoinHandle<std::io::Result<()>>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello.pid.sock");
        let server = Arc::new(Server::new(bind(&path).unwrap()).unwrap());
        let (running, requests) = start(&server);
        Self {
            _dir: dir,
            path,
            server,
            requests,
            running,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    async fn next(&mut self) -> Incoming {
        tokio::time::timeout(LONG, self.requests.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// A whole conversation of somebody else still works.
    async fn serves_others(&mut self) {
        let path = self.path.clone();
        let asked = tokio::spawn(async move { stop(&path, LONG).await });
        let incoming = self.next().await;
        assert_eq!(incoming.request, Request::Stop);
        assert_eq!(incoming.peer.pid as u32, std::process::id());
        incoming.reply.send(&Event::Stopping { process: PARENT });
        assert_eq!(asked.await.unwrap().unwrap(), PARENT);
    }
}

fn start(server: &Arc<Server>) -> (JoinHandle<std::io::Result<()>>, mpsc::Receiver<Incoming>) {
    let (to, requests) = mpsc::channel(4);
    let server = Arc::clone(server);
    (tokio::spawn(async move { server.run(to).await }), requests)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// What a client that sends `bytes` is told before it is closed.
async fn answer_to(mut stream: UnixStream, bytes: Vec<u8>) -> String {
    blocking(move || {
        let _ = stream.write_all(&bytes);
        read_all(&mut stream)
    })
    .await
}

fn read_all(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(len @ 1..) => answer.extend_from_slice(&buffer[..len]),
            // With a timeout, SA_RESTART is of no use: signal(7). Other tests of this process get signals.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn garbage_is_named_and_closed() {
    let mut world = World::new();
    for (line, expected) in [
        ("GET / HTTP/1.1\r\n", "not a request: expected value"),
        ("{}\n", "missing field `verb`"),
        ("\n", "EOF while parsing"),
        (r#"{"verb":"dance"}"#, "does not end"),
        (
            "{\"verb\":\"dance\"}\n",
            "unknown variant `dance`, expected one of `status`",
        ),
        ("", "does not end"),
    ] {
        let stream = world.connect();
        stream.set_nonblocking(false).unwrap();
        let end = stream.try_clone().unwrap();
        let bytes = line.as_bytes().to_vec();
        let answer = blocking(move || {
            let mut stream = stream;
            stream.write_all(&bytes).unwrap();
            end.shutdown(std::net::Shutdown::Write).unwrap();
            read_all(&mut stream)
        })
        .await;
        let event: Event = serde_json::from_str(&answer).unwrap();
        let Event::Invalid { reason } = event else {
            panic!("{line:?}: {event:?}")
        };
        assert!(reason.contains(expected), "{line:?}: {reason}");
    }
    world.serves_others().await;
}

#[tokio::test]
async fn a_line_without_end_costs_one_small_buffer() {
    let mut world = World::new();
    let before = resident_kib();
    let answer = answer_to(world.connect(), vec![b'x'; 64 << 20]).await;
    assert!(answer.contains("less than 4096 bytes"), "{answer}");
    assert!(answer.ends_with('\n'));
    // The 64 MiB of this test itself, and not twice that.
    assert!(resident_kib() < before + 96 * 1024);
    world.serves_others().await;
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn silence_and_half_a_line_are_waited_for_only_so_long() {
    let mut world = World::new();
    let silent = tokio::spawn(answer_to(world.connect(), Vec::new()));
    let half = tokio::spawn(answer_to(world.connect(), br#"{"verb":"#.to_vec()));
    // Meanwhile:
    world.serves_others().await;
    assert!(!silent.is_finished());
    for answer in [silent.await.unwrap(), half.await.unwrap()] {
        assert!(answer.contains("no request within 5 s"), "{answer}");
    }
}

#[tokio::test]
async fn one_client_too_many_is_told() {
    let mut world = World::new();
    let crowd: Vec<_> = (0..MAX_CLIENTS).map(|_| world.connect()).collect();
    let answer = answer_to(world.connect(), Vec::new()).await;
    assert!(
        answer.contains("64 clients are connected already"),
        "{answer}"
    );
    drop(crowd);
    // Its places are free as soon as the server has seen that.
    while world.server_is_full().await {}
    world.serves_others().await;
}

impl World {
    async fn server_is_full(&self) -> bool {
        let answer = answer_to(self.connect(), b"?\n".to_vec()).await;
        answer.contains("refused")
    }
}

#[tokio::test]
async fn who_does_not_read_is_dropped_and_hurts_nobody() {
    let mut world = World::new();
    let mut deaf = world.connect();
    deaf.write_all(b"{\"verb\":\"events\"}\n").unwrap();
    let Incoming { request, reply, .. } = world.next().await;
    assert_eq!(request, Request::Events);
    let line = "x".repeat(10_000);
    let event = Event::Stderr { reload: 1, line };
    let began = Instant::now();
    let mut sent = 0;
    while reply.send(&event) {
        sent += 1;
        assert!(sent < 1000, "nothing bounds the queue");
        tokio::task::yield_now().await;
    }
    assert!(reply.is_closed());
    assert!(began.elapsed() < Duration::from_secs(2));
    world.serves_others().await;
    assert!(world.server.flush(Duration::from_secs(2)).await);
}

#[tokio::test]
async fn a_client_that_goes_is_noticed_without_a_word_to_it() {
    let mut world = World::new();
    let mut whole = world.connect();
    whole.write_all(b"{\"verb\":\"events\"}\n").unwrap();
    let first = world.next().await.reply;
    let mut half = world.connect();
    half.write_all(b"{\"verb\":\"events\"}\n").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    let second = world.next().await.reply;
    drop(whole);
    closed(&first).await;
    // Half closed is not gone.
    assert!(second.send(&Event::Stopping { process: PARENT }));
    drop(second.clone());
    drop(half);
    closed(&second).await;
}

async fn closed(reply: &Reply) {
    let closed = async {
        while !reply.is_closed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed)
        .await
        .unwrap();
}

#[tokio::test]
async fn all_that_was_said_is_with_the_kernel_after_a_flush() {
    let mut world = World::new();
    let mut stream = world.connect();
    stream.write_all(b"{\"verb\":\"reload\"}\n").unwrap();
    let reply = world.next().await.reply;
    for pid in 0..500 {
        reply.send(&Event::Stopping {
            process: Generation { generation: 1, pid },
        });
    }
    assert!(world.server.flush(Duration::from_secs(5)).await);
    // As at a process's end: nothing more is done for this client.
    stream.set_nonblocking(true).unwrap();
    assert_eq!(read_all(&mut stream).lines().count(), 500);
    drop(reply);
}

#[tokio::test]
async fn a_pause_keeps_the_clients_and_lets_another_process_accept() {
    let mut world = World::new();
    let mut stream = world.connect();
    stream.write_all(b"{\"verb\":\"events\"}\n").unwrap();
    let early = world.next().await.reply;
    world.running.abort();
    assert!((&mut world.running).await.unwrap_err().is_cancelled());

    // The child, on the same socket.
    let shared = world.server.listener().unwrap();
    let child = Arc::new(Server::new(shared).unwrap());
    let (running, requests) = start(&child);
    let parents_requests = std::mem::replace(&mut world.requests, requests);
    world.serves_others().await;
    // The parent's client is still the parent's.
    assert!(early.send(&Event::Stopping { process: PARENT }));

    // The child fails; the parent resumes.
    running.abort();
    let _ = running.await;
    drop(child);
    drop(parents_requests);
    (world.running, world.requests) = start(&world.server);
    world.serves_others().await;
}

#[tokio::test]
async fn the_end_of_the_receiver_ends_the_accepting() {
    let mut world = World::new();
    world.requests.close();
    (&mut world.running).await.unwrap().unwrap();
}

#[test]
fn only_root_and_the_own_user_may_command() {
    use super::server::may_command;
    assert!(may_command(0, 1000));
    assert!(may_command(1000, 1000));
    assert!(!may_command(1001, 1000));
    assert!(!may_command(1000, 0));
}

/// With the real check of the kernel's word, which takes root to arrange.
#[tokio::test]
async fn another_user_is_refused_even_if_the_mode_is_changed() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(world.path.parent().unwrap(), 0o755);
    open(&world.path, 0o666);
    // This test program itself, as that user.
    let mut stranger = std::process::Command::new(std::env::current_exe().unwrap());
    stranger.uid(1001).env(STRANGERS_SOCKET, &world.path).args([
        "--exact",
        "control::tests::as_a_stranger",
        "--nocapture",
    ]);
    let Ok(output) = blocking(move || stranger.output()).await else {
        return; // that user may not run it from where it is
    };
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(
        answer.contains("uid 1001 may not command this server"),
        "{answer}"
    );
}

const STRANGERS_SOCKET: &str = "HANDOFF_TEST_STRANGERS_SOCKET";

/// Not a test of its own: what the other user does in the one above.
#[test]
fn as_a_stranger() {
    if let Some(path) = std::env::var_os(STRANGERS_SOCKET) {
        println!("{}", read_all(&mut UnixStream::connect(path).unwrap()));
    }
}
