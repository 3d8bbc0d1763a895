use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;

use super::*;
use crate::listeners::Address;

fn read(count: &str, names: Option<&str>) -> Result<Vec<String>, String> {
    Announced::read(&count.into(), names.map(Into::into)).map(|announced| announced.names)
}

#[test]
fn as_many_names_as_sockets() {
    assert_eq!(read("2", Some("http:admin")).unwrap(), ["http", "admin"]);
    assert_eq!(read("2", Some("http:")).unwrap(), ["http", ""]);
    assert_eq!(read("0", Some("")).unwrap(), Vec::<String>::new());
    assert_eq!(read("1", None).unwrap(), ["unknown"]);
}

#[test]
fn lies_are_refused() {
    for (count, names, expected) in [
        ("two", None, "LISTEN_FDS=two is not a number of sockets"),
        ("-1", None, "LISTEN_FDS=-1 is not"),
        ("4000000000", None, "at most 512"),
        ("513", None, "at most 512"),
        (
            "3",
            Some("http:admin"),
            "LISTEN_FDS=3, but LISTEN_FDNAMES has 2 names: http:admin",
        ),
        ("1", Some("a:b"), "has 2 names"),
    ] {
        let error = read(count, names).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

fn tcp() -> (TcpListener, Spec) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = Spec::new("http", Address::Tcp(socket.local_addr().unwrap()));
    (socket, spec)
}

fn matched<const N: usize>(
    passed: [(&str, OwnedFd); N],
    specs: &[Spec],
) -> Result<Matched, String> {
    Passed(passed.map(|(name, fd)| (name.to_owned(), fd)).into()).matched(specs)
}

#[test]
fn a_socket_is_the_listener_of_its_name() {
    let (socket, spec) = tcp();
    let got = matched([("http", socket.into())], std::slice::from_ref(&spec)).unwrap();
    assert_eq!(got.listeners.len(), 1);
    assert_eq!(got.listeners[0].address(), &spec.address);
    assert!(
        rustix::fs::fcntl_getfl(&got.listeners[0])
            .unwrap()
            .contains(rustix::fs::OFlags::NONBLOCK)
    );
    assert!(got.forgotten.is_empty());
}

#[test]
fn what_the_unit_says_otherwise_is_refused() {
    let refused = |name, fd: OwnedFd, spec: &Spec| {
        matched([(name, fd)], std::slice::from_ref(spec)).unwrap_err()
    };
    let (socket, spec) = tcp();
    let error = refused("hello.socket", socket.into(), &spec);
    assert!(
        error.contains("`hello.socket`") && error.contains("one of http"),
        "{error}"
    );

    let (socket, mut spec) = tcp();
    spec.address = "127.0.0.1:1".parse().unwrap();
    let error = refused("http", socket.into(), &spec);
    assert!(
        error.contains("is to be on 127.0.0.1:1: make the two the same"),
        "{error}"
    );

    let (_, spec) = tcp();
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = refused("http", file.into(), &spec);
    assert!(error.contains("is not a TCP listener"), "{error}");

    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = refused("http", datagrams.into(), &spec);
    assert!(error.contains("is not a TCP listener"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let unix = UnixListener::bind(dir.path().join("s")).unwrap();
    let error = refused("http", unix.into(), &spec);
    assert!(error.contains("is not a TCP listener"), "{error}");

    let (listener, spec) = tcp();
    let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let error = refused("http", connected.into(), &spec);
    assert!(error.contains("does not listen"), "{error}");
}

#[test]
fn one_socket_for_each_name() {
    let (socket, spec) = tcp();
    let again = socket.try_clone().unwrap();
    let error = matched([("http", socket.into()), ("http", again.into())], &[spec]).unwrap_err();
    assert!(error.contains("two sockets named `http`"), "{error}");
}

#[test]
fn the_store_has_what_the_socket_unit_has() {
    let (socket, spec) = tcp();
    let again = socket.try_clone().unwrap();
    let got = matched(
        [("http", socket.into()), ("stored/http", again.into())],
        &[spec],
    )
    .unwrap();
    assert_eq!((got.listeners.len(), got.forgotten.len()), (1, 0));
}

#[test]
fn what_was_kept_is_let_go_of_if_it_is_not_wanted() {
    let (socket, spec) = tcp();
    let (other, _) = tcp();
    let (third, _) = tcp();
    let passed = [
        ("stored/http", socket.into()),
        ("stored/gone", other.into()),
        ("stored/http", third.into()),
    ];
    let got = matched(passed, &[spec]).unwrap();
    assert_eq!(got.listeners.len(), 1);
    assert_eq!(got.forgotten, ["gone", "http"]);
}

#[test]
fn the_path_of_a_socket_unit_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = UnixListener::bind(&path).unwrap();
    let spec = Spec::new("http", Address::Unix(path.clone()));
    let kept = socket.try_clone().unwrap();
    let got = matched([("http", socket.into())], std::slice::from_ref(&spec)).unwrap();
    assert!(!got.listeners[0].unlink().unwrap());
    assert!(path.exists());
    // One that this service has bound itself is its own to remove.
    let got = matched([("stored/http", kept.into())], &[spec]).unwrap();
    assert!(got.listeners[0].unlink().unwrap());
    assert!(!path.exists());
}
