//! Counts every request by kind and outcome, keeps the latencies, and writes a line for every loss.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::by_reload::{Between, ByReload};
use super::latency::{Distribution, Histograms, Latency};
use super::outcome::{Outcome, Verdict};
use super::request::Kind;
use super::timeline::Timeline;

/// Losses that go to the JSON. If there are more, more of the same would not help.
const MAX_LOSSES_IN_RESULTS: usize = 1000;
/// Lines in the log: a server that died loses thousands of requests a second.
const MAX_LOSSES_IN_LOG: u64 = 100_000;

/// A request that was lost, or a connection that was closed for nothing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Loss {
    /// Since the start of the run.
    pub(crate) at_s: f64,
    /// An [`Outcome`]; `closed` for a connection, `forced-reconnect` for a WebSocket session.
    pub(crate) what: &'static str,
    /// The request's kind; for a connection that of the request that opened it, or was on it.
    pub(crate) kind: &'static str,
    /// The client's port.
    pub(crate) port: u16,
    /// The last reload that had begun.
    pub(crate) reload: u64,
    /// Since its command was started.
    pub(crate) since_reload_ms: f64,
    /// The generation that served, as far as reported.
    pub(crate) generation: u64,
    /// The error.
    pub(crate) detail: String,
}

/// One second of the run, for the progress line and the series.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Second {
    /// Its end, since the start of the run.
    pub(crate) at_s: f64,
    /// Scheduled requests that ended in it.
    pub(crate) ended: u64,
    /// Requests of any kind that were lost in it, and connections closed for nothing.
    pub(crate) lost: u64,
    /// Median latency of the prompt requests (`Kind::is_prompt`), as of the others below.
    pub(crate) p50_ms: f64,
    /// 90th percentile.
    pub(crate) p90_ms: f64,
    /// 99th percentile.
    pub(crate) p99_ms: f64,
    /// 99.9th percentile.
    pub(crate) p999_ms: f64,
    /// The worst.
    pub(crate) max_ms: f64,
    /// Reloads begun until its end.
    pub(crate) reloads: u64,
    /// The generation that serves at its end.
    pub(crate) generation: u64,
}

#[derive(Debug)]
struct State {
    counts: [[u64; Outcome::ALL.len()]; Kind::ALL.len()],
    closed: u64,
    forced_reconnects: u64,
    answers: u64,
    pids: BTreeSet<u32>,
    latencies: Histograms,
    second: Second,
    series: Vec<Second>,
    by_reload: ByReload,
    losses: Vec<Loss>,
    logged: u64,
    log: File,
}

/// The count of everything. One lock: at a few thousand requests a second it is never contended for long.
#[derive(Debug)]
pub(crate) struct Book {
    timeline: Arc<Timeline>,
    state: Mutex<State>,
}

/// What the progress line says of the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    /// Requests that ended.
    pub(crate) ended: u64,
    /// Of these, right answers.
    pub(crate) ok: u64,
    /// The others.
    pub(crate) lost: u64,
    /// Connections closed although nothing was wrong.
    pub(crate) closed: u64,
    /// WebSocket sessions that the server ended although nothing was wrong.
    pub(crate) forced_reconnects: u64,
}

/// Everything, for the results.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// Kind, then outcome. Kinds that did not occur are left out; zeros are not.
    pub(crate) counts: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// The sums.
    pub(crate) totals: Totals,
    /// Complete answers to requests that the server counts.
    pub(crate) answers: u64,
    /// Every process that answered.
    pub(crate) pids: BTreeSet<u32>,
    /// By kind; and `all`, `met-reload`, `met-none`.
    pub(crate) latencies: BTreeMap<&'static str, Latency>,
    /// The same, in full.
    pub(crate) distributions: BTreeMap<&'static str, Distribution>,
    /// Reload by reload.
    pub(crate) by_reload: Vec<Between>,
    /// Second by second.
    pub(crate) series: Vec<Second>,
    /// The first ones.
    pub(crate) losses: Vec<Loss>,
}

