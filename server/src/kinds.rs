//! Which kinds of connections this build takes up from older generations, and what does so.
//!
//! A kind is a word between two builds: it says what is spoken on the connection and how its data is laid out. Each has one
//! [`TakeUp`]; whatever is not in [`Kinds`] was refused before it came here, and stays with the parent.

use std::{collections::HashMap, sync::Arc};

use handoff::{Connection, ConnectionGuard};

use crate::drain::Live;

/// Takes up connections of one kind.
pub(crate) trait TakeUp<S>: Send + Sync {
    /// Serves `connection` from now on, in a task of its own. What cannot be served is closed,
    /// and logged.
    fn take_up(&self, server: &Arc<Live<S>>, connection: Connection, guard: ConnectionGuard);
}

/// By kind.
pub(crate) struct Kinds<S>(HashMap<String, Box<dyn TakeUp<S>>>);

impl<S> Kinds<S> {
    pub(crate) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(crate) fn insert(&mut self, kind: impl Into<String>, taker: impl TakeUp<S> + 'static) {
        self.0.insert(kind.into(), Box::new(taker));
    }

    pub(crate) fn get(&self, kind: &str) -> Option<&dyn TakeUp<S>> {
        self.0.get(kind).map(|taker| &**taker)
    }
}

impl<S> std::fmt::Debug for Kinds<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
