//! What `cargo xtask bench` measures of this crate's inner parts. Not part of what it promises.

use std::{
    collections::{HashSet, VecDeque},
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use crate::{
    channel::{Channel, Read},
    connections::{Connection, Sent, batch_size, pack, unpack},
    protocol::drain::Ledger,
    wire::{BatchAck, Message, VERSIONS},
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
    let connection = |fd| {
        let mut connection = Connection::new(KIND, "http", fd);
        connection.peer = Some(([127, 0, 0, 1], 54321).into());
        connection
    };
    let sent = sockets.into_iter().map(connection).map(Sent::new);
    let mut waiting: VecDeque<Sent> = sent.collect();
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
        let unpacked = unpack(batch, fds, missing, &kinds).map_err(io::Error::other)?;
        let refused = unpacked.refused;
        let ack = Message::ConnAck(BatchAck { number, refused });
        channel.queue(&ack, Vec::new()).map_err(io::Error::other)?;
        for connection in unpacked.adopted {
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
