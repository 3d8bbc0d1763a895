use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn data_is_split_or_refused_and_nothing_panics() {
    let data = |length: u16, rest: &[u8]| [&length.to_le_bytes(), rest].concat();
    assert_eq!(
        split(&data(7, b"GET /wssession")),
        Some(("GET /ws", &b"session"[..]))
    );
    assert_eq!(split(&data(0, b"")), Some(("", &b""[..])));
    for garbage in [&b""[..], b"x", &data(3, b"xy"), &data(1, &[0xff])] {
        assert_eq!(split(garbage), None, "{garbage:?}");
    }
}

#[test]
fn the_innermost_layer_is_read_first() {
    let layers = |layers: &[&[u8]]| leftover(layers.iter().map(|layer| layer.to_vec()).collect());
    assert_eq!(layers(&[]), b""[..]);
    assert_eq!(layers(&[b"socket", b""]), b"socket"[..]);
    assert_eq!(layers(&[b"", b"parser"]), b"parser"[..]);
    assert_eq!(layers(&[b"socket", b"parser "]), b"parser socket"[..]);
}

struct Nothing;

impl crate::upgrade::Protocol for Nothing {
    fn kind(&self) -> &str {
        "nothing/1"
    }

    async fn serve(
        &self,
        _: Upgraded,
        _: Option<Vec<u8>>,
    ) -> Result<Served, crate::service::BoxError> {
        Ok(Served::closed())
    }
}

#[tokio::test]
async fn what_is_packed_is_unpacked() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let stream = Stream::from_fd(ours.into()).unwrap();
    let (_order, orders) = watch::channel(Order::HandOver);
    let info = ConnectionInfo::new(Some("127.0.0.1:9".parse().unwrap()), "main".into(), orders);
    let request = format!("GET /{}", "x".repeat(1000));
    let given_up = GivenUp {
        io: Io::new(stream, Bytes::from_static(b"later"), Shared::new()),
        leftover: b"first ".to_vec(),
        session: b"12".to_vec(),
    };
    let connection = pack(given_up, &Nothing, &request, &info).unwrap();
    assert_eq!(connection.kind, "upgraded/1 nothing/1");
    assert_eq!(connection.peer, info.peer);
    let session = unpack(connection, Arc::new(Nothing)).unwrap();
    assert_eq!(session.leftover, b"first later"[..]);
    assert_eq!(session.resumed.as_deref(), Some(&b"12"[..]));
    assert_eq!(session.request, request[..MAX_NAME]);
}
