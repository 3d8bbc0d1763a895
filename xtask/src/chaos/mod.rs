//! `cargo xtask soak --chaos`: everything that can go wrong, at random, one thing after the other on one server under load;
//! and after each a judgement: was more lost than the rules allow?
//!
//! - [`script`]: which event comes next, with its parameters, by the seed alone;
//! - [`place`]: the server, its directory, its processes; how an event is carried out;
//! - [`crowd`]: clients that never retry, and count;
//! - [`judge`]: what each event may cost, pure.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::faults::{Programs, build};
use crowd::{Counts, Crowd};
use place::Place;
use script::{Event, Script};

mod crowd;
mod judge;
mod place;
mod script;

/// What `soak --chaos` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct ChaosArgs {
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
    pub(crate) out: Option<PathBuf>,
    /// A process is killed of which the judge is not told: it must notice.
    pub(crate) sabotage: bool,
}

/// Of one kind of event.
#[derive(Clone, Debug, Default, Serialize)]
struct Row {
    times: u64,
    counts: Counts,
    /// What the rules would have allowed to be lost.
    allowed: u64,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    seed: u64,
    seconds: f64,
    events: u64,
    generations: u64,
    starts: u64,
    counts: Counts,
    by_event: BTreeMap<String, Row>,
    outside_the_rules: Option<String>,
}

pub(crate) fn run(args: &ChaosArgs) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let root = root.context("xtask is not in a workspace")?;
    let programs = Programs::new(&build(root)?)?;
    programs.end_with_this_process()?;
    eprintln!("chaos: seed {}, {:?}", args.seed, args.duration);
    let mut report = Report {
        seed: args.seed,
        ..Report::default()
    };
    let began = Instant::now();
    let mut place = Place::start(&programs)?;
    let mut crowd = Crowd::start(place.address)?;
    let mut script = Script::new(args.seed);
    let outcome = go_on(
        args,
        began,
        &mut place,
        &mut crowd,
        &mut script,
        &mut report,
    );
    let ended = crowd.finish();
    report.seconds = began.elapsed().as_secs_f64();
    report.starts = place.starts;
    if let Err(error) = outcome.and(ended.map(|_| ())) {
        let log = place.last_lines(30);
        report.outside_the_rules = Some(format!("{error:#}\nlog of the server:\n  {log}"));
    }
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| root.join("target/chaos"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make `{}`", out.display()))?;
    fs::write(out.join("chaos.json"), serde_json::to_vec_pretty(&report)?)?;
    fs::write(out.join("server.log"), place.log())?;
    print(&report);
    Ok(if report.outside_the_rules.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn go_on(
    args: &ChaosArgs,
    began: Instant,
    place: &mut Place<'_>,
    crowd: &mut Crowd,
    script: &mut Script,
    report: &mut Report,
) -> Result<()> {
    let is_live = std::io::stderr().is_terminal();
    crowd.goes_on()?;
    place.remember()?;
    let mut shown = Instant::now();
    while began.elapsed() < args.duration {
        let event = script.next();
        report.events += 1;
        let number = report.events;
        let what = || format!("seed {}, event {number}: {event:?}", args.seed);
        let before = crowd.counts();
        let mut seen = place.carry_out(&event, crowd).with_context(what)?;
        // Where nobody was to die.
        if args.sabotage && event == Event::Reload {
            place.kill_unseen()?;
        }
        place.settle(&mut seen, crowd).with_context(what)?;
        let after = crowd
            .quiesce(|counts| place.count(&seen, counts))
            .with_context(what)?;
        let cost = after.since(&before);
        let allowed = judge::allowed(&event, &seen);
        let row = report.by_event.entry(event.kind().to_owned()).or_default();
        row.times += 1;
        row.counts.add(&cost);
        row.allowed += allowed.lost;
        report.counts.add(&cost);
        report.generations += seen.generations;
        judge::judge(&allowed, &cost).with_context(|| format!("{}; {seen:?}", what()))?;
        place.holds_what_it_held(&seen).with_context(what)?;
        if is_live || shown.elapsed() > Duration::from_secs(10) {
            shown = Instant::now();
            let line = format!(
                "{:.0} s  event {number}  {}  answered {}  lost {} (by the rules)",
                began.elapsed().as_secs_f64(),
                event.kind(),
                report.counts.answered,
                report.counts.lost
            );
            let mut stderr = std::io::stderr().lock();
            // That nobody reads it changes nothing.
            let _ = if is_live {
                write!(stderr, "\r\x1b[K{line}")
            } else {
                writeln!(stderr, "{line}")
            };
        }
    }
    if is_live {
        eprintln!();
    }
    Ok(())
}

fn print(report: &Report) {
    println!(
        "{:<26}{:>7}{:>10}{:>7}{:>9}{:>8}{:>9}{:>9}",
        "event", "times", "answered", "lost", "allowed", "closed", "refused", "silent"
    );
    for (kind, row) in &report.by_event {
        let Counts {
            answered,
            lost,
            closed,
            refused,
            silent,
        } = row.counts;
        println!(
            "{kind:<26}{:>7}{answered:>10}{lost:>7}{:>9}{closed:>8}{refused:>9}{silent:>9}",
            row.times, row.allowed
        );
    }
    println!(
        "seed {}: {} events in {:.0} s, {} reloads that took place, {} starts; {} answered, {} lost by the rules",
        report.seed,
        report.events,
        report.seconds,
        report.generations,
        report.starts,
        report.counts.answered,
        report.counts.lost
    );
    match &report.outside_the_rules {
        Some(what) => println!("FAIL, outside the rules: {what}"),
        None => println!("nothing was lost outside the rules"),
    }
}
