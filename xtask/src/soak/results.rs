//! Everything that a soak found: what the reports are made of, and what `soak.json` holds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::args::SoakArgs;
use super::book::{Loss, Second, Totals};
use super::by_reload::Between;
use super::checks::Check;
use super::idle::Look;
use super::latency::{Distribution, Latency};
use super::process::Holding;
use super::reloaded::Phase;
use super::samples::Sample;
use super::websocket::Sessions;

/// Of `soak.json`, as `docs/soak.md` describes it. Goes up when something that was there changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// One reload.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Reload {
    /// From 1.
    pub(crate) number: u64,
    /// Its command's start, since the start of the run.
    pub(crate) at_s: f64,
    /// The command's exit code; `null` if it was killed or did not end.
    pub(crate) exit: Option<i32>,
    /// Why it counts as failed.
    pub(crate) failure: Option<String>,
    /// The new generation.
    pub(crate) generation: Option<u64>,
    /// Its process.
    pub(crate) pid: Option<u32>,
    /// From the start of the command to its report that the new generation serves.
    pub(crate) commit_ms: Option<f64>,
    /// From the start of the command to the first answer of the new generation.
    pub(crate) first_answer_ms: Option<f64>,
    /// From the request's arrival to the new generation's accepting: the server's own measure.
    pub(crate) serving_ms: Option<f64>,
    /// From the start of the command to its report that the parent has gone.
    pub(crate) drained_ms: Option<f64>,
    /// The server's own measure: from the start of the drain to the parent's end.
    pub(crate) drain_ms: Option<f64>,
    /// From the start of the command to its end.
    pub(crate) command_ms: f64,
    /// Start to end of `hello --version` of the same binary, just before.
    pub(crate) bare_exec_ms: f64,
    /// The server's own phases, in order; they count from the request.
    pub(crate) phases: Vec<Phase>,
    /// Connections that moved.
    pub(crate) moved: u64,
    /// The same, by what they were, as the server says it.
    pub(crate) moved_as: BTreeMap<String, u64>,
    /// Connections that the old generation finished itself.
    pub(crate) drained: u64,
    /// Connections that were cut.
    pub(crate) cut: u64,
    /// What the new generation holds after the command's end.
    pub(crate) holding: Option<Holding>,
    /// Connections that the client had open at that moment.
    pub(crate) client_connections: u64,
    /// What the idle connections were like afterwards.
    pub(crate) idle: Look,
}

/// What the reloads moved, in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    /// Moves of connections; one that lives through ten reloads moves ten times.
    pub(crate) moved: u64,
    /// The same, by what they were: `idle`, `answered`, `upgraded` and others.
    pub(crate) moved_as: BTreeMap<String, u64>,
    /// Connections cut at the drain deadline.
    pub(crate) cut: u64,
}

impl Moved {
    /// The sums.
    pub(crate) fn of(reloads: &[Reload]) -> Self {
        let mut all = Self::default();
        for reload in reloads {
            all.moved += reload.moved;
            all.cut += reload.cut;
            for (kind, count) in &reload.moved_as {
                *all.moved_as.entry(kind.clone()).or_default() += count;
            }
        }
        all
    }
}

/// The idle connections over all reloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct IdleResults {
    /// Connections opened at the start.
    pub(crate) connections: u64,
    /// How often one was looked at after a reload.
    pub(crate) looks: u64,
    /// Looks that found it closed, or not silent.
    pub(crate) closed: u64,
    /// Requests that they carried after reloads, and after the load.
    pub(crate) used: u64,
    /// Of these, answered rightly on a connection that stayed open.
    pub(crate) right: u64,
}

impl IdleResults {
    /// Of those after each reload, and of the `last` one.
    pub(crate) fn of(connections: u32, reloads: &[Reload], last: Look) -> Self {
        let mut all = Self {
            connections: connections.into(),
            ..Self::default()
        };
        for look in reloads.iter().map(|reload| reload.idle).chain([last]) {
            all.looks += look.looked_at;
            all.closed += look.looked_at - look.alive;
            all.used += look.used;
            all.right += look.right;
        }
        all
    }
}

/// Times of all reloads.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Timings {
    /// `hello --version`: fork, exec, exit.
    pub(crate) bare_exec: Latency,
    /// The command's start to its report of the commit.
    pub(crate) commit: Latency,
    /// The command's start to the first answer of the new generation.
    pub(crate) first_answer: Latency,
    /// The server's own: request to accepting.
    pub(crate) serving: Latency,
    /// The command's start to its report that the parent has gone.
    pub(crate) drained: Latency,
    /// The server's own: start of the drain to the parent's end.
    pub(crate) drain: Latency,
    /// Median of `first_answer` over the median of `bare_exec`. The command itself is one
    /// fork+exec, and the new generation another: 2 is about the floor.
    pub(crate) first_answer_per_bare_exec: f64,
    /// The share of the first answer's time that one bare fork+exec is.
    pub(crate) bare_exec_share: f64,
}

