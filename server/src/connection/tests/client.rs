//! A client that sees every byte, and never retries.

use std::collections::HashMap;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::support::{get, soon};

/// One answer, as it came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) status: u16,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Received {
    pub(super) fn says_close(&self) -> bool {
        self.headers
            .get("connection")
            .is_some_and(|value| value.contains("close"))
    }

    pub(super) fn generation(&self) -> usize {
        self.headers["x-generation"].parse().unwrap()
    }

    pub(super) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

/// A client that never retries and reads nothing but what it is told to.
pub(super) struct Client<T> {
    pub(super) stream: T,
    read: Vec<u8>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    pub(super) fn new(stream: T) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref()))
            .await
            .expect("send");
    }

    /// At least one more byte, or the end of stream (false).
    async fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 64 * 1024];
        let length = soon(self.stream.read(&mut chunk)).await?;
        self.read.extend_from_slice(&chunk[..length]);
        Ok(length > 0)
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8(self.read[..end].to_vec()).unwrap();
                self.read.drain(..end + 2);
                return line;
            }
            assert!(
                self.fill().await.expect("no reset"),
                "end of stream in a head"
            );
        }
    }

    pub(super) async fn exact(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(
                self.fill().await.expect("no reset"),
                "end of stream in a body"
            );
        }
        self.read.drain(..length).collect()
    }

    /// The head of an answer: status and headers.
    pub(super) async fn head(&mut self) -> Received {
        let line = self.line().await;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = HashMap::<String, String>::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            let old = headers.entry(name.to_lowercase()).or_default();
            old.push_str(value);
        }
        Received {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// One chunk of a chunked body; empty at its end.
    pub(super) async fn chunk(&mut self) -> Vec<u8> {
        let length = usize::from_str_radix(&self.line().await, 16).unwrap();
        let chunk = self.exact(length).await;
        assert_eq!(self.exact(2).await, b"\r\n");
        chunk
    }

    /// A whole answer to anything but HEAD.
    pub(super) async fn receive(&mut self) -> Received {
        let mut received = self.head().await;
        if let Some(length) = received.headers.get("content-length") {
            received.body = self.exact(length.parse().unwrap()).await;
        } else if received.headers.contains_key("transfer-encoding") {
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                received.body.extend(chunk);
            }
        }
        received
    }

    pub(super) async fn ask(&mut self, path: &str) -> Received {
        self.send(get(path)).await;
        self.receive().await
    }

    /// The server closes, in order, and has sent nothing else.
    pub(super) async fn closed(&mut self) {
        assert_eq!(str::from_utf8(&self.read).unwrap(), "");
        let more = self
            .fill()
            .await
            .expect("a reset instead of an end of stream");
        assert!(
            !more,
            "unexpected: {:?}",
            String::from_utf8_lossy(&self.read)
        );
    }

    /// Everything until the server closes, or resets.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await.unwrap_or(false) {}
        std::mem::take(&mut self.read)
    }
}
