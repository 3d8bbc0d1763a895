//! `cargo xtask soak`: hot reloads under load, and a count of what the clients lost.
//!
//! # Layout
//!
//! - [`args`], [`builds`] (two builds of `hello` and the place where one replaces the other),
//!   [`server`] (the verbs, as an operator runs them), [`reloaded`] (what a reload says), [`process`] (`/proc`, and the killing of what is left);
//! - any other server: [`peer`] (driven by commands), [`profile`] (those that the soak knows), [`tree`] (its processes),
//!   [`compare`] (one after the other);
//! - the load: [`schedule`] (which request leaves when), [`load`] (the pool), [`idle`] (connections that rest),
//!   [`mod@client`] (one exchange, never repeated), [`request`] (what is asked, what is right),
//!   [`websocket`] (sessions that count);
//! - the wire, from the kernel up: [`mod@line`], [`delay`] (distance), [`tap`] (what the socket said last);
//! - the verdict: [`outcome`] and [`book`] (each request), [`timeline`] (which reload, which
//!   generation), [`reloads`] and [`probe`] (each reload), [`latency`], [`by_reload`],
//!   [`samples`] (what each generation holds), [`ending`] and [`counter`] (what is left when the
//!   load is over), [`checks`], [`results`], [`report`].
//!
//! Everything is bounded in time and count. Whatever ends the soak, [`builds::Place`] kills
//! what it started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

mod args;
mod book;
mod builds;
mod by_reload;
mod checks;
mod client;
mod compare;
mod counter;
mod delay;
mod ending;
mod idle;
mod latency;
mod line;
mod load;
mod outcome;
mod peer;
mod probe;
mod process;
mod profile;
mod progress;
mod reloaded;
mod reloads;
mod report;
mod request;
mod results;
mod samples;
mod schedule;
mod server;
mod tap;
#[cfg(test)]
mod tests;
mod timeline;
mod tree;
mod websocket;

pub(crate) use args::{SoakArgs, as_seconds_always, parse_duration};
pub(crate) use book::Book;
pub(crate) use builds::{Place, executable};
pub(crate) use client::Client;
use idle::Idle;
pub(crate) use latency::Latency;
use latency::ms;
pub(crate) use load::Load;
pub(crate) use process::Holding;
pub(crate) use profile::Profile;
pub(crate) use reloaded::{Phase, Reloaded};
use reloads::Run;
pub(crate) use report::align;
use results::{FORMAT, Holdings, IdleResults, LoadResults, Machine, Moved, Results, Timings};
use samples::Samples;
pub(crate) use schedule::Schedule;
pub(crate) use server::{Server, Status};
pub(crate) use timeline::{Build, Timeline};
use websocket::Messages;

