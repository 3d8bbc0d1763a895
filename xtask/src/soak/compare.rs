//! Servers that are driven by commands, one after the other under the same load, on one page.
//!
//! What only `hello` can tell (what moved, phases, its counter) is absent from their `soak.json`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

use super::book::{Account, Book, Loss, Second};
use super::builds::Place;
use super::by_reload::Between;
use super::checks::Check;
use super::client::Client;
use super::latency::ms;
use super::load::Load;
use super::peer::Peer;
use super::probe;
use super::process::Holding;
use super::profile::{Commands, Profile};
use super::results::{FORMAT, LoadResults, Machine};
use super::samples::Sample;
use super::schedule::Schedule;
use super::timeline::{Build, Timeline};
use super::tree::Tree;
use super::{SoakArgs, TAIL, progress, target_directory, workspace_root};

/// For the first answer of a new generation, after its command has ended well.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const SAMPLE_EVERY: Duration = Duration::from_millis(500);

/// One reload, as far as anybody can tell from outside.
#[derive(Clone, Debug, Serialize)]
struct Reload {
    number: u64,
    at_s: f64,
    failure: Option<String>,
    generation: Option<u64>,
    /// `null`: its answers have no `x-generation`.
    first_answer_ms: Option<f64>,
    command_ms: f64,
}

/// `soak.json` of such a server: a part of format 1.
#[derive(Debug, Serialize)]
struct Results {
    format: u32,
    server: String,
    commands: Commands,
    command: Vec<String>,
    builds: [Option<String>; 0],
    passed: bool,
    checks: Vec<Check>,
    args: SoakArgs,
    machine: Machine,
    lasted_s: f64,
    load: LoadResults,
    reloads: Vec<Reload>,
    by_reload: Vec<Between>,
    samples: Vec<Sample>,
    series: Vec<Second>,
    losses: Vec<Loss>,
}

/// Runs all that were asked for. Exit code 1 if one of them lost something, or could not run.
pub(super) async fn run(args: SoakArgs) -> Result<ExitCode> {
    let target = target_directory();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| target.join("soak-report"));
    let tree = Arc::new(Tree::adopt()?);
    let (mut done, mut passed): (Vec<PathBuf>, bool) = (Vec::new(), true);
    let mut broken = None;
    let names = match args.peer.start {
        Some(_) => vec![None],
        None => args
            .peer
            .profile
            .iter()
            .map(|name| Some(name.as_str()))
            .collect(),
    };
    for name in names {
        let profile = name.map(Profile::named).transpose()?;
        if let Some(missing) = profile.and_then(Profile::missing) {
            eprintln!("{missing}");
            continue;
        }
        let dir = profile.map_or_else(|| out.clone(), |profile| out.join(profile.name));
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("failed to create `{}`", dir.display()))?;
        let name = profile.map_or("the given server", |profile| profile.name);
        eprintln!("{name}");
        // The others are measured all the same.
        match one(&args, profile, &dir, &tree).await {
            Ok(results) => {
                passed &= results.passed;
                write(&results, &dir)?;
                done.push(dir);
            }
            Err(err) => {
                progress::clear();
                if args.peer.profile.len() > 1 {
                    eprintln!("{name}: {err:#}");
                }
                broken.get_or_insert(err.context(name.to_owned()));
            }
        }
    }
    if done.is_empty() {
        return Err(broken.unwrap_or_else(|| anyhow!("none of these servers can run here")));
    }
    passed &= broken.is_none();
    let page = out.join("report.html");
    print!("{}", crate::report::compared(&done, &page)?);
    println!("{}", page.display());
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write(results: &Results, dir: &Path) -> Result<()> {
    let path = dir.join("soak.json");
    std::fs::write(&path, serde_json::to_string_pretty(results)?)
        .with_context(|| format!("failed to write `{}`", path.display()))?;
    crate::report::beside(dir)
}

