//! The receiving half of what moves between two generations, whichever way it moves: state that changed, and
//! connections.
//!
//! An ack means "I own it": the application gets a connection only once its ack is written, or once the sender is
//! dead and can take up nothing any more.

use std::{
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    changes,
    connections::{self, Connection, Unpacked},
    link::Link,
    protocol::drain::Sequence,
    shared::{Adopted, Shared},
    state::Deltas,
    wire::{Batch, BatchAck, Message, Rest},
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Who sends, in words.
    from: &'static str,
    sequence: Sequence,
    /// Connections whose acks are not written yet.
    arrived: Vec<Connection>,
}

impl Intake {
    pub(crate) fn new(from: &'static str) -> Self {
        Self {
            from,
            sequence: Sequence::default(),
            arrived: Vec::new(),
        }
    }

    /// From a parent of which another process has received so much.
    pub(crate) fn after(last: u64) -> Self {
        Self {
            sequence: Sequence::after(last),
            ..Self::new("the parent")
        }
    }

    /// The number of the last item.
    pub(crate) fn last(&self) -> u64 {
        self.sequence.last()
    }

    /// An item arrived under this number.
    pub(crate) fn received(&mut self, number: u64) -> Result<(), String> {
        self.sequence.received(number).map_err(|e| e.to_string())
    }

    pub(crate) fn take_rest(
        &mut self,
        shared: &Shared,
        link: &mut Link,
        rest: Rest,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let number = rest.number;
        self.received(number)?;
        match changes::unpack(rest.changes, fds) {
            Ok(deltas) => absorb(shared, &deltas),
            // Never fatal: what else the sender has is worth more.
            Err(error) => tracing::error!(error, "state that changed after the commit is lost"),
        }
        say(link, &Message::RestAck { number })
    }

    /// How many connections of the batch are now this process's.
    pub(crate) fn take_batch(
        &mut self,
        shared: &Shared,
        link: &mut Link,
        batch: Batch,
        fds: Vec<OwnedFd>,
        missing: usize,
    ) -> Result<usize, String> {
        let number = batch.number;
        self.received(number)?;
        let Unpacked { adopted, refused } =
            connections::unpack(batch, fds, missing, &shared.kinds())?;
        if !refused.is_empty() {
            tracing::warn!(
                refused = refused.len(),
                adopted = adopted.len(),
                reason = refused[0].1,
                "connections stay with {}",
                self.from
            );
        }
        // "I own these": said before anything is done with them.
        say(link, &Message::ConnAck(BatchAck { number, refused }))?;
        let count = adopted.len();
        self.arrived.extend(adopted);
        self.give(shared, link);
        Ok(count)
    }

    /// Gives the application what is acknowledged. An ack that waits to be written is none yet: should this
    /// process end before that, the sender serves the connection.
    pub(crate) fn give(&mut self, shared: &Shared, link: &Link) {
        if !link.is_pending() {
            self.give_all(shared);
        }
    }

    /// The same, of a sender that is dead: nobody else will serve them.
    pub(crate) fn give_all(&mut self, shared: &Shared) {
        for connection in self.arrived.drain(..) {
            let guard = shared.live.connection();
            // Fails only if nobody will ever serve them: then they close here.
            let _ = shared.adopted.send(Adopted { connection, guard });
        }
    }
}

/// Merges what another generation has changed. What cannot be read is lost and logged, never fatal.
pub(crate) fn absorb(shared: &Shared, deltas: &Deltas) {
    let sections = shared.sections();
    let absorbed = catch_unwind(AssertUnwindSafe(|| deltas.absorb(&sections)));
    let errors = absorbed.unwrap_or_else(|_| {
        tracing::error!(
            "a section of the state has panicked: what another generation changed in it is lost"
        );
        Vec::new()
    });
    for error in errors {
        let error = crate::words(&error);
        tracing::error!(error, "state that changed after the snapshot is lost");
    }
}

fn say(link: &mut Link, message: &Message) -> Result<(), String> {
    link.say(message, vec![]).map_err(|e| e.to_string())
}
