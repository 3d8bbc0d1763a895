//! Sockets that another process has opened for this one: `LISTEN_FDS` (sd_listen_fds(3)), true and false.

mod support;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use support::{client::Client, eventually, text};

/// Starts `hello` with `socket` as its descriptor 3, by a shell that says what `variables` has.
fn serve(dir: &Path, variables: &str, socket: OwnedFd, address: SocketAddr) -> Child {
    let script = format!("exec 3<&0 </dev/null; {variables} exec \"$0\" \"$@\"");
    Command::new("/bin/sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_hello")])
        .args([
            "serve",
            "--probation",
            "0s",
            "--listen",
            &address.to_string(),
        ])
        .arg("--pidfile")
        .arg(dir.join("hello.pid"))
        .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join("log")).expect("log"))
        .spawn()
        .expect("sh")
}

fn verb(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
    command
        .args(args)
        .arg("--pidfile")
        .arg(dir.join("hello.pid"));
    command.output().expect("hello")
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

#[test]
fn what_was_in_the_queue_before_the_start_is_answered() {
    for keeper in [false, true] {
        let dir = tempfile::tempdir().expect("tempdir");
        let (socket, address) = listener();
        let mut early = Client::connect(address);
        early.send(support::client::request("/hello"));
        let mut variables = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http".to_owned();
        if keeper {
            // To be taken over by the child that it starts in its place.
            variables.push_str(" HELLO_KEEP_PID=true");
        }
        let mut server = serve(dir.path(), &variables, socket.into(), address);
        assert_eq!(early.answer().status, 200);
        assert!(verb(dir.path(), &["reload"]).status.success());
        assert_eq!(early.get("/hello").generation(), 2);
        drop(early);
        // The variables mean the first process alone.
        let pid = fs::read_to_string(dir.path().join("hello.pid")).expect("pidfile");
        let environment = fs::read(format!("/proc/{}/environ", pid.trim())).expect("environ");
        assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_"));
        assert!(verb(dir.path(), &["stop"]).status.success());
        if keeper {
            assert!(server.wait().expect("wait").success());
        }
        eventually("the socket is closed everywhere", || {
            Client::try_connect(address).is_err()
        });
        let _ = server.wait();
    }
}

#[test]
fn lies_are_refused_before_anything_is_bound() {
    let file = || OwnedFd::from(fs::File::open("/dev/null").expect("/dev/null"));
    let own = || OwnedFd::from(listener().0);
    for (variables, fd, expected) in [
        (
            "LISTEN_FDS=1 LISTEN_FDNAMES=http",
            file(),
            "is not a TCP listener",
        ),
        (
            "LISTEN_FDS=1 LISTEN_FDNAMES=http",
            own(),
            "make the two the same",
        ),
        (
            "LISTEN_FDS=1 LISTEN_FDNAMES=web",
            own(),
            "FileDescriptorName= is one of http",
        ),
        (
            "LISTEN_FDS=1",
            own(),
            "`unknown`, and there is no listener of that name",
        ),
        (
            "LISTEN_FDS=3 LISTEN_FDNAMES=http:a:b",
            own(),
            "descriptor 4, `a`, cannot be had",
        ),
        (
            "LISTEN_FDS=2 LISTEN_FDNAMES=http",
            own(),
            "LISTEN_FDNAMES has 1 names",
        ),
        ("LISTEN_FDS=100000", own(), "at most 512"),
        ("LISTEN_FDS=x", own(), "is not a number of sockets"),
    ] {
        let dir = tempfile::tempdir().expect("tempdir");
        let (free, address) = listener();
        drop(free);
        let variables = format!("LISTEN_PID=$$ {variables}");
        let mut server = serve(dir.path(), &variables, fd, address);
        let status = server.wait().expect("wait");
        let log = fs::read_to_string(dir.path().join("log")).expect("log");
        assert_eq!(status.code(), Some(1), "{variables}: {log}");
        assert!(log.contains(expected), "{variables}: {log}");
        assert!(
            !dir.path().join("hello.pid.sock").exists(),
            "the control socket is left"
        );
    }
}

#[test]
fn what_is_meant_for_another_process_is_none_of_ours() {
    for variables in [
        "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=nonsense",
        "LISTEN_PID=x LISTEN_FDS=1",
        "LISTEN_FDS=1",
        // A keeper that is not the parent.
        "HANDOFF_KEEPER=1 LISTEN_PID=1 LISTEN_FDS=1",
    ] {
        let dir = tempfile::tempdir().expect("tempdir");
        let (free, address) = listener();
        drop(free);
        let null = OwnedFd::from(fs::File::open("/dev/null").expect("/dev/null"));
        let mut server = serve(dir.path(), variables, null, address);
        eventually("it answers", || {
            verb(dir.path(), &["status"]).status.success()
        });
        let stopped = verb(dir.path(), &["stop"]);
        assert!(stopped.status.success(), "{}", text(&stopped));
        assert!(server.wait().expect("wait").success());
    }
}
