//! When a server answers: asked again and again, each time on a new connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Between two questions. It bounds how well the moment is known, and leaves the cores to those that are measured.
const BETWEEN: Duration = Duration::from_micros(200);
/// For one answer, and for the first of them that counts.
const TIMEOUT: Duration = Duration::from_secs(10);

/// When `generation` or a later one answers.
///
/// # Errors
///
/// One question was not answered: no reload may lose one.
pub(super) fn of_generation(address: SocketAddr, generation: u64) -> Result<Instant> {
    until(|| {
        let told = ask(address).context("a request was lost")?;
        Ok(told >= generation)
    })
}

/// When somebody answers. Until then the port may be closed, and nothing else may go wrong.
pub(super) fn of_anybody(address: SocketAddr) -> Result<Instant> {
    until(|| match ask(address) {
        Ok(_) => Ok(true),
        Err(err) if is_refused(&err) => Ok(false),
        Err(err) => Err(err),
    })
}

fn is_refused(err: &anyhow::Error) -> bool {
    let err = err.downcast_ref::<std::io::Error>();
    err.is_some_and(|err| err.kind() == ErrorKind::ConnectionRefused)
}

fn until(mut answered: impl FnMut() -> Result<bool>) -> Result<Instant> {
    let deadline = Instant::now() + TIMEOUT;
    while !answered()? {
        ensure!(Instant::now() < deadline, "no answer after {TIMEOUT:?}");
        thread::sleep(BETWEEN);
    }
    Ok(Instant::now())
}

/// The generation that answers one request.
fn ask(address: SocketAddr) -> Result<u64> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.write_all(b"GET /hello HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    generation(&answer).with_context(|| format!("not an answer of hello: {answer:?}"))
}

fn generation(answer: &str) -> Option<u64> {
    if !answer.starts_with("HTTP/1.1 200 ") {
        return None;
    }
    let fields = answer.lines().filter_map(|line| line.split_once(": "));
    let mut found = fields.filter(|(name, _)| name.eq_ignore_ascii_case("x-generation"));
    found.next()?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_generation_is_read_from_a_whole_answer_only() {
        let answer = "HTTP/1.1 200 OK\r\nX-Generation: 7\r\n\r\nbody";
        assert_eq!(generation(answer), Some(7));
        assert_eq!(
            generation("HTTP/1.1 503 No\r\nx-generation: 7\r\n\r\n"),
            None
        );
        assert_eq!(generation(""), None);
    }

    #[test]
    fn a_closed_port_is_a_loss_in_a_reload_and_none_before_a_start() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let err = ask(address).unwrap_err();
        assert!(is_refused(&err), "{err:#}");
        let err = of_generation(address, 1).unwrap_err();
        assert_eq!(err.to_string(), "a request was lost");
    }
}
