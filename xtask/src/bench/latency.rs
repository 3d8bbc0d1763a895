//! Requests in windows with one reload (B) and without (A), in turns.
//!
//! The client and its threads have a core of their own, and so has the server with all its generations. The reload is
//! asked for on the control socket, because a command would run beside the client.
//! A lost request ends the measurement: a latency of those that are left would mean nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::affinity::{Cores, move_to};
use super::args::LatencyArgs;
use super::goals::{Row, Verdict};
use super::report;
use super::stats::{Samples, ratio};
use crate::soak::{
    Book, Build, Client, Latency, Load, Place, Schedule, Server, Timeline, align, allow_descriptors,
};

/// From the sending of a request to the end of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// One window.
#[derive(Clone, Debug, Serialize)]
struct Window {
    /// Whether there was a reload in its middle.
    reload: bool,
    /// From the due time.
    latency: Latency,
    /// The latest request against its due time: the client's own lateness, part of the latencies.
    worst_lateness_ms: f64,
}

/// One side, over all its windows.
#[derive(Clone, Debug, Serialize)]
struct Side {
    /// All requests together.
    pooled: Latency,
    /// The 99.9th percentile of each window, in milliseconds.
    p999_ms: Samples,
}

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: LatencyArgs,
    cores: [usize; 2],
    without: Side,
    with_reload: Side,
    /// Of all requests together: p99.9 with a reload over p99.9 without.
    p999_ratio: f64,
    /// The same of the medians of the windows.
    p999_ratio_of_medians: f64,
    windows: Vec<Window>,
}

impl Results {
    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let measured = format!("{:.2}", self.p999_ratio);
        vec![Row::new(
            "p99.9 with a reload / without",
            "",
            measured,
            Verdict::NoGoal,
        )]
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &LatencyArgs) -> Result<Results> {
    let cores = Cores::two()?;
    let out = report::directory(&args.common)?;
    // Everything on the client's side is started by this thread, and goes where it is.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(report::place(&args.common))?;
    let results = runtime.block_on(measure(args, cores, &place, &out))?;
    print!("{}", table(&results));
    report::write_json(&results, &out, "latency")?;
    Ok(results)
}

async fn measure(args: &LatencyArgs, cores: Cores, place: &Place, out: &Path) -> Result<Results> {
    place.deploy(Build::A)?;
    move_to(cores.server)?;
    let log = out.join("latency-server.log");
    let (server, status) = Server::start(place, &args.common.serve_args(), &log).await?;
    move_to(cores.client)?;
    let mut bench = Bench {
        args,
        server,
        timeline: Arc::new(Timeline::new(status.generation, place.greetings.clone())),
        max_open: allow_descriptors()?,
        losses: out.join("latency-losses.log"),
        reloads: 0,
    };
    let (mut windows, mut sides) = (Vec::new(), [empty()?, empty()?]);
    for pair in 0..args.windows {
        // The order changes with each pair: what drifts meets both.
        for reload in [pair % 2 == 1, pair % 2 == 0] {
            let (window, histogram) = bench.window(reload).await?;
            eprintln!(
                "{} of {}: {}: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                windows.len() + 1,
                2 * args.windows,
                name(reload),
                window.latency.p50_ms,
                window.latency.p99_ms,
                window.latency.p999_ms
            );
            sides[usize::from(reload)].add(histogram)?;
            windows.push(window);
        }
    }
    bench.server.stop().await?;
    Ok(results(args, cores, windows, &sides))
}

fn name(reload: bool) -> &'static str {
    if reload {
        "B, one reload"
    } else {
        "A, without"
    }
}

fn empty() -> Result<Histogram<u64>> {
    Latency::histogram()
}

