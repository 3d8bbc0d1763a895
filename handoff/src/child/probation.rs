//! A child on probation: what its parent asks, what an operator says, and how it gives everything back if it is revoked.
//!
//! It gives back by the same [`Transfer`] by which a parent passes on. Nothing is closed before its end: should the parent
//! die meanwhile, this process serves again, with what was not acknowledged.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{ChildDriver, Effect};
use crate::{
    control::message::Generation,
    process::Signal,
    protocol::{
        self, Timer,
        child::{Event, State},
    },
    shared::{PassRequest, Phase, Turn},
    transfer::Transfer,
    wire::{Decision, Health, Message},
};

/// The longest reason for which a child is not well, in bytes.
const MAX_ILLNESS: usize = 1024;

/// What comes back from a task of the driver's own.
#[derive(Debug)]
pub(super) enum Inner {
    /// The answer to this question after the health.
    Health { number: u64, ill: Option<String> },
    /// The `retired` hook of a revoked child has ended, or has had its time.
    Retired { in_time: bool },
}

impl ChildDriver {
    /// How long this process is on probation yet; `None` if it is not.
    pub(crate) fn probation_left(&self) -> Option<Duration> {
        let ends = self.probation_ends?;
        (self.machine.state() == State::Probation)
            .then(|| ends.saturating_duration_since(Instant::now()))
    }

    /// The parent, as long as it can still come back, and the reload.
    pub(crate) fn judge(&self) -> Option<(Generation, u64)> {
        let parent = self.parent?;
        (self.machine.state() == State::Probation).then_some((parent, self.reload))
    }

    /// Carries an operator's word to the parent, which decides.
    pub(crate) fn decide(&mut self, decision: Decision) -> Result<(), String> {
        self.say(&Message::Decide(decision), vec![])
    }

    /// What the application gives up, since [`Effect::Returning`].
    pub(crate) fn return_by(&mut self, pass: mpsc::UnboundedReceiver<PassRequest>) {
        self.pass = Some(pass);
    }

    /// The same, since [`Effect::Resumed`].
    pub(crate) fn take_pass(&mut self) -> Option<mpsc::UnboundedReceiver<PassRequest>> {
        self.pass.take()
    }

    /// Sends a signal on to the parent, which serves again.
    pub(crate) fn forward(&self, signal: Signal) {
        if let Err(error) = self.link.peer.signal(signal) {
            tracing::warn!(%error, "cannot pass the signal on to the parent");
        }
    }

    /// By the parent's clock and words: it is the one that judges.
    pub(super) fn probation(&self) -> Duration {
        // A parent that has died judges nobody.
        let offer = self.offer.as_ref().filter(|_| !self.orphaned);
        offer.map_or(Duration::ZERO, |offer| {
            Duration::from_millis(offer.probation_ms)
        })
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.offer
            .as_ref()
            .map_or(self.shared.settings.drain_timeout, |offer| {
                Duration::from_millis(offer.drain_timeout_ms)
            })
    }

    /// Asks the application whether it is well, in a task of its own: one that hangs, or panics, is not.
    pub(super) fn examine(&mut self) -> Result<(), String> {
        let number = self.asked;
        let Some(hook) = self.shared.settings.hooks.health.clone() else {
            let well = Health::Answer { number, ill: None };
            return self.say(&Message::Health(well), vec![]);
        };
        let inbox = self.inbox_tx.clone();
        tokio::spawn(async move {
            let mut examination = tokio::spawn(async move { hook().await });
            let ill = match timeout(protocol::HEALTH_TIMEOUT, &mut examination).await {
                Ok(Ok(Ok(()))) => None,
                Ok(Ok(Err(mut reason))) => {
                    reason.truncate(reason.floor_char_boundary(MAX_ILLNESS));
                    Some(reason)
                }
                Ok(Err(_)) => Some("the health hook has panicked".to_owned()),
                Err(_) => {
                    examination.abort();
                    let limit = protocol::HEALTH_TIMEOUT;
                    Some(format!("the health hook did not return within {limit:?}"))
                }
            };
            let _ = inbox.send(Inner::Health { number, ill });
        });
        Ok(())
    }

