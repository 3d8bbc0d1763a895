//! The signals of a server, as requests.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// SIGUSR2, SIGHUP.
    Reload(&'static str),
    /// SIGTERM, SIGINT: gracefully; a second one at once.
    Stop(&'static str),
    /// SIGQUIT: at once.
    Quit,
}

/// Handlers that are in place from here on: before the pidfile exists, so that nobody who finds the process
/// by it kills it by a signal that it would have handled.
#[derive(Debug)]
pub(crate) struct Signals {
    usr2: Signal,
    hup: Signal,
    term: Signal,
    int: Signal,
    quit: Signal,
}

impl Signals {
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            usr2: signal(SignalKind::user_defined2())?,
            hup: signal(SignalKind::hangup())?,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The next one. Signals of a kind that arrive together are one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Request {
        tokio::select! {
            biased;
            Some(()) = self.quit.recv() => Request::Quit,
            Some(()) = self.term.recv() => Request::Stop("SIGTERM"),
            Some(()) = self.int.recv() => Request::Stop("SIGINT"),
            Some(()) = self.usr2.recv() => Request::Reload("SIGUSR2"),
            Some(()) = self.hup.recv() => Request::Reload("SIGHUP"),
            else => std::future::pending().await,
        }
    }
}