async fn one(
    args: &SoakArgs,
    profile: Option<&Profile>,
    out: &Path,
    tree: &Arc<Tree>,
) -> Result<Results> {
    let scratch = tempfile::Builder::new().prefix("soak-peer-").tempdir()?;
    let dir = scratch.path().canonicalize()?;
    // Workers that change their user must reach it.
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let (commands, place) = match profile {
        Some(profile) if profile.needs.is_none() => {
            let place = match args.binaries.as_slice() {
                [] => Place::build(&workspace_root(), &target_directory().join("soak")).await?,
                binaries => Place::with(binaries)?,
            };
            place.deploy(Build::A)?;
            (profile.prepare(&dir, port)?, Some(place))
        }
        Some(profile) => (profile.prepare(&dir, port)?, None),
        None => (given(args)?, None),
    };
    let log = out.join("server.log");
    std::fs::write(&log, "").with_context(|| format!("failed to write `{}`", log.display()))?;
    let timeout = Duration::from_secs(args.peer.command_timeout);
    let hello = place.as_ref().map(Place::hello);
    let peer = Peer {
        commands,
        dir,
        port,
        timeout,
        log,
        hello,
        tree: Arc::clone(tree),
    };
    let measured = under_load(args, &peer, out).await;
    // Whatever came of it, the next server begins alone.
    if measured.is_err() {
        tree.kill();
    }
    let (mut results, _first) = measured?;
    let stopped = peer.run("stop", &peer.commands.stop, 0).await;
    let left = tree.gone_within(timeout).await;
    tree.kill();
    let stop = match &stopped {
        Ok(()) => format!("processes left: {left:?}"),
        Err(err) => format!("{err:#}"),
    };
    results.checks.push(Check::new(
        "it stops, and nothing is left",
        stopped.is_ok() && left.is_empty(),
        stop,
    ));
    results.passed = !results.checks.iter().any(Check::failed);
    Ok(results)
}

fn given(args: &SoakArgs) -> Result<Commands> {
    let given = |option: &Option<String>, name: &str| {
        option.clone().with_context(|| format!("{name} is missing"))
    };
    Ok(Commands {
        name: "yours".into(),
        start: given(&args.peer.start, "--start")?,
        reload: given(&args.peer.reload, "--reload")?,
        stop: given(&args.peer.stop, "--stop")?,
        url: given(&args.peer.url, "--url")?,
    })
}

/// With what the start command became, which is killed when it is dropped.
async fn under_load(args: &SoakArgs, peer: &Peer, out: &Path) -> Result<(Results, Child)> {
    let (address, page) = peer.target()?;
    let timeline = Arc::new(Timeline::new(1, [None, None]));
    let book = Arc::new(Book::new(Arc::clone(&timeline), &out.join("losses.log"))?);
    let client = super::client(args, address, Arc::clone(&timeline), &book)?;
    let client = Arc::new(Client {
        page: Some(page),
        ..(*client).clone()
    });
    let (first, tells) = peer.start(&client).await?;

    let (machine, began) = (super::machine(), Instant::now());
    let schedule = |start| Schedule::new(start, args.rate, args.seed).of_any_server();
    let load = Load::start(&client, args.connections, schedule).await?;
    let show = AbortOnDropHandle::new(tokio::spawn(progress::show(Arc::clone(&book))));
    let samples = Arc::new(Mutex::new(Vec::new()));
    let sampler = AbortOnDropHandle::new(tokio::spawn(sample(
        Arc::clone(&samples),
        Arc::clone(&timeline),
        Arc::clone(&peer.tree),
    )));
    let reloads = reloads(args, peer, &client, tells).await;
    tokio::time::sleep(TAIL + 4 * args.one_way()).await;
    let sent = load.finish().await?;
    let lasted_s = began.elapsed().as_secs_f64();
    drop((show, sampler));
    progress::clear();
    book.turn();

    let account = book.account();
    let samples = std::mem::take(&mut *samples.lock().unwrap_or_else(PoisonError::into_inner));
    let results = Results {
        format: FORMAT,
        server: peer.commands.name.clone(),
        commands: peer.commands.clone(),
        command: super::command_line(),
        builds: [],
        passed: false,
        checks: checks(&account, &reloads),
        args: args.clone(),
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
        reloads,
        by_reload: account.by_reload,
        samples,
        series: account.series,
        losses: account.losses,
    };
    Ok((results, first))
}

