//! A WebSocket client of one connection, at the level of frames: it never retries and never reconnects.

use std::{
    io::{self, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use super::client::Client;

/// The opcodes of RFC 6455, section 11.8.
pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The request that begins a session.
pub const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
     sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// One frame of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        assert_eq!(self.opcode, TEXT, "{self:?}");
        std::str::from_utf8(&self.payload).expect("UTF-8")
    }

    /// Of a Close frame.
    pub fn code(&self) -> u16 {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        u16::from_be_bytes(self.payload[..2].try_into().expect("a code"))
    }
}

/// A frame as a client sends it: masked.
pub fn frame(is_final: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x1b, 0x2c, 0x3d, 0x4e];
    let mut bytes = vec![u8::from(is_final) << 7 | opcode];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

pub fn text(text: &str) -> Vec<u8> {
    frame(true, TEXT, text.as_bytes())
}

/// One session.
pub struct Ws<S: Read + Write = TcpStream> {
    stream: BufReader<S>,
}

impl Ws {
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_to(address, HANDSHAKE)
    }

    pub fn connect_to(address: SocketAddr, handshake: &str) -> Self {
        Self::begin(Client::connect(address), handshake.as_bytes())
    }

    pub fn name(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().expect("an address")
    }

    /// Waits until the server has read all that was sent.
    pub fn until_read(&self) {
        let socket = self.stream.get_ref();
        let server = socket.peer_addr().expect("an address");
        super::eventually("the server has read what was sent", || {
            super::diag::look(server, self.name()) == Some((0, true))
        });
    }
}

impl<S: Read + Write> Ws<S> {
    /// On a connection that may have served requests before. `handshake` may have frames behind it.
    pub fn begin(mut client: Client<S>, handshake: &[u8]) -> Self {
        client.send(handshake);
        let answer = client.head();
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(
            answer.header("sec-websocket-accept"),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
        Self {
            stream: client.into_stream(),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("send");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next frame; `None` at the end in order.
    pub fn try_recv(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 2];
        match self.stream.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        assert_eq!(
            head[0] & 0xf0,
            0x80,
            "one frame a message, no reserved bits"
        );
        assert_eq!(head[1] & 0x80, 0, "a server masks nothing");
        let mut wide = [0; 8];
        let length = match head[1] {
            126 => {
                self.stream.read_exact(&mut wide[6..])?;
                u64::from_be_bytes(wide)
            }
            127 => {
                self.stream.read_exact(&mut wide)?;
                u64::from_be_bytes(wide)
            }
            length => length.into(),
        };
        let mut payload = vec![0; usize::try_from(length).expect("a length")];
        self.stream.read_exact(&mut payload)?;
        let opcode = head[0] & 0x0f;
        Ok(Some(Frame { opcode, payload }))
    }

    pub fn recv(&mut self) -> Frame {
        self.try_recv()
            .expect("a frame")
            .expect("a frame before the end")
    }

    /// One message and its answer.
    pub fn ask(&mut self, message: &str) -> String {
        self.send(&text(message));
        self.recv().text().to_owned()
    }

    /// Answers the server's Close frame, and sees the end in order.
    pub fn closes(mut self, code: u16) {
        let close = self.recv();
        assert_eq!(close.code(), code, "{close:?}");
        self.send(&frame(true, CLOSE, &close.payload));
        assert_eq!(self.try_recv().expect("an end in order"), None);
    }
}
