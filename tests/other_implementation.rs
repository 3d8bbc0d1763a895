//! Both sides of the protocol, each written anew from docs/protocol.md, against the real one: a parent that is another
//! program and a child that is one, of builds that speak more versions than this one. No line of `handoff`'s encoding is
//! used here, so that a change of what is sent shows, even if both sides of ours change alike.

mod support;

use std::{
    fs::{self, File},
    io::{IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixListener},
    },
    process::{Command, Stdio},
};

use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    process::{Pid, PidfdFlags},
};
use support::{Hello, client::Client, eventually, load::Load};

const HELLO: u16 = 1;
const ABORT: u16 = 3;
const OFFER: u16 = 5;
const PREPARED: u16 = 6;
const STATE: u16 = 7;
const READY: u16 = 8;
const COMMIT: u16 = 9;
const ACCEPTING: u16 = 10;
const CONFIRM: u16 = 12;
const REST: u16 = 14;
const REST_ACK: u16 = 15;
const CONN: u16 = 16;
const CONN_ACK: u16 = 17;
const DRAINING: u16 = 20;
const BYE: u16 = 21;

/// A body, written field by field.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Text, or bytes: also the length of a list.
    fn text(mut self, text: impl AsRef<[u8]>) -> Self {
        self = self.u64(text.as_ref().len() as u64);
        self.0.extend(text.as_ref());
        self
    }
}

/// A body, read field by field.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_at(N);
        self.0 = rest;
        first.try_into().expect("N bytes")
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    fn texts(&mut self) -> Vec<String> {
        (0..self.u64()).map(|_| self.text()).collect()
    }

    fn ends(self) {
        assert!(self.0.is_empty(), "{} bytes are left over", self.0.len());
    }
}

struct Heard {
    version: u16,
    kind: u16,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// One end of the channel.
struct Channel {
    socket: OwnedFd,
    sent: u64,
    received: u64,
}

impl Channel {
    fn new(socket: OwnedFd) -> Self {
        let (sent, received) = (0, 0);
        Self {
            socket,
            sent,
            received,
        }
    }

    fn say(&mut self, version: u16, kind: u16, body: Body, fds: &[&dyn AsFd]) {
        self.sent += 1;
        let Body(body) = body;
        let header = Body(b"HOFF".to_vec()).u16(version).u16(kind).u64(self.sent);
        let header = header.u32(body.len() as u32).u16(fds.len() as u16).u16(0);
        let record = [header.0, body].concat();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
        let record = [IoSlice::new(&record)];
        rustix::net::sendmsg(&self.socket, &record, &mut control, SendFlags::NOSIGNAL)
            .expect("send");
    }

    /// `None` at the end of the channel.
    fn try_hear(&mut self) -> Option<Heard> {
        let mut record = vec![0; 131_072];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut record)];
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut slices,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let length = received.expect("receive").bytes;
        if length == 0 {
            return None;
        }
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        self.received += 1;
        let mut header = Fields(&record[..24]);
        assert_eq!(&header.take::<4>(), b"HOFF");
        let (version, kind) = (header.u16(), header.u16());
        assert_eq!(header.u64(), self.received, "the number of kind {kind}");
        assert_eq!(header.u32() as usize, length - 24);
        assert_eq!(header.u16() as usize, fds.len());
        assert_eq!(header.u16(), 0);
        let body = record[24..length].to_vec();
        Some(Heard {
            version,
            kind,
            body,
            fds,
        })
    }

    /// The next message, which must be of this kind and version.
    fn hear(&mut self, version: u16, kind: u16) -> Heard {
        let heard = self.try_hear().expect("a message");
        let words = String::from_utf8_lossy(&heard.body).into_owned();
        assert_eq!((heard.version, heard.kind), (version, kind), "{words:?}");
        heard
    }
}

fn memfd(bytes: &[u8]) -> File {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("state", flags).expect("memfd"));
    file.write_all(bytes).expect("write");
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals).expect("seal");
    file
}

/// A parent that is no `hello`, with one as its child.
struct Parent {
    dir: tempfile::TempDir,
    listener: TcpListener,
    /// Lock and control socket, as long as they are this process's.
    names: Option<(File, UnixListener)>,
    channel: Channel,
    child: std::process::Child,
    stderr: std::io::PipeReader,
}

