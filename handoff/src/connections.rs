//! Live connections on their way from parent to child: batches and their acks, both sides.
//!
//! A connection moves only at rest: nobody reads it, writes it or runs a timer on it, and no epoll
//! knows it. What was read ahead travels in `layers`, outermost first (a TLS record's first half, then
//! plaintext, say): the receiver puts each in front of what its layer reads.
//!
//! Failure rules: an ack means "I own it". A connection that cannot be taken is refused by name
//! and place, and stays with the sender; the others of its batch live. Descriptors beyond
//! the child's limit never arrive; those that do are adopted, the rest refused.

use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use crate::{
    codec, state,
    wire::{Batch, ConnectionEntry, MAX_FDS, MAX_INLINE, MAX_MESSAGE, Message},
};

/// The most bytes (layers and application data) that one connection may bring along. hyper reads
/// ahead 400 KiB at the most; the rest is room for the application.
pub const MAX_CONNECTION_BYTES: usize = 16 * 1024 * 1024;

/// A batch is closed when it holds this many bytes, so that the child acks early.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// A live connection at rest.
#[derive(Debug)]
#[non_exhaustive]
pub struct Connection {
    /// What is spoken on it, e.g. `http/1.1`. A child adopts only kinds that it
    /// [asked for](crate::Builder::adopt).
    pub kind: String,
    /// The name of the listener that accepted it.
    pub listener: String,
    /// The socket, registered with no epoll.
    pub fd: OwnedFd,
    /// The client as the server knows it; `None` for a Unix socket.
    pub peer: Option<SocketAddr>,
    /// Bytes that were read and not yet consumed, outermost layer first.
    pub layers: Vec<Vec<u8>>,
    /// Timers that run on it: name, and the time spent.
    pub timers: Vec<(String, Duration)>,
    /// The application's own data.
    pub data: Vec<u8>,
}

impl Connection {
    /// A connection of this kind, with nothing read ahead.
    #[must_use]
    pub fn new(kind: impl Into<String>, listener: impl Into<String>, fd: OwnedFd) -> Self {
        Self {
            kind: kind.into(),
            listener: listener.into(),
            fd,
            peer: None,
            layers: Vec::new(),
            timers: Vec::new(),
            data: Vec::new(),
        }
    }

    /// How much of the named timer has been spent.
    #[must_use]
    pub fn timer(&self, name: &str) -> Option<Duration> {
        self.timers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, spent)| *spent)
    }

    fn bytes(&self) -> usize {
        self.data.len() + self.layers.iter().map(Vec::len).sum::<usize>()
    }
}

/// Whether no more of `waiting` would fit into the next batch.
pub(crate) fn is_full_batch<'a>(waiting: impl ExactSizeIterator<Item = &'a Sent>) -> bool {
    let all = waiting.len();
    let size = batch_size(waiting);
    size < all || size == MAX_FDS - 1
}

/// How many of `waiting`, from the first on, make the next batch: bounded by descriptors, message length and
/// bytes.
pub(crate) fn batch_size<'a>(waiting: impl IntoIterator<Item = &'a Sent>) -> usize {
    let (mut count, mut entries, mut bytes) = (0, 0, 0);
    for sent in waiting {
        entries += sent.entry_len;
        bytes += sent.bytes_len;
        // One descriptor is kept for the memfd.
        let full = count == MAX_FDS - 1
            || entries > MAX_MESSAGE - MAX_INLINE - 1024
            || bytes > MAX_BATCH_BYTES;
        if full && count > 0 {
            break;
        }
        count += 1;
    }
    count
}

