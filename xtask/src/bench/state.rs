//! Reloads with much state (B), beside as long a time without (A), in turns, for each size.
//!
//! The state is one section that never changes, in pieces of 1 MiB: no lock of the application is in the way. So what is
//! measured is what the succession costs, not what an application's own snapshot does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::affinity::{Cores, move_to};
use super::args::{StateArgs, size};
use super::gaps::{Asking, Gaps};
use super::goals::{Row, Verdict};
use super::stats::Samples;
use super::{examples, report};
use crate::soak::{Latency, Phase, Place, Server, align};

/// The longest silence at a reload, in milliseconds.
const GOAL_MS: f64 = 5.0;
/// Beyond the 99.9th percentile without a reload, in milliseconds.
const GOAL_ABOVE_MS: f64 = 1.0;
/// Before the reload and after it.
const AROUND: Duration = Duration::from_millis(200);

/// One window of one client.
#[derive(Clone, Debug, Serialize)]
struct Silence {
    longest_ms: f64,
    /// The phase of the reload in which it began; `before` or `after` it.
    during: Option<String>,
}

/// One reload, and the window without one that came after it.
#[derive(Clone, Debug, Serialize)]
struct Round {
    /// From the request to the end of the parent's drain, by the server's clock.
    total_ms: f64,
    phases: Vec<Phase>,
    /// Of the client that asks without pause, and of the one that connects.
    with: [Silence; 2],
    without: [Silence; 2],
}

/// One client, over all rounds of a size.
#[derive(Debug, Serialize)]
struct Client {
    /// The longest silence of each window.
    with_ms: Samples,
    without_ms: Samples,
    /// All answers of all windows without a reload.
    pooled_without: Latency,
    met: bool,
}

/// All rounds of one size.
#[derive(Debug, Serialize)]
struct Sized {
    bytes: u64,
    total_ms: Samples,
    phases: Vec<(String, Samples)>,
    /// It asks without pause.
    asking: Client,
    /// It connects.
    connecting: Client,
    rounds: Vec<Round>,
}

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: StateArgs,
    sizes: Vec<Sized>,
}

impl Results {
    /// For the table of the goals: the longest silence of all reloads, of both clients.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let of_size = |sized: &Sized| {
            let clients = [&sized.asking, &sized.connecting];
            let worst = clients.map(|client| client.with_ms.max);
            let without = clients.map(|client| client.without_ms.max);
            let measured = format!(
                "{} of state: {:.2} ms, without {:.2} ms, p99.9 {:.2} ms",
                size(sized.bytes),
                worst[0].max(worst[1]),
                without[0].max(without[1]),
                sized.asking.pooled_without.p999_ms
            );
            Row::new(
                "longest silence at a reload",
                format!("below {GOAL_MS} ms, and p99.9 + {GOAL_ABOVE_MS} ms"),
                measured,
                Verdict::of(clients.iter().all(|client| client.met)),
            )
        };
        self.sizes.iter().map(of_size).collect()
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &StateArgs) -> Result<Results> {
    let cores = Cores::two()?;
    let out = report::directory(&args.common)?;
    let heavy = examples::build("heavy")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut sizes = Vec::new();
    for bytes in &args.sizes {
        let place = runtime.block_on(report::place(&args.common))?;
        let measured = measure(args, cores, &place, &heavy, &out, *bytes);
        let sized = runtime.block_on(measured).context(size(*bytes))?;
        print!("{}", table(&sized));
        sizes.push(sized);
    }
    let results = Results {
        args: args.clone(),
        sizes,
    };
    report::write_json(&results, &out, "state")?;
    Ok(results)
}

async fn measure(
    args: &StateArgs,
    cores: Cores,
    place: &Place,
    heavy: &Path,
    out: &Path,
    bytes: u64,
) -> Result<Sized> {
    if !args.any_core {
        move_to(cores.server)?;
    }
    let log = out.join("state-server.log");
    let (server, _) = examples::start_heavy(place, heavy, bytes, &log).await?;
    if !args.any_core {
        move_to(cores.client)?;
    }
    // The first generation was started by another, and made its state: all that are measured are children of a child.
    reload(&server).await?;
    let (mut rounds, mut pooled) = (Vec::new(), [Latency::histogram()?, Latency::histogram()?]);
    for n in 1..=args.rounds {
        let round = round(&server, &mut pooled).await?;
        eprintln!(
            "{}: {n} of {}: {:.1} ms, longest silences {:.2} ms ({}) and {:.2} ms ({}), without {:.2} and {:.2} ms",
            size(bytes),
            args.rounds,
            round.total_ms,
            round.with[0].longest_ms,
            round.with[0].during.as_deref().unwrap_or("-"),
            round.with[1].longest_ms,
            round.with[1].during.as_deref().unwrap_or("-"),
            round.without[0].longest_ms,
            round.without[1].longest_ms,
        );
        rounds.push(round);
    }
    server.stop().await?;
    Ok(sized(bytes, rounds, &pooled))
}

