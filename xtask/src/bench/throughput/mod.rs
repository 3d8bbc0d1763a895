//! Requests a second and processor time of each, of `hello` beside hyper alone, nginx and Go on the same core, in turns;
//! and of `hello` with one reload a second beside `hello` without.
//!
//! - [`peers`]: the servers; - [`wrk`]: the load, which is `wrk`'s (Debian's package of that name).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::affinity::{Cores, move_to};
use super::args::ThroughputArgs;
use super::goals::{Row, Verdict};
use super::stats::{Samples, ratio};
use super::{examples, report};
use crate::soak::{Build, Place, align};
use peers::Peer;
use wrk::{Shot, Wrk};

pub(crate) mod peers;
mod wrk;

/// Of bare hyper's requests a second: at least.
const GOAL_BARE: f64 = 0.98;
/// With one reload a second, of those without: at least.
const GOAL_RELOADS: f64 = 0.95;
/// Between two reloads.
const EVERY: Duration = Duration::from_secs(1);

/// One server, over all rounds.
#[derive(Debug, Serialize)]
struct Of {
    name: &'static str,
    requests_per_second: Samples,
    p99_ms: Samples,
    cpu_us_per_request: Samples,
    /// The median over the rounds of `hello`'s requests a second through this one's.
    hello_per_this: f64,
    /// The same of processor time: this one's through `hello`'s.
    cpu_this_per_hello: f64,
}

#[derive(Debug, Serialize)]
struct Reloads {
    without: Samples,
    with: Samples,
    p99_without_ms: Samples,
    p99_with_ms: Samples,
    /// The median over the rounds of with through without.
    ratio: f64,
    reloads: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: ThroughputArgs,
    servers: Vec<Of>,
    reloads: Reloads,
    errors: u64,
}

impl Results {
    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let goals = [
            ("bare", "requests/s / bare hyper's", GOAL_BARE),
            ("nginx", "the same / nginx's", 1.0),
            ("go", "the same / Go's", 1.0),
        ];
        let row = |(name, figure, goal): (&str, &'static str, f64)| {
            let Some(of) = self.servers.iter().find(|of| of.name == name) else {
                return Row::new(figure, "", "not installed", Verdict::NotMeasured);
            };
            let ratio = of.hello_per_this;
            let (least, measured) = (format!("at least {goal}"), format!("{ratio:.3}"));
            Row::new(figure, least, measured, Verdict::of(ratio >= goal))
        };
        let mut rows: Vec<Row> = goals.into_iter().map(row).collect();
        rows.push(Row::new(
            "the same with a reload a second / without",
            format!("at least {GOAL_RELOADS}"),
            format!("{:.3}", self.reloads.ratio),
            Verdict::of(self.reloads.ratio >= GOAL_RELOADS),
        ));
        rows
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &ThroughputArgs) -> Result<Results> {
    let wrk = Wrk::found()?;
    let cores = Cores::two()?;
    let out = report::directory(&args.common)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(report::place(&args.common))?;
    place.deploy(Build::A)?;
    let bare = examples::build("bare")?;
    // Whoever starts a server is on its core.
    let mut peers = std::thread::scope(|scope| {
        let start = scope.spawn(|| {
            move_to(cores.server)?;
            peers::start(&place, &bare, &args.common)
        });
        start
            .join()
            .unwrap_or_else(|_| bail!("starting the servers has panicked"))
    })?;
    move_to(cores.client)?;
    let shots = rounds(args, &wrk, &mut peers)?;
    let reloads = reloads(args, &wrk, &place, &peers[0])?;
    drop(peers);
    let results = results(args, shots, reloads);
    print!("{}", table(&results));
    report::write_json(&results, &out, "throughput")?;
    Ok(results)
}