/// From the sending of a request to the end of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The load goes on for so long after the last reload: what that one broke must come to light.
const TAIL: Duration = Duration::from_secs(1);
/// Descriptors that the client needs beside its connections.
const SPARE_FDS: u64 = 128;
/// As a shell has it: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Runs a soak. Exit code 1 if anything was lost or a check failed.
pub(crate) fn run(args: SoakArgs) -> Result<ExitCode> {
    args.validate()?;
    if args.chaos {
        return crate::chaos::run(&crate::chaos::ChaosArgs {
            seed: args.seed,
            duration: args.limit().unwrap_or(args::DEFAULT_DURATION),
            out: args.out,
            sabotage: args.sabotage,
        });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let interrupted = interrupted()?;
        // Dropping the soak drops its `Place`, which kills what runs from it.
        tokio::select! {
            outcome = soak(args) => outcome,
            () = interrupted => {
                progress::clear();
                eprintln!("interrupted: the server is killed, nothing is reported");
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    })
}

/// Waits for Ctrl-C, or for whoever ends us politely.
pub(crate) fn interrupted() -> Result<impl Future<Output = ()>> {
    let mut signals = Vec::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        signals.push(signal(kind)?);
    }
    Ok(std::future::poll_fn(move |cx| {
        if signals
            .iter_mut()
            .any(|signal| signal.poll_recv(cx).is_ready())
        {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    }))
}

async fn soak(args: SoakArgs) -> Result<ExitCode> {
    if args.peer.is_asked_for() {
        return compare::run(args).await;
    }
    let root = workspace_root();
    let target = target_directory();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| target.join("soak-report"));
    std::fs::create_dir_all(&out)
        .with_context(|| format!("failed to create `{}`", out.display()))?;
    let place = if args.binaries.is_empty() {
        Place::build(&root, &target.join("soak")).await?
    } else {
        Place::with(&args.binaries)?
    };
    let results = under_load(args, &place, &out).await?;
    report::write_json(&results, &out)?;
    crate::report::beside(&out)?;
    print!("{}", report::table(&results));
    println!(
        "{}: report.html, soak.csv, soak.json, losses.log, server.log",
        out.display()
    );
    Ok(if results.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The soak itself, from the first start of the server to its stop.
async fn under_load(args: SoakArgs, place: &Place, out: &Path) -> Result<Results> {
    place.deploy(Build::A)?;
    let (server, status) =
        Server::start(place, &args.serve_args(), &out.join("server.log")).await?;
    let timeline = Arc::new(Timeline::new(status.generation, place.greetings.clone()));
    let book = Arc::new(Book::new(Arc::clone(&timeline), &out.join("losses.log"))?);
    let client = client(&args, server.address, Arc::clone(&timeline), &book)?;
    let counted_before = counter::requests(server.address).await?;

    let (machine, began) = (machine(), Instant::now());
    let mut idle = Idle::open(&client, args.idle, args.idle_sample).await?;
    let schedule = |start| Schedule::new(start, args.rate, args.seed);
    let load = Load::start(&client, args.connections, schedule).await?;
    let messages = Messages::start(&client, args.websockets, args.websocket_rate).await?;
    let show = AbortOnDropHandle::new(tokio::spawn(progress::show(Arc::clone(&book))));
    let samples = Samples::start(Arc::clone(&timeline), status.generation, status.pid);
    let run = Run {
        samples: &samples,
        args: &args,
        place,
        server: &server,
        client: &client,
    };
    let reloads = run.all(&mut idle).await?;
    tokio::time::sleep(TAIL + 4 * args.one_way()).await;
    let websockets = messages.finish().await?;
    let sent = load.finish().await?;
    let lasted_s = began.elapsed().as_secs_f64();
    let samples = samples.finish();
    // Uses them all, which would be a load of another kind beside the one that is measured.
    let idle = IdleResults::of(args.idle, &reloads, idle.finish().await);
    drop(show);
    progress::clear();
    book.turn();

    let account = book.account();
    let mut ending = ending::end(place, &server, counted_before).await;
    ending.answers = account.answers;
    ending.strangers = ending::strangers(&account.pids, status.pid, &reloads);
    let holdings = Holdings::of(&reloads);
    let checks = checks::all(checks::Found {
        totals: account.totals,
        idle: &idle,
        websockets,
        reloads: &reloads,
        holdings: &holdings,
        ending: &ending,
    });
    Ok(Results {
        format: FORMAT,
        command: command_line(),
        builds: timeline.greetings(),
        passed: !checks.iter().any(checks::Check::failed),
        checks,
        machine,
        lasted_s,
        load: LoadResults {
            scheduled: sent.paced.shots,
            worst_lateness_ms: ms(sent.paced.worst_lateness),
            extra_connections: sent.extra,
            counts: account.counts,
            totals: account.totals,
            latencies: account.latencies,
            distributions: account.distributions,
        },
        idle,
        websockets,
        moved: Moved::of(&reloads),
        timings: Timings::of(&reloads),
        holdings,
        ending,
        reloads,
        by_reload: account.by_reload,
        samples,
        series: account.series,
        losses: account.losses,
        args,
    })
}

/// The client of all the load.
fn client(
    args: &SoakArgs,
    target: SocketAddr,
    timeline: Arc<Timeline>,
    book: &Arc<Book>,
) -> Result<Arc<Client>> {
    Ok(Arc::new(Client {
        page: None,
        target,
        one_way: args.one_way(),
        timeout: REQUEST_TIMEOUT + 2 * args.one_way(),
        max_open: allow_descriptors()?,
        open: Arc::new(AtomicUsize::new(0)),
        timeline,
        book: Arc::clone(book),
    }))
}

/// Lets the client have as many connections as the system allows. Returns how many.
pub(crate) fn allow_descriptors() -> Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .context("failed to raise the limit of open files")?;
    let open = limit.maximum.unwrap_or(1 << 20).saturating_sub(SPARE_FDS);
    Ok(usize::try_from(open)?)
}

/// As one would type it: cargo runs us by the path of what it has built.
fn command_line() -> Vec<String> {
    let program = ["cargo", "xtask"].map(str::to_owned);
    program
        .into_iter()
        .chain(std::env::args().skip(1))
        .collect()
}

fn machine() -> Machine {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        kernel: kernel.trim().into(),
        cpus: std::thread::available_parallelism().map_or(1, Into::into),
        unix_time: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64(),
    }
}

/// `cargo run` says where this package is; the binary itself remembers where it was built.
pub(crate) fn workspace_root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or(package.clone(), Path::to_owned)
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from)
}
