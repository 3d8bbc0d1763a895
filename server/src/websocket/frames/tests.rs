use tokio::io::AsyncReadExt;

use super::*;

/// A client's frame, masked by zeros.
fn frame(first: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.resize(bytes.len() + length, b'x');
    bytes
}

#[test]
fn heads_are_read_when_they_are_whole() {
    for length in [0, 125, 126, 0xffff, 0x1_0000] {
        let bytes = frame(0x82, length);
        let head = (0..=14.min(bytes.len()))
            .find_map(|most| Head::parse(&bytes[..most]))
            .unwrap();
        assert_eq!(head.length, bytes.len() as u64);
        assert!(head.is_final && !head.is_control && !head.is_close);
    }
    // Nothing a client says makes it panic.
    let mut huge = vec![0x88, 0xff];
    huge.extend([0xff; 12]);
    let head = Head::parse(&huge).unwrap();
    assert_eq!(head.length, u64::MAX);
    assert!(head.is_control && head.is_close);
}

#[tokio::test]
async fn whole_frames_are_given_one_by_one_and_the_rest_is_kept() {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let mut frames = Frames::new(server);
    let (one, two, three) = (frame(0x81, 3), frame(0x89, 0), frame(0x82, 300));
    let sent = [&*one, &two, &three[..100]].concat();
    tokio::io::AsyncWriteExt::write_all(&mut client, &sent)
        .await
        .unwrap();
    let mut buffer = vec![0; 4096];
    assert_eq!(frames.read(&mut buffer).await.unwrap(), one.len());
    assert!(frames.is_at_rest());
    assert_eq!(frames.read(&mut buffer).await.unwrap(), two.len());
    let waits = tokio::time::timeout(std::time::Duration::ZERO, frames.read(&mut buffer));
    assert!(waits.await.is_err(), "a part of a frame was given");
    assert!(frames.is_at_rest());
    let (_, unread) = frames.into_parts();
    assert_eq!(unread, three[..100]);
}

#[tokio::test]
async fn in_the_middle_of_a_message_nothing_rests() {
    let first = frame(0x01, 5);
    let ping = frame(0x89, 1);
    let last = frame(0x80, 5);
    let all = [&*first, &ping, &last].concat();
    let mut frames = Frames::new(all.as_slice());
    let mut buffer = vec![0; 4096];
    for (length, rests) in [
        (first.len(), false),
        (ping.len(), false),
        (last.len(), true),
    ] {
        assert_eq!(frames.read(&mut buffer).await.unwrap(), length);
        assert_eq!(frames.is_at_rest(), rests);
    }
}

/// As it comes, and no byte beyond its end; a small buffer does not lose any either.
#[tokio::test]
async fn a_large_frame_is_passed_through() {
    for size in [1, 7, 4096, 1 << 17] {
        let large = frame(0x82, 100_000);
        let small = frame(0x81, 1);
        let all = [&*large, &small].concat();
        let mut frames = Frames::new(all.as_slice());
        let mut buffer = vec![0; size];
        let mut got = Vec::new();
        while got.len() < large.len() {
            let length = frames.read(&mut buffer).await.unwrap();
            got.extend_from_slice(&buffer[..length]);
            assert_eq!(frames.is_at_rest(), got.len() == large.len());
        }
        assert_eq!(got, large);
        let (_, unread) = frames.into_parts();
        let rest = &all[all.len() - unread.len()..];
        assert_eq!(unread, rest);
    }
}
