//! What an idle keep-alive connection costs its server in memory: `hello` (accepted, and adopted), hyper alone, nginx and Go.
//!
//! Counted is anonymous memory (heap and stacks, `Anonymous` in smaps_rollup) of all processes of a server, with N
//! connections less without: the program's own pages in memory depend on what else runs it. An allocator that keeps
//! what was freed is charged for it, as it is on a real machine. The kernel's sockets are the same for all, and not counted.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::args::MemoryArgs;
use super::crowd::Crowd;
use super::goals::{Row, Verdict};
use super::smaps::Memory;
use super::stats::{Samples, ratio};
use super::throughput::peers::{self, Peer};
use super::{examples, limits, report};
use crate::faults::{processes_in, wait_for};
use crate::soak::{Build, Place, align};

/// Of bare hyper's: at most.
const GOAL_BARE: f64 = 1.3;
/// Connections before the first measurement: what a server allocates once is not counted.
const WARM_UP: u32 = 64;

/// One server in one round: bytes of anonymous memory for each connection.
#[derive(Clone, Copy, Debug, Serialize)]
struct Each {
    /// All have just been answered.
    answered: f64,
    /// They have rested since.
    idle: f64,
    /// `hello`: in the process that adopted them, not used since.
    adopted: Option<f64>,
    /// As `idle`, with private pages of files.
    idle_private: f64,
}

/// One server, over all rounds.
#[derive(Debug, Serialize)]
struct Of {
    name: &'static str,
    answered: Samples,
    idle: Samples,
    idle_private: Samples,
    adopted: Option<Samples>,
    /// The median over the rounds of `hello`'s idle connection through this one's.
    hello_per_this: f64,
}

/// All figures.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    args: MemoryArgs,
    servers: Vec<Of>,
}

impl Results {
    /// What `hello` takes for each byte of this one, if that one is here.
    fn hello_per(&self, name: &str) -> Option<f64> {
        let of = self.servers.iter().find(|of| of.name == name)?;
        Some(of.hello_per_this)
    }

    /// For the table of the goals.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let goals = [
            (
                "bare",
                "memory of an idle connection / bare hyper's",
                GOAL_BARE,
            ),
            ("go", "the same / Go's", 1.0),
        ];
        let row = |(name, figure, goal)| {
            let row = |ratio: f64| {
                let goal_text = format!("at most {goal}");
                let measured = format!("{ratio:.2}");
                Row::new(figure, goal_text, measured, Verdict::of(ratio <= goal))
            };
            let missing = || Row::new(figure, "", "not installed", Verdict::NotMeasured);
            self.hello_per(name).map_or_else(missing, row)
        };
        goals.into_iter().map(row).collect()
    }
}

/// Runs it, and prints the table.
pub(crate) fn run(args: &MemoryArgs) -> Result<Results> {
    limits::make_room(args.count)?;
    let out = report::directory(&args.common)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let bare = examples::build("bare")?;
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        // Fresh processes each time: what an allocator keeps of the last round would be counted as free.
        let place = runtime.block_on(report::place(&args.common))?;
        place.deploy(Build::A)?;
        let peers = peers::start(&place, &bare, &args.common)?;
        let mut each = Vec::new();
        for peer in &peers {
            let measured = measure(args, &place, peer).context(peer.name)?;
            each.push((peer.name, measured));
        }
        let told: Vec<String> = each
            .iter()
            .map(|(name, each)| format!("{name} {:.0}", each.idle))
            .collect();
        eprintln!(
            "{} of {}: bytes for an idle connection: {}",
            round + 1,
            args.rounds,
            told.join(", ")
        );
        rounds.push(each);
    }
    let results = results(args, &rounds);
    print!("{}", table(&results));
    report::write_json(&results, &out, "memory")?;
    Ok(results)
}