fn results(
    args: &LatencyArgs,
    cores: Cores,
    windows: Vec<Window>,
    sides: &[Histogram<u64>; 2],
) -> Results {
    let side = |reload: bool| Side {
        pooled: Latency::of(&sides[usize::from(reload)]),
        p999_ms: Samples::of(
            windows
                .iter()
                .filter(|window| window.reload == reload)
                .map(|window| window.latency.p999_ms)
                .collect(),
        ),
    };
    let (without, with_reload) = (side(false), side(true));
    Results {
        args: args.clone(),
        cores: [cores.server, cores.client],
        p999_ratio: ratio(without.pooled.p999_ms, with_reload.pooled.p999_ms),
        p999_ratio_of_medians: ratio(without.p999_ms.median, with_reload.p999_ms.median),
        without,
        with_reload,
        windows,
    }
}

/// What all windows share.
struct Bench<'a> {
    args: &'a LatencyArgs,
    server: Server<'a>,
    timeline: Arc<Timeline>,
    max_open: usize,
    losses: PathBuf,
    reloads: u64,
}

impl Bench<'_> {
    async fn window(&mut self, reload: bool) -> Result<(Window, Histogram<u64>)> {
        let book = Arc::new(Book::new(Arc::clone(&self.timeline), &self.losses)?);
        let client = Arc::new(Client {
            page: None,
            target: self.server.address,
            one_way: Duration::ZERO,
            timeout: REQUEST_TIMEOUT,
            max_open: self.max_open,
            open: Arc::new(AtomicUsize::new(0)),
            timeline: Arc::clone(&self.timeline),
            book: Arc::clone(&book),
        });
        let (rate, seed) = (self.args.rate, self.reloads);
        let schedule = |start| Schedule::new(start, rate, seed).of_keep_alive();
        let load = Load::start(&client, self.args.connections, schedule).await?;
        let end = Instant::now() + self.args.window;
        tokio::time::sleep(self.args.window / 2).await;
        if reload {
            self.reload().await?;
        }
        tokio::time::sleep_until(end.into()).await;
        let sent = load.finish().await?;
        let account = book.account();
        if let Some(loss) = account.losses.first() {
            bail!(
                "{} requests lost, {} connections closed; the first: {loss}",
                account.totals.lost,
                account.totals.closed
            );
        }
        let histogram = book.latencies();
        let window = Window {
            reload,
            latency: Latency::of(&histogram),
            worst_lateness_ms: sent.paced.worst_lateness.as_secs_f64() * 1e3,
        };
        Ok((window, histogram))
    }

    async fn reload(&mut self) -> Result<()> {
        self.reloads += 1;
        self.timeline.begin_reload(self.reloads, Build::A);
        let timeline = Arc::clone(&self.timeline);
        let reloaded = self
            .server
            .reload_by_socket(|(generation, _)| timeline.commit(generation))
            .await
            .context("the reload")?;
        self.timeline.end_reload();
        match reloaded.failure() {
            None => Ok(()),
            Some(failure) => bail!("the reload failed: {failure}"),
        }
    }
}

fn table(results: &Results) -> String {
    let head = [
        "latency from the due time, ms",
        "count",
        "p50",
        "p99",
        "p99.9",
        "max",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (reload, side) in [(false, &results.without), (true, &results.with_reload)] {
        let pooled = side.pooled;
        let ms = [pooled.p50_ms, pooled.p99_ms, pooled.p999_ms, pooled.max_ms];
        let front = [name(reload).to_owned(), pooled.count.to_string()];
        let row = front.into_iter().chain(ms.map(|ms| format!("{ms:.2}")));
        rows.push(row.collect());
    }
    format!(
        "{} pairs of windows of {:?}, {} requests a second, server on core {}, client on core {}\n{}\
         p99.9 with a reload / without: {:.2}; of the medians of the windows ({:.2} and {:.2} ms): {:.2}\n",
        results.args.windows,
        results.args.window,
        results.args.rate,
        results.cores[0],
        results.cores[1],
        align(&rows),
        results.p999_ratio,
        results.with_reload.p999_ms.median,
        results.without.p999_ms.median,
        results.p999_ratio_of_medians
    )
}
