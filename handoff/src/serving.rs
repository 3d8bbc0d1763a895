//! What an application holds while it serves.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    acceptor::{Acceptor, Acceptors},
    connections::Connection,
    control::message::{DrainingStatus, Generation},
    listeners::Address,
    live::ConnectionGuard,
    shared::{Adopted, NotMoved, PassRequest, Phase, Report, Returned, Shared},
};

/// A process that serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Serving {
    shared: Arc<Shared>,
    adopted: Arc<Mutex<Option<mpsc::UnboundedReceiver<Adopted>>>>,
    acceptors: Arc<Mutex<Acceptors>>,
}

impl Serving {
    pub(crate) fn new(
        shared: Arc<Shared>,
        adopted: mpsc::UnboundedReceiver<Adopted>,
        acceptors: Acceptors,
    ) -> Self {
        Self {
            shared,
            adopted: Arc::new(Mutex::new(Some(adopted))),
            acceptors: Arc::new(Mutex::new(acceptors)),
        }
    }

    /// This process: its generation and pid.
    #[must_use]
    pub fn identity(&self) -> Generation {
        self.shared.identity()
    }

    /// What the named listener is bound to.
    #[must_use]
    pub fn address(&self, listener: &str) -> Option<Address> {
        self.shared
            .listeners()
            .iter()
            .find(|l| l.name() == listener)
            .map(|l| l.address().clone())
    }

    /// The names of the listeners, in the order in which they were asked for.
    #[must_use]
    pub fn listeners(&self) -> Vec<String> {
        self.shared
            .listeners()
            .iter()
            .map(|l| l.name().to_owned())
            .collect()
    }

    /// Accepts on the named listener; `None` if there is no such listener, or its acceptor was taken already.
    #[must_use]
    pub fn acceptor(&self, listener: &str) -> Option<Acceptor> {
        let mut acceptors = self
            .acceptors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        acceptors.take(listener, &self.shared)
    }

    /// What this process wants of its connections, from now on.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// The connections that older generations pass on, also while this one is draining itself. To be
    /// taken once; a second call gives `None`.
    #[must_use]
    pub fn adopted(&self) -> Option<mpsc::UnboundedReceiver<Adopted>> {
        self.adopted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Counts the connections of this process, whenever it is called.
    pub fn connections(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let live = self.shared.live.clone();
        move || live.connections()
    }

    /// Older generations that still drain, the youngest first.
    #[must_use]
    pub fn draining(&self) -> Vec<DrainingStatus> {
        let draining = self.shared.draining().into_iter();
        draining
            .map(|older| DrainingStatus {
                process: older.process,
                waiting_for: older.waiting_for,
                named: older.named,
            })
            .collect()
    }

    /// Something that the drain waits for like for a connection.
    pub fn guard(&self) -> ConnectionGuard {
        self.shared.live.connection()
    }

    /// Moves a connection at rest to the other generation: the successor, or the parent that has revoked this
    /// process. To be called when the phase [`gives_up`](Phase::gives_up); returns when the other one owns it.
    ///
    /// # Errors
    /// [`NotMoved`], with the connection if it is still this process's to serve.
    pub async fn hand_over(
        &self,
        connection: Connection,
        guard: ConnectionGuard,
    ) -> Result<(), NotMoved> {
        let (answer, moved) = oneshot::channel();
        self.hand_over_or(connection, guard, move |not_moved| {
            // Whoever does not wait any more has given the connection up.
            let _ = answer.send(not_moved);
        });
        // The sender is dropped without a word when the connection has moved.
        match moved.await {
            Ok(not_moved) => Err(not_moved),
            Err(_) => Ok(()),
        }
    }

    /// As [`hand_over`](Self::hand_over), without waiting: `stays` is called if the connection comes back, and dropped
    /// otherwise. It must be quick: whoever decides over the process waits for it. Where thousands of connections move, thousands
    /// of tasks need not wait for an answer.
    pub fn hand_over_or(
        &self,
        connection: Connection,
        guard: ConnectionGuard,
        stays: impl FnOnce(NotMoved) + Send + 'static,
    ) {
        let phase = *self.shared.phase.borrow();
        if !phase.gives_up() && phase != Phase::Finishing {
            // Nobody would take it out of the queue.
            return stays(NotMoved {
                connection: Some((connection, guard)),
                reason: format!("this process is {}", phase.name()),
            });
        }
        let request = PassRequest {
            connection,
            guard,
            returned: Returned::new(stays),
        };
        if let Err(mpsc::error::SendError(request)) = self.shared.pass.send(request) {
            let connection = Some((request.connection, request.guard));
            request.returned.call(NotMoved {
                connection,
                reason: "there is no successor".to_owned(),
            });
        }
    }

    /// What `status` says of the application.
    pub fn report_status(&self, report: impl Fn() -> serde_json::Value + Send + Sync + 'static) {
        let _ = self.shared.application.set(Arc::new(report));
    }

    /// Returns when this process has nothing more to do: it was replaced or stopped, and its connections
    /// have been passed on, finished or cut.
    ///
    /// # Errors
    /// In words, if it ended without having served to the end: it was revoked.
    pub async fn finished(&self) -> Result<Report, String> {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or_else(|| Ok(Report::default())),
            Err(_) => Ok(Report::default()),
        }
    }
}
