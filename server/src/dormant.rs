//! A connection of which nobody has said a word lately: a socket, and a task that waits for it.
//!
//! hyper keeps buffers of 16 KiB and its own state for a connection that rests; most connections of most servers
//! do nothing else. Where nothing has been read ahead, none of it is needed until the client speaks: so hyper begins
//! with the first byte, and ends once nothing has come for [`crate::clock::LOOK_AFTER`]. For as long again the task waits by itself;
//! after that the connection goes to the [pool](crate::pool), where it has no task either.
//!
//! Failure rules: what the kernel has of a request is never taken for silence. Before a connection is closed
//! its queue is looked into; one with a byte in it is woken, and judged like any other.

use std::{future::poll_fn, pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    clock::FOREVER,
    connection::{Config, Order},
    io::{AskKernel, Queue, Stream},
};

/// What ends the sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The client has sent something, or its end.
    Bytes,
    /// It is to be handed over.
    GiveUp,
    /// It is to be closed, and nothing has come: because of an order, or of the idle timeout.
    Close,
    /// Nothing has come for as long as the task is to wait, and nothing was ordered.
    Silence,
    /// [`Order::Cut`].
    Cut,
}

/// Waits on a connection that rests since `since`, for no longer than `patience` from now on while nothing is ordered. Nothing was
/// read ahead of it.
pub(crate) async fn sleep(
    stream: &Stream,
    since: Instant,
    patience: Duration,
    config: &Config,
    orders: &mut watch::Receiver<Order>,
) -> Wake {
    let due = since
        .checked_add(config.idle_timeout)
        .unwrap_or_else(|| Instant::now() + FOREVER);
    let silent = Instant::now() + patience;
    let mut timer = pin!(sleep_until(due.min(silent)));
    let close = || match stream.queue() {
        Queue::Empty => Wake::Close,
        Queue::Bytes | Queue::Ended => Wake::Bytes,
    };
    loop {
        match *orders.borrow_and_update() {
            Order::Serve | Order::LastAnswer => {}
            Order::HandOver => return Wake::GiveUp,
            Order::Close => return close(),
            Order::Cut => return Wake::Cut,
        }
        tokio::select! {
            biased;
            () = poll_fn(|cx| stream.poll_spoken(cx)) => return Wake::Bytes,
            () = &mut timer => {
                if Instant::now() >= due {
                    return close();
                }
                if *orders.borrow() == Order::Serve {
                    return Wake::Silence;
                }
                timer.as_mut().reset(due);
            }
            ordered = orders.changed() => {
                if ordered.is_err() {
                    // No order will come any more.
                    return Wake::Bytes;
                }
            }
        }
    }
}
