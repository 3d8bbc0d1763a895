//! Tells the client of a WebSocket whose application knows nothing of reloads that its session ends.
//!
//! # Contract
//!
//! Such a session cannot move. So that the client learns why it ends, and connects anew to the next generation, a Close frame is
//! sent for the application once the process drains: by [`Outgoing`], which follows the frames that the application writes and speaks
//! between two of them (a control frame may come between the fragments of a message: RFC 6455, section 5.4). What the application
//! writes afterwards is swallowed, as a Close frame is the last of a session. The application then reads the client's
//! answer, a Close frame, and ends as with any client that closes.
//!
//! # Failure rules
//!
//! - It speaks when the application reads or writes next; an application that does neither is waited for, and cut at the drain
//!   deadline.
//! - An application that has sent a Close frame of its own is left alone.

use std::{cell::Cell, sync::Arc};

use crate::{exchange::Shared, websocket::Head};

/// The longest head of a frame, in bytes.
const MAX_HEAD: usize = 14;

/// Where an application is in the frames that it writes.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Of a frame, as far as it is not complete.
    head: Vec<u8>,
    /// What is to come of the frame, in bytes.
    open: u64,
    /// The application has sent a Close frame.
    has_closed: bool,
    /// Ours, as far as it is not written. `Some`, and empty at last, once we have begun to speak.
    farewell: Option<Vec<u8>>,
}

impl Outgoing {
    /// Whether a frame may be put in here.
    pub(crate) fn may_speak(&self) -> bool {
        self.head.is_empty() && self.open == 0 && !self.has_closed && self.farewell.is_none()
    }

    /// Our frame is to be written now.
    pub(crate) fn speak(&mut self, code: u16) {
        let [high, low] = code.to_be_bytes();
        self.farewell = Some(vec![0x88, 2, high, low]);
    }

    /// What is to be written of our frame before anything else; `None` if it is not our turn, or all is written.
    pub(crate) fn unwritten(&mut self) -> Option<&mut Vec<u8>> {
        self.farewell.as_mut().filter(|frame| !frame.is_empty())
    }

    /// So much of our frame was written.
    pub(crate) fn left(&mut self, mut frame: Vec<u8>, written: usize) {
        frame.drain(..written);
        self.farewell = Some(frame);
    }

    /// Nothing that the application writes counts any more.
    pub(crate) fn has_spoken(&self) -> bool {
        self.farewell.is_some()
    }

    /// How much of `bytes` comes before the next boundary between frames, at most.
    pub(crate) fn until_boundary(&self, bytes: &[u8]) -> usize {
        if self.head.is_empty() && self.open == 0 {
            let Some(head) = Head::parse(bytes) else {
                return bytes.len();
            };
            return least(head.length, bytes);
        }
        if self.open > 0 {
            return least(self.open, bytes);
        }
        let seen = self.head.len();
        let whole = [&self.head, &bytes[..bytes.len().min(MAX_HEAD)]].concat();
        Head::parse(&whole).map_or(bytes.len(), |head| least(head.length - seen as u64, bytes))
    }

    /// The application has written `bytes`.
    pub(crate) fn wrote(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.open == 0 {
                let (first, rest) = bytes.split_at(1);
                self.head.extend_from_slice(first);
                bytes = rest;
                if let Some(head) = Head::parse(&self.head) {
                    self.open = head.length - self.head.len() as u64;
                    self.has_closed |= head.is_close;
                    self.head.clear();
                }
            } else {
                let length = least(self.open, bytes);
                self.open -= length as u64;
                bytes = &bytes[length..];
            }
        }
    }
}

fn least(length: u64, bytes: &[u8]) -> usize {
    usize::try_from(length).map_or(bytes.len(), |length| length.min(bytes.len()))
}

thread_local! {
    /// Whose hyper this thread is in.
    static HYPER: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// While it lives, this thread is in hyper, for one connection.
///
/// The head of the answer that switches protocols is hyper's, what follows is the application's, and both write to the same socket, from
/// different tasks. hyper tells nobody when it lets go; but it writes only when it is polled.
pub(crate) struct InHyper;

impl InHyper {
    pub(crate) fn enter(shared: &Arc<Shared>) -> Self {
        HYPER.set(Arc::as_ptr(shared));
        Self
    }

    /// Whether hyper is at work for this connection.
    pub(crate) fn is(shared: &Arc<Shared>) -> bool {
        HYPER.get() == Arc::as_ptr(shared)
    }
}

impl Drop for InHyper {
    fn drop(&mut self) {
        HYPER.set(std::ptr::null());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        match length {
            0..=125 => bytes.push(length as u8),
            126..=0xffff => {
                bytes.push(126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.resize(bytes.len() + length, 0xff);
        bytes
    }

    /// Each boundary is found, wherever the application's writes end.
    #[test]
    fn boundaries_are_found() {
        let frames = [
            frame(1, 0),
            frame(2, 1),
            frame(1, 125),
            frame(0, 126),
            frame(2, 70_000),
            frame(9, 3),
        ];
        let all = frames.concat();
        let mut ends: Vec<usize> = frames.iter().map(Vec::len).collect();
        (1..ends.len()).for_each(|place| ends[place] += ends[place - 1]);
        for step in [1, 2, 3, 7, 100, 4096, all.len()] {
            let mut outgoing = Outgoing::default();
            let (mut place, mut found) = (0, Vec::new());
            while place < all.len() {
                let next = &all[place..all.len().min(place + step)];
                let length = outgoing.until_boundary(next);
                assert!(length > 0);
                outgoing.wrote(&next[..length]);
                place += length;
                if outgoing.may_speak() {
                    found.push(place);
                }
            }
            assert_eq!(found, ends, "in steps of {step}");
        }
    }

    #[test]
    fn an_application_that_has_closed_is_left_alone() {
        let mut outgoing = Outgoing::default();
        outgoing.wrote(&frame(8, 2));
        assert!(!outgoing.may_speak());
    }

    #[test]
    fn it_speaks_once() {
        let mut outgoing = Outgoing::default();
        outgoing.speak(1012);
        assert_eq!(outgoing.unwritten().unwrap(), &[0x88, 2, 3, 0xf4]);
        outgoing.unwritten().unwrap().clear();
        assert!(outgoing.unwritten().is_none() && outgoing.has_spoken() && !outgoing.may_speak());
    }
}
