//! A line protocol whose connections move to the next build: nobody is cut off, and each goes on counting its lines.
//!
//! ```text
//! cargo run -p hello-handoff --example tcp_line &
//! nc 127.0.0.1 7008
//! kill -USR2 $(cat /run/tcp-line.pid)     # root; else $XDG_RUNTIME_DIR/tcp-line.pid
//! ```
//!
//! A connection rests between two lines: nothing is half answered then, and nothing unwritten. It moves with the
//! number of its lines, and with the half line that was read, if there is one. What another build says of a
//! connection need not make sense here: that one is closed, counted and logged, and the others live.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Error, Result};
use handoff::{
    Accepted, Adopted, Builder, Connection, ConnectionGuard, NotMoved, Phase, Serving, Stream,
    state::Counter,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is spoken, and how a session is written. Where that changes, so does the name: adopt both.
const KIND: &str = "tcp-line/1";

/// The longest line, in bytes; a longer one ends its connection.
const MAX_LINE: usize = 64 * 1024;

#[tokio::main]
async fn main() -> Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7008".to_owned());
    run(Builder::new("tcp-line").listen("line", address.parse()?)).await
}

/// Serves the listener `line` until this process is replaced or stopped.
pub(crate) async fn run(server: Builder) -> Result<()> {
    let server = server.adopt(KIND).max_connections(10_000);
    let mut starting = server.start().await?;
    let lines = starting.state(Counter::new("lines")).await?;
    let serving = starting.ready().await?;
    let damaged = Arc::new(AtomicU64::new(0));
    let app = Arc::new(App {
        serving: serving.clone(),
        lines,
        damaged: damaged.clone(),
    });
    // What `status` says.
    serving.report_status(move || damaged.load(Ordering::Relaxed).into());

    let mut adopted = serving.adopted().expect("the first call");
    let adopting = app.clone();
    tokio::spawn(async move {
        while let Some(adopted) = adopted.recv().await {
            adopting.adopt(adopted);
        }
    });
    let mut acceptor = serving.acceptor("line").expect("a listener named line");
    while let Some(Accepted {
        stream,
        peer,
        guard,
        ..
    }) = acceptor.accept().await
    {
        let session = Session::new(peer);
        tokio::spawn(app.clone().serve(stream, session, guard));
    }
    serving.finished().await.map_err(Error::msg)?;
    Ok(())
}

struct App {
    serving: Serving,
    lines: Arc<Counter>,
    /// Connections that came here and made no sense.
    damaged: Arc<AtomicU64>,
}

/// What belongs to one connection.
struct Session {
    peer: Option<SocketAddr>,
    /// Its answered lines.
    lines: u64,
    /// What was read and not answered.
    unread: Vec<u8>,
}

impl Session {
    fn new(peer: Option<SocketAddr>) -> Self {
        Self {
            peer,
            lines: 0,
            unread: Vec::new(),
        }
    }

    fn give_up(self, stream: Stream) -> io::Result<Connection> {
        // From here on no epoll of ours knows the socket.
        let mut connection = Connection::new(KIND, "line", stream.into_fd()?);
        connection.peer = self.peer;
        connection.layers = vec![self.unread];
        connection.data = self.lines.to_le_bytes().to_vec();
        Ok(connection)
    }

    fn take_up(connection: Connection) -> Result<(Stream, Self)> {
        let session = Self {
            peer: connection.peer,
            lines: u64::from_le_bytes(connection.data.as_slice().try_into()?),
            unread: connection.layers.concat(),
        };
        Ok((Stream::from_fd(connection.fd)?, session))
    }
}

impl App {
    /// Takes up what an older generation has given up.
    fn adopt(self: &Arc<Self>, adopted: Adopted) {
        let peer = adopted.connection.peer;
        match Session::take_up(adopted.connection) {
            Ok((stream, session)) => {
                tokio::spawn(self.clone().serve(stream, session, adopted.guard));
            }
            Err(error) => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
                eprintln!(
                    "{peer:?} came with a session that makes no sense, and is closed: {error}"
                );
            }
        }
    }

    async fn serve(
        self: Arc<Self>,
        mut stream: Stream,
        mut session: Session,
        mut guard: ConnectionGuard,
    ) {
        let mut phase = self.serving.phase();
        let mut may_move = true;
        loop {
            if self.answer(&mut stream, &mut session).await.is_err() {
                return;
            }
            // Here it rests.
            let now = *phase.borrow_and_update();
            match now {
                now if now.gives_up() && may_move => {
                    let Some(back) = self.hand_over(stream, session, guard).await else {
                        return;
                    };
                    (stream, session, guard) = back;
                    may_move = false;
                }
                Phase::Stopping => return,
                Phase::Cut => return guard.cut(&format!("{:?}, a line session", session.peer)),
                _ => {}
            }
            tokio::select! {
                _ = phase.changed() => {}
                read = stream.read_buf(&mut session.unread) => {
                    if !matches!(read, Ok(1..)) {
                        return;
                    }
                }
            }
        }
    }

    /// Answers every whole line.
    async fn answer(&self, stream: &mut Stream, session: &mut Session) -> io::Result<()> {
        while let Some(end) = session.unread.iter().position(|byte| *byte == b'\n') {
            session.unread.drain(..=end);
            session.lines += 1;
            let generation = self.serving.identity().generation;
            let (own, all) = (session.lines, self.lines.add(1));
            let words = format!("generation {generation}: line {own} of yours, {all} in all\n");
            stream.write_all(words.as_bytes()).await?;
        }
        if session.unread.len() > MAX_LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    /// Moves a connection to the next generation. `Some` if it stays: it was refused, and is still ours.
    async fn hand_over(
        &self,
        stream: Stream,
        session: Session,
        guard: ConnectionGuard,
    ) -> Option<(Stream, Session, ConnectionGuard)> {
        let connection = session.give_up(stream).ok()?;
        let NotMoved { connection, .. } = self.serving.hand_over(connection, guard).await.err()?;
        // Without one, the next generation may be serving it: then nobody here does.
        let (connection, guard) = connection?;
        let (stream, session) = Session::take_up(connection).ok()?;
        Some((stream, session, guard))
    }
}