/// A batch as a message and its descriptors. The descriptions are in the message: [`unpacked`] puts them
/// back.
pub(crate) fn pack(
    number: u64,
    batch: &mut [&mut Sent],
) -> std::io::Result<(Message, Vec<Arc<OwnedFd>>)> {
    let mut bytes = Vec::new();
    for sent in &*batch {
        let layers = sent.layers.iter();
        layers.for_each(|layer| bytes.extend_from_slice(layer));
        bytes.extend_from_slice(&sent.data);
    }
    let mut fds = Vec::with_capacity(batch.len() + 1);
    let bytes_len = bytes.len() as u64;
    let inline = bytes.len() <= MAX_INLINE;
    if !inline {
        fds.push(Arc::new(state::sealed(&bytes)?));
    }
    fds.extend(batch.iter().map(|sent| sent.fd.clone()));
    let entries = batch.iter_mut().map(|sent| std::mem::take(&mut sent.entry));
    let message = Message::Conn(Batch {
        number,
        connections: entries.collect(),
        bytes: inline.then_some(bytes),
        bytes_len,
    });
    Ok((message, fds))
}

/// Once a [packed](pack) message has been said: gives each connection its description back.
pub(crate) fn unpacked<'a>(message: Message, batch: impl Iterator<Item = &'a mut Sent>) {
    if let Message::Conn(Batch { connections, .. }) = message {
        for (sent, entry) in batch.zip(connections) {
            sent.entry = entry;
        }
    }
}

/// A connection that has been sent, or is about to be: inert until it is acked or comes back.
#[derive(Debug)]
pub(crate) struct Sent {
    fd: Arc<OwnedFd>,
    /// In a message for a moment.
    entry: ConnectionEntry,
    layers: Vec<Vec<u8>>,
    data: Vec<u8>,
    /// The length of its description in a message, in bytes.
    entry_len: usize,
    /// How many bytes it brings along.
    bytes_len: usize,
}

impl Sent {
    pub(crate) fn new(connection: Connection) -> Self {
        let bytes_len = connection.bytes();
        let Connection {
            kind,
            listener,
            fd,
            peer,
            layers,
            timers,
            data,
        } = connection;
        let length = |bytes: &Vec<u8>| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let millis = |spent: Duration| u64::try_from(spent.as_millis()).unwrap_or(u64::MAX);
        let entry = ConnectionEntry {
            kind,
            listener,
            peer: peer.map(|p| p.to_string()),
            layers: layers.iter().map(length).collect(),
            timers: timers
                .into_iter()
                .map(|(name, spent)| (name, millis(spent)))
                .collect(),
            data: length(&data),
        };
        Self {
            fd: Arc::new(fd),
            entry_len: codec::size_of(&entry),
            entry,
            layers,
            data,
            bytes_len,
        }
    }

    /// Whether it can travel at all; the reason if not.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.bytes_len > MAX_CONNECTION_BYTES {
            return Err(format!(
                "{} bytes to bring along, where {MAX_CONNECTION_BYTES} are the most",
                self.bytes_len
            ));
        }
        if self.entry_len > MAX_MESSAGE / 4 {
            return Err(format!("its description takes {} bytes", self.entry_len));
        }
        Ok(())
    }

    /// Makes it a live connection again. The descriptor is the same, unless the channel still holds it.
    pub(crate) fn take_back(self) -> std::io::Result<Connection> {
        let fd = match Arc::try_unwrap(self.fd) {
            Ok(fd) => fd,
            Err(shared) => shared.as_fd().try_clone_to_owned()?,
        };
        let timers = self.entry.timers.into_iter();
        Ok(Connection {
            kind: self.entry.kind,
            listener: self.entry.listener,
            fd,
            // Our own words: they parse.
            peer: self.entry.peer.and_then(|peer| peer.parse().ok()),
            layers: self.layers,
            timers: timers
                .map(|(name, ms)| (name, Duration::from_millis(ms)))
                .collect(),
            data: self.data,
        })
    }
}

/// What came of a batch: the connections to adopt, and those refused, by place.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub(crate) adopted: Vec<Connection>,
    pub(crate) refused: Vec<(u32, String)>,
}

