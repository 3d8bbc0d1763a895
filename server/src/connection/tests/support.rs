//! A host that takes up what was given up, and small helpers.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(super) use super::app::{App, LARGE, State};
pub(super) use super::client::Client;
use crate::connection::{Carried, Config, End, Order, serve};
use crate::io::Stream;

/// Long enough for a loaded machine; a test that waits this long has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("this takes too long")
}

/// A reproducible source of choices.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// How often a connection has moved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moves {
    pub(super) total: usize,
    /// Of them, with bytes that hyper had read ahead.
    pub(super) with_leftover: usize,
}

/// Serves one connection, and takes it up again whenever it is given up.
pub(super) struct Host {
    pub(super) state: Arc<State>,
    orders: Arc<watch::Sender<Order>>,
    moves: watch::Receiver<Moves>,
    pub(super) task: JoinHandle<End>,
}

impl Host {
    pub(super) fn start(stream: impl Into<Stream>, config: Config) -> Self {
        Self::start_with(stream.into(), config, Order::Serve, State::new())
    }

    pub(super) fn start_with(
        mut stream: Stream,
        config: Config,
        order: Order,
        state: Arc<State>,
    ) -> Self {
        let orders = Arc::new(watch::Sender::new(order));
        let (report, moves) = watch::channel(Moves::default());
        let (shared, sender) = (Arc::clone(&state), Arc::clone(&orders));
        let task = tokio::spawn(async move {
            let mut carried = Carried::default();
            let mut generation = 0;
            loop {
                let app = App {
                    state: Arc::clone(&shared),
                    generation,
                };
                let end = serve(stream, carried, app, &config, sender.subscribe(), &|_| {}).await;
                let rested = match end {
                    End::GivenUp(rested) => rested,
                    // As a pool does that takes nobody.
                    End::Rests(rested) => {
                        stream = Stream::from_fd(rested.socket).unwrap();
                        carried = rested.carried;
                        continue;
                    }
                    end => return end,
                };
                // The next generation serves until it is told to hand over, too.
                sender.send_if_modified(|order| {
                    let done = *order == Order::HandOver;
                    if done {
                        *order = Order::Serve;
                    }
                    done
                });
                generation += 1;
                stream = Stream::from_fd(rested.socket).unwrap();
                carried = rested.carried;
                report.send_modify(|moves| {
                    moves.total += 1;
                    moves.with_leftover += usize::from(!carried.leftover.is_empty());
                });
            }
        });
        Self {
            state,
            orders,
            moves,
            task,
        }
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.send_replace(order);
    }

    pub(super) fn orders(&self) -> Arc<watch::Sender<Order>> {
        Arc::clone(&self.orders)
    }

    pub(super) fn moves(&self) -> Moves {
        *self.moves.borrow()
    }

    /// Orders a move and waits until it has happened.
    pub(super) async fn hand_over(&self) {
        let wanted = self.moves().total + 1;
        self.order(Order::HandOver);
        self.moved(wanted).await;
    }

    /// Waits until there have been `wanted` moves.
    pub(super) async fn moved(&self, wanted: usize) {
        let mut moves = self.moves.clone();
        soon(moves.wait_for(|moves| moves.total >= wanted))
            .await
            .expect("not moved");
    }

    /// Orders moves, one after the other, until the connection ends.
    pub(super) fn move_without_end(&self) -> JoinHandle<()> {
        let (orders, mut moves) = (Arc::clone(&self.orders), self.moves.clone());
        tokio::spawn(async move {
            loop {
                moves.mark_unchanged();
                orders.send_replace(Order::HandOver);
                if moves.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    pub(super) async fn end(self) -> End {
        soon(self.task).await.unwrap()
    }
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}

pub(super) fn post(path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n")
}

pub(super) fn post_chunked(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
}

pub(super) async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, server) = (client.unwrap(), server.unwrap().0);
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// A client and the host of its connection.
pub(super) async fn pair(config: Config) -> (Client<TcpStream>, Host) {
    let (client, server) = tcp().await;
    (Client::new(client), Host::start(server, config))
}

pub(super) fn unix() -> (Client<UnixStream>, Host) {
    let (client, server) = UnixStream::pair().unwrap();
    (Client::new(client), Host::start(server, Config::default()))
}
