//! Frames of RFC 6455, section 5, as a client reads and writes them.
//!
//! A server may send a message in fragments. The one under test does not, so that a fragment is a violation
//! here, as is everything that the RFC forbids: masked frames, reserved bits, long control frames.

/// No message of the soak comes near it.
const MAX_PAYLOAD: usize = 64 * 1024;
/// Section 5.5: a control frame's.
const MAX_CONTROL_PAYLOAD: usize = 125;

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A frame from the server, or for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A whole text message.
    Text(String),
    /// To be answered by a pong with the same bytes.
    Ping(Vec<u8>),
    /// The answer to a ping.
    Pong(Vec<u8>),
    /// The end, with its code (1005 without one: section 7.1.5) and reason.
    Close(u16, String),
}

impl Frame {
    /// Takes a whole frame from the front of `received`. `None`: there is none yet.
    ///
    /// # Errors
    ///
    /// What the server sent is not allowed; the connection is of no more use.
    pub(super) fn take(received: &mut Vec<u8>) -> Result<Option<Self>, String> {
        let Some(header) = Header::read(received)? else {
            return Ok(None);
        };
        let end = header.length + header.payload;
        if received.len() < end {
            return Ok(None);
        }
        let payload = received[header.length..end].to_vec();
        received.drain(..end);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "text is not UTF-8");
        Ok(Some(match header.opcode {
            TEXT => Self::Text(text(payload)?),
            PING => Self::Ping(payload),
            PONG => Self::Pong(payload),
            CLOSE => match payload.split_first_chunk() {
                Some((code, reason)) => {
                    Self::Close(u16::from_be_bytes(*code), text(reason.to_vec())?)
                }
                None => Self::Close(1005, String::new()),
            },
            other => return Err(format!("a frame of opcode {other:#x}")),
        }))
    }

    /// As a client sends it: masked, section 5.3. Against a server under test the mask needs no secrecy.
    pub(super) fn bytes(&self, mask: [u8; 4]) -> Vec<u8> {
        let (opcode, payload) = match self {
            Self::Text(text) => (TEXT, text.clone().into_bytes()),
            Self::Ping(bytes) => (PING, bytes.clone()),
            Self::Pong(bytes) => (PONG, bytes.clone()),
            Self::Close(code, reason) => (CLOSE, [&code.to_be_bytes(), reason.as_bytes()].concat()),
        };
        let mut bytes = vec![FINAL | opcode];
        match u8::try_from(payload.len()) {
            Ok(short) if usize::from(short) <= MAX_CONTROL_PAYLOAD => bytes.push(MASKED | short),
            // What we send is bounded far below 64 KiB.
            _ => {
                bytes.push(MASKED | 126);
                bytes.extend((payload.len() as u16).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        bytes
    }
}

struct Header {
    opcode: u8,
    /// Of the header itself, in bytes.
    length: usize,
    /// Of what follows it.
    payload: usize,
}

impl Header {
    fn read(received: &[u8]) -> Result<Option<Self>, String> {
        let [first, second, rest @ ..] = received else {
            return Ok(None);
        };
        let opcode = first & 0x0f;
        if first & 0x70 != 0 || first & FINAL == 0 {
            return Err(format!(
                "a frame that begins {first:#04x}: a fragment, or reserved bits"
            ));
        }
        if second & MASKED != 0 {
            return Err("a masked frame: only clients mask".into());
        }
        let (length, payload) = match second & 0x7f {
            126 => match rest.first_chunk() {
                Some(bytes) => (4, u64::from(u16::from_be_bytes(*bytes))),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(bytes) => (10, u64::from_be_bytes(*bytes)),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        let limit = if opcode >= CLOSE {
            MAX_CONTROL_PAYLOAD
        } else {
            MAX_PAYLOAD
        };
        match usize::try_from(payload) {
            Ok(payload) if payload <= limit => Ok(Some(Self {
                opcode,
                length,
                payload,
            })),
            _ => Err(format!("a frame of {payload} bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(bytes: &[u8]) -> Result<Option<Frame>, String> {
        Frame::take(&mut bytes.to_vec())
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // Section 5.7.
        assert_eq!(
            take(b"\x81\x05Hello"),
            Ok(Some(Frame::Text("Hello".into())))
        );
        assert_eq!(
            Frame::Text("Hello".into()).bytes([0x37, 0xfa, 0x21, 0x3d]),
            b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
        );
        assert_eq!(
            take(b"\x89\x05Hello"),
            Ok(Some(Frame::Ping(b"Hello".to_vec())))
        );
    }

    #[test]
    fn frames_are_taken_whole_and_one_at_a_time() {
        let bytes = b"\x81\x02hi\x88\x05\x03\xf4bye\x88\x00";
        let mut received = Vec::new();
        let mut frames = Vec::new();
        for byte in bytes {
            received.push(*byte);
            frames.extend(Frame::take(&mut received).unwrap());
        }
        let expected = [
            Frame::Text("hi".into()),
            Frame::Close(1012, "bye".into()),
            Frame::Close(1005, String::new()),
        ];
        assert_eq!(frames, expected);
        assert!(received.is_empty());
    }

    #[test]
    fn long_messages_have_a_long_length() {
        let text = "x".repeat(300);
        let sent = Frame::Text(text.clone()).bytes([0; 4]);
        assert_eq!(sent[..4], [0x81, 0xfe, 0x01, 0x2c]);
        let received = [b"\x81\x7e\x01\x2c", text.as_bytes()].concat();
        assert_eq!(take(&received), Ok(Some(Frame::Text(text))));
    }

    #[test]
    fn what_is_forbidden_is_refused() {
        for wrong in [
            &b"\x01\x05Hello"[..],           // a fragment
            b"\xc1\x05Hello",                // a reserved bit
            b"\x81\x85\0\0\0\0Hello",        // masked
            b"\x82\x01x",                    // binary
            b"\x81\x01\xff",                 // not UTF-8
            b"\x89\x7e\x01\x00",             // a long ping
            b"\x81\x7f\0\0\0\0\0\x01\0\x01", // a long message
        ] {
            assert!(take(wrong).is_err(), "{wrong:x?}");
        }
    }
}
