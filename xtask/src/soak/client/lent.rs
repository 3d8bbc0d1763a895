//! A request on a connection that rests without hyper, which has it for that time only.
//!
//! What ends while it is lent is judged as on any other connection. It comes back only if the
//! answer was complete, the connection is to stay open, and nothing came behind the answer.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::super::outcome::{Outcome, Verdict};
use super::super::request::Ask;
use super::super::tap::{Record, Tap};
use super::{Client, Connection, Exchange, Socket, chain};

impl Client {
    /// One request on a connection that rests outside of hyper, which comes back if it is still open.
    pub(crate) async fn lend(&self, lent: Socket, ask: Ask) -> (Exchange, Option<Socket>) {
        let Socket {
            socket,
            port,
            floor,
        } = lent;
        let record = Record::new();
        let tap = TokioIo::new(Tap::new(socket, Arc::clone(&record)));
        let (sender, driver) = match http1::handshake(tap).await {
            Ok(parts) => parts,
            Err(err) => {
                let lost = Verdict::lost(Outcome::Protocol, port, chain(&err));
                return (Exchange::Done(lost), None);
            }
        };
        let mut connection = Connection {
            sender,
            record,
            port,
            floor,
            fresh: false,
            reusable: true,
        };
        let (mut driver, mut ended) = (Some(driver), None);
        let exchange = {
            let mut asked = pin!(self.exchange(&mut connection, ask));
            std::future::poll_fn(|cx| {
                // Dropped when it is done: only then does hyper refuse what it has not sent.
                if let Some(driven) = &mut driver
                    && let Poll::Ready(result) = driven.poll_without_shutdown(cx)
                {
                    ended = result.err().map(|err| chain(&err));
                    driver = None;
                }
                asked.as_mut().poll(cx)
            })
            .await
        };
        let Some(driver) = driver.filter(|_| connection.reusable) else {
            // Judged as open, and it is not: for instance because bytes came behind the answer.
            if connection.record.finish() {
                let detail = ended.unwrap_or_else(|| "hyper ended it after the answer".into());
                self.book.closed(ask.kind, port, detail);
            }
            return (exchange, None);
        };
        let parts = driver.into_parts();
        if !parts.read_buf.is_empty() {
            let detail = format!("{} bytes came after the answer", parts.read_buf.len());
            self.book.closed(ask.kind, port, detail);
            return (exchange, None);
        }
        let socket = Socket {
            socket: parts.io.into_inner().into_inner(),
            port,
            floor,
        };
        (exchange, Some(socket))
    }
}
