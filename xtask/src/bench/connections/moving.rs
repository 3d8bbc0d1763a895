//! B: `hello` with N connections that rest between two requests, and a reload of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::bench::args::ConnectionsArgs;
use crate::bench::crowd::Crowd;
use crate::bench::smaps::{Memory, PerConnection};
use crate::soak::{Build, Place, Reloaded, Server};

/// One reload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Moved {
    /// By the server's own events: `draining` to `drained`.
    pub(crate) drain_ms: f64,
    /// A request on each connection, all at once: until the last is answered.
    pub(crate) all_answered_ms: f64,
    /// Connections that moved, by what they were.
    pub(crate) moved_as: BTreeMap<String, u64>,
    /// In the new generation, before they were used.
    pub(crate) memory: PerConnection,
}

/// The server and its clients.
pub(crate) struct Moving<'a> {
    server: Server<'a>,
    count: u32,
    crowd: Crowd,
    /// A generation that was started by another, without connections.
    empty: Memory,
    /// In the generation that accepted the connections.
    pub(crate) accepted: PerConnection,
    /// Until the last of all requests was answered, before any reload.
    pub(crate) all_answered_before_ms: f64,
}

impl<'a> Moving<'a> {
    /// Starts the server, reloads it once, and opens all connections.
    pub(crate) async fn start(
        args: &ConnectionsArgs,
        place: &'a Place,
        out: &Path,
    ) -> Result<Self> {
        place.deploy(Build::A)?;
        let room = args.count + 1000;
        let needed = [
            format!("--max-connections={room}"),
            // As long as all repetitions may take.
            "--idle-timeout=3600s".into(),
        ];
        let serve_args = [needed.to_vec(), args.common.serve_args()].concat();
        let log = out.join("connections-server.log");
        let (server, _) = Server::start(place, &serve_args, &log).await?;
        // The memory of a child is not that of a first generation: compare like with like.
        let pid = confirmed(&server.reload(|_| {}).await?)?;
        let empty = Memory::of(pid)?;
        let mut crowd = Crowd::open(server.address, args.count)?;
        crowd.ask_all()?;
        let all_answered_before = crowd.ask_all()?;
        Ok(Self {
            server,
            count: args.count,
            crowd,
            empty,
            accepted: Memory::of(pid)?.each(empty, args.count),
            all_answered_before_ms: all_answered_before.as_secs_f64() * 1e3,
        })
    }

    /// One reload, and a request on each connection.
    ///
    /// # Errors
    ///
    /// It failed, or not all connections moved: such a figure would mean nothing.
    pub(crate) async fn reload(&mut self) -> Result<Moved> {
        let reloaded = self.server.reload(|_| {}).await?;
        let pid = confirmed(&reloaded)?;
        let memory = Memory::of(pid)?.each(self.empty, self.count);
        ensure!(
            reloaded.moved == u64::from(self.count),
            "{} of {} connections moved: {:?}",
            reloaded.moved,
            self.count,
            reloaded.moved_as
        );
        let drain = reloaded
            .drain
            .context("the parent has gone without saying how long its drain took")?;
        let all_answered = self.crowd.ask_all()?;
        Ok(Moved {
            drain_ms: drain.as_secs_f64() * 1e3,
            all_answered_ms: all_answered.as_secs_f64() * 1e3,
            moved_as: reloaded.moved_as,
            memory,
        })
    }

    /// Stops the server.
    pub(crate) async fn stop(self) -> Result<()> {
        let output = self.server.stop().await?;
        ensure!(
            output.status.success(),
            "`hello stop` failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// The new generation's process.
fn confirmed(reloaded: &Reloaded) -> Result<u32> {
    match (reloaded.failure(), reloaded.to) {
        (None, Some((_, pid))) => Ok(pid),
        (failure, _) => bail!("{}", failure.unwrap_or_else(|| "no new generation".into())),
    }
}
