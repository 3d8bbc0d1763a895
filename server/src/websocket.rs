//! WebSocket (RFC 6455) on upgraded connections that move to the next generation.
//!
//! # Contract
//!
//! [`accept`] checks a request and begins a session of a [`Protocol`](crate::upgrade::Protocol); in its `serve`, a [`WebSocket`]
//! says by [`WebSocket::next`] what the client sent, and when to give the session up: [`Event::GiveUp`] comes only at rest, between
//! two messages, with all answers written.
//!
//! ```
//! use hello_server::upgrade::{Protocol, Served, Upgraded};
//! use hello_server::websocket::{Event, Message, WebSocket};
//! use hello_server::BoxError;
//!
//! /// Numbers what it is told.
//! struct Chat;
//!
//! impl Protocol for Chat {
//!     fn kind(&self) -> &str {
//!         "chat/1"
//!     }
//!
//!     async fn serve(&self, connection: Upgraded, resumed: Option<Vec<u8>>) -> Result<Served, BoxError> {
//!         let mut count = match resumed {
//!             Some(session) => u64::from_le_bytes(session.as_slice().try_into()?),
//!             None => 0,
//!         };
//!         let mut socket = WebSocket::new(connection).await;
//!         loop {
//!             match socket.next().await? {
//!                 Event::Message(Message::Text(text)) => {
//!                     count += 1;
//!                     socket.send(Message::Text(format!("{count} {text}"))).await?;
//!                 }
//!                 Event::Message(Message::Binary(_)) => {}
//!                 Event::GiveUp => return Ok(socket.give_up(count.to_le_bytes())?),
//!                 Event::Closed => return Ok(Served::closed()),
//!             }
//!         }
//!     }
//! }
//! ```
//!
//! # Failure rules
//!
//! - What breaks RFC 6455 (an unmasked frame, reserved bits, a text that is not UTF-8) is answered by a Close frame with code 1002 or 1007, too
//!   long a message by 1009; then the connection is closed.
//! - When nobody takes the session over, the client is told by a Close frame: 1012 ("service restart") if this process was replaced, 1001
//!   ("going away") if it is being stopped. What the client sends after that is not given to the application, which
//!   could not answer it; the client knows that it was not answered. A client that does not answer the Close is cut at the drain deadline.
//! - A session in the middle of a message, or in its closing handshake, does not move: the former when the message is complete, the latter
//!   is finished here.

use std::{future::Future, io, pin::Pin, task::Poll};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::task::coop::unconstrained;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::upgrade::{Served, Upgraded, Want, Wants};

mod frames;
mod handshake;

pub(crate) use frames::{Frames, Head};
pub use handshake::{NotWebSocket, accept, answer};

/// The longest message that is taken unless the application says otherwise, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// The code of a Close frame: this process is replaced; connect anew. (IANA's registry; RFC 6455 has no such code.)
pub(crate) const SERVICE_RESTART: u16 = 1012;

/// The code of a Close frame: the service is being stopped (RFC 6455, section 7.4.1).
pub(crate) const GOING_AWAY: u16 = 1001;

/// What the library reads at a time, in bytes; kept for each connection. Longer messages get the room they need.
const READ_BYTES: usize = 4 * 1024;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Valid UTF-8.
    Text(String),
    /// Any bytes.
    Binary(Bytes),
}

/// What [`WebSocket::next`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Event {
    /// The client sent this.
    Message(Message),
    /// The process has a successor, and the session rests: return [`WebSocket::give_up`] from
    /// [`Protocol::serve`](crate::upgrade::Protocol::serve).
    GiveUp,
    /// The session has ended, by whichever side: drop it.
    Closed,
}

/// Why a session ended otherwise than by its closing handshake.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The client broke RFC 6455, or a limit. It was told which, by this code.
    #[error("closed with code {code}: {reason}")]
    Client {
        /// Of the Close frame that was sent.
        code: u16,
        /// What it did.
        reason: String,
    },
    /// [`WebSocket::give_up`] without [`Event::GiveUp`]: the session is in the middle of a message.
    #[error("the session is not at rest: give it up only when the last event was `GiveUp`")]
    NotAtRest,
}

/// A session with one client. Answers Ping and Close by itself, as long as [`WebSocket::next`] is called.
#[derive(Debug)]
pub struct WebSocket {
    stream: Sessions,
    wants: Wants,
    /// A Close frame was sent or received.
    is_closing: bool,
}

impl WebSocket {
    /// On a connection that has been upgraded, or taken up. Takes messages of [`MAX_MESSAGE`].
    pub async fn new(connection: Upgraded) -> Self {
        Self::with_max_message(connection, MAX_MESSAGE).await
    }

    /// Takes messages of `most` bytes.
    pub async fn with_max_message(connection: Upgraded, most: usize) -> Self {
        let wants = connection.wants();
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .max_message_size(Some(most))
            .max_frame_size(Some(most));
        let frames = Frames::new(connection);
        let stream = WebSocketStream::from_raw_socket(frames, Role::Server, Some(config)).await;
        Self {
            stream,
            wants,
            is_closing: false,
        }
    }

