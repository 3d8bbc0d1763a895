//! Reload after reload, each measured.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_util::task::AbortOnDropHandle;

use super::args::SoakArgs;
use super::builds::Place;
use super::client::Client;
use super::idle::{Idle, Look};
use super::latency::ms;
use super::probe;
use super::process::Holding;
use super::reloaded::Reloaded;
use super::results::Reload;
use super::samples::Samples;
use super::server::Server;
use super::timeline::Build;

/// After so many reloads failed in a row the rest would tell nothing new.
const MAX_FAILED_IN_A_ROW: u32 = 3;
/// For the prober, after the command has reported the commit.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the reloads need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) args: &'a SoakArgs,
    pub(crate) place: &'a Place,
    pub(crate) server: &'a Server<'a>,
    pub(crate) client: &'a Arc<Client>,
    pub(crate) samples: &'a Samples,
}

impl Run<'_> {
    /// Reloads until time or number is reached, and checks the idle connections after each.
    pub(crate) async fn all(&self, idle: &mut Idle) -> Result<Vec<Reload>> {
        let end = self.args.limit().map(|limit| Instant::now() + limit);
        let count = self.args.reloads.unwrap_or(u64::MAX);
        let mut reloads = Vec::new();
        let mut failed_in_a_row = 0;
        // The load runs alone for a while first.
        let mut due = Instant::now() + self.args.every;
        for number in 1..=count {
            tokio::time::sleep_until(end.map_or(due, |end| end.min(due)).into()).await;
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            due = Instant::now() + self.args.every;
            let mut reload = self.one(number).await?;
            reload.idle = idle.check().await;
            failed_in_a_row = if reload.failure.is_some() {
                failed_in_a_row + 1
            } else {
                0
            };
            reloads.push(reload);
            if failed_in_a_row == MAX_FAILED_IN_A_ROW {
                break;
            }
        }
        Ok(reloads)
    }

    /// Replaces the binary and reloads.
    async fn one(&self, number: u64) -> Result<Reload> {
        let build = Build::of_reload(number);
        self.place.deploy(build)?;
        // Just before, with the same load on the machine. It also brings the binary into the
        // page cache, as the deploy itself nearly did: both measure a warm start.
        let bare_exec = self.server.bare_exec().await?;

        let timeline = &self.client.timeline;
        let began = timeline.begin_reload(number, build);
        let next = timeline.committed() + 1;
        let prober = probe::first_answer(Arc::new(self.client.nearby()), next);
        let prober = AbortOnDropHandle::new(tokio::spawn(prober));
        let reloaded = self
            .server
            .reload(|(generation, pid)| {
                timeline.commit(generation);
                self.samples.committed(generation, pid);
            })
            .await;
        timeline.end_reload();
        // One that hangs has failed, and the soak goes on to say so.
        let reloaded = reloaded.unwrap_or_else(|err| Reloaded {
            output: format!("{err:#}"),
            ..Reloaded::default()
        });

        if let (Some((generation, _)), Some(_)) = (reloaded.to, reloaded.drained) {
            timeline.settle(generation);
        }

        let first_answer = match reloaded.to {
            Some(_) => tokio::time::timeout(FIRST_ANSWER_TIMEOUT, prober)
                .await
                .ok()
                .and_then(Result::ok),
            None => None,
        };
        Ok(Reload {
            number,
            at_s: began.duration_since(timeline.start()).as_secs_f64(),
            exit: reloaded.exit,
            failure: reloaded.failure(),
            generation: reloaded.to.map(|(generation, _)| generation),
            pid: reloaded.to.map(|(_, pid)| pid),
            commit_ms: reloaded.confirmed.map(ms),
            first_answer_ms: first_answer.map(|at| ms(at.duration_since(began))),
            serving_ms: reloaded.serving.map(ms),
            drained_ms: reloaded.drained.map(ms),
            drain_ms: reloaded.drain.map(ms),
            command_ms: ms(reloaded.took),
            bare_exec_ms: ms(bare_exec),
            phases: reloaded.phases,
            moved: reloaded.moved,
            moved_as: reloaded.moved_as,
            drained: reloaded.finished,
            cut: reloaded.cut,
            holding: reloaded.to.and_then(|(_, pid)| Holding::of(pid).ok()),
            client_connections: self.client.open.load(Ordering::Relaxed) as u64,
            idle: Look::default(),
        })
    }
}
