use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

fn spec(name: &str, text: &str) -> Spec {
    Spec::new(name, address(text))
}

fn bind(name: &str, text: &str) -> Listener {
    Listener::bind(&spec(name, text)).expect("bind")
}

/// What a child receives: a duplicate, checked against the manifest.
fn inherit(parent: &Listener) -> Listener {
    let fd = parent.as_fd().try_clone_to_owned().expect("dup");
    Listener::check(fd, &parent.describe()).expect("check")
}

fn port(listener: &Listener) -> u16 {
    match listener.address() {
        Address::Tcp(address) => address.port(),
        Address::Unix(_) => panic!("not TCP"),
    }
}

/// The live backlog: `Send-Q` of ss, here by what the kernel grants before it stalls.
fn queued(path: &Path) -> usize {
    let address = SockAddr::unix(path).expect("path");
    let connect = |_: &usize| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
        socket.set_nonblocking(true).expect("nonblocking");
        socket.connect(&address).is_ok().then_some(socket)
    };
    (0..100)
        .map_while(|n| connect(&n))
        .collect::<Vec<_>>()
        .len()
}

#[test]
fn addresses_parse_and_print() {
    for text in ["127.0.0.1:8321", "[::1]:80", "[::]:0", "unix:/run/x.sock"] {
        assert_eq!(address(text).to_string(), text);
    }
    assert_eq!(address("/run/x"), Address::Unix("/run/x".into()));
    assert_eq!(address("./x"), Address::Unix("./x".into()));
    assert_eq!(address("unix:x"), Address::Unix("x".into()));
}

#[test]
fn a_wrong_address_teaches() {
    let long = format!("/{}", "x".repeat(MAX_UNIX_PATH));
    for (text, part) in [
        ("8321", "127.0.0.1:8321"),
        (":80", "0.0.0.0:80"),
        ("127.0.0.1", "the port is missing: 127.0.0.1:8321"),
        ("::1", "the port is missing: [::1]:8321"),
        ("fe80::1:x:80", "in brackets"),
        ("localhost:80", "names are not resolved"),
        ("127.0.0.1:70000", "at most 65535"),
        ("unix:", "path of the socket is missing"),
        ("unix:@x", "abstract"),
        ("", "127.0.0.1:8321"),
        (&long, "at most 107"),
    ] {
        let error = text.parse::<Address>().expect_err(text).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn bound_tcp_accepts_and_has_the_flags() {
    let listener = bind("http", "127.0.0.1:0");
    assert_ne!(port(&listener), 0);
    let flags = rustix::io::fcntl_getfd(&listener).expect("flags");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let mut client = TcpStream::connect(("127.0.0.1", port(&listener))).expect("connect");
    client.write_all(b"x").expect("write");
    let listener = listener.into_tcp().expect("tcp");
    let (mut accepted, _) = listener.accept().expect("accept");
    accepted.read_exact(&mut [0]).expect("read");
    let error = listener.accept().expect_err("non-blocking");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn the_ipv6_wildcard_takes_ipv4_and_others_do_not() {
    let wildcard = bind("a", "[::]:0");
    TcpStream::connect((Ipv4Addr::LOCALHOST, port(&wildcard))).expect("v4 by [::]");
    let loopback = bind("b", "[::1]:0");
    TcpStream::connect((Ipv4Addr::LOCALHOST, port(&loopback))).expect_err("v6 only");
    let error = Listener::bind(&spec("c", "[::ffff:127.0.0.1]:9")).expect_err("mapped");
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

#[test]
fn an_address_in_use_is_named() {
    let holder = bind("a", "127.0.0.1:0");
    let error = Listener::bind(&spec("http", &holder.address().to_string())).expect_err("used");
    assert!(matches!(error, BindError::InUse { .. }));
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("listener `http` on {}", holder.address())),
        "{text}"
    );
    let error = Listener::bind(&spec("x", "203.0.113.1:80")).expect_err("not ours");
    assert!(error.to_string().contains("no interface"), "{error}");
}

#[test]
fn impossible_specs_are_refused() {
    for name in ["", "A", "a b", &"x".repeat(65)] {
        let error = Listener::bind(&spec(name, "127.0.0.1:0")).expect_err(name);
        assert!(matches!(error, BindError::Name { .. }));
    }
    let none = Spec {
        backlog: 0,
        ..spec("a", "127.0.0.1:0")
    };
    assert!(Listener::bind(&none).is_err());
    let mode = Spec {
        mode: Some(0o600),
        ..spec("a", "127.0.0.1:0")
    };
    assert!(Listener::bind(&mode).is_err());
}

#[test]
fn a_unix_listener_has_its_mode_and_its_path() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.sock");
    let spec = Spec {
        mode: Some(0o620),
        ..Spec::new("u", Address::Unix(path.clone()))
    };
    let listener = Listener::bind(&spec).expect("bind");
    let mode = fs::metadata(&path).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o620);
    UnixStream::connect(&path).expect("connect");
    assert!(listener.unlink().expect("unlink"));
    assert!(!listener.unlink().expect("once only"));
    listener.into_tcp().expect_err("not TCP");
}

