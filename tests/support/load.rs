//! Traffic while something happens: threads that ask and count what they get.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::client::Client;

/// Of calm traffic, between two requests.
pub const PAUSE: Duration = Duration::from_millis(2);

/// Running traffic: keep-alive connections, and new ones.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Load {
    /// Two connections that stay, and one thread that connects anew for each request. A request that is not
    /// answered, or a connection that is closed, panics in its thread.
    pub fn start(address: SocketAddr) -> Self {
        Self::with_pause(address, Duration::ZERO)
    }

    /// The same, with a moment between two requests: where many servers run at once.
    pub fn calm(address: SocketAddr) -> Self {
        Self::with_pause(address, PAUSE)
    }

    fn with_pause(address: SocketAddr, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for keep in [true, true, false] {
            let (stop, answered) = (stop.clone(), answered.clone());
            threads.push(std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    if !keep {
                        client = Client::connect(address);
                    }
                    let answer = client.get("/hello");
                    assert_eq!(answer.status, 200);
                    assert!(!answer.closes(), "the server closes a connection");
                    count += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(pause);
                }
                count
            }));
        }
        let load = Self {
            stop,
            answered,
            threads,
        };
        load.goes_on();
        load
    }

    /// Waits until more requests have been answered than now.
    pub fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        super::eventually("requests are answered", || {
            assert!(
                self.threads.iter().all(|t| !t.is_finished()),
                "the load has failed: see its panic"
            );
            self.answered.load(Ordering::Relaxed) > before + 10
        });
    }

    /// Ends it: how many answers there were. Panics if a request was lost.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| thread.join().expect("no request was lost"))
            .sum()
    }
}
