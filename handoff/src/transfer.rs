//! The sending half of moving connections: what waits, what is on its way, what came back.
//!
//! They move from a parent to its child once that is confirmed, and from a child to its parent if it is revoked.
//! A connection that has been sent is inert. It becomes the receiver's with the ack; it comes back
//! if the receiver refused it by name or died without an ack; and it is dropped, served by nobody, if at
//! the deadline a living receiver has not said which.

use std::{collections::VecDeque, os::fd::OwnedFd, sync::Arc};

use tokio::sync::mpsc;

use crate::{
    changes,
    connections::{self, Sent},
    link::Link,
    live::ConnectionGuard,
    protocol::drain::Ledger,
    shared::{NotMoved, PassRequest, Returned, Shared},
    state::Deltas,
    wire::{BatchAck, Inherited, InheritedAck, MAX_FDS, Message},
};

#[derive(Debug)]
enum Item {
    Rest,
    Batch(Vec<Moving>),
    /// The channel of this older generation.
    Channel(u64),
    /// A batch that was not acknowledged by the deadline: the ack may come yet.
    Abandoned,
}

/// Why connections cannot be sent any more.
#[derive(Clone, Debug)]
enum Alone {
    /// There is nobody to send anything to.
    Gone(String),
    /// The drain deadline has passed. State is still sent.
    Deadline,
}

#[derive(Debug)]
struct Moving {
    sent: Sent,
    guard: ConnectionGuard,
    returned: Returned,
}

impl Moving {
    fn new(request: PassRequest) -> Self {
        Self {
            sent: Sent::new(request.connection),
            guard: request.guard,
            returned: request.returned,
        }
    }

