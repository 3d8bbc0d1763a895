//! What both sides do after the commit: numbered items, each owned by exactly one process.
//!
//! The sender keeps what it has sent, inert, until the receiver says "I own it" or is
//! dead and its channel read to the end. The receiver processes in order and acks in order, so that an
//! ack that skips a number is a broken protocol and not a matter of taste.

use std::collections::VecDeque;

/// How many items may be without an ack: enough to hide the round trip, few enough that the descriptors in
/// flight (253 a batch) stay far below the default limit of 1024 that the kernel sets on them for each user.
pub(crate) const WINDOW: usize = 3;

/// A number that was not due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("number {got} where {due} was due")]
pub(crate) struct OutOfOrder {
    pub(crate) got: u64,
    pub(crate) due: u64,
}

/// The sending side. `T` is what is kept until the ack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ledger<T> {
    last: u64,
    unacked: VecDeque<(u64, T)>,
}

impl<T> Ledger<T> {
    pub(crate) fn new() -> Self {
        Self {
            last: 0,
            unacked: VecDeque::new(),
        }
    }

    /// Whether another item may be sent before an ack has come.
    pub(crate) fn has_room(&self) -> bool {
        self.unacked.len() < WINDOW
    }

    /// Whether everything is acked.
    pub(crate) fn is_settled(&self) -> bool {
        self.unacked.is_empty()
    }

    /// The number that the next item will have.
    pub(crate) fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// The item is on its way, under [`next_number`](Self::next_number).
    pub(crate) fn sent(&mut self, item: T) {
        self.last += 1;
        self.unacked.push_back((self.last, item));
    }

    /// The receiver owns what it took of this item.
    pub(crate) fn acked(&mut self, number: u64) -> Result<T, OutOfOrder> {
        match self.unacked.pop_front() {
            Some((due, item)) if due == number => Ok(item),
            Some((due, item)) => {
                self.unacked.push_front((due, item));
                Err(OutOfOrder { got: number, due })
            }
            None => Err(OutOfOrder {
                got: number,
                due: self.last + 1,
            }),
        }
    }

    /// What is not acked.
    pub(crate) fn unacked(&self) -> impl Iterator<Item = &T> {
        self.unacked.iter().map(|(_, item)| item)
    }

    /// The same, to be marked.
    pub(crate) fn unacked_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.unacked.iter_mut().map(|(_, item)| item)
    }

    /// The receiver is dead and has been heard to the end: what it did not ack is the sender's.
    pub(crate) fn take_back(&mut self) -> Vec<T> {
        self.unacked.drain(..).map(|(_, item)| item).collect()
    }
}

/// The receiving side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Sequence {
    last: u64,
}

impl Sequence {
    /// What another process has received so far.
    pub(crate) fn after(last: u64) -> Self {
        Self { last }
    }

    /// The number of the last item.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// An item arrived under this number.
    pub(crate) fn received(&mut self, number: u64) -> Result<(), OutOfOrder> {
        let due = self.last + 1;
        if number != due {
            return Err(OutOfOrder { got: number, due });
        }
        self.last = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_owned_by_one_side() {
        let mut ledger = Ledger::new();
        let mut sequence = Sequence::default();
        for item in ["a", "b", "c"] {
            assert!(ledger.has_room());
            sequence.received(ledger.next_number()).unwrap();
            ledger.sent(item);
        }
        assert!(!ledger.has_room());
        assert_eq!(ledger.acked(1), Ok("a"));
        assert_eq!(ledger.acked(3), Err(OutOfOrder { got: 3, due: 2 }));
        assert_eq!(ledger.take_back(), ["b", "c"]);
        assert!(ledger.is_settled());
        assert_eq!(ledger.acked(2), Err(OutOfOrder { got: 2, due: 4 }));
    }

    #[test]
    fn an_item_is_not_received_twice() {
        let mut sequence = Sequence::default();
        sequence.received(1).unwrap();
        assert_eq!(sequence.received(1), Err(OutOfOrder { got: 1, due: 2 }));
        assert_eq!(sequence.received(3), Err(OutOfOrder { got: 3, due: 2 }));
        sequence.received(2).unwrap();
    }
}