impl Timings {
    /// Of those reloads that have them.
    pub(crate) fn of(reloads: &[Reload]) -> Self {
        let bare_exec = Latency::of_each(reloads.iter().map(|reload| reload.bare_exec_ms));
        let first_answer =
            Latency::of_each(reloads.iter().filter_map(|reload| reload.first_answer_ms));
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        Self {
            commit: Latency::of_each(reloads.iter().filter_map(|reload| reload.commit_ms)),
            serving: Latency::of_each(reloads.iter().filter_map(|reload| reload.serving_ms)),
            drained: Latency::of_each(reloads.iter().filter_map(|reload| reload.drained_ms)),
            drain: Latency::of_each(reloads.iter().filter_map(|reload| reload.drain_ms)),
            first_answer_per_bare_exec: ratio(first_answer.p50_ms, bare_exec.p50_ms),
            bare_exec_share: ratio(bare_exec.p50_ms, first_answer.p50_ms),
            bare_exec,
            first_answer,
        }
    }
}

/// How something grew over the reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Growth {
    /// After the first reload.
    pub(crate) first: i64,
    /// Median of the first tenth.
    pub(crate) first_tenth: i64,
    /// Median of the last tenth.
    pub(crate) last_tenth: i64,
    /// The most.
    pub(crate) max: i64,
    /// How many samples.
    pub(crate) samples: usize,
}

impl Growth {
    /// `None` without samples.
    pub(crate) fn of(samples: &[i64]) -> Option<Self> {
        let tenth = samples.len().div_ceil(10);
        Some(Self {
            first: *samples.first()?,
            first_tenth: median(&samples[..tenth])?,
            last_tenth: median(&samples[samples.len() - tenth..])?,
            max: *samples.iter().max()?,
            samples: samples.len(),
        })
    }
}

fn median(samples: &[i64]) -> Option<i64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// What the serving generation holds, over the reloads.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Holdings {
    /// All descriptors: moves with the number of connections.
    pub(crate) fds: Option<Growth>,
    /// Descriptors that are not sockets: does not move with anything.
    pub(crate) other_fds: Option<Growth>,
    /// Sockets beyond the connections that the client had open at the same moment:
    /// listeners, the control socket; and connections that the server has not closed.
    pub(crate) sockets_beyond_clients: Option<Growth>,
    /// Resident memory.
    pub(crate) rss_kib: Option<Growth>,
}

impl Holdings {
    /// Of those reloads after which there was something to inspect.
    pub(crate) fn of(reloads: &[Reload]) -> Self {
        let growth = |value: fn(&Reload, Holding) -> i64| {
            let samples: Vec<i64> = reloads
                .iter()
                .filter_map(|reload| reload.holding.map(|holding| value(reload, holding)))
                .collect();
            Growth::of(&samples)
        };
        Self {
            fds: growth(|_, holding| (holding.sockets + holding.other_fds).cast_signed()),
            other_fds: growth(|_, holding| holding.other_fds.cast_signed()),
            sockets_beyond_clients: growth(|reload, holding| {
                holding.sockets.cast_signed() - reload.client_connections.cast_signed()
            }),
            rss_kib: growth(|_, holding| holding.rss_kib.cast_signed()),
        }
    }
}

/// Where the soak ran.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// `uname -r`.
    pub(crate) kernel: String,
    /// Shared by the server and its load.
    pub(crate) cpus: usize,
    /// Seconds since 1970 at the start of the run.
    pub(crate) unix_time: f64,
}

/// The load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadResults {
    /// Requests that left by the schedule.
    pub(crate) scheduled: u64,
    /// The latest of them, against its due time: the client's own lateness, part of the latencies.
    pub(crate) worst_lateness_ms: f64,
    /// Connections opened because all others were busy.
    pub(crate) extra_connections: u64,
    /// Kind, then outcome.
    pub(crate) counts: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// The sums.
    pub(crate) totals: Totals,
    /// From the due time, by kind; `all` of the schedule; and of those that are answered at once
    /// (`Kind::is_prompt`) `met-reload` (overlapped with a reload's command) and `met-none`.
    pub(crate) latencies: BTreeMap<&'static str, Latency>,
    /// In full, of `met-reload` and `met-none`.
    pub(crate) distributions: BTreeMap<&'static str, Distribution>,
}