async fn reloads(args: &SoakArgs, peer: &Peer, client: &Arc<Client>, tells: bool) -> Vec<Reload> {
    let end = args.limit().map(|limit| Instant::now() + limit);
    let mut reloads = Vec::new();
    let mut due = Instant::now() + args.every;
    for number in 1..=args.reloads.unwrap_or(u64::MAX) {
        tokio::time::sleep_until(end.map_or(due, |end| end.min(due)).into()).await;
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        due = Instant::now() + args.every;
        let reload = reload(peer, client, tells, number).await;
        let failed = reload.failure.is_some();
        reloads.push(reload);
        // Each may take its whole deadline: the second would tell nothing new.
        if failed {
            break;
        }
    }
    reloads
}

async fn reload(peer: &Peer, client: &Arc<Client>, tells: bool, number: u64) -> Reload {
    let timeline = &client.timeline;
    let began = timeline.begin_reload(number, Build::A);
    let prober = tells.then(|| {
        let prober = probe::first_answer(Arc::new(client.nearby()), number + 1);
        AbortOnDropHandle::new(tokio::spawn(prober))
    });
    let outcome = peer.run("reload", &peer.commands.reload, number + 1).await;
    let command_ms = ms(began.elapsed());
    let mut failure = outcome.err().map(|err| format!("{err:#}"));
    let mut first_answer = None;
    if let (Some(prober), None) = (prober, &failure) {
        first_answer = tokio::time::timeout(FIRST_ANSWER_TIMEOUT, prober)
            .await
            .ok()
            .and_then(Result::ok);
        if first_answer.is_none() {
            failure = Some(format!(
                "no answer of generation {} within {FIRST_ANSWER_TIMEOUT:?}",
                number + 1
            ));
        }
    }
    if failure.is_none() {
        timeline.commit(number + 1);
    }
    timeline.end_reload();
    Reload {
        number,
        at_s: began.duration_since(timeline.start()).as_secs_f64(),
        generation: failure.is_none().then_some(number + 1),
        failure,
        first_answer_ms: first_answer.map(|at| ms(at.duration_since(began))),
        command_ms,
    }
}

fn checks(account: &Account, reloads: &[Reload]) -> Vec<Check> {
    let totals = account.totals;
    let failed = reloads
        .iter()
        .filter(|reload| reload.failure.is_some())
        .count();
    vec![
        Check::new(
            "no request is lost",
            totals.ended > 0 && totals.lost == 0,
            format!(
                "{} lost of {}; {} keep-alive connections closed",
                totals.lost, totals.ended, totals.closed
            ),
        ),
        Check::new(
            "every reload succeeds",
            !reloads.is_empty() && failed == 0,
            format!("{failed} of {} failed", reloads.len()),
        ),
    ]
}

/// The sum over all processes: pages that they share count in each.
async fn sample(samples: Arc<Mutex<Vec<Sample>>>, timeline: Arc<Timeline>, tree: Arc<Tree>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    loop {
        ticks.tick().await;
        tree.bury();
        let now = timeline.now();
        let held: Vec<Holding> = Tree::processes()
            .into_iter()
            .filter_map(|pid| Holding::of(pid).ok())
            .collect();
        samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Sample {
                at_s: now.at.as_secs_f64(),
                generation: now.generation,
                rss_kib: held.iter().map(|held| held.rss_kib).sum(),
                fds: held.iter().map(|held| held.sockets + held.other_fds).sum(),
            });
    }
}