impl Parent {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pidfile = dir.path().join("hello.pid");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        let lock = dir.path().join("hello.pid.lock");
        let lock = File::create_new(lock).expect("create");
        let whole = nix::libc::flock {
            l_type: nix::libc::F_WRLCK as _,
            l_whence: nix::libc::SEEK_SET as _,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).expect("lock");
        let control = UnixListener::bind(dir.path().join("hello.pid.sock")).expect("bind");
        fs::write(&pidfile, format!("{}\n", std::process::id())).expect("pidfile");
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair");
        let inode = rustix::fs::fstat(&theirs).expect("stat").st_ino;
        let (stderr, write_end) = std::io::pipe().expect("a pipe");
        let address = listener.local_addr().expect("an address");
        let child = Command::new(env!("CARGO_BIN_EXE_hello"))
            .args(["serve", "--listen", &format!("http={address}"), "--pidfile"])
            .arg(&pidfile)
            .env("HANDOFF_CHANNEL", inode.to_string())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(write_end)
            .spawn()
            .expect("spawn");
        let channel = Channel::new(ours);
        Self {
            dir,
            listener,
            names: Some((lock, control)),
            channel,
            child,
            stderr,
        }
    }

    fn offer(&self) -> Body {
        let address = self.listener.local_addr().expect("an address");
        let pidfile = self.dir.path().join("hello.pid");
        Body::default()
            .u64(1) // reload
            .u64(7)
            .u32(std::process::id()) // parent
            .u64(1) // one listener
            .text("http")
            .u32(0)
            .text(address.to_string())
            .u32(1024)
            .u8(0)
            .u8(1)
            .text(pidfile.as_os_str().as_encoded_bytes())
            .u64(0) // nobody older
            .u64(20_000)
            .u64(5_000)
            .u64(0) // no probation
            .u8(0)
    }

    fn say_offer(&mut self, version: u16) {
        let offer = self.offer();
        let own = Pid::from_raw(std::process::id() as i32).expect("a pid");
        let pidfd = rustix::process::pidfd_open(own, PidfdFlags::empty()).expect("pidfd");
        let stderr = std::io::stderr();
        let (lock, control) = self.names.as_ref().expect("the names");
        let fds: [&dyn AsFd; 6] = [&self.listener, lock, control, &stderr, &self.stderr, &pidfd];
        self.channel.say(version, OFFER, offer, &fds);
    }

    /// The first words of the child: which versions it speaks.
    fn hear_hello(&mut self) {
        let heard = self.channel.hear(0, HELLO);
        let mut fields = Fields(&heard.body);
        assert_eq!((fields.u16(), fields.u16()), (1, 1));
        assert_eq!(fields.u32(), self.child.id());
        let length = usize::from(fields.u16());
        assert_eq!(fields.0.len(), length, "the build");
        assert!(heard.fds.is_empty());
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
        let pidfile = self.dir.path().join("hello.pid");
        command.args(args).arg("--pidfile").arg(pidfile);
        command
    }

    fn verb(&self, args: &[&str]) -> std::process::Output {
        self.command(args).output().expect("hello")
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn hello_succeeds_another_implementation() {
    let mut parent = Parent::start();
    let address = parent.listener.local_addr().expect("an address");
    parent.hear_hello();
    parent.say_offer(1);
    let heard = parent.channel.hear(1, PREPARED);
    let mut fields = Fields(&heard.body);
    assert_eq!(fields.texts(), ["http"], "kept");
    assert!(fields.texts().is_empty() && fields.texts().is_empty());
    fields.ends();
    // One section, the application's counter.
    let state = 41_u64.to_le_bytes();
    let manifest = Body::default().u64(1).text("requests").u32(1).u64(0).u64(8);
    let manifest = manifest.u32(crc32fast::hash(&state)).u64(8);
    parent.channel.say(1, STATE, manifest, &[&memfd(&state)]);
    assert!(parent.channel.hear(1, READY).body.is_empty());
    // Two connections that this process has accepted: one rests, of one half a head was read.
    let mut rests = Client::connect(address);
    let (at_rest, _) = accept(&parent.listener);
    let mut half = Client::connect(address);
    let (in_half, _) = accept(&parent.listener);
    // No changes; one connection; nobody older.
    parent
        .channel
        .say(1, COMMIT, Body::default().u32(0).u64(0).u64(2).u64(0), &[]);
    assert!(parent.channel.hear(1, ACCEPTING).body.is_empty());
    parent
        .channel
        .say(1, CONFIRM, Body::default().u64(1234), &[]);
    parent.names = None;
    let answer = Client::connect(address).get("/hello");
    assert_eq!((answer.status, answer.generation()), (200, 8));
    // The change of the counter, then the connections.
    let delta = Body::default().u64(1).u32(0).u64(1).text("requests").u32(1);
    parent
        .channel
        .say(1, REST, delta.text(100_u64.to_le_bytes()), &[]);
    let mut ack = parent.channel.hear(1, REST_ACK).body;
    assert_eq!(std::mem::take(&mut ack), 1_u64.to_le_bytes());
    let head = "GET /hello HTTP/1.1\r\nhost: a\r\n";
    let connection = |body: Body, client: &Client| {
        body.text("http/1.1")
            .text("http")
            .u8(1)
            .text(client.name().to_string())
    };
    let batch = connection(Body::default().u64(2).u64(2), &rests);
    let batch = batch.u64(0).u64(1).text("waited").u64(5).u32(0);
    let batch = connection(batch, &half).u64(1).u32(head.len() as u32);
    let batch = batch
        .u64(2)
        .text("waited")
        .u64(5)
        .text("head")
        .u64(3)
        .u32(0);
    let batch = batch.u8(1).text(head).u64(head.len() as u64);
    parent.channel.say(1, CONN, batch, &[&at_rest, &in_half]);
    let ack = parent.channel.hear(1, CONN_ACK).body;
    assert_eq!(ack, Body::default().u64(2).u64(0).0, "both are taken");
    drop((at_rest, in_half));
    assert_eq!(rests.get("/hello").generation(), 8);
    half.send("\r\n");
    assert_eq!(half.answer().generation(), 8);
    parent
        .channel
        .say(1, DRAINING, Body::default().u64(0).u64(0).u64(0), &[]);
    let counts = Body::default()
        .u64(2)
        .u64(1)
        .text("idle")
        .u64(2)
        .u64(0)
        .u64(0)
        .u64(0);
    parent.channel.say(1, BYE, counts, &[]);
    assert!(
        parent.channel.try_hear().is_none(),
        "it has nothing more to say"
    );
    // Three requests were answered here, and 141 there.
    let status: serde_json::Value =
        serde_json::from_slice(&parent.verb(&["status", "--json"]).stdout).expect("JSON");
    assert_eq!(status["generation"], 8);
    assert_eq!(status["pid"], parent.child.id());
    let counted = Client::connect(address).get("/status").text();
    let counted: serde_json::Value = serde_json::from_str(&counted).expect("JSON");
    assert_eq!(counted["requests"], 41 + 100 + 3);
    // It ends while it is waited for: else it would stay a zombie of this process.
    let asked = parent.command(&["stop"]).spawn().expect("hello stop");
    assert!(parent.child.wait().expect("wait").success());
    assert!(asked.wait_with_output().expect("wait").status.success());
}

fn accept(listener: &TcpListener) -> (TcpStream, std::net::SocketAddr) {
    loop {
        match listener.accept() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::yield_now();
            }
            accepted => return accepted.expect("accept"),
        }
    }
}

