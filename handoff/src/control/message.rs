//! What is said on the control socket: one JSON object a line, in both directions.
//!
//! A client sends one [`Request`] line and reads [`Event`] lines until one of them is
//! [final](Event::is_final) or the socket ends. `docs/protocol.md` lists every field;
//! the format is a promise: fields are added, never renamed or removed, and a reader
//! ignores the fields that it does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// One [`Event::Status`].
    Status,
    /// Start a child and let it take over. Progress events, then [`Event::Reloaded`] and, if it was
    /// confirmed, [`Event::Drained`]; or [`Event::Refused`].
    Reload,
    /// Start a child as for a reload, and send it away once it is ready. Progress events, then [`Event::DryRun`]; or
    /// [`Event::Refused`].
    DryRun,
    /// What became of a reload, asked of whoever owns the socket now: by a client whose server
    /// went away before it could say.
    ///
    /// Answered as [`Request::Reload`] is, but for what is past: [`Event::Reloaded`] (at once if the
    /// reload has ended, else when it does), then, if it was confirmed, [`Event::Drained`], likewise.
    /// [`Event::Refused`] if this process knows of no such reload.
    Outcome {
        /// The reload's id, from [`Event::Phase`].
        reload: u64,
    },
    /// End the probation of the last reload now, and well. Answered as [`Request::Outcome`] is, after an
    /// [`Event::Phase`] with the reload's id; [`Event::Refused`] if none is on probation.
    Confirm,
    /// Take the last reload back, which is on probation: the old generation serves again. Answered likewise.
    Rollback,
    /// Stop gracefully. One [`Event::Stopping`]; the socket ends when the process does.
    Stop,
    /// All that happens, until the client goes.
    Events,
}

/// A process of the succession.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// 1 for the first process, +1 for each child that commits.
    pub generation: u64,
    /// Its process id.
    pub pid: u32,
}

/// What a reload, or its end, does to the listeners, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerChanges {
    /// Served by both generations on the same socket.
    pub kept: Vec<String>,
    /// Bound by the new generation.
    pub added: Vec<String>,
    /// Not served by the new generation.
    pub removed: Vec<String>,
    /// Those of `added` whose name the old generation has on another address: the old socket is under `removed`.
    #[serde(default)]
    pub changed: Vec<String>,
}

impl ListenerChanges {
    pub(crate) fn new(kept: &[String], added: &[String], removed: &[String]) -> Self {
        let changed = added.iter().filter(|name| removed.contains(name));
        Self {
            kept: kept.to_vec(),
            changed: changed.cloned().collect(),
            added: added.to_vec(),
            removed: removed.to_vec(),
        }
    }
}

/// What became of the connections of a generation that left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Handed over to the next generation.
    pub moved: u64,
    /// The same, by what they were: `idle`, `answered` (after an answer), `upgraded`, or what the
    /// application calls them.
    #[serde(default)]
    pub moved_as: BTreeMap<String, u64>,
    /// Finished here.
    pub drained: u64,
    /// Closed at the drain deadline.
    pub cut: u64,
    /// The first of those that were cut, by peer and request.
    pub named: Vec<String>,
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// The new generation serves.
    Confirmed {
        /// The parent, still draining perhaps.
        from: Generation,
        /// The child.
        to: Generation,
        /// From the request (or signal) to the child's `Accepting`, in microseconds.
        serving_us: u64,
        /// What the reload did to the listeners.
        listeners: ListenerChanges,
    },
    /// The old generation serves on.
    Failed {
        /// The phase in which it failed: see [`Event::Phase`].
        phase: String,
        /// Why, in words.
        reason: String,
        /// The last lines that the child wrote to stderr, oldest first.
        stderr: Vec<String>,
    },
}

/// How a dry run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DryRun {
    /// The child was ready to serve: a reload would have come so far, too. It has gone.
    Ready {
        /// From the request to the child's `Ready`, in microseconds.
        ready_us: u64,
        /// What the two say that they are.
        build: Builds,
        /// What the reload would have done to the listeners.
        listeners: ListenerChanges,
    },
    /// The reload would have failed. The child has gone.
    Failed {
        /// The phase in which it failed: see [`Event::Phase`].
        phase: String,
        /// Why, in words.
        reason: String,
        /// The last lines that the child wrote to stderr, oldest first.
        stderr: Vec<String>,
    },
}

