//! Moving N idle connections (B), beside passing as many descriptors by a bare loop (A).
//!
//! - [`bare`]: A, both of its processes;
//! - [`moving`]: B, one server over all repetitions.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::args::ConnectionsArgs;
use super::goals::{Row, Verdict};
use super::smaps::PerConnection;
use super::stats::{Samples, ratio};
use super::{limits, report};
use crate::soak::{Place, align};
use moving::{Moved, Moving};

pub(crate) mod bare;
mod moving;

/// B takes at most so many times as long as A.
const GOAL: f64 = 2.0;

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: ConnectionsArgs,
    /// A, in milliseconds: first message sent to last one acknowledged.
    bare_ms: Samples,
    /// B, in milliseconds: the server's `draining` to its `drained`.
    drain_ms: Samples,
    /// Median of B over median of A.
    drain_per_bare: f64,
    /// A request on each connection, all at once: until the last is answered, before any reload.
    all_answered_before_ms: f64,
    /// The same, sent as soon as the command has reported the parent's end.
    all_answered_after_ms: Samples,
    /// In the process that accepted the connections.
    accepted: PerConnection,
    /// In processes that were given them, before they were used there.
    adopted: Vec<PerConnection>,
    reloads: Vec<Moved>,
}

impl Results {
    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let measured = format!("{:.2} ({} of them)", self.drain_per_bare, self.args.count);
        vec![Row::new(
            "idle connections moved / bare loop",
            format!("at most {GOAL}"),
            measured,
            Verdict::of(self.drain_per_bare <= GOAL),
        )]
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &ConnectionsArgs) -> Result<Results> {
    limits::make_room(args.count)?;
    let out = report::directory(&args.common)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(report::place(&args.common))?;
    let results = runtime.block_on(measure(args, &place, &out))?;
    print!("{}", table(&results));
    report::write_json(&results, &out, "connections")?;
    Ok(results)
}

async fn measure(args: &ConnectionsArgs, place: &Place, out: &Path) -> Result<Results> {
    let mut moving = Moving::start(args, place, out).await?;
    let (mut bare_ms, mut reloads) = (Vec::new(), Vec::new());
    for n in 1..=args.repetitions {
        let took = bare_once(args.count, args.batch, false).context("A, the bare loop")?;
        bare_ms.push(took.as_secs_f64() * 1e3);
        tokio::time::sleep(args.rest).await;
        let moved = moving.reload().await.context("B, the reload")?;
        eprintln!(
            "{n} of {}: A {:.2} ms, B {:.2} ms, all answered after {:.0} ms",
            args.repetitions,
            took.as_secs_f64() * 1e3,
            moved.drain_ms,
            moved.all_answered_ms
        );
        reloads.push(moved);
    }
    let all_answered_before_ms = moving.all_answered_before_ms;
    let accepted = moving.accepted;
    moving.stop().await?;
    let bare_ms = Samples::of(bare_ms);
    let of = |value: fn(&Moved) -> f64| Samples::of(reloads.iter().map(value).collect());
    let drain_ms = of(|moved| moved.drain_ms);
    Ok(Results {
        args: args.clone(),
        drain_per_bare: ratio(bare_ms.median, drain_ms.median),
        bare_ms,
        drain_ms,
        all_answered_before_ms,
        all_answered_after_ms: of(|moved| moved.all_answered_ms),
        accepted,
        adopted: reloads.iter().map(|moved| moved.memory).collect(),
        reloads,
    })
}

/// Fresh processes and connections each time: the receiver keeps what it gets.
pub(crate) fn bare_once(count: u32, batch: u32, by_channel: bool) -> Result<Duration> {
    let (count, batch) = (count.to_string(), batch.to_string());
    let mut told = vec!["bare-sender", "--count", &count, "--batch", &batch];
    told.extend(by_channel.then_some("--by-channel"));
    let mut sender = Helper::start(&told)?;
    let address = sender.line()?;
    let _clients = Helper::start(&["bare-clients", "--server", &address, "--count", &count])?;
    ensure!(sender.line()? == "ready", "the sender is not ready");
    writeln!(sender.tell, "go")?;
    let took = sender.line()?.parse().context("the sender's figure")?;
    Ok(Duration::from_micros(took))
}

/// One of A's processes, killed and reaped if it is dropped. The receiver ends with its sender.
struct Helper {
    child: Child,
    tell: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Helper {
    fn start(args: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("bench")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {args:?}"))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (tell, says) = pipes.context("a process without its pipes")?;
        Ok(Self {
            child,
            tell,
            says: BufReader::new(says),
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.says.read_line(&mut line)?;
        ensure!(read > 0, "a process of A has ended: its reason is above");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It has ended already, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn table(results: &Results) -> String {
    let head = ["", "min", "median", "max"].map(str::to_owned).to_vec();
    let row = |name: &str, samples: &Samples| {
        let name = [name.to_owned()];
        name.into_iter().chain(samples.cells()).collect::<Vec<_>>()
    };
    let memory = |name: &str, of: fn(&PerConnection) -> f64, each: &[PerConnection]| {
        row(name, &Samples::of(each.iter().map(of).collect()))
    };
    let rss = |each: &PerConnection| each.rss_bytes;
    let pss = |each: &PerConnection| each.pss_bytes;
    let (accepted, adopted) = (&[results.accepted][..], &results.adopted[..]);
    let rows = [
        head,
        row("A: bare loop with acks, ms", &results.bare_ms),
        row("B: draining to drained, ms", &results.drain_ms),
        row("all answered after it, ms", &results.all_answered_after_ms),
        memory("RSS of one, accepted, bytes", rss, accepted),
        memory("RSS of one, adopted, bytes", rss, adopted),
        memory("Pss of one, accepted, bytes", pss, accepted),
        memory("Pss of one, adopted, bytes", pss, adopted),
    ];
    let verdict = if results.drain_per_bare <= GOAL {
        "met"
    } else {
        "missed"
    };
    format!(
        "{} connections, {} repetitions\n{}B / A: {:.2} (goal {GOAL}: {verdict}); all answered before any reload: {:.0} ms\n",
        results.args.count,
        results.args.repetitions,
        align(&rows),
        results.drain_per_bare,
        results.all_answered_before_ms,
    )
}