#[test]
fn a_stale_unix_path_is_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.sock");
    let spec = Spec::new("u", Address::Unix(path.clone()));
    drop(UnixListener::bind(&path).expect("stale"));
    let listener = Listener::bind(&spec).expect("replace");
    let error = Listener::bind(&spec).expect_err("somebody listens");
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    UnixStream::connect(&path).expect("still there");
    drop(listener);
    fs::remove_file(&path).expect("remove");
    fs::write(&path, "precious").expect("write");
    let error = Listener::bind(&spec).expect_err("a file");
    assert!(error.to_string().contains("something else"), "{error}");
    assert_eq!(fs::read(&path).expect("read"), b"precious");
    let away = Spec::new("u", Address::Unix(dir.path().join("no/x.sock")));
    let error = Listener::bind(&away).expect_err("no directory");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn servers_that_start_at_once_replace_a_stale_path_once() {
    let dir = tempfile::tempdir().expect("dir");
    let spec = Spec::new("u", Address::Unix(dir.path().join("x.sock")));
    for _ in 0..20 {
        drop(UnixListener::bind(dir.path().join("x.sock")).expect("stale"));
        let start = std::sync::Barrier::new(4);
        let bound: Vec<_> = std::thread::scope(|scope| {
            let bind = || {
                start.wait();
                Listener::bind(&spec)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(bind)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("join"))
                .collect()
        });
        let winners: Vec<_> = bound.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1);
        assert!(
            winners[0].unlink().expect("unlink"),
            "the path is the winner's"
        );
    }
}

#[test]
fn only_our_own_socket_file_is_removed() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.sock");
    let old = Listener::bind(&Spec::new("u", Address::Unix(path.clone()))).expect("bind");
    fs::remove_file(&path).expect("remove");
    let _new = UnixListener::bind(&path).expect("somebody else");
    assert!(!old.unlink().expect("unlink"));
    UnixStream::connect(&path).expect("theirs is untouched");
}

#[test]
fn a_received_listener_is_checked() {
    let parent = bind("http", "127.0.0.1:0");
    let described = parent.describe();
    let clone = || parent.as_fd().try_clone_to_owned().expect("dup");
    let child = Listener::check(clone(), &described).expect("check");
    assert_eq!(child.describe(), described);

    let udp: OwnedFd = UdpSocket::bind("127.0.0.1:0").expect("udp").into();
    let file: OwnedFd = tempfile::tempfile().expect("file").into();
    for fd in [udp, file] {
        let error = Listener::check(fd, &described).expect_err("kind");
        assert!(matches!(error, CheckError::Kind { .. }), "{error}");
    }
    let unbound = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    let error = Listener::check(unbound.into(), &described).expect_err("not listening");
    assert!(matches!(error, CheckError::NotListening { .. }), "{error}");
    let other = bind("other", "127.0.0.1:0");
    let fd = other.as_fd().try_clone_to_owned().expect("dup");
    let error = Listener::check(fd, &described).expect_err("address");
    assert!(
        error.to_string().contains(&other.address().to_string()),
        "{error}"
    );
    let unix = Described {
        kind: Kind::Unix,
        ..described.clone()
    };
    assert!(Listener::check(clone(), &unix).is_err());
    let named = Described {
        name: "A B".to_owned(),
        ..described
    };
    assert!(Listener::check(clone(), &named).is_err());
}

#[test]
fn a_blocking_inherited_listener_becomes_non_blocking() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let described = Described {
        name: "a".to_owned(),
        kind: Kind::Tcp,
        address: listener.local_addr().expect("address").to_string(),
        backlog: 1,
        file: None,
    };
    let checked = Listener::check(listener.into(), &described).expect("check");
    let flags = rustix::fs::fcntl_getfl(&checked).expect("flags");
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn listeners_are_kept_added_and_removed_by_name() {
    let (http, old) = (bind("http", "127.0.0.1:0"), bind("old", "127.0.0.1:0"));
    let moved = bind("moved", "127.0.0.1:0");
    let inherited = vec![inherit(&http), inherit(&old), inherit(&moved)];
    let specs = [
        spec("new", "127.0.0.1:0"),
        spec("http", "127.0.0.1:0"),
        spec("moved", "127.0.0.2:0"),
    ];
    let done = reconcile(&specs, inherited).expect("reconcile");
    let names = |listeners: &[Listener]| -> Vec<_> {
        listeners
            .iter()
            .map(|listener| listener.name().to_owned())
            .collect()
    };
    assert_eq!(names(&done.listeners), ["new", "http", "moved"]);
    assert_eq!(done.listeners[1].address(), http.address());
    assert_eq!(done.kept, ["http"]);
    assert_eq!(done.added, ["new", "moved"]);
    assert_eq!(names(&done.removed), ["old", "moved"]);
    // A connection made before the parent closes its copy is the child's to accept.
    let _client = TcpStream::connect(("127.0.0.1", port(&http))).expect("connect");
    drop(http);
    let mut listeners = done.listeners;
    listeners
        .remove(1)
        .into_tcp()
        .expect("tcp")
        .accept()
        .expect("accept");
}