type Shots = Vec<(&'static str, Vec<Shot>)>;

/// All of them in each round, each first in its turn.
fn rounds(args: &ThroughputArgs, wrk: &Wrk, peers: &mut [Peer]) -> Result<Shots> {
    let mut shots: Shots = peers.iter().map(|peer| (peer.name, Vec::new())).collect();
    for round in 0..args.rounds as usize {
        for side in 0..peers.len() {
            let at = (round + side) % peers.len();
            let shot = wrk.at(&peers[at], args).context(peers[at].name)?;
            shots[at].1.push(shot);
        }
        let told: Vec<String> = shots
            .iter()
            .filter_map(|(name, shots)| Some(format!("{name} {:.0}", shots.last()?.rate)))
            .collect();
        eprintln!(
            "{} of {}: requests/s: {}",
            round + 1,
            args.rounds,
            told.join(", ")
        );
    }
    Ok(shots)
}

/// `hello` without and with one reload a second, in turns.
fn reloads(args: &ThroughputArgs, wrk: &Wrk, place: &Place, hello: &Peer) -> Result<Reloads> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut reloads = 0;
    let long = ThroughputArgs {
        seconds: args.seconds.max(4),
        ..args.clone()
    };
    for round in 0..args.rounds {
        for side in 0..2 {
            if (round + side) % 2 == 0 {
                without.push(wrk.at(hello, &long)?);
            } else {
                let (shot, made) = std::thread::scope(|scope| {
                    let shot = scope.spawn(|| wrk.at(hello, &long));
                    let mut made = 0;
                    let mut next = Instant::now() + EVERY / 2;
                    while !shot.is_finished() {
                        if Instant::now() >= next {
                            next += EVERY;
                            reload(place, hello)?;
                            made += 1;
                        }
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    let shot = shot.join().unwrap_or_else(|_| bail!("wrk has panicked"))?;
                    anyhow::Ok((shot, made))
                })?;
                reloads += made;
                with.push(shot);
            }
        }
        eprintln!("{} of {}: with and without reloads", round + 1, args.rounds);
    }
    let rate = |shots: &[Shot]| Samples::of(shots.iter().map(|shot| shot.rate).collect());
    let p99 = |shots: &[Shot]| Samples::of(shots.iter().map(|shot| shot.p99_ms).collect());
    let pairs = without.iter().zip(&with);
    Ok(Reloads {
        ratio: Samples::of(pairs.map(|(a, b)| ratio(a.rate, b.rate)).collect()).median,
        without: rate(&without),
        with: rate(&with),
        p99_without_ms: p99(&without),
        p99_with_ms: p99(&with),
        reloads,
    })
}

fn reload(place: &Place, hello: &Peer) -> Result<()> {
    let output = std::process::Command::new(place.hello())
        .args(["reload", "--no-wait", "--pidfile"])
        .arg(hello.dir.join("pid"))
        .output()?;
    if !output.status.success() {
        bail!(
            "the reload failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn results(args: &ThroughputArgs, shots: Shots, reloads: Reloads) -> Results {
    let hello = shots[0].1.clone();
    let median = |of: &dyn Fn(&Shot, &Shot) -> f64, shots: &[Shot]| {
        Samples::of(
            hello
                .iter()
                .zip(shots)
                .map(|(hello, this)| of(hello, this))
                .collect(),
        )
        .median
    };
    let errors = shots
        .iter()
        .flat_map(|(_, shots)| shots)
        .map(|shot| shot.errors)
        .sum();
    let servers = shots
        .into_iter()
        .map(|(name, shots)| {
            let each = |of: fn(&Shot) -> f64| Samples::of(shots.iter().map(of).collect());
            Of {
                name,
                hello_per_this: median(&|hello, this| ratio(this.rate, hello.rate), &shots),
                cpu_this_per_hello: median(&|hello, this| ratio(hello.cpu_us, this.cpu_us), &shots),
                requests_per_second: each(|shot| shot.rate),
                p99_ms: each(|shot| shot.p99_ms),
                cpu_us_per_request: each(|shot| shot.cpu_us),
            }
        })
        .collect();
    Results {
        args: args.clone(),
        servers,
        reloads,
        errors,
    }
}

fn table(results: &Results) -> String {
    let head = [
        "",
        "requests/s",
        "p99 ms",
        "cpu us/request",
        "hello / this",
        "cpu this / hello",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for of in &results.servers {
        rows.push(vec![
            of.name.to_owned(),
            format!("{:.0}", of.requests_per_second.median),
            format!("{:.2}", of.p99_ms.median),
            format!("{:.2}", of.cpu_us_per_request.median),
            format!("{:.3}", of.hello_per_this),
            format!("{:.3}", of.cpu_this_per_hello),
        ]);
    }
    let Reloads {
        without,
        with,
        p99_without_ms,
        p99_with_ms,
        ratio,
        reloads,
    } = &results.reloads;
    let said = |met: bool| if met { "met" } else { "missed" };
    let mut text = format!(
        "medians of {} rounds of {} s, one core each for server and client\n{}",
        results.args.rounds,
        results.args.seconds,
        align(&rows)
    );
    for (name, goal) in [("bare", GOAL_BARE), ("nginx", 1.0), ("go", 1.0)] {
        if let Some(of) = results.servers.iter().find(|of| of.name == name) {
            let met = said(of.hello_per_this >= goal);
            text += &format!(
                "hello / {name}: {:.3} (goal {goal}: {met})\n",
                of.hello_per_this
            );
        }
    }
    text += &format!(
        "with a reload a second ({reloads}): {:.0} of {:.0} requests/s, {ratio:.3} (goal {GOAL_RELOADS}: {}); p99 {:.2}, without {:.2} ms\n",
        with.median,
        without.median,
        said(*ratio >= GOAL_RELOADS),
        p99_with_ms.median,
        p99_without_ms.median,
    );
    if results.errors > 0 {
        text += &format!(
            "{} requests failed: the figures are of those that did not\n",
            results.errors
        );
    }
    text
}

/// Where nothing can be measured: what is missing, in one error.
fn missing(what: &str, remedy: &str) -> anyhow::Error {
    anyhow::anyhow!("{what} is missing: {remedy}")
}

fn is_program(path: &Path) -> bool {
    path.is_file()
}
