//! One session: sends what is due, judges what comes, and says how it ended.
//!
//! Failure rules: the connection's end, a Close frame or a violation leaves every unanswered
//! message lost, each once, by the name of what happened. If it was the server that ended it, that is a
//! forced reconnect besides. The next message that is due finds no session and opens another; messages are never sent
//! again. A message without an answer in time is lost, and the session goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::client::{Client, Opened};
use super::super::line::Line;
use super::super::outcome::{Outcome, Verdict};
use super::super::request::Kind;
use super::super::tap::{End, Record, Tap};
use super::frame::Frame;
use super::tally::{Judged, Tally};
use super::upgrade::upgrade;

/// For the server's answer to our Close, at the end of the soak.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Section 7.4.1: the purpose is fulfilled.
const NORMAL: u16 = 1000;

/// A message that is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    /// Unique in the run; from 0.
    pub(crate) number: u64,
    /// Its latency counts from here.
    pub(crate) due: Instant,
}

/// What became of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spoken {
    /// Connections that it took.
    pub(crate) connections: u64,
    /// How many of them ended before the soak did; 0 if nothing went wrong.
    pub(crate) broken: u64,
}

pub(crate) struct Session {
    client: Arc<Client>,
    open: Option<Open>,
    spoken: Spoken,
}

/// On one connection.
struct Open {
    line: Tap<Box<dyn Line>>,
    record: Arc<Record>,
    port: u16,
    /// Read, and not a whole frame yet.
    received: Vec<u8>,
    tally: Tally,
}

/// Why a session has ended.
struct Ended {
    outcome: Outcome,
    detail: String,
    /// By the server, although nothing was wrong.
    forced: bool,
}

enum Step {
    Heard(Result<Frame, Ended>),
    /// The oldest unanswered message has had its time.
    Late,
    Due(Message),
    /// Nothing more will be due.
    NoMore,
    /// Nothing more is due, and nothing is unanswered.
    Over,
}

impl Session {
    /// Opens one.
    pub(crate) async fn open(client: Arc<Client>) -> Result<Self, Verdict> {
        let mut session = Self {
            client,
            open: None,
            spoken: Spoken::default(),
        };
        session.open = Some(session.connect().await?);
        Ok(session)
    }

    async fn connect(&mut self) -> Result<Open, Verdict> {
        let Opened {
            mut line,
            record,
            port,
            floor,
        } = self.client.line().await?;
        let upgraded = tokio::time::timeout(self.client.timeout, upgrade(&mut line)).await;
        let received = match upgraded {
            Ok(Ok(received)) => received,
            Ok(Err((outcome, detail))) => return Err(Verdict::lost(outcome, port, detail)),
            Err(_) => {
                let detail = format!("upgrade: {:?} passed", self.client.timeout);
                return Err(Verdict::lost(Outcome::Timeout, port, detail));
            }
        };
        self.spoken.connections += 1;
        Ok(Open {
            line,
            record,
            port,
            received,
            tally: Tally::new(floor),
        })
    }