#[test]
fn what_cannot_stand_beside_the_parents_is_refused_with_the_remedy() {
    let parent = bind("http", "127.0.0.1:0");
    let port = port(&parent);
    for (name, text, remedy) in [
        ("http", format!("0.0.0.0:{port}"), "another port"),
        ("http", format!("[::]:{port}"), "another port"),
        ("web", format!("127.0.0.1:{port}"), "keep the name `http`"),
    ] {
        let error = reconcile(&[spec(name, &text)], vec![inherit(&parent)]).expect_err(name);
        assert!(matches!(error, BindError::Beside { .. }), "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
    }
    let beside = spec("http", &format!("127.0.0.2:{port}"));
    let done = reconcile(&[beside], vec![inherit(&parent)]).expect("no overlap");
    assert_eq!(done.added, ["http"]);
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    for (a, b) in [
        (spec("a", "127.0.0.1:9"), spec("a", "127.0.0.1:10")),
        (spec("a", "127.0.0.1:9"), spec("b", "127.0.0.1:9")),
        (spec("a", "0.0.0.0:9"), spec("b", "127.0.0.1:9")),
        (spec("a", "[::]:9"), spec("b", "0.0.0.0:9")),
        (spec("a", "/x"), spec("b", "unix:/x")),
    ] {
        reconcile(&[a, b], Vec::new()).expect_err("contradiction");
    }
    let many: Vec<_> = (0..=MAX_LISTENERS)
        .map(|n| spec(&n.to_string(), "127.0.0.1:0"))
        .collect();
    let error = reconcile(&many, Vec::new()).expect_err("too many");
    assert!(matches!(error, BindError::TooMany { .. }));
}

#[test]
fn a_failure_leaves_nothing_behind_and_the_parent_as_it_was() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("parent.sock");
    let unix = |name: &str, path: &Path| Spec::new(name, Address::Unix(path.to_owned()));
    let parent = Spec {
        backlog: 1,
        ..unix("parent", &path)
    };
    let parent = Listener::bind(&parent).expect("bind");
    let stranger = bind("stranger", "127.0.0.1:0");
    let added = dir.path().join("added.sock");
    let specs = [
        unix("parent", &path),
        unix("added", &added),
        spec("late", &stranger.address().to_string()),
    ];
    let error = reconcile(&specs, vec![inherit(&parent)]).expect_err("in use");
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert!(!added.exists(), "what was bound is gone");
    assert_eq!(queued(&path), 2, "the parent's backlog is still 1");
}

#[test]
fn a_backlog_grows_at_once_and_shrinks_when_settled() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.sock");
    let with = |backlog| Spec {
        backlog,
        ..Spec::new("u", Address::Unix(path.clone()))
    };
    let drain = |listener: &Listener| {
        let listener = listener
            .try_clone()
            .expect("dup")
            .into_unix()
            .expect("unix");
        while listener.accept().is_ok() {}
    };
    let parent = Listener::bind(&with(2)).expect("bind");
    assert_eq!(queued(&path), 3);
    drain(&parent);
    let child = reconcile(&[with(5)], vec![inherit(&parent)])
        .expect("grow")
        .listeners;
    assert_eq!(queued(&path), 6);
    drain(&parent);
    let next = reconcile(&[with(1)], vec![inherit(&child[0])])
        .expect("shrink")
        .listeners;
    assert_eq!(queued(&path), 6, "not before the commit");
    drain(&parent);
    next[0].settle().expect("settle");
    assert_eq!(queued(&path), 2);
}

#[test]
fn a_unix_path_that_somebody_removed_is_bound_again() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.sock");
    let specs = [Spec::new("u", Address::Unix(path.clone()))];
    let parent = Listener::bind(&specs[0]).expect("bind");
    let kept = reconcile(&specs, vec![inherit(&parent)]).expect("kept");
    assert_eq!(kept.kept, ["u"]);
    fs::remove_file(&path).expect("remove");
    let healed = reconcile(&specs, vec![inherit(&parent)]).expect("heal");
    assert_eq!((healed.added.len(), healed.removed.len()), (1, 1));
    UnixStream::connect(&path).expect("reachable");
    assert!(
        !healed.removed[0].unlink().expect("unlink"),
        "the new path stays"
    );
}
