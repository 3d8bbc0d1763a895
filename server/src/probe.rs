//! The health probe: a build that cannot answer for itself does not take over.

use std::{future::Future, io, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
};

use crate::{
    connection::{self, Carried, Config, Order},
    service::{ConnectionInfo, Informed, Serve},
};

/// The longest answer that is looked at, in bytes: its status line is what counts.
const MAX_ANSWER: u64 = 64 * 1024;

/// What the service is told that the request came in by. No listener has this name: those are in lower case.
pub(crate) const LISTENER: &str = "PROBE";

/// How long a process that serves may take to answer: less than its parent waits for its word.
const PATIENCE: Duration = Duration::from_millis(2500);

/// One look at the health.
pub(crate) type Probing = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Looks again and again.
pub(crate) type Again = Box<dyn Fn() -> Probing + Send + Sync>;

/// [`probe`], to be called as often as one likes.
pub(crate) fn again<S: Serve>(service: S, path: String) -> Again {
    Box::new(move || {
        let (service, path) = (service.clone(), path.clone());
        Box::pin(async move { probe(service, &path, PATIENCE).await })
    })
}

/// Asks `service` for `path` over a connection that exists only in memory, through all that a real
/// request goes through.
///
/// # Errors
/// In words, unless the answer is a success (2xx) within `timeout`.
pub(crate) async fn probe<S: Serve>(
    service: S,
    path: &str,
    timeout: Duration,
) -> Result<(), String> {
    let failed = |reason: String| format!("not healthy: GET {path} {reason}");
    let (ours, theirs) =
        UnixStream::pair().map_err(|e| failed(format!("could not be asked: {e}")))?;
    let (_order, orders) = watch::channel(Order::Serve);
    let config = Config::default();
    let service = Informed {
        service,
        info: Arc::new(ConnectionInfo::new(None, LISTENER.into(), orders.clone())),
    };
    let served = connection::serve(
        theirs.into(),
        Carried::default(),
        service,
        &config,
        orders,
        &|_| {},
    );
    let asked = async {
        tokio::select! {
            answer = ask(ours, path) => answer,
            _ = served => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the service gave no answer")),
        }
    };
    match tokio::time::timeout(timeout, asked).await {
        Err(_) => Err(failed(format!("was not answered within {timeout:?}"))),
        Ok(Err(error)) => Err(failed(format!("failed: {error}"))),
        Ok(Ok(status)) if (200..300).contains(&status) => Ok(()),
        Ok(Ok(status)) => Err(failed(format!("was answered {status}"))),
    }
}

async fn ask(mut stream: UnixStream, path: &str) -> io::Result<u16> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: handoff-probe\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let status = answer
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    let status = status
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the service gave no answer"))
}