impl Book {
    /// An empty one, with its log at `log`.
    pub(crate) fn new(timeline: Arc<Timeline>, log: &Path) -> Result<Self> {
        let mut file =
            File::create(log).with_context(|| format!("failed to create `{}`", log.display()))?;
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            - timeline.start().elapsed();
        writeln!(
            file,
            "# times count from unix time {:.3}",
            wall.as_secs_f64()
        )?;
        let state = State {
            counts: Default::default(),
            closed: 0,
            forced_reconnects: 0,
            answers: 0,
            pids: BTreeSet::new(),
            latencies: Histograms::new()?,
            second: Second::default(),
            series: Vec::new(),
            by_reload: ByReload::default(),
            losses: Vec::new(),
            logged: 0,
            log: file,
        };
        Ok(Self {
            timeline,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request ended. `due` is when it was to leave.
    pub(crate) fn enter(&self, kind: Kind, due: Instant, verdict: Verdict) {
        let met_reload = self.timeline.met_reload(due, verdict.at);
        let reload = self.timeline.now().reload;
        let mut state = self.state();
        state.counts[kind as usize][verdict.outcome as usize] += 1;
        state.answers += u64::from(verdict.answered && kind.is_counted_by_server());
        state.pids.extend(verdict.pid);
        if kind.is_scheduled() {
            state.second.ended += 1;
            if verdict.answered {
                state
                    .latencies
                    .record(kind, verdict.at.saturating_duration_since(due), met_reload);
            }
        }
        if verdict.outcome == Outcome::Ok {
            state.by_reload.ok(reload, kind.name());
        } else {
            self.lose(
                &mut state,
                verdict.outcome.name(),
                kind,
                verdict.port,
                verdict.detail,
            );
        }
    }

    /// The server closed a kept-alive connection, or said it would, although nothing was wrong.
    pub(crate) fn closed(&self, kind: Kind, port: u16, detail: String) {
        let mut state = self.state();
        state.closed += 1;
        self.lose(&mut state, "closed", kind, port, detail);
    }

    /// The server ended a WebSocket session. What was unanswered in it is entered besides.
    pub(crate) fn forced_reconnect(&self, port: u16, detail: String) {
        let mut state = self.state();
        state.forced_reconnects += 1;
        self.lose(
            &mut state,
            "forced-reconnect",
            Kind::WebSocket,
            port,
            detail,
        );
    }

    fn lose(&self, state: &mut State, what: &'static str, kind: Kind, port: u16, detail: String) {
        let now = self.timeline.now();
        state.second.lost += 1;
        state.by_reload.lost(now.reload, what);
        let loss = Loss {
            at_s: now.at.as_secs_f64(),
            what,
            kind: kind.name(),
            port,
            reload: now.reload,
            since_reload_ms: now.since_reload.as_secs_f64() * 1e3,
            generation: now.generation,
            detail,
        };
        if state.logged < MAX_LOSSES_IN_LOG {
            state.logged += 1;
            // A full disk must not end the soak; the counts are kept all the same.
            let _ = writeln!(state.log, "{loss}");
        }
        if state.losses.len() < MAX_LOSSES_IN_RESULTS {
            state.losses.push(loss);
        }
    }

    /// Ends a second, and starts the next.
    pub(crate) fn turn(&self) -> Second {
        let now = self.timeline.now();
        let mut state = self.state();
        let mut second = std::mem::take(&mut state.second);
        let latency = state.latencies.turn();
        second.at_s = now.at.as_secs_f64();
        (second.p50_ms, second.p90_ms) = (latency.p50_ms, latency.p90_ms);
        (second.p99_ms, second.p999_ms) = (latency.p99_ms, latency.p999_ms);
        second.max_ms = latency.max_ms;
        (second.reloads, second.generation) = (now.reload, now.generation);
        state.series.push(second.clone());
        second
    }

    /// The sums until now.
    pub(crate) fn totals(&self) -> Totals {
        self.state().totals()
    }

    /// Of all scheduled requests until now, in microseconds.
    pub(crate) fn latencies(&self) -> Histogram<u64> {
        self.state().latencies.all().clone()
    }

    /// The end of the book.
    pub(crate) fn account(&self) -> Account {
        let state = self.state();
        let mut counts = BTreeMap::new();
        for kind in Kind::ALL {
            let row = &state.counts[kind as usize];
            if row.iter().any(|count| *count > 0) {
                counts.insert(
                    kind.name(),
                    Outcome::ALL
                        .iter()
                        .map(|o| (o.name(), row[*o as usize]))
                        .collect(),
                );
            }
        }
        Account {
            counts,
            totals: state.totals(),
            answers: state.answers,
            pids: state.pids.clone(),
            latencies: state.latencies.summary(),
            distributions: state.latencies.distributions(),
            by_reload: state.by_reload.all(),
            series: state.series.clone(),
            losses: state.losses.clone(),
        }
    }
}

impl State {
    fn totals(&self) -> Totals {
        let ended = self.counts.iter().flatten().sum();
        let ok = self
            .counts
            .iter()
            .map(|row| row[Outcome::Ok as usize])
            .sum();
        Totals {
            ended,
            ok,
            lost: ended - ok,
            closed: self.closed,
            forced_reconnects: self.forced_reconnects,
        }
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "+{:.6}s {} kind={} port={} reload={} +{:.3}ms generation={}: {}",
            self.at_s,
            self.what,
            self.kind,
            self.port,
            self.reload,
            self.since_reload_ms,
            self.generation,
            self.detail
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn verdict(outcome: Outcome, answered: bool) -> Verdict {
        Verdict {
            answered,
            pid: Some(7),
            ..Verdict::lost(outcome, 1234, "why".into())
        }
    }

    #[test]
    fn everything_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("losses.log");
        let timeline = Arc::new(Timeline::new(1, [None, None]));
        let book = Book::new(timeline, &log).unwrap();
        let due = Instant::now() - Duration::from_millis(30);
        book.enter(Kind::KeepAlive, due, verdict(Outcome::Ok, true));
        book.enter(Kind::Upload, due, verdict(Outcome::ServerError, true));
        book.enter(Kind::Stream, due, verdict(Outcome::Truncated, false));
        book.enter(Kind::Probe, due, verdict(Outcome::Ok, true));
        book.closed(Kind::Idle, 4321, "EOF".into());
        book.forced_reconnect(4322, "1012".into());
        let second = book.turn();
        assert_eq!((second.ended, second.lost), (3, 4));
        assert!(
            second.p50_ms >= 30.0,
            "latency counts from the due time: {second:?}"
        );
        assert_eq!(book.turn().ended, 0);
        let account = book.account();
        assert_eq!(
            account.totals,
            Totals {
                ended: 4,
                ok: 2,
                lost: 2,
                closed: 1,
                forced_reconnects: 1
            }
        );
        assert_eq!(
            account.answers, 2,
            "a probe is not counted by the server, and a 5xx is"
        );
        assert_eq!(account.counts["stream"]["truncated"], 1);
        assert_eq!(account.latencies["all"].count, 2);
        assert_eq!(account.pids, BTreeSet::from([7]));
        let text = std::fs::read_to_string(log).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(
            text.contains("closed kind=idle port=4321 reload=0"),
            "{text}"
        );
    }
}