/// What was found after the load had ended.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Ending {
    /// Complete answers that the clients received to requests that the server counts.
    pub(crate) answers: u64,
    /// By how much the server's counter has risen since the start; `null`: it did not say.
    pub(crate) server_requests: Option<u64>,
    /// The process that `hello status` named.
    pub(crate) serving: Option<u32>,
    /// The generation that it named.
    pub(crate) generation: Option<u64>,
    /// Processes that ran from the soak's directory, after waiting for those that drain.
    pub(crate) processes: Vec<u32>,
    /// Processes that answered a request although no command ever named them as a generation.
    pub(crate) strangers: Vec<u32>,
    /// The exit code of `hello stop`.
    pub(crate) stop_exit: Option<i32>,
    /// What it printed.
    pub(crate) stop_output: String,
    /// Processes left after it.
    pub(crate) left: Vec<u32>,
    /// Why the port is not free, if it is not.
    pub(crate) port: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// The command line.
    pub(crate) command: Vec<String>,
    /// What the builds A and B say of themselves; `null`: it never answered.
    pub(crate) builds: [Option<String>; 2],
    /// The verdict: every check passed.
    pub(crate) passed: bool,
    /// What was checked.
    pub(crate) checks: Vec<Check>,
    /// What was asked for.
    pub(crate) args: SoakArgs,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// How long there was load.
    pub(crate) lasted_s: f64,
    /// The load and what became of it.
    pub(crate) load: LoadResults,
    /// Connections that mostly rest.
    pub(crate) idle: IdleResults,
    /// WebSocket sessions; their messages are in `load`.
    pub(crate) websockets: Sessions,
    /// What the reloads did to connections.
    pub(crate) moved: Moved,
    /// Times of the reloads, summed up.
    pub(crate) timings: Timings,
    /// Descriptors and memory over the reloads.
    pub(crate) holdings: Holdings,
    /// After the load.
    pub(crate) ending: Ending,
    /// Each reload.
    pub(crate) reloads: Vec<Reload>,
    /// The requests, from each reload to the next.
    pub(crate) by_reload: Vec<Between>,
    /// What each generation held, over time.
    pub(crate) samples: Vec<Sample>,
    /// Each second.
    pub(crate) series: Vec<Second>,
    /// The first losses; `losses.log` has more.
    pub(crate) losses: Vec<Loss>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_compares_the_ends() {
        assert_eq!(Growth::of(&[]), None);
        let samples: Vec<i64> = (0..100).collect();
        let growth = Growth::of(&samples).unwrap();
        assert_eq!(
            (
                growth.first,
                growth.first_tenth,
                growth.last_tenth,
                growth.max
            ),
            (0, 5, 95, 99)
        );
        let noisy = [
            3, 3, 90, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
        ];
        assert_eq!(
            Growth::of(&noisy).unwrap().first_tenth,
            3,
            "one spike is not a level"
        );
    }

    #[test]
    fn medians_and_their_ratio() {
        let reload = |bare_exec_ms, first| Reload {
            bare_exec_ms,
            first_answer_ms: first,
            ..Reload::default()
        };
        let timings = Timings::of(&[
            reload(1.0, Some(4.0)),
            reload(1.0, None),
            reload(2.0, Some(4.0)),
        ]);
        assert_eq!(
            (timings.bare_exec.count, timings.first_answer.count),
            (3, 2)
        );
        assert!(
            (timings.first_answer_per_bare_exec - 4.0).abs() < 0.05,
            "{timings:?}"
        );
        assert!((timings.bare_exec_share - 0.25).abs() < 0.01);
        assert_eq!(Timings::of(&[]).first_answer_per_bare_exec, 0.0);
    }

    #[test]
    fn what_moved_is_summed_by_kind() {
        let reload = |idle: u64, upgraded: u64| Reload {
            moved: idle + upgraded,
            moved_as: BTreeMap::from([("idle".into(), idle), ("upgraded".into(), upgraded)]),
            ..Reload::default()
        };
        let moved = Moved::of(&[reload(3, 1), reload(4, 1)]);
        let expected = BTreeMap::from([("idle".into(), 7), ("upgraded".into(), 2)]);
        assert_eq!((moved.moved, moved.moved_as), (9, expected));
    }

    #[test]
    fn every_look_counts() {
        let look = |alive, right| Look {
            looked_at: 10,
            alive,
            used: 4,
            right,
        };
        let reload = |idle| Reload {
            idle,
            ..Reload::default()
        };
        let reloads = [reload(look(10, 4)), reload(look(9, 3))];
        let idle = IdleResults::of(10, &reloads, look(10, 4));
        assert_eq!((idle.looks, idle.closed), (30, 1));
        assert_eq!((idle.used, idle.right), (12, 11));
    }

    #[test]
    fn connections_do_not_count_as_a_leak() {
        let reload = |sockets, client_connections| Reload {
            holding: Some(Holding {
                sockets,
                other_fds: 9,
                rss_kib: 5000,
            }),
            client_connections,
            ..Reload::default()
        };
        let holdings = Holdings::of(&[reload(75, 70), reload(175, 170)]);
        assert_eq!(holdings.fds.unwrap().last_tenth, 184);
        assert_eq!(holdings.sockets_beyond_clients.unwrap().max, 5);
    }
}