async fn round(server: &Server<'_>, pooled: &mut [Histogram<u64>; 2]) -> Result<Round> {
    let began = Instant::now();
    let asking = Asking::start(server.address);
    tokio::time::sleep(AROUND).await;
    let asked = Instant::now();
    let phases = reload(server).await?;
    tokio::time::sleep(AROUND).await;
    let with = asking.finish().context("with a reload")?;
    let window = began.elapsed();
    let asking = Asking::start(server.address);
    tokio::time::sleep(window).await;
    let without = asking.finish().context("without a reload")?;
    for (pooled, gaps) in pooled.iter_mut().zip(&without) {
        pooled.add(&gaps.all)?;
    }
    let silence = |gaps: &Gaps, phases: &[Phase]| Silence {
        longest_ms: gaps.longest.as_secs_f64() * 1e3,
        during: gaps.began.map(|began| during(began, asked, phases)),
    };
    Ok(Round {
        total_ms: phases.last().map_or(0.0, |phase| phase.at_ms),
        with: with.each_ref().map(|gaps| silence(gaps, &phases)),
        without: without.each_ref().map(|gaps| Silence {
            during: None,
            ..silence(gaps, &[])
        }),
        phases,
    })
}

async fn reload(server: &Server<'_>) -> Result<Vec<Phase>> {
    let reloaded = server.reload_by_socket(|_| {}).await?;
    match reloaded.failure() {
        Some(failure) => bail!("the reload failed: {failure}"),
        None => Ok(reloaded.phases),
    }
}

/// The server's clock began a moment after `asked`: to within that moment.
fn during(began: Instant, asked: Instant, phases: &[Phase]) -> String {
    let Some(since) = began.checked_duration_since(asked) else {
        return "before".to_owned();
    };
    let at_ms = since.as_secs_f64() * 1e3;
    let phase = phases.iter().rfind(|phase| phase.at_ms <= at_ms);
    phase.map_or("before".to_owned(), |phase| match phase.name.as_str() {
        "drained" => "after".to_owned(),
        name => name.to_owned(),
    })
}

fn sized(bytes: u64, rounds: Vec<Round>, pooled: &[Histogram<u64>; 2]) -> Sized {
    let client = |n: usize| {
        let of = |silences: fn(&Round) -> &[Silence; 2]| {
            let each = rounds.iter().map(|round| silences(round)[n].longest_ms);
            Samples::of(each.collect())
        };
        let (with_ms, pooled_without) = (of(|round| &round.with), Latency::of(&pooled[n]));
        Client {
            met: with_ms.max < GOAL_MS && with_ms.max < pooled_without.p999_ms + GOAL_ABOVE_MS,
            without_ms: of(|round| &round.without),
            with_ms,
            pooled_without,
        }
    };
    let reloads = rounds.iter().map(|round| round.phases.as_slice());
    Sized {
        bytes,
        total_ms: Samples::of(rounds.iter().map(|round| round.total_ms).collect()),
        phases: super::reload::in_phases(reloads),
        asking: client(0),
        connecting: client(1),
        rounds,
    }
}

fn table(sized: &Sized) -> String {
    let head = ["milliseconds", "min", "median", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut row = |name: &str, samples: &Samples| {
        let name = [name.to_owned()];
        rows.push(name.into_iter().chain(samples.cells()).collect());
    };
    row("reload, to its drained", &sized.total_ms);
    for (name, ms) in &sized.phases {
        row(&format!("in {name}"), ms);
    }
    for (name, client) in [("asking", &sized.asking), ("connecting", &sized.connecting)] {
        row(&format!("{name}: longest silence"), &client.with_ms);
        row(&format!("{name}: without a reload"), &client.without_ms);
    }
    let mut text = format!("state of {}\n{}", size(sized.bytes), align(&rows));
    for (name, client) in [("asking", &sized.asking), ("connecting", &sized.connecting)] {
        let p999 = client.pooled_without.p999_ms;
        text += &format!(
            "{name}: longest {:.2} ms; goal {GOAL_MS} ms, and {:.2} ms (p99.9 without, and {GOAL_ABOVE_MS}): {}\n",
            client.with_ms.max,
            p999 + GOAL_ABOVE_MS,
            if client.met { "met" } else { "missed" }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_belongs_to_the_phase_in_which_it_began() {
        let asked = Instant::now();
        let phase = |name: &str, at_ms| Phase {
            name: name.into(),
            at_ms,
        };
        let phases = [
            phase("starting", 0.0),
            phase("restoring", 10.0),
            phase("drained", 20.0),
        ];
        let at = |ms| during(asked + Duration::from_millis(ms), asked, &phases);
        assert_eq!(at(3), "starting");
        assert_eq!(at(12), "restoring");
        assert_eq!(at(30), "after");
        let before = asked.checked_sub(Duration::from_millis(1)).unwrap();
        assert_eq!(during(before, asked, &phases), "before");
    }
}
