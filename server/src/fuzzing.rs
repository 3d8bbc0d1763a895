//! What the fuzzer calls, as in `handoff::fuzzing`: where the frames of a WebSocket end, read and written.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::{farewell::Outgoing, websocket::Frames};

/// The ends of the frames in `bytes`, and whether a session may rest there: found in another way than by the code
/// under test (RFC 6455, section 5.2).
fn ends(bytes: &[u8]) -> Vec<(usize, bool)> {
    let mut ends = Vec::new();
    let (mut at, mut is_fragmented) = (0_usize, false);
    while let (Some(first), Some(second)) = (bytes.get(at), bytes.get(at + 1)) {
        let wide = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(digits) = bytes.get(at + 2..at + 2 + wide) else {
            break;
        };
        let length = if wide == 0 {
            u128::from(second & 0x7f)
        } else {
            digits
                .iter()
                .fold(0, |n, digit| n << 8 | u128::from(*digit))
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let end = at as u128 + 2 + wide as u128 + mask + length;
        if end > bytes.len() as u128 {
            break;
        }
        at = usize::try_from(end).expect("it is within");
        if first & 0x08 == 0 {
            is_fragmented = first & 0x80 == 0;
        }
        ends.push((at, !is_fragmented));
    }
    ends
}

/// What a client sends on a WebSocket, in pieces, into a buffer of a size of its own: the first two bytes.
///
/// # Panics
/// If something is lost, comes twice, or is taken for a place at which the session may move.
pub fn frames(data: &[u8]) {
    let Some((&[step, room], rest)) = data.split_first_chunk() else {
        return;
    };
    let rests: Vec<usize> = ends(rest)
        .into_iter()
        .filter_map(|(end, rests)| rests.then_some(end))
        .collect();
    let mut frames = Frames::new(Pieces {
        rest,
        step: usize::from(step) * 16 + 1,
    });
    let mut given = Vec::new();
    let mut buffer = vec![0; usize::from(room) * 16 + 1];
    loop {
        let mut buffer = ReadBuf::new(&mut buffer);
        let read =
            Pin::new(&mut frames).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        assert!(matches!(read, Poll::Ready(Ok(()))));
        if buffer.filled().is_empty() {
            break;
        }
        given.extend_from_slice(buffer.filled());
        if frames.is_at_rest() {
            assert!(rests.contains(&given.len()), "it rests within a frame");
        }
    }
    if frames.is_at_rest() {
        assert!(given.is_empty() || rests.contains(&given.len()));
    }
    let (io, unread) = frames.into_parts();
    assert!(io.rest.is_empty(), "it did not read to the end");
    assert_eq!([given, unread].concat(), rest);
}

/// What an application writes on a WebSocket, in pieces whose size is the first byte.
///
/// # Panics
/// If a boundary is missed, or found where none is.
pub fn farewell(data: &[u8]) {
    let Some((&step, rest)) = data.split_first() else {
        return;
    };
    let mut outgoing = Outgoing::default();
    let (mut at, mut found) = (0, Vec::new());
    while at < rest.len() {
        let piece = &rest[at..rest.len().min(at + usize::from(step) + 1)];
        let length = outgoing.until_boundary(piece);
        assert!((1..=piece.len()).contains(&length));
        outgoing.wrote(&piece[..length]);
        at += length;
        if outgoing.may_speak() {
            found.push(at);
        }
    }
    let mut expected = Vec::new();
    let mut from = 0;
    for (end, _) in ends(rest) {
        // After a Close frame nothing is to be said.
        if rest[from] & 0x0f == 8 {
            break;
        }
        expected.push(end);
        from = end;
    }
    assert_eq!(found, expected);
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
    fn frames() {
        replay("frames", super::frames);
    }

    #[test]
    fn farewell() {
        replay("farewell", super::farewell);
    }
}