#[test]
fn hello_refuses_a_version_that_it_did_not_offer() {
    let mut parent = Parent::start();
    parent.hear_hello();
    parent.say_offer(2);
    // It says why, in words that are the same in all versions, and ends.
    while let Some(heard) = parent.channel.try_hear() {
        assert_eq!(heard.version, 0, "frozen");
    }
    assert!(!parent.child.wait().expect("wait").success());
    let mut said = String::new();
    let Parent { stderr, .. } = &mut parent;
    // Whoever has the other end has ended.
    stderr.read_to_string(&mut said).expect("read");
    assert!(said.contains("version 2"), "{said}");
}

#[test]
fn hello_understands_in_any_version_that_there_is_none() {
    let mut parent = Parent::start();
    parent.hear_hello();
    let words = "this build speaks protocol versions 7..=9";
    let body = Body(
        Body::default()
            .u16(words.len() as u16)
            .0
            .into_iter()
            .chain(words.bytes())
            .collect(),
    );
    parent.channel.say(0, ABORT, body, &[]);
    assert!(!parent.child.wait().expect("wait").success());
    let mut said = String::new();
    parent.stderr.read_to_string(&mut said).expect("read");
    assert!(said.contains(words), "{said}");
}

#[test]
fn another_implementation_succeeds_hello() {
    let hello = Hello::start();
    let load = Load::start(hello.address());
    let mut rests = Client::connect(hello.address());
    assert_eq!(rests.get("/hello").generation(), 1);
    load.goes_on();
    let answered = load.finish() + 1;
    // This program itself, as a build that speaks three versions.
    let program = std::env::current_exe().expect("a path");
    hello.replace_binary_by_script(&format!(
        "ANOTHER={answered} exec {} --exact another_child --ignored --nocapture --test-threads=1",
        program.display(),
    ));
    let parent = hello.pid();
    let said = hello.reload();
    assert!(said.contains("generation 1 → 2"), "{said}");
    eventually("the parent has left", || {
        !hello.processes().contains(&parent)
    });
    // The one that rested has moved, and new ones are accepted.
    for client in [&mut rests, &mut Client::connect(hello.address())] {
        assert_eq!(client.get("/anything").text(), "another");
    }
}

