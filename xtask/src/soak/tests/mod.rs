//! The client against servers that lose on purpose: each kind of loss is seen for what it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::book::{Account, Book};
use super::client::{Client, Connection};
use super::outcome::{Outcome, Verdict};
use super::request::{Ask, Kind};
use super::timeline::Timeline;

mod answers;
mod connections;
mod idle;
mod load;
mod sessions;

const HELLO: &str = "HTTP/1.1 200 OK\r\nx-generation: 1\r\nx-pid: 42\r\ncontent-length: 16\r\n\r\nhello world eee\n";
const HEALTHY: &str = "HTTP/1.1 200 OK\r\nx-generation: 2\r\ncontent-length: 0\r\n\r\n";

/// What a fake server does with a connection, in order.
#[derive(Clone, Copy, Debug)]
enum Do {
    /// Reads to the end of a request without body.
    Read,
    Write(&'static str),
    /// RST instead of FIN.
    Reset,
    Wait(Duration),
    /// Neither reads nor closes any more.
    Hang,
}

async fn follow(mut socket: TcpStream, script: &[Do]) {
    for step in script {
        match step {
            Do::Read => {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
            }
            // The client may be gone: that is its affair.
            Do::Write(text) => drop(socket.write_all(text.as_bytes()).await),
            Do::Reset => socket.set_zero_linger().unwrap(),
            Do::Wait(time) => tokio::time::sleep(*time).await,
            Do::Hang => std::future::pending().await,
        }
    }
}

/// A server that follows the `n`th script on its `n`th connection, and the last on all further ones.
async fn fake(scripts: &[&[Do]]) -> SocketAddr {
    let scripts: Vec<Arc<[Do]>> = scripts.iter().map(|script| (*script).into()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for n in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            let script = Arc::clone(&scripts[n.min(scripts.len() - 1)]);
            tokio::spawn(async move { follow(socket, &script).await });
        }
    });
    address
}

/// A client and its book.
struct World {
    client: Arc<Client>,
    _dir: TempDir,
}

impl World {
    fn new(target: SocketAddr, round_trip: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let timeline = Arc::new(Timeline::new(1, [Some("eee".into()), Some("fff".into())]));
        let book =
            Arc::new(Book::new(Arc::clone(&timeline), &dir.path().join("losses.log")).unwrap());
        let client = Client {
            page: None,
            target,
            one_way: round_trip / 2,
            timeout: Duration::from_millis(700),
            max_open: 100,
            open: Arc::new(AtomicUsize::new(0)),
            timeline,
            book,
        };
        Self {
            client: Arc::new(client),
            _dir: dir,
        }
    }

    async fn against(scripts: &[&[Do]]) -> Self {
        Self::new(fake(scripts).await, Duration::ZERO)
    }

    async fn connect(&self) -> Connection {
        self.client.connect(Kind::KeepAlive).await.unwrap()
    }

    /// One request on a new connection, which is then kept.
    async fn ask(&self, kind: Kind) -> (Verdict, Option<Connection>) {
        let mut connection = self.connect().await;
        let verdict = self
            .client
            .first_exchange(&mut connection, Ask::plain(kind))
            .await;
        (verdict, self.client.rest(connection, kind).await)
    }

    fn account(&self) -> Account {
        self.client.book.account()
    }

    /// Waits for the book to have so many requests and messages that ended.
    async fn ended(&self, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.client.book.totals().ended < count {
            assert!(Instant::now() < deadline, "{:?}", self.client.book.totals());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits for the book to have a session that the server ended.
    async fn forced_reconnect(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.client.book.totals().forced_reconnects == 0 {
            assert!(Instant::now() < deadline, "{:?}", self.client.book.totals());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits for the book to have as many closed connections.
    async fn closed(&self, count: u64) -> Account {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.client.book.totals().closed < count && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let account = self.account();
        assert_eq!(account.totals.closed, count, "{:?}", account.losses);
        account
    }
}

async fn outcome(kind: Kind, scripts: &[&[Do]]) -> Outcome {
    let (verdict, _) = World::against(scripts).await.ask(kind).await;
    assert_eq!(
        verdict.outcome == Outcome::Ok,
        verdict.detail.is_empty(),
        "{verdict:?}"
    );
    verdict.outcome
}