    /// Goes on until no message can come any more, and what was sent is answered or lost.
    pub(crate) async fn run(mut self, mut due: UnboundedReceiver<Message>) -> Spoken {
        loop {
            match self.step(&mut due).await {
                Step::Heard(Ok(frame)) => self.heard(frame).await,
                Step::Heard(Err(ended)) => self.end(ended),
                Step::Late => self.late(),
                Step::Due(message) => self.send(message).await,
                Step::NoMore => {}
                Step::Over => break,
            }
        }
        if let Some(open) = self.open {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, open.close()).await;
        }
        self.spoken
    }

    async fn step(&mut self, due: &mut UnboundedReceiver<Message>) -> Step {
        let oldest = self.open.as_ref().and_then(|open| open.tally.oldest());
        let deadline = oldest.map(|sent| sent.deadline);
        let over = due.is_closed() && due.is_empty();
        if over && deadline.is_none() {
            return Step::Over;
        }
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let heard = async {
            match &mut self.open {
                Some(open) => open.hear().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An end that has come is seen before a message is sent into it; an answer
            // that has come, before it is late.
            biased;
            heard = heard => Step::Heard(heard),
            () = late => Step::Late,
            message = due.recv(), if !over => message.map_or(Step::NoMore, Step::Due),
        }
    }

    async fn heard(&mut self, frame: Frame) {
        let Some(open) = &mut self.open else { return };
        match frame {
            Frame::Text(text) => {
                if let Some(judged) = open.tally.judge(&text) {
                    self.client.enter(open.port, judged);
                }
            }
            Frame::Ping(bytes) => {
                if let Err(ended) = open.write(&Frame::Pong(bytes), &self.client).await {
                    self.end(ended);
                }
            }
            // Unasked, which section 5.5.3 allows.
            Frame::Pong(_) => {}
            Frame::Close(code, reason) => {
                // The answer is owed, and nothing depends on it.
                let _ = open
                    .write(&Frame::Close(code, String::new()), &self.client)
                    .await;
                self.end(Ended {
                    outcome: Outcome::CloseFrame,
                    detail: format!("the server closed the session: {code} {reason:?}"),
                    forced: true,
                });
            }
        }
    }

    fn end(&mut self, ended: Ended) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let Ended {
            outcome,
            detail,
            forced,
        } = ended;
        self.spoken.broken += 1;
        open.record.give_up();
        let book = &self.client.book;
        let mut unanswered = 0;
        while let Some(sent) = open.tally.give_up() {
            unanswered += 1;
            let lost = Verdict::lost(outcome, open.port, detail.clone());
            book.enter(Kind::WebSocket, sent.due, lost);
        }
        if forced {
            book.forced_reconnect(open.port, detail);
        } else if unanswered == 0 {
            // It must not go unseen.
            let lost = Verdict::lost(outcome, open.port, detail);
            book.enter(Kind::WebSocket, Instant::now(), lost);
        }
    }

    fn late(&mut self) {
        if let Some(open) = &mut self.open
            && let Some(sent) = open.tally.give_up()
        {
            let detail = format!("no answer in {:?}", self.client.timeout);
            let lost = Verdict::lost(Outcome::Timeout, open.port, detail);
            self.client.book.enter(Kind::WebSocket, sent.due, lost);
        }
    }

    async fn send(&mut self, message: Message) {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => match self.connect().await {
                Ok(open) => open,
                Err(verdict) => {
                    return self
                        .client
                        .book
                        .enter(Kind::WebSocket, message.due, verdict);
                }
            },
        };
        let text = format!("message-{}", message.number);
        let frame = Frame::Text(text.clone());
        let deadline = Instant::now() + self.client.timeout;
        let settled = self.client.timeline.settled();
        // Before it is written: what fails from here on is lost.
        open.tally.send(text, message.due, deadline, settled);
        let written = open.write(&frame, &self.client).await;
        self.open = Some(open);
        if let Err(ended) = written {
            self.end(ended);
        }
    }
}

impl Open {
    /// The next frame. Cancel safe.
    async fn hear(&mut self) -> Result<Frame, Ended> {
        loop {
            match Frame::take(&mut self.received) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(violation) => {
                    return Err(Ended {
                        outcome: Outcome::Protocol,
                        detail: violation,
                        forced: false,
                    });
                }
            }
            match self.line.read_buf(&mut self.received).await {
                Ok(1..) => {}
                Ok(0) => return Err(self.broken("the server closed the connection")),
                Err(err) => return Err(self.broken(&err.to_string())),
            }
        }
    }

    async fn write(&mut self, frame: &Frame, client: &Client) -> Result<(), Ended> {
        // The same for all: see `Frame::bytes`.
        let bytes = frame.bytes([0x5a, 0xc3, 0x17, 0x88]);
        let writing = async {
            self.line.write_all(&bytes).await?;
            self.line.flush().await
        };
        match tokio::time::timeout(client.timeout, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(err)) => Err(self.broken(&err.to_string())),
            Err(_) => Err(Ended {
                outcome: Outcome::Timeout,
                detail: format!("the server has not read for {:?}", client.timeout),
                forced: false,
            }),
        }
    }

    /// The connection has ended. The socket knows best how.
    fn broken(&self, detail: &str) -> Ended {
        let outcome = match self.record.seen().end {
            Some(End::Eof) if self.received.is_empty() => Outcome::Eof,
            Some(End::Eof) => Outcome::Truncated,
            Some(End::Reset) => Outcome::Reset,
            Some(End::Failed) | None => Outcome::Protocol,
        };
        Ended {
            outcome,
            detail: detail.into(),
            forced: true,
        }
    }

    /// Says that we go, and waits for the server to agree.
    async fn close(mut self) {
        self.record.give_up();
        let bytes = Frame::Close(NORMAL, String::new()).bytes([0; 4]);
        if self.line.write_all(&bytes).await.is_err() {
            return;
        }
        self.received.clear();
        while matches!(self.line.read_buf(&mut self.received).await, Ok(1..)) {
            self.received.clear();
        }
    }
}

impl Client {
    fn enter(&self, port: u16, judged: Judged) {
        let now = Instant::now();
        let verdict = Verdict {
            outcome: judged.outcome,
            detail: judged.detail,
            at: now,
            port,
            generation: judged.generation,
            pid: None,
            answered: true,
        };
        self.book
            .enter(Kind::WebSocket, judged.due.unwrap_or(now), verdict);
    }
}