    /// Nobody owns it but us.
    fn come_back(self, reason: String) {
        match self.sent.take_back() {
            Ok(connection) => {
                self.returned.call(NotMoved {
                    connection: Some((connection, self.guard)),
                    reason,
                });
            }
            Err(error) => {
                self.guard
                    .cut("a connection that came back without a descriptor");
                self.returned.call(NotMoved {
                    connection: None,
                    reason: error.to_string(),
                });
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Transfer {
    ledger: Ledger<Item>,
    waiting: VecDeque<Moving>,
    /// Channels of older generations, with their descriptors.
    channels: VecDeque<(Inherited, Vec<Arc<OwnedFd>>)>,
    /// What became of channels, by generation: whether the successor has it.
    passed: Vec<(u64, bool)>,
    alone: Option<Alone>,
    /// What the state had changed by before it was counted from anew: goes with the first rest.
    earlier: Deltas,
    /// To the parent, which is not waited for as older generations are.
    is_return: bool,
    /// The application was given its time to let go.
    gave_up: bool,
}

impl Transfer {
    /// From a parent to its child.
    pub(crate) fn new() -> Self {
        Self {
            ledger: Ledger::new(),
            waiting: VecDeque::new(),
            channels: VecDeque::new(),
            passed: Vec::new(),
            alone: None,
            earlier: Deltas::default(),
            is_return: false,
            gave_up: false,
        }
    }

    /// From a revoked child to its parent.
    pub(crate) fn back(earlier: Deltas) -> Self {
        Self {
            earlier,
            is_return: true,
            ..Self::new()
        }
    }

    /// Sends what waits, as far as it may; whether all is finished, passed or cut, and acknowledged.
    pub(crate) fn turn(&mut self, shared: &Shared, link: &mut Link) -> Result<bool, String> {
        self.send_waiting(shared, link)?;
        self.is_finished(shared, link)
    }

    /// The receiver is dead, and this process serves on: all is its own again, also what nobody has looked at yet.
    pub(crate) fn dissolve(
        mut self,
        reason: &str,
        pass: &mut Option<mpsc::UnboundedReceiver<PassRequest>>,
    ) {
        self.continue_alone(reason, true);
        for moving in self.waiting.drain(..) {
            moving.come_back(reason.to_owned());
        }
        while let Some(request) = pass.as_mut().and_then(|pass| pass.try_recv().ok()) {
            Moving::new(request).come_back(reason.to_owned());
        }
    }

    /// How many connections may be taken from the queue now.
    pub(crate) fn room(&self) -> usize {
        if self.alone.is_some() || self.ledger.has_room() {
            MAX_FDS.saturating_sub(self.waiting.len())
        } else {
            0
        }
    }

    /// How many connections have been sent without an ack so far.
    pub(crate) fn on_their_way(&self) -> u64 {
        let sent = self.ledger.unacked().map(|item| match item {
            Item::Batch(batch) => batch.len() as u64,
            Item::Rest | Item::Channel(_) | Item::Abandoned => 0,
        });
        sent.sum()
    }

    /// Takes what the application gives up. Cancel safe.
    pub(crate) async fn receive(
        &mut self,
        pass: &mut mpsc::UnboundedReceiver<PassRequest>,
        room: usize,
    ) {
        let mut requests = Vec::new();
        if pass.recv_many(&mut requests, room).await == 0 {
            std::future::pending::<()>().await;
        }
        for moving in requests.into_iter().map(Moving::new) {
            match moving.sent.check() {
                Ok(()) => self.waiting.push_back(moving),
                Err(reason) => moving.come_back(reason),
            }
        }
    }

    /// Sends what waits, as far as the window allows; or returns it.
    fn send_waiting(&mut self, shared: &Shared, link: &mut Link) -> Result<(), String> {
        if let Some(alone) = &self.alone {
            let reason = match alone {
                Alone::Gone(reason) => reason,
                Alone::Deadline => "the drain deadline",
            };
            for moving in self.waiting.drain(..) {
                moving.come_back(reason.to_owned());
            }
        }
        // Before our own: what they pass on need not come through here then.
        while self.ledger.has_room()
            && let Some((mut inherited, fds)) = self.channels.pop_front()
        {
            // What they have told us must be known there before their next word arrives.
            self.send_rest(shared, link)?;
            inherited.number = self.ledger.next_number();
            self.ledger.sent(Item::Channel(inherited.from.generation));
            link.say(&Message::Channel(inherited), fds)
                .map_err(|e| e.to_string())?;
        }
        while !self.waiting.is_empty() && self.is_worth_a_batch() {
            self.send_rest(shared, link)?;
            self.send_batch(link)?;
        }
        Ok(())
    }

    /// A batch that is not full waits for the ack of the one before: else a few connections, which come to rest
    /// while others are on their way, would take the place of a full one in the window.
    fn is_worth_a_batch(&self) -> bool {
        if !self.ledger.has_room() {
            return false;
        }
        let waiting = self.waiting.iter().map(|moving| &moving.sent);
        self.ledger.is_settled() || connections::is_full_batch(waiting)
    }

    /// Queues the channel of an older generation.
    pub(crate) fn pass_channel(&mut self, inherited: Inherited, fds: Vec<Arc<OwnedFd>>) {
        self.channels.push_back((inherited, fds));
    }

    /// What became of channels since the last call: the generation, and whether the successor has it.
    pub(crate) fn take_passed(&mut self) -> Vec<(u64, bool)> {
        std::mem::take(&mut self.passed)
    }

    pub(crate) fn channel_acked(&mut self, ack: InheritedAck) -> Result<(), String> {
        let InheritedAck { number, refused } = ack;
        match self.ledger.acked(number).map_err(|e| e.to_string())? {
            Item::Channel(generation) => {
                if let Some(reason) = &refused {
                    tracing::warn!(
                        generation,
                        reason,
                        "the successor did not take an older generation's channel; it goes on draining into this one"
                    );
                }
                self.passed.push((generation, refused.is_none()));
                Ok(())
            }
            item => Err(wrong_kind(item, number)),
        }
    }

    /// The state that changed: it goes before every connection whose requests it covers. Says
    /// whether there was any.
    pub(crate) fn send_rest(&mut self, shared: &Shared, link: &mut Link) -> Result<bool, String> {
        let mut deltas = std::mem::take(&mut self.earlier);
        deltas.sections.extend(shared.deltas().sections);
        if deltas.is_empty() {
            return Ok(false);
        }
        match changes::pack(deltas) {
            Ok((changes, fds)) => {
                let rest = crate::wire::Rest {
                    number: self.ledger.next_number(),
                    changes,
                };
                self.ledger.sent(Item::Rest);
                link.say(&Message::Rest(rest), fds)
                    .map_err(|e| e.to_string())?;
            }
            // Counted and logged, never fatal: the connections are worth more.
            Err(reason) => tracing::error!(reason, "state that changed after the commit is lost"),
        }
        Ok(true)
    }

    fn send_batch(&mut self, link: &mut Link) -> Result<(), String> {
        let size = connections::batch_size(self.waiting.iter().map(|moving| &moving.sent));
        if size == 0 {
            return Ok(());
        }
        let mut batch: Vec<Moving> = self.waiting.drain(..size).collect();
        let mut sent: Vec<&mut Sent> = batch.iter_mut().map(|moving| &mut moving.sent).collect();
        match connections::pack(self.ledger.next_number(), &mut sent) {
            Ok((message, fds)) => {
                let said = link.say(&message, fds);
                connections::unpacked(message, batch.iter_mut().map(|moving| &mut moving.sent));
                self.ledger.sent(Item::Batch(batch));
                said.map_err(|e| e.to_string())
            }
            Err(error) => {
                for moving in batch {
                    moving.come_back(format!("cannot send it: {error}"));
                }
                Ok(())
            }
        }
    }

    pub(crate) fn rest_acked(&mut self, number: u64) -> Result<(), String> {
        match self.ledger.acked(number).map_err(|e| e.to_string())? {
            Item::Rest => Ok(()),
            item => Err(wrong_kind(item, number)),
        }
    }

    pub(crate) fn conn_acked(&mut self, ack: BatchAck) -> Result<(), String> {
        let number = ack.number;
        let batch = match self.ledger.acked(number).map_err(|e| e.to_string())? {
            Item::Batch(batch) => batch,
            // Served there or not: it is cut here.
            Item::Abandoned => return Ok(()),
            item => return Err(wrong_kind(item, number)),
        };
        let mut refused = ack.refused.into_iter().peekable();
        for (place, moving) in (0_u32..).zip(batch) {
            match refused.next_if(|(refused, _)| *refused == place) {
                Some((_, reason)) => {
                    tracing::warn!(
                        reason,
                        "the other generation did not take a connection; it is served here"
                    );
                    moving.come_back(reason);
                }
                // Closing our copy and dropping the answer's sender say that it has moved.
                None => moving.guard.moved(),
            }
        }
        match refused.next() {
            Some((place, _)) => Err(format!("an ack that refuses place {place} out of order")),
            None => Ok(()),
        }
    }

    /// The child is gone and was heard to the end, or is not to be believed any more.
    pub(crate) fn continue_alone(&mut self, reason: &str, child_is_dead: bool) {
        self.alone = Some(Alone::Gone(reason.to_owned()));
        for item in self.ledger.take_back() {
            match item {
                Item::Rest => {
                    tracing::error!(reason, "state that changed after the commit is lost");
                }
                Item::Batch(batch) if child_is_dead => {
                    batch
                        .into_iter()
                        .for_each(|moving| moving.come_back(reason.to_owned()));
                }
                Item::Batch(batch) => lose(batch),
                // The succession lets go of it: the older generation then learns of its end.
                Item::Channel(_) | Item::Abandoned => {}
            }
        }
        self.channels.clear();
    }

    /// The deadline: a living child may serve what it did not acknowledge, so nobody else does.
    pub(crate) fn abandon_unacked(&mut self) {
        self.alone.get_or_insert(Alone::Deadline);
        for item in self.ledger.unacked_mut() {
            if matches!(item, Item::Batch(_))
                && let Item::Batch(batch) = std::mem::replace(item, Item::Abandoned)
            {
                lose(batch);
            }
        }
    }

    /// Nothing is waited for any more.
    pub(crate) fn give_up(&mut self) {
        self.gave_up = true;
    }

    /// Whether all is finished, passed or cut, and acknowledged. Sends the last rest.
    fn is_finished(&mut self, shared: &Shared, link: &mut Link) -> Result<bool, String> {
        if self.gave_up {
            return Ok(true);
        }
        if !shared.live.is_none() || (shared.has_upstream() && !self.is_return) {
            return Ok(false);
        }
        if matches!(self.alone, Some(Alone::Gone(_))) {
            return Ok(true);
        }
        // The state that the last connections changed, also those that were cut.
        Ok(self.ledger.is_settled() && !self.send_rest(shared, link)?)
    }
}

/// Moves what the application gives up from its queue to the transfer. Cancel safe.
pub(crate) async fn receive(
    pass: &mut Option<mpsc::UnboundedReceiver<PassRequest>>,
    transfer: &mut Option<Transfer>,
    room: usize,
) {
    match (pass, transfer) {
        (Some(pass), Some(transfer)) => transfer.receive(pass, room).await,
        _ => std::future::pending().await,
    }
}

fn wrong_kind(item: Item, number: u64) -> String {
    if let Item::Batch(batch) = item {
        lose(batch);
    }
    format!("an ack of the wrong kind for {number}")
}

fn lose(batch: Vec<Moving>) {
    for moving in batch {
        moving.guard.cut("handed over without an answer");
        moving.returned.call(NotMoved {
            connection: None,
            reason: "not acknowledged".to_owned(),
        });
    }
}