fn measure(args: &MemoryArgs, place: &Place, peer: &Peer) -> Result<Each> {
    let server = ([127, 0, 0, 1], peer.port).into();
    let is_hello = peer.name == "hello";
    if is_hello {
        // The memory of a child is not that of a first generation: compare like with like.
        reload(place, peer)?;
    }
    Crowd::open(server, WARM_UP)?.ask_all()?;
    sleep(args.rest);
    let empty = all_of(&peer.dir)?;
    let mut crowd = Crowd::open(server, args.count)?;
    crowd.ask_all()?;
    let answered = all_of(&peer.dir)?;
    sleep(args.rest);
    let idle = all_of(&peer.dir)?;
    let adopted = if is_hello {
        reload(place, peer)?;
        Some(all_of(&peer.dir)?)
    } else {
        None
    };
    // None was closed meanwhile.
    crowd.ask_all()?;
    let each = |with: f64, without: f64| (with - without) * 1024.0 / f64::from(args.count);
    let anonymous = |memory: Memory| each(memory.anonymous_kib, empty.anonymous_kib);
    Ok(Each {
        answered: anonymous(answered),
        idle: anonymous(idle),
        idle_private: each(idle.private_kib, empty.private_kib),
        adopted: adopted.map(anonymous),
    })
}

/// All of its processes together.
fn all_of(dir: &Path) -> Result<Memory> {
    let pids = processes_in(dir);
    ensure!(!pids.is_empty(), "it has ended");
    pids.into_iter().map(Memory::of).sum()
}

fn reload(place: &Place, hello: &Peer) -> Result<()> {
    let output = Command::new(place.hello())
        .args(["reload", "--pidfile"])
        .arg(hello.dir.join("pid"))
        .output()?;
    ensure!(
        output.status.success(),
        "the reload failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    wait_for("the parent has gone", || {
        Ok(processes_in(&hello.dir).len() == 1)
    })
}

fn results(args: &MemoryArgs, rounds: &[Vec<(&'static str, Each)>]) -> Results {
    let names = rounds.first().into_iter().flatten().map(|(name, _)| *name);
    let of_name = |name: &'static str, value: fn(&Each) -> f64| -> Vec<f64> {
        let each = rounds.iter().flatten().filter(|(of, _)| *of == name);
        each.map(|(_, each)| value(each)).collect()
    };
    let servers = names.map(|name| {
        let idle = of_name(name, |each| each.idle);
        let hello = of_name("hello", |each| each.idle);
        let rounds = hello.iter().zip(&idle);
        let adopted = of_name(name, |each| each.adopted.unwrap_or(f64::NAN));
        Of {
            name,
            hello_per_this: Samples::of(rounds.map(|(hello, it)| ratio(*it, *hello)).collect())
                .median,
            answered: Samples::of(of_name(name, |each| each.answered)),
            idle: Samples::of(idle),
            idle_private: Samples::of(of_name(name, |each| each.idle_private)),
            adopted: (name == "hello").then(|| Samples::of(adopted)),
        }
    });
    Results {
        args: args.clone(),
        servers: servers.collect(),
    }
}

fn table(results: &Results) -> String {
    let head = [
        "bytes a connection",
        "just answered",
        "idle",
        "min",
        "max",
        "private",
        "hello / this",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for of in &results.servers {
        let cells = [
            of.answered.median,
            of.idle.median,
            of.idle.min,
            of.idle.max,
            of.idle_private.median,
        ];
        let cells = cells.map(|bytes| format!("{bytes:.0}"));
        let mut row = vec![of.name.to_owned()];
        row.extend(cells);
        row.push(format!("{:.2}", of.hello_per_this));
        rows.push(row);
    }
    let mut text = format!(
        "anonymous memory of {} connections, medians of {} rounds, idle for {:?}\n{}",
        results.args.count,
        results.args.rounds,
        results.args.rest,
        align(&rows)
    );
    if let Some(adopted) = results.servers.iter().find_map(|of| of.adopted.as_ref()) {
        text += &format!("hello, adopted: {:.0} bytes\n", adopted.median);
    }
    for (name, goal) in [("bare", GOAL_BARE), ("go", 1.0)] {
        if let Some(ratio) = results.hello_per(name) {
            let said = if ratio <= goal { "met" } else { "missed" };
            text += &format!("hello / {name}: {ratio:.2} (goal {goal}: {said})\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_each_round() {
        let each = |idle| Each {
            answered: idle,
            idle,
            adopted: None,
            idle_private: idle,
        };
        let round = |hello, go| vec![("hello", each(hello)), ("go", each(go))];
        let args = MemoryArgs {
            count: 1,
            rounds: 3,
            rest: std::time::Duration::ZERO,
            common: super::super::args::CommonArgs::default(),
        };
        let rounds = [round(1.0, 2.0), round(9.0, 3.0), round(4.0, 4.0)];
        let results = results(&args, &rounds);
        assert_eq!(results.hello_per("go"), Some(1.0));
        assert_eq!(results.hello_per("bare"), None);
    }
}