/// The builds of a parent and its child, as the application calls them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builds {
    /// The parent's.
    pub from: String,
    /// The child's.
    pub to: String,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// Answer to [`Request::Status`].
    Status(Box<Status>),
    /// A reload entered a phase: `starting`, `joining`, `booting`, `restoring`,
    /// `committing`, `probation`, `draining`; or, of a dry run, `discarding`.
    Phase {
        /// The reload's id: unique in the succession, ascending.
        reload: u64,
        /// The phase's name.
        phase: String,
        /// The child, as soon as it runs.
        pid: Option<u32>,
        /// Since the request (or signal), in microseconds.
        at_us: u64,
        /// How long the phase is to last, in milliseconds; only of `probation`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lasts_ms: Option<u64>,
    },
    /// The child wrote a line to stderr before it was confirmed.
    Stderr {
        /// The reload's id.
        reload: u64,
        /// The line, without its end; not-UTF-8 replaced.
        line: String,
    },
    /// A reload ended: [`Outcome`]. After `Confirmed` follows [`Event::Drained`].
    Reloaded {
        /// The reload's id.
        reload: u64,
        /// How.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A dry run ended.
    DryRun {
        /// Its id: it has one as a reload has.
        reload: u64,
        /// How.
        #[serde(flatten)]
        outcome: DryRun,
    },
    /// The parent has finished what it had begun, and exits.
    Drained {
        /// The reload's id.
        reload: u64,
        /// From the request (or signal), in microseconds.
        at_us: u64,
        /// What became of its connections.
        connections: ConnectionCounts,
    },
    /// The request cannot be served now. Nothing was changed.
    Refused {
        /// Why, and what to do instead.
        reason: String,
    },
    /// The process is stopping; the socket ends when it has.
    Stopping {
        /// The process.
        #[serde(flatten)]
        process: Generation,
    },
    /// The line was not a request.
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// An event of a later version. Never sent; a reader skips it.
    #[serde(other)]
    Unknown,
}

impl Event {
    /// Whether no further event follows for a client that asked something other than
    /// [`Request::Events`].
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Status(_)
            | Self::Drained { .. }
            | Self::DryRun { .. }
            | Self::Refused { .. }
            | Self::Invalid { .. } => true,
            Self::Reloaded { outcome, .. } => matches!(outcome, Outcome::Failed { .. }),
            // `Stopping` is followed by the end of the socket, which is the news.
            Self::Phase { .. } | Self::Stderr { .. } | Self::Stopping { .. } | Self::Unknown => {
                false
            }
        }
    }
}

/// Answer to [`Request::Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This process.
    #[serde(flatten)]
    pub process: Generation,
    /// What the application calls its build.
    pub build: String,
    /// `serving`, `draining` or `stopping`.
    pub phase: String,
    /// Since this process began to serve, in milliseconds.
    pub serving_for_ms: u64,
    /// If this process is on probation.
    #[serde(default)]
    pub probation: Option<ProbationStatus>,
    /// By name.
    pub listeners: Vec<ListenerStatus>,
    /// The reload under way.
    pub reload: Option<ReloadStatus>,
    /// How the last reload that this process knows of ended.
    pub last_reload: Option<LastReload>,
    /// Older generations that still drain.
    pub draining: Vec<DrainingStatus>,
    /// What the application says of itself.
    pub application: serde_json::Value,
}

/// The probation of the process that answers, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbationStatus {
    /// The reload that it came with.
    pub reload: u64,
    /// Who serves again should this process not do.
    pub parent: Generation,
    /// How long it is on probation yet, in milliseconds.
    pub left_ms: u64,
}

/// A listener in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// `127.0.0.1:8321` or `unix:/run/hello.sock`: what it is really bound to.
    pub address: String,
    /// The length of its queue of connections not yet accepted, as asked for.
    pub backlog: u32,
}

/// The reload under way, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Its id.
    pub reload: u64,
    /// Its phase.
    pub phase: String,
    /// The child, as soon as it runs.
    pub pid: Option<u32>,
    /// Since it was asked for, in milliseconds.
    pub elapsed_ms: u64,
    /// Whether it is to end once the child is ready.
    #[serde(default)]
    pub dry_run: bool,
}

/// The last reload, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// Its id.
    pub reload: u64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What became of the parent's connections, once the parent has gone.
    pub drained: Option<ConnectionCounts>,
}

/// An older generation that still drains, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainingStatus {
    /// The process.
    #[serde(flatten)]
    pub process: Generation,
    /// How many connections it still serves.
    pub waiting_for: u64,
    /// The first of what is under way there, by peer and request.
    #[serde(default)]
    pub named: Vec<String>,
}
