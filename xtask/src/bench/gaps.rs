//! How long a server was silent: a client that asks without pause, and one that opens a new connection each millisecond.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::net::sockopt::set_socket_linger;

use super::crowd;
use crate::soak::Latency;

/// Between two new connections: without it both clients would wait for each other's turn on their core.
const EVERY: Duration = Duration::from_millis(1);

/// What one client saw.
#[derive(Debug)]
pub(crate) struct Gaps {
    /// In microseconds.
    pub(crate) all: Histogram<u64>,
    pub(crate) longest: Duration,
    /// When the longest began.
    pub(crate) began: Option<Instant>,
}

impl Gaps {
    fn new() -> Result<Self> {
        Ok(Self {
            all: Latency::histogram()?,
            longest: Duration::ZERO,
            began: None,
        })
    }

    fn add(&mut self, began: Instant, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.all.saturating_record(us.max(1));
        if took > self.longest {
            self.longest = took;
            self.began = Some(began);
        }
    }
}

/// Both clients, at work. Dropping it stops them.
#[derive(Debug)]
pub(crate) struct Asking {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Gaps>>>,
}

impl Asking {
    /// They run where the caller runs.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |ask: fn(SocketAddr, &AtomicBool) -> Result<Gaps>| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || ask(server, &stop))
        };
        let threads = vec![thread(without_pause), thread(connecting)];
        Self { stop, threads }
    }

    /// What they saw: from one answer to the next, and from the opening of a connection to its answer.
    ///
    /// # Errors
    ///
    /// One question was not answered: no reload may lose one.
    pub(crate) fn finish(mut self) -> Result<[Gaps; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        let mut join = || match self.threads.remove(0).join() {
            Ok(gaps) => gaps.context("a request was lost"),
            Err(_) => bail!("a client has panicked"),
        };
        Ok([join()?, join()?])
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn without_pause(server: SocketAddr, stop: &AtomicBool) -> Result<Gaps> {
    let mut gaps = Gaps::new()?;
    let mut socket = TcpStream::connect(server)?;
    crowd::ask(&mut socket)?;
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        crowd::ask(&mut socket)?;
        let now = Instant::now();
        gaps.add(last, now - last);
        last = now;
    }
    Ok(gaps)
}

fn connecting(server: SocketAddr, stop: &AtomicBool) -> Result<Gaps> {
    let mut gaps = Gaps::new()?;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut socket = TcpStream::connect(server)?;
        crowd::ask(&mut socket)?;
        gaps.add(began, began.elapsed());
        // Reset rather than closed: else its port would be taken for a minute.
        set_socket_linger(&socket, Some(Duration::ZERO))?;
        drop(socket);
        std::thread::sleep(EVERY);
    }
    Ok(gaps)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    #[test]
    fn a_silence_is_seen_by_both() {
        const SILENCE: Duration = Duration::from_millis(50);
        // The one connects again and again, the other asks again and again.
        static ACCEPTED: AtomicUsize = AtomicUsize::new(0);
        static ASKED_AGAIN: AtomicBool = AtomicBool::new(false);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asking = Asking::start(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            while let Ok((mut socket, _)) = listener.accept() {
                let is_early = ACCEPTED.fetch_add(1, Ordering::Relaxed) < 4;
                std::thread::spawn(move || {
                    let mut request = [0; 1024];
                    for n in 0.. {
                        if !matches!(socket.read(&mut request), Ok(1..)) {
                            return;
                        }
                        if n == 1 || is_early && n == 0 {
                            std::thread::sleep(SILENCE);
                        }
                        if socket.write_all(ANSWER).is_err() {
                            return;
                        }
                        ASKED_AGAIN.fetch_or(n == 2, Ordering::Relaxed);
                    }
                });
            }
        });
        while ACCEPTED.load(Ordering::Relaxed) < 4 || !ASKED_AGAIN.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        for gaps in asking.finish().unwrap() {
            assert!(gaps.longest >= SILENCE, "{gaps:?}");
            assert!(gaps.began.is_some() && !gaps.all.is_empty());
        }
    }

    #[test]
    fn a_lost_request_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asking = Asking::start(listener.local_addr().unwrap());
        drop((listener.accept().unwrap(), listener.accept().unwrap()));
        assert!(asking.finish().is_err());
    }
}