/// Not a test of its own: the child of the one above.
#[test]
#[ignore = "the child of another test"]
fn another_child() {
    let Ok(answered) = std::env::var("ANOTHER") else {
        return;
    };
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).expect("dup");
    let null = File::open("/dev/null").expect("open");
    rustix::stdio::dup2_stdin(&null).expect("dup");
    let mut channel = Channel::new(socket);
    let words = "another";
    let build = Body::default()
        .u16(0)
        .u16(2)
        .u32(std::process::id())
        .u16(words.len() as u16);
    channel.say(0, HELLO, Body([build.0, words.into()].concat()), &[]);
    let offer = channel.hear(1, OFFER);
    let mut fields = Fields(&offer.body);
    assert_eq!((fields.u64(), fields.u64()), (1, 1), "reload, generation");
    fields.u32();
    assert_eq!(fields.u64(), 1, "listeners");
    assert_eq!((fields.text(), fields.u32()), ("http".to_owned(), 0));
    assert!(fields.text().starts_with("127.0.0.1:") && fields.u32() > 0);
    assert_eq!((fields.take::<1>(), fields.take::<1>()), ([0], [1]));
    let pidfile = fields.text();
    assert_eq!(fields.u64(), 0, "nobody older");
    assert!(fields.u64() > 0 && fields.u64() > 0);
    assert_eq!(
        (fields.u64(), fields.take::<1>()),
        (0, [0]),
        "no probation, no reload before"
    );
    fields.ends();
    let mut fds = offer.fds.into_iter();
    let listener = TcpListener::from(fds.next().expect("the listener"));
    let names: Vec<OwnedFd> = fds.by_ref().take(2).collect();
    assert_eq!(
        (names.len(), fds.count()),
        (2, 3),
        "lock and control; stderr, its pipe, a pidfd"
    );
    channel.say(
        1,
        PREPARED,
        Body::default().u64(1).text("http").u64(0).u64(0),
        &[],
    );
    let state = channel.hear(1, STATE);
    let mut fields = Fields(&state.body);
    assert_eq!(
        (fields.u64(), fields.text(), fields.u32()),
        (1, "requests".to_owned(), 1)
    );
    assert_eq!((fields.u64(), fields.u64()), (0, 8));
    let crc32 = fields.u32();
    assert_eq!(fields.u64(), 8);
    fields.ends();
    let mut memfd = File::from(state.fds.into_iter().next().expect("a memfd"));
    assert_eq!(memfd.metadata().expect("stat").size(), 8);
    memfd.rewind().expect("rewind");
    let mut bytes = Vec::new();
    memfd.read_to_end(&mut bytes).expect("read");
    assert_eq!(crc32, crc32fast::hash(&bytes));
    assert_eq!(
        bytes,
        answered.parse::<u64>().expect("a number").to_le_bytes()
    );
    channel.say(1, READY, Body::default(), &[]);
    let commit = channel.hear(1, COMMIT);
    let mut fields = Fields(&commit.body);
    assert_eq!((fields.u32(), fields.u64()), (0, 0), "nothing has changed");
    let (_, older) = (fields.u64(), fields.u64());
    assert_eq!(older, 0);
    fields.ends();
    fs::write(
        format!("{pidfile}.new"),
        format!("{}\n", std::process::id()),
    )
    .expect("write");
    fs::rename(format!("{pidfile}.new"), &pidfile).expect("rename");
    channel.say(1, ACCEPTING, Body::default(), &[]);
    assert!(Fields(&channel.hear(1, CONFIRM).body).u64() > 0);
    let mut taken = Vec::new();
    loop {
        let heard = channel.try_hear().expect("a message");
        let mut fields = Fields(&heard.body);
        match heard.kind {
            REST => {
                let number = fields.u64();
                channel.say(1, REST_ACK, Body::default().u64(number), &[]);
            }
            CONN => {
                let number = fields.u64();
                assert_eq!(fields.u64() as usize, heard.fds.len());
                taken.extend(heard.fds);
                channel.say(1, CONN_ACK, Body::default().u64(number).u64(0), &[]);
            }
            DRAINING => {}
            BYE => break,
            kind => panic!("kind {kind}"),
        }
    }
    assert!(
        channel.try_hear().is_none(),
        "after Bye the parent has gone"
    );
    assert_eq!(taken.len(), 1, "the connection that rested");
    let taken = taken.into_iter().map(TcpStream::from);
    listener.set_nonblocking(false).expect("blocking");
    for mut stream in taken.chain(listener.incoming().flatten()) {
        stream.set_nonblocking(false).expect("blocking");
        let mut head = [0; 1024];
        let length = stream.read(&mut head).expect("read");
        assert!(head[..length].ends_with(b"\r\n\r\n"), "a whole head");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nanother")
            .expect("write");
    }
    drop(names);
}