/// Reads a batch. `kinds` are those that this process adopts.
///
/// # Errors
/// Only if the batch as a whole makes no sense: then the sender is not to be believed.
pub(crate) fn unpack(
    batch: Batch,
    fds: Vec<OwnedFd>,
    missing: usize,
    kinds: &HashSet<String>,
) -> Result<Unpacked, String> {
    let sealed = batch.bytes.is_none();
    let expected = batch.connections.len() + usize::from(sealed);
    if fds.len() + missing != expected {
        return Err(format!(
            "{} descriptors for {} connections",
            fds.len() + missing,
            batch.connections.len()
        ));
    }
    let mut fds = fds.into_iter();
    let bytes = match batch.bytes {
        Some(bytes) if bytes.len() as u64 != batch.bytes_len => {
            return Err("a batch with a wrong length".to_owned());
        }
        Some(bytes) => bytes,
        None => match fds.next() {
            Some(memfd) => state::read_sealed(
                memfd,
                batch.bytes_len,
                (MAX_BATCH_BYTES + MAX_CONNECTION_BYTES) as u64,
            )
            .map_err(|e| format!("the batch's bytes: {e}"))?,
            None => return Ok(refuse_all(&batch.connections)),
        },
    };
    let mut rest = bytes.as_slice();
    let mut unpacked = Unpacked::default();
    for (place, entry) in (0..).zip(batch.connections) {
        let (layers, data) =
            split(&entry, &mut rest).ok_or("a batch whose lengths do not add up")?;
        match adopt(entry, fds.next(), layers, data, kinds) {
            Ok(connection) => unpacked.adopted.push(connection),
            Err(reason) => unpacked.refused.push((place, reason)),
        }
    }
    if rest.is_empty() {
        Ok(unpacked)
    } else {
        Err("a batch whose lengths do not add up".to_owned())
    }
}

fn refuse_all(entries: &[ConnectionEntry]) -> Unpacked {
    let refused = (0..)
        .zip(entries)
        .map(|(place, _)| (place, no_descriptor()))
        .collect();
    Unpacked {
        adopted: Vec::new(),
        refused,
    }
}

fn no_descriptor() -> String {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    format!(
        "the new process is at its limit of descriptors: raise RLIMIT_NOFILE, which is {}",
        most.map_or("infinite".to_owned(), |most| most.to_string())
    )
}

fn split(entry: &ConnectionEntry, rest: &mut &[u8]) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
    let mut take = |length: u32| {
        let (taken, left) = rest.split_at_checked(length as usize)?;
        *rest = left;
        Some(taken.to_vec())
    };
    let layers = entry
        .layers
        .iter()
        .map(|length| take(*length))
        .collect::<Option<Vec<_>>>()?;
    Some((layers, take(entry.data)?))
}

