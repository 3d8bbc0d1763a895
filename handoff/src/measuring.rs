//! What `cargo xtask bench` and `cargo bench` measure of this crate's inner parts. Not part of what it promises.

use std::{
    collections::{HashSet, VecDeque},
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use crate::{
    channel::{Channel, Read},
    connections::{Connection, Sent, batch_size, pack, unpack, unpacked},
    protocol::drain::Ledger,
    wire::{self, BatchAck, Header, Message, VERSIONS},
};

const KIND: &str = "http/1.1";

/// Two connected ends, as a parent makes them for its child.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    crate::channel::pair()
}

/// Passes all `sockets` over one end, as a drain passes connections: in its batches, with its window and its acks.
/// Returns how long that took, to the last ack.
///
/// # Errors
/// Those of the channel, and a receiver that does not do as [`adopt`] does.
pub async fn pass(channel: OwnedFd, sockets: Vec<OwnedFd>) -> io::Result<Duration> {
    let mut channel = agreed(channel)?;
    let began = Instant::now();
    let mut waiting: VecDeque<Sent> = Waiting::of(sockets).0.into();
    let mut ledger = Ledger::new();
    while !waiting.is_empty() || !ledger.is_settled() {
        while !waiting.is_empty() && ledger.has_room() {
            let mut batch: Vec<Sent> = waiting.drain(..batch_size(&waiting)).collect();
            let mut packed: Vec<&mut Sent> = batch.iter_mut().collect();
            let (message, fds) = pack(ledger.next_number(), &mut packed)?;
            channel.queue(&message, fds).map_err(io::Error::other)?;
            ledger.sent(batch);
        }
        match heard(&mut channel).await? {
            Some((Message::ConnAck(ack), ..)) if ack.refused.is_empty() => {
                drop(ledger.acked(ack.number).map_err(io::Error::other)?);
            }
            other => return Err(io::Error::other(format!("no ack: {other:?}"))),
        }
    }
    Ok(began.elapsed())
}

/// The other end: acknowledges each batch as a child does, and gives `take` its sockets. Returns at the end of the channel.
///
/// # Errors
/// Those of the channel and of `take`.
pub async fn adopt(
    channel: OwnedFd,
    mut take: impl FnMut(OwnedFd) -> io::Result<()>,
) -> io::Result<()> {
    let mut channel = agreed(channel)?;
    let kinds = HashSet::from([KIND.to_owned()]);
    while let Some((message, fds, missing)) = heard(&mut channel).await? {
        let Message::Conn(batch) = message else {
            return Err(io::Error::other(format!("no batch: {message}")));
        };
        let number = batch.number;
        let came = unpack(batch, fds, missing, &kinds).map_err(io::Error::other)?;
        let refused = came.refused;
        let ack = Message::ConnAck(BatchAck { number, refused });
        channel.queue(&ack, Vec::new()).map_err(io::Error::other)?;
        for connection in came.adopted {
            take(connection.fd)?;
        }
    }
    Ok(())
}

fn agreed(channel: OwnedFd) -> io::Result<Channel> {
    let mut channel = Channel::new(channel)?;
    channel.agree(*VERSIONS.end());
    Ok(channel)
}

async fn heard(channel: &mut Channel) -> io::Result<Option<(Message, Vec<OwnedFd>, usize)>> {
    loop {
        match channel.try_recv().map_err(io::Error::other)? {
            Some(Read::End) => return Ok(None),
            Some(Read::Message(it)) => return Ok(Some((it.message, it.fds, it.missing))),
            None => channel.turn().await.map_err(io::Error::other)?,
        }
    }
}

/// A message, to be said again.
#[derive(Debug)]
pub struct Said {
    message: Message,
    header: Header,
}

impl Said {
    /// Reads a record.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(record: &[u8]) -> io::Result<Self> {
        let (header, message) = wire::decode(record, None).map_err(io::Error::other)?;
        Ok(Self { message, header })
    }

    /// The record.
    ///
    /// # Errors
    /// It is too long.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let Header {
            version,
            number,
            fds,
            ..
        } = self.header;
        wire::encode(&self.message, version, number, fds.into()).map_err(io::Error::other)
    }
}

/// Connections that wait for their batch.
#[derive(Debug)]
pub struct Waiting(Vec<Sent>);

impl Waiting {
    /// Idle ones.
    #[must_use]
    pub fn of(sockets: Vec<OwnedFd>) -> Self {
        Self(sockets.into_iter().map(idle).map(Sent::new).collect())
    }

    /// Makes the record of the first batch; all wait as before.
    ///
    /// # Errors
    /// It is too long.
    pub fn batch(&mut self) -> io::Result<Vec<u8>> {
        let size = batch_size(&self.0);
        let mut packed: Vec<&mut Sent> = self.0[..size].iter_mut().collect();
        let (message, fds) = pack(1, &mut packed)?;
        let record = wire::encode(&message, *VERSIONS.end(), 1, fds.len());
        unpacked(message, packed.into_iter());
        record.map_err(io::Error::other)
    }
}

fn idle(fd: OwnedFd) -> Connection {
    let mut connection = Connection::new(KIND, "http", fd);
    connection.peer = Some(([127, 0, 0, 1], 54321).into());
    connection
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn all_that_is_passed_arrives() {
        let (ours, theirs) = pair().unwrap();
        let sockets = (0..600).map(|_| UnixStream::pair().unwrap().0.into());
        let sockets = sockets.collect();
        let mut got = 0;
        let adopting = adopt(theirs, |_| {
            got += 1;
            Ok(())
        });
        let (passed, adopted) = tokio::join!(pass(ours, sockets), adopting);
        passed.unwrap();
        adopted.unwrap();
        assert_eq!(got, 600);
    }

    #[test]
    fn what_is_said_is_heard() {
        let sockets = (0..300).map(|_| UnixStream::pair().unwrap().0.into());
        let mut waiting = Waiting::of(sockets.collect());
        let record = waiting.batch().unwrap();
        let said = Said::decode(&record).unwrap();
        assert_eq!(said.header.fds, 252);
        assert_eq!(said.encode().unwrap(), record);
        assert_eq!(waiting.batch().unwrap(), record);
        assert!(Said::decode(b"HOFF").is_err());
    }

    #[tokio::test]
    async fn what_is_refused_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        // A child takes stream sockets only.
        let datagrams = vec![UdpSocket::bind("127.0.0.1:0").unwrap().into()];
        let (passed, adopted) = tokio::join!(pass(ours, datagrams), adopt(theirs, |_| Ok(())));
        assert!(passed.unwrap_err().to_string().starts_with("no ack"));
        adopted.unwrap();
    }
}
