//! What the fuzzer calls, one function for each reader of bytes that others wrote (`fuzz/`, `cargo xtask fuzz`).
//!
//! Each one takes any bytes, and panics if the code under it does, or if what it gives back is not right. The
//! corpus in `fuzz/corpus` is replayed by the tests below, so that what was found once stays fixed.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    changes, codec,
    connections::unpack,
    control::{self, Event, Request},
    listeners::Listener,
    pidfile,
    state::{Counter, Deltas, MAX_DELTA_BYTES, Manifest, Section, SectionError, Snapshot, sealed},
    wire::{self, Changes, HEADER_LEN, MAX_MESSAGE, Message},
};

/// A record of the channel: the first byte says whether the rest is one as it is, or kind and body of one whose header is right, so that
/// the fuzzer gets to the bodies.
pub fn wire(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    let record = if how & 1 == 0 {
        rest.to_vec()
    } else {
        framed(rest)
    };
    if record.len() > MAX_MESSAGE {
        return;
    }
    let agreed = (how & 2 == 0).then_some(1);
    let Ok((header, message)) = wire::decode(&record, agreed) else {
        return;
    };
    // What is understood can be said, and is understood likewise.
    let version = agreed.unwrap_or(header.version);
    let said = wire::encode(&message, version, header.number, header.fds.into()).expect("encode");
    let (again, heard) = wire::decode(&said, agreed).expect("decode");
    assert_eq!((again.kind, again.number), (header.kind, header.number));
    let has_words = matches!(
        message,
        Message::Hello(_)
            | Message::Refuse(_)
            | Message::Abort(_)
            | Message::Stop(_)
            | Message::Revoke(_)
    );
    // Words are cut, and what is not UTF-8 in them replaced: once.
    assert!(
        has_words || heard == message,
        "{message:?} became {heard:?}"
    );
    let twice = wire::encode(&heard, version, header.number, header.fds.into()).expect("encode");
    assert_eq!(said, twice);
    use_up(message);
}

fn framed(rest: &[u8]) -> Vec<u8> {
    let (&kind, body) = rest.split_first().unwrap_or((&0, rest));
    // Each that there is, and 0, which is none.
    let kinds = (1..).take_while(|kind| wire::name_of(*kind).is_some());
    let kind = u16::from(kind) % (kinds.count() as u16 + 1);
    let mut record = Vec::with_capacity(HEADER_LEN + body.len());
    record.extend(b"HOFF");
    record.extend(u16::from(kind > 4).to_le_bytes());
    record.extend(kind.to_le_bytes());
    record.extend(1_u64.to_le_bytes());
    record.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend([0; 4]);
    record.extend(body);
    record
}

/// What the receiver does with it next.
fn use_up(message: Message) {
    match message {
        Message::Offer(offer) => {
            for described in &offer.listeners {
                let _ = Listener::check(socket(), described);
            }
        }
        Message::State(manifest) => {
            let memfd = sealed(&[7; 64]).expect("memfd");
            let _ = Snapshot::open(manifest, memfd);
        }
        Message::Commit(commit) => absorb(commit.changes),
        Message::Rest(rest) => absorb(rest.changes),
        Message::Conn(batch) => {
            let wanted = batch.connections.len() + usize::from(batch.bytes.is_none());
            let mut fds: Vec<OwnedFd> = Vec::new();
            if batch.bytes.is_none() {
                fds.push(sealed(&[7; 64]).expect("memfd"));
            }
            let connections = batch.connections.len();
            fds.extend((0..connections.min(3)).map(|_| socket()));
            let missing = wanted - fds.len();
            let kinds: HashSet<String> = batch.connections.iter().map(|c| c.kind.clone()).collect();
            if let Ok(unpacked) = unpack(batch, fds, missing, &kinds) {
                assert_eq!(unpacked.adopted.len() + unpacked.refused.len(), connections);
            }
        }
        _ => {}
    }
}

fn absorb(changes: Changes) {
    let fds = match &changes {
        Changes::Inline(_) => Vec::new(),
        Changes::Sealed { .. } => vec![sealed(&[7; 64]).expect("memfd")],
    };
    let Ok(deltas) = changes::unpack(changes, fds) else {
        return;
    };
    let first = deltas.sections.first().map(|delta| delta.name.clone());
    let sections: Vec<Arc<dyn Section>> = vec![Arc::new(Counter::new(first.unwrap_or_default()))];
    let refused = deltas.absorb(&sections).len();
    assert!(refused <= deltas.sections.len());
}

fn socket() -> OwnedFd {
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    ours.into()
}