fn adopt(
    entry: ConnectionEntry,
    fd: Option<OwnedFd>,
    layers: Vec<Vec<u8>>,
    data: Vec<u8>,
    kinds: &HashSet<String>,
) -> Result<Connection, String> {
    let fd = fd.ok_or_else(no_descriptor)?;
    if !kinds.contains(&entry.kind) {
        return Err(format!(
            "the new build does not adopt connections of kind `{}`",
            entry.kind
        ));
    }
    let kind = rustix::net::sockopt::socket_type(&fd).map_err(|e| format!("not a socket: {e}"))?;
    if kind != rustix::net::SocketType::STREAM {
        return Err("not a stream socket".to_owned());
    }
    let peer = entry
        .peer
        .map(|p| p.parse())
        .transpose()
        .map_err(|e| format!("peer: {e}"))?;
    let timers = entry
        .timers
        .into_iter()
        .map(|(name, ms)| (name, Duration::from_millis(ms)))
        .collect();
    Ok(Connection {
        kind: entry.kind,
        listener: entry.listener,
        fd,
        peer,
        layers,
        timers,
        data,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connection(layers: &[&[u8]], data: &[u8]) -> Connection {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new("echo", "main", ours.into());
        connection.layers = layers.iter().map(|l| l.to_vec()).collect();
        connection.data = data.to_vec();
        connection.timers = vec![("idle".to_owned(), Duration::from_millis(1500))];
        connection.peer = Some("127.0.0.1:9".parse().unwrap());
        connection
    }

    fn kinds() -> HashSet<String> {
        HashSet::from(["echo".to_owned()])
    }

    fn travel(connections: Vec<Connection>, lose: usize) -> Result<Unpacked, String> {
        let mut sent: Vec<Sent> = connections.into_iter().map(Sent::new).collect();
        let (message, fds) = pack(1, &mut sent.iter_mut().collect::<Vec<_>>()).unwrap();
        let Message::Conn(batch) = message else {
            panic!("not a batch")
        };
        let mut fds: Vec<OwnedFd> = fds
            .iter()
            .map(|fd| fd.as_fd().try_clone_to_owned().unwrap())
            .collect();
        fds.truncate(fds.len() - lose);
        unpack(batch, fds, lose, &kinds())
    }

    #[test]
    fn all_of_a_connection_travels() {
        let big = vec![7; MAX_INLINE];
        for layers in [
            vec![],
            vec![b"GET / HT".as_slice(), b"x"],
            vec![big.as_slice(), b"y"],
        ] {
            let got = travel(vec![connection(&layers, b"app"), connection(&[], b"")], 0).unwrap();
            assert!(got.refused.is_empty());
            assert_eq!(got.adopted[0].layers, layers);
            assert_eq!(got.adopted[0].data, b"app");
            assert_eq!(
                got.adopted[0].timer("idle"),
                Some(Duration::from_millis(1500))
            );
            assert_eq!(got.adopted[0].peer, Some("127.0.0.1:9".parse().unwrap()));
            assert!(got.adopted[1].layers.is_empty());
        }
    }

    #[test]
    fn connections_whose_descriptor_did_not_come_are_refused_and_the_others_live() {
        let got = travel(
            vec![
                connection(&[], b"1"),
                connection(&[], b"2"),
                connection(&[], b"3"),
            ],
            2,
        )
        .unwrap();
        assert_eq!(got.adopted.len(), 1);
        assert_eq!(got.adopted[0].data, b"1");
        let places: Vec<u32> = got.refused.iter().map(|r| r.0).collect();
        assert_eq!(places, [1, 2]);
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut other = connection(&[], b"");
        other.kind = "smtp".to_owned();
        let got = travel(vec![other, connection(&[], b"")], 0).unwrap();
        assert_eq!(got.adopted.len(), 1);
        assert_eq!(got.refused[0].0, 0);
        assert!(got.refused[0].1.contains("smtp"));
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused_as_a_whole() {
        let mut sent = [Sent::new(connection(&[b"abc"], b""))];
        let (Message::Conn(mut batch), fds) =
            pack(1, &mut sent.iter_mut().collect::<Vec<_>>()).unwrap()
        else {
            panic!("not a batch")
        };
        batch.connections[0].layers[0] = 4;
        let fds = fds
            .iter()
            .map(|fd| fd.as_fd().try_clone_to_owned().unwrap())
            .collect();
        assert!(unpack(batch, fds, 0, &kinds()).is_err());
    }

    #[test]
    fn batches_are_bounded_by_descriptors() {
        let many: Vec<Sent> = (0..300).map(|_| Sent::new(connection(&[], b""))).collect();
        assert_eq!(batch_size(&many), MAX_FDS - 1);
        assert_eq!(batch_size(&many[..10]), 10);
        assert_eq!(batch_size(&many[..0]), 0);
        assert!(is_full_batch(many.iter()));
        assert!(is_full_batch(many[..MAX_FDS - 1].iter()));
        assert!(!is_full_batch(many[..MAX_FDS - 2].iter()));
    }

    #[test]
    fn batches_are_bounded_by_bytes() {
        let half = vec![7; MAX_BATCH_BYTES / 2 + 1];
        let large = || Sent::new(connection(&[&half], b""));
        let sent = [large(), large()];
        assert_eq!(batch_size(&sent), 1);
        assert!(is_full_batch(sent.iter()));
        let one = connection(&[&vec![7; MAX_CONNECTION_BYTES + 1]], b"");
        assert!(
            Sent::new(one)
                .check()
                .unwrap_err()
                .contains("16777217 bytes")
        );
    }
}
