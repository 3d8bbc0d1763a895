//! A client of one connection, at the level of bytes: it never retries and never reconnects.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
};

use super::{LONG, diag, eventually};

/// One connection.
pub struct Client<S: Read + Write = TcpStream> {
    stream: BufReader<S>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Who answered.
    pub fn generation(&self) -> u64 {
        self.header("x-generation")
            .and_then(|g| g.parse().ok())
            .expect("x-generation")
    }

    /// Whether a line says that the connection lives.
    pub fn keeps(&self) -> bool {
        let is_keep = |option: &str| option.trim().eq_ignore_ascii_case("keep-alive");
        let keep = |(name, value): &(String, String)| {
            name == "connection" && value.split(',').any(is_keep)
        };
        self.headers.iter().any(keep)
    }

    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|c| c.eq_ignore_ascii_case("close"))
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).expect("connect")
    }

    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LONG))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// What the server calls this client.
    pub fn name(&self) -> SocketAddr {
        self.socket().local_addr().expect("an address")
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&self) {
        self.socket().shutdown(Shutdown::Write).expect("shutdown");
    }

    /// Whether something of the server's, or its end, can be read.
    pub fn has_input(&self) -> bool {
        self.socket().set_nonblocking(true).expect("nonblocking");
        let peeked = self.socket().peek(&mut [0]);
        self.socket().set_nonblocking(false).expect("blocking");
        !self.stream.buffer().is_empty()
            || !matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// The server's end: how many bytes it has not read, and whether a process has accepted it. `None` if
    /// there is none any more.
    fn at_server(&self) -> Option<(u64, bool)> {
        let server = self.socket().peer_addr().expect("an address");
        diag::look(server, self.name())
    }

    pub fn is_accepted(&self) -> bool {
        self.at_server().is_some_and(|(_, accepted)| accepted)
    }

    /// Whether the server has read all that was sent.
    pub fn is_read(&self) -> bool {
        self.at_server() == Some((0, true))
    }

    /// Waits until the server has read all that was sent.
    pub fn until_read(&self) {
        eventually("the server has read what was sent", || self.is_read());
    }

    /// After the answer to the last request: nothing more comes, but the answer to a further one if the connection lives. Says
    /// whether it did; it is closed then.
    pub fn lives(&mut self) -> bool {
        self.try_lives()
            .unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// The same, where something else may come.
    pub fn try_lives(&mut self) -> Result<bool, String> {
        // The connection may be closed already, or while this is sent.
        let _ = self.socket().write_all(request("/healthz").as_bytes());
        match self.try_answer() {
            Ok(Some(answer)) if answer.text() == "ok\n" => {
                self.half_close();
                self.expect_end();
                Ok(true)
            }
            Ok(Some(answer)) => Err(format!("the answer to something else: {answer:?}")),
            Ok(None) => Ok(false),
            // What was sent too late is answered by a reset; nothing was lost by that.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Client<UnixStream> {
    pub fn connect_unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("connect");
        stream.set_read_timeout(Some(LONG)).expect("timeout");
        Self {
            stream: BufReader::new(stream),
        }
    }
}

impl<S: Read + Write> Client<S> {
    /// The connection, once it is no longer HTTP's, with what was read ahead.
    pub fn into_stream(self) -> BufReader<S> {
        self.stream
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .get_mut()
            .write_all(bytes.as_ref())
            .expect("send");
    }

    /// A whole exchange.
    pub fn get(&mut self, path: &str) -> Answer {
        self.send(request(path));
        self.answer()
    }

    /// The same with a server that may break.
    pub fn try_get(&mut self, path: &str) -> io::Result<Option<Answer>> {
        self.stream.get_mut().write_all(request(path).as_bytes())?;
        self.try_answer()
    }

    /// The next answer, which must come.
    pub fn answer(&mut self) -> Answer {
        self.try_answer()
            .expect("an answer")
            .expect("an answer before the end of the connection")
    }

    /// The next answer; `None` if the connection was closed in order instead.
    pub fn try_answer(&mut self) -> io::Result<Option<Answer>> {
        let Some(mut answer) = self.try_head()? else {
            return Ok(None);
        };
        let status = answer.status;
        if status >= 200 && status != 204 && status != 304 {
            answer.body = self.body(&answer)?;
        }
        Ok(Some(answer))
    }

    fn try_head(&mut self) -> io::Result<Option<Answer>> {
        let Some(line) = self.line()? else {
            return Ok(None);
        };
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .expect("a status line");
        let mut headers = Vec::new();
        loop {
            let line = self.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a header");
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Some(Answer {
            status,
            headers,
            body: Vec::new(),
        }))
    }

    /// The head of the next answer alone, to read its body in pieces.
    pub fn head(&mut self) -> Answer {
        self.try_head().expect("a head").expect("an answer")
    }

    fn body(&mut self, answer: &Answer) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = answer.header("content-length") {
            body.resize(length.parse().expect("a length"), 0);
            self.stream.read_exact(&mut body)?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
                let size = usize::from_str_radix(&size, 16).expect("a chunk size");
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk)?;
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(body)
    }

    /// The next line of an answer; `None` at the end of the connection.
    pub fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// Waits for the end of the connection, which must be in order (no RST) and without further
    /// bytes.
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("an end in order");
        assert!(
            rest.is_empty(),
            "unexpected: {}",
            String::from_utf8_lossy(&rest)
        );
    }
}

/// A GET request.
pub fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}