/// The state of a service: its list of contents, its length first (`u16`), and the memory. The first byte says what the harness puts right in it: sums and
/// size are not to be guessed.
pub fn state(data: &[u8]) {
    let Some((&[how, low, high], rest)) = data.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([low, high]));
    let Some((manifest, bytes)) = rest.split_at_checked(length) else {
        return;
    };
    if let Ok(deltas) = codec::decode_bounded::<Deltas>(bytes, MAX_DELTA_BYTES) {
        absorb(Changes::Inline(deltas));
    }
    let Ok(mut manifest) = codec::decode::<Manifest>(manifest) else {
        return;
    };
    if how & 1 != 0 {
        manifest.total = bytes.len() as u64;
    }
    if how & 2 != 0 {
        for entry in &mut manifest.sections {
            if let Some(part) = part(bytes, entry.offset, entry.length) {
                entry.crc32 = crc32fast::hash(part);
            }
        }
    }
    let Ok(snapshot) = Snapshot::open(manifest.clone(), sealed(bytes).expect("memfd")) else {
        return;
    };
    // The first one by its own reader, all others by one that takes whatever there is.
    let mut sections: Vec<Arc<dyn Section>> = Vec::new();
    let mut readers = Vec::new();
    for entry in &manifest.sections {
        if entry.version == 1 && readers.is_empty() {
            sections.push(Arc::new(Counter::new(entry.name.clone())));
        } else {
            let reader = Arc::new(Reader::new(entry.name.clone()));
            readers.push((reader.clone(), entry));
            sections.push(reader);
        }
    }
    if snapshot.restore(&sections).is_err() {
        return;
    }
    for (reader, entry) in readers {
        let written = part(bytes, entry.offset, entry.length).expect("it was checked");
        assert_eq!(*reader.got.lock().expect("no panic"), written);
    }
}

fn part(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    let length = usize::try_from(length).ok()?;
    bytes.get(from..from.checked_add(length)?)
}

/// Keeps what it is given.
struct Reader {
    name: String,
    got: Mutex<Vec<u8>>,
}

impl Reader {
    fn new(name: String) -> Self {
        Self {
            name,
            got: Mutex::default(),
        }
    }
}

impl Section for Reader {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        0
    }

    fn snapshot(&self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn delta(&self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&self, _: u32, input: &mut dyn Read) -> Result<(), SectionError> {
        input.read_to_end(&mut self.got.lock().expect("no panic"))?;
        Ok(())
    }

    fn absorb(&self, _: u32, _: &[u8]) -> Result<(), SectionError> {
        Ok(())
    }
}

/// What a client says on the control socket, in pieces of as many bytes as the first byte says, and what a server
/// does.
pub fn control(data: &[u8]) {
    let Some((&step, rest)) = data.split_first() else {
        return;
    };
    let mut pieces = Pieces {
        rest,
        step: usize::from(step) + 1,
    };
    let read = pin!(control::read_line(&mut pieces));
    // There is always something to read, or the end.
    let Poll::Ready(line) = read.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits for more than there is");
    };
    let end = rest.iter().position(|byte| *byte == b'\n');
    let within = end.filter(|end| *end < control::MAX_REQUEST_LEN);
    assert_eq!(line.is_ok(), within.is_some());
    if let (Ok(line), Some(end)) = (line, within) {
        assert_eq!(line, rest[..end]);
        if let Ok(request) = serde_json::from_slice::<Request>(&line) {
            let said = serde_json::to_vec(&request).expect("encode");
            assert!(said.len() < control::MAX_REQUEST_LEN);
            let heard: Request = serde_json::from_slice(&said).expect("decode");
            assert_eq!(heard, request);
        }
    }
    for line in rest.split(|byte| *byte == b'\n') {
        if let Ok(event) = serde_json::from_slice::<Event>(line) {
            let said = serde_json::to_vec(&event).expect("encode");
            let heard: Event = serde_json::from_slice(&said).expect("decode");
            assert_eq!(heard.is_final(), event.is_final());
        }
    }
}

/// Gives a few bytes at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.step.min(self.rest.len()).min(buffer.remaining());
        let (piece, rest) = self.rest.split_at(length);
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// What is in a pidfile.
pub fn pidfile(data: &[u8]) {
    let pid = pidfile::pid_in(data);
    let text = data.trim_ascii();
    // Another way to say what a pid is.
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let value = text.iter().try_fold(0_u64, |value, digit| {
        let value = value
            .checked_mul(10)?
            .checked_add(u64::from(digit.wrapping_sub(b'0')))?;
        (value <= i32::MAX as u64).then_some(value)
    });
    let expected = value.filter(|value| is_number && *value > 0);
    assert_eq!(pid.map(u64::from), expected);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Everything that the fuzzer ever found worth keeping.
    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let files = fs::read_dir(corpus.join(target)).expect("a corpus");
        let mut number = 0;
        for file in files {
            let path = file.expect("a file").path();
            // Shown if it fails.
            println!("{}", path.display());
            run(&fs::read(&path).expect("read"));
            number += 1;
        }
        assert!(number > 0, "no corpus of {target}");
    }

    #[test]
    fn wire() {
        replay("wire", super::wire);
    }

    #[test]
    fn state() {
        replay("state", super::state);
    }

    #[test]
    fn control() {
        replay("control", super::control);
    }

    #[test]
    fn pidfile() {
        replay("pidfile", super::pidfile);
    }
}
