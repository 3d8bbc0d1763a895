//! Many connections of one client, that rest, and are all used at once now and then.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::limits::PER_ADDRESS;

const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: bench.test\r\n\r\n";
/// For one answer, while all others are under way too.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a whole answer.
const MAX_ANSWER: usize = 4096;

/// Open connections to one server.
#[derive(Debug)]
pub(crate) struct Crowd(Vec<TcpStream>);

impl Crowd {
    /// Opens `count` connections to `server`, one after the other, from as many addresses as they take.
    pub(crate) fn open(server: SocketAddr, count: u32) -> Result<Self> {
        let SocketAddr::V4(server) = server else {
            bail!("{server} is no IPv4 address");
        };
        let all = (0..count).map(|n| one(server, n).with_context(|| format!("connection {n}")));
        Ok(Self(all.collect::<Result<_>>()?))
    }

    /// A request on each, all at once. Returns the time until the last one is answered.
    ///
    /// # Errors
    ///
    /// One is not: it was closed, or the answer is wrong.
    pub(crate) fn ask_all(&mut self) -> Result<Duration> {
        let began = Instant::now();
        for socket in &mut self.0 {
            socket
                .write_all(REQUEST)
                .context("failed to send a request")?;
        }
        let count = self.0.len();
        for (n, socket) in self.0.iter_mut().enumerate() {
            answer(socket).with_context(|| format!("connection {n} of {count}"))?;
        }
        Ok(began.elapsed())
    }
}

/// The source address depends on the number: no address has ports for all.
fn one(server: SocketAddrV4, n: u32) -> Result<TcpStream> {
    let [_, _, net, host] = (n / PER_ADDRESS + 1).to_be_bytes();
    let from = SocketAddrV4::new(Ipv4Addr::new(127, 1, net, host), 0);
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &from).with_context(|| format!("failed to bind {from}"))?;
    connect(&socket, &server).with_context(|| format!("failed to connect {from} to {server}"))?;
    let socket = TcpStream::from(socket);
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

/// One request of this path, on a connection of its own.
pub(super) fn get(server: SocketAddr, path: &str) -> Result<()> {
    let mut socket = TcpStream::connect(server)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n")?;
    answer(&mut socket).with_context(|| format!("`{path}`"))
}

/// One request, and its answer to the last byte.
pub(super) fn ask(socket: &mut TcpStream) -> Result<()> {
    socket
        .write_all(REQUEST)
        .context("failed to send a request")?;
    answer(socket)
}

/// Reads one answer, to its last byte.
fn answer(socket: &mut TcpStream) -> Result<()> {
    let (mut answer, mut length) = ([0; MAX_ANSWER], 0);
    while !is_whole(&answer[..length])? {
        let read = socket.read(&mut answer[length..]).context("no answer")?;
        ensure!(read > 0, "closed after {length} bytes of the answer");
        length += read;
    }
    Ok(())
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "the answer is {head:?}");
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .context("an answer without a length")?;
    Ok(answer.len() >= end + 4 + length)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert!(is_whole(answer).unwrap());
        for end in 0..answer.len() {
            assert!(!is_whole(&answer[..end]).unwrap(), "{end} bytes");
        }
        assert!(is_whole(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").is_err());
    }

    #[test]
    fn a_connection_that_was_closed_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut crowd = Crowd::open(listener.local_addr().unwrap(), 2).unwrap();
        drop((listener.accept().unwrap(), listener.accept().unwrap()));
        assert!(crowd.ask_all().is_err());
    }
}