    /// What comes next. Cancel safe.
    ///
    /// # Errors
    /// [`Error`]; the session has ended then.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let want = self.wants.now();
            if want == Want::GiveUp && self.is_at_rest() {
                // The answer to a Ping may be left.
                self.stream.flush().await.map_err(broken)?;
                return Ok(Event::GiveUp);
            }
            let farewell = farewell(want).filter(|_| !self.is_closing);
            tokio::select! {
                biased;
                received = receive(&mut self.stream, farewell.is_some()) => match received {
                    Some(received) => {
                        if let Some(event) = self.take(received).await? {
                            return Ok(event);
                        }
                    }
                    None => {
                        if let Some((code, reason)) = farewell {
                            self.close(code, reason).await?;
                        }
                    }
                },
                _ = self.wants.changed() => {}
            }
        }
    }

    /// Sends a message, and waits until it is written. After a Close frame, sent or received, it is dropped: nobody would read it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn send(&mut self, message: Message) -> Result<(), Error> {
        if self.is_closing {
            return Ok(());
        }
        let message = match message {
            Message::Text(text) => tungstenite::Message::text(text),
            Message::Binary(bytes) => tungstenite::Message::binary(bytes),
        };
        self.stream.send(message).await.map_err(broken)
    }

    /// Says by a Close frame that this side ends the session; [`WebSocket::next`] then waits for the client's. `code`: RFC 6455, section 7.4.
    /// `reason`: at most 123 bytes; more are left out.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn close(&mut self, code: u16, reason: &str) -> Result<(), Error> {
        if std::mem::replace(&mut self.is_closing, true) {
            return Ok(());
        }
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: reason[..reason.floor_char_boundary(MAX_REASON)].into(),
        };
        self.stream.close(Some(frame)).await.map_err(broken)
    }

    /// Whether it is between two messages: nothing of one was read, and no Close frame was seen or sent.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        !self.is_closing && self.stream.get_ref().is_at_rest()
    }

    /// Gives the session up, after [`Event::GiveUp`], for the next generation to go on with.
    ///
    /// # Errors
    /// [`Error::NotAtRest`]; the session has ended then.
    pub fn give_up(self, session: impl Into<Vec<u8>>) -> Result<Served, Error> {
        if !self.is_at_rest() {
            return Err(Error::NotAtRest);
        }
        let (connection, unread) = self.stream.into_inner().into_parts();
        Ok(connection.give_up(unread, session.into()))
    }

    async fn take(&mut self, received: Option<Received>) -> Result<Option<Event>, Error> {
        let message = match received {
            None => return Ok(Some(Event::Closed)),
            Some(Ok(tungstenite::Message::Text(text))) => Message::Text(text.as_str().to_owned()),
            Some(Ok(tungstenite::Message::Binary(bytes))) => Message::Binary(bytes),
            Some(Ok(tungstenite::Message::Close(_))) => {
                // The answer to it is sent with the next read, which then says that it is all over.
                self.is_closing = true;
                return Ok(None);
            }
            Some(Ok(_)) => return Ok(None),
            Some(Err(error)) => return self.fail(error).await.map(Some),
        };
        Ok((!self.is_closing).then_some(Event::Message(message)))
    }

    /// The client broke a rule, or the connection.
    async fn fail(&mut self, error: tungstenite::Error) -> Result<Event, Error> {
        let code = match &error {
            tungstenite::Error::Capacity(_) => 1009,
            tungstenite::Error::Utf8(_) => 1007,
            tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            ) => return Ok(Event::Closed),
            tungstenite::Error::Protocol(_) => 1002,
            _ => return Err(broken(error)),
        };
        let reason = error.to_string();
        self.close(code, &reason).await?;
        Err(Error::Client { code, reason })
    }
}

type Sessions = WebSocketStream<Frames<Upgraded>>;

type Received = Result<tungstenite::Message, tungstenite::Error>;

/// The longest reason in a Close frame, in bytes (RFC 6455, section 5.5).
const MAX_REASON: usize = 123;

/// What the client is told, if nobody takes its session over.
fn farewell(want: Want) -> Option<(u16, &'static str)> {
    match want {
        Want::Serve | Want::GiveUp => None,
        Want::Finish => Some((SERVICE_RESTART, "service restart")),
        Want::Stop | Want::Cut => Some((GOING_AWAY, "going away")),
    }
}

/// What the client sends next; or `None`, if `unless_empty` and nothing has arrived.
async fn receive(stream: &mut Sessions, unless_empty: bool) -> Option<Option<Received>> {
    std::future::poll_fn(|cx| {
        // Unconstrained: `Pending` must not mean that it is only another task's turn.
        let received = Pin::new(&mut unconstrained(stream.next())).poll(cx);
        match received {
            Poll::Ready(received) => Poll::Ready(Some(received)),
            // The kernel is asked: tokio does not know yet of what came a moment ago, or before the connection moved.
            Poll::Pending if unless_empty && !stream.get_ref().get_ref().has_arrived() => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

fn broken(error: tungstenite::Error) -> Error {
    match error {
        tungstenite::Error::Io(error) => Error::Io(error),
        other => Error::Io(io::Error::other(other)),
    }
}

#[cfg(test)]
mod tests;
