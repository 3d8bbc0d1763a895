//! Who wants to hear what becomes of reloads, and what there is to tell those who ask later.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::control::{
    Event, Outcome, Reply,
    message::{ConnectionCounts, DryRun, LastReload},
};

/// The application's ear.
type Observer = Box<dyn Fn(&Event) + Send + Sync>;

#[derive(Default)]
pub(crate) struct News {
    inner: Mutex<Inner>,
    observers: Mutex<Vec<Observer>>,
}

impl std::fmt::Debug for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Clients of `events`.
    subscribers: Vec<Reply>,
    /// Clients of `reload` and `outcome`, with the reload's id.
    watchers: Vec<(u64, Reply)>,
    last: Option<LastReload>,
}

impl Inner {
    fn watch(&mut self, reload: u64, reply: Reply) {
        self.forget_gone();
        self.watchers.push((reload, reply));
    }

    /// Events may be rare, and those who ask many.
    fn forget_gone(&mut self) {
        self.subscribers.retain(|reply| !reply.is_closed());
        self.watchers.retain(|(_, reply)| !reply.is_closed());
    }
}

impl News {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it all that is told to anybody.
    pub(crate) fn observe(&self, observer: Observer) {
        let observers = self.observers.lock();
        observers
            .unwrap_or_else(PoisonError::into_inner)
            .push(observer);
    }

    pub(crate) fn subscribe(&self, reply: Reply) {
        let mut inner = self.lock();
        inner.forget_gone();
        inner.subscribers.push(reply);
    }

    /// Tells this client all that happens to the reload from now on.
    pub(crate) fn watch(&self, reload: u64, reply: Reply) {
        self.lock().watch(reload, reply);
    }

    /// The same, of a reload whose child is on probation: first of all the client learns its id.
    pub(crate) fn follow(&self, reload: u64, reply: Reply, pid: u32) {
        reply.send(&Event::Phase {
            reload,
            phase: "probation".to_owned(),
            pid: Some(pid),
            at_us: 0,
            lasts_ms: None,
        });
        self.watch(reload, reply);
    }

    /// Answers a question after a reload that has ended, as far as its end is known; the rest
    /// follows. `false`: this process knows of no such reload.
    pub(crate) fn answer(&self, reload: u64, reply: Reply) -> bool {
        let mut inner = self.lock();
        let Some(last) = inner.last.clone().filter(|last| last.reload == reload) else {
            return false;
        };
        let reloaded = Event::Reloaded {
            reload,
            outcome: last.outcome,
        };
        reply.send(&reloaded);
        match last.drained {
            // Of a reload that has failed there is nothing more to tell.
            _ if reloaded.is_final() => {}
            Some(connections) => {
                reply.send(&Event::Drained {
                    reload,
                    at_us: 0,
                    connections,
                });
            }
            None => inner.watch(reload, reply),
        }
        true
    }

    /// What the next generation is to know of the last reload. Without the child's last words: who watched has them.
    pub(crate) fn memory(&self) -> Option<Vec<u8>> {
        let mut last = self.last()?;
        if let Outcome::Failed { stderr, .. } = &mut last.outcome {
            stderr.clear();
        }
        serde_json::to_vec(&last).ok()
    }

    /// [`memory`](Self::memory), in the next generation. What it cannot read, of another version, it does not know.
    pub(crate) fn remember(&self, memory: &[u8]) {
        match serde_json::from_slice(memory) {
            Ok(last) => self.lock().last = Some(last),
            Err(error) => tracing::debug!(%error, "what became of the last reload"),
        }
    }

    pub(crate) fn last(&self) -> Option<LastReload> {
        self.lock().last.clone()
    }

    /// Tells everyone who wants to know.
    pub(crate) fn tell(&self, event: &Event) {
        // First: what a client of the control socket has heard of is counted by then.
        let observers = self.observers.lock();
        for observer in &*observers.unwrap_or_else(PoisonError::into_inner) {
            observer(event);
        }
        let mut inner = self.lock();
        inner.subscribers.retain(|reply| reply.send(event));
        let about = match event {
            Event::Phase { reload, .. }
            | Event::Stderr { reload, .. }
            | Event::Reloaded { reload, .. }
            | Event::DryRun { reload, .. }
            | Event::Drained { reload, .. } => Some(*reload),
            _ => None,
        };
        let last_word = event.is_final();
        inner.watchers.retain(|(reload, reply)| {
            let concerned = about.is_none_or(|about| about == *reload);
            !concerned || (reply.send(event) && !last_word)
        });
    }

    /// Remembers how a reload ended, and tells.
    pub(crate) fn reloaded(&self, reload: u64, outcome: Outcome) {
        self.lock().last = Some(LastReload {
            reload,
            outcome: outcome.clone(),
            drained: None,
        });
        self.tell(&Event::Reloaded { reload, outcome });
    }

    /// Tells how a dry run ended. It is no reload: the last one is still the last.
    pub(crate) fn dry_run(&self, reload: u64, outcome: DryRun) {
        self.tell(&Event::DryRun { reload, outcome });
    }

    /// Remembers what became of the parent's connections, and tells.
    pub(crate) fn drained(&self, reload: u64, at_us: u64, connections: ConnectionCounts) {
        if let Some(last) = self
            .lock()
            .last
            .as_mut()
            .filter(|last| last.reload == reload)
        {
            last.drained = Some(connections.clone());
        }
        self.tell(&Event::Drained {
            reload,
            at_us,
            connections,
        });
    }
}
