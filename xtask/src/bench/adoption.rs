//! What moving a connection costs in processor time, of parent and child together, beside accepting one.
//!
//! A reload with N idle connections, less a reload with none, through N. The clocks are the kernel's own, of each process
//! with all its threads (clock_getcpuclockid(3)), to the nanosecond. The parent's is read until it has gone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;

use super::args::AdoptionArgs;
use super::crowd::Crowd;
use super::goals::{Row, Verdict};
use super::stats::{Samples, ratio};
use super::{limits, report};
use crate::faults::wait_for;
use crate::soak::{Build, Holding, Place, Server, align};

/// Between two looks at the clock of a process that may end.
const LOOK: Duration = Duration::from_micros(100);
/// For a process that has finished its drain to end.
const PATIENCE: Duration = Duration::from_secs(15);
/// After which a child has put away what it adopted.
const SETTLE: Duration = Duration::from_millis(300);

/// One turn, in microseconds of processor time.
#[derive(Clone, Copy, Debug, Serialize)]
struct Turn {
    /// A reload without connections: parent and child together.
    empty_us: f64,
    /// A reload with all of them.
    full_us: f64,
    /// For each connection: moved, accepted, and answered for the first time after either.
    moved_us: f64,
    accepted_us: f64,
    first_answer_us: f64,
    answer_after_move_us: f64,
}

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: AdoptionArgs,
    /// For each connection, in microseconds of processor time.
    moved_us: Samples,
    accepted_us: Samples,
    first_answer_us: Samples,
    answer_after_move_us: Samples,
    /// The median over the turns of a moved one through an accepted one.
    pub(crate) moved_per_accepted: f64,
    turns: Vec<Turn>,
}

impl Results {
    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let measured = format!(
            "{:.1} us; to accept one {:.1} us",
            self.moved_us.median, self.accepted_us.median
        );
        let figure = "processor time to move a connection";
        vec![Row::new(figure, "", measured, Verdict::NoGoal)]
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &AdoptionArgs) -> Result<Results> {
    limits::make_room(args.count)?;
    let out = report::directory(&args.common)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(report::place(&args.common))?;
    let turns = runtime.block_on(measure(args, &place, &out))?;
    let of = |value: fn(&Turn) -> f64| Samples::of(turns.iter().map(value).collect());
    let results = Results {
        args: args.clone(),
        moved_us: of(|turn| turn.moved_us),
        accepted_us: of(|turn| turn.accepted_us),
        first_answer_us: of(|turn| turn.first_answer_us),
        answer_after_move_us: of(|turn| turn.answer_after_move_us),
        moved_per_accepted: of(|turn| ratio(turn.accepted_us, turn.moved_us)).median,
        turns,
    };
    print!("{}", table(&results));
    report::write_json(&results, &out, "adoption")?;
    Ok(results)
}

async fn measure(args: &AdoptionArgs, place: &Place, out: &Path) -> Result<Vec<Turn>> {
    place.deploy(Build::A)?;
    let needed = vec![
        format!("--max-connections={}", args.count + 1000),
        "--idle-timeout=3600s".into(),
        "--header-timeout=3600s".into(),
    ];
    let serve_args = [needed, args.common.serve_args()].concat();
    let log = out.join("adoption-server.log");
    let (server, status) = Server::start(place, &serve_args, &log).await?;
    let mut pid = reload(&server, status.pid, 0).await?.1;
    let mut turns = Vec::new();
    for n in 1..=args.repetitions {
        let turn = turn(args, &server, &mut pid).await?;
        eprintln!(
            "{n} of {}: moved {:.1} us, accepted {:.1} us",
            args.repetitions, turn.moved_us, turn.accepted_us
        );
        turns.push(turn);
    }
    server.stop().await?;
    Ok(turns)
}

