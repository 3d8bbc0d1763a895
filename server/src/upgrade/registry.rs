//! The protocols that an application speaks, as it names them while it starts.

use std::sync::{Arc, Mutex, PoisonError};

use super::{AnyProtocol, Upgrade};

/// In the order in which they were named; one of each kind.
#[derive(Default)]
pub(crate) struct Protocols(Mutex<Vec<Arc<dyn AnyProtocol>>>);

/// Two protocols of one kind.
#[derive(Debug, thiserror::Error)]
#[error(
    "there are two protocols of kind `{0}`: another version of its sessions is another kind, e.g. with another number"
)]
pub struct KindTaken(String);

impl Protocols {
    /// Adds one.
    pub(crate) fn add(&self, protocol: Arc<dyn AnyProtocol>) -> Result<Upgrade, KindTaken> {
        let mut protocols = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = protocol.kind();
        if protocols.iter().any(|other| other.kind() == kind) {
            return Err(KindTaken(kind.to_owned()));
        }
        protocols.push(Arc::clone(&protocol));
        Ok(Upgrade { protocol })
    }

    /// All that were added.
    pub(crate) fn take(&self) -> Vec<Arc<dyn AnyProtocol>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Protocols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocols = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = protocols.iter().map(|protocol| protocol.kind().to_owned());
        f.debug_set().entries(kinds).finish()
    }
}