    pub(super) fn inner(&mut self, inner: Inner) -> Option<Event> {
        match inner {
            Inner::Health { number, ill } => {
                if self.machine.state() == State::Probation
                    && let Err(error) =
                        self.say(&Message::Health(Health::Answer { number, ill }), vec![])
                {
                    tracing::error!(error, "cannot speak to the parent");
                }
                None
            }
            Inner::Retired { in_time } => {
                let was_retiring = std::mem::take(&mut self.is_retiring);
                if !in_time {
                    tracing::error!(
                        "the `retired` hook of this revoked generation does not return"
                    );
                }
                (was_retiring && in_time).then_some(Event::Retired)
            }
        }
    }

    /// Revoked: what this process has goes back to its parent, which accepts already.
    pub(super) fn begin_return(&mut self, effects: &mut Vec<Effect>) {
        tracing::warn!(
            generation = self.shared.identity().generation,
            connections = self.shared.live.connections(),
            "revoked by the parent; returning what there is"
        );
        self.shared.live.leave();
        self.shared.set_phase(Phase::Returning);
        self.shared.pause_control();
        self.is_retiring = true;
        let retired = self.shared.call(Turn::Retired);
        let inbox = self.inbox_tx.clone();
        tokio::spawn(async move {
            // A hook that panicked has ended, too.
            let in_time = timeout(protocol::RETIRE_TIMEOUT, retired).await.is_ok();
            let _ = inbox.send(Inner::Retired { in_time });
        });
        self.transfer = Some(Transfer::back(std::mem::take(&mut self.earlier)));
        let drain = self.drain_timeout().max(protocol::MIN_DRAIN);
        self.link.timers.start(Timer::Drain, drain);
        effects.push(Effect::Returning);
    }

    /// Sends what is to be returned; whether nothing is left of it, or no time.
    pub(super) fn has_returned(&mut self) -> bool {
        let Some(transfer) = &mut self.transfer else {
            return false;
        };
        let finished = transfer
            .turn(&self.shared, &mut self.link)
            .unwrap_or_else(|reason| {
                // The parent hears no more, and will kill us.
                transfer.continue_alone(&reason, false);
                false
            });
        let is_over = (finished || self.is_late) && !self.is_retiring;
        is_over && self.machine.state() == State::Returning
    }

    /// An ack of the parent's, to a revoked child.
    pub(super) fn acked(
        &mut self,
        take: impl FnOnce(&mut Transfer) -> Result<(), String>,
    ) -> Option<Event> {
        match self.transfer.as_mut().map(take) {
            Some(Ok(())) => None,
            Some(Err(reason)) => Some(Event::Broken(reason)),
            None => Some(Event::Broken("an ack where nothing was sent".to_owned())),
        }
    }

    /// The time to return things has passed: what is under way ends with this process.
    pub(super) fn cut(&mut self) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        transfer.abandon_unacked();
        self.shared.live.cut_all();
        if let Err(error) = transfer.send_rest(&self.shared, &mut self.link) {
            tracing::error!(error, "state that changed after the commit is lost");
        }
        self.is_late = true;
    }

    /// The parent has died while it was given everything back: what is still here is served here.
    pub(super) fn resume(&mut self, effects: &mut Vec<Effect>) {
        self.link.timers.cancel(Timer::Drain);
        self.is_retiring = false;
        self.shared.live.stay();
        self.shared.set_phase(Phase::Serving);
        self.shared.publish_or_log();
        self.shared.call(Turn::Revoked);
        if let Some(transfer) = self.transfer.take() {
            transfer.dissolve("the parent has died", &mut self.pass);
        }
        effects.push(Effect::Resumed);
    }

    /// A parent that does not read what this process writes must not stop it.
    pub(super) fn look_after_stderr(&mut self) {
        if self.machine.state() == State::Probation
            && let Some(lent) = self.stderr.take_if(|lent| lent.is_full())
        {
            lent.adopt_with_rest();
        }
    }
}
