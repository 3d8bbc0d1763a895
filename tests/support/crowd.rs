//! Traffic on a server that may break: what it does is counted, not judged.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use super::{client::Client, load::PAUSE};

/// What became of a crowd's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub answered: u64,
    /// Sent, and not answered: the connection was reset, or ended.
    pub lost: u64,
    /// Not sent: nobody listens.
    pub refused: u64,
    /// Answered, and then closed in order.
    pub closed: u64,
}

/// Two clients that keep their connection as long as they can, and one that never does.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Counts>>,
}

impl Crowd {
    pub const CLIENTS: u64 = 3;

    /// What a stop of one process may cost: of each client, a request sent as its resting connection was closed, and
    /// one on a new connection that came into the queue between its last look and its end.
    pub const LOST_AT_A_STOP: u64 = 2 * Self::CLIENTS;

    /// The same while two processes serve: each of them may close a resting connection of the client.
    pub const LOST_AT_A_STOP_OF_TWO: u64 = 3 * Self::CLIENTS;

    pub fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let refused = Arc::new(AtomicU64::new(0));
        let threads = [true, true, false].map(|keep| {
            let (stop, answered, refused) = (stop.clone(), answered.clone(), refused.clone());
            std::thread::spawn(move || {
                let mut counts = Counts::default();
                let mut client = None;
                while !stop.load(Ordering::Relaxed) {
                    let before = counts;
                    client = ask(client, address, &mut counts).filter(|_| keep);
                    answered.fetch_add(counts.answered - before.answered, Ordering::Relaxed);
                    refused.fetch_add(counts.refused - before.refused, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
                counts
            })
        });
        let crowd = Self {
            stop,
            answered,
            refused,
            threads: threads.into(),
        };
        crowd.goes_on();
        crowd
    }

    /// Waits until more requests have been answered than now.
    pub fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        super::eventually("requests are answered", || {
            self.answered.load(Ordering::Relaxed) > before + 10
        });
    }

    /// Waits until a client has been refused.
    pub fn is_refused(&self) {
        super::eventually("a client is refused", || {
            self.refused.load(Ordering::Relaxed) > 0
        });
    }

    pub fn finish(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Counts::default();
        for thread in self.threads {
            let counts = thread.join().expect("a client");
            sum.answered += counts.answered;
            sum.lost += counts.lost;
            sum.refused += counts.refused;
            sum.closed += counts.closed;
        }
        sum
    }
}

/// One request, on the connection if there is one. The connection, if it can be used again.
fn ask(client: Option<Client>, address: SocketAddr, counts: &mut Counts) -> Option<Client> {
    let mut client = match client {
        Some(client) => client,
        None => match Client::try_connect(address) {
            Ok(client) => client,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                counts.refused += 1;
                return None;
            }
            // The listener was closed while this connection was in its queue.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                counts.lost += 1;
                return None;
            }
            Err(error) => panic!("connect: {error}"),
        },
    };
    match client.try_get("/hello") {
        Ok(Some(answer)) => {
            assert_eq!(answer.status, 200);
            counts.answered += 1;
            counts.closed += u64::from(answer.closes());
            (!answer.closes()).then_some(client)
        }
        Ok(None) => {
            counts.lost += 1;
            None
        }
        Err(error) if is_lost(&error) => {
            counts.lost += 1;
            None
        }
        Err(error) => panic!("an answer: {error}"),
    }
}

fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}