async fn turn(args: &AdoptionArgs, server: &Server<'_>, pid: &mut u32) -> Result<Turn> {
    let each = |us: f64| us / f64::from(args.count);
    let (empty_us, next) = reload(server, *pid, 0).await?;
    *pid = next;
    let before = cpu_us(*pid)?;
    let sockets = Holding::of(*pid)?.sockets;
    let mut crowd = Crowd::open(server.address, args.count)?;
    let all = sockets + u64::from(args.count);
    wait_for("all are accepted", || Ok(Holding::of(*pid)?.sockets >= all))?;
    tokio::time::sleep(SETTLE).await;
    let accepted = cpu_us(*pid)?;
    crowd.ask_all()?;
    let answered = cpu_us(*pid)?;
    tokio::time::sleep(args.rest).await;
    let (full_us, next) = reload(server, *pid, args.count).await?;
    *pid = next;
    let adopted = cpu_us(*pid)?;
    crowd.ask_all()?;
    let answered_after = cpu_us(*pid)?;
    drop(crowd);
    wait_for("all are closed", || {
        Ok(Holding::of(*pid)?.sockets <= sockets)
    })?;
    Ok(Turn {
        empty_us,
        full_us,
        moved_us: each(full_us - empty_us),
        accepted_us: each(accepted - before),
        first_answer_us: each(answered - accepted),
        answer_after_move_us: each(answered_after - adopted),
    })
}

/// The processor time of both processes in a reload, in microseconds, and the new one.
async fn reload(server: &Server<'_>, parent: u32, count: u32) -> Result<(f64, u32)> {
    let before = cpu_us(parent)?;
    let watch = Watch::start(parent)?;
    let reloaded = server.reload_by_socket(|_| {}).await?;
    let child = match (reloaded.failure(), reloaded.to) {
        (None, Some((_, pid))) => pid,
        (failure, _) => bail!("{}", failure.unwrap_or_else(|| "no new generation".into())),
    };
    ensure!(
        reloaded.moved == u64::from(count),
        "{} of {count} connections moved",
        reloaded.moved
    );
    let of_parent = watch.finish().await? - before;
    tokio::time::sleep(SETTLE).await;
    Ok((of_parent + cpu_us(child)?, child))
}

fn clock(pid: u32) -> Result<ClockId> {
    clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .with_context(|| format!("process {pid} has no clock"))
}

/// What the process has used so far, in microseconds.
fn cpu_us(pid: u32) -> Result<f64> {
    let now = clock_gettime(clock(pid)?)?;
    Ok(Duration::from(now).as_secs_f64() * 1e6)
}

/// Reads the clock of a process until that has gone.
struct Watch {
    last_ns: Arc<AtomicU64>,
    is_gone: Arc<AtomicBool>,
}

impl Watch {
    fn start(pid: u32) -> Result<Self> {
        let (last_ns, is_gone) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let watch = Self {
            last_ns: Arc::clone(&last_ns),
            is_gone: Arc::clone(&is_gone),
        };
        let clock = clock(pid)?;
        std::thread::spawn(move || {
            while let Ok(now) = clock_gettime(clock) {
                let ns = u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX);
                last_ns.store(ns, Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
            is_gone.store(true, Ordering::Release);
        });
        Ok(watch)
    }

    /// The last of it, in microseconds.
    async fn finish(self) -> Result<f64> {
        // Another task reaps it, if it is our child: this one must not block.
        let has_gone = async {
            while !self.is_gone.load(Ordering::Acquire) {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, has_gone)
            .await
            .with_context(|| format!("the parent has not gone after {PATIENCE:?}"))?;
        Ok(self.last_ns.load(Ordering::Relaxed) as f64 / 1e3)
    }
}

fn table(results: &Results) -> String {
    let head = ["processor time, us", "min", "median", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, samples) in [
        ("moved, parent and child", &results.moved_us),
        ("accepted", &results.accepted_us),
        ("first answer, accepted", &results.first_answer_us),
        ("first answer, moved", &results.answer_after_move_us),
    ] {
        let name = [name.to_owned()];
        rows.push(name.into_iter().chain(samples.cells()).collect());
    }
    format!(
        "for each of {} connections, {} turns\n{}moved / accepted: {:.2}\n",
        results.args.count,
        results.args.repetitions,
        align(&rows),
        results.moved_per_accepted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_works_uses_time_and_one_that_has_gone_has_none() {
        let before = cpu_us(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while cpu_us(std::process::id()).unwrap() < before + 5000.0 {
            sum = std::hint::black_box(sum + 1);
        }
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let watch = Watch::start(child.id()).unwrap();
        assert!(cpu_us(child.id()).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watch.finish().await.unwrap() < 1e6);
    }
}
