//! `/ws`: answers each message by its number in this session, the generation, and itself.

use std::sync::Arc;

use bytes::Bytes;
use handoff::state::Counter;
use hello_server::BoxError;
use hello_server::upgrade::{InvalidSession, Protocol, Served, Upgraded};
use hello_server::websocket::{Event, Message, WebSocket};

/// Serves `/ws`. The session is the number of messages so far: eight bytes, little endian.
pub(crate) struct Numbered {
    pub(crate) generation: u64,
    pub(crate) hits: Arc<Counter>,
}

impl Protocol for Numbered {
    fn kind(&self) -> &str {
        "hello-ws/1"
    }

    async fn serve(
        &self,
        connection: Upgraded,
        resumed: Option<Vec<u8>>,
    ) -> Result<Served, BoxError> {
        let mut count = resumed.map_or(Ok(0), read)?;
        let mut socket = WebSocket::new(connection).await;
        loop {
            match socket.next().await? {
                Event::Message(message) => {
                    count += 1;
                    socket.send(self.answer(count, message)).await?;
                    self.hits.add(1);
                }
                Event::GiveUp => return Ok(socket.give_up(count.to_le_bytes())?),
                Event::Closed => return Ok(Served::closed()),
            }
        }
    }
}

impl Numbered {
    pub(super) fn answer(&self, count: u64, message: Message) -> Message {
        let prefix = format!("{count} {} ", self.generation);
        match message {
            Message::Text(text) => Message::Text(prefix + &text),
            Message::Binary(bytes) => {
                Message::Binary(Bytes::from([prefix.as_bytes(), &bytes].concat()))
            }
        }
    }
}

pub(super) fn read(session: Vec<u8>) -> Result<u64, InvalidSession> {
    let length = session.len();
    let bytes = session
        .try_into()
        .map_err(|_| InvalidSession(format!("{length} bytes, where the count takes eight")))?;
    Ok(u64::from_le_bytes(bytes))
}
